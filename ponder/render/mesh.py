"""Triangle meshes of the learned SDF."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes
from torch import Tensor

from ponder.render.image import _nothing
from ponder.render.renderer import NeusRenderer
from ponder_kernels import render_rays, sdf_field

POINTS_AT_ONCE = 1 << 18
# Vertex colours are rendered with a short ray through the surface, this many bins over two cells.
COLOUR_SAMPLES = 16


class Mesh(NamedTuple):
    """vertices [V, 3] metres, faces [F, 3], colours [V, 3] in 0..1, normals [V, 3] towards the free space."""

    vertices: Tensor
    faces: Tensor
    colours: Tensor
    normals: Tensor


def _lattice(box: Tensor, cell: float) -> tuple[Tensor, Tensor, Tensor]:
    low, high = box.tolist()
    counts = [max(2, round((h - l) / cell)) for l, h in zip(low, high, strict=True)]  # noqa: E741
    # Half a cell inside the box: outside that the volume is constant and the SDF says nothing.
    axes = [
        torch.linspace(l + cell / 2, h - cell / 2, count)
        for l, h, count in zip(low, high, counts, strict=True)  # noqa: E741
    ]
    return axes[0], axes[1], axes[2]


@torch.no_grad()
def extract_mesh(
    renderer: NeusRenderer,
    volume: Tensor,
    box: Tensor,
    points: Tensor,
    *,
    cell: float,
    reach: float,
    progress: Callable[[int, int], None] = _nothing,
) -> Mesh:
    """Marching cubes of the learned SDF near the observed points.

    Behind surfaces and where nothing was seen the SDF was never supervised, so only lattice cells within `reach` of an
    input point can hold surface.

    Args:
        renderer: the renderer.
        volume: [1, C, D, H, W].
        box: [1, 2, 3] metres.
        points: [N, 3] input cloud, metres.
        cell: spacing of the lattice, metres.
        reach: metres; at least three cells are used.
        progress: called with (lattice points done, in all).

    Returns:
        Mesh on the CPU, with no vertices where the SDF does not cross 0.
    """
    reach = max(reach, 3 * cell)
    axes = _lattice(box[0].cpu(), cell)
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    flat = grid.reshape(-1, 3)
    distance, _ = cKDTree(points.cpu().numpy()).query(flat.numpy(), distance_upper_bound=reach)
    near = np.isfinite(distance)
    sdf = _sdf_at(renderer, volume, box, flat[torch.from_numpy(near)], progress)
    lattice = torch.full((len(flat),), reach)
    lattice[torch.from_numpy(near)] = sdf
    values = lattice.view(grid.shape[:3]).numpy()
    # Only cells whose eight corners were all evaluated: the filler of the others would make false crossings.
    mask = binary_erosion(near.reshape(grid.shape[:3]), np.ones((3, 3, 3)), border_value=1)
    empty = Mesh(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3), torch.zeros(0, 3))
    if not mask.any() or not values[mask].min() < 0 < values[mask].max():
        return empty
    try:
        # Values grow towards the free space, and "descent" is the winding that makes faces look there.
        found = marching_cubes(values, 0.0, mask=mask, gradient_direction="descent")
    except RuntimeError:  # no lattice cell with all corners observed is crossed
        return empty
    spacing = torch.stack([axis[1] - axis[0] for axis in axes]).numpy()
    vertices = torch.from_numpy((found[0] * spacing + grid[0, 0, 0].numpy()).astype(np.float32))
    faces = torch.from_numpy(found[1].astype(np.int64))
    normals, colours = _shade(renderer, volume, box, vertices, cell)
    return Mesh(vertices, faces, colours, normals)


def _sdf_at(
    renderer: NeusRenderer, volume: Tensor, box: Tensor, points: Tensor, progress: Callable[[int, int], None]
) -> Tensor:
    layers = renderer.collapse().field.sdf
    parts = [torch.zeros(0)]
    for start in range(0, len(points), POINTS_AT_ONCE):
        part = points[None, start : start + POINTS_AT_ONCE].to(volume.device)
        parts.append(sdf_field(volume, layers, part, box, gradient=False).sdf[0].cpu())
        progress(min(start + POINTS_AT_ONCE, len(points)), len(points))
    return torch.cat(parts)


def _shade(renderer: NeusRenderer, volume: Tensor, box: Tensor, vertices: Tensor, cell: float) -> tuple[Tensor, Tensor]:
    """Normals from the SDF gradient, colours from a short ray against the normal."""
    decoders = renderer.collapse()
    normals, colours = [torch.zeros(0, 3)], [torch.zeros(0, 3)]
    for start in range(0, len(vertices), POINTS_AT_ONCE // COLOUR_SAMPLES):
        part = vertices[None, start : start + POINTS_AT_ONCE // COLOUR_SAMPLES].to(volume.device)
        gradient = sdf_field(volume, decoders.field.sdf, part, box).gradient
        assert gradient is not None
        normal = torch.nn.functional.normalize(gradient, dim=-1)
        edges = torch.linspace(0, 2 * cell, COLOUR_SAMPLES + 1, device=volume.device)
        edges = edges.expand(1, part.shape[1], -1)
        out = render_rays(volume, decoders.field, part + normal * cell, -normal, edges, decoders.inv_s, box)
        colour = out.rgb / out.opacity.clamp_min(1e-3).unsqueeze(-1)
        normals.append(normal[0].cpu())
        colours.append(colour[0].clamp(0, 1).cpu())
    return torch.cat(normals), torch.cat(colours)
