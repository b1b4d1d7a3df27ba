"""Training: the loop, batch-norm statistics, devices and trackers."""
