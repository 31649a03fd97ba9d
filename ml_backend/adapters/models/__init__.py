"""Networks: decoding, embedding, heads, fine-tuning, maps. Only workers load torch."""
