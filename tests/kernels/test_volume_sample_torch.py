"""Trilinear sampling as PyTorch and Triton meet it: torch.library, torch.compile, compiled forms, bad calls, costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ponder_kernels.volume_sample import op as op_module
from ponder_kernels.volume_sample import volume_sample
from ponder_kernels.volume_sample.cost import backward_cost, double_backward_cost, forward_cost, scatter_cost
from ponder_kernels.volume_sample.layout import Options
from ponder_kernels.volume_sample.scatter import op as scatter_module
from tests.kernels.citizenship import (
    assert_autocast,
    assert_compiles,
    assert_opcheck,
    assert_transforms,
    compile_keys,
)
from tests.kernels.harness import assert_launches_are_listed, rand
from tests.kernels.volume_sample_cases import case, channels_last, relaid, triton_sample

SHAPE = (1, 2, 3, 2, 4, 5)
MIRROR = Options("reflection", False, True)


@pytest.mark.unguarded
@pytest.mark.parametrize("layout", ["channels-last", "expanded"])
def test_registered_operators(layout, device):
    volume, points = case(SHAPE, device).values()
    volume = relaid(volume, layout)
    upstream = rand(1, 5, 2, seed=9).to(device)
    assert_opcheck(op_module._volume_sample, volume, points, *MIRROR)
    assert_opcheck(op_module._volume_sample_backward, upstream, volume, points, *MIRROR, [True, True])
    assert_opcheck(op_module._volume_sample_backward, upstream, volume, points, *MIRROR, [layout == "expanded", True])
    cotangents = (rand(*volume.shape, seed=3).to(device), rand(*points.shape, seed=4).to(device))
    inputs = (upstream, volume, points, *MIRROR, [True, False, True])
    torch.library.opcheck(op_module._volume_sample_double_backward, (*cotangents, *inputs))
    torch.library.opcheck(op_module._volume_sample_double_backward, (None, cotangents[1], *inputs))


# Two sizes that are equal at first count as one for good, so they all differ, from the 3 coordinates too.
COMPILED = ((2, 8, 4, 5, 6, 7), (3, 2, 6, 4, 5, 2))


@pytest.mark.unguarded
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiles(backend, device):
    cases = [case(shape, device) for shape in COMPILED]
    assert_compiles(lambda **x: volume_sample(**x, **MIRROR._asdict(), backend=backend), cases)


@pytest.mark.unguarded
def test_compiles_deterministically(device):
    torch.use_deterministic_algorithms(True)
    try:
        assert_compiles(lambda **x: volume_sample(**x, backend="triton"), [case((2, 3, 4, 5, 6, 2), device)])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.unguarded
@pytest.mark.parametrize("name", ["volume", "points"])
def test_transforms(name, device):
    assert_transforms(lambda **x: volume_sample(**x, **MIRROR._asdict()), case(SHAPE, device), name)


def test_autocast(device):
    """Half-precision points become float32; a half-precision volume is sampled as it is."""
    inputs = case(SHAPE, device)
    assert_autocast(lambda **x: volume_sample(**x, backend="triton"), inputs, {"points"})
    with torch.autocast(device, dtype=torch.bfloat16):
        got = volume_sample(inputs["volume"].bfloat16(), inputs["points"].bfloat16(), backend="triton")
    want = volume_sample(inputs["volume"].bfloat16(), inputs["points"].bfloat16().float(), backend="triton")
    assert torch.equal(got, want)


# B, D, H, W, N: ones, multiples of 16, odd ones.
SIZES = [(1, 1, 1, 1, 1), (2, 3, 1, 1, 16), (1, 1, 16, 1, 2), (3, 1, 1, 16, 3), (1, 4, 16, 4, 1), (2, 3, 5, 7, 9)]


@pytest.mark.parametrize(("channels", "last"), [(1, False), (3, False), (16, True), (6, True)])
def test_sizes_do_not_recompile(channels, last, device, monkeypatch):
    """Every derivative of volumes and clouds of all sizes runs on one compiled form of each kernel."""

    def run(b, d, h, w, n):
        volume, points = (v.requires_grad_() for v in case((b, channels, d, h, w, n), device).values())
        # As a network's layer lays it out, dims of size 1 included.
        volume = volume.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3) if last else volume
        out = volume_sample(volume, points, backend="triton")
        first = torch.autograd.grad(out, (volume, points), torch.ones_like(out).requires_grad_(), create_graph=True)
        torch.autograd.grad(first, (volume, points), [torch.ones_like(f) * 0.5 for f in first])

    # Where D = H = W = 1 nothing tells which dim was meant to be the last in memory.
    sizes = [s for s in SIZES if not last or s[1:4] != (1, 1, 1)]
    counts = compile_keys(monkeypatch, op_module, [lambda s=s: run(*s) for s in sizes])
    assert len(counts) == 3 and set(counts.values()) == {1}, counts


def test_deterministic_sizes_do_not_recompile(device, monkeypatch):
    def run(b, d, h, w, n):
        volume, points = case((b, 2, d, h, w, n), device).values()
        leaf = volume.requires_grad_()
        volume_sample(leaf, points, backend="triton").sum().backward()

    torch.use_deterministic_algorithms(True)
    try:
        runs = [lambda s=s: run(*s) for s in ((1, 1, 1, 1, 1), (1, 16, 1, 1, 2), (2, 3, 2, 2, 1))]
        counts = compile_keys(monkeypatch, scatter_module, runs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(counts) == 2 and set(counts.values()) == {1}, counts


def test_launches_are_listed(monkeypatch, device):
    def run():
        for dtype, channels, last, options in (
            (torch.float32, 1, False, Options("zeros", True, False)),
            (torch.float32, 4, True, MIRROR),
            (torch.float32, 128, True, Options("zeros", True, False)),
            (torch.float16, 64, True, Options("border", True, True)),
        ):
            volume, points = case((1, channels, 2, 2, 2, 3), device).values()
            volume = (channels_last(volume) if last else volume).to(dtype).requires_grad_()
            points.requires_grad_()
            out = triton_sample(options)(volume, points)
            upstream = torch.ones_like(out).requires_grad_()
            first = torch.autograd.grad(out, (volume, points), upstream, create_graph=True)
            torch.autograd.backward(first, [f.detach() for f in first])

    assert_launches_are_listed(monkeypatch, op_module, run, 3)


def test_deterministic_launches_are_listed(monkeypatch, device):
    def run():
        for channels, options in ((1, Options("zeros", True, False)), (3, Options("reflection", True, True))):
            volume, points = (v.requires_grad_() for v in case((1, channels, 2, 2, 2, 1), device).values())
            out = triton_sample(options)(volume, points)
            (slope,) = torch.autograd.grad(out.sum(), points, create_graph=True)
            torch.autograd.grad(slope.sum(), volume)

    torch.use_deterministic_algorithms(True)
    try:
        assert_launches_are_listed(monkeypatch, scatter_module, run, 2)
    finally:
        torch.use_deterministic_algorithms(False)


WIDE = """
import json, re, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ponder_kernels.volume_sample.op import specialisations
found = {}
for form in specialisations():
    constants, kind = form.constexprs, form.kernel.__name__
    every = constants.get("TO_VOLUME", True) and constants.get("TO_POINTS", True)
    if constants["C"] != 128 or form.signature["volume_ptr"] != "*fp32" or "double" in kind or not every:
        continue
    aligned = {(form.kernel.arg_names.index(a),): [["tt.divisibility", 16]] for a in form.aligned}
    source = ASTSource(form.kernel, dict(form.signature), constexprs=dict(constants), attrs=aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": form.num_warps}).asm["ptx"]
    found[kind] = [len(re.findall(pattern, ptx)) for pattern in (r"ld[.]global\\S*[.]v4", r"red[.]\\S*[.]v4")]
print(json.dumps(found))
"""


def test_channels_last_is_read_and_added_to_four_channels_at_a_time():
    """128-bit loads and atomic adds in the code for sm_90, although no stride is part of the compiled form."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", WIDE], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Eight corners to load; in the backward a tile of the upstream gradient too, and eight corners to add to.
    want = {"volume_sample_forward_kernel": [8, 0], "volume_sample_backward_kernel": [9, 8]}
    assert json.loads(done.stdout) == want


VOLUME = torch.zeros(2, 3, 4, 4, 4)
POINTS = torch.zeros(2, 5, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, POINTS), TypeError, "volume: expected a torch.Tensor, got NoneType"),
        ((VOLUME, [0.0]), TypeError, "points: expected a torch.Tensor, got list"),
        ((VOLUME.int(), POINTS), TypeError, "volume: expected dtype .*, got int32"),
        ((VOLUME.bool(), POINTS), TypeError, "volume: expected dtype .*, got bool"),
        ((VOLUME.cfloat(), POINTS), TypeError, "volume: expected dtype .*, got complex64"),
        ((VOLUME, POINTS.half()), TypeError, "points: expected dtype float32, float64, got float16"),
        ((VOLUME, POINTS.long()), TypeError, "points: expected dtype float32, float64, got int64"),
        ((VOLUME[0], POINTS), ValueError, r"volume: expected shape \[B, C, D, H, W\], got \[3, 4, 4, 4\]"),
        ((VOLUME, POINTS[0]), ValueError, r"points: expected shape \[B, N, 3\].*got \[5, 3\]"),
        ((VOLUME, POINTS[..., :2]), ValueError, r"points: expected shape \[B, N, 3\].*got \[2, 5, 2\]"),
        ((VOLUME, POINTS[:1]), ValueError, r"points: expected shape \[B, N, 3\] with B=2, got \[1, 5, 3\]"),
        ((VOLUME[:, :, :0], POINTS), ValueError, "volume: expected D, H and W of at least 1"),
        ((VOLUME[..., :0], POINTS), ValueError, r"volume: expected D, H and W of at least 1, got \[2, 3, 4, 4, 0\]"),
        ((VOLUME, POINTS.to("meta")), ValueError, "points: expected device cpu as volume, got meta"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_bad_tensors(arguments, error, message, backend, guarded_allocations):
    with pytest.raises(error, match=message):
        volume_sample(*arguments, backend=backend)
    assert not guarded_allocations.buffers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "wrap"}, "padding: expected one of zeros, border, reflection, got 'wrap'"),
        ({"padding": None}, "padding: expected one of zeros, border, reflection, got None"),
        ({"backend": "cuda"}, "backend: expected one of auto, triton, torch, got 'cuda'"),
    ],
)
def test_bad_options(options, message, guarded_allocations):
    with pytest.raises(ValueError, match=message):
        volume_sample(VOLUME, POINTS, **options)
    assert not guarded_allocations.buffers


def test_triton_refuses_float64():
    with pytest.raises(ValueError, match="backend: 'triton' takes float16, bfloat16 and float32"):
        volume_sample(VOLUME.double(), POINTS, backend="triton")


def test_cost_by_hand():
    # 2 x 3 points, 5 channels of 2 bytes. In: 12 + 8 * 5 * 2 bytes each; out: 20.
    assert forward_cost(2, 3, 5, 2) == (6 * 92, 6 * 20, 6 * (30 + 80))
    # In: 12 + 20 + (8 * 5 * 4 added to) + 8 * 5 * 2; out: 8 * 5 * 4 and 12.
    assert backward_cost(2, 3, 5, 2) == (6 * 272, 6 * 172, 6 * (30 + 80 + 32 + 280 + 15))
    assert backward_cost(2, 3, 5, 2, to_points=False)[:2] == (6 * 192, 6 * 160)
    assert backward_cost(2, 3, 5, 2, to_volume=False)[:2] == (6 * 112, 6 * 12)


def test_second_order_cost_by_hand():
    # In: points, upstream, direction; two times 8 corners; the volume's gradient. Out: upstream, volume, points.
    read, written = 12 + 20 + 12 + 2 * 80 + 160, 20 + 160 + 12
    flops = 30 + 36 + 64 + 32 + 2 * (80 + 280) + 80 + 15
    assert double_backward_cost(2, 3, 5, 2) == (6 * read, 6 * written, 6 * flops)
    # A loss on the points' gradient alone, with fixed points: one gather, three of the products.
    loss = double_backward_cost(1, 1, 5, 2, from_volume=False, to_points=False)
    assert loss == (12 + 20 + 12 + 80 + 160, 20 + 160, 30 + 36 + 80 + 80)


def test_scatter_cost_by_hand():
    # One point, 5 channels, 4 of its corners inside. Listed: 12 in, 8 * 12 out; summed: 8 * (20 + 20) in, 4 rows out.
    assert scatter_cost(1, 1, 5, 4) == (12 + 320, 96 + 80, 30 + 80)
    assert scatter_cost(1, 1, 5, 4, along=True) == (24 + 320, 96 + 80, 66 + 80)
