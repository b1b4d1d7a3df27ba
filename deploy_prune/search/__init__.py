"""Search: score the channels of every group."""
