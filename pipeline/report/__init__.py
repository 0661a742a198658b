"""The HTML page, its figures, and the data card."""
