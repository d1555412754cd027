"""Batch norm of volumes: torch's, with exact moments where torch's are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ponder.models.volume_norm import BLOCK, VolumeBatchNorm, _Normalise, moments

LAST = torch.channels_last_3d


def sparse_volume(*shape: int) -> Tensor:
    """Mostly empty, as volumes filled from points are."""
    torch.manual_seed(0)
    filled = torch.rand(shape[0], 1, *shape[2:]) < 0.1
    return torch.where(filled, torch.randn(shape) + torch.randn(1, shape[1], 1, 1, 1), 0.0)


def run(norm: nn.BatchNorm3d, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers of one training step, float64."""
    x = x.detach().requires_grad_()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.linspace(0.5, 1.5, len(parameter)))
    out = norm(x)
    torch.manual_seed(1)
    (out.double() * torch.randn(x.shape, dtype=torch.float64)).sum().backward()
    found = {"out": out, "x": x.grad, **{n: p.grad for n, p in norm.named_parameters()}, **dict(norm.named_buffers())}
    return {name: value.detach().double() for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    "settings", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_equals_float64(settings: dict[str, Any]) -> None:
    x = sparse_volume(2, 5, 9, 31, 23)
    assert x.numel() // 5 > 2 * BLOCK
    wanted = run(nn.BatchNorm3d(5, **settings).double(), x.double())
    norm = VolumeBatchNorm(5, **settings)
    found = run(norm, x.contiguous(memory_format=LAST))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=2e-6, atol=2e-6 * float(value.abs().max()), msg=name)
    assert norm(x.contiguous(memory_format=LAST)).is_contiguous(memory_format=LAST)


def test_is_torchs_own_otherwise() -> None:
    x = sparse_volume(2, 4, 6, 5, 7)
    norm, wanted = VolumeBatchNorm(4), nn.BatchNorm3d(4)
    assert norm.state_dict().keys() == wanted.state_dict().keys()
    assert torch.equal(norm(x), wanted(x))
    norm.load_state_dict(wanted.state_dict())
    last = x.contiguous(memory_format=LAST)
    assert torch.equal(norm.eval()(last), wanted.eval()(last))
    with pytest.raises(ValueError, match="5D"):
        norm.train()(x[0])


def test_moments_of_many_voxels() -> None:
    """Where torch's own sum in this layout is off in the fourth digit."""
    x = sparse_volume(1, 16, 32, 128, 128)
    rows = x.permute(0, 2, 3, 4, 1).reshape(-1, 16)
    for found, wanted in zip(moments(rows), (rows.double().mean(0), rows.double().var(0, correction=0)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("affine", [True, False])
def test_gradients(affine: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 3, 2, dtype=torch.float64).contiguous(memory_format=LAST).requires_grad_()
    parameters = [torch.rand(3, dtype=torch.float64).requires_grad_() for _ in range(2)] if affine else [None, None]
    assert torch.autograd.gradcheck(lambda *tensors: _Normalise.apply(*tensors, 1e-5)[0], (x, *parameters))
