"""First samples along rays: even in distance, or in some function of distance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.baselines.ponderv2.rays import RayBundle, RaySamples

TensorMap = Callable[[Tensor], Tensor]


class SpacedSampler(nn.Module):
    """Samples even in f(distance), jittered in training.

    S + 1 edges ``e`` split [0, 1] evenly. In training each is drawn uniformly between the mid-points of its
    neighbours (the outer two between their own place and the nearest mid-point). Distances are
    ``f^-1(e f(far) + (1 - e) f(near))``.

    Args:
        spacing, inverse: f and its inverse. Where f is infinite (1/x and log at near = 0, as on a missed ray) the outer
            edges are NaN without jitter.
        num_samples: S, unless the call says otherwise.
        train_stratified: jitter in training.
        single_jitter: one random number per ray instead of one per edge.
    """

    def __init__(
        self,
        spacing: TensorMap,
        inverse: TensorMap,
        num_samples: int | None = None,
        train_stratified: bool = True,
        single_jitter: bool = False,
    ) -> None:
        super().__init__()
        self.spacing = spacing
        self.inverse = inverse
        self.num_samples = num_samples
        self.train_stratified = train_stratified
        self.single_jitter = single_jitter

    def forward(self, rays: RayBundle, num_samples: int | None = None) -> RaySamples:
        """Samples between the limits of the rays, `num_samples` instead of the sampler's own number if given."""
        count = num_samples or self.num_samples
        if count is None:
            raise ValueError("num_samples is neither set in the sampler nor given in the call")
        nears, fars = rays.limits()
        f_near, f_far = self.spacing(nears), self.spacing(fars)

        def to_euclidean(edges: Tensor) -> Tensor:
            return self.inverse(edges * f_far + (1 - edges) * f_near)

        edges = torch.linspace(0.0, 1.0, count + 1, dtype=nears.dtype, device=nears.device).expand(len(nears), -1)
        if self.train_stratified and self.training:
            jitter = torch.rand(
                (len(nears), 1 if self.single_jitter else count + 1), dtype=nears.dtype, device=nears.device
            )
            middle = (edges[:, 1:] + edges[:, :-1]) / 2.0
            lower = torch.cat((edges[:, :1], middle), -1)
            upper = torch.cat((middle, edges[:, -1:]), -1)
            edges = lower + (upper - lower) * jitter
        return RaySamples(rays.origins, rays.directions, to_euclidean(edges), edges, to_euclidean)


def _identity(x: Tensor) -> Tensor:
    return x


def _reciprocal(x: Tensor) -> Tensor:
    return 1 / x


def _piecewise(x: Tensor) -> Tensor:
    return torch.where(x < 1, x / 2, 1 - 1 / (2 * x))


def _piecewise_inverse(x: Tensor) -> Tensor:
    return torch.where(x < 0.5, 2 * x, 1 / (2 - 2 * x))


SPACINGS: dict[str, tuple[TensorMap, TensorMap]] = {
    "UniformSampler": (_identity, _identity),
    "LinearDisparitySampler": (_reciprocal, _reciprocal),
    "SqrtSampler": (torch.sqrt, torch.square),
    "LogSampler": (torch.log, torch.exp),
    # Even in distance up to 1, even in disparity beyond.
    "UniformLinDispPiecewiseSampler": (_piecewise, _piecewise_inverse),
}


def spaced_sampler(
    name: str, num_samples: int | None = None, train_stratified: bool = True, single_jitter: bool = False
) -> SpacedSampler:
    """The spaced sampler that PonderV2 calls `name`."""
    if name not in SPACINGS:
        raise ValueError(f"initial_sampler is {name!r}; known: {', '.join(SPACINGS)}")
    return SpacedSampler(*SPACINGS[name], num_samples, train_stratified, single_jitter)
