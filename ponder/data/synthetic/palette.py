"""Colours that go together: hues of one room are spread around the colour wheel, so neighbours differ."""

from __future__ import annotations

import colorsys
import math

import numpy as np

from ponder.data.synthetic.textures import Colour, Texture, pattern, solid

# Successive hues a golden section apart never come close to one another.
_GOLDEN = 0.61803398875
_WOODS: tuple[Colour, ...] = (
    (0.45, 0.27, 0.14),
    (0.62, 0.40, 0.21),
    (0.80, 0.60, 0.38),
    (0.30, 0.18, 0.11),
    (0.70, 0.47, 0.30),
    (0.90, 0.78, 0.58),
)


def scaled(colour: Colour, factor: float) -> Colour:
    """A darker (factor < 1) or lighter colour, kept within 0..1."""
    red, green, blue = (min(1.0, max(0.0, component * factor)) for component in colour)
    return red, green, blue


class Palette:
    """Draws the colours and paints of one room from its own random generator.

    Args:
        generator: the room's generator; every call advances it.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self._hue = float(generator.uniform())

    def between(self, low: float, high: float) -> float:
        """A uniform number."""
        return float(self.generator.uniform(low, high))

    def choice(self, options: tuple[str, ...]) -> str:
        """One of the options."""
        return options[int(self.generator.integers(len(options)))]

    def _next_hue(self) -> float:
        self._hue = (self._hue + _GOLDEN) % 1.0
        # More warm and blue tones, less pure green and magenta, which look like plastic on large areas.
        return (self._hue + 0.045 * math.sin(4 * math.pi * (self._hue - 1 / 3))) % 1.0

    def vivid(self) -> Colour:
        """A saturated colour of the next hue."""
        return colorsys.hsv_to_rgb(self._next_hue(), self.between(0.48, 0.82), self.between(0.6, 0.95))

    def pale(self) -> Colour:
        """A light wall colour."""
        return colorsys.hsv_to_rgb(self._next_hue(), self.between(0.10, 0.28), self.between(0.88, 1.0))

    def deep(self) -> Colour:
        """A dark colour."""
        return colorsys.hsv_to_rgb(self._next_hue(), self.between(0.5, 0.8), self.between(0.18, 0.38))

    def wood(self) -> Texture:
        """Wood in one of several tones, bands along x."""
        tone = _WOODS[int(self.generator.integers(len(_WOODS)))]
        period = self.between(0.25, 0.4)
        return pattern("planks", scaled(tone, 0.72), scaled(tone, 1.12), period, "yx", self.between(0, 1), 1.0)

    def painted(self) -> Texture:
        """A plain vivid surface."""
        return solid(self.vivid())

    def fabric(self, axes: str = "xy") -> Texture:
        """A patterned vivid cloth."""
        name = self.choice(("stripes", "checker", "dots", "noise", "solid"))
        first, second = self.vivid(), self.choice_colour()
        return pattern(name, first, second, self.between(0.2, 0.4), axes, self.between(0, 1))

    def choice_colour(self) -> Colour:
        """A contrast colour: light or dark."""
        return self.pale() if self.generator.uniform() < 0.6 else self.deep()
