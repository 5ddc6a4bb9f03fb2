"""Texts in two languages for `examples/translation.py`."""
