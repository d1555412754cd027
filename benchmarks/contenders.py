"""A competitor at work on a case: what is timed, in parts, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import RenderCase
from benchmarks.inputs import Inputs

# Every competitor draws the same random numbers in every round.
SEED = 1
# Parameters start from the same numbers in every renderer.
MODEL_SEED = 0


@dataclass(frozen=True)
class Contender:
    """Something that can be timed.

    Attributes:
        reset: drops what the last round left; not timed.
        parts: name -> work, run in this order; later parts use what earlier ones made.
        results: everything that came out of the last round, detached, by name.
        saves: of the parts, the one that keeps tensors for a backward pass.
    """

    reset: Callable[[], None]
    parts: Mapping[str, Callable[[], None]]
    results: Callable[[], dict[str, Tensor]]
    saves: str = "forward"


@dataclass(frozen=True)
class Renderer:
    """A renderer with PonderV2's calls.

    Attributes:
        model: `model(bundle, [volume])` gives a dictionary of predictions, `model.get_loss(predictions, targets)` one
            of terms.
        bundle: makes the rays, of origins and directions [R, 3].
    """

    model: Any
    bundle: Callable[[Tensor, Tensor], Any]


class _Rendering:
    """What the contenders of whole renderers have in common."""

    def __init__(self, renderer: Renderer, case: RenderCase, inputs: Inputs) -> None:
        self.case, self.inputs = case, inputs
        # Device and dtype.
        self.model = renderer.model.to(inputs.origins).train(case.training)
        chunk = inputs.origins.shape[1] if case.training else case.chunk
        rays = zip(inputs.origins, inputs.directions, strict=True)
        self.bundles = [
            [renderer.bundle(*part) for part in zip(o.split(chunk), d.split(chunk), strict=True)] for o, d in rays
        ]
        self.preds: dict[str, Tensor] = {}

    def reset(self) -> None:
        self.preds = {}
        for leaf in (*self.inputs.volumes, *self.model.parameters()):
            leaf.grad = None
        torch.manual_seed(SEED)

    def render(self) -> dict[str, Tensor]:
        """Scenes one after the other, as PonderV2 does; their predictions side by side."""
        scenes = zip(self.bundles, self.inputs.volumes, strict=True)
        return _joined([self.model(part, [volume]) for bundles, volume in scenes for part in bundles])


class TrainingStep(_Rendering):
    """Rendering and losses forwards, then backwards."""

    def __init__(self, renderer: Renderer, case: RenderCase, inputs: Inputs) -> None:
        super().__init__(renderer, case, inputs)
        self.losses: dict[str, Tensor] = {}

    def reset(self) -> None:
        super().reset()
        self.losses = {}

    def forward(self) -> None:
        self.preds = self.render()
        self.losses = self.model.get_loss(self.preds, self.inputs.targets)

    def backward(self) -> None:
        # A term without any valid ray has shape [1].
        terms = [term.sum() for name, term in self.losses.items() if "loss" in name]
        torch.stack(terms).sum().backward()

    def results(self) -> dict[str, Tensor]:
        found = {f"output {name}": value.detach() for name, value in self.preds.items()}
        found |= {f"loss {name}": value.detach() for name, value in self.losses.items()}
        leaves = {f"volume {k}": v for k, v in enumerate(self.inputs.volumes)} | dict(self.model.named_parameters())
        found |= {f"gradient {name}": v.grad.clone() for name, v in leaves.items() if v.grad is not None}
        return found


class ImageRendering(_Rendering):
    """Evaluation without gradients, some rays at a time; only images are kept, as PonderV2's evaluation does."""

    @torch.no_grad()
    def forward(self) -> None:
        scenes = zip(self.bundles, self.inputs.volumes, strict=True)
        parts = [self._images(part, volume) for bundles, volume in scenes for part in bundles]
        self.preds = _joined(parts)

    def _images(self, bundle: Any, volume: Tensor) -> dict[str, Tensor]:
        preds = self.model(bundle, [volume])
        return {name: preds[name] for name in ("rgb", "depth", "normal", "semantic") if name in preds}

    def results(self) -> dict[str, Tensor]:
        return {f"output {name}": value.detach() for name, value in self.preds.items()}


def render_contender(renderer: Renderer, case: RenderCase, inputs: Inputs) -> Contender:
    """The step, or the image, of a renderer."""
    if case.training:
        step = TrainingStep(renderer, case, inputs)
        return Contender(step.reset, {"forward": step.forward, "backward": step.backward}, step.results)
    image = ImageRendering(renderer, case, inputs)
    return Contender(image.reset, {"forward": image.forward}, image.results)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
