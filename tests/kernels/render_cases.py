"""Small generated fields and rays for the tests of `sdf_field` and `render_rays`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ponder_kernels import FieldWeights, HeadWeights, Layer, Normalisation, RayTargets, RenderedRays
from ponder_kernels.sdf_field.chain import flatten, rebuild

# PonderV2's map from its cube to the unit cube of the volume.
UNIT_CUBE = Normalisation(1 / 1.101, 0.5, 0.0, 0.999)


@dataclass(frozen=True)
class Shape:
    """Sizes and options of a case; `options` go to `render_rays`."""

    batch: int = 2
    rays: int = 9
    samples: int = 5
    volume: tuple[int, int, int] = (4, 6, 5)
    volumes: int = 1
    channels: int = 7
    sdf_channels: int = 4
    sdf_hidden: tuple[int, ...] = (6,)
    geometry: int = 3
    colour_hidden: tuple[int, ...] = ()
    semantic_hidden: tuple[int, ...] | None = ()
    semantic_outputs: int = 5
    shared: bool = False
    points: bool = False
    hit: bool = True
    sharpness: float = 7.0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """Channels that the SDF decoder reads."""
        return self.volumes * (self.channels if self.shared else self.sdf_channels)

    @property
    def second(self) -> int:
        """Channels that the heads read."""
        return self.first if self.shared else self.volumes * (self.channels - self.sdf_channels)


class Case(NamedTuple):
    """Inputs of one call; `leaves` are all differentiable tensors: volumes, decoders, sharpness."""

    shape: Shape
    volumes: list[Tensor]
    field: FieldWeights
    sharpness: Tensor
    rays: tuple[Tensor, Tensor, Tensor]
    box: Tensor
    hit: Tensor | None
    targets: RayTargets

    @property
    def leaves(self) -> list[Tensor]:
        """Differentiable tensors in a fixed order."""
        return [*self.volumes, *weights_of(self.field), self.sharpness]

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `render_rays`."""
        origins, directions, edges = self.rays
        return {
            "volume": self.volumes,
            "field": self.field,
            "origins": origins,
            "directions": directions,
            "edges": edges,
            "sharpness": self.sharpness,
            "box": self.box,
            "hit": self.hit,
            "targets": self.targets,
            **self.shape.options,
        }

    def call(self, function: Any, **options: Any) -> RenderedRays:
        """`render_rays` or its reference on this case."""
        return function(**{**self.arguments(), **options})


def weights_of(field: FieldWeights) -> list[Tensor]:
    """The decoders' tensors."""
    return flatten((field.sdf, tuple(head.layers for head in field.heads)))


def make_case(shape: Shape | None = None, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Case:
    """A case with the same numbers in every dtype."""
    s = replace(shape or Shape(), **changes)
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 0.5) -> Tensor:
        drawn = torch.randn(size, generator=generator, dtype=torch.float64) * scale
        return drawn.to(dtype).requires_grad_()

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    def chain(inputs: int, hidden: tuple[int, ...], outputs: int) -> tuple[Layer, ...]:
        layers, before = [], None
        for width in (*hidden, outputs):
            through = None if before is None else normal(width, before)
            layers.append(Layer(through, normal(width, inputs), normal(width, scale=0.05)))
            before = width
        return tuple(layers)

    extra = 3 * s.points
    volumes = [normal(s.batch, s.channels, *s.volume) for _ in range(s.volumes)]
    seen = 3 + s.second + s.geometry
    heads = [HeadWeights(chain(seen + 3 + extra, s.colour_hidden, 3), directed=True, sigmoid=True)]
    if s.semantic_hidden is not None:
        heads.append(HeadWeights(chain(seen + extra, s.semantic_hidden, s.semantic_outputs)))
    sdf = chain(s.first + extra, s.sdf_hidden, 1 + s.geometry)
    normalised = "normalise" in s.options
    low, high = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) if normalised else ((-0.6, -0.5, -0.55), (0.5, 0.6, 0.55))
    box = torch.tensor([low, high], dtype=torch.float64).expand(s.batch, 2, 3)
    directions = torch.nn.functional.normalize(uniform(s.batch, s.rays, 3) - 0.5, dim=-1)
    edges = uniform(s.batch, s.rays, s.samples + 1).cumsum(-1) * 0.2
    if s.rays > 1:
        edges[0, 1] = 0  # a ray of no length, as PonderV2 makes of missed ones
    hit = uniform(s.batch, s.rays) > 0.2 if s.hit else None
    if hit is not None and s.rays > 2:
        hit[0, 2] = False
    depth = uniform(s.batch, s.rays) * (uniform(s.batch, s.rays) > 0.2)
    slope = uniform(s.batch, s.rays) * 0.5 + 0.5
    bundle = ((uniform(s.batch, s.rays, 3) - 0.5) * 1.2).to(dtype), directions.to(dtype), edges.to(dtype)
    targets = RayTargets(depth.to(dtype), slope.to(dtype), 0.1)
    sharpness = torch.tensor(s.sharpness, dtype=dtype, requires_grad=True)
    return Case(
        s, volumes, FieldWeights(sdf, tuple(heads), s.shared, s.points), sharpness, bundle, box.to(dtype), hit, targets
    )


def with_leaves(case: Case, leaves: list[Tensor]) -> Case:
    """The case with other differentiable tensors, in the order of `Case.leaves`."""
    n = len(case.volumes)
    chains = (case.field.sdf, tuple(head.layers for head in case.field.heads))
    sdf, heads = rebuild(chains, iter(leaves[n:-1]))
    layered = tuple(head._replace(layers=layers) for head, layers in zip(case.field.heads, heads, strict=True))
    field = case.field._replace(sdf=sdf, heads=layered)
    return case._replace(volumes=leaves[:n], field=field, sharpness=leaves[-1])


def values_of(rendered: RenderedRays) -> dict[str, Tensor]:
    """All outputs by name."""
    out = {f"head {k}": head for k, head in enumerate(rendered.heads)}
    out |= {name: getattr(rendered, name) for name in RenderedRays._fields[1:-1]}
    if rendered.samples is not None:
        out |= {f"sample {name}": value for name, value in rendered.samples._asdict().items()}
    return out


def gradients(rendered: RenderedRays, case: Case, seed: int = 1) -> tuple[Tensor, ...]:
    """Derivatives of a fixed random combination of all outputs by all leaves."""
    generator = torch.Generator().manual_seed(seed)
    loss = sum(
        (value * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)).sum()
        for value in values_of(rendered).values()
    )
    found = torch.autograd.grad(loss, case.leaves, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, case.leaves, strict=True))
