"""Lightplane's renderer on the same rays and volume, where it is installed.

It renders another field: emission and absorption from two small networks, even samples, no signed distance, no
gradient, and so neither normals nor geometric losses. What it has in common with PonderV2's renderer are the rays, the
volume, the number of samples and the memory-lean backward pass; the row shows what those cost elsewhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.ponderv2 import RayBundle, build_renderer

# Layers of its networks: as many products as PonderV2's SDF and colour decoders have.
LAYERS = {"mlp_n_layers_trunk": 1, "mlp_n_layers_opacity": 1, "mlp_n_layers_color": 2}
HIDDEN = 128


class LightplaneModel(nn.Module):
    """Lightplane's module behind the calls of PonderV2's renderers.

    Args:
        config: PonderV2's `renderer` dictionary, of which the collider, the number of samples and the weights of the
            colour and depth losses are used.
        channels: of the volume.
    """

    def __init__(self, config: Mapping[str, Any], channels: int) -> None:
        super().__init__()
        self.library = importlib.import_module("lightplane")
        sampler = config["sampler"]
        samples = sampler["num_samples"] + sampler["num_samples_importance"]
        self.renderer = self.library.LightplaneRenderer(
            num_samples=samples, color_chn=3, grid_chn=channels, mlp_hidden_chn=HIDDEN, **LAYERS
        )
        self.collider = build_renderer(config).collider
        self.weights = config["loss"]["weights"]
        low, *_, high = config["collider"]["bbox"]
        self.middle, self.half_width = (low + high) / 2, (high - low) / 2

    def forward(self, bundle: RayBundle, volume_feature: Sequence[Tensor]) -> dict[str, Tensor]:
        """Colour [R, 3] and depth [R, 1] of rays in the box's coordinates, from a volume [C, D, H, W]."""
        nears, fars = self.collider(bundle).limits()
        # Its cube is [-1, 1]; lengths along the ray are scaled with it.
        rays = self.library.Rays(
            directions=bundle.directions,
            origins=(bundle.origins - self.middle) / self.half_width,
            grid_idx=torch.zeros(len(nears), dtype=torch.long, device=nears.device),
            near=nears[:, 0] / self.half_width,
            far=fars[:, 0] / self.half_width,
        )
        grid = [volume.permute(1, 2, 3, 0)[None].contiguous() for volume in volume_feature]
        length, _, colour = self.renderer(rays, grid)
        return {"rgb": colour, "depth": length.reshape(-1, 1) * self.half_width}

    def get_loss(self, preds: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The colour and depth losses that are on."""
        valid = targets["depth"] > 0
        found = {"depth_loss": ((preds["depth"] - targets["depth"]).abs() * valid).sum() / valid.sum().clamp(min=1)}
        if "rgb_loss" in self.weights:
            found["rgb_loss"] = F.l1_loss(preds["rgb"], targets["rgb"])
        return {name: term * self.weights[name] for name, term in found.items()}
