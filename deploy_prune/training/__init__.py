"""Training: the loop, batch-norm statistics, processes that train together, devices and trackers."""
