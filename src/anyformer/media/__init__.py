"""Files and arrays to pictures and sounds, and these to numbers."""
