"""Redis: shared state, jobs on RQ, leases."""
