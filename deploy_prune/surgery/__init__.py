"""Find what can be cut, cut it, prove it, and write down the architecture."""
