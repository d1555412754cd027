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


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
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
