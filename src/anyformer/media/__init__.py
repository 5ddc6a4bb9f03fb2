"""Files and arrays to pictures, and pictures to pixels: numpy and Pillow, no torch."""
