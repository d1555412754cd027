"""View-independent light: a surface point's colour depends on its place and its normal, nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder.data.synthetic.solids import Solids

# Reach of the ambient occlusion probes, metres: creases, then the space under a table.
_PROBES = (0.06, 0.24)
_OCCLUSION = (0.40, 0.40)
# Share of the light that comes from all sides, from above, and from the ceiling lamp.
_AMBIENT, _SKY, _LAMP = 0.34, 0.24, 0.62
# Where along the way to the lamp (fraction) blockers are looked for, and how fast a shadow's edge hardens.
_SHADOW_STEPS = (0.05, 0.11, 0.20, 0.33, 0.52)
_SHADOW_SLOPE = 0.22


def occlusion(solids: Solids, points: Tensor, normal: Tensor) -> Tensor:
    """How open the space above each surface point is, [N] in 0..1 (1 = nothing near)."""
    openness = torch.ones_like(points[:, 0])
    for reach, share in zip(_PROBES, _OCCLUSION, strict=True):
        distance, _ = solids.nearest(points + reach * normal, torch.full_like(openness, reach))
        openness = openness - share * (1 - (distance / reach).clamp(0, 1))
    return openness


def lamp_visibility(solids: Solids, points: Tensor, normal: Tensor, lamp: Tensor) -> Tensor:
    """Soft shadow of the lamp at each point, [N] in 0..1: least clearance on the way over the wanted one."""
    towards = lamp - points
    way = towards.norm(dim=1)
    visible = torch.ones_like(way)
    lit = ((towards * normal).sum(1) > 0).nonzero()[:, 0]
    for fraction in _SHADOW_STEPS:
        width = (way[lit] * fraction * _SHADOW_SLOPE).clamp(max=0.2)
        probe = points[lit] + fraction * towards[lit] + 0.005 * normal[lit]
        distance, _ = solids.nearest(probe, width)
        visible[lit] = torch.minimum(visible[lit], (distance / width).clamp(0, 1))
    return visible


def light(solids: Solids, points: Tensor, normal: Tensor, glow: Tensor) -> Tensor:
    """Brightness that multiplies the albedo.

    Args:
        solids: the room.
        points, normal: [N, 3] surface points and unit normals, in the precision of the solids.
        glow: [N] share of own light.

    Returns:
        [N, 3], about 0.2 to 1.2, slightly warm under the lamp and cool in the shade.
    """
    # Below the ceiling, so that the ceiling itself is lit at a grazing angle only.
    lamp = solids.size * solids.size.new_tensor([0.5, 0.5, 0.93])
    towards = lamp - points
    cosine = (torch.nn.functional.normalize(towards, dim=1) * normal).sum(1).clamp(min=0)
    falloff = 1 / (1 + 0.06 * towards.square().sum(1))
    direct = _LAMP * cosine.sqrt() * falloff * (0.25 + 0.75 * lamp_visibility(solids, points, normal, lamp))
    around = (_AMBIENT + _SKY * (0.5 + 0.5 * normal[:, 2])) * occlusion(solids, points, normal)
    warm, cool = points.new_tensor([1.04, 1.0, 0.93]), points.new_tensor([0.97, 1.0, 1.05])
    lit = direct[:, None] * warm + around[:, None] * cool
    return torch.lerp(lit, torch.ones_like(lit), glow[:, None].to(lit.dtype))
