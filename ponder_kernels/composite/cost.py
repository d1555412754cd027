"""Traffic and arithmetic of compositing as functions of shape."""

from __future__ import annotations

from ponder_kernels._launch import Cost


def render_weights_cost(rays: int, samples: int) -> Cost:
    """Forward: alpha in, weights and transmittance out; 2 FLOPs a factor, 1 the product, 1 the weight."""
    n = rays * samples
    return Cost(bytes_read=4 * n, bytes_written=8 * n, flops=4 * n)


def render_weights_backward_cost(rays: int, samples: int, *, transmittance_gradient: bool = False) -> Cost:
    """Backward: alpha, transmittance and the upstream gradients in, alpha's gradient out."""
    n = rays * samples
    if transmittance_gradient:
        return Cost(bytes_read=16 * n, bytes_written=4 * n, flops=8 * n)
    return Cost(bytes_read=12 * n, bytes_written=4 * n, flops=7 * n)


def composite_cost(rays: int, samples: int, channels: int, element_bytes: int = 4, *, background: bool = False) -> Cost:
    """Forward: weights and values in, one row of channels per ray out.

    Args:
        rays, samples, channels: R, S, C.
        element_bytes: bytes of one value (2 or 4).
        background: whether a float32 [R, C] background is blended in.
    """
    n, pixels = rays * samples, rays * channels
    read = 4 * n + n * channels * element_bytes
    flops = 2 * n * channels
    if background:
        read += 4 * pixels
        flops += n + rays + 2 * pixels
    return Cost(read, 4 * pixels, flops)


def composite_backward_cost(
    rays: int,
    samples: int,
    channels: int,
    element_bytes: int = 4,
    *,
    background: bool = False,
    to_weights: bool = True,
    to_values: bool = True,
) -> Cost:
    """Backward: the upstream gradient (and what each wanted gradient needs) in, the wanted gradients out.

    Args:
        rays, samples, channels, element_bytes, background: as in `composite_cost`.
        to_weights: whether the weights' gradient is computed; it reads the values again.
        to_values: whether the values' gradient is computed; it reads the weights again.
    """
    n, pixels = rays * samples, rays * channels
    read, written, flops = 4 * pixels, 0, 0
    if to_weights:
        read += n * channels * element_bytes
        written += 4 * n
        flops += 2 * n * channels
        if background:
            read += 4 * pixels
            flops += n * channels
    if to_values:
        read += 4 * n
        written += n * channels * element_bytes
        flops += n * channels
    return Cost(read, written, flops)
