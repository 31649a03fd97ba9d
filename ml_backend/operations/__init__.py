"""Use cases over the container; the command line and the web share them."""
