"""Who is compared: a name, how it is built, and why it may be missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.baselines import adapters
from benchmarks.baselines import ponderv2 as baseline
from benchmarks.baselines.compiled import build_compiled, cannot_compile
from benchmarks.baselines.lightplane import LightplaneModel
from benchmarks.baselines.second_order_trilinear import second_order_trilinear
from benchmarks.cases import RENDER_CASES, RenderCase
from benchmarks.contenders import MODEL_SEED, Renderer
from ponder.compat import ponderv2 as ours

# The one that ratios are taken to, and the one that the others' numbers are compared with.
OURS, TRUTH = "ponder", "eager"


def _always(case: RenderCase, device: str) -> str | None:
    return None


@dataclass(frozen=True)
class Competitor:
    """A renderer that takes part.

    Attributes:
        name, about: short, and one line for the report.
        make: builds it for a case.
        refuses: why it cannot take part on a device ("cpu" or "cuda"); None if it can.
        exact: whether its numbers must be those of the eager baseline.
    """

    name: str
    about: str
    make: Callable[[RenderCase], Renderer]
    refuses: Callable[[RenderCase, str], str | None] = _always
    exact: bool = True

    def build(self, case: RenderCase) -> Renderer:
        """With the same initial parameters as every other."""
        torch.manual_seed(MODEL_SEED)
        return self.make(case)


def _no_compiler(case: RenderCase, device: str) -> str | None:
    if not case.compiled:
        timed = " and ".join(f"`{name}`" for name, other in RENDER_CASES.items() if other.compiled)
        return f"only timed in {timed}: compiling takes most of a minute per case"
    reason = cannot_compile(device)
    return None if reason is None else f"torch.compile fails: {reason}"


def _no_nerfacc(case: RenderCase, device: str) -> str | None:
    return adapters.needs_cuda("nerfacc", device)


def _no_smooth_sampler(case: RenderCase, device: str) -> str | None:
    return adapters.needs_cuda("smooth_sampler", device)


def _no_lightplane(case: RenderCase, device: str) -> str | None:
    if missing := adapters.needs_cuda("lightplane", device):
        return missing
    colour = "rgb_decoder" in case.config()["field"]
    return None if colour else "renders colours, which this case has not"


_COMPETITORS = (
    Competitor(
        OURS,
        "ponder.compat.ponderv2, this project's drop-in",
        lambda case: Renderer(ours.build_renderer(case.config()), ours.RayBundle),
    ),
    Competitor(
        TRUTH,
        "PonderV2's formulas in eager PyTorch: autograd's double backward through torch's grid_sample",
        lambda case: Renderer(baseline.build_renderer(case.config()), baseline.RayBundle),
    ),
    Competitor(
        "eager2",
        "the same with a hand-written sampler that has second derivatives",
        lambda case: Renderer(baseline.build_renderer(case.config(), second_order_trilinear), baseline.RayBundle),
    ),
    Competitor(
        "compiled",
        "eager with torch.compile where PyTorch can; in training not what is differentiated twice",
        lambda case: Renderer(build_compiled(case.config(), case.training), baseline.RayBundle),
        _no_compiler,
    ),
    Competitor(
        "smooth-sampler",
        "eager with the CUDA sampler that PonderV2 uses",
        lambda case: Renderer(
            baseline.build_renderer(case.config(), adapters.smooth_sampler_trilinear), baseline.RayBundle
        ),
        _no_smooth_sampler,
    ),
    Competitor(
        "nerfacc",
        "eager with nerfacc's compositing",
        lambda case: Renderer(adapters.build_nerfacc(case.config()), baseline.RayBundle),
        _no_nerfacc,
    ),
    Competitor(
        "lightplane",
        "Lightplane on the same rays, volume and number of samples; another field, without signed distance",
        lambda case: Renderer(LightplaneModel(case.config(), case.sizes["full"].volume[0]), baseline.RayBundle),
        _no_lightplane,
        exact=False,
    ),
)
COMPETITORS = {competitor.name: competitor for competitor in _COMPETITORS}
