"""The SDF by PonderV2's own operations, for its numbers: the samplers' part of `ponder_kernels`' plain decoder.

Without gradients, and only where there is something to see, PonderV2's way is affordable on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ponder_kernels import Normalisation, PlainDecoder
from ponder_kernels._threads import even_parts, for_each
from ponder_kernels._workspace import Workspace
from ponder_kernels.sdf_field.plain import LEAST_ROWS, ROW_MULTIPLE, plain_distance, plain_features

# Few enough that the hidden layers stay in the caches, many enough that calling an operation costs little beside it.
POINTS_AT_ONCE = 4096
# Voxels by which a point must be farther from a volume than rounding can say.
MARGIN = 1e-2


class PlainSDF:
    """Distances without gradients, on a CPU PonderV2's to the last bit.

    Args:
        decoder: of the SDF.
        volumes: [1, C, D, H, W] each, of the dtype of the points; they span [0, 1], x along W.
        share_volume: the decoder reads all channels; else the first half of each volume's.
        move: from points to where the volumes are read.
    """

    def __init__(
        self, decoder: PlainDecoder, volumes: Sequence[Tensor], share_volume: bool, move: Normalisation
    ) -> None:
        self.decoder, self.move = decoder, move
        self.volumes = volumes if share_volume else [v[:, : v.shape[1] // 2] for v in volumes]

    # Left to itself, torch.compile would trace every part of the loop.
    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, points: Tensor) -> Tensor:
        """[...] at points [..., 3]."""
        flat = points.reshape(-1, 3)
        near = flat.new_ones(len(flat), dtype=torch.bool)
        if self.decoder.points is None:
            for part in even_parts(len(flat), 16 * POINTS_AT_ONCE):
                near[part] = self._near(flat[part])
        if near.all():
            return self._distances(flat).view(points.shape[:-1])
        # Elsewhere all features are 0, so that the distance is one number.
        near[:LEAST_ROWS] = True
        first = flat[:LEAST_ROWS]
        width = self.decoder.inner[0][0].shape[1]
        found = self._decode(first.new_zeros(len(first), width), first)[:1].repeat(len(flat))
        found[near] = self._distances(flat[near])
        return found.view(points.shape[:-1])

    def _near(self, points: Tensor) -> Tensor:
        """[N] whether a voxel of any volume has a weight at points [N, 3], or might have; NaN might."""
        where = self.move(points)
        near = where.new_zeros(len(where), dtype=torch.bool)
        for volume in self.volumes:
            last = where.new_tensor(volume.shape[:1:-1]) - 1
            far = (where * last < -1 - MARGIN) | ((where - 1) * last > 1 + MARGIN)
            near |= ~far.any(-1)
        return near

    def _distances(self, points: Tensor) -> Tensor:
        """[N] at points [N, 3], a part at a time."""
        found = points.new_empty(len(points))

        def run(part: slice) -> None:
            where = self.move(points[part])
            found[part] = self._decode(self._features(where), where)

        for_each(run, _parts(len(points)), points.device)
        return found

    def _features(self, points: Tensor) -> Tensor:
        """[N, I] trilinear values."""
        return plain_features(self.decoder, self.volumes, points * 2 - 1, "zeros", align_corners=True)

    def _decode(self, features: Tensor, points: Tensor) -> Tensor:
        """[N] at points [N, 3] where the volumes have these features [N, I]."""
        with torch.autocast(points.device.type, enabled=False):
            return plain_distance(self.decoder, features, points, Workspace(points))[0]


def _parts(count: int) -> list[slice]:
    """Of whole blocks of rows; the last one overlaps where there are more."""
    whole = even_parts(count // ROW_MULTIPLE, POINTS_AT_ONCE // ROW_MULTIPLE)
    parts = [slice(part.start * ROW_MULTIPLE, part.stop * ROW_MULTIPLE) for part in whole]
    return parts + [slice(max(0, count - LEAST_ROWS), count)] * (count % ROW_MULTIPLE > 0)
