"""Transmittance, weights and visibility of samples: the first half of nerfacc's volrend module."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels.compat._nerfacc_scan import Runs, runs_of, scan_rows, scan_runs
from ponder_kernels.composite import render_weights

RAY_DTYPES = (torch.float32, torch.float64)


def runs_or_rows(
    name: str, samples: Tensor, packed_info: Tensor | None, ray_indices: Tensor | None, n_rays: int | None
) -> Runs | None:
    """How flat samples are shared out; None for batched ones."""
    if packed_info is not None and ray_indices is not None:
        raise ValueError("ray_indices: expected at most one of packed_info and ray_indices, got both")
    if packed_info is None and ray_indices is None:
        if samples.dim() == 0:
            raise ValueError(f"{name}: expected at least one dimension, got a scalar")
        return None
    return runs_of(name, samples, packed_info, "ray_indices", ray_indices, n_rays)


def _dimmed(x: Tensor, prefix_trans: Tensor | None) -> Tensor:
    return x if prefix_trans is None else x * prefix_trans


def from_alpha(alphas: Tensor, runs: Runs | None, prefix_trans: Tensor | None) -> tuple[Tensor, Tensor]:
    """(weights, transmittance): the product that our operator makes, with no epsilon in its factors."""
    wide = alphas if alphas.dtype in RAY_DTYPES else alphas.float()
    if runs is None:
        weights, trans = render_weights(wide.flatten(0, -2) if wide.dim() > 1 else wide[None], eps=0.0)
    else:
        weights, trans = (runs.owned(x) for x in render_weights(wide, ray_offsets=runs.offsets, eps=0.0))
    weights, trans = (x.reshape(alphas.shape).to(alphas.dtype) for x in (weights, trans))
    return _dimmed(weights, prefix_trans), _dimmed(trans, prefix_trans)


def from_density(
    t_starts: Tensor, t_ends: Tensor, sigmas: Tensor, runs: Runs | None, prefix_trans: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(transmittance, alphas). A sum in the exponent, so that thick media keep their relative accuracy."""
    depth = sigmas * (t_ends - t_starts)
    if runs is None:
        before = scan_rows(depth, product=False, exclusive=True)
        trans = torch.exp(-before)
    else:
        before = scan_runs(depth, runs, product=False, exclusive=True)
        trans = runs.owned(torch.exp(-before))
    return _dimmed(trans, prefix_trans), -torch.expm1(-depth)


def check_alike(name: str, first: Tensor, **others: Tensor) -> None:
    """Require floating-point tensors of the shape and device of the first."""
    _check.floating(name, first)
    for other, x in others.items():
        if _check.floating(other, x).shape != first.shape:
            raise ValueError(f"{other}: expected shape {list(first.shape)} as {name}, got {list(x.shape)}")
    _check.same_device(name, first, **others)


def render_transmittance_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Light that reaches each sample: ``T_i = prod_{j<i} (1 - alpha_j)``.

    Args:
        alphas: [R, S] (or [..., S]) in [0, 1], samples front to back; or flat [N] with one of the two that follow.
        packed_info: [R, 2] (start, count) of each ray's samples, in any order, not overlapping; others get 0.
        ray_indices: [N] the ray of each sample; samples of one ray side by side.
        n_rays: number of rays of `ray_indices`. Not needed; if given, less work and better checks.
        prefix_trans: shape of `alphas`, multiplies the result: the light that reaches the ray's first sample.

    Returns:
        T, shape and dtype of `alphas`.

    Raises:
        TypeError: not tensors, not floating-point, ids or chunks that are not integers.
        ValueError: both `packed_info` and `ray_indices`, shapes or devices that do not fit, ids outside of the rays,
            chunks that overlap or leave the samples. The values of ids and chunks are checked on the CPU only.

    >>> ray_indices = torch.tensor([0, 0, 0, 3])
    >>> render_transmittance_from_alpha(torch.tensor([0.5, 1.0, 0.5, 0.5]), ray_indices=ray_indices).tolist()
    [1.0, 0.5, 0.0, 1.0]
    """
    _check.floating("alphas", alphas)
    return from_alpha(alphas, runs_or_rows("alphas", alphas, packed_info, ray_indices, n_rays), prefix_trans)[1]


def render_transmittance_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Light that reaches each sample, and the part of it that stops there.

    ``T_i = exp(-sum_{j<i} sigma_j (t_end_j - t_start_j))``, ``alpha_i = 1 - exp(-sigma_i (t_end_i - t_start_i))``.

    Args:
        t_starts, t_ends: shape of `sigmas`, where the interval of each sample begins and ends on its ray.
        sigmas: density, in one over the unit of t; [R, S] (or [..., S]), or flat [N].
        packed_info, ray_indices, n_rays, prefix_trans: as in `render_transmittance_from_alpha`.

    Returns:
        T and alpha, shape of `sigmas`.

    Raises:
        TypeError, ValueError: as `render_transmittance_from_alpha`.

    >>> starts, ends = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    >>> trans, alphas = render_transmittance_from_density(starts, ends, torch.tensor([[0.0, torch.inf]]))
    >>> trans.tolist(), alphas.tolist()
    ([[1.0, 1.0]], [[0.0, 1.0]])
    """
    check_alike("sigmas", sigmas, t_starts=t_starts, t_ends=t_ends)
    runs = runs_or_rows("sigmas", sigmas, packed_info, ray_indices, n_rays)
    return from_density(t_starts, t_ends, sigmas, runs, prefix_trans)


def render_weight_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What each sample contributes to its ray: ``w_i = T_i alpha_i``.

    Args:
        alphas, packed_info, ray_indices, n_rays, prefix_trans: as in `render_transmittance_from_alpha`.

    Returns:
        w and T, shape and dtype of `alphas`.

    Raises:
        TypeError, ValueError: as `render_transmittance_from_alpha`.

    >>> weights, trans = render_weight_from_alpha(torch.tensor([[0.5, 0.5, 1.0]]))
    >>> weights.tolist(), trans.tolist()
    ([[0.5, 0.25, 0.25]], [[1.0, 0.5, 0.25]])
    """
    _check.floating("alphas", alphas)
    return from_alpha(alphas, runs_or_rows("alphas", alphas, packed_info, ray_indices, n_rays), prefix_trans)


def render_weight_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    prefix_trans: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What each sample contributes to its ray, from densities: ``w_i = T_i alpha_i``.

    Args:
        t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans: as in
            `render_transmittance_from_density`.

    Returns:
        w, T and alpha, shape of `sigmas`.

    Raises:
        TypeError, ValueError: as `render_transmittance_from_alpha`.
    """
    trans, alphas = render_transmittance_from_density(
        t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans
    )
    return trans * alphas, trans, alphas


def _visible(trans: Tensor, alphas: Tensor, early_stop_eps: float, alpha_thre: float) -> Tensor:
    visible = trans >= early_stop_eps
    return visible & (alphas >= alpha_thre) if alpha_thre > 0 else visible


@torch.no_grad()
def render_visibility_from_alpha(
    alphas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Which samples matter: ``T_i >= early_stop_eps``, and ``alpha_i >= alpha_thre`` if that threshold is above 0.

    Args:
        alphas, packed_info, ray_indices, n_rays, prefix_trans: as in `render_transmittance_from_alpha`.
        early_stop_eps: light below which nothing behind is seen.
        alpha_thre: opacity below which a sample is air.

    Returns:
        bool, shape of `alphas`.

    Raises:
        TypeError, ValueError: as `render_transmittance_from_alpha`.

    >>> render_visibility_from_alpha(torch.tensor([[0.1, 0.9, 0.5]]), early_stop_eps=0.2, alpha_thre=0.3).tolist()
    [[False, True, False]]
    """
    trans = render_transmittance_from_alpha(alphas, packed_info, ray_indices, n_rays, prefix_trans)
    return _visible(trans, alphas, early_stop_eps, alpha_thre)


@torch.no_grad()
def render_visibility_from_density(
    t_starts: Tensor,
    t_ends: Tensor,
    sigmas: Tensor,
    packed_info: Tensor | None = None,
    ray_indices: Tensor | None = None,
    n_rays: int | None = None,
    early_stop_eps: float = 1e-4,
    alpha_thre: float = 0.0,
    prefix_trans: Tensor | None = None,
) -> Tensor:
    """Which samples matter, from densities; see `render_visibility_from_alpha`.

    Args:
        t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans: as in
            `render_transmittance_from_density`.
        early_stop_eps, alpha_thre: as in `render_visibility_from_alpha`.

    Returns:
        bool, shape of `sigmas`.

    Raises:
        TypeError, ValueError: as `render_transmittance_from_alpha`.
    """
    trans, alphas = render_transmittance_from_density(
        t_starts, t_ends, sigmas, packed_info, ray_indices, n_rays, prefix_trans
    )
    return _visible(trans, alphas, early_stop_eps, alpha_thre)
