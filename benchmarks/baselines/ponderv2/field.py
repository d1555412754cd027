"""The scene as a function of position: volume features, decoders, and the SDF's gradient by autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.ponderv2.decoders import RGBDecoder, SDFDecoder, SemanticDecoder
from benchmarks.baselines.ponderv2.density import DeviationNetwork, LaplaceDensity, neus_alpha
from benchmarks.baselines.ponderv2.rays import RaySamples
from benchmarks.baselines.ponderv2.trilinear import TrilinearSampler, torch_trilinear

# PonderV2 divides by 1 + padding + this, so that the padded cube stays strictly inside [0, 1).
NORMALISE_MARGIN = 1e-3

# Largest normalised coordinate: points at 1 or beyond are moved here.
NORMALISED_MAX = 1.0 - 1e-3


def normalise(points: Tensor, padding: float) -> Tensor:
    """``q = p / (1 + padding + 0.001) + 0.5``; a coordinate >= 1 becomes 0.999, one < 0 becomes 0.

    Args:
        points: [..., 3] in the cube [-(1 + padding) / 2, (1 + padding) / 2].
        padding: how much larger than the unit cube that is.

    Returns:
        [..., 3] in [0, 1).
    """
    q = points / (1 + padding + NORMALISE_MARGIN) + 0.5
    q = torch.where(q >= 1, NORMALISED_MAX, q)
    return torch.where(q < 0, 0.0, q)


class FieldOutput(NamedTuple):
    """Values per sample; `gradients` are with respect to the points that the volume was read at."""

    sdf: Tensor  # [R, S, 1]
    gradients: Tensor  # [R, S, 3]
    normals: Tensor  # [R, S, 3], gradients at unit length
    rgb: Tensor | None  # [R, S, 3]
    semantic: Tensor | None  # [R, S, K]


class SDFField(nn.Module):
    """Signed distance, colour and semantics read from feature volumes.

    Parameter names and shapes are those of PonderV2, so state_dicts go both ways.

    Args:
        sdf_decoder: its channel 0 is the distance, the others are geometry features.
        beta_init: initial value of both the Laplace and the NeuS sharpness.
        use_gradient: give the SDF gradient to the other decoders.
        share_volume: all decoders read all channels; else the first half of the channels feeds the SDF, the second half
            the others.
        rgb_decoder, semantic_decoder: None leaves that output out.
        norm_pts: map points from the padded cube to [0, 1] before reading; else they must be in [0, 1] already.
        norm_padding: see `normalise`.
        trilinear: how volumes are read.
    """

    def __init__(
        self,
        sdf_decoder: SDFDecoder,
        beta_init: float,
        use_gradient: bool = True,
        share_volume: bool = True,
        rgb_decoder: RGBDecoder | None = None,
        semantic_decoder: SemanticDecoder | None = None,
        norm_pts: bool = False,
        norm_padding: float = 0.1,
        trilinear: TrilinearSampler = torch_trilinear,
    ) -> None:
        super().__init__()
        self.use_gradient = use_gradient
        self.share_volume = share_volume
        self.norm_pts = norm_pts
        self.norm_padding = norm_padding
        self.trilinear = trilinear
        self.sdf_decoder = sdf_decoder
        self.rgb_decoder = rgb_decoder
        self.semantic_decoder = semantic_decoder
        self.laplace_density = LaplaceDensity(beta_init)
        self.deviation_network = DeviationNetwork(beta_init)

    def features(self, points: Tensor, volumes: Sequence[Tensor]) -> Tensor:
        """Features at points [R, S, 3] in [0, 1] from L volumes [C, D, H, W], as [R, S, L C].

        The first channel halves of all volumes come first, then all second halves.
        """
        if isinstance(volumes, Tensor):
            raise TypeError("volume_feature must be a list of volumes [C, D, H, W], got a tensor")
        rays, samples, _ = points.shape
        grid = (points * 2 - 1).reshape(1, -1, 3)
        read = [self.trilinear(v[None].to(points.dtype), grid).reshape(rays, samples, -1) for v in volumes]
        half = read[0].shape[-1] // 2
        return torch.cat([f[..., :half] for f in read] + [f[..., half:] for f in read], -1)

    def get_sdf(self, points: Tensor, volume_feature: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Distance [R, S, 1], geometry features [R, S, G] and volume features [R, S, L C].

        The points [R, S, 3] are used as they come. The ray samplers call this with positions in the cube even where
        the final evaluation normalises them first, so that with `norm_pts` they look at other places of the volume:
        a departure of PonderV2's code from its paper that is kept here.
        """
        features = self.features(points, volume_feature)
        decoded = self.sdf_decoder(points, self._halves(features)[0])
        return decoded[..., :1], decoded[..., 1:], features

    def forward(self, samples: RaySamples, volume_feature: Sequence[Tensor]) -> FieldOutput:
        """Everything at the start positions of the samples, the SDF gradient by a pass of autograd.

        The gradient is taken with respect to the points given to `get_sdf`: normalised ones if `norm_pts`, without the
        chain factor 1 / (1 + padding + 0.001). It can itself be differentiated.
        """
        points = samples.positions()
        if self.norm_pts:
            points = normalise(points, self.norm_padding)
        points.requires_grad_(True)
        # Evaluation without gradients needs this one all the same.
        with torch.enable_grad():
            sdf, geometry, features = self.get_sdf(points, volume_feature)
            (gradients,) = torch.autograd.grad(sdf, points, torch.ones_like(sdf), create_graph=True)

        inputs = [gradients] if self.use_gradient else []
        inputs += [self._halves(features)[1], geometry]
        rgb = semantic = None
        if self.rgb_decoder is not None:
            directions = samples.directions[:, None].expand_as(points)
            rgb = self.rgb_decoder(points, torch.cat([*inputs, directions], -1))
        if self.semantic_decoder is not None:
            semantic = self.semantic_decoder(points, torch.cat(inputs, -1))
        return FieldOutput(sdf, gradients, F.normalize(gradients, dim=-1), rgb, semantic)

    def alpha(self, samples: RaySamples, out: FieldOutput) -> Tensor:
        """NeuS opacity of every sample, [R, S, 1]."""
        cosine = (samples.directions[:, None] * out.gradients).sum(-1, keepdim=True)
        return neus_alpha(out.sdf, cosine, samples.deltas, self.deviation_network.inverse_deviation())

    def _halves(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What the SDF decoder reads, and what the others read."""
        if self.share_volume:
            return features, features
        first, second = features.chunk(2, -1)
        return first, second
