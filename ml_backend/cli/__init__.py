"""``rush``: the command line; what it does is in ``operations``."""
