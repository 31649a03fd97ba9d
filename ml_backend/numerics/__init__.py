"""Plain numpy on vectors and probabilities."""
