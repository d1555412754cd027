"""nerfacc 0.5's rendering, scan, pack and pdf functions, and its two dataclasses, on our operators.

A user of nerfacc changes one import line: names, argument order, defaults and numbers are the same, on CPU and GPU and
in any floating dtype. Samples are batched, [R, S] (or any leading dimensions), or flat, [N] of all rays one by one with
`packed_info` or `ray_indices`. Gradients are exact where an alpha is 1 or a factor 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ponder_kernels.compat._nerfacc_accumulate import accumulate_along_rays, accumulate_along_rays_, accumulate_runs
from ponder_kernels.compat._nerfacc_pdf import RayIntervals, RaySamples, importance_sampling, searchsorted
from ponder_kernels.compat._nerfacc_scan import exclusive_prod, exclusive_sum, inclusive_prod, inclusive_sum, pack_info
from ponder_kernels.compat._nerfacc_volrend import (
    check_alike,
    from_alpha,
    from_density,
    render_transmittance_from_alpha,
    render_transmittance_from_density,
    render_visibility_from_alpha,
    render_visibility_from_density,
    render_weight_from_alpha,
    render_weight_from_density,
    runs_or_rows,
)

__all__ = [
    "RayIntervals",
    "RaySamples",
    "accumulate_along_rays",
    "accumulate_along_rays_",
    "exclusive_prod",
    "exclusive_sum",
    "importance_sampling",
    "inclusive_prod",
    "inclusive_sum",
    "pack_info",
    "render_transmittance_from_alpha",
    "render_transmittance_from_density",
    "render_visibility_from_alpha",
    "render_visibility_from_density",
    "render_weight_from_alpha",
    "render_weight_from_density",
    "rendering",
    "searchsorted",
]

SampleFunction = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def _query(name: str, function: SampleFunction, samples: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    """Colours [..., 3] and densities or opacities [...] of the samples, checked."""
    rgbs, values = function(*samples)
    shape = list(samples[0].shape)
    if list(rgbs.shape) != [*shape, 3]:
        raise ValueError(f"{name}: expected colours of shape {[*shape, 3]}, got {list(rgbs.shape)}")
    if list(values.shape) != shape:
        raise ValueError(f"{name}: expected a second result of shape {shape}, got {list(values.shape)}")
    return rgbs, values


def rendering(
    t_starts: Tensor,
    t_ends: Tensor,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    rgb_sigma_fn: SampleFunction | None = None,
    rgb_alpha_fn: SampleFunction | None = None,
    render_bkgd: Tensor | None = None,
    expected_depths: bool = True,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Colour, opacity and depth of rays through a field that is asked at every sample.

    Args:
        t_starts, t_ends: [R, S], or flat [N] with `ray_indices` and `n_rays`: the interval of each sample on its ray.
        ray_indices: [N] the ray of each sample; samples of one ray side by side, front to back.
        n_rays: number of rays R; required with `ray_indices`.
        rgb_sigma_fn: called with (t_starts, t_ends, ray_indices), returns colours [..., 3] and densities [...].
        rgb_alpha_fn: the same with opacities; not called if `rgb_sigma_fn` is given. One of the two is required.
        render_bkgd: [3] (or [R, 3]) colour behind the rays, weighted by the light that is left.
        expected_depths: divide the depths by the opacities.

    Returns:
        colours [R, 3], opacities [R, 1], depths [R, 1] (weighted middles of the intervals), and a dict with what was
        made on the way: "weights", "trans", "alphas", "rgbs", and "sigmas" where densities were given.

    Raises:
        TypeError: not tensors, not floating-point, ids that are not integers.
        ValueError: neither function, no `n_rays` with `ray_indices`, shapes or devices that do not fit, ids outside of
            the rays or not side by side (checked on the CPU).

    >>> def fog(t_starts, t_ends, ray_indices):
    ...     return torch.ones(*t_starts.shape, 3), torch.full_like(t_starts, 0.5)
    >>> starts, ends = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    >>> colors, opacities, depths, extras = rendering(starts, ends, rgb_alpha_fn=fog, expected_depths=False)
    >>> colors.tolist(), opacities.tolist(), depths.tolist()
    ([[0.75, 0.75, 0.75]], [[0.75]], [[0.625]])
    """
    if rgb_sigma_fn is None and rgb_alpha_fn is None:
        raise ValueError("rgb_sigma_fn: expected at least one of rgb_sigma_fn and rgb_alpha_fn, got neither")
    check_alike("t_starts", t_starts, t_ends=t_ends)
    if ray_indices is not None and n_rays is None:
        raise ValueError("n_rays: expected the number of rays with ray_indices, got None")
    runs = runs_or_rows("t_starts", t_starts, None, ray_indices, n_rays)
    samples = (t_starts, t_ends, ray_indices)
    extras: dict[str, Any]
    if rgb_sigma_fn is not None:
        rgbs, sigmas = _query("rgb_sigma_fn", rgb_sigma_fn, samples)
        trans, alphas = from_density(t_starts, t_ends, sigmas, runs, None)
        weights = trans * alphas
        extras = {"weights": weights, "alphas": alphas, "trans": trans, "sigmas": sigmas, "rgbs": rgbs}
    else:
        assert rgb_alpha_fn is not None
        rgbs, alphas = _query("rgb_alpha_fn", rgb_alpha_fn, samples)
        weights, trans = from_alpha(alphas, runs, None)
        extras = {"weights": weights, "trans": trans, "rgbs": rgbs, "alphas": alphas}

    def accumulate(values: Tensor) -> Tensor:
        if runs is None:
            return accumulate_along_rays(weights, values)
        assert ray_indices is not None and n_rays is not None
        return accumulate_runs(weights, values, runs, ray_indices, n_rays)

    colors, opacities = accumulate(rgbs), accumulate(weights.new_ones(1).expand(*weights.shape, 1))
    depths = accumulate((t_starts + t_ends)[..., None] / 2.0)
    if expected_depths:
        depths = depths / opacities.clamp_min(torch.finfo(rgbs.dtype).eps)
    if render_bkgd is not None:
        colors = colors + render_bkgd * (1.0 - opacities)
    return colors, opacities, depths, extras
