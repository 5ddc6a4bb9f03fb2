"""Text, images, audio and series to batches; and the sources of real data and weights (`sources`)."""
