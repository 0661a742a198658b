"""One metric, one file, on (N, D) arrays named real and fake."""
