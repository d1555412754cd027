"""From a user's points to what a backbone is fed: one entry per occupied voxel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ponder.data.cloud_files import RawCloud
from ponder.data.point_normals import NEIGHBOURS, estimate_normals
from ponder.data.scene import DataError

REDUCTIONS = ("mean", "point")
VIEWPOINTS = ("centre", "up")
# Mid grey; PonderV2's colour features of it are 0.
NEUTRAL_COLOUR = 0.5
# Voxel numbers of all three axes are packed into one 64-bit key.
_MAX_CELLS = 1 << 62


class Voxels(NamedTuple):
    """V occupied voxels of a cloud of N points, ordered by x, then y, then z.

    Attributes:
        cells: [V, 3] int64 from 0.
        of_point: [N] int64 voxel of every point.
        coord: [V, 3] float64 metres from the grid's origin.
        colour: [V, 3] float64, 0..1; None if the cloud has none.
        normal: [V, 3] float64; None if the cloud has none.
        origin: [3] float64 the grid's origin in the cloud's own coordinates, metres.
        phase: [3] float64 lower corner of cell (0, 0, 0), metres from the grid's origin.
        size: edge of a voxel, metres.
    """

    cells: Tensor
    of_point: Tensor
    coord: Tensor
    colour: Tensor | None
    normal: Tensor | None
    origin: Tensor
    phase: Tensor
    size: float


def find_voxels(cloud: RawCloud, size: float, centred: bool, reduction: str = "mean") -> Voxels:
    """Sort points into voxels.

    Args:
        cloud: N >= 1 points.
        size: edge of a voxel, metres.
        centred: True puts a boundary of the grid at the middle of the cloud's extent in x and y, as PonderV2's
            CenterShift and GridSample do; False puts all boundaries at the lowest coordinates.
        reduction: "mean" averages the points of a voxel; "point" takes the one nearest to its centre (of several,
            the first).

    Raises:
        ValueError: the size is not positive, or an unknown reduction.
        DataError: the cloud spans too many voxels.
    """
    if not size > 0:
        raise ValueError(f"size: expected a positive number of metres, got {size}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    low, high = cloud.coord.amin(0), cloud.coord.amax(0)
    _check_extent((high - low).tolist(), size)
    origin = torch.cat([(low + high)[:2] / 2, low[2:]]) if centred else low
    coord = cloud.coord - origin
    cells = (coord / size).floor().long()
    first = cells.amin(0)
    cells -= first
    _, ny, nz = (cells.amax(0) + 1).tolist()
    keys, of_point = torch.unique((cells[:, 0] * ny + cells[:, 1]) * nz + cells[:, 2], return_inverse=True)
    unique = torch.stack([keys // (ny * nz), keys // nz % ny, keys % nz], 1)
    phase = first.double() * size
    parts = [part.double() for part in (coord, cloud.colour, cloud.normal) if part is not None]
    if reduction == "mean":
        rows = _means(torch.cat(parts, 1), of_point, len(keys))
    else:
        centres = phase + (cells + 0.5) * size
        rows = torch.cat(parts, 1)[_nearest((coord - centres).square().sum(1), of_point, len(keys))]
    columns = iter(rows.split(3, 1))
    position = next(columns)
    colour = None if cloud.colour is None else next(columns)
    normal = None if cloud.normal is None else next(columns)
    return Voxels(unique, of_point, position, colour, normal, origin, phase, size)


def _check_extent(extent: Sequence[float], size: float) -> None:
    cells = 1
    for length in extent:
        # The comparison in floats comes first: the number of voxels may not fit an integer type.
        cells *= int(min(length / size, float(_MAX_CELLS))) + 2
    if cells >= _MAX_CELLS:
        spans = " x ".join(f"{length:.4g}" for length in extent)
        raise DataError(
            f"the cloud spans {spans} m, too much for voxels of {size:g} m; are its units metres, and has it outliers?"
        )


def _means(rows: Tensor, group: Tensor, count: int) -> Tensor:
    sums = rows.new_zeros(count, rows.shape[1]).index_add_(0, group, rows)
    return sums / torch.bincount(group, minlength=count).unsqueeze(1)


def _nearest(distance: Tensor, group: Tensor, count: int) -> Tensor:
    """[count] the member of each group with the smallest distance; of several, the first."""
    order = distance.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    sizes = torch.bincount(group, minlength=count)
    return order[sizes.cumsum(0) - sizes]


def network_inputs(
    voxels: Voxels,
    inputs: Sequence[str],
    viewpoint: Tensor | str = "centre",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, list[str]]:
    """Features of voxels as a backbone expects them.

    Args:
        voxels: V voxels.
        inputs: which, in order, 3 channels each. "colour": -1..1; "normal": unit length; "mean_normal": as averaged;
            "offset": position in the voxel, -0.5..0.5; "coord": metres from the middle of the extent in x and y and
            from the lowest z.
        viewpoint: where estimated normals point to: "centre" of the bounding box, "up", or [3] float64 metres from
            the grid's origin.
        progress: called with (voxels whose normals are estimated, voxels in all), if that is needed.

    Returns:
        [V, 3 * len(inputs)] float32, and what was assumed, one sentence each.
    """
    notes: list[str] = []
    parts = []
    for name in inputs:
        if name == "colour":
            if voxels.colour is None:
                notes.append(f"the cloud has no colours: every point got the neutral grey {NEUTRAL_COLOUR:g}")
            colour = torch.full_like(voxels.coord, NEUTRAL_COLOUR) if voxels.colour is None else voxels.colour
            parts.append(colour * 2 - 1)
        elif name in ("normal", "mean_normal"):
            normal = _estimated(voxels, viewpoint, notes, progress) if voxels.normal is None else voxels.normal
            parts.append(torch.nn.functional.normalize(normal, dim=1) if name == "normal" else normal)
        elif name == "offset":
            parts.append((voxels.coord - voxels.phase) / voxels.size - voxels.cells - 0.5)
        elif name == "coord":
            low, high = voxels.coord.amin(0), voxels.coord.amax(0)
            parts.append(voxels.coord - torch.cat([(low + high)[:2] / 2, low[2:]]))
        else:
            raise ValueError(f"inputs: expected colour, normal, mean_normal, offset or coord, got {name!r}")
    return torch.cat(parts, 1).float(), notes


def _estimated(
    voxels: Voxels, viewpoint: Tensor | str, notes: list[str], progress: Callable[[int, int], None] | None
) -> Tensor:
    if isinstance(viewpoint, str) and viewpoint not in VIEWPOINTS:
        raise ValueError(f"viewpoint: expected {', '.join(VIEWPOINTS)} or a position, got {viewpoint!r}")
    target = (voxels.coord.amin(0) + voxels.coord.amax(0)) / 2 if viewpoint == "centre" else viewpoint
    side = {"centre": "towards the centre of its bounding box", "up": "upwards"}.get(str(viewpoint), "to the viewpoint")
    notes.append(f"the cloud has no normals: they were estimated from the {NEIGHBOURS} nearest voxels and point {side}")
    towards = target if isinstance(target, Tensor) else None
    return estimate_normals(voxels.coord, towards, progress=progress).double()
