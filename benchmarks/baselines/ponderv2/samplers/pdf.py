"""More samples where the weight is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.baselines.ponderv2.rays import RaySamples

# A ray's total weight is filled up to this, evenly, so that an empty ray is sampled evenly.
WEIGHT_FLOOR = 1e-5

# A smaller step of the distribution counts as flat: the new edge takes the old edge on its left.
FLAT_STEP = 1e-5


class PDFSampler(nn.Module):
    """Inverse-transform sampling of interval edges from weights (NeRF, Mildenhall et al. 2020, section 5.2)."""

    def __init__(self, train_stratified: bool = True, single_jitter: bool = False) -> None:
        super().__init__()
        self.train_stratified = train_stratified
        self.single_jitter = single_jitter

    def forward(self, samples: RaySamples, weights: Tensor, num_samples: int) -> RaySamples:
        """`num_samples` new intervals drawn from the weights [R, S, 1] of the old ones; no gradient goes through."""
        edges, _ = samples.units()
        weights = weights[..., 0].detach()
        return samples.replaced(resample_edges(edges, weights, self._places(weights, num_samples + 1)))

    def _places(self, weights: Tensor, count: int) -> Tensor:
        """Where the cumulative distribution is inverted, [R, count]: ``(k + U) / count``, U = 1/2 without jitter."""
        even = torch.linspace(0.0, 1.0 - (1.0 / count), count, dtype=weights.dtype, device=weights.device)
        if not (self.train_stratified and self.training):
            return (even + 1.0 / (2 * count)).expand(len(weights), -1).contiguous()
        shape = (len(weights), 1 if self.single_jitter else count)
        return even + torch.rand(shape, dtype=weights.dtype, device=weights.device) / count


def resample_edges(edges: Tensor, weights: Tensor, places: Tensor) -> Tensor:
    """Points at which the piecewise-linear cumulative distribution of the weights reaches given values.

    Args:
        edges: [R, S + 1] ascending.
        weights: [R, S], at least 0; filled up to a sum of 1e-5.
        places: [R, K] in [0, 1].

    Returns:
        [R, K].
    """
    total = weights.sum(-1, keepdim=True)
    padding = torch.relu(WEIGHT_FLOOR - total)
    pdf = (weights + padding / weights.shape[-1]) / (total + padding)
    cdf = torch.cumsum(pdf, -1).clamp(max=1.0)
    cdf = torch.cat((torch.zeros_like(cdf[:, :1]), cdf), -1)

    right = torch.searchsorted(cdf, places, right=True)
    left = (right - 1).clamp(0, edges.shape[-1] - 1)
    right = right.clamp(0, edges.shape[-1] - 1)
    cdf_left, cdf_right = cdf.gather(-1, left), cdf.gather(-1, right)
    step = cdf_right - cdf_left
    step = torch.where(step < FLAT_STEP, 1.0, step)
    fraction = ((places - cdf_left) / step).clip(0, 1)
    edge_left, edge_right = edges.gather(-1, left), edges.gather(-1, right)
    return edge_left + fraction * (edge_right - edge_left)
