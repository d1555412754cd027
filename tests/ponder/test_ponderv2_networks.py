"""Sparse backbones of PonderV2: arithmetic, initialisation, norms, and the batches they refuse."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.models.pdnorm_unet import PDNorm, PDNormUNet
from ponder.models.ponderv2.build import build_model
from ponder.models.ponderv2.networks import PromptedSpUNet, SpUNet
from ponder.models.sparse_engine import load_engine
from ponder.models.sparse_unet import PointwiseConv, SparseUNet
from ponder.render.ponderv2 import Parity

TINY = {"base_channels": 3, "channels": (4, 5, 6, 7), "layers": (1, 2, 2, 1)}


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = SpUNet(6, 13, **{**TINY, "channels": (16, 24, 24, 16), "base_channels": 12})
    drawn = torch.cat(
        [model.enc[0].block0.conv1.weight.flatten(), model.dec[0].block0.proj.get_submodule("0").weight.flatten()]
    )
    assert abs(drawn.std().item() - 0.02) < 0.001 and model.final.bias.abs().sum() == 0
    bound = 1 / math.sqrt(12 * 8)
    down = model.down[0].get_submodule("0").weight
    assert 0.9 * bound < down.abs().max() <= bound


# A U-Net on dense volumes that are 0 wherever there is no voxel, from the conventions of sparse convolution.


def dense_unet(state: dict[str, Tensor], x: Tensor, active: Tensor, stages: int, reinterpreted: bool) -> Tensor:
    """SpUNet-v1m1 in evaluation: features [C, X, Y, Z] of the voxels where `active` [1, X, Y, Z] is 1."""

    def kernel(name: str) -> Tensor:
        return state[f"{name}.weight"].permute(0, 4, 1, 2, 3)

    def norm(name: str, y: Tensor, mask: Tensor) -> Tensor:
        weight, bias, mean, var = (state[f"{name}.{p}"] for p in ("weight", "bias", "running_mean", "running_var"))
        return F.batch_norm(y[None], mean, var, weight, bias, eps=1e-3)[0] * mask

    def subm(name: str, y: Tensor, mask: Tensor) -> Tensor:
        w = kernel(name)
        return F.conv3d(y[None], w, padding=w.shape[-1] // 2)[0] * mask

    def pointwise(name: str, y: Tensor) -> Tensor:
        w = state[f"{name}.weight"]
        out, wide = w.shape[0], w.shape[-1]
        matrix = w.reshape(wide, out).T if reinterpreted else w.reshape(out, wide)
        return torch.einsum("oi,ixyz->oxyz", matrix, y)

    def blocks(name: str, y: Tensor, mask: Tensor) -> Tensor:
        for i in range(sum(key.startswith(name) and key.endswith("conv1.weight") for key in state)):
            b = f"{name}.block{i}"
            z = norm(f"{b}.bn1", subm(f"{b}.conv1", y, mask), mask).relu()
            z = norm(f"{b}.bn2", subm(f"{b}.conv2", z, mask), mask)
            if f"{b}.proj.0.weight" in state:
                y = norm(f"{b}.proj.1", pointwise(f"{b}.proj.0", y), mask)
            y = (z + y).relu()
        return y

    x = norm("conv_input.1", subm("conv_input.0", x, active), active).relu()
    skips = []
    for s in range(stages):
        skips.append((x, active))
        active = F.max_pool3d(active, 2)
        x = norm(f"down.{s}.1", F.conv3d(x[None], kernel(f"down.{s}.0"), stride=2)[0], active).relu()
        x = blocks(f"enc.{s}", x, active)
    for s in reversed(range(stages)):
        skip, active = skips.pop()
        up = F.conv_transpose3d(x[None], kernel(f"up.{s}.0").transpose(0, 1), stride=2)[0]
        x = torch.cat([norm(f"up.{s}.1", up, active).relu(), skip])
        x = blocks(f"dec.{s}", x, active)
    return pointwise("final", x) + state["final.bias"][:, None, None, None]


def scatter_state(model: nn.Module) -> None:
    """Weights and statistics far from their start, so that each of them counts."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else torch.randn_like(value) * 0.4)


def some_batch(seed: int, scenes: int = 2, channels: int = 3, side: int = 12) -> dict:
    generator = torch.Generator().manual_seed(seed)
    coords = [torch.unique(torch.randint(side, (90, 3), generator=generator), dim=0) for _ in range(scenes)]
    offset = torch.tensor([len(c) for c in coords]).cumsum(0)
    feat = torch.randn(int(offset[-1]), channels, generator=generator)
    return {"grid_coord": torch.cat(coords), "feat": feat, "offset": offset, "coord": torch.cat(coords).float()}


@pytest.mark.parametrize("reinterpreted", [True, False])
def test_spunet_equals_dense_convolutions(reinterpreted: bool) -> None:
    torch.manual_seed(0)
    parity = Parity() if reinterpreted else Parity.corrected()
    model = build_model({"type": "SpUNet-v1m1", "in_channels": 3, "num_classes": 5, **TINY}, parity).eval()
    scatter_state(model)
    batch = some_batch(1, scenes=1)
    x, y, z = batch["grid_coord"].T
    volume, active = torch.zeros(3, 12, 12, 12), torch.zeros(1, 12, 12, 12)
    volume[:, x, y, z], active[:, x, y, z] = batch["feat"].T, 1.0
    state = model.state_dict()
    wanted = dense_unet(state, volume, active, 2, reinterpreted)[:, x, y, z].T
    torch.testing.assert_close(model(batch), wanted, rtol=1e-4, atol=1e-4)
    other = dense_unet(state, volume, active, 2, not reinterpreted)[:, x, y, z].T
    assert not torch.allclose(other, wanted, rtol=0.1, atol=0.1)


def test_prompted_unet_without_a_prompt_is_the_plain_one() -> None:
    """Both networks are one topology: with neutral prompts and the other's weights they give the same."""
    torch.manual_seed(0)
    plain, prompted = SpUNet(3, **TINY), PromptedSpUNet(3, **TINY, norm_affine=True)
    scatter_state(plain)
    values = list(plain.state_dict().values())
    own = prompted.state_dict()
    names = [n for n in own if ".bns." not in n or ".bns.1." in n]
    with torch.no_grad():
        for name, value in zip([n for n in names if "modulation" not in n], values, strict=True):
            own[name].copy_(value)
    batch = some_batch(2)
    prompt = {"condition": ["S3DIS", "S3DIS"], "context": torch.randn(1, 256)}
    for mode in (True, False):
        torch.testing.assert_close(prompted.train(mode)(batch | prompt), plain.train(mode)(batch))


def test_pointwise_kernels_are_read_as_spconv_reads_them() -> None:
    spconv = load_engine("spconv")
    theirs = spconv.SubMConv3d(6, 4, 1, bias=True)
    coords = torch.unique(torch.randint(5, (30, 3)), dim=0)
    indices = torch.cat([torch.zeros(len(coords), 1, dtype=torch.long), coords], 1).int()
    features = torch.randn(len(coords), 6)
    x = spconv.SparseConvTensor(features, indices, [8, 8, 8], 1)
    own, fixed = PointwiseConv(6, 4, True, reinterpreted=True), PointwiseConv(6, 4, True, reinterpreted=False)
    own.load_state_dict(theirs.state_dict())
    fixed.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(own(x).features, theirs(x).features)
    weight = theirs.weight[:, 0, 0, 0]
    torch.testing.assert_close(fixed(x).features, features @ weight.T + theirs.bias)
    assert not torch.allclose(own(x).features, fixed(x).features, atol=0.1)


def test_pdnorm() -> None:
    torch.manual_seed(0)
    norm = PDNorm(5, 3, 8, decouple=True, adaptive=True, affine=True)
    x, context = torch.randn(40, 5) * 3 + 1, torch.randn(1, 8, requires_grad=True)
    y = norm(x, 1, context)
    linear = norm.modulation[1]
    shift, scale = (F.silu(context) @ linear.weight.T + linear.bias)[0].split(5)
    standard = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-3).sqrt()
    torch.testing.assert_close(y, standard * (1 + scale) + shift)
    assert torch.autograd.grad(y.square().sum(), context)[0].abs().sum() > 0
    counts = [int(bn.num_batches_tracked) for bn in norm.bns]
    assert counts == [0, 1, 0]
    torch.testing.assert_close(norm.bns[1].running_mean, 0.01 * x.mean(0))


def test_zero_init_ignores_the_context() -> None:
    batch = some_batch(3) | {"condition": "ScanNet"}
    contexts = torch.randn(2, 1, 256)
    torch.manual_seed(0)
    neutral, drawn = (PromptedSpUNet(3, **TINY, zero_init=zero).eval() for zero in (True, False))
    first, second = (neutral(batch | {"context": context}) for context in contexts)
    assert torch.equal(first, second)
    first, second = (drawn(batch | {"context": context}) for context in contexts)
    assert not torch.allclose(first, second, rtol=1e-4)


def test_prompted_unet_keeps_datasets_and_scenes_apart() -> None:
    torch.manual_seed(0)
    model = PromptedSpUNet(3, **TINY, zero_init=False)
    model.load_state_dict(model.state_dict())
    batch = some_batch(4) | {"context": torch.randn(1, 256)}
    before = {key: value.clone() for key, value in batch.items()}
    for _ in range(2):
        model(batch | {"condition": ["S3DIS", "S3DIS"]}).square().sum().backward()
    assert all(torch.equal(batch[key], value) for key, value in before.items()) and "condition" not in batch
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and g.abs().sum() > 0 for n, g in gradients.items() if "conv" in n and "weight" in n)
    model.eval()
    own = model(batch | {"condition": "S3DIS"})
    assert not torch.allclose(own, model(batch | {"condition": "ScanNet"}), rtol=1e-3)
    start = int(batch["offset"][0])
    alone = {"grid_coord": batch["grid_coord"][start:], "feat": batch["feat"][start:], "context": batch["context"]}
    alone |= {"offset": batch["offset"][1:] - start, "condition": "S3DIS"}
    torch.testing.assert_close(own[start:], model(alone), rtol=1e-4, atol=1e-5)


def test_classification_mode_averages_the_coarsest_voxels() -> None:
    torch.manual_seed(0)
    model = SpUNet(3, 4, **TINY, cls_mode=True).eval()
    seen = []
    model.final.register_forward_hook(lambda module, inputs, output: seen.append(output))
    out = model(some_batch(5))
    assert out.shape == (2, 4)
    for scene in range(2):
        rows = seen[0].features[seen[0].indices[:, 0] == scene]
        torch.testing.assert_close(out[scene], rows.mean(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feat": torch.zeros(3, 2)}, r"feat: expected shape \[N >= 1, 3\], got \[3, 2\]"),
        ({"grid_coord": torch.zeros(2, 3)}, r"grid_coord: expected shape \[\d+, 3\], got \[2, 3\]"),
        ({"offset": torch.tensor([4, 5])}, r"offset: expected cumulative counts up to \d+ points, got \[4, 5\]"),
        ({"condition": "Matterport"}, "condition: expected one of ScanNet, S3DIS, Structured3D, got 'Matterport'"),
        ({"condition": None}, "condition: expected one of ScanNet, S3DIS, Structured3D, got None"),
        ({"condition": ["S3DIS", "ScanNet"]}, "condition: expected scenes of one dataset, got S3DIS, ScanNet"),
        ({"context": None}, r"context: expected shape \[1, 256\], got none"),
        ({"context": torch.zeros(2, 256)}, r"context: expected shape \[1, 256\], got shape \[2, 256\]"),
    ],
)
def test_backbones_refuse_other_batches(change: dict, message: str) -> None:
    model = PromptedSpUNet(3, **TINY)
    batch = some_batch(6) | {"condition": "S3DIS", "context": torch.zeros(1, 256)} | change
    with pytest.raises(ValueError, match=message):
        model(batch)
    del batch["offset"]
    with pytest.raises(ValueError, match="batch: lacks 'offset'; it has"):
        model(batch)


def test_sparse_networks_reject_uneven_stages() -> None:
    with pytest.raises(ValueError, match="same even number of entries, got 3 and 4"):
        PDNormUNet(3, channels=(4, 4, 4), layers=(1, 1, 1, 1))
    assert SparseUNet(3, **TINY).final(1) == 1
