"""Images on their way into Label Studio."""
