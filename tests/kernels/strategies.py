"""Generated inputs for property tests: sizes, numbers with special values in them, memory layouts, dtypes."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.harness import rand

# The allocation guards span all cases of a test on purpose: one wall touched by one case fails the test.
PROPERTY = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

SPECIAL = (float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9, -3e9, 0.0, -0.0, 1.0, -1.0, 1e-30, 1e-42)

seeds = st.integers(0, 2**31 - 1)
layouts = st.sampled_from(["contiguous", "transposed", "strided", "expanded"])
half_dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


def sizes(block: int, small: int = 9) -> st.SearchStrategy[int]:
    """0, 1, odd and even small sizes, a whole block and one more."""
    return st.one_of(st.integers(0, small), st.sampled_from([0, 1, block, block + 1]))


def numbers(shape: tuple[int, ...], seed: int, low: float, high: float, n_special: int = 0) -> Tensor:
    """Uniform float32 numbers in [low, high), `n_special` of them replaced by NaN, infinities and other extremes."""
    out = rand(*shape, seed=seed, low=low, high=high)
    if out.numel() and n_special:
        generator = torch.Generator().manual_seed(seed)
        places = torch.randint(out.numel(), (n_special,), generator=generator)
        kinds = torch.randint(len(SPECIAL), (n_special,), generator=generator)
        out.view(-1)[places] = torch.tensor(SPECIAL)[kinds]
    return out


def relayout(values: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout ("expanded": the first entry of the first dim, repeated)."""
    if layout == "transposed" and values.dim() >= 2:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided" and values.dim() >= 1:
        wide = values.new_full((*values.shape[:-1], 2 * values.shape[-1] + 1), 777.0)
        wide[..., 1::2] = values
        return wide[..., 1::2]
    if layout == "expanded" and values.dim() >= 1 and values.shape[0]:
        return values[:1].expand(values.shape)
    return values
