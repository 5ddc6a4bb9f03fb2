"""Softmax attention: the one part, its masks, scores, kernels and caches, and the parts that are made of it."""
