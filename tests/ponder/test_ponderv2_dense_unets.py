"""Dense networks of PonderV2: arithmetic, settings, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.models.dense_unet import DenseUNet, SimpleConv3D
from ponder.models.ponderv2.build import build_model
from ponder.models.ponderv2.networks import UNet3D, UNet3Dv1m2


def scatter_state(model: nn.Module) -> None:
    """Weights and statistics far from their start, so that each of them counts."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) * 0.4)


def dense_reference(state: dict[str, Tensor], x: Tensor, double: bool, levels: int) -> Tensor:
    """UNet3D-v1m1 or v1m2 in evaluation, from its description."""

    def unit(name: str, y: Tensor) -> Tensor:
        mean, var, weight, bias = (
            state[f"{name}.batchnorm.{p}"] for p in ("running_mean", "running_var", "weight", "bias")
        )
        return F.conv3d(F.batch_norm(y, mean, var, weight, bias), state[f"{name}.conv.weight"], padding=1).relu()

    def level(name: str, y: Tensor) -> Tensor:
        return unit(f"{name}.SingleConv2", unit(f"{name}.SingleConv1", y)) if double else unit(name, y)

    skips = []
    for i in range(levels):
        x = level(f"encoders.{i}.basic_module", F.max_pool3d(x, 2) if i else x)
        skips.append(x)
    skips.pop()
    for j in range(levels - 1):
        skip = skips.pop()
        if double:
            joined = torch.cat([skip, F.interpolate(x, skip.shape[2:], mode="nearest")], 1)
        else:
            weight, bias = (state[f"decoders.{j}.upsampling.upsample.{p}"] for p in ("weight", "bias"))
            joined = skip + F.conv_transpose3d(x, weight, bias, stride=2, padding=1, output_padding=1)
        x = level(f"decoders.{j}.basic_module", joined)
    return F.conv3d(x, state["final_conv.weight"], state["final_conv.bias"])


@pytest.mark.parametrize(
    ("kind", "size"), [("UNet3D-v1m1", (8, 4, 12)), ("UNet3D-v1m1", (9, 7, 5)), ("UNet3D-v1m2", (8, 4, 12))]
)
def test_dense_unets_equal_their_description(kind: str, size: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = build_model({"type": kind, "in_channels": 3, "out_channels": 5, "f_maps": 4, "num_levels": 3}).eval()
    scatter_state(model)
    x = torch.randn(2, 3, *size)
    wanted = dense_reference(model.state_dict(), x, kind == "UNet3D-v1m1", 3)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["UNet3D-v1m1", "UNet3D-v1m2"])
def test_half_precision_of_thin_volumes(kind: str) -> None:
    """Two voxels under a kernel of three: oneDNN's own gradient by bfloat16 weights is whatever lay in memory."""
    torch.manual_seed(0)
    model = build_model({"type": kind, "in_channels": 8, "out_channels": 8, "f_maps": 16, "num_levels": 3})
    x = torch.randn(1, 8, 8, 16, 16)
    gradients = []
    for half in (False, True):
        model.zero_grad()
        # So that memory that is not written holds something else than 0.
        filled = [torch.full((size,), torch.inf) for size in (2**16, 2**18, 2**20)]
        del filled
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = model(x)
        assert out.dtype == (torch.bfloat16 if half else torch.float32)
        out.float().square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for name, wanted in gradients[0].items():
        assert (gradients[1][name] - wanted).norm() <= 0.5 * wanted.norm() + 1e-3, name


def test_dense_unet_options() -> None:
    x = torch.randn(1, 3, 4, 4, 4)
    widths = UNet3Dv1m2(3, 5, f_maps=[4, 6], layer_order="crg", num_groups=2)
    assert widths(x).shape == (1, 5, 4, 4, 4) and widths.encoders[1].basic_module[0].weight.shape[:2] == (6, 4)
    assert [name for name, _ in widths.encoders[0].basic_module.named_children()] == ["conv", "ReLU", "groupnorm"]
    assert (
        widths.encoders[0].basic_module.conv.bias is None and widths.encoders[0].basic_module.groupnorm.num_groups == 2
    )
    biased = UNet3D(3, 5, f_maps=4, num_levels=1, layer_order="cl")
    assert [name for name, _ in biased.encoders[0].basic_module.SingleConv1.named_children()] == ["conv", "LeakyReLU"]
    assert biased.encoders[0].basic_module.SingleConv1.conv.bias is not None
    assert biased.encoders[0].basic_module.SingleConv1.LeakyReLU.negative_slope == 0.1
    # Fewer channels than groups: one group, as before a first convolution of 3 channels.
    assert (
        UNet3D(3, 5, f_maps=8, layer_order="gce", num_levels=2)
        .encoders[0]
        .basic_module.SingleConv1.groupnorm.num_groups
        == 1
    )
    for sigmoid, total in ((True, None), (False, 1.0)):
        end = UNet3D(3, 5, sigmoid, f_maps=4, num_levels=2, testing=True).eval()(x)
        assert end.min() >= 0 and end.max() <= 1
        if total is not None:
            torch.testing.assert_close(end.sum(1), torch.ones(1, 4, 4, 4))
    assert UNet3D(3, 5, f_maps=4, num_levels=2).eval()(x).min() < 0


def test_dense_networks_refuse_what_does_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"volume: expected multiples of 4 voxels per axis, got shape \[1, 3, 4, 8, 6\]"
    ):
        DenseUNet(3, 5, 4, 3)(torch.zeros(1, 3, 4, 8, 6))
    with pytest.raises(ValueError, match="volume: expected at least 4 voxels per axis"):
        DenseUNet(3, 5, 4, 3, double=True)(torch.zeros(1, 3, 3, 8, 8))
    for order in ("rc", "bcx", "bb", "bcb", "", "br"):
        with pytest.raises(ValueError, match="order: expected distinct letters"):
            DenseUNet(3, 5, order=order)
    with pytest.raises(ValueError, match="groups: expected a divisor of the 6 channels, got 4"):
        DenseUNet(3, 5, (6, 8), order="cg", groups=4)
    with pytest.raises(ValueError, match="levels: expected at least 1, got 0"):
        DenseUNet(3, 5, levels=0)
    model = SimpleConv3D(3, 4, kernel_size=1, padding=0, stride=2)
    assert model(torch.randn(2, 3, 4, 6, 8)).shape == (2, 4, 2, 3, 4) and model(torch.randn(2, 3, 4, 6, 8)).min() == 0
