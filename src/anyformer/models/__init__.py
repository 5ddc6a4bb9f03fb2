"""The architectures, one file each. See docs/adding-an-architecture.md."""
