"""Examples: where they come from, how they are split, varied and batched."""
