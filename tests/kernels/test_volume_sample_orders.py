"""Second and third derivatives of trilinear sampling, and its deterministic gradients."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ponder_kernels import _launch
from ponder_kernels.volume_sample import op as op_module
from ponder_kernels.volume_sample import volume_sample
from ponder_kernels.volume_sample.layout import Options
from ponder_kernels.volume_sample.scatter import op as scatter_module
from tests.kernels.harness import rand
from tests.kernels.volume_sample_cases import (
    LAYOUTS,
    MODES,
    case,
    channels_last,
    check,
    check_second,
    mode_id,
    relaid,
    scale_of,
    terms,
    triton_sample,
    truth,
)
from tests.tolerance import assert_close_to_reference

SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 4, 5, 6, 0),
    (0, 3, 4, 5, 6, 7),
    (2, 0, 4, 5, 6, 7),
    (2, 3, 4, 5, 6, 5),
    (1, 2, 3, 4, 5, 257),
    (1, 66, 3, 4, 2, 5),
]
SHAPE = (2, 5, 3, 4, 6, 9)
# The deterministic scatter is a program per corner of a point: few points, or the interpreter takes long.
SMALL = (2, 3, 2, 3, 2, 3)


@pytest.mark.parametrize("mode", MODES, ids=mode_id)
def test_second_order_options(mode, device):
    shape = (1, 3, 4, 3, 5, 30)
    check_second(case(shape, device, reach=3.0), shape, mode)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}C{}D{}H{}W{}N{}".format(*s))
def test_second_order_shapes(shape, device):
    check_second(case(shape, device), shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_second_order_of_half_volumes(dtype, device):
    inputs = case(SHAPE, device)
    inputs["volume"] = inputs["volume"].to(dtype)
    cotangents = {name: rand(*v.shape, seed=11).to(v) for name, v in inputs.items()}
    check_cotangents(inputs, cotangents, ("volume", "points", "upstream"))


def second_derivatives(sample, inputs, cotangents, wanted) -> list[Tensor | None]:
    """Gradients of <cotangents, first derivatives> to the wanted ones of volume, points and upstream gradient."""
    volume, points = (v.detach().requires_grad_() for v in inputs.values())
    out = sample(volume, points)
    upstream = rand(*out.shape, seed=31).to(out).requires_grad_()
    given = [name for name in ("volume", "points") if name in cotangents]
    sources = {"volume": volume, "points": points, "upstream": upstream}
    first = torch.autograd.grad(out, [sources[name] for name in given], upstream, create_graph=True)
    # Where nothing depends on a source there is no graph to it.
    return torch.autograd.grad(
        first, [sources[name] for name in wanted], [cotangents[name] for name in given], allow_unused=True
    )


def check_cotangents(inputs, cotangents, wanted, mode=MODES[0]):
    got = second_derivatives(triton_sample(mode), inputs, cotangents, wanted)
    double = [{k: v.cpu().double() for k, v in d.items()} for d in (inputs, cotangents)]
    want = second_derivatives(truth(mode), *double, wanted)
    for name, ours, right in zip(wanted, got, want, strict=True):
        if ours is None or right is None:
            present = right if ours is None else ours
            assert present is None or not present.any(), name
            continue
        assert_close_to_reference(ours, right, terms(SHAPE)[name], scale=scale_of(SHAPE, mode), name=name)


@pytest.mark.parametrize("wanted", [("volume",), ("points",), ("upstream",), ("volume", "points", "upstream")])
@pytest.mark.parametrize("given", [("volume",), ("points",), ("volume", "points")])
def test_every_pair_of_cotangent_and_gradient(given, wanted, device):
    inputs = case(SHAPE, device)
    cotangents = {name: rand(*inputs[name].shape, seed=11).to(device) for name in given}
    check_cotangents(inputs, cotangents, wanted, Options("border", False, True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_order_layouts(layout, device):
    """The volume, and separately the cotangent of its gradient, in every layout; strided cotangents of the points."""
    inputs = case(SHAPE, device)
    plain = {"volume": rand(*SHAPE[:5], seed=11).to(device), "points": rand(3, 9, 2, seed=12).to(device)}
    plain["points"] = plain["points"].permute(2, 1, 0)
    every = ("volume", "points", "upstream")
    check_cotangents({**inputs, "volume": relaid(inputs["volume"], layout)}, plain, every)
    plain["volume"] = relaid(plain["volume"], layout)
    check_cotangents({**inputs, "volume": channels_last(inputs["volume"])}, plain, every)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_second_order_gradient_has_the_volumes_layout(dtype, device):
    volume = channels_last(rand(*SHAPE[:5], seed=0).to(device, dtype)).requires_grad_()
    points = case(SHAPE, device)["points"].requires_grad_()
    out = volume_sample(volume, points, backend="triton")
    (slope,) = torch.autograd.grad(out.sum(), points, create_graph=True)
    (gradient,) = torch.autograd.grad(slope.square().sum(), volume)
    assert gradient.stride() == volume.stride() and gradient.dtype == dtype


def launches_of(monkeypatch, run) -> list[tuple[str, dict]]:
    """Kernels and constants of what `run` launches."""
    seen = []

    def record(kernel, grid, plan, *arguments):
        seen.append((kernel.__name__.removeprefix("volume_sample_").removesuffix("_kernel"), dict(plan.constexprs)))
        _launch.launch(kernel, grid, plan, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(op_module, "launch", record)
        patch.setattr(scatter_module, "launch", record)
        run()
    return seen


def eikonal_gradient(inputs, align_corners=True) -> Tensor:
    """Gradient to the volume of a loss on the length of the sampled field's slope."""
    volume, points = (v.detach().requires_grad_() for v in inputs.values())
    out = volume_sample(volume, points, align_corners=align_corners, backend="triton")
    (slope,) = torch.autograd.grad(out.square().sum(), points, create_graph=True)
    (gradient,) = torch.autograd.grad((slope.norm(dim=-1) - 1).square().sum(), volume)
    return gradient


def test_second_order_runs_on_the_kernels(device, monkeypatch):
    seen = launches_of(monkeypatch, lambda: eikonal_gradient(case(SHAPE, device)))
    assert [name for name, _ in seen] == ["forward", "backward", "double_backward", "backward"]
    flags = {k: v for k, v in seen[2][1].items() if k.startswith(("FROM", "TO_"))}
    assert flags == {"FROM_VOLUME": 0, "FROM_POINTS": 1, "TO_OUT": 1, "TO_VOLUME": 1, "TO_POINTS": 1}


@pytest.mark.parametrize("mode", [MODES[0], Options("reflection", False, True)], ids=mode_id)
def test_third_order(mode, device):
    """The torch formula takes over, and leaves no graph behind where none was asked for."""
    inputs = case((1, 2, 3, 3, 3, 6), device)
    results = []
    for sample, dtype in ((triton_sample(mode), torch.float32), (truth(mode), torch.float64)):
        sources = [v.to("cpu" if dtype == torch.float64 else device, dtype).requires_grad_() for v in inputs.values()]
        out = sample(*sources)
        sources.append(rand(*out.shape, seed=21).to(out).requires_grad_())
        first = torch.autograd.grad(out, sources[:2], sources[2], create_graph=True)
        second = torch.autograd.grad([f.square().sum() for f in first], sources, create_graph=True)
        results.append(torch.autograd.grad(sum(s.square().sum() for s in second), sources))
    for name, got, want in zip(("volume", "points", "upstream"), *results, strict=True):
        assert not got.requires_grad
        assert_close_to_reference(got, want, 64, scale=scale_of((1, 2, 3, 3, 3, 6), mode), name=name)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
def test_deterministic_gradients(layout, device, deterministic):
    inputs = case(SMALL, device)
    inputs["volume"] = relaid(inputs["volume"], layout)
    check(inputs, SMALL)
    cotangents = {name: rand(*inputs[name].shape, seed=11).to(device) for name in inputs}
    check_cotangents(inputs, cotangents, ("volume", "points", "upstream"))


@pytest.mark.parametrize("mode", MODES[3::3], ids=mode_id)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1, 1), (2, 3, 4, 5, 6, 0), (2, 0, 3, 3, 3, 5), (1, 130, 2, 2, 3, 2)])
def test_deterministic_shapes_and_options(shape, mode, device, deterministic):
    """Among them two blocks of channels, and nothing to scatter."""
    check(case(shape, device), shape, mode)
    check_second(case(shape, device), shape, mode)


def test_deterministic_gradients_use_no_atomics(device, monkeypatch, deterministic):
    seen = launches_of(monkeypatch, lambda: eikonal_gradient(case(SMALL, device)))
    scattered = ["entries", "scatter"]
    orders = ["forward", *scattered, "backward", *scattered, "double_backward", *scattered, "backward"]
    assert [name for name, _ in seen] == orders
    assert not any(constants.get("TO_VOLUME") for _, constants in seen)


@pytest.fixture
def backwards(monkeypatch):
    """Called with True: the interpreter runs the programs of every grid from the last to the first."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    straight = builder.set_grid_idx

    def reversed_order(*place):
        straight(*(size - 1 - i for size, i in zip(builder.grid_dim, place, strict=True)))

    return lambda turn: monkeypatch.setattr(builder, "set_grid_idx", reversed_order if turn else straight)


def both_orders_of_programs(backwards, device) -> list[tuple[Tensor, ...]]:
    """First- and second-order gradients of a crowded volume, by the programs in their order and in the reverse."""
    # With 64 channels a program owns 8 points.
    shape = (1, 64, 1, 1, 1, 30)
    inputs = case(shape, device, reach=0.9)
    results = []
    for turn in (False, True):
        backwards(turn)
        volume = inputs["volume"].clone().requires_grad_()
        out = volume_sample(volume, inputs["points"], align_corners=False, backend="triton")
        (first,) = torch.autograd.grad(out.square().sum(), volume)
        results.append((first, eikonal_gradient(inputs, align_corners=False)))
    backwards(False)
    return results


@pytest.mark.skipif(torch.cuda.is_available(), reason="the order of programs is the interpreter's")
def test_the_order_of_programs_matters_to_atomics(backwards, device):
    """The control of the next test: several programs add to the same voxels."""
    first, again = both_orders_of_programs(backwards, device)
    assert all(not torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the order of programs is the interpreter's")
def test_deterministic_gradients_do_not_depend_on_the_order_of_programs(backwards, device, deterministic):
    first, again = both_orders_of_programs(backwards, device)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
def test_deterministic_gradients_repeat_on_a_gpu(deterministic):
    shape = (2, 128, 4, 4, 4, 20_011)
    inputs = case(shape, "cuda")
    inputs["volume"] = channels_last(inputs["volume"])
    check(inputs, shape)
    assert torch.equal(eikonal_gradient(inputs), eikonal_gradient(inputs))
