"""Images in and out: readers, checks, splits, the sample store."""
