"""Which image comes next, what is suggested for it, and how people's time is spent."""
