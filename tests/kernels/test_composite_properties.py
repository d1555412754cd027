"""Generated cases for compositing: any size, layout, offsets and number, forward and backward in every case."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from ponder_kernels.composite import composite, render_weights
from ponder_kernels.composite import op as op_module
from ponder_kernels.composite.reference import composite_reference, render_weights_reference
from tests.kernels.composite_cases import offsets_of
from tests.kernels.harness import rand
from tests.kernels.strategies import PROPERTY, half_dtypes, layouts, numbers, relayout, seeds, sizes
from tests.tolerance import assert_within_rounding

# Small blocks, so that small shapes cross their edges: an interpreted scan takes a time proportional to its block.
BLOCK_R, BLOCK_S = 2, 4

# (R, S), or the lengths of packed rays.
counts = sizes(BLOCK_S, small=BLOCK_S + 2)
batched = st.tuples(sizes(BLOCK_R, small=3), counts)
packed = st.lists(counts, max_size=3)
specials = st.integers(0, 3)
offset_dtypes = st.sampled_from([torch.int32, torch.int64])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    for name in ("BATCHED_BLOCKS", "PACKED_BLOCKS"):
        monkeypatch.setattr(op_module, name, {"BLOCK_R": BLOCK_R, "BLOCK_S": BLOCK_S})
    monkeypatch.setattr(op_module, "MAX_BLOCK_S", BLOCK_S)
    monkeypatch.setattr(op_module, "MAX_BLOCK_C", 4)


def shape_and_offsets(
    rays: tuple[int, int] | list[int], device: str, dtype: torch.dtype
) -> tuple[tuple[int, ...], Tensor | None]:
    """Shape of the samples, and offsets where the rays are packed."""
    return (rays, None) if isinstance(rays, tuple) else ((sum(rays),), offsets_of(rays, device, dtype))


def opacities(shape: tuple[int, ...], seed: int, n_special: int) -> Tensor:
    """Mostly in [0, 1); exact zeros and ones, NaN, infinities, -1 and tiny numbers among them.

    Huge finite numbers are left out: whether their products overflow depends on the order of multiplication.
    """
    alpha = numbers(shape, seed, 0.0, 1.0, n_special)
    return torch.where(alpha.isfinite() & (alpha.abs() > 2), 1.0, alpha)


def term_sizes(alpha: Tensor, offsets: Tensor | None, eps: float, upstream: list[Tensor], live: Tensor) -> list[Tensor]:
    """Sizes of the terms of the weights, the transmittance and alpha's gradient, all in float64.

    With |factors| for factors every product is positive, and so is every term of the derivative by a factor.
    """
    factors = torch.where(live, (1.0 - alpha).abs() + eps, 1.0).requires_grad_()
    size = alpha.abs() * live
    # The formula takes 1 - alpha: an alpha of 1 - factor gives back the factors.
    _, products = render_weights_reference(1.0 - factors, offsets, 0.0)
    seen = (products * (size * upstream[0].abs() + upstream[1].abs()) * live).sum()
    (behind,) = torch.autograd.grad(seen, factors)
    products = products.detach()
    return [size * products, products, upstream[0].abs() * products + behind]


def check_weights(
    alpha: Tensor, offsets: Tensor | None, eps: float, early_stop: float, used: tuple[bool, bool]
) -> None:
    host = None if offsets is None else offsets.cpu()
    truth = alpha.detach().cpu().double().requires_grad_()
    want = render_weights_reference(truth, host, eps, early_stop)
    single = render_weights_reference(alpha.detach().cpu(), host, eps, early_stop)
    # A transmittance that rounding puts on the other side of early_stop ends the ray elsewhere.
    live = torch.ones_like(truth, dtype=torch.bool) if early_stop == 0.0 else want[1] != 0.0
    assume(early_stop == 0.0 or torch.equal(live, single[1] != 0.0))
    passing = render_weights_reference(truth.detach(), host, eps)[1]
    assume(not ((passing - early_stop).abs() < 1e-5 * early_stop).any())

    leaf = alpha.detach().requires_grad_()
    got = render_weights(leaf, ray_offsets=offsets, eps=eps, early_stop=early_stop, backend="triton")
    assert all(x.shape == alpha.shape and x.dtype == torch.float32 for x in got)
    upstream = [rand(*alpha.shape, seed=k).double() * on for k, on in enumerate(used)]
    for outputs in (got, want):
        kept = [(o, g.to(o)) for o, g, on in zip(outputs, upstream, used, strict=True) if on]
        torch.autograd.backward([o for o, _ in kept], [g for _, g in kept])
    assert leaf.grad is not None and truth.grad is not None
    magnitudes = term_sizes(truth.detach(), host, eps, upstream, live)
    for name, ours, theirs, size in zip(
        ("weights", "transmittance", "gradient"), (*got, leaf.grad), (*want, truth.grad), magnitudes, strict=True
    ):
        assert_within_rounding(ours, theirs, size, n_terms=alpha.shape[-1], dtype=torch.float32, name=name)


@PROPERTY
@given(
    rays=st.one_of(batched, packed),
    seed=seeds,
    n_special=specials,
    layout=layouts,
    offset_dtype=offset_dtypes,
    eps=st.sampled_from([0.0, 1e-7, 0.1]),
    early_stop=st.sampled_from([0.0, 0.05, 0.5]),
    used=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_render_weights(device, rays, seed, n_special, layout, offset_dtype, eps, early_stop, used):
    shape, offsets = shape_and_offsets(rays, device, offset_dtype)
    alpha = relayout(opacities(shape, seed, n_special).to(device), layout)
    check_weights(alpha, offsets, eps, early_stop, used)


def check_composite(inputs: dict[str, Tensor], offsets: Tensor | None, rays: int) -> None:
    host = None if offsets is None else offsets.cpu()
    leaves = {k: v.detach().requires_grad_() for k, v in inputs.items()}
    truths = {k: v.detach().cpu().double().requires_grad_() for k, v in inputs.items()}
    # Sums of absolute terms: the rounding that each result may show. 1 - sum w grows to 1 + sum |w|.
    sizes_of = {k: (-v.detach().abs() if k == "weights" else v.detach().abs()) for k, v in truths.items()}
    sizes_of = {k: v.requires_grad_() for k, v in sizes_of.items()}

    def formula(weights: Tensor, values: Tensor, background: Tensor | None = None) -> Tensor:
        behind = None if background is None else background.expand(rays, values.shape[-1])
        return composite_reference(weights, values, behind, host)

    got = composite(**leaves, ray_offsets=offsets, backend="triton")
    want = formula(**truths)
    # -|w| with -|v| and |b|: |w| |v| + |b| (1 + sum |w|).
    negated = {k: -v if k == "values" else v for k, v in sizes_of.items()}
    size = formula(**negated)
    assert got.shape == (rays, inputs["values"].shape[-1]) and got.dtype == torch.float32
    n = inputs["weights"].shape[-1] + 1
    assert_within_rounding(got, want, size, n_terms=n, dtype=torch.float32, name="output")
    upstream = rand(*want.shape, seed=3).double()
    got.backward(upstream.to(got))
    want.backward(upstream)
    size.backward(upstream.abs())
    for name, leaf in leaves.items():
        assert leaf.grad is not None and leaf.grad.dtype == leaf.dtype
        sums = {"weights": 2 * want.shape[-1], "values": 1, "background": inputs["weights"].numel() + rays}[name]
        magnitude = sizes_of[name].grad.abs()
        label = f"gradient of {name}"
        assert_within_rounding(leaf.grad, truths[name].grad, magnitude, n_terms=sums, dtype=leaf.dtype, name=label)


@PROPERTY
@given(
    rays=st.one_of(batched, packed),
    channels=st.sampled_from([0, 1, 3, 4, 5]),
    background=st.sampled_from(["", "C", "RC"]),
    seed=seeds,
    n_special=specials,
    layout=layouts,
    dtype=half_dtypes,
    offset_dtype=offset_dtypes,
)
def test_composite(device, rays, channels, background, seed, n_special, layout, dtype, offset_dtype):
    shape, offsets = shape_and_offsets(rays, device, offset_dtype)
    count = shape[0] if offsets is None else offsets.shape[0] - 1
    inputs = {
        "weights": numbers(shape, seed, -0.2, 1.0, n_special),
        "values": relayout(numbers((*shape, channels), seed + 1, -2.0, 2.0, n_special).to(dtype), layout),
    }
    if background:
        colours = (channels,) if background == "C" else (count, channels)
        inputs["background"] = relayout(numbers(colours, seed + 2, -2.0, 2.0, n_special), layout)
    check_composite({k: v.to(device) for k, v in inputs.items()}, offsets, count)
