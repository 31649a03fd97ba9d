"""Label Studio's truth into our cache, and the map back into its metadata."""
