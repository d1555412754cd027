"""The inputs of ``python -m ponder_kernels.selftest``: every operator with the options that change its arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import ponder_kernels as pk

# Of the matrix products on a GPU, and how much coarser their operands are than float32; torch operations ignore it.
# AMD's tensor cores have no products of three tf32 ones.
EXACT = "tf32x3" if torch.version.hip is None else "ieee"
PRECISIONS = ((EXACT, 16.0), ("tf32", 256.0))


@dataclass(frozen=True)
class Case:
    """One operator with one choice of options.

    Attributes:
        operator, options: for the table.
        call: takes the tensors by name and `backend`.
        tensors: float32 (or half) inputs on the CPU.
        differentiable: names of the inputs whose gradients are compared.
        second_order: whether derivatives of gradients are compared.
        condition: how much the operation amplifies rounding errors.
    """

    operator: str
    options: str
    call: Callable[..., Any]
    tensors: Mapping[str, Tensor]
    differentiable: tuple[str, ...] = ()
    second_order: bool = True
    condition: float = 1.0
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def outputs(self, tensors: Mapping[str, Tensor], backend: str) -> list[Tensor]:
        """Floating-point outputs of one call."""
        out = self.call(**tensors, **self.fixed, backend=backend)
        found = (out,) if isinstance(out, Tensor) else tuple(out)
        return [t for t in found if isinstance(t, Tensor) and t.is_floating_point()]


def _uniform(seed: int, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator)


def _volume_cases() -> list[Case]:
    volume, points = _uniform(0, 2, 5, 6, 7, 8), _uniform(1, 2, 301, 3, low=-1.2, high=1.2)
    found = []
    for padding in ("zeros", "border", "reflection"):
        for align_corners, smoothstep in ((True, False), (False, False), (True, True)):
            fixed = {"padding": padding, "align_corners": align_corners, "smoothstep": smoothstep}
            label = padding + (", corners" if align_corners else ", faces") + (", smoothstep" if smoothstep else "")
            tensors = {"volume": volume, "points": points}
            found.append(
                Case("volume_sample", label, pk.volume_sample, tensors, tuple(tensors), fixed=fixed, condition=8)
            )
    for dtype in (torch.float16, torch.bfloat16):
        tensors = {"volume": volume.to(dtype), "points": points}
        label = f"{str(dtype).removeprefix('torch.')} volume"
        found.append(Case("volume_sample", label, pk.volume_sample, tensors, tuple(tensors), condition=8))
    return found


def _density_cases() -> list[Case]:
    sdf, cosine = _uniform(2, 31, 33, low=-0.3, high=0.3), _uniform(3, 31, 33)
    delta = _uniform(4, 31, 33, low=0.0, high=0.2)
    neus = {"sdf": sdf, "cosine": cosine, "delta": delta, "inv_s": torch.tensor(20.0)}
    laplace = {"sdf": sdf, "beta": torch.tensor(0.1)}
    density = {"density": 20 + 20 * cosine, "delta": delta}
    return [
        *(
            Case(
                "neus_alpha",
                f"ratio {r}",
                pk.neus_alpha,
                neus,
                tuple(neus),
                fixed={"cos_anneal_ratio": r},
                condition=16,
            )
            for r in (0.0, 0.5, 1.0)
        ),
        Case("laplace_density", "", pk.laplace_density, laplace, tuple(laplace), condition=16),
        Case("alpha_from_density", "", pk.alpha_from_density, density, tuple(density), condition=16),
    ]


def _composite_cases() -> list[Case]:
    alpha = _uniform(5, 23, 37, low=0.0, high=0.2)
    alpha[0, :3], alpha[1, :3] = 0.0, 1.0
    offsets = torch.tensor([0, 0, 1, 40, 41, 500, 851])
    batched = {"weights": alpha, "values": _uniform(6, 23, 37, 5), "background": _uniform(7, 23, 5)}
    packed = {"weights": alpha.flatten(), "values": _uniform(6, 851, 5), "background": _uniform(7, 6, 5)}
    differentiable = tuple(batched)

    def with_offsets(operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            device = next(v.device for v in arguments.values() if isinstance(v, Tensor))
            return operator(**arguments, ray_offsets=offsets.to(device))

        return call

    row, flat = {"alpha": alpha}, {"alpha": alpha.flatten()}
    weights = with_offsets(pk.render_weights)
    return [
        Case("render_weights", "batched", pk.render_weights, row, ("alpha",), condition=16),
        Case(
            "render_weights", "early stop", pk.render_weights, row, ("alpha",), fixed={"early_stop": 0.1}, condition=16
        ),
        Case("render_weights", "packed", weights, flat, ("alpha",), fixed={"eps": 0.0}, condition=16),
        Case("composite", "batched", pk.composite, batched, differentiable),
        Case("composite", "packed", with_offsets(pk.composite), packed, differentiable),
    ]


def _sampling_cases() -> list[Case]:
    directions = torch.nn.functional.normalize(_uniform(8, 211, 3), dim=-1)
    box = torch.tensor([[-0.5, -0.6, -0.7], [0.8, 0.7, 0.6]])
    rays = {"origins": _uniform(9, 211, 3, low=-0.4, high=0.5), "directions": directions, "box": box}
    near = _uniform(10, 53, low=0.1, high=0.5)
    ends = {"near": near, "far": near + _uniform(11, 53, low=0.5, high=4.0)}
    edges = _uniform(12, 53, 20).cumsum(-1).sort(-1).values
    histogram = {"edges": edges, "weights": _uniform(13, 53, 19, low=0.0)}
    pair = {"first": edges, "second": _uniform(14, 53, 7, low=-3, high=3).sort(-1).values}
    return [
        Case("intersect_aabb", "", pk.intersect_aabb, rays, tuple(rays), condition=16),
        *(
            Case(
                "stratified_edges",
                spacing,
                pk.stratified_edges,
                ends,
                ("near", "far"),
                fixed={"count": 24, "spacing": spacing},
                # The second derivative of the square root's map is a difference of nearly equal terms.
                condition=64 if spacing == "sqrt" else 16,
            )
            for spacing in ("uniform", "disparity", "sqrt", "log", "piecewise")
        ),
        Case("resample_edges", "", pk.resample_edges, histogram, fixed={"count": 31}, condition=16),
        Case("merge_edges", "", pk.merge_edges, pair, ("first", "second")),
    ]


def _field_cases() -> list[Case]:
    tensors = {
        "volume": _uniform(15, 1, 8, 6, 7, 8),
        "hidden": _uniform(16, 12, 4, low=-0.3, high=0.3),
        "through": _uniform(17, 3, 12),
        "linear": _uniform(18, 3, 4),
        "colour": _uniform(19, 3, 12),
        "sharpness": torch.tensor(10.0),
    }
    directions = torch.nn.functional.normalize(_uniform(20, 1, 40, 3), dim=-1)
    fixed = {"directions": directions, "origins": _uniform(21, 1, 40, 3, low=-0.3, high=0.3)}
    box = torch.tensor([[[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]])

    def layers(t: Mapping[str, Tensor]) -> tuple[pk.Layer, ...]:
        first = pk.Layer(None, t["hidden"], t["hidden"].new_zeros(12))
        return first, pk.Layer(t["through"], t["linear"], t["linear"].new_zeros(3))

    def field(backend: str, precision: str, **t: Tensor) -> Any:
        like = t["volume"]
        points = fixed["origins"].to(like) * 3
        return pk.sdf_field(like, layers(t), points, box.to(like), backend=backend, precision=precision)

    def rendered(opacity: str) -> Callable[..., Any]:
        def call(backend: str, precision: str, **t: Tensor) -> Any:
            like = t["volume"]
            head = pk.HeadWeights((pk.Layer(None, t["colour"], like.new_zeros(3)),), directed=True, sigmoid=True)
            origins, along = fixed["origins"].to(like), fixed["directions"].to(like)
            edges = pk.stratified_edges(like.new_full((1, 40), 0.05), like.new_full((1, 40), 1.2), 16, backend="torch")
            found = pk.render_rays(
                like,
                pk.FieldWeights(layers(t), (head,)),
                origins,
                along,
                edges,
                t["sharpness"],
                box.to(like),
                opacity=opacity,
                backend=backend,
                precision=precision,
            )
            return (*found.heads, *found[1:4], found.eikonal)

        return call

    decoder = {k: v for k, v in tensors.items() if k not in ("colour", "sharpness")}
    found = []
    for precision, condition in PRECISIONS:
        options: dict[str, Any] = {"second_order": False, "condition": condition, "fixed": {"precision": precision}}
        found.append(Case("sdf_field", precision, field, decoder, tuple(decoder), **options))
        found += [
            Case("render_rays", f"{model}, {precision}", rendered(model), tensors, tuple(tensors), **options)
            for model in ("neus", "volsdf")
        ]
    return found


def cases() -> list[Case]:
    """Every check, in the order of the table."""
    return [*_volume_cases(), *_density_cases(), *_composite_cases(), *_sampling_cases(), *_field_cases()]
