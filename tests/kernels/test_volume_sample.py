"""Trilinear sampling: Triton against the float64 reference, the reference against torch's grid_sample."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ponder_kernels.volume_sample import op as op_module
from ponder_kernels.volume_sample import volume_sample
from ponder_kernels.volume_sample.cost import backward_cost, forward_cost
from ponder_kernels.volume_sample.reference import volume_sample_reference
from tests.kernels.harness import assert_launches_are_listed, assert_refuses_second_order, compare, rand

MODES = [(p, a) for p in ("zeros", "border") for a in (True, False)]
MODE_IDS = [f"{p}-{'corners' if a else 'faces'}" for p, a in MODES]
# B, C, D, H, W, N: one of everything, empty, odd, a full block of points (512 / C, at most 256) and one
# more, two channel blocks.
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


def triton_sample(padding="zeros", align_corners=True):
    return lambda volume, points: volume_sample(
        volume, points, padding=padding, align_corners=align_corners, backend="triton"
    )


def truth(padding="zeros", align_corners=True):
    return lambda volume, points: volume_sample_reference(volume, points, padding=padding, align_corners=align_corners)


def case(shape, device, reach=1.3, seed=0):
    b, c, d, h, w, n = shape
    volume = rand(b, c, d, h, w, seed=seed).to(device)
    return {"volume": volume, "points": rand(b, n, 3, seed=seed + 1, low=-reach, high=reach).to(device)}


def terms(shape):
    _, c, d, h, w, n = shape
    return {"out": 8, "volume": 1 + 8 * n // (d * h * w), "points": 8 * c}


def check(inputs, shape, padding="zeros", align_corners=True, **options):
    # A position is a coordinate times the size: its rounding error grows with the size.
    compare(
        triton_sample(padding, align_corners),
        truth(padding, align_corners),
        inputs,
        terms(shape),
        scale=float(max(shape[2:5])),
        **options,
    )


@pytest.mark.parametrize(("padding", "align_corners"), MODES, ids=MODE_IDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}C{}D{}H{}W{}N{}".format(*s))
def test_triton_matches_reference(shape, padding, align_corners, device):
    check(case(shape, device), shape, padding, align_corners)


@pytest.mark.parametrize("layout", ["channels-last", "strided", "expanded-batch", "strided-points"])
def test_layouts(layout, device):
    shape = (2, 5, 3, 4, 6, 19)
    inputs = case(shape, device)
    volume = inputs["volume"]
    if layout == "channels-last":
        volume = volume.contiguous(memory_format=torch.channels_last_3d)
    elif layout == "strided":
        volume = rand(4, 7, 6, 4, 12, seed=3).to(device)[1:3, 1:6, ::2, :, 1::2]
    elif layout == "expanded-batch":
        volume = volume[:1].expand(2, -1, -1, -1, -1)
    else:
        inputs["points"] = rand(3, 19, 2, seed=4).to(device).permute(2, 1, 0)
    inputs["volume"] = volume
    check(inputs, shape)


def test_channels_last_is_not_copied_and_keeps_its_gradient_layout(device, monkeypatch):
    volume = rand(1, 4, 3, 3, 3, seed=0).to(device).contiguous(memory_format=torch.channels_last_3d)
    seen = []
    original = op_module.launch
    monkeypatch.setattr(op_module, "launch", lambda k, g, p, *a: (seen.append(a), original(k, g, p, *a)))
    leaf = volume.detach().requires_grad_()
    volume_sample(leaf, rand(1, 5, 3, seed=1).to(device), backend="triton").sum().backward()
    assert seen[0][0].data_ptr() == volume.data_ptr()
    assert seen[1][1].data_ptr() == volume.data_ptr()
    assert seen[1][3].stride() == volume.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_volumes(dtype, device):
    shape = (2, 5, 3, 4, 6, 19)
    inputs = case(shape, device)
    inputs["volume"] = inputs["volume"].to(dtype)
    check(inputs, shape)


@pytest.mark.parametrize("upstream", ["expanded", "transposed"])
def test_upstream_layouts(upstream, device):
    shape = (3, 5, 3, 4, 6, 19)
    check(case(shape, device), shape, upstream=upstream)


@pytest.mark.parametrize("wanted", ["volume", "points"])
def test_only_the_wanted_gradient(wanted, device):
    shape = (2, 5, 3, 4, 6, 19)
    check(case(shape, device), shape, wanted={wanted})


@pytest.mark.parametrize(("padding", "align_corners"), MODES, ids=MODE_IDS)
def test_grid_planes_take_the_right_hand_cell(padding, align_corners, device):
    # Sizes 3 and 5 put every voxel centre and the box faces on exact binary fractions.
    steps = torch.arange(-6, 7) / 4.0
    points = torch.cartesian_prod(steps, steps[::3], steps[1::4])[None].to(device)
    shape = (1, 2, 5, 3, 5, points.shape[1])
    check({"volume": rand(*shape[:5], seed=5).to(device), "points": points}, shape, padding, align_corners)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize(("padding", "align_corners"), MODES, ids=MODE_IDS)
def test_coordinates_without_a_cell(padding, align_corners, backend, device):
    volume = rand(1, 2, 3, 4, 5, seed=6).to(device).requires_grad_()
    bad = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, -3e9])
    points = torch.zeros(1, 21, 3)
    for axis in range(3):
        points[0, 7 * axis : 7 * axis + 7, axis] = bad
    points = points.to(device).requires_grad_()
    out = volume_sample(volume, points, padding=padding, align_corners=align_corners, backend=backend)
    out.sum().backward()
    for axis in range(3):
        rows = slice(7 * axis, 7 * axis + 7)
        assert (points.grad[0, rows, axis] == 0).all()
        if padding == "zeros":
            assert (out[0, rows] == 0).all() and (points.grad[0, rows] == 0).all()
        else:
            edge = torch.where(bad > 0, 2.0, -2.0)  # NaN goes with the first cell
            clean = torch.zeros(1, 7, 3)
            clean[0, :, axis] = edge
            options = {"padding": padding, "align_corners": align_corners, "backend": backend}
            assert torch.equal(out[:, rows], volume_sample(volume, clean.to(device), **options))
    assert volume.grad.isfinite().all() and points.grad.isfinite().all()
    assert padding == "border" or (volume.grad == 0).all()


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_nan_voxels_stay_where_they_are(backend, device):
    volume = torch.full((1, 1, 2, 2, 2), float("nan"), device=device)
    outside = torch.full((1, 1, 3), 4.0, device=device, requires_grad=True)
    out = volume_sample(volume, outside, backend=backend)
    out.sum().backward()
    assert out.item() == 0 and (outside.grad == 0).all()


@pytest.mark.parametrize(("padding", "align_corners"), MODES, ids=MODE_IDS)
def test_reference_is_grid_sample(padding, align_corners):
    inputs = {k: v.double().requires_grad_() for k, v in case((2, 3, 4, 1, 6, 50), "cpu").items()}
    volume, points = inputs.values()
    ours = volume_sample_reference(volume, points, padding=padding, align_corners=align_corners)
    theirs = F.grid_sample(volume, points[:, :, None, None], padding_mode=padding, align_corners=align_corners)
    theirs = theirs[..., 0, 0].transpose(1, 2)
    upstream = rand(*ours.shape, seed=9).double()
    torch.testing.assert_close(ours, theirs)
    got = torch.autograd.grad(ours, (volume, points), upstream)
    want = torch.autograd.grad(theirs, (volume, points), upstream)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("padding", "align_corners"), MODES, ids=MODE_IDS)
def test_reference_first_and_second_derivatives(padding, align_corners):
    inputs = tuple(v.double().requires_grad_() for v in case((1, 2, 2, 3, 2, 4), "cpu", reach=1.5).values())

    def sample(volume, points):
        return volume_sample_reference(volume, points, padding=padding, align_corners=align_corners)

    assert torch.autograd.gradcheck(sample, inputs)
    assert torch.autograd.gradgradcheck(sample, inputs)


def test_constant_volume_samples_to_the_constant(device):
    volume = torch.full((1, 3, 4, 4, 4), 0.7, device=device)
    points = rand(1, 40, 3, seed=1).to(device)
    out = volume_sample(volume, points, backend="triton")
    assert (out - 0.7).abs().max() < 1e-6
    out = volume_sample(volume, 10 * points, padding="border", backend="triton")
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
    inputs["volume"] = inputs["volume"].to(dtype).contiguous(memory_format=torch.channels_last_3d)
    check(inputs, shape)


def test_float64_takes_the_reference(device):
    inputs = {k: v.double() for k, v in case((1, 2, 3, 3, 3, 5), device).items()}
    assert volume_sample(**inputs).dtype == torch.float64
    assert volume_sample(inputs["volume"], inputs["points"].float()).dtype == torch.float32


def test_second_order_is_refused(device):
    assert_refuses_second_order(triton_sample(), case((1, 2, 3, 3, 3, 5), device), "volume_sample")


def test_launches_are_listed(monkeypatch, device):
    def run():
        for dtype, channels, last, padding, align in (
            (torch.float32, 1, False, "zeros", True),
            (torch.float32, 128, True, "zeros", True),
            (torch.float16, 64, True, "border", True),
        ):
            inputs = case((1, channels, 2, 2, 2, 3), device)
            volume = inputs["volume"].to(dtype)
            if last:
                volume = volume.contiguous(memory_format=torch.channels_last_3d)
            sample = triton_sample(padding, align)
            sample(volume.requires_grad_(), inputs["points"].requires_grad_()).sum().backward()

    assert_launches_are_listed(monkeypatch, op_module, run, 2)


VOLUME = torch.zeros(2, 3, 4, 4, 4)
POINTS = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, POINTS), TypeError, "volume: expected a torch.Tensor, got NoneType"),
        ((VOLUME.int(), POINTS), TypeError, "volume: expected dtype .*, got int32"),
        ((VOLUME, POINTS.half()), TypeError, "points: expected dtype float32, float64, got float16"),
        ((VOLUME[0], POINTS), ValueError, r"volume: expected shape \[B, C, D, H, W\], got \[3, 4, 4, 4\]"),
        ((VOLUME, POINTS[0]), ValueError, r"points: expected shape \[B, N, 3\].*got \[5, 3\]"),
        ((VOLUME, POINTS[..., :2]), ValueError, r"points: expected shape \[B, N, 3\].*got \[2, 5, 2\]"),
        ((VOLUME, POINTS[:1]), ValueError, r"points: expected shape \[B, N, 3\] with B=2, got \[1, 5, 3\]"),
        ((VOLUME[:, :, :0], POINTS), ValueError, "volume: expected D, H and W of at least 1"),
        ((VOLUME, POINTS.to("meta")), ValueError, "points: expected device cpu as volume, got meta"),
    ],
)
def test_bad_tensors(arguments, error, message):
    with pytest.raises(error, match=message):
        volume_sample(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "reflection"}, "padding: expected one of zeros, border, got 'reflection'"),
        ({"backend": "cuda"}, "backend: expected one of auto, triton, torch, got 'cuda'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        volume_sample(VOLUME, POINTS, **options)


def test_triton_refuses_float64():
    with pytest.raises(ValueError, match="backend: 'triton' takes float16, bfloat16 and float32"):
        volume_sample(VOLUME.double(), POINTS, backend="triton")


def test_cost_by_hand():
    # 2 x 3 points, 5 channels of 2 bytes. In: 12 + 8 * 5 * 2 bytes each; out: 20.
    assert forward_cost(2, 3, 5, 2) == (6 * 92, 6 * 20, 6 * (34 + 80))
    # In: 12 + 20 + (8 * 5 * 4 added to) + 8 * 5 * 2; out: 8 * 5 * 4 and 12.
    assert backward_cost(2, 3, 5, 2) == (6 * 272, 6 * 172, 6 * (34 + 80 + 280 + 15))
    assert backward_cost(2, 3, 5, 2, to_points=False)[:2] == (6 * 192, 6 * 160)
    assert backward_cost(2, 3, 5, 2, to_volume=False)[:2] == (6 * 112, 6 * 12)
