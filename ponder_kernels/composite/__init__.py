"""Alpha compositing along rays: weights, transmittance and weighted sums."""

from ponder_kernels.composite.op import RayWeights, composite, render_weights

__all__ = ["RayWeights", "composite", "render_weights"]
