"""Trilinear sampling of a dense volume at arbitrary points."""

from ponder_kernels.volume_sample.op import volume_sample

__all__ = ["volume_sample"]
