"""Servers and our own processes on this machine."""
