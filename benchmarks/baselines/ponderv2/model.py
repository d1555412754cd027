"""The renderers: rays and volumes in, images, samples and losses out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from benchmarks.baselines.ponderv2.colliders import Collider
from benchmarks.baselines.ponderv2.compositing import (
    expected_depth,
    weighted_sum,
    weights_from_alpha,
    weights_from_density,
)
from benchmarks.baselines.ponderv2.density import unisurf_occupancy
from benchmarks.baselines.ponderv2.field import FieldOutput, SDFField
from benchmarks.baselines.ponderv2.losses import LossConfig, compute_losses
from benchmarks.baselines.ponderv2.rays import RayBundle, RaySamples
from benchmarks.baselines.ponderv2.samplers import (
    ErrorBoundedSampler,
    FieldQueries,
    NeuSSampler,
    SampledRays,
    UniSurfSampler,
)

RaySampler = NeuSSampler | ErrorBoundedSampler | UniSurfSampler


class SurfaceModel(nn.Module, ABC):
    """Volume rendering of an SDF field (PonderV2, Zhu et al. 2023, section 3.2)."""

    def __init__(self, field: SDFField, collider: Collider, sampler: RaySampler, loss: LossConfig) -> None:
        super().__init__()
        self.field = field
        self.collider = collider
        self.sampler = sampler
        self.loss = loss

    def forward(
        self, ray_bundle: RayBundle, volume_feature: Sequence[Tensor], points: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Render the rays of one scene.

        Args:
            ray_bundle: R rays, in the coordinates of the collider's box.
            volume_feature: volumes [C, D, H, W] of the scene, x along W; converted to the dtype of the rays.
            points: [M, 3], only for the sparse-points loss.

        Returns:
            rgb [R, 3] (clamped to [0, 1] in evaluation) and semantic [R, K] if the field has them; depth [R, 1];
            normal [R, 3], not at unit length; per sample weights, sdf and z_vals [R, S, 1], gradients and
            sampled_points [R, S, 3]; of the sampler's first round init_sampled_points [R, S0, 3] and init_weights
            [R, S0, 1], of the others new_sampled_points [R, S1, 3]; sparse_points_sdf [M, 1] if its loss is on.
        """
        sampled = self.sampler(self.collider(ray_bundle), self._queries(volume_feature))
        samples = sampled.samples
        out = self.field(samples, volume_feature)
        weights = self.weights(samples, out)
        preds = self._images(samples, out, weights) | self._samples(sampled, out, weights)
        if self.loss.weight("sparse_points_sdf_loss") > 0:
            if points is None:
                raise ValueError("sparse_points_sdf_loss is on but no points were given")
            preds["sparse_points_sdf"] = self.field.get_sdf(points[None], volume_feature)[0][0]
        return preds

    def get_loss(self, preds_dict: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weighted loss terms; see `compute_losses`."""
        return compute_losses(preds_dict, targets, self.loss, self.training)

    @abstractmethod
    def weights(self, samples: RaySamples, out: FieldOutput) -> Tensor:
        """Compositing weights [R, S, 1]."""

    def _queries(self, volumes: Sequence[Tensor]) -> FieldQueries:
        return FieldQueries(
            sdf=lambda points: self.field.get_sdf(points, volumes)[0],
            occupancy=unisurf_occupancy,
            density=self.field.laplace_density,
        )

    def _images(self, samples: RaySamples, out: FieldOutput, weights: Tensor) -> dict[str, Tensor]:
        """What the rays see."""
        # Evaluated in PonderV2's order, so that the gradient of the weights adds up in the same order.
        depth = expected_depth(samples.starts, weights)
        normal = weighted_sum(out.normals, weights)
        images = {}
        if out.rgb is not None:
            rgb = weighted_sum(out.rgb, weights)
            images["rgb"] = rgb if self.training else rgb.clamp(0.0, 1.0)
        if out.semantic is not None:
            images["semantic"] = weighted_sum(out.semantic, weights)
        images |= {"depth": depth, "normal": normal}
        return images

    @staticmethod
    def _samples(sampled: SampledRays, out: FieldOutput, weights: Tensor) -> dict[str, Tensor]:
        """What was found along the rays."""
        found: dict[str, Tensor | None] = {
            "weights": weights,
            "sdf": out.sdf,
            "gradients": out.gradients,
            "z_vals": sampled.samples.starts,
            "sampled_points": sampled.samples.positions(),
            "init_sampled_points": sampled.initial_points,
            "init_weights": sampled.initial_weights,
            "new_sampled_points": sampled.new_points,
        }
        return {name: value for name, value in found.items() if value is not None}


class NeuSModel(SurfaceModel):
    """Opacity from the change of the SDF along the ray (NeuS, Wang et al. 2021)."""

    def weights(self, samples: RaySamples, out: FieldOutput) -> Tensor:
        return weights_from_alpha(self.field.alpha(samples, out))


class VolSDFModel(SurfaceModel):
    """Density from the SDF (VolSDF, Yariv et al. 2021)."""

    def weights(self, samples: RaySamples, out: FieldOutput) -> Tensor:
        return weights_from_density(self.field.laplace_density(out.sdf), samples.deltas)[0]
