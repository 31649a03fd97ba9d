"""The host that Label Studio calls."""
