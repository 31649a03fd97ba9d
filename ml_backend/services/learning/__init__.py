"""Rounds of learning: heads, fine-tuning, maps."""
