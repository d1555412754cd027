"""Traffic and arithmetic of compositing as functions of shape.

Every kernel here is bound by bandwidth: it does at most a handful of FLOPs per byte. Where there are few rays the
latency of walking a ray block by block comes first. Packed rays count with their mean number of samples (which need not
be whole) and read two offsets each. Rays that end early read and compute less than this.
"""

from __future__ import annotations

from ponder_kernels._launch import Cost


def render_weights_cost(rays: int, samples: float, *, offset_bytes: int = 0) -> Cost:
    """Forward: alpha in, weights and transmittance out; 2 FLOPs a factor, 1 the product, 1 the weight.

    Args:
        rays: R.
        samples: S, or the mean number of samples of packed rays.
        offset_bytes: 0 for batched rays; bytes of one offset (4 or 8) for packed ones.
    """
    n = round(rays * samples)
    return Cost(4 * n + _offsets(rays, offset_bytes), 8 * n, 4 * n)


def render_weights_backward_cost(
    rays: int, samples: float, *, offset_bytes: int = 0, transmittance_gradient: bool = False
) -> Cost:
    """Backward: alpha, transmittance and the upstream gradients in, alpha's gradient out.

    Args:
        rays, samples, offset_bytes: as in `render_weights_cost`.
        transmittance_gradient: whether the transmittance has an upstream gradient too.
    """
    n = round(rays * samples)
    per_sample, flops = (16, 8) if transmittance_gradient else (12, 7)
    return Cost(per_sample * n + _offsets(rays, offset_bytes), 4 * n, flops * n)


def composite_cost(
    rays: int,
    samples: float,
    channels: int,
    element_bytes: int = 4,
    *,
    offset_bytes: int = 0,
    background: bool = False,
) -> Cost:
    """Forward: weights and values in, one row of channels per ray out.

    Args:
        rays, samples, channels: R, S (mean for packed rays), C.
        element_bytes: bytes of one value (2 or 4).
        offset_bytes: as in `render_weights_cost`.
        background: whether a float32 [R, C] background is blended in.
    """
    n, pixels = round(rays * samples), rays * channels
    read = 4 * n + n * channels * element_bytes + _offsets(rays, offset_bytes)
    flops = 2 * n * channels
    if background:
        read += 4 * pixels
        flops += n + rays + 2 * pixels
    return Cost(read, 4 * pixels, flops)


def composite_backward_cost(
    rays: int,
    samples: float,
    channels: int,
    element_bytes: int = 4,
    *,
    offset_bytes: int = 0,
    background: bool = False,
    to_weights: bool = True,
    to_values: bool = True,
) -> Cost:
    """Backward to weights and values: the upstream gradient and what each needs in, the wanted gradients out.

    Args:
        rays, samples, channels, element_bytes, offset_bytes, background: as in `composite_cost`.
        to_weights: whether the weights' gradient is computed; it reads the values again.
        to_values: whether the values' gradient is computed; it reads the weights again.
    """
    n, pixels = round(rays * samples), rays * channels
    read, written, flops = 4 * pixels + _offsets(rays, offset_bytes), 0, 0
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


def _offsets(rays: int, offset_bytes: int) -> int:
    return (rays + 1) * offset_bytes
