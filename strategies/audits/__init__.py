"""Audits: which images to ask about, what they prove, and the target they are held to."""
