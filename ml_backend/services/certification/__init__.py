"""What a random audit proves, and what is taken over because of it."""
