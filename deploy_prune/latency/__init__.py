"""Latency: devices, measuring on them, and models of it that a search can use."""
