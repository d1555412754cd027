"""Compositing along rays in plain torch: the definitions, and their CPU backend.

Rays are rows of a batched [R, S] tensor, or stretches of a packed [N] tensor: ray r owns the samples
``ray_offsets[r] : ray_offsets[r + 1]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels._constants import TRANSMITTANCE_EPS


def render_weights_reference(
    alpha: Tensor, ray_offsets: Tensor | None = None, eps: float = TRANSMITTANCE_EPS, early_stop: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weights and transmittance of each sample, front to back.

    ``T_i = prod_{j<i} (1 - alpha_j + eps)``, ``w_i = alpha_i T_i``; both 0 from the first sample of a ray with
    ``T_i < early_stop`` on.

    Args:
        alpha: [R, S], or packed [N].
        ray_offsets: None, or [R + 1] integers: from 0, never falling, to N.
        eps: added inside every factor.
        early_stop: transmittance at which a ray ends.

    Returns:
        weights and transmittance, shape and dtype of `alpha`.
    """
    n = alpha.shape[-1]
    if ray_offsets is None:
        position, longest = torch.arange(n, device=alpha.device), n
    else:
        _, position = ray_and_position(ray_offsets, n)
        longest = _longest(ray_offsets, n)
    if early_stop > 0.0:
        # The end of a ray is found first, so that whatever lies behind it, NaN included, takes no further part.
        passing = _exclusive_product(1.0 - alpha.detach() + eps, position, longest)
        ended = _any_so_far(passing < early_stop, position)
        alpha = torch.where(ended, 0.0, alpha)
    transmittance = _exclusive_product(1.0 - alpha + eps, position, longest)
    if early_stop > 0.0:
        transmittance = torch.where(ended, 0.0, transmittance)
    return alpha * transmittance, transmittance


def composite_reference(
    weights: Tensor, values: Tensor, background: Tensor | None = None, ray_offsets: Tensor | None = None
) -> Tensor:
    """``out_r = sum_i w_ri v_ri + background_r (1 - sum_i w_ri)``.

    Args:
        weights: [R, S], or packed [N].
        values: [R, S, C] or [N, C], converted to the dtype of `weights`.
        background: None, or [R, C] in the dtype of `weights`.
        ray_offsets: None, or [R + 1] integers as in `render_weights_reference`.

    Returns:
        [R, C], dtype of `weights`.
    """
    values = values.to(weights.dtype)
    if ray_offsets is None:
        # A product per ray: the weighted values, as many as the values, need not exist.
        out, total = torch.bmm(weights.unsqueeze(1), values).squeeze(1), weights.sum(1, keepdim=True)
    else:
        terms = weights.unsqueeze(-1)
        ray, _ = ray_and_position(ray_offsets, weights.shape[0])
        out, total = (_sum_by_ray(x, ray, ray_offsets.shape[0] - 1) for x in (terms * values, terms))
    if background is not None:
        out = out + background * (1.0 - total)
    return out


def ray_and_position(ray_offsets: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Number of the ray that owns each of `n` packed samples, and the sample's place on it; int64 [n] each.

    Offsets that break the rules give wrong numbers, but rays and places that exist.
    """
    rays = ray_offsets.shape[0] - 1
    begun = torch.zeros(n + 1, dtype=torch.int64, device=ray_offsets.device)
    begun = begun.index_add(0, ray_offsets.long().clamp(0, n), torch.ones_like(ray_offsets, dtype=torch.int64))
    ray = (begun[:n].cumsum(0) - 1).clamp(0, max(rays - 1, 0))
    first = ray_offsets[ray].clamp(0, n)
    return ray, (torch.arange(n, device=ray_offsets.device) - first).clamp_min(0)


def values_at_hand(x: Tensor) -> bool:
    """Whether reading a tensor's values is free: on the CPU, and not in a trace or a torch.func transform."""
    # A trace's stand-ins are subclasses without values.
    plain = x.device.type == "cpu" and type(x) is Tensor
    return plain and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def _longest(ray_offsets: Tensor, n: int) -> int:
    """Length of the longest ray where it can be read without waiting for a device, else its bound n."""
    if ray_offsets.shape[0] > 1 and values_at_hand(ray_offsets):
        return int(ray_offsets.diff().max())
    return n


def _exclusive_product(factors: Tensor, position: Tensor, longest: int) -> Tensor:
    """Product of the factors of the earlier samples of the same ray, along the last dim.

    Doubling (Hillis & Steele 1986): after step k each sample holds the product of the k factors before it, and takes
    that of its k-th predecessor where the ray is long enough. About log2(longest) passes of multiplications:
    derivatives of every order follow the product rule, exact where factors are 0 (cumprod divides by the factors, or
    turns quadratic when differentiated twice), and no size depends on the offsets' values (padding the rays to the
    longest would, and wastes memory on one long ray among short ones).
    """
    product = torch.where(position > 0, factors.roll(1, -1), 1.0)
    step = 1
    while step < longest:
        # Masked before the multiplication: a NaN of another ray, or its gradient, must not come in.
        product = product * torch.where(position >= step, product.roll(step, -1), 1.0)
        step *= 2
    return product


def _any_so_far(flags: Tensor, position: Tensor) -> Tensor:
    """Whether a flag is set at a sample or at an earlier one of the same ray."""
    count = flags.long().cumsum(-1)
    before_ray = torch.arange(flags.shape[-1], device=flags.device) - position - 1
    earlier = count[..., before_ray.clamp_min(0)] * (before_ray >= 0)
    return count > earlier


def _sum_by_ray(x: Tensor, ray: Tensor, rays: int) -> Tensor:
    """[N, C] to [R, C], sample n added to ray[n]."""
    return x.new_zeros(rays, x.shape[1]).index_add(0, ray, x)
