"""NeuS's ray sampler: even samples, then more near the surface that a fixed sharpness shows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.baselines.ponderv2.compositing import weights_from_alpha
from benchmarks.baselines.ponderv2.density import ALPHA_EPS
from benchmarks.baselines.ponderv2.rays import RayBundle, merge
from benchmarks.baselines.ponderv2.samplers.pdf import PDFSampler
from benchmarks.baselines.ponderv2.samplers.queries import FieldQueries, SampledRays
from benchmarks.baselines.ponderv2.samplers.spaced import spaced_sampler

# Added to the interval length when the slope of the SDF is estimated.
SLOPE_EPS = 1e-5

# Steepest descent of the SDF that is believed.
STEEPEST = -1e3


class NeuSSampler(nn.Module):
    """Hierarchical sampling (NeuS, Wang et al. 2021, supplementary "hierarchical sampling").

    Step k weighs the samples so far as if the inverse standard deviation were ``base_variance * 2^k`` and draws
    ``num_samples_importance // num_upsample_steps`` more. The SDF is asked at positions on the rays as they are, never
    normalised: see `SDFField.get_sdf`.

    Random numbers in training: [R, num_samples + 1], then per step [R, new + 1] ([R, 1] with `single_jitter`).
    """

    def __init__(
        self,
        initial_sampler: str,
        num_samples: int,
        num_samples_importance: int,
        num_upsample_steps: int,
        base_variance: float = 64.0,
        train_stratified: bool = True,
        single_jitter: bool = True,
    ) -> None:
        super().__init__()
        self.num_samples_importance = num_samples_importance
        self.num_upsample_steps = num_upsample_steps
        self.base_variance = base_variance
        self.initial_sampler = spaced_sampler(initial_sampler, num_samples, train_stratified, single_jitter)
        self.pdf_sampler = PDFSampler(train_stratified, single_jitter)

    def forward(self, rays: RayBundle, field: FieldQueries) -> SampledRays:
        """num_samples + num_samples_importance samples per ray."""
        samples = fresh = self.initial_sampler(rays)
        sdf = order = initial_points = initial_weights = None
        new_points: list[Tensor] = []
        for step in range(self.num_upsample_steps):
            with torch.no_grad():
                fresh_sdf = field.sdf(fresh.positions())[..., 0]
            # Starts survive a merge, so only the new positions have to be asked.
            sdf = fresh_sdf if sdf is None or order is None else torch.cat((sdf, fresh_sdf), -1).gather(1, order)
            alpha = fixed_sharpness_alpha(sdf, samples.deltas[:, :-1, 0], self.base_variance * 2**step)
            weights = weights_from_alpha(alpha[..., None])
            weights = torch.cat((weights, torch.zeros_like(weights[:, :1])), 1)
            if step == 0:
                initial_points, initial_weights = fresh.positions(), weights
            fresh = self.pdf_sampler(samples, weights, self.num_samples_importance // self.num_upsample_steps)
            new_points.append(fresh.positions())
            samples, order = merge(samples, fresh)
        return SampledRays(samples, initial_points, initial_weights, torch.cat(new_points, 1) if new_points else None)


def fixed_sharpness_alpha(sdf: Tensor, deltas: Tensor, inv_s: float) -> Tensor:
    """Opacity of the S - 1 intervals between neighbouring samples; not clipped.

    The slope of an interval is the smaller of its own finite difference and its left neighbour's (0 for the first),
    cut to [-1000, 0], so that a surface seen at a grazing angle keeps its weight.

    Args:
        sdf: [R, S].
        deltas: [R, S - 1], lengths of the intervals to the next sample.
        inv_s: inverse standard deviation.

    Returns:
        [R, S - 1].
    """
    middle = (sdf[:, :-1] + sdf[:, 1:]) * 0.5
    slope = (sdf[:, 1:] - sdf[:, :-1]) / (deltas + SLOPE_EPS)
    previous = torch.cat((torch.zeros_like(slope[:, :1]), slope[:, :-1]), -1)
    change = torch.minimum(previous, slope).clip(STEEPEST, 0.0) * deltas * 0.5
    before = torch.sigmoid((middle - change) * inv_s)
    after = torch.sigmoid((middle + change) * inv_s)
    return (before - after + ALPHA_EPS) / (before + ALPHA_EPS)
