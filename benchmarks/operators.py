"""Contenders of single operators: sampling a volume to second order, compositing along rays."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines import adapters
from benchmarks.baselines.ponderv2.compositing import weighted_sum, weights_from_alpha
from benchmarks.baselines.ponderv2.trilinear import torch_trilinear
from benchmarks.baselines.second_order_trilinear import second_order_trilinear
from benchmarks.cases import COMPOSITE, SAMPLE, CompositeSizes, SampleSizes
from benchmarks.contenders import Contender
from benchmarks.inputs import make_volume
from benchmarks.work import Work, composite_work, sample_work
from ponder_kernels import composite, render_weights, volume_sample

Sampler = Callable[[Tensor, Tensor], Tensor]
Compositor = Callable[[Tensor, Tensor], Tensor]

SAMPLERS: dict[str, Sampler] = {
    "ponder": volume_sample,
    "eager": torch_trilinear,
    "eager2": second_order_trilinear,
    "smooth-sampler": adapters.smooth_sampler_trilinear,
}


class Sampling:
    """Values, their slopes by the points, and the volume's gradient of a loss on both: what an SDF's training needs."""

    def __init__(self, sampler: Sampler, sizes: SampleSizes, device: str) -> None:
        self.sampler = sampler
        g = torch.Generator(device).manual_seed(0)
        self.volume = make_volume(sizes.volume, device, g)
        self.points = torch.empty(1, sizes.points, 3, device=device).uniform_(-1, 1, generator=g).requires_grad_()
        channels = sizes.volume[0]
        self.mix = torch.randn(1, sizes.points, channels, device=device, generator=g)
        self.pull = torch.randn(1, sizes.points, 3, device=device, generator=g)
        self.values = self.slopes = torch.zeros(())

    def reset(self) -> None:
        self.values = self.slopes = torch.zeros(())
        self.volume.grad = None

    def read(self) -> None:
        self.values = self.sampler(self.volume[None], self.points)

    def slope(self) -> None:
        (self.slopes,) = torch.autograd.grad(self.values, self.points, self.mix, create_graph=True)

    def second(self) -> None:
        loss = (self.slopes * self.pull).sum() + (self.values * self.mix).sum()
        (self.volume.grad,) = torch.autograd.grad(loss, self.volume)

    def results(self) -> dict[str, Tensor]:
        assert self.volume.grad is not None
        return {
            "output values": self.values.detach(),
            "output slopes": self.slopes.detach(),
            "gradient volume": self.volume.grad.clone(),
        }

    def contender(self) -> Contender:
        """Its three parts."""
        parts = {"values": self.read, "slopes": self.slope, "second": self.second}
        return Contender(self.reset, parts, self.results, saves="values")


def _ours(alpha: Tensor, values: Tensor) -> Tensor:
    return composite(render_weights(alpha).weights, values)


def _plain(alpha: Tensor, values: Tensor) -> Tensor:
    return weighted_sum(values, weights_from_alpha(alpha[..., None]))


def _nerfacc(alpha: Tensor, values: Tensor) -> Tensor:
    import nerfacc

    rays, count = alpha.shape
    where = adapters.ray_indices(rays, count, alpha.device)
    weights, _ = nerfacc.render_weight_from_alpha(alpha.reshape(-1), ray_indices=where, n_rays=rays)
    return nerfacc.accumulate_along_rays(weights, values.reshape(rays * count, -1), where, rays)


COMPOSITORS: dict[str, Compositor] = {"ponder": _ours, "eager": _plain, "nerfacc": _nerfacc}


class Compositing:
    """Opacities and values of samples to one row per ray, and back."""

    def __init__(self, compositor: Compositor, sizes: CompositeSizes, device: str) -> None:
        self.compositor = compositor
        g = torch.Generator(device).manual_seed(0)
        shape = (sizes.rays, sizes.samples)
        # Mostly clear, with something opaque along most rays.
        self.alpha = (torch.rand(shape, device=device, generator=g) ** 8).requires_grad_()
        self.values = torch.randn(*shape, sizes.channels, device=device, generator=g).requires_grad_()
        self.upstream = torch.randn(sizes.rays, sizes.channels, device=device, generator=g)
        self.pixels = torch.zeros(())

    def reset(self) -> None:
        self.pixels = torch.zeros(())
        self.alpha.grad = self.values.grad = None

    def forward(self) -> None:
        self.pixels = self.compositor(self.alpha, self.values)

    def backward(self) -> None:
        self.pixels.backward(self.upstream)

    def results(self) -> dict[str, Tensor]:
        assert self.alpha.grad is not None and self.values.grad is not None
        return {
            "output pixels": self.pixels.detach(),
            "gradient alpha": self.alpha.grad.clone(),
            "gradient values": self.values.grad.clone(),
        }

    def contender(self) -> Contender:
        """Its two parts."""
        return Contender(self.reset, {"forward": self.forward, "backward": self.backward}, self.results)


@dataclass(frozen=True)
class Operator:
    """One of the suite's operators.

    Attributes:
        title: in words.
        sizes: one entry for each of cases.SIZES.
        competitors: those that have it.
        contender: of a competitor, sizes and a device.
        work: of sizes.
    """

    title: str
    sizes: Mapping[str, Any]
    competitors: Collection[str]
    contender: Callable[[str, Any, str], Contender]
    work: Callable[[Any], Work]


OPERATORS = {
    "volume-sample": Operator(
        "sampling a volume, to second order",
        SAMPLE,
        SAMPLERS,
        lambda name, sizes, device: Sampling(SAMPLERS[name], sizes, device).contender(),
        sample_work,
    ),
    "composite": Operator(
        "weights and weighted sums along rays",
        COMPOSITE,
        COMPOSITORS,
        lambda name, sizes, device: Compositing(COMPOSITORS[name], sizes, device).contender(),
        composite_work,
    ),
}


def refuses(name: str, device: str) -> str | None:
    """Why an operator's competitor cannot take part; None if it can."""
    library = {"smooth-sampler": "smooth_sampler", "nerfacc": "nerfacc"}.get(name)
    return None if library is None else adapters.needs_cuda(library, device)
