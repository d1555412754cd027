"""Weighted sums along rays: the second half of nerfacc's volrend module."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels.compat._nerfacc_scan import Runs, check_indices
from ponder_kernels.composite import composite

RAY_DTYPES = (torch.float32, torch.float64)


def _composites(weights: Tensor, values: Tensor) -> bool:
    """Whether our weighted sum takes these dtypes and gives the dtype of their product."""
    return (
        weights.dtype in RAY_DTYPES
        and values.is_floating_point()
        and torch.promote_types(weights.dtype, values.dtype) == weights.dtype
    )


def _weighted(weights: Tensor, values: Tensor | None) -> Tensor:
    return weights[..., None] if values is None else weights[..., None] * values


def _check_weighted(weights: Tensor, values: Tensor | None, ray_indices: Tensor | None, n_rays: int | None) -> None:
    _check.tensor("weights", weights)
    if weights.dim() == 0:
        raise ValueError("weights: expected at least one dimension, got a scalar")
    if values is not None:
        expected = [*weights.shape, "D"]
        if _check.tensor("values", values).dim() != len(expected) or values.shape[:-1] != weights.shape:
            raise ValueError(f"values: expected shape [{', '.join(map(str, expected))}], got {list(values.shape)}")
        _check.same_device("weights", weights, values=values)
    if ray_indices is not None:
        check_indices("ray_indices", _check.tensor("ray_indices", ray_indices), n_rays)
        _check.shape("weights", weights, "N", {"N": ray_indices.shape[0]})
        _check.same_device("weights", weights, ray_indices=ray_indices)


def accumulate_along_rays(
    weights: Tensor, values: Tensor | None = None, ray_indices: Tensor | None = None, n_rays: int | None = None
) -> Tensor:
    """Weighted sum of each ray's values: ``sum_i w_i v_i``.

    Args:
        weights: [R, S] (or [..., S]); or flat [N] with `ray_indices`.
        values: shape of `weights` and D channels, [R, S, D] or [N, D]; None sums the weights themselves (D = 1).
        ray_indices: [N] the ray of each sample, in any order. On a GPU the order of additions is left open.
        n_rays: number of rays R; required with `ray_indices`.

    Returns:
        [R, D] (or [..., D]); rays without samples get 0.

    Raises:
        TypeError: not tensors, ids that are not integers.
        ValueError: shapes or devices that do not fit, no `n_rays`, ids outside of the rays (checked on the CPU).

    >>> accumulate_along_rays(torch.tensor([0.5, 0.25, 1.0]), None, torch.tensor([0, 0, 2]), n_rays=3).tolist()
    [[0.75], [0.0], [1.0]]
    """
    _check_weighted(weights, values, ray_indices, n_rays)
    if ray_indices is not None:
        if n_rays is None:
            raise ValueError("n_rays: expected the number of rays with ray_indices, got None")
        source = _weighted(weights, values)
        return source.new_zeros(n_rays, source.shape[-1]).index_add(0, ray_indices.long(), source)
    if values is not None and weights.dim() > 1 and _composites(weights, values):
        rows = composite(weights.flatten(0, -2), values.flatten(0, -3))
        return rows.reshape(*weights.shape[:-1], values.shape[-1])
    return _weighted(weights, values).sum(dim=-2)


def accumulate_along_rays_(
    weights: Tensor, values: Tensor | None = None, ray_indices: Tensor | None = None, outputs: Tensor | None = None
) -> None:
    """Add each ray's weighted sum to `outputs`, in place; see `accumulate_along_rays`.

    Args:
        weights, values, ray_indices: as in `accumulate_along_rays`.
        outputs: [R, D] (or [..., D]), dtype of the weighted values.

    Raises:
        TypeError, ValueError: as `accumulate_along_rays`; `outputs` missing or of another shape.
    """
    _check.tensor("outputs", outputs)
    assert outputs is not None
    rays = outputs.shape[0] if ray_indices is not None and outputs.dim() else None
    _check_weighted(weights, values, ray_indices, rays)
    channels = 1 if values is None else values.shape[-1]
    expected = [*weights.shape[:-1], channels] if ray_indices is None else [rays, channels]
    if list(outputs.shape) != expected:
        raise ValueError(f"outputs: expected shape {expected}, got {list(outputs.shape)}")
    if ray_indices is None:
        outputs.add_(accumulate_along_rays(weights, values))
    else:
        outputs.index_add_(0, ray_indices.long(), _weighted(weights, values))


def accumulate_runs(weights: Tensor, values: Tensor, runs: Runs, ray_indices: Tensor, n_rays: int) -> Tensor:
    """As `accumulate_along_rays` for samples side by side: no atomic additions but one row per ray."""
    if not _composites(weights, values) or len(ray_indices) == 0:
        return accumulate_along_rays(weights, values, ray_indices, n_rays)
    rows = composite(weights, values, ray_offsets=runs.offsets)
    # Rows without samples, behind the others, add nothing to the last sample's ray.
    ray = ray_indices.long()[runs.offsets[:-1].clamp_max(len(ray_indices) - 1)]
    return rows.new_zeros(n_rays, rows.shape[1]).index_add(0, ray, rows)
