"""Front-ends of sound."""
