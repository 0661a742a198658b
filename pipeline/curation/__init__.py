"""Scores of a candidate image, and its acceptance or rejection with a reason."""
