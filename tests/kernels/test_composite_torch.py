"""Compositing as PyTorch operators: registration, torch.compile, torch.func, autocast, compiled forms."""

import pytest
import torch

from ponder_kernels.composite import composite, render_weights
from ponder_kernels.composite import op as op_module
from tests.kernels.citizenship import assert_autocast, assert_compiles, assert_opcheck, assert_transforms, compile_keys
from tests.kernels.composite_cases import alphas, composite_case, offsets_of, packed_alphas, packed_case
from tests.kernels.harness import assert_launches_are_listed, rand

LENGTHS = (0, 3, 0, 0, 5, 1, 0)


def weights_case(lengths, device):
    return {"alpha": packed_alphas(sum(lengths), device), "ray_offsets": offsets_of(lengths, device)}


def pixels_case(lengths, device):
    return {**packed_case(lengths, 3, device, "C"), "ray_offsets": offsets_of(lengths, device)}


@pytest.mark.unguarded
@pytest.mark.parametrize(("packed", "early_stop"), [(False, 0.0), (True, 0.3)], ids=["batched", "packed"])
def test_registered_render_weights(packed, early_stop, device):
    alpha = packed_alphas(9, device) if packed else alphas(3, 5, device)
    offsets = offsets_of(LENGTHS, device) if packed else None
    assert_opcheck(op_module._render_weights, alpha, offsets, 1e-7, early_stop)
    outputs = op_module._render_weights(alpha, offsets, 1e-7, early_stop)
    upstream = rand(*alpha.shape, seed=9).to(device)
    for to_weights, to_transmittance in ((upstream, None), (upstream, upstream)):
        given = (to_weights, to_transmittance, alpha, offsets, *outputs, 1e-7, early_stop, [True, False])
        torch.library.opcheck(op_module._render_weights_backward, given)


@pytest.mark.unguarded
@pytest.mark.parametrize(("packed", "background"), [(False, ""), (True, "RC")], ids=["batched", "packed"])
def test_registered_composite(packed, background, device):
    inputs = packed_case(LENGTHS, 3, device, background) if packed else composite_case(3, 5, 3, device, background)
    tensors = (inputs["weights"], inputs["values"], inputs.get("background"))
    offsets = offsets_of(LENGTHS, device) if packed else None
    assert_opcheck(op_module._composite, *tensors, offsets)
    upstream = rand(len(LENGTHS) if packed else 3, 3, seed=9).to(device)
    for wanted in ([True, False, bool(background), False], [False, True, False, False]):
        torch.library.opcheck(op_module._composite_backward, (upstream, *tensors, offsets, wanted))


# The torch formula takes ceil(log2 of the samples) steps: sizes on both sides of a power of two are two graphs.
@pytest.mark.unguarded
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiles_batched(backend, device):
    assert_compiles(
        lambda alpha: render_weights(alpha, early_stop=0.2, backend=backend),
        [{"alpha": alphas(r, s, device)} for r, s in ((3, 5), (4, 7), (8, 6))],
    )
    assert_compiles(
        lambda **x: composite(**x, backend=backend),
        [composite_case(r, s, 3, device, "C") for r, s in ((2, 5), (4, 7), (8, 6))],
    )


@pytest.mark.unguarded
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiles_packed(backend, device):
    rays = ((2, 1, 0, 3), (0, 4, 1, 2, 0), (1, 5))
    assert_compiles(
        lambda **x: render_weights(**x, early_stop=0.2, backend=backend), [weights_case(r, device) for r in rays]
    )
    assert_compiles(lambda **x: composite(**x, backend=backend), [pixels_case(r, device) for r in rays])


@pytest.mark.unguarded
def test_transforms(device):
    assert_transforms(render_weights, {"alpha": alphas(3, 5, device)}, "alpha")
    assert_transforms(render_weights, weights_case(LENGTHS, device), "alpha")
    for name in ("weights", "values"):
        assert_transforms(composite, composite_case(3, 5, 2, device, "RC"), name)
        assert_transforms(composite, pixels_case(LENGTHS, device), name)


def test_autocast(device):
    for case in ({"alpha": alphas(3, 5, device)}, weights_case(LENGTHS, device)):
        assert_autocast(lambda **x: render_weights(**x, backend="triton"), case, {"alpha"})
    for inputs in (composite_case(3, 5, 2, device, "C"), pixels_case(LENGTHS, device)):
        assert_autocast(lambda **x: composite(**x, backend="triton"), inputs, {"weights", "values", "background"})


def test_autocast_leaves_half_values_alone(device, monkeypatch):
    """Values may stay half: widening them would double the traffic of the operator."""
    seen = []
    monkeypatch.setattr(op_module, "_launch_composite", lambda *tensors: seen.append(tensors[1].dtype))
    inputs = composite_case(3, 5, 2, device)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        composite(inputs["weights"].bfloat16(), inputs["values"].bfloat16(), backend="triton")
    assert seen == [torch.bfloat16]


def test_batched_sizes_do_not_recompile(monkeypatch, device):
    def run(rays, samples):
        inputs = {k: v.requires_grad_() for k, v in composite_case(rays, samples, 3, device, "RC").items()}

        def step():
            weights, _ = render_weights(inputs["weights"], backend="triton")
            composite(weights, inputs["values"], inputs["background"], backend="triton").sum().backward()

        return step

    counts = compile_keys(monkeypatch, op_module, [run(*s) for s in ((1, 1), (1, 16), (3, 5), (16, 16), (17, 33))])
    assert len(counts) == 4 and set(counts.values()) == {1}, counts


def test_strided_sizes_do_not_recompile(monkeypatch, device):
    """Values in memory order [C, R, S]: all strides depend on the sizes, 16 divides them now and then."""

    def run(rays, samples):
        weights = rand(rays, samples, seed=1).to(device)
        values = rand(3, rays, samples, seed=2).to(device).permute(1, 2, 0).requires_grad_()
        return lambda: composite(weights, values, backend="triton").sum().backward()

    counts = compile_keys(monkeypatch, op_module, [run(*s) for s in ((2, 1), (1, 16), (3, 5), (16, 16), (17, 33))])
    assert len(counts) == 2 and set(counts.values()) == {1}, counts


def test_packed_sizes_do_not_recompile(monkeypatch, device):
    def run(lengths):
        inputs, offsets = packed_case(lengths, 3, device), offsets_of(lengths, device)
        inputs = {k: v.requires_grad_() for k, v in inputs.items()}

        def step():
            weights, _ = render_weights(inputs["weights"], ray_offsets=offsets, early_stop=0.1, backend="triton")
            composite(weights, inputs["values"], ray_offsets=offsets, backend="triton").sum().backward()

        return step

    counts = compile_keys(monkeypatch, op_module, [run(s) for s in ((1,), (16,), (8, 0, 8), (47, 1, 2), (4,) * 16)])
    assert len(counts) == 4 and set(counts.values()) == {1}, counts


def test_launches_are_listed(monkeypatch, device):
    def run():
        alpha, packed = alphas(2, 5, device).requires_grad_(), packed_alphas(9, device).requires_grad_()
        for samples, offsets, early_stop in (
            (alpha, None, 0.0),
            (alpha, None, 0.1),
            (packed, offsets_of(LENGTHS, device), 0.0),
            (packed, offsets_of(LENGTHS, device, torch.int32), 0.1),
        ):
            for use in (lambda w, t: w, lambda w, t: t, lambda w, t: w + t):
                out = render_weights(samples, ray_offsets=offsets, early_stop=early_stop, backend="triton")
                use(*out).sum().backward()
        for channels, background, dtype in ((1, "", torch.float32), (3, "RC", torch.float32), (64, "", torch.bfloat16)):
            for lengths in (None, LENGTHS):
                inputs = composite_case(len(LENGTHS), 5, channels, device, background, lengths)
                inputs["values"] = inputs["values"].to(dtype)
                leaves = {k: v.requires_grad_() for k, v in inputs.items()}
                offsets = None if lengths is None else offsets_of(lengths, device)
                composite(**leaves, ray_offsets=offsets, backend="triton").sum().backward()

    assert_launches_are_listed(monkeypatch, op_module, run, 4)
