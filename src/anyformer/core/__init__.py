"""The core: parts and recipes, the values of a forward pass, decoding state, pages; independent of architectures."""
