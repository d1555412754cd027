"""The SDF by PonderV2's own operations, for its numbers: `sdf_field` multiplies layers out, which rounds differently.

Samplers multiply differences of SDFs by 64 and more and draw from them, and an opacity is the difference of two nearly
equal sigmoids of the SDF: the last digits of float32 decide where samples lie and what they weigh. Without gradients,
and only where there is something to see, PonderV2's way is affordable on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.render.decoders import Decoder
from ponder_kernels import Normalisation
from ponder_kernels._constants import SOFTPLUS_BETA
from ponder_kernels._threads import even_parts, for_each

# Few enough that the hidden layers stay in the caches, many enough that calling an operation costs little beside it.
POINTS_AT_ONCE = 4096
# A BLAS adds up in another order where there are few rows or columns, and may for rows beyond whole blocks.
LEAST_ROWS, ROW_MULTIPLE, LEAST_COLUMNS = 256, 16, 16
# Voxels by which a point must be farther from a volume than rounding can say.
MARGIN = 1e-2
# Lower arguments of the softplus change nothing in its sum with other numbers of that many digits; torch's log1p works
# with their cubes, which in float32 soon are denormal and take a CPU ten times as long.
LOWEST = {torch.float32: -28.0 / SOFTPLUS_BETA, torch.float64: -80.0 / SOFTPLUS_BETA}


class PlainSDF:
    """Distances without gradients, on a CPU PonderV2's to the last bit.

    Args:
        decoder: of the SDF.
        volumes: [1, C, D, H, W] each, of the dtype of the points; they span [0, 1], x along W.
        share_volume: the decoder reads all channels; else the first half of each volume's.
        move: from points to where the volumes are read.
    """

    def __init__(self, decoder: Decoder, volumes: Sequence[Tensor], share_volume: bool, move: Normalisation) -> None:
        self.decoder, self.share_volume, self.move = decoder, share_volume, move
        self.volumes = volumes if share_volume else [v[:, : v.shape[1] // 2] for v in volumes]

    # Left to itself, torch.compile would trace every part of the loop.
    @torch.compiler.disable
    @torch.no_grad()
    def __call__(self, points: Tensor) -> Tensor:
        """[...] at points [..., 3]."""
        flat = points.reshape(-1, 3)
        near = flat.new_ones(len(flat), dtype=torch.bool)
        if not self.decoder.points_factor:
            for part in even_parts(len(flat), 16 * POINTS_AT_ONCE):
                near[part] = self._near(flat[part])
        if near.all():
            return self._distances(flat).view(points.shape[:-1])
        # Elsewhere all features are 0, so that the distance is one number.
        near[:LEAST_ROWS] = True
        first = flat[:LEAST_ROWS]
        found = self._decode(first.new_zeros(len(first), self.decoder.in_channels), first)[:1].repeat(len(flat))
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
        """[N, I] trilinear values; of shared volumes the first halves of the channels before all second halves."""
        grid = (points * 2 - 1)[None, None, None]
        read = [
            F.grid_sample(v, grid, padding_mode="zeros", align_corners=True).view(-1, len(points)) for v in self.volumes
        ]
        if self.share_volume and len(read) > 1:
            half = len(read[0]) // 2
            read = [r[:half] for r in read] + [r[half:] for r in read]
        return (read[0] if len(read) == 1 else torch.cat(read)).T

    def _decode(self, features: Tensor, points: Tensor) -> Tensor:
        """[N] the decoder's first output, layer by layer; sums of two do not depend on their order."""
        decoder = self.decoder
        with torch.autocast(points.device.type, enabled=False):
            hidden = decoder.fc_c[0](features)
            if decoder.points_factor:
                hidden += decoder.fc_p(points) * decoder.points_factor
            for number in range(decoder.n_blocks):
                hidden = decoder.get_submodule(f"lin{number}")(hidden).clamp_min_(LOWEST[points.dtype])
                hidden = F.softplus(hidden, beta=SOFTPLUS_BETA).add_(decoder.fc_c[number + 1](features))
            last = decoder.get_submodule(f"lin{decoder.n_blocks}")
            return F.linear(hidden, last.weight[:LEAST_COLUMNS], last.bias[:LEAST_COLUMNS])[:, 0]


def _parts(count: int) -> list[slice]:
    """Of whole blocks of rows; the last one overlaps where there are more."""
    whole = even_parts(count // ROW_MULTIPLE, POINTS_AT_ONCE // ROW_MULTIPLE)
    parts = [slice(part.start * ROW_MULTIPLE, part.stop * ROW_MULTIPLE) for part in whole]
    return parts + [slice(max(0, count - LEAST_ROWS), count)] * (count % ROW_MULTIPLE > 0)
