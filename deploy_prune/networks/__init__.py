"""Networks that need no other package."""
