"""Labelling replayed with simulated annotators over the product's own queue and learning."""
