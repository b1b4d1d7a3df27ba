"""Adapting a network to a new task with few examples."""
