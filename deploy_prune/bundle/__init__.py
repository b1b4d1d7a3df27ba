"""Bundles: what the person who puts a network on a device needs, and can check there."""
