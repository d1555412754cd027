"""Rigid camera poses: checks, construction, interpolation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Sine of the smallest angle between a camera's up and view directions that single precision resolves well.
_MIN_SINE = 1e-5


def rigid_error(pose: Tensor) -> float:
    """How far a 4x4 matrix is from a rigid motion.

    Returns:
        The largest absolute deviation among R R^T - I, det R - 1 and the last row from (0, 0, 0, 1); inf if any
        entry is not finite.
    """
    if not bool(torch.isfinite(pose).all()):
        return math.inf
    pose = pose.double()
    rotation = pose[:3, :3]
    identity = torch.eye(3, dtype=torch.float64)
    last_row = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    errors = (
        (rotation @ rotation.T - identity).abs().max(),
        (torch.linalg.det(rotation) - 1).abs(),
        (pose[3] - last_row).abs().max(),
    )
    return max(float(e) for e in errors)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation closest to a [3, 3] matrix in the Frobenius norm (orthogonal Procrustes, det = +1)."""
    u, _, vh = torch.linalg.svd(matrix.double())
    sign = torch.ones(3, dtype=torch.float64)
    sign[2] = torch.sign(torch.linalg.det(u @ vh))
    return ((u * sign) @ vh).to(matrix.dtype)


def look_at(eye: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """Camera-to-world pose of a camera at `eye` looking at `target`, image top towards `up`.

    Args:
        eye, target, up: [3].

    Returns:
        [4, 4] in OpenCV axes.

    Raises:
        ValueError: `eye` is at `target`, or `up` is zero or parallel to the view direction, which leaves the
            camera's roll undetermined.
    """
    forward = torch.nn.functional.normalize(target - eye, dim=0)
    across = torch.linalg.cross(forward, up)
    if not float(across.norm()) > _MIN_SINE * float(up.norm()):
        raise ValueError(
            f"up: expected a direction across the view from eye {eye.tolist()} to target {target.tolist()}, "
            f"got {up.tolist()}"
        )
    right = torch.nn.functional.normalize(across, dim=0)
    down = torch.linalg.cross(forward, right)
    pose = torch.eye(4, dtype=eye.dtype)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, down, forward, eye
    return pose


def _slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Rotation a fraction `weight` of the way along the geodesic from `first` to `second` ([3, 3] each)."""
    relative = first.T @ second
    cosine = ((torch.trace(relative) - 1) / 2).clamp(-1, 1)
    angle = float(torch.arccos(cosine))
    if angle < 1e-6:
        return first
    skew = (relative - relative.T) / 2
    if math.pi - angle < 1e-4:
        # Near half a turn the axis cannot be read off the antisymmetric part; it is the eigenvector of eigenvalue 1.
        axis = (relative + torch.eye(3, dtype=relative.dtype)).T
        axis = axis[int(axis.norm(dim=1).argmax())]
        axis = torch.nn.functional.normalize(axis, dim=0)
    else:
        axis = torch.stack([skew[2, 1], skew[0, 2], skew[1, 0]]) / math.sin(angle)
    x, y, z = axis.tolist()
    generator = relative.new_tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return first @ torch.linalg.matrix_exp(generator * (angle * weight))


def interpolate_poses(poses: Tensor, count: int) -> Tensor:
    """A smooth path through key poses: linear in position, spherical in rotation.

    Args:
        poses: [K, 4, 4] rigid camera-to-world key poses, K >= 1.
        count: number of poses on the path, >= 1.

    Returns:
        [count, 4, 4]; the first and the last are the first and the last key pose.

    Raises:
        ValueError: no key pose, or count < 1.
    """
    if poses.ndim != 3 or poses.shape[0] < 1 or poses.shape[1:] != (4, 4):
        raise ValueError(f"poses: expected shape [K, 4, 4] with K >= 1, got {list(poses.shape)}")
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    path = []
    for position in torch.linspace(0, poses.shape[0] - 1, count, dtype=torch.float64).tolist():
        index = min(int(position), max(poses.shape[0] - 2, 0))
        following = min(index + 1, poses.shape[0] - 1)
        weight = position - index
        pose = torch.eye(4, dtype=poses.dtype)
        pose[:3, :3] = _slerp(poses[index, :3, :3], poses[following, :3, :3], weight)
        pose[:3, 3] = torch.lerp(poses[index, :3, 3], poses[following, :3, 3], weight)
        path.append(pose)
    return torch.stack(path)
