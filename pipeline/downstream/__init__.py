"""What synthetic images bring to a classifier: arms, paired comparison, verdict."""
