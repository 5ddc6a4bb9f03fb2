"""Looking inside: what a model is made of (`inspect`), and where its attention went (`attention_picture`)."""

from anyformer.explain.attention import attention_picture
from anyformer.explain.facts import Facts, inspect

__all__ = ["Facts", "attention_picture", "inspect"]
