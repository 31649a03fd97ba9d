"""What Rush does, one noun per module; knows ports and domain, no adapter."""
