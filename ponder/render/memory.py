"""How much memory of the renderer stays with the process between steps."""

from ponder_kernels.memory import keep_at_most

__all__ = ["keep_at_most"]
