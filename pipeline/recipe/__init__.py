"""`recipe: auto`: settings that follow from the set, and what sets like it have gained."""
