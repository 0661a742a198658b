"""What a set of images is checked for: one check a file, all of them yield findings."""
