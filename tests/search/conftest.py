"""The small networks that searches are tried on."""

from gating_examples import accelerator, chained, example, make_chain, make_group, make_residual

__all__ = ["accelerator", "chained", "example", "make_chain", "make_group", "make_residual"]
