"""Trilinear sampling: Triton values and first derivatives against float64, the reference against grid_sample."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ponder_kernels._constants import REFLECTION_MAX
from ponder_kernels.volume_sample import op as op_module
from ponder_kernels.volume_sample import volume_sample
from ponder_kernels.volume_sample.layout import Options
from ponder_kernels.volume_sample.reference import volume_sample_reference
from tests.kernels.harness import rand
from tests.kernels.volume_sample_cases import (
    LAYOUTS,
    MODES,
    PLAIN,
    case,
    channels_last,
    check,
    mode_id,
    relaid,
    truth,
)

# B, C, D, H, W, N: one of everything, empty, odd, a full block of points (512 / C, at most 256) and one
# more, two channel blocks, several blocks of points in each batch entry.
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 4, 5, 6, 0),
    (0, 3, 4, 5, 6, 7),
    (2, 0, 4, 5, 6, 7),
    (2, 3, 4, 5, 6, 7),
    (1, 2, 3, 1, 5, 256),
    (1, 2, 3, 4, 5, 257),
    (1, 66, 3, 4, 2, 9),
    (1, 64, 3, 3, 3, 8),
]
EVERY_MODE = pytest.mark.parametrize("mode", MODES, ids=mode_id)
PLAIN_MODES = pytest.mark.parametrize("mode", PLAIN, ids=mode_id)
BACKENDS = pytest.mark.parametrize("backend", ["triton", "torch"])


@pytest.mark.parametrize("mode", [MODES[0], MODES[6], MODES[9]], ids=mode_id)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}C{}D{}H{}W{}N{}".format(*s))
def test_shapes(shape, mode, device):
    check(case(shape, device), shape, mode)


@EVERY_MODE
def test_options(mode, device):
    """Points up to three volumes away, so that reflections repeat."""
    shape = (1, 3, 4, 3, 5, 60)
    check(case(shape, device, reach=3.0), shape, mode)


@pytest.mark.parametrize("layout", [*LAYOUTS, "strided-points"])
def test_layouts(layout, device):
    shape = (2, 5, 3, 4, 6, 19)
    inputs = case(shape, device)
    inputs["volume"] = relaid(inputs["volume"], layout)
    if layout == "strided-points":
        inputs["points"] = rand(3, 19, 2, seed=4).to(device).permute(2, 1, 0)
    check(inputs, shape)


@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_nothing_is_copied_and_the_gradient_has_the_volumes_layout(layout, dtype, device, monkeypatch):
    volume = relaid(rand(2, 4, 3, 1, 2, seed=0).to(device, dtype), layout)
    seen = []
    original = op_module.launch
    monkeypatch.setattr(op_module, "launch", lambda k, g, p, *a: (seen.append(a), original(k, g, p, *a)))
    leaf = volume.detach().requires_grad_()
    out = volume_sample(leaf, rand(2, 5, 3, seed=1).to(device), backend="triton")
    (gradient,) = torch.autograd.grad(out.sum(), leaf)
    assert seen[0][0].data_ptr() == seen[1][1].data_ptr() == volume.data_ptr()
    assert gradient.stride() == torch.empty_like(volume).stride()
    if layout in ("contiguous", "channels-last", "transposed"):
        assert gradient.stride() == volume.stride()
    if layout in ("contiguous", "channels-last") and dtype == torch.float32:
        assert seen[1][3].data_ptr() == gradient.data_ptr(), "the kernel's buffer is the gradient"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_volumes(dtype, device):
    shape = (2, 5, 3, 4, 6, 19)
    inputs = case(shape, device)
    inputs["volume"] = inputs["volume"].to(dtype)
    check(inputs, shape)


@pytest.mark.parametrize("upstream", ["expanded", "transposed"])
def test_upstream_layouts(upstream, device):
    shape = (3, 5, 3, 4, 6, 9)
    check(case(shape, device), shape, upstream=upstream)


@pytest.mark.parametrize("wanted", ["volume", "points"])
def test_only_the_wanted_gradient(wanted, device):
    shape = (2, 5, 3, 4, 6, 9)
    check(case(shape, device), shape, wanted={wanted})


@EVERY_MODE
def test_grid_planes_take_the_right_hand_cell(mode, device):
    # Sizes 3 and 5 put every voxel centre, the box faces and the mirrors on exact binary fractions.
    steps = torch.arange(-6, 7) / 4.0
    points = torch.cartesian_prod(steps, steps[::3], steps[1::4])[None].to(device)
    shape = (1, 2, 5, 3, 5, points.shape[1])
    check({"volume": rand(*shape[:5], seed=5).to(device), "points": points}, shape, mode)


@BACKENDS
@PLAIN_MODES
def test_single_voxels(mode, backend, device):
    """An axis of size 1: inside there is nothing to interpolate; only "zeros" on faces fades, by half a voxel."""
    volume = torch.full((1, 1, 1, 1, 1), 3.0, device=device)
    x = torch.tensor([-7.0, -1.5, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5, 7.0])
    points = torch.zeros(1, 9, 3)
    points[..., 0] = x
    points = points.to(device).requires_grad_()
    out = volume_sample(volume, points, **mode._asdict(), backend=backend)
    out.sum().backward()
    if mode.padding == "zeros" and not mode.align_corners:
        # The index is x / 2, the only voxel is 0, and on its plane the right-hand cell counts.
        want = 3 * (1 - x.abs() / 2).clamp(min=0)
        slope = 3 * torch.where(x.abs() < 2, torch.where(x < 0, 0.5, -0.5), 0.0)
    else:
        want, slope = torch.full((9,), 3.0), torch.zeros(9)
    assert torch.equal(out[0, :, 0].cpu(), want)
    assert torch.equal(points.grad[0, :, 0].cpu(), slope)


def far_points(device):
    """Coordinates without a cell, on one axis at a time: [1, 21, 3], and the seven numbers."""
    bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, -3e9])
    points = torch.zeros(1, 21, 3)
    for axis in range(3):
        points[0, 7 * axis : 7 * axis + 7, axis] = bad
    return points.to(device).requires_grad_(), bad


@BACKENDS
@EVERY_MODE
def test_coordinates_without_a_cell(mode, backend, device):
    volume = rand(1, 2, 3, 4, 5, seed=6).to(device).requires_grad_()
    points, bad = far_points(device)
    out = volume_sample(volume, points, **mode._asdict(), backend=backend)
    out.sum().backward()
    for axis in range(3):
        rows = slice(7 * axis, 7 * axis + 7)
        assert (points.grad[0, rows, axis] == 0).all()
        if mode.padding == "zeros":
            assert (out[0, rows] == 0).all() and (points.grad[0, rows] == 0).all()
        else:
            # NaN goes with the first cell, and in a mirror so does what is too far to have a place there.
            edge = torch.where((bad > 0) & (mode.padding == "border"), 1.0, -1.0)
            clean = torch.zeros(1, 7, 3)
            clean[0, :, axis] = edge
            options = {**mode._asdict(), "backend": backend}
            assert torch.equal(out[:, rows], volume_sample(volume, clean.to(device), **options))
    assert volume.grad.isfinite().all() and points.grad.isfinite().all()
    assert mode.padding != "zeros" or (volume.grad == 0).all()


@pytest.mark.parametrize("align_corners", [True, False])
def test_both_backends_mirror_far_coordinates_alike(align_corners, device):
    """Below the limit float32 places are coarse, but the same ones on both backends; from the limit on, the first."""
    volume = rand(1, 2, 3, 4, 5, seed=6).to(device)
    last = torch.tensor(REFLECTION_MAX).nextafter(torch.tensor(0.0))
    # With size 5 and aligned corners the index is twice the coordinate plus two.
    x = torch.tensor([1e2, -1e3, 12345.678, -1e5, 1e6, float(last) / 2 - 1, REFLECTION_MAX / 2, -REFLECTION_MAX])
    points = (x[None, :, None] * torch.tensor([1.0, 0.0, 0.0])).to(device)
    options = {"padding": "reflection", "align_corners": align_corners}
    ours, torchs = (volume_sample(volume, points, **options, backend=b) for b in ("triton", "torch"))
    torch.testing.assert_close(ours, torchs)
    first = volume_sample(volume, torch.tensor([[[-1.0, 0.0, 0.0]]], device=device), **options)
    assert torch.equal(torchs[:, -1:], first)


@BACKENDS
def test_nan_voxels_stay_where_they_are(backend, device):
    volume = torch.full((1, 1, 2, 2, 2), float("nan"), device=device)
    outside = torch.full((1, 1, 3), 4.0, device=device, requires_grad=True)
    out = volume_sample(volume, outside, backend=backend)
    out.sum().backward()
    assert out.item() == 0 and (outside.grad == 0).all()
    clamped = outside.detach().requires_grad_()
    volume_sample(volume, clamped, padding="border", backend=backend).sum().backward()
    assert (clamped.grad == 0).all()


@PLAIN_MODES
def test_reference_is_grid_sample(mode):
    inputs = {k: v.double().requires_grad_() for k, v in case((2, 3, 4, 1, 6, 50), "cpu", reach=3.0).items()}
    volume, points = inputs.values()
    ours = truth(mode)(volume, points)
    options = {"padding_mode": mode.padding, "align_corners": mode.align_corners}
    theirs = F.grid_sample(volume, points[:, :, None, None], **options)[..., 0, 0].transpose(1, 2)
    upstream = rand(*ours.shape, seed=9).double()
    torch.testing.assert_close(ours, theirs)
    got = torch.autograd.grad(ours, (volume, points), upstream)
    want = torch.autograd.grad(theirs, (volume, points), upstream)
    torch.testing.assert_close(got, want)


@EVERY_MODE
def test_reference_first_and_second_derivatives(mode):
    inputs = tuple(v.double().requires_grad_() for v in case((1, 1, 2, 3, 2, 3), "cpu", reach=1.5).values())
    assert torch.autograd.gradcheck(truth(mode), inputs)
    assert torch.autograd.gradgradcheck(truth(mode), inputs)


def test_smoothstep_by_hand(device):
    """A quarter of the way between two voxels: t^2 (3 - 2 t), and its derivatives 6 t (1 - t) and 6 - 12 t."""
    volume = torch.tensor([0.0, 1.0], device=device).view(1, 1, 1, 1, 2)
    # Two voxels: the index runs half as fast as the coordinate.
    points = torch.tensor([[[-0.5, 0.0, 0.0]]], device=device)
    for backend in ("triton", "torch"):
        leaf = points.clone().requires_grad_()
        out = volume_sample(volume, leaf, smoothstep=True, backend=backend)
        (slope,) = torch.autograd.grad(out, leaf, create_graph=True)
        (curve,) = torch.autograd.grad(slope[..., 0], leaf)
        assert [out.item(), slope[0, 0, 0].item(), curve[0, 0, 0].item()] == [5 / 32, 9 / 16, 3 / 4]


def test_constant_volume_samples_to_the_constant(device):
    volume = torch.full((1, 3, 4, 4, 4), 0.7, device=device)
    points = rand(1, 40, 3, seed=1).to(device)
    out = volume_sample(volume, points, backend="triton")
    assert (out - 0.7).abs().max() < 1e-6
    for padding in ("border", "reflection"):
        out = volume_sample(volume, 10 * points, padding=padding, smoothstep=True, backend="triton")
        assert (out - 0.7).abs().max() < 1e-6


def test_batch_entries_do_not_mix(device):
    inputs = case((3, 2, 3, 4, 5, 11), device)
    both = volume_sample(**inputs, backend="triton")
    for b in range(3):
        one = volume_sample(*(v[b : b + 1] for v in inputs.values()), backend="triton")
        assert torch.equal(both[b : b + 1], one)


@pytest.mark.parametrize("far", ["batch", "depth"])
def test_offsets_beyond_31_bits(far, device):
    """Strides that fit 32 bits, whose products with an index of 2 do not."""
    try:
        pool = torch.from_numpy(np.empty(2**31 + 64, dtype=np.float16)).to(device)
    except MemoryError:
        pytest.skip("no room for 4 GiB of address space")
    shape, strides = {
        "batch": ((3, 2, 2, 2, 2), (2**30, 1, 8, 4, 2)),
        "depth": ((1, 2, 3, 2, 2), (16, 1, 2**30, 4, 2)),
    }[far]
    volume = pool.as_strided(shape, strides)
    small = rand(*shape, seed=1).half().to(device)
    volume.copy_(small)
    points = rand(shape[0], 9, 3, seed=2).to(device)
    leaf = points.clone().requires_grad_()
    plain = points.clone().requires_grad_()
    out, want = (volume_sample(v, p, backend="triton") for v, p in ((volume, leaf), (small, plain)))
    out.sum().backward()
    want.sum().backward()
    assert torch.equal(out, want) and torch.equal(leaf.grad, plain.grad)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=["fp16", "bf16", "fp32"])
def test_many_points_on_a_gpu(dtype):
    shape = (2, 128, 16, 24, 32, 20_011)
    inputs = case(shape, "cuda")
    inputs["volume"] = channels_last(inputs["volume"].to(dtype))
    check(inputs, shape)


def test_float64_takes_torch(device):
    inputs = {k: v.double() for k, v in case((1, 2, 3, 3, 3, 5), device).items()}
    assert volume_sample(**inputs).dtype == torch.float64
    assert volume_sample(inputs["volume"], inputs["points"].float()).dtype == torch.float32
    options = Options("reflection", False, True)
    want = volume_sample_reference(*inputs.values(), *options)
    torch.testing.assert_close(volume_sample(**inputs, **options._asdict()), want, rtol=1e-14, atol=1e-14)
