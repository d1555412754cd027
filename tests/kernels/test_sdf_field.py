"""`sdf_field` against the plain formulas, and the gathers it is built on."""

from __future__ import annotations

import pytest
import torch

from ponder_kernels import SdfWeights, sdf_field
from ponder_kernels.sdf_field.gather import Scatter, VolumeGeometry, find_corners, gather_rows, volume_rows
from ponder_kernels.sdf_field.weights import softplus, softplus_slope
from tests.kernels.test_render import make_case
from tests.tolerance import assert_close_to_reference


def grid_sample(volume, points, box, align_corners, padding):
    grid = 2 * (points - box[:, None, 0]) / (box[:, None, 1] - box[:, None, 0]) - 1
    sampled = torch.nn.functional.grid_sample(
        volume, grid[:, :, None, None], align_corners=align_corners, padding_mode=padding
    )
    return sampled[..., 0, 0].transpose(1, 2)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_value_gradient_and_their_derivatives(align_corners: bool, padding: str) -> None:
    case = make_case()
    volume, weights = case.leaves[0], SdfWeights(*case.leaves[1:6])
    points = (torch.rand(2, 40, 3, dtype=torch.float64) * 5 - 0.8).requires_grad_()
    features = grid_sample(volume[:, :4], points, case.box, align_corners, padding)
    hidden = softplus(features @ weights.hidden_weight.T + weights.hidden_bias)
    truth = hidden @ weights.out_hidden + features @ weights.out_linear + weights.out_bias
    (slope,) = torch.autograd.grad(truth.sum(), points, create_graph=True)
    found = sdf_field(volume, weights, points.detach(), case.box, align_corners=align_corners, padding=padding)
    assert_close_to_reference(found.sdf, truth, 50, name="sdf")
    assert_close_to_reference(found.gradient, slope, 50, name="gradient")
    value_only = sdf_field(
        volume, weights, points.detach(), case.box, gradient=False, align_corners=align_corners, padding=padding
    )
    assert value_only.gradient is None
    assert_close_to_reference(value_only.sdf, truth, 50)
    cotangents = torch.randn_like(truth), torch.randn_like(slope)
    leaves = [volume, *weights]
    want = torch.autograd.grad((truth * cotangents[0]).sum() + (slope * cotangents[1]).sum(), leaves)
    got = torch.autograd.grad((found.sdf * cotangents[0]).sum() + (found.gradient * cotangents[1]).sum(), leaves)
    for g, w in zip(got, want, strict=True):
        assert_close_to_reference(g, w, 500, scale=8)


def test_scatter_is_the_transpose_of_gather() -> None:
    rows = torch.randn(30, 4, dtype=torch.float64)
    index, weight = torch.randint(30, (8, 11)), torch.randn(8, 11, dtype=torch.float64)
    values = torch.randn(11, 4, dtype=torch.float64)
    out = torch.zeros_like(rows)
    Scatter(index).add(out, weight, values)
    assert_close_to_reference((out * rows).sum(), (gather_rows(rows, index.T.contiguous(), weight) * values).sum(), 88)


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_rows_stay_in_range_for_any_point(padding: str) -> None:
    box = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]])
    geometry = VolumeGeometry((1, 3, 4, 5), box, False, padding)
    hostile = torch.tensor([0.0, 1.0, -1e30, 1e30, float("inf"), -float("inf"), float("nan"), 0.5])
    points = torch.cartesian_prod(hostile, hostile, hostile)
    corners = find_corners(points, torch.zeros(len(points), dtype=torch.long), geometry)
    assert int(corners.rows.min()) >= 0 and int(corners.rows.max()) < 60
    assert torch.isfinite(corners.weight).all() and torch.isfinite(corners.slope).all()


def test_weights_sum_to_one_and_slopes_to_zero_inside() -> None:
    box = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]], dtype=torch.float64)
    geometry = VolumeGeometry((1, 3, 4, 5), box, True, "zeros")
    points = torch.rand(50, 3, dtype=torch.float64) * box[0, 1]
    corners = find_corners(points, torch.zeros(50, dtype=torch.long), geometry)
    torch.testing.assert_close(corners.weight.sum(0), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(corners.slope.sum(1), torch.zeros(3, 50, dtype=torch.float64))


def test_channels_last_rows_are_a_view() -> None:
    volume = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    assert volume_rows(volume).data_ptr() == volume.data_ptr()


def test_softplus_slope_is_the_derivative() -> None:
    x = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(softplus(x).sum(), x)
    torch.testing.assert_close(softplus_slope(x), slope)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(2, 4)}, "points: expected shape"),
        ({"points": torch.zeros(1, 4, 3)}, "points: expected shape .* with B=2"),
        ({"volume": torch.zeros(2, 3, 4, 6, 5)}, "weights: expected at most C=3 features, got 4"),
        ({"volume": [1.0]}, "volume: expected a torch.Tensor, got list"),
        ({"padding": "wrap"}, "padding: expected one of"),
    ],
    ids=["points rank", "points batch", "channels", "type", "padding"],
)
def test_bad_input(change: dict, message: str) -> None:
    case = make_case(torch.float32)
    arguments = {
        "volume": case.leaves[0],
        "weights": SdfWeights(*case.leaves[1:6]),
        "points": torch.zeros(2, 4, 3),
        "box": case.box,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        sdf_field(**(arguments | change))
