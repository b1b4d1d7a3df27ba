"""What trainings and searches are tried on."""

from gating_examples import accelerator

__all__ = ["accelerator"]
