"""architecture.json: which channels each group keeps. No weights, no code."""
