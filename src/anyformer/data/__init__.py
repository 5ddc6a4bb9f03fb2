"""Text, images, audio and series to batches; and where real data and weights come from (`sources`)."""
