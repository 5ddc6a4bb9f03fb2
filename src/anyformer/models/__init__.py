"""One file here is one architecture. See docs/adding-an-architecture.md."""
