"""Where progress and numbers go: the Tracker protocol and its implementations."""
