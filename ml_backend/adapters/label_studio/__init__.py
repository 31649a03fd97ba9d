"""Label Studio over HTTP, as measured on 1.23.2."""
