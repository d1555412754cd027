"""The SDF field's Triton kernels against its torch operations in float64: all outputs, all gradients."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from ponder_kernels import sdf_field
from ponder_kernels.sdf_field.chain import flatten
from tests.kernels.render_cases import Case, Shape, make_case
from tests.tolerance import assert_close_to_reference

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")

SHAPES = {
    "indoor": Shape(channels=8, sdf_hidden=(7,)),
    "affine": Shape(sdf_hidden=()),
    "affine-points": Shape(sdf_hidden=(), points=True),
    "outdoor": Shape(sdf_hidden=(6, 6, 5, 6, 4), points=True, channels=4),
    "two-wide": Shape(channels=20, sdf_channels=18, sdf_hidden=(20, 17)),
    "one-voxel": Shape(volume=(1, 1, 1)),
}


def evaluate(case: Case, points: Tensor, upstream: tuple[Tensor, Tensor | None], **options) -> list[Tensor]:
    """Outputs and gradients by the volume and the decoder."""
    found = sdf_field(case.volumes, case.field.sdf, points, case.box, with_points=case.shape.points, **options)
    loss = (found.sdf * upstream[0].to(found.sdf)).sum()
    if found.gradient is not None and upstream[1] is not None:
        loss = loss + (found.gradient * upstream[1].to(found.sdf)).sum()
    leaves = [*case.volumes, *flatten(case.field.sdf)]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    outputs = [found.sdf] if found.gradient is None else [found.sdf, found.gradient]
    return [*outputs, *(torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True))]


def to_device(case: Case, device: str) -> Case:
    """The case on the device under test, with new leaves."""

    def move(x: Tensor) -> Tensor:
        return x.detach().to(device).requires_grad_()

    layers = tuple(type(layer)(*(None if x is None else move(x) for x in layer)) for layer in case.field.sdf)
    return case._replace(
        volumes=[move(v) for v in case.volumes], field=case.field._replace(sdf=layers), box=case.box.to(device)
    )


CASES = [
    pytest.param(shape, align_corners, padding, id=f"{name}-{align_corners}-{padding}")
    for name, shape in SHAPES.items()
    for align_corners in (False, True)
    for padding in ("border", "zeros")
    # Every option with the shipped configurations; half of them with the others.
    if name in ("indoor", "outdoor") or align_corners == (padding == "zeros")
]


@pytest.mark.parametrize(("shape", "align_corners", "padding"), CASES)
def test_equals_torch(shape: Shape, align_corners: bool, padding: str, device: str) -> None:
    truth_case, case = make_case(shape), to_device(make_case(shape, torch.float32), device)
    # More than one tile per scene, and tiles across scenes.
    points = torch.rand(2, 37, 3, dtype=torch.float64) * 1.5 - 0.8
    points = points.float().double()
    upstream = torch.randn(2, 37, dtype=torch.float64), torch.randn(2, 37, 3, dtype=torch.float64)
    options = {"align_corners": align_corners, "padding": padding}
    wanted = evaluate(truth_case, points, upstream, **options)
    on_device = tuple(u.float().to(device) for u in upstream)
    got = evaluate(case, points.float().to(device), on_device, backend="triton", precision="ieee", **options)
    for number, (g, w) in enumerate(zip(got, wanted, strict=True)):
        assert_close_to_reference(g, w.detach(), 500, scale=64, name=f"value {number}")


def test_value_alone(device: str) -> None:
    truth_case, case = make_case(SHAPES["two-wide"]), to_device(make_case(SHAPES["two-wide"], torch.float32), device)
    points, upstream = torch.rand(2, 9, 3, dtype=torch.float64).float().double() - 0.5, torch.randn(2, 9)
    wanted = evaluate(truth_case, points, (upstream.double(), None), gradient=False)
    options = {"backend": "triton", "precision": "tf32x3", "gradient": False}
    got = evaluate(case, points.float().to(device), (upstream.to(device), None), **options)
    for g, w in zip(got, wanted, strict=True):
        assert_close_to_reference(g, w.detach(), 500, scale=64)


def test_deterministic_sums(device: str) -> None:
    """The same bits every time, and the same numbers as with atomics."""
    shape = SHAPES["indoor"]
    points, upstream = torch.rand(2, 33, 3) - 0.5, (torch.randn(2, 33), torch.randn(2, 33, 3))
    on_device = points.to(device), tuple(u.to(device) for u in upstream)
    case = to_device(make_case(shape, torch.float32), device)
    atomic = evaluate(case, *on_device, backend="triton", precision="ieee")
    torch.use_deterministic_algorithms(True)
    try:
        first = evaluate(case, *on_device, backend="triton", precision="ieee")
        second = evaluate(case, *on_device, backend="triton", precision="ieee")
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other, loose in zip(first, second, atomic, strict=True):
        assert torch.equal(one, other)
        assert_close_to_reference(loose, one.detach().double(), 500, dtype=torch.float32)


def test_no_points(device: str) -> None:
    case = to_device(make_case(SHAPES["indoor"], torch.float32), device)
    found = evaluate(
        case, torch.zeros(2, 0, 3, device=device), (torch.zeros(2, 0, device=device), None), backend="triton"
    )
    assert found[0].shape == (2, 0) and found[1].shape == (2, 0, 3)
    assert all(not g.any() for g in found[2:])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (Shape(volumes=2), "'triton' takes one volume, got 2"),
        (Shape(channels=130, sdf_channels=130), "'triton' takes at most 128 decoder inputs, got 130"),
        (Shape(sdf_hidden=(65, 4)), "'triton' takes at most 128 hidden units .* got 2 x 128"),
    ],
    ids=["volumes", "inputs", "hidden"],
)
def test_fields_that_do_not_fit(shape: Shape, message: str) -> None:
    """An explicit backend refuses them; "auto" takes torch operations."""
    case = make_case(shape, torch.float32)
    arguments = (case.volumes, case.field.sdf, torch.zeros(2, 4, 3), case.box)
    with pytest.raises(ValueError, match=message):
        sdf_field(*arguments, backend="triton")
    assert torch.isfinite(sdf_field(*arguments).sdf).all()


@pytest.mark.parametrize("change", [{"backend": "cuda"}, {"precision": "fp8"}], ids=lambda c: next(iter(c)))
def test_unknown_options(change: dict[str, str]) -> None:
    case = make_case(SHAPES["indoor"], torch.float32)
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected one of"):
        sdf_field(case.volumes, case.field.sdf, torch.zeros(2, 4, 3), case.box, **change)
