"""deploy-prune: from a network, a device and a latency budget to a slim, checked and measured artifact."""

__version__ = "0.1.0"
