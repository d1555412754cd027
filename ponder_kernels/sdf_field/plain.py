"""The SDF layer by layer, as PonderV2's code evaluates it: the same number as by `chain`, with that code's last digits.

`chain` multiplies layers out, which rounds differently. Samplers multiply differences of SDFs by 64 and more and draw
from them, and an opacity is the difference of two nearly equal sigmoids of the SDF: in float32 the last digits decide
where samples lie and what they weigh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels._constants import SOFTPLUS_BETA, SOFTPLUS_THRESHOLD
from ponder_kernels._workspace import Workspace
from ponder_kernels.sdf_field.chain import Hidden, Layer, exp_of, flatten

# A BLAS adds up in another order where there are few rows or columns, and may for rows beyond whole blocks.
LEAST_ROWS, ROW_MULTIPLE, LEAST_COLUMNS = 256, 16, 16
# Lower arguments of the softplus change nothing in its sum with other numbers of that many digits; torch's log1p works
# with their cubes, which in float32 soon are denormal and take a CPU ten times as long.
LOWEST = {torch.float32: -28.0 / SOFTPLUS_BETA, torch.float64: -80.0 / SOFTPLUS_BETA}


# x -> weight x + bias: weight [O, K], bias [O].
Affine = tuple[Tensor, Tensor]


class PlainDecoder(NamedTuple):
    """A decoder of L layers whose linear maps stand for themselves.

    With h_0 = inner_0(z) + factor points(p) and h_l = softplus(outer_{l-1}(h_{l-1})) + inner_l(z), its output is
    outer_{L-1}(h_{L-1}), the SDF in front.

    Attributes:
        inner: L layers [H, I] on the features z.
        outer: L layers on the sums, all but the last [H, H].
        points: [H, 3] on the point p; None where the factor is 0.
        factor: of the points.
        columns: [I] int64, which of the features, volume by volume, is the next of z; None: in that order.
    """

    inner: tuple[Affine, ...]
    outer: tuple[Affine, ...]
    points: Affine | None = None
    factor: float = 0.0
    columns: Tensor | None = None

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        """Detached, in one list, of a dtype but for the columns."""
        found = [leaf.detach().to(dtype) for leaf in flatten((self.inner, self.outer, self.points))]
        return found if self.columns is None else [*found, self.columns]


def check_plain(name: str, decoder: PlainDecoder, chain: Sequence[Layer], features: int) -> None:
    """Require the layers that a chain of the same widths on so many features was multiplied out from.

    Raises:
        TypeError, ValueError: naming the tensor.
    """
    if not len(decoder.inner) == len(decoder.outer) == len(chain):
        counts = f"{len(decoder.inner)} and {len(decoder.outer)}"
        raise ValueError(f"{name}: expected {len(chain)} layers inner and outer, as in field.sdf, got {counts}")
    for number, (inner, outer, layer) in enumerate(zip(decoder.inner, decoder.outer, chain, strict=True)):
        sizes = {"I": features, "O": layer.bias.shape[0]}
        _check_affine(f"{name}.inner[{number}]", inner, "H I", sizes)
        _check_affine(f"{name}.outer[{number}]", outer, "O H", sizes)
    if decoder.points is not None:
        _check_affine(f"{name}.points", decoder.points, "H P", {"H": len(decoder.inner[0][1]), "P": 3})
    if decoder.columns is not None:
        _check.shape(
            f"{name}.columns", _check.floating(f"{name}.columns", decoder.columns, (torch.int64,)), "I", {"I": features}
        )


def _check_affine(name: str, affine: Affine, dims: str, sizes: dict[str, int]) -> None:
    for part, value, shape in zip(("weight", "bias"), affine, (dims, dims[0]), strict=True):
        _check.shape(f"{name} {part}", _check.floating(f"{name} {part}", value), shape, sizes)


def rebuild_plain(tensors: Sequence[Tensor], factor: float) -> PlainDecoder | None:
    """The inverse of `PlainDecoder.tensors`; None of none."""
    if not tensors:
        return None
    columns = tensors[-1] if len(tensors) % 2 else None
    layers = list(zip(tensors[:-1:2], tensors[1::2], strict=True))
    count = len(layers) // 2
    points = layers[-1] if len(layers) % 2 else None
    return PlainDecoder(tuple(layers[:count]), tuple(layers[count : 2 * count]), points, factor, columns)


def plain_features(
    decoder: PlainDecoder, volumes: Sequence[Tensor], grid: Tensor, padding: str, align_corners: bool
) -> Tensor:
    """[M, I] trilinear values of volumes [1, C, D, H, W] at points [M, 3] in [-1, 1], in the order of the decoder."""
    points = grid[None, None, None]
    read = [F.grid_sample(v, points, padding_mode=padding, align_corners=align_corners) for v in volumes]
    found = (read[0] if len(read) == 1 else torch.cat(read, 1)).view(-1, len(grid))
    return (found if decoder.columns is None else found[decoder.columns]).T


def plain_distance(decoder: PlainDecoder, features: Tensor, points: Tensor, work: Workspace) -> tuple[Tensor, Hidden]:
    """The SDF [M] at features [M, I] and points [M, 3], and the hidden activations; without gradients."""
    hidden = Hidden([], [])
    h = _affine(decoder.inner[0], features, work, "plain h")
    if decoder.points is not None:
        h += F.linear(points, *decoder.points) * decoder.factor
    for number, outer in enumerate(decoder.outer[:-1]):
        x = _affine(outer, h, work, "chain x").clamp_min_(LOWEST[h.dtype])
        torch.ops.aten.softplus.out(x, SOFTPLUS_BETA, SOFTPLUS_THRESHOLD, out=x)
        log = torch.mul(x, -SOFTPLUS_BETA, out=work(f"chain log{number}", *x.shape))
        hidden.logs.append(log)
        hidden.gates.append(exp_of(log, work(f"chain gate{number}", *x.shape)))
        # Sums of two do not depend on their order.
        h = _affine(decoder.inner[number + 1], features, work, "plain h").add_(x)
    weight, bias = decoder.outer[-1]
    return F.linear(h, weight[:LEAST_COLUMNS], bias[:LEAST_COLUMNS])[:, 0], hidden


def _affine(layer: Affine, x: Tensor, work: Workspace, name: str) -> Tensor:
    weight, bias = layer
    return torch.addmm(bias, x, weight.T, out=work(name, len(x), len(bias)))
