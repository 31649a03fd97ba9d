"""The outside world behind ``ports``: each library is imported in here only."""
