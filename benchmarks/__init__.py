"""Side by side with other libraries: `python -m benchmarks [train_step] [decode] [load]` writes docs/benchmarks.md."""
