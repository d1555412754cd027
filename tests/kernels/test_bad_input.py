"""Bad input to every operator is refused by name before anything is computed or allocated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ponder_kernels as pk
from tests.kernels.render_cases import make_case


class NothingRuns(TorchDispatchMode):
    """Fails at the first tensor operation."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} ran before the input was refused")


VOLUME, POINTS = torch.zeros(2, 3, 4, 4, 4), torch.zeros(2, 5, 3)
X, ONE = torch.zeros(2, 3), torch.ones(1)
VALUES, BACKGROUND, OFFSETS = torch.zeros(2, 3, 4), torch.zeros(2, 4), torch.tensor([0, 3, 6])
PACKED, PACKED_VALUES = torch.zeros(6), torch.zeros(6, 4)
RAYS, BOX, EDGES = torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4)
META = torch.zeros(2, 3, device="meta")

RANK, DTYPE, DEVICE, BATCH, SIZE, KIND = "rank", "dtype mix", "device mix", "batch", "size", "integers"
CASES = {
    pk.volume_sample: [
        (RANK, (VOLUME[0], POINTS), {}, "volume"),
        (RANK, (VOLUME, POINTS[0]), {}, "points"),
        (DTYPE, (VOLUME, POINTS.half()), {}, "points"),
        (DEVICE, (VOLUME, POINTS.to("meta")), {}, "points"),
        (BATCH, (VOLUME, POINTS[:1]), {}, "points"),
        (SIZE, (VOLUME[:, :, :0], POINTS), {}, "volume"),
        (KIND, (VOLUME.int(), POINTS), {}, "volume"),
    ],
    pk.neus_alpha: [
        (RANK, (X, X[0], X, ONE), {}, "cosine"),
        (DTYPE, (X, X.double(), X, ONE), {}, "cosine"),
        (DEVICE, (X, X, META, ONE), {}, "delta"),
        (BATCH, (X, X, X[:1], ONE), {}, "delta"),
        (SIZE, (X, X, X, X), {}, "inv_s"),
        (KIND, (X.int(), X, X, ONE), {}, "sdf"),
    ],
    pk.laplace_density: [
        (DTYPE, (X, ONE.double()), {}, "beta"),
        (DEVICE, (META, ONE), {}, "beta"),
        (SIZE, (X, X), {}, "beta"),
        (KIND, (X.long(), ONE), {}, "sdf"),
    ],
    pk.alpha_from_density: [
        (RANK, (X, X[0]), {}, "delta"),
        (DTYPE, (X, X.double()), {}, "delta"),
        (DEVICE, (X, META), {}, "delta"),
        (BATCH, (X, X[:1]), {}, "delta"),
        (KIND, (X.long(), X), {}, "density"),
    ],
    pk.render_weights: [
        (RANK, (X[0],), {}, "alpha"),
        (RANK, (X,), {"ray_offsets": OFFSETS}, "alpha"),
        (DEVICE, (PACKED,), {"ray_offsets": OFFSETS.to("meta")}, "ray_offsets"),
        (SIZE, (X,), {"eps": -1.0}, "eps"),
        (SIZE, (X,), {"early_stop": 1.5}, "early_stop"),
        (KIND, (X.int(),), {}, "alpha"),
        (KIND, (PACKED,), {"ray_offsets": OFFSETS.float()}, "ray_offsets"),
    ],
    pk.composite: [
        (RANK, (X, VALUES[0]), {}, "values"),
        (RANK, (PACKED, VALUES), {"ray_offsets": OFFSETS}, "values"),
        (DEVICE, (X, VALUES.to("meta")), {}, "values"),
        (BATCH, (X, VALUES[:1]), {}, "values"),
        (BATCH, (X, VALUES, BACKGROUND[:1]), {}, "background"),
        (BATCH, (PACKED, PACKED_VALUES[:5]), {"ray_offsets": OFFSETS}, "values"),
        (KIND, (X, VALUES.int()), {}, "values"),
    ],
    pk.intersect_aabb: [
        (RANK, (RAYS, RAYS, BOX[0]), {}, "box"),
        (DTYPE, (RAYS, RAYS.double(), BOX), {}, "directions"),
        (DEVICE, (RAYS, META, BOX), {}, "directions"),
        (BATCH, (RAYS, RAYS[:, :2], BOX), {}, "directions"),
        (KIND, (RAYS.int(), RAYS, BOX), {}, "origins"),
    ],
    pk.stratified_edges: [
        (RANK, (X, X[0], 4), {}, "far"),
        (DTYPE, (X, X.double(), 4), {}, "far"),
        (DEVICE, (X, META, 4), {}, "far"),
        (SIZE, (X, X, 0), {}, "count"),
        (SIZE, (X, X, -3), {}, "count"),
        (SIZE, (X, X, 4, torch.zeros(2, 3, 4)), {}, "jitter"),
        (KIND, (X.int(), X, 4), {}, "near"),
    ],
    pk.resample_edges: [
        (RANK, (EDGES, X[0], 4), {}, "weights"),
        (DTYPE, (EDGES, X.double(), 4), {}, "weights"),
        (DEVICE, (EDGES, META, 4), {}, "weights"),
        (BATCH, (EDGES, X[:1], 4), {}, "weights"),
        (SIZE, (EDGES, X, -1), {}, "count"),
        (KIND, (EDGES.int(), X, 4), {}, "edges"),
    ],
    pk.merge_edges: [
        (DTYPE, (EDGES, X.double()), {}, "second"),
        (DEVICE, (EDGES, META), {}, "second"),
        (BATCH, (EDGES, X[:1]), {}, "second"),
        (KIND, (EDGES.int(), X), {}, "first"),
    ],
}
CALLS = [(operator, *case) for operator, cases in CASES.items() for case in cases]


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize(
    ("operator", "fault", "arguments", "options", "name"),
    CALLS,
    ids=[f"{operator.__name__}-{fault}-{name}".replace(" ", "-") for operator, fault, _, _, name in CALLS],
)
def test_is_refused_before_anything_runs(operator, fault, arguments, options, name, backend) -> None:
    with NothingRuns(), pytest.raises((TypeError, ValueError), match=rf"^{name}: expected"):
        operator(*arguments, **options, backend=backend)


@pytest.mark.parametrize("operator", list(CASES), ids=lambda f: f.__name__)
def test_wrong_type(operator) -> None:
    _, arguments, _, _ = CASES[operator][0]
    with NothingRuns(), pytest.raises(TypeError, match=r"expected a torch\.Tensor, got list"):
        operator([1.0], *arguments[1:])


FIELD = make_case(dtype=torch.float32)
LAYERS = FIELD.field.sdf


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"volume": FIELD.volumes[0][0]}, "volume"),
        ({"volume": FIELD.volumes[0].int()}, "volume"),
        ({"points": torch.zeros(2, 4, 3).half()}, "points"),
        ({"points": torch.zeros(2, 4, 3, device="meta")}, "points"),
        ({"points": torch.zeros(1, 4, 3)}, "points"),
        ({"layers": (LAYERS[0]._replace(bias=torch.zeros(1)),)}, r"layers\[0\].bias"),
        ({"layers": (LAYERS[0]._replace(inputs=torch.zeros(6, 99)),)}, r"layers\[0\].inputs"),
    ],
)
def test_sdf_field(change: dict, name: str) -> None:
    points = torch.zeros(2, 4, 3)
    arguments = {"volume": FIELD.volumes[0], "layers": LAYERS, "points": points, "box": FIELD.box} | change
    with NothingRuns(), pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
        pk.sdf_field(**arguments)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"volume": FIELD.volumes[0].int()}, "volume"),
        ({"origins": torch.zeros(2, 9)}, "origins"),
        ({"origins": torch.zeros(2, 9, 3, dtype=torch.long)}, "origins"),
        ({"directions": torch.zeros(2, 9, 3, device="meta")}, "directions"),
        ({"edges": torch.zeros(1, 9, 4)}, "edges"),
        ({"sharpness": torch.tensor(3)}, "sharpness"),
        ({"chunk_bytes": -5}, "chunk_bytes"),
    ],
)
def test_render_rays(change: dict, name: str) -> None:
    arguments = FIELD.arguments() | change
    with NothingRuns(), pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
        pk.render_rays(**arguments)
