"""Softmax attention: the one part, its masks, scores, kernels and caches, and the parts built on it."""
