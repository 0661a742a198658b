"""Images to (N, D) float arrays: the small classifier and the encoders made from it."""
