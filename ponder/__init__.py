"""Ponder: pre-train 3D representations by differentiable neural rendering."""

__version__ = "0.1.0"
