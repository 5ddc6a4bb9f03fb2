"""Models outside of Python: export to a program that runs without anyformer."""
