"""Nearest neighbours: Qdrant's engines, an inverted file for very many tasks."""
