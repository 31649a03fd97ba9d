"""Attaching a Label Studio project, and finding what is wrong with one."""
