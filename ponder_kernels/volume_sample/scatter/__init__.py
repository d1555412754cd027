"""Sums of a volume's gradient in a fixed order, without atomics."""

from ponder_kernels.volume_sample.scatter.op import scatter

__all__ = ["scatter"]
