"""Making models smaller: weights in 8 bits."""
