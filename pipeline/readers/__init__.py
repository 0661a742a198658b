"""Readers of labelled image sets: one file a format, all of them yield a `Source`."""
