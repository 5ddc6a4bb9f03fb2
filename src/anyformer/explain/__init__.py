"""Looking inside: the facts of a model (`inspect`), and pictures of its attention (`attention_picture`)."""

from anyformer.explain.attention import attention_picture
from anyformer.explain.facts import Facts, inspect

__all__ = ["Facts", "attention_picture", "inspect"]
