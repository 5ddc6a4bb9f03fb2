"""The quality sections of docs/attention.md."""


def write() -> None:
    """To be written."""
