"""Mixers that approximate or replace softmax attention: linear, low rank, hashed, sampled, by frequencies."""
