"""Projects that Label Studio has no more, and what nobody needs any longer."""
