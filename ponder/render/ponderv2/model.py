"""The renderers: rays and volumes in, images, samples and losses out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ponder.render.ponderv2.colliders import Collider
from ponder.render.ponderv2.error_bounded import ErrorBoundedSampler
from ponder.render.ponderv2.field import SDFField, unit_box
from ponder.render.ponderv2.losses import LossConfig, compute_losses
from ponder.render.ponderv2.parity import Parity
from ponder.render.ponderv2.rays import RayBundle, TensorMap
from ponder.render.ponderv2.samplers import FieldQueries, NeuSSampler, SampledRays, UniSurfSampler
from ponder_kernels import FieldWeights, RenderedRays, _backend, render_rays

RaySampler = NeuSSampler | ErrorBoundedSampler | UniSurfSampler

# PonderV2 normalises with torch.nn.functional.normalize, whose floor this is.
NORMALIZE_FLOOR = 1e-12


class SurfaceModel(nn.Module, ABC):
    """Volume rendering of an SDF field.

    Reference:
        Zhu et al., PonderV2, arXiv 2310.08586, section 3.3.
    """

    # How an opacity comes of the SDF: "neus" or "volsdf".
    kind: str

    def __init__(
        self, field: SDFField, collider: Collider, sampler: RaySampler, loss: LossConfig, parity: Parity | None = None
    ) -> None:
        super().__init__()
        self.field, self.collider, self.sampler = field, collider, sampler
        self.loss, self.parity = loss, parity or Parity()

    @abstractmethod
    def sharpness(self) -> Tensor:
        """[] inv_s of NeuS, beta of VolSDF."""

    @property
    def opacity(self) -> str:
        """The opacity model of `render_rays`."""
        return f"{self.kind}-plain" if self.parity.plain_rounding else self.kind

    def forward(
        self, ray_bundle: RayBundle, volume_feature: Sequence[Tensor], points: Tensor | None = None, **unused: Any
    ) -> dict[str, Tensor]:
        """Render the rays of one scene.

        Args:
            ray_bundle: R rays, in the coordinates of the collider's box.
            volume_feature: volumes [C, D, H, W] of the scene, x along W; converted to the dtype of the rays.
            points: [M, 3], only for the sparse-points loss.
            unused: swallowed with a warning.

        Returns:
            rgb [R, 3] (clamped to [0, 1] in evaluation), semantic and feature [R, E] if the field has them; depth
            [R, 1]; normal [R, 3], not at unit length; per sample weights, sdf and z_vals [R, S, 1], gradients and
            sampled_points [R, S, 3]; of the sampler's first round init_sampled_points [R, S0, 3] and init_weights
            [R, S0, 1], of the others new_sampled_points [R, S1, 3]; sparse_points_sdf [M, 1] if its loss is on.

        Raises:
            TypeError, ValueError: naming what does not fit.
        """
        if not isinstance(ray_bundle, RayBundle):
            raise TypeError(f"ray_bundle: expected a RayBundle, got {type(ray_bundle).__name__}")
        if unused:
            warnings.warn(f"the renderer makes no use of {', '.join(unused)}", stacklevel=2)
        volumes = self.field.prepare(volume_feature, ray_bundle.origins.dtype)
        weights = self.field.weights(len(volumes))
        queries = FieldQueries(self._sampled_sdf(volumes, weights), self.field.laplace_density)
        limited = self.collider(ray_bundle)
        sampled = self.sampler(limited if self.parity.plain_rounding else limited.in_float64(), queries)
        edges, points_along = sampled.samples.rounded(), sampled.samples.points()
        rendered = render_rays(
            volumes,
            weights,
            ray_bundle.origins[None],
            ray_bundle.directions[None],
            edges[None],
            self.sharpness(),
            unit_box(ray_bundle.origins),
            opacity=self.opacity,
            plain=self.field.plain_decoder(len(volumes)) if self._rounds_plainly(volumes) else None,
            align_corners=True,
            padding="zeros",
            sample_at="start",
            normalise=self.field.normalisation(),
            normal_floor=NORMALIZE_FLOOR,
            per_sample=True,
        )
        starts = edges[:, :-1]
        preds = self._images(rendered, starts) | _samples(rendered, sampled, starts, points_along)
        if self.loss.weight("sparse_points_sdf_loss") > 0:
            if points is None:
                raise ValueError("points: sparse_points_sdf_loss is on but none were given")
            preds["sparse_points_sdf"] = self.field.sdf(points, volumes, weights)[:, None]
        return preds

    def _sampled_sdf(self, volumes: Sequence[Tensor], weights: FieldWeights) -> TensorMap:
        """The SDF as the sampler asks for it."""
        if self._rounds_plainly(volumes):
            return self.field.plain_sdf(volumes)
        return lambda where: self.field.sdf(where, volumes, weights)

    def _rounds_plainly(self, volumes: Sequence[Tensor]) -> bool:
        # On a GPU products round in their own way, and the same digits are not to be had.
        on_cpu = volumes[0].device.type == "cpu" and _backend.choose_backend("auto", *volumes) == "torch"
        return self.parity.plain_rounding and on_cpu

    def get_loss(self, preds_dict: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weighted loss terms; see `compute_losses`."""
        return compute_losses(preds_dict, targets, self.loss, self.parity, self.training)

    def _images(self, rendered: RenderedRays, starts: Tensor) -> dict[str, Tensor]:
        """What the rays see."""
        # Squeezed, not indexed: the derivative is a view then.
        heads = (head.squeeze(0) for head in rendered.heads)
        images = {}
        if self.field.rgb_decoder is not None:
            rgb = next(heads)
            images["rgb"] = rgb if self.training else rgb.clamp(0.0, 1.0)
        if self.field.semantic_decoder is not None:
            images["semantic"] = next(heads)
        if self.field.feature_decoder is not None:
            images["feature"] = next(heads)
        depth = rendered.depth.T
        if not self.parity.shared_depth_range:
            # Starts are sorted.
            depth = torch.clip(depth, starts[:, :1], starts[:, -1:])
        elif len(depth):
            depth = torch.clip(depth, starts.min(), starts.max())
        return images | {"depth": depth, "normal": rendered.normal.squeeze(0)}


def _samples(rendered: RenderedRays, sampled: SampledRays, starts: Tensor, points: Tensor) -> dict[str, Tensor]:
    """What was found along the rays; points [R, S, 3] are those of the samples."""
    per_sample = rendered.samples
    assert per_sample is not None
    first = sampled.initial_weights
    found = {
        "weights": per_sample.weights.squeeze(0)[..., None],
        "sdf": per_sample.sdf.squeeze(0)[..., None],
        "gradients": per_sample.gradient.squeeze(0),
        "z_vals": starts[..., None],
        "sampled_points": points,
        "init_sampled_points": sampled.initial_points,
        "init_weights": None if first is None else first.to(starts.dtype)[..., None],
        "new_sampled_points": sampled.new_points,
    }
    return {name: value for name, value in found.items() if value is not None}


class NeuSModel(SurfaceModel):
    """Opacity from the change of the SDF along the ray (NeuS, arXiv 2106.10689)."""

    kind = "neus"

    def sharpness(self) -> Tensor:
        return self.field.inv_s()


class VolSDFModel(SurfaceModel):
    """Density from the SDF (VolSDF, arXiv 2106.12052)."""

    kind = "volsdf"

    def sharpness(self) -> Tensor:
        return self.field.laplace_density.get_beta()[0]
