"""The recipe: what one run does. Loads without torch."""
