"""`sdf_field`: signed distance and gradient of a feature volume at points."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels.sdf_field.gather import (
    PADDINGS,
    VolumeGeometry,
    find_corners,
    gather_rows,
    gather_slopes,
    volume_rows,
)
from ponder_kernels.sdf_field.weights import SdfWeights, check_weights, decode_sdf, decode_sdf_and_gradient


class SdfField(NamedTuple):
    """sdf [B, N] and, where asked for, its gradient with respect to the points [B, N, 3]."""

    sdf: Tensor
    gradient: Tensor | None


def check_volume(volume: Tensor, box: Tensor, align_corners: bool, padding: str) -> VolumeGeometry:
    """Check a volume and its boxes; returns their geometry."""
    _check.floating("volume", volume)
    _check.floating("box", box)
    sizes = _check.shape("volume", volume, "B C D H W")
    _check.shape("box", box, "B 2 3", sizes)
    _check.same_device("volume", volume, box=box)
    _check.choice("padding", padding, PADDINGS)
    shape = (sizes["B"], sizes["D"], sizes["H"], sizes["W"])
    if min(shape[1:]) < 1:
        raise ValueError(f"volume: expected at least one voxel per axis, got shape {list(volume.shape)}")
    return VolumeGeometry(shape, box, align_corners, padding)


def sdf_field(
    volume: Tensor,
    weights: SdfWeights,
    points: Tensor,
    box: Tensor,
    *,
    gradient: bool = True,
    align_corners: bool = False,
    padding: str = "border",
) -> SdfField:
    """Evaluate the SDF that a feature volume and a decoder define, and its spatial gradient in closed form.

    Differentiable to first order with respect to the volume and the weights; because the gradient is computed
    forwards, losses on it (eikonal, normals) need no double backward. Points are constants.

    Args:
        volume: [B, C, D, H, W]; the first Cs <= C channels, as wide as the weights say, feed the SDF.
        weights: collapsed decoder.
        points: [B, N, 3] (x, y, z) in the coordinates of `box`.
        box: [B, 2, 3] region that each volume spans; its unit is the unit of the SDF.
        gradient: whether to return the gradient.
        align_corners: voxel centres on the faces of the box (True) or half a voxel inside (False).
        padding: "border" or "zeros", as in torch.nn.functional.grid_sample.

    Returns:
        SdfField.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or option.

    Reference:
        Zhu et al., PonderV2, arXiv 2310.08586, section 3.3 (the field).
    """
    geometry = check_volume(volume, box, align_corners, padding)
    batch = geometry.shape[0]
    _check.floating("points", points)
    count = _check.shape("points", points, "B N 3", {"B": batch})["N"]
    _check.same_device("volume", volume, points=points, weights=weights.hidden_weight)
    channels = check_weights(weights)["C"]
    if channels > volume.shape[1]:
        raise ValueError(f"weights: expected at most C={volume.shape[1]} features, got {channels}")
    scene = torch.arange(batch, device=points.device).repeat_interleave(count)
    rows = volume_rows(volume)[:, :channels].contiguous()
    corners = find_corners(points.detach().reshape(-1, 3), scene, geometry)
    features = gather_rows(rows, corners.bags, corners.weight)
    if not gradient:
        return SdfField(decode_sdf(features, weights).view(batch, count), None)
    decoded = decode_sdf_and_gradient(features, weights)
    slopes = gather_slopes(rows, corners)
    along = torch.stack([(slope * decoded.feature_gradient).sum(-1) for slope in slopes], -1)
    return SdfField(decoded.sdf.view(batch, count), along.view(batch, count, 3))
