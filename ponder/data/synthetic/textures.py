"""Procedural colour: smooth patterns that depend on the position alone, so all views see the same paint.

A pattern maps pattern coordinates q = M p + phase (in periods) to a number in [-1, 1], which mixes two
colours. Edges are ramps of a few centimetres rather than steps: a pixel samples one point, and a step would
alias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Colour = tuple[float, float, float]
Rows = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]

TAU = 2 * math.pi
# Wave vectors of the soft noise, in periods per unit: about one octave, no two parallel: no visible repeats.
_WAVES = (
    (0.83, 0.41, 0.32),
    (-0.52, 0.91, 0.27),
    (0.24, -0.38, 1.02),
    (0.71, 0.66, -0.93),
    (-1.21, 0.34, 0.62),
)
_WAVE_PHASES = (0.13, 0.71, 0.37, 0.92, 0.55)


@dataclass(frozen=True)
class Texture:
    """Two colours mixed by a pattern.

    Attributes:
        pattern: a key of `PATTERNS`.
        first, second: RGB, 0..1, where the pattern is -1 and +1.
        rows: M, pattern periods per metre along each axis of the object.
        phase: offset of the pattern in periods.
        sharpness: slope of the ramp between the colours; 1 = a sine, 6 = nearly flat areas.
        glow: 0 = lit by the room only, 1 = shines with its own colour.
    """

    pattern: str
    first: Colour
    second: Colour
    rows: Rows = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    phase: tuple[float, float, float] = (0.0, 0.0, 0.0)
    sharpness: float = 7.0
    glow: float = 0.0

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"Texture.pattern: expected one of {sorted(PATTERNS)}, got {self.pattern!r}")

    def glowing(self, amount: float) -> Texture:
        """The same paint shining by itself."""
        return replace(self, glow=amount)


def _solid(q: Tensor) -> Tensor:
    return torch.full_like(q[:, 0], -1.0)


def _stripes(q: Tensor) -> Tensor:
    return torch.sin(TAU * q[:, 0])


def _checker(q: Tensor) -> Tensor:
    """Unlike the plain product of the sines, this keeps the corners of the squares square."""
    first, second = torch.sin(math.pi * q[:, 0]), torch.sin(math.pi * q[:, 1])
    return torch.minimum(first.abs(), second.abs()) * torch.sign(first * second)


def _dots(q: Tensor) -> Tensor:
    return torch.cos(TAU * q[:, 0]) + torch.cos(TAU * q[:, 1]) - 0.75


def _rings(q: Tensor) -> Tensor:
    return torch.cos(TAU * torch.hypot(q[:, 0], q[:, 1]))


def _noise(q: Tensor) -> Tensor:
    waves = torch.tensor(_WAVES, dtype=q.dtype)
    phases = torch.tensor(_WAVE_PHASES, dtype=q.dtype)
    return torch.sin(TAU * (q @ waves.T + phases)).sum(1) / 2.2


def _planks(q: Tensor) -> Tensor:
    """Boards one period of q0 wide, each with its own tint and grain along q1, and dark seams between."""
    board = torch.floor(q[:, 0])
    tint = torch.sin(board * 12.9898) * 0.65
    across = q[:, 0] - board
    grain = torch.sin(TAU * (1.7 * across + 0.35 * torch.sin(TAU * (0.6 * q[:, 1] + board * 0.37))))
    seam = ((across - 0.5).abs() * 2 - 0.9).clamp(min=0) * 16
    return (tint + 0.3 * grain - seam).clamp(-1, 1)


def _horizon(q: Tensor) -> Tensor:
    """Above (+1) and below (-1) a wavy line at q2 = 0."""
    return q[:, 2] - 0.16 * torch.sin(TAU * 0.7 * q[:, 0]) - 0.09 * torch.sin(TAU * 1.9 * q[:, 0] + 1.0)


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "solid": _solid,
    "stripes": _stripes,
    "checker": _checker,
    "dots": _dots,
    "rings": _rings,
    "noise": _noise,
    "planks": _planks,
    "horizon": _horizon,
}


@dataclass(frozen=True)
class TextureTable:
    """T textures as tensors, in world coordinates.

    Attributes:
        pattern: [T] positions in `PATTERNS`.
        colours: [T, 2, 3].
        rows: [T, 3, 3]; phase: [T, 3]; sharpness, glow: [T].
    """

    pattern: Tensor
    colours: Tensor
    rows: Tensor
    phase: Tensor
    sharpness: Tensor
    glow: Tensor

    def albedo(self, points: Tensor, texture: Tensor) -> Tensor:
        """Colour at world points.

        Args:
            points: [N, 3] float64 metres.
            texture: [N] which texture paints each point.

        Returns:
            [N, 3] float64, 0..1.
        """
        mix = torch.zeros_like(points[:, 0])
        kinds = self.pattern[texture]
        for number, function in enumerate(PATTERNS.values()):
            chosen = (kinds == number).nonzero()[:, 0]
            if chosen.numel():
                own = texture[chosen]
                q = (self.rows[own] @ points[chosen].unsqueeze(-1)).squeeze(-1) + self.phase[own]
                ramp = (function(q) * self.sharpness[own]).clamp(-1, 1) * 0.5 + 0.5
                mix[chosen] = ramp * ramp * (3 - 2 * ramp)
        pair = self.colours[texture]
        return torch.lerp(pair[:, 0], pair[:, 1], mix.unsqueeze(1))


def texture_table(textures: Sequence[Texture], rotations: Tensor, positions: Tensor) -> TextureTable:
    """Stack textures given in object frames, expressed in world coordinates.

    Args:
        textures: T textures.
        rotations: [T, 3, 3] object-to-world rotations.
        positions: [T, 3] object origins, metres.
    """
    names = list(PATTERNS)
    rows = torch.tensor([t.rows for t in textures], dtype=torch.float64) @ rotations.transpose(1, 2)
    phase = torch.tensor([t.phase for t in textures], dtype=torch.float64)
    return TextureTable(
        pattern=torch.tensor([names.index(t.pattern) for t in textures]),
        colours=torch.tensor([[t.first, t.second] for t in textures], dtype=torch.float64),
        rows=rows,
        phase=phase - (rows @ positions.unsqueeze(-1)).squeeze(-1),
        sharpness=torch.tensor([t.sharpness for t in textures], dtype=torch.float64),
        glow=torch.tensor([t.glow for t in textures], dtype=torch.float64),
    )


def solid(colour: Colour) -> Texture:
    """One colour everywhere."""
    return Texture("solid", colour, colour)


def _over(row: tuple[float, float, float], period: float) -> tuple[float, float, float]:
    return row[0] / period, row[1] / period, row[2] / period


def pattern(
    name: str,
    first: Colour,
    second: Colour,
    period: float,
    axes: str = "xy",
    phase: float = 0.0,
    sharpness: float = 7.0,
) -> Texture:
    """A pattern with one period length, laid along two axes of the object.

    Args:
        name: a key of `PATTERNS`.
        first, second: RGB, 0..1.
        period: metres.
        axes: the axes that q0, q1 (and q2) follow, such as "xz" for a wall across y.
        phase: the same offset on all pattern coordinates, in periods.
        sharpness: see `Texture`.
    """
    order = axes + "".join(axis for axis in "xyz" if axis not in axes)
    unit = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}
    first_row, second_row, third_row = (unit[axis] for axis in order)
    rows = _over(first_row, period), _over(second_row, period), _over(third_row, period)
    return Texture(name, first, second, rows, (phase, phase, phase), sharpness)
