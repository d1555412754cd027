"""The eager baseline costs what PonderV2 costs: counted while it runs, not read from its configuration."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.cases import RENDER_CASES, Sizes
from benchmarks.competitors import COMPETITORS
from benchmarks.contenders import Contender, Renderer, TrainingStep
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.measure import saved_bytes

CASE = RENDER_CASES["indoor"]
RAYS = 48
# Of PonderV2's own code on its indoor configuration with all losses: MFLOP of matrix products and bytes kept by
# autograd, per ray.
PUBLISHED_MFLOPS, PUBLISHED_SAVED = 155.0, 1220e3
WITHIN = 0.1


def indoor(name: str, rays: int = RAYS) -> tuple[Renderer, TrainingStep, Inputs]:
    """The published configuration in a volume that is small, since it is not what rays cost."""
    sizes = Sizes((128, 4, 8, 8), 1, 1, rays, rounds=1)
    renderer, inputs = COMPETITORS[name].build(CASE), make_inputs(CASE, sizes, "cpu")
    return renderer, TrainingStep(renderer, CASE, inputs), inputs


class _Products(TorchDispatchMode):
    """Counts the FLOPs of matrix products and remembers the shapes of what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
            self.shapes.append(tuple(out.shape))
        return out


def test_every_sample_is_decoded_and_every_pair_of_rays_contrasted() -> None:
    renderer, step, _ = indoor("eager")
    seen: dict[str, list[tuple[int, ...]]] = {}
    for name in ("sdf_decoder", "rgb_decoder", "semantic_decoder"):
        decoder = renderer.model.field.get_submodule(name)
        decoder.register_forward_hook(
            lambda module, inputs, out, name=name: seen.setdefault(name, []).append(tuple(out.shape))
        )
    with _Products() as products:
        step.forward()
    # The sampler's 96, then all 132; 512-wide embeddings for each.
    assert seen["sdf_decoder"] == [(RAYS, 96, 65), (RAYS, 132, 65)]
    assert seen["rgb_decoder"] == [(RAYS, 132, 3)] and seen["semantic_decoder"] == [(RAYS, 132, 512)]
    assert (RAYS, RAYS) in products.shapes
    assert (RAYS * 132, 512) in products.shapes


@pytest.mark.parametrize("name", ["eager", "eager2"])
def test_matrix_products_of_a_step(name: str) -> None:
    _, step, _ = indoor(name)
    with _Products() as products:
        step.forward()
        step.backward()
    assert products.flops / RAYS / 1e6 == pytest.approx(PUBLISHED_MFLOPS, rel=WITHIN)


@pytest.mark.parametrize("name", ["eager", "eager2"])
def test_bytes_kept_for_the_backward_pass(name: str) -> None:
    renderer, step, inputs = indoor(name)
    contender = Contender(step.reset, {"forward": step.forward}, step.results)
    found = saved_bytes(contender, [*inputs.own(), *renderer.model.parameters()]) / RAYS
    assert found == pytest.approx(PUBLISHED_SAVED, rel=WITHIN)


def test_pairs_of_rays_are_kept_too() -> None:
    """What the contrastive loss keeps grows with the square of the rays."""
    kept = []
    for rays in (64, 128, 256):
        model = COMPETITORS["eager"].build(CASE).model
        preds = {
            "semantic": torch.randn(rays, 512, requires_grad=True), "depth": torch.rand(rays, 1),
            "rgb": torch.rand(rays, 3), "sdf": torch.rand(rays, 1, 1), "z_vals": torch.rand(rays, 1, 1),
            "gradients": torch.rand(rays, 1, 3),
        }  # fmt: skip
        targets = make_inputs(CASE, replace(CASE.sizes["tiny"], views=1, rays=rays), "cpu").targets
        forward = functools.partial(model.get_loss, preds, targets)
        loss = Contender(lambda: None, {"forward": forward}, dict)
        kept.append(saved_bytes(loss, [*preds.values(), *targets.values()]))
    # Of a R + b R^2 this leaves 2 b R^2 at R = 64 and 128: one float a pair.
    squares = [b - 2 * a for a, b in itertools.pairwise(kept)]
    assert squares == pytest.approx([2 * 64**2 * 4, 2 * 128**2 * 4], rel=0.01)


def test_the_drop_in_keeps_a_hundredth() -> None:
    renderer, step, inputs = indoor("ponder", rays=512)
    contender = Contender(step.reset, {"forward": step.forward}, step.results)
    found = saved_bytes(contender, [*inputs.own(), *renderer.model.parameters()]) / 512
    assert found < PUBLISHED_SAVED / 100
