"""`sdf_field` against the plain formulas, and the gathers it is built on."""

from __future__ import annotations

import pytest
import torch

from ponder_kernels import sdf_field
from ponder_kernels.render.reference import run_chain
from ponder_kernels.sdf_field import gather
from ponder_kernels.sdf_field.chain import flatten, log_sigmoid
from ponder_kernels.sdf_field.gather import Scatter, VolumeGeometry, find_corners, gather_rows, volume_rows
from ponder_kernels.sdf_field.weights import softplus
from tests.kernels.render_cases import Shape, make_case
from tests.tolerance import assert_close_to_reference


def grid_sample(volume, points, box, align_corners, padding):
    grid = 2 * (points - box[:, None, 0]) / (box[:, None, 1] - box[:, None, 0]) - 1
    sampled = torch.nn.functional.grid_sample(
        volume, grid[:, :, None, None], align_corners=align_corners, padding_mode=padding
    )
    return sampled[..., 0, 0].transpose(1, 2)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "shape",
    [Shape(), Shape(sdf_hidden=()), Shape(sdf_hidden=(5, 4), points=True), Shape(volumes=2, channels=8)],
    ids=["one-hidden", "affine", "two-hidden-points", "two-volumes"],
)
def test_value_gradient_and_their_derivatives(shape: Shape, align_corners: bool, padding: str) -> None:
    case = make_case(shape)
    layers = case.field.sdf
    points = (torch.rand(2, 40, 3, dtype=torch.float64) * 1.5 - 0.8).requires_grad_()
    sampled = [grid_sample(v, points, case.box, align_corners, padding)[..., :4] for v in case.volumes]
    z = torch.cat([*sampled, points] if shape.points else sampled, -1)
    truth = run_chain(layers, z, softplus)[..., 0]
    (slope,) = torch.autograd.grad(truth.sum(), points, create_graph=True)
    options = {"align_corners": align_corners, "padding": padding, "with_points": shape.points}
    found = sdf_field(case.volumes, layers, points.detach(), case.box, **options)
    assert_close_to_reference(found.sdf, truth.detach(), 50, name="sdf")
    # The gradient passes through the slope of softplus, which turns with sharpness 100.
    assert_close_to_reference(found.gradient, slope.detach(), 50, scale=16, name="gradient")
    value_only = sdf_field(case.volumes, layers, points.detach(), case.box, gradient=False, **options)
    assert value_only.gradient is None
    assert_close_to_reference(value_only.sdf, truth.detach(), 50)
    cotangents = torch.randn_like(truth), torch.randn_like(slope)
    leaves = [*case.volumes, *flatten(layers)]
    loss = (truth * cotangents[0]).sum() + (slope * cotangents[1]).sum()
    want = torch.autograd.grad(loss, leaves, retain_graph=True)
    got = torch.autograd.grad((found.sdf * cotangents[0]).sum() + (found.gradient * cotangents[1]).sum(), leaves)
    for g, w in zip(got, want, strict=True):
        assert_close_to_reference(g, w, 500, scale=64)
    (alone,) = torch.autograd.grad(value_only.sdf.sum(), leaves[:1])
    (expected,) = torch.autograd.grad(run_chain(layers, z, softplus)[..., 0].sum(), leaves[:1])
    assert_close_to_reference(alone, expected, 500, scale=8)


@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (7, 0), (0, 0)], ids=str)
def test_packed_points(counts: tuple[int, int]) -> None:
    """As if each scene were evaluated alone; scenes may be empty."""
    case = make_case(Shape())
    points = torch.rand(sum(counts), 3, dtype=torch.float64) - 0.5
    offsets = torch.tensor([0, counts[0], sum(counts)])
    found = sdf_field(case.volumes, case.field.sdf, points, case.box, scene_offsets=offsets)
    leaves = [*case.volumes, *flatten(case.field.sdf)]
    alone = [
        sdf_field([v[b : b + 1] for v in case.volumes], case.field.sdf, part[None], case.box[b : b + 1])
        for b, part in enumerate(points.split(counts))
    ]
    wanted = torch.cat([a.sdf[0] for a in alone]), torch.cat([a.gradient[0] for a in alone])
    losses = []
    for got, want in zip(found, wanted, strict=True):
        assert_close_to_reference(got, want.detach(), 4)
        losses.append(((got**2).sum(), (want**2).sum()))
    ours, truth = (torch.autograd.grad(sum(pair[k] for pair in losses), leaves, allow_unused=True) for k in (0, 1))
    for g, w in zip(ours, truth, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            assert_close_to_reference(g, w, 100, scale=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scene_offsets": None}, "scene_offsets: expected .B . 1. offsets"),
        ({"scene_offsets": torch.tensor([0.0, 2.0, 4.0])}, "scene_offsets: expected dtype int32, int64, got float32"),
        ({"scene_offsets": torch.tensor([0, 4])}, "scene_offsets: expected shape .B . 1. with B=2"),
        ({"scene_offsets": torch.tensor([0, 5, 4])}, "scene_offsets: expected values that rise from 0 to N=4"),
        ({"scene_offsets": torch.tensor([0, 2, 3])}, "scene_offsets: expected values that rise from 0 to N=4"),
        ({"points": torch.zeros(2, 4, 3), "scene_offsets": torch.tensor([0, 2, 4])}, "scene_offsets: expected None"),
        ({"points": torch.zeros(4, 2)}, "points: expected shape .N, 3."),
    ],
)
def test_packed_points_that_do_not_fit(change, message) -> None:
    case = make_case(Shape(), torch.float32)
    arguments = {"points": torch.zeros(4, 3), "scene_offsets": torch.tensor([0, 2, 4])} | change
    with pytest.raises((TypeError, ValueError), match=message):
        sdf_field(case.volumes, case.field.sdf, box=case.box, **arguments)


def test_scatter_is_the_transpose_of_gather() -> None:
    rows = torch.randn(30, 4, dtype=torch.float64)
    bags, weight = torch.randint(30, (11, 8)), torch.randn(11, 8, dtype=torch.float64)
    values = torch.randn(11, 4, dtype=torch.float64)
    out = torch.zeros_like(rows)
    scatter = Scatter(bags)
    out.index_add_(0, scatter.rows, scatter.sums(weight, values))
    assert_close_to_reference((out * rows).sum(), (gather_rows(rows, bags, weight) * values).sum(), 88)


@pytest.mark.parametrize("points", [0, 1, 11])
def test_scatter_in_blocks_is_the_scatter_at_once(points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second term on the first channels, and a last block that is not full."""
    monkeypatch.setattr(gather, "BLOCK_ROWS", 4)
    bags = torch.randint(30, (points, 8), dtype=torch.int32)
    scatter = Scatter(bags)
    (weight, values), (other, first) = terms = [
        (torch.randn(points, 8, dtype=torch.float64), torch.randn(points, width, dtype=torch.float64))
        for width in (6, 2)
    ]
    expected = scatter.sums(weight, values)
    expected[:, :2] += scatter.sums(other, first)
    found = list(scatter.blocks(*terms))
    assert len(found) == -(-scatter.rows.numel() // 4)
    if found:
        assert torch.equal(torch.cat([rows for rows, _ in found]), scatter.rows)
        assert torch.equal(torch.cat([sums for _, sums in found]), expected)


@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_rows_stay_in_range_for_any_point(padding: str) -> None:
    box = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]])
    geometry = VolumeGeometry((1, 3, 4, 5), box, False, padding)
    hostile = torch.tensor([0.0, 1.0, -1e30, 1e30, float("inf"), -float("inf"), float("nan"), 0.5])
    points = torch.cartesian_prod(hostile, hostile, hostile)
    corners = find_corners(points, torch.zeros(len(points), dtype=torch.long), geometry)
    assert int(corners.rows.min()) >= 0 and int(corners.rows.max()) < 60
    assert torch.isfinite(corners.weight).all()
    assert all(torch.isfinite(corners.slope(axis)).all() for axis in range(3))


def test_weights_sum_to_one_and_slopes_to_zero_inside() -> None:
    box = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]], dtype=torch.float64)
    geometry = VolumeGeometry((1, 3, 4, 5), box, True, "zeros")
    points = torch.rand(50, 3, dtype=torch.float64) * box[0, 1]
    corners = find_corners(points, torch.zeros(50, dtype=torch.long), geometry)
    torch.testing.assert_close(corners.weight.sum(1), torch.ones(50, dtype=torch.float64))
    slopes = torch.stack([corners.slope(axis) for axis in range(3)])
    torch.testing.assert_close(slopes.sum(2), torch.zeros(3, 50, dtype=torch.float64))
    direction = torch.randn(50, 3, dtype=torch.float64)
    torch.testing.assert_close(corners.along(direction), (slopes * direction.T[:, :, None]).sum(0))


def test_channels_last_rows_are_a_view() -> None:
    volume = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    assert volume_rows(volume).data_ptr() == volume.data_ptr()


@pytest.mark.parametrize("gated", [True, False], ids=["gate", "no gate"])
@pytest.mark.parametrize("largest", [19.0, 60.0, 120.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_softplus_and_its_slope(dtype: torch.dtype, largest: float, gated: bool) -> None:
    """In scaled variables, on both sides of torch's threshold (20) and of where the sigmoid is lost to float32 (88)."""
    y = torch.linspace(-largest, largest, 2001, dtype=torch.float64).to(dtype).double().requires_grad_()
    truth = torch.nn.functional.softplus(y, beta=1, threshold=20)
    (want,) = torch.autograd.grad(truth.sum(), y)
    log, gate = torch.empty(2001, dtype=dtype), torch.empty(2001, dtype=dtype) if gated else None
    log_sigmoid(-y.detach().to(dtype), log, gate)
    eps = torch.finfo(dtype).eps
    # Above the threshold torch leaves out exp(-20), which float32 has not: the limit below it is another.
    close = eps if dtype == torch.float64 else eps + 2.1e-9
    torch.testing.assert_close(-log.double(), truth.detach(), rtol=4 * eps, atol=close)
    if gate is not None:
        torch.testing.assert_close(1 - gate.double(), want, rtol=0, atol=close)


def test_not_a_number_stays_one() -> None:
    log, gate = torch.empty(3), torch.empty(3)
    log_sigmoid(torch.tensor([float("nan"), 1.0, -100.0]), log, gate)
    assert log[0].isnan() and gate[0].isnan() and log[1:].isfinite().all() and log[2] == -100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(2, 4)}, "points: expected shape"),
        ({"points": torch.zeros(1, 4, 3)}, "points: expected shape .* with B=2"),
        ({"volume": torch.zeros(2, 3, 4, 6, 5)}, r"layers\[0\].inputs: expected at most C=3 columns"),
        ({"volume": [1.0]}, "volume: expected a torch.Tensor, got float"),
        ({"padding": "wrap"}, "padding: expected one of"),
    ],
    ids=["points rank", "points batch", "channels", "type", "padding"],
)
def test_bad_input(change: dict, message: str) -> None:
    case = make_case(dtype=torch.float32)
    arguments = {
        "volume": case.volumes[0],
        "layers": case.field.sdf,
        "points": torch.zeros(2, 4, 3),
        "box": case.box,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        sdf_field(**(arguments | change))
