"""The core: parts and recipes, what a forward pass shares, decoding state, skeletons, pages. Knows no architecture."""
