"""Per-sample masks and targets shared by the reference and the lean renderer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ponder_kernels.render.types import RayTargets


class SampleTargets(NamedTuple):
    """Targets of R x S samples: SDF target, and which samples the band and free-space terms use."""

    sdf: Tensor
    band: Tensor
    front: Tensor


def sample_targets(targets: RayTargets, position: Tensor, hit: Tensor | None) -> SampleTargets:
    """SDF targets along rays.

    A sample in front of the surface by more than the truncation is free space; one behind it by more is unknown.

    Args:
        targets: per-ray targets, fields [..., R].
        position: [..., R, S] distances of the samples along the unit ray.
        hit: [..., R] rays that meet the box; None: all.

    Reference:
        Zhu et al., PonderV2, arXiv 2310.08586, section 3.3 (SDF and free-space losses).
    """
    signed = (targets.ray_depth.unsqueeze(-1) - position) * targets.slope.unsqueeze(-1)
    measured = targets.ray_depth > 0
    if hit is not None:
        measured = measured & hit
    measured = measured.unsqueeze(-1)
    front = measured & (signed > targets.truncation)
    band = measured & (signed.abs() <= targets.truncation)
    return SampleTargets(signed, band, front)
