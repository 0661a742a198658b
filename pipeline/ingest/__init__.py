"""From a source to rows of the sample store: decoded in chunks, checked, split, written."""
