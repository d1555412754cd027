"""Signed distances to opacities and densities (NeuS, VolSDF)."""

from ponder_kernels.sdf_density.op import alpha_from_density, laplace_density, neus_alpha

__all__ = ["alpha_from_density", "laplace_density", "neus_alpha"]
