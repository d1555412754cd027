"""UNISURF's ray sampler: find the surface, sample densely around it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.baselines.ponderv2.compositing import weights_from_alpha
from benchmarks.baselines.ponderv2.rays import RayBundle, merge_by_distance
from benchmarks.baselines.ponderv2.samplers.pdf import PDFSampler
from benchmarks.baselines.ponderv2.samplers.queries import FieldQueries, SampledRays
from benchmarks.baselines.ponderv2.samplers.spaced import spaced_sampler


class UniSurfSampler(nn.Module):
    """Importance samples on the whole ray plus even ones around the first surface (UNISURF, Oechsle et al. 2021).

    PonderV2 has this sampler but does not register it, so none of its configs can name it; here one can.

    Args:
        initial_sampler: name of a spaced sampler.
        num_samples_importance: drawn from the weights of the march.
        num_marching_steps: even samples that look for the surface.
        num_samples_interval: even samples around it, or on the whole ray where there is no surface.
        delta: half width of the interval around the surface, as a fraction of far - near.
    """

    def __init__(
        self,
        initial_sampler: str,
        num_samples_importance: int,
        num_marching_steps: int,
        num_samples_interval: int,
        delta: float,
        train_stratified: bool = True,
        single_jitter: bool = True,
    ) -> None:
        super().__init__()
        self.num_samples_importance = num_samples_importance
        self.num_marching_steps = num_marching_steps
        self.num_samples_interval = num_samples_interval
        self.delta = delta
        self.initial_sampler = spaced_sampler(initial_sampler, None, train_stratified, single_jitter)
        self.pdf_sampler = PDFSampler(train_stratified, single_jitter)

    def forward(self, rays: RayBundle, field: FieldQueries) -> SampledRays:
        """num_samples_interval + num_samples_importance samples per ray; `new_points` are all of them."""
        march = self.initial_sampler(rays, self.num_marching_steps)
        with torch.no_grad():
            sdf = field.sdf(march.positions())
        weights = weights_from_alpha(field.occupancy(sdf))
        important = self.pdf_sampler(march, weights, self.num_samples_importance)

        depth, found = first_surface(sdf[..., 0], march.starts[..., 0])
        nears, fars = rays.limits()
        reach = (fars - nears) * self.delta
        narrowed = replace(
            rays,
            nears=torch.where(found, torch.maximum(depth - reach, nears), nears),
            fars=torch.where(found, torch.minimum(depth + reach, fars), fars),
        )
        around = self.initial_sampler(narrowed, self.num_samples_interval)
        samples = merge_by_distance(around, important)
        return SampledRays(samples, march.positions(), weights, samples.positions())


def first_surface(sdf: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the first change of sign, if it goes from outside to inside.

    Args:
        sdf, starts: [R, S].

    Returns:
        depth: [R, 1] by linear interpolation, ``(f0 t1 - f1 t0) / (f0 - f1)``; meaningless where nothing was found.
        found: [R, 1] bool.
    """
    changes = torch.sign(sdf[:, :-1] * sdf[:, 1:]) < 0
    # The maximum of equal values is the first of them.
    first = changes.int().argmax(-1, keepdim=True)
    f0, f1 = sdf.gather(1, first), sdf.gather(1, first + 1)
    t0, t1 = starts.gather(1, first), starts.gather(1, first + 1)
    found = changes.any(-1, keepdim=True) & (f0 > 0)
    return (f0 * t1 - f1 * t0) / torch.where(found, f0 - f1, 1.0), found
