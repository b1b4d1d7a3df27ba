"""One run, from a recipe to finished artifacts."""
