"""The public address of `Tokenizer`."""

from anyformer.hub.text.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
