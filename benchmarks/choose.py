"""docs/choose-an-attention.md, from the measured tables."""


def write() -> None:
    """To be written."""
