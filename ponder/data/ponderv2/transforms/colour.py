"""Changes of colour: points' `color` [N, 3] and images' `rgb` [V, H, W, 3], 0 to 255 until `NormalizeColor`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ponder.data.ponderv2.transforms.base import Array, Sample, bounds, store


@dataclass(frozen=True)
class NormalizeColor:
    """Point colours to -1..1, images to 0..1 (float32)."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "color" in sample:
            sample["color"] = sample["color"] / 127.5 - 1
        if "rgb" in sample:
            unit = np.divide(sample["rgb"], np.float32(255), dtype=np.float32)
            sample["rgb"] = unit if sample["rgb"].dtype == np.uint8 else unit.clip(0, 1)
        return sample


@dataclass(frozen=True)
class ChromaticAutoContrast:
    """With probability `p`, stretch each channel to 0..255 and blend by `blend_factor` (None = drawn from 0..1).

    Images are stretched by the point colours' range, hence beyond 0..255 where theirs is wider. A channel of one value
    has no range and stays as it is.
    """

    p: float = 0.2
    blend_factor: float | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "color" not in sample or not rng.random() < self.p:
            return sample
        blend = rng.random() if self.blend_factor is None else self.blend_factor
        low, high = (bound.astype(float) for bound in bounds(sample["color"]))
        span = np.where(high > low, high - low, 255.0)
        low = np.where(high > low, low, 0.0)
        # (1 - b) c + b (c - low) 255 / span, as one factor and one offset per channel.
        factor = 1 - blend + blend * 255 / span
        offset = -blend * low * 255 / span
        for key in ("color", "rgb"):
            if key in sample:
                values = _as_float(sample[key])
                changed = values * factor.astype(values.dtype) + offset.astype(values.dtype)
                sample[key] = store(changed, sample[key])
        return sample


@dataclass(frozen=True)
class ChromaticTranslation:
    """With probability `p`, add to each channel up to `ratio` of 255, up or down, the same for points and images."""

    p: float = 0.95
    ratio: float = 0.05

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "color" not in sample or not rng.random() < self.p:
            return sample
        offset = (rng.random(3) - 0.5) * (255 * 2 * self.ratio)
        for key in ("color", "rgb"):
            if key in sample:
                values = _as_float(sample[key])
                sample[key] = store((values + offset.astype(values.dtype)).clip(0, 255), sample[key])
        return sample


@dataclass(frozen=True)
class ChromaticJitter:
    """With probability `p`, add Gaussian noise of deviation `std` times 255 to every point's colour."""

    p: float = 0.95
    std: float = 0.005

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "color" not in sample or not rng.random() < self.p:
            return sample
        colour = sample["color"]
        noise = rng.standard_normal(colour.shape, dtype=np.float32) * np.float32(self.std * 255)
        sample["color"] = store((noise + colour).clip(0, 255), colour)
        return sample


@dataclass(frozen=True)
class HueSaturationTranslation:
    """Turn the hue by up to `hue_max` of a full turn and scale the saturation by up to 1 + `saturation_max`."""

    hue_max: float = 0.5
    saturation_max: float = 0.2

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "color" not in sample:
            return sample
        turn = (rng.random() - 0.5) * 2 * self.hue_max
        factor = 1 + (rng.random() - 0.5) * 2 * self.saturation_max
        for key in ("color", "rgb"):
            if key in sample:
                hsv = _hsv_of_rgb(sample[key].astype(float))
                hsv[..., 0] = (hsv[..., 0] + turn) % 1
                hsv[..., 1] = (hsv[..., 1] * factor).clip(0, 1)
                # Whole levels, cut off, as images have them.
                sample[key] = store(np.floor(_rgb_of_hsv(hsv)), sample[key])
        return sample


@dataclass(frozen=True)
class RandomColorDrop:
    """With probability `p`, multiply all point colours by `color_augment`."""

    p: float = 0.2
    color_augment: float = 0.0

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "color" in sample and rng.random() < self.p:
            sample["color"] = store(sample["color"] * self.color_augment, sample["color"])
        return sample


def _as_float(values: Array) -> Array:
    return values if np.issubdtype(values.dtype, np.floating) else values.astype(np.float32)


def _hsv_of_rgb(rgb: Array) -> Array:
    """Hue and saturation 0..1 and the largest channel as it is, [..., 3] from [..., 3]."""
    largest, least = rgb.max(axis=-1), rgb.min(axis=-1)
    span = largest - least
    safe = np.where(span > 0, span, 1.0)
    red, green, blue = ((largest - rgb[..., channel]) / safe for channel in range(3))
    sector = np.where(
        rgb[..., 0] == largest,
        blue - green,
        np.where(rgb[..., 1] == largest, 2 + red - blue, 4 + green - red),
    )
    hue = np.where(span > 0, (sector / 6) % 1, 0.0)
    saturation = np.where(span > 0, span / np.where(largest > 0, largest, 1.0), 0.0)
    return np.stack([hue, saturation, largest], axis=-1)


def _rgb_of_hsv(hsv: Array) -> Array:
    """The inverse of `_hsv_of_rgb`."""
    hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    channels = []
    for offset in (5, 3, 1):
        sector = (offset + hue * 6) % 6
        share = np.minimum(sector, 4 - sector).clip(0, 1)
        channels.append(value * (1 - saturation * share))
    return np.stack(channels, axis=-1)
