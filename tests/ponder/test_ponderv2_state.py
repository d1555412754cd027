"""States of PonderV2's models: names, shapes and order of every tensor, as its description lists them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from benchmarks.baselines.ponderv2 import configs
from ponder.models.ponderv2.build import build_model
from ponder.models.ponderv2.prompt_training import CLASS_NAMES, VALID_INDEX

Names = Iterator[tuple[str, tuple[int, ...]]]


def batch_norm(name: str, channels: int) -> Names:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def pd_norm(name: str, channels: int) -> Names:
    for k in range(3):
        yield from batch_norm(f"{name}.bns.{k}", channels)
    yield f"{name}.modulation.1.weight", (2 * channels, 256)
    yield f"{name}.modulation.1.bias", (2 * channels,)


def sparse_names(prompted: bool) -> Names:
    """State of SpUNet-v1m1 or v1m3 with PonderV2's widths, written out from its description."""
    norm, conv, bn = (pd_norm, "conv", "bn") if prompted else (batch_norm, "0", "1")
    proj_conv, proj_norm = ("proj_conv", "proj_norm") if prompted else ("proj.0", "proj.1")

    def block(name: str, wide: int, out: int) -> Names:
        if wide != out:
            yield f"{name}.{proj_conv}.weight", (out, 1, 1, 1, wide)
            yield from norm(f"{name}.{proj_norm}", out)
        for n, inputs in (("1", wide), ("2", out)):
            yield f"{name}.conv{n}.weight", (out, 3, 3, 3, inputs)
            yield from norm(f"{name}.bn{n}", out)

    def pair(name: str, *shape: int) -> Names:
        yield f"{name}.{conv}.weight", shape
        yield from norm(f"{name}.{bn}", shape[0])

    yield from pair("conv_input", 32, 5, 5, 5, 6)
    widths, above = (32, 64, 128, 256), (32, 32, 64, 128)
    for s in range(4):
        yield from pair(f"down.{s}", widths[s], 2, 2, 2, above[s])
    up_in, up_out = (96, 128, 256, 256), (96, 96, 128, 256)
    for s in range(4):
        yield from pair(f"up.{s}", up_out[s], 2, 2, 2, up_in[s])
    for s, count in enumerate((2, 3, 4, 6)):
        for i in range(count):
            yield from block(f"enc.{s}.block{i}", widths[s], widths[s])
    for s, wide in enumerate((128, 128, 192, 384)):
        yield from block(f"dec.{s}.block0", wide, up_out[s])
        yield from block(f"dec.{s}.block1", up_out[s], up_out[s])


def dense_names() -> Names:
    widths = (96, 32, 64, 128, 256)
    for i in range(4):
        yield from batch_norm(f"encoders.{i}.basic_module.batchnorm", widths[i])
        yield f"encoders.{i}.basic_module.conv.weight", (widths[i + 1], widths[i], 3, 3, 3)
    for j, (high, low) in enumerate(((256, 128), (128, 64), (64, 32))):
        yield f"decoders.{j}.upsampling.upsample.weight", (high, low, 3, 3, 3)
        yield f"decoders.{j}.upsampling.upsample.bias", (low,)
        yield from batch_norm(f"decoders.{j}.basic_module.batchnorm", low)
        yield f"decoders.{j}.basic_module.conv.weight", (low, low, 3, 3, 3)
    yield "final_conv.weight", (128, 32, 1, 1, 1)
    yield "final_conv.bias", (128,)


def shapes_of(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


def on_meta(cfg: dict) -> nn.Module:
    """The model of a configuration without its memory."""
    with torch.device("meta"):
        return build_model(cfg, text="offline", device="meta")


V1M3 = {"type": "SpUNet-v1m3", "in_channels": 6, "zero_init": False, "norm_affine": True}


@pytest.mark.parametrize(
    ("cfg", "names", "tensors", "parameters"),
    [
        ({"type": "SpUNet-v1m1", "in_channels": 6, "num_classes": 0}, sparse_names(False), 354, 39_155_904),
        (V1M3, sparse_names(True), 1062, 43_598_272),
        ({"type": "UNet3D-v1m2", "in_channels": 96, "out_channels": 128}, dense_names(), 50, 2_991_520),
    ],
    ids=["SpUNet-v1m1", "SpUNet-v1m3", "UNet3D-v1m2"],
)
def test_state_is_ponderv2s(cfg: dict, names: Names, tensors: int, parameters: int) -> None:
    model = on_meta(cfg)
    expected = list(names)
    assert len(expected) == tensors
    assert shapes_of(model) == expected
    assert sum(p.numel() for p in model.parameters()) == parameters
    state = {name: torch.empty(shape, device="meta") for name, shape in expected}
    model.load_state_dict(state, strict=True, assign=True)


def test_state_of_other_networks() -> None:
    classes = dict(shapes_of(on_meta({"type": "SpUNet-v1m1", "in_channels": 4, "num_classes": 20})))
    assert len(classes) == 356 and classes["conv_input.0.weight"] == (32, 5, 5, 5, 4)
    assert classes["final.weight"] == (20, 1, 1, 1, 96) and classes["final.bias"] == (20,)
    shared = dict(shapes_of(on_meta({**V1M3, "norm_decouple": False, "norm_adaptive": False})))
    assert "down.0.bn.bn.running_mean" in shared and not any("modulation" in name for name in shared)
    assert not any("bns.0.weight" in name for name, _ in shapes_of(on_meta({**V1M3, "norm_affine": False})))
    encoder = dict(shapes_of(on_meta({**V1M3, "cls_mode": True, "num_classes": 9})))
    assert encoder["final.weight"] == (9, 1, 1, 1, 256) and not any(name.startswith(("up", "dec")) for name in encoder)
    simple = on_meta({"type": "SimpleConv3D-v1m1", "in_channels": 96, "out_channels": 32})
    assert shapes_of(simple)[:2] == [("conv.0.weight", (32, 96, 3, 3, 3)), ("conv.0.bias", (32,))]
    assert [name for name, _ in shapes_of(simple)][2:] == [name for name, _ in batch_norm("conv.1", 32)]
    double = dict(shapes_of(on_meta({"type": "UNet3D-v1m1", "in_channels": 20, "out_channels": 5})))
    assert double["encoders.0.basic_module.SingleConv1.conv.weight"] == (20, 20, 3, 3, 3)
    assert double["encoders.2.basic_module.SingleConv1.conv.weight"] == (64, 64, 3, 3, 3)
    assert double["decoders.0.basic_module.SingleConv1.conv.weight"] == (128, 384, 3, 3, 3)
    assert "decoders.0.basic_module.SingleConv2.batchnorm.running_var" in double


def decoder_names(name: str, inputs: int, out: int, blocks: int) -> Names:
    for i in range(blocks + 1):
        width = out if i == blocks else 128
        yield f"{name}.lin{i}.weight", (width, 128)
        yield f"{name}.lin{i}.bias", (width,)
    conditions = [(f"{name}.fc_c.{i}", inputs) for i in range(blocks + 1)]
    points = [(f"{name}.fc_p", 3)]
    # PonderV2's SDF decoder registers these two in the other order.
    for layer, wide in conditions + points if "sdf" in name else points + conditions:
        yield f"{layer}.weight", (128, wide)
        yield f"{layer}.bias", (128,)


def renderer_names() -> Names:
    yield from decoder_names("field.sdf_decoder", 64, 65, 1)
    yield from decoder_names("field.rgb_decoder", 134, 3, 0)
    yield from decoder_names("field.semantic_decoder", 131, 512, 0)
    yield "field.laplace_density.beta_min", (1,)
    yield "field.laplace_density.beta", (1,)
    yield "field.deviation_network.variance", (1,)


def prefixed(prefix: str, names: Names) -> Names:
    return ((prefix + name, shape) for name, shape in names)


def indoor(prompted: bool, **more: object) -> dict:
    """PonderV2's pre-training on three datasets, or on ScanNet alone."""
    conditions = ("Structured3D", "ScanNet", "S3DIS") if prompted else ("ScanNet",)
    backbone = V1M3 if prompted else {"type": "SpUNet-v1m1", "in_channels": 6, "num_classes": 0}
    cfg = {"type": "PonderIndoor-v2", "backbone": backbone, "renderer": configs.indoor(), "mask": None}
    cfg |= {"projection": {"type": "UNet3D-v1m2", "in_channels": 96, "out_channels": 128}}
    cfg |= {
        "conditions": conditions,
        "class_name": CLASS_NAMES,
        "template": ("a [x]", "the [x]"),
        "render_semantic": True,
    }
    cfg |= {"valid_index": VALID_INDEX if prompted else [list(range(20))], "grid_shape": (128, 128, 32)}
    return cfg | {"ppt_criteria": [{"type": "CrossEntropyLoss", "ignore_index": -1}]} | more


def indoor_names(prompted: bool, masked: bool) -> Names:
    if masked:
        yield "mtoken", (1, 6)
    yield "logit_scale", ()
    yield "class_embedding", (36, 512)
    yield from prefixed("backbone.", sparse_names(prompted))
    yield from prefixed("proj_net.", dense_names())
    yield from prefixed("renderer.", renderer_names())
    yield "embedding_table.weight", (3 if prompted else 1, 256)
    yield "proj_head.weight", (512, 96)
    yield "proj_head.bias", (512,)


@pytest.mark.parametrize(
    ("prompted", "masked", "tensors"), [(True, False, 1142), (False, False, 434), (False, True, 435)]
)
def test_state_of_the_indoor_model(prompted: bool, masked: bool, tensors: int) -> None:
    model = on_meta(indoor(prompted, mask={"ratio": 0.8, "size": 8, "channel": 6} if masked else None))
    expected = list(indoor_names(prompted, masked))
    assert len(list(renderer_names())) == 25 and len(expected) == tensors
    assert shapes_of(model) == expected
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert fixed == {"logit_scale", "renderer.field.laplace_density.beta_min"}
    # The order of the parameters is that of an optimiser's state.
    buffers = ("running_mean", "running_var", "num_batches_tracked", "class_embedding")
    order = [name for name, _ in expected if not name.endswith(buffers)]
    assert [name for name, _ in model.named_parameters()] == order


def test_state_of_prompt_training() -> None:
    cfg = {"type": "PPT-v1m1", "backbone": V1M3, "criteria": [{"type": "CrossEntropyLoss", "ignore_index": -1}]}
    expected = [("logit_scale", ()), ("class_embedding", (36, 512)), *prefixed("backbone.", sparse_names(True))]
    expected += [("embedding_table.weight", (3, 256)), ("proj_head.weight", (512, 96)), ("proj_head.bias", (512,))]
    assert shapes_of(on_meta(cfg)) == expected
    backbone = on_meta({**cfg, "backbone_mode": True, "criteria": None})
    assert shapes_of(backbone) == [entry for entry in expected if entry[0].startswith(("backbone.", "embedding_table"))]
    wrapped = on_meta({"type": "DefaultSegmentor", "backbone": cfg | {"backbone_mode": True}, "criteria": []})
    assert shapes_of(wrapped) == list(prefixed("backbone.", shapes_of(backbone)))
