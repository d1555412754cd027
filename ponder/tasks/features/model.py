"""Backbones of checkpoints, ours and PonderV2's, ready to give features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ponder.models.pdnorm_unet import PDNormUNet
from ponder.models.pretrainer import PonderModel
from ponder.models.sparse_unet import SparseUNet
from ponder.tasks.features.settings import Ponderv2Settings
from ponder.train.checkpoint import FORMAT, CheckpointError, load_weights, read_checkpoint, read_file
from ponder.train.config import ConfigError, TrainConfig
from ponder.train.ponderv2.weights import PREFIX, read_weights

DEFAULT_CONDITION = "ScanNet"
# First layer of SpUNet-v1m1 and of SpUNet-v1m3: what their convolutions are called.
_STEMS = {"conv_input.0.weight": "0", "conv_input.conv.weight": "conv"}


@dataclass(frozen=True)
class FeatureModel:
    """A backbone in eval mode, and what it is fed.

    Attributes:
        network: called with features [V, F], grid_coord [V, 3], batch [V] and the number of scenes, as `SparseUNet`;
            returns [V, C].
        inputs: names of the features, 3 channels each, see `network_inputs`.
        voxel: edge of the voxels it was trained on, metres.
        centred: how the grid lies, see `find_voxels`.
        alignment: edge of its coarsest voxel in voxels.
        about: what it is and what was assumed about it, one sentence each.
        run: the settings of the run it comes from, if that was one of `ponder pretrain`.
    """

    network: nn.Module
    inputs: tuple[str, ...]
    voxel: float
    centred: bool
    alignment: int
    about: tuple[str, ...] = ()
    run: TrainConfig | None = field(default=None, repr=False)


class _Prompted(nn.Module):
    """A `PDNormUNet` for one dataset, called like a `SparseUNet`."""

    context: Tensor | None

    def __init__(self, unet: PDNormUNet, condition: str, context: Tensor | None) -> None:
        super().__init__()
        self.unet, self.condition = unet, condition
        self.register_buffer("context", context)

    def forward(self, features: Tensor, grid_coord: Tensor, batch: Tensor, batch_size: int) -> Tensor:
        return self.unet(features, grid_coord, batch, batch_size, self.condition, self.context)


def open_feature_model(
    path: Path,
    condition: str | None = None,
    settings: Ponderv2Settings | None = None,
    device: torch.device | str = "cpu",
) -> FeatureModel:
    """The backbone of a checkpoint.

    Args:
        path: a checkpoint of `ponder pretrain`, or one of PonderV2 (pre-training, segmentation or instances; with or
            without `module.` before its names) whose backbone is SpUNet-v1m1 or SpUNet-v1m3.
        condition: dataset whose norms and context SpUNet-v1m3 uses; None is ScanNet.
        settings: of PonderV2's checkpoint, where they are not those of its shipped configs.
        device: where the network goes.

    Raises:
        CheckpointError: the file is missing, damaged or holds no such backbone.
        ConfigError: a condition that the backbone does not have, or settings that do not fit it.
        SparseEngineError: no sparse-convolution library for the device.
    """
    device = torch.device(device)
    content = read_file(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        if condition is not None or settings is not None:
            raise ConfigError(f"--condition, --config: checkpoint {path} is not one of PonderV2's")
        model = _own_model(path, device)
    else:
        model = ponderv2_model(read_weights(path), str(path), condition, settings, device)
    for name, tensor in model.network.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"checkpoint {path}: {name} holds numbers that are not finite")
    model.network.float().to(device).eval()
    return model


def _own_model(path: Path, device: torch.device) -> FeatureModel:
    config, content = read_checkpoint(path)
    model = PonderModel(config.model, device.type)
    load_weights(model, content["model"], str(path))
    return FeatureModel(
        model.backbone, ("colour", "mean_normal", "offset"), config.model.voxel, False,
        2**model.backbone.stages, (f"backbone of a run of recipe {config.recipe!r}",), config,
    )  # fmt: skip


def ponderv2_model(
    state: Mapping[str, Tensor],
    source: str,
    condition: str | None = None,
    settings: Ponderv2Settings | None = None,
    device: torch.device | str = "cpu",
) -> FeatureModel:
    """The backbone of PonderV2's weights; its sizes are read from their shapes.

    Args:
        state: tensors by name; other parts of the model, and the backbone's final layer, are ignored.
        source: where it comes from, for messages.
        condition, settings, device: as in `open_feature_model`.

    Returns:
        The model, still on the CPU.
    """
    hint = "; give its config with --config" if settings is None else ""
    settings = settings or Ponderv2Settings()
    state = {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}
    prefix, stem = _find_stem(state, source)
    weights = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("final.")}
    sizes = _sizes(weights, _STEMS[stem], source)
    if sizes["in_channels"] != 3 * len(settings.inputs):
        raise CheckpointError(
            f"checkpoint {source}: its backbone takes {sizes['in_channels']} features per voxel, not the "
            f"{3 * len(settings.inputs)} of {' and '.join(settings.inputs)}{hint}"
        )
    kind = torch.device(device).type
    inputs, alignment = tuple(settings.inputs), 2 ** (len(sizes["layers"]) // 2)
    if stem == "conv_input.0.weight":
        if condition is not None:
            raise ConfigError(f"--condition: checkpoint {source} holds SpUNet-v1m1, which knows no datasets")
        network: nn.Module = _build(SparseUNet, sizes, source, device=kind)
        load_weights(network, weights, source)
        about = ["PonderV2's SpUNet-v1m1"]
    else:
        norms = _norms(weights, settings.conditions, source)
        about = ["PonderV2's SpUNet-v1m3"]
        if condition is None:
            condition = DEFAULT_CONDITION if DEFAULT_CONDITION in settings.conditions else settings.conditions[0]
            about.append(f"norms and context of {condition}; --condition chooses")
        if condition not in settings.conditions:
            raise ConfigError(f"--condition: expected one of {', '.join(settings.conditions)}, got {condition!r}")
        unet = _build(PDNormUNet, sizes | norms, source, zero_init=False, device=kind)
        load_weights(unet, weights, source)
        context = _context(state, prefix, condition, settings.contexts, source) if unet.norm_adaptive else None
        network = _Prompted(unet, condition, context)
    return FeatureModel(network, inputs, settings.voxel, True, alignment, tuple(about))


def _build(kind: Any, sizes: dict[str, Any], source: str, **options: Any) -> Any:
    try:
        return kind(**sizes, **options)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"checkpoint {source} holds a backbone of impossible sizes: {error}") from None


def _find_stem(state: Mapping[str, Tensor], source: str) -> tuple[str, str]:
    """What stands before the backbone's names, and the name of its first layer."""
    for name in state:
        for stem in _STEMS:
            if name == stem or name.endswith("." + stem):
                return name.removesuffix(stem), stem
    shown = ", ".join(list(state)[:3]) or "nothing"
    raise CheckpointError(f"checkpoint {source} holds no sparse U-Net of PonderV2 or of ours: it begins with {shown}")


def _sizes(weights: Mapping[str, Tensor], conv: str, source: str) -> dict[str, Any]:
    """Arguments of the network, from names and shapes."""

    def stages(part: str) -> int:
        return len({name.split(".")[1] for name in weights if name.startswith(part + ".")})

    def blocks(part: str, stage: int) -> int:
        return len({n.split(".")[2] for n in weights if n.startswith(f"{part}.{stage}.block")})

    levels = range(stages("down"))
    wanted = ["conv_input", *(f"{part}.{s}" for part in ("down", "up") for s in levels)]
    for name in (f"{part}.{conv}.weight" for part in wanted):
        if name not in weights or weights[name].dim() != 5:
            raise CheckpointError(f"checkpoint {source} holds an incomplete backbone: expected {name} with 5 dims")

    def order(down: str, up: str) -> tuple[tuple[str, Sequence[int]], ...]:
        return (down, levels), (up, list(reversed(levels)))

    return {
        "in_channels": weights[f"conv_input.{conv}.weight"].shape[4],
        "base_channels": len(weights[f"conv_input.{conv}.weight"]),
        "channels": [len(weights[f"{part}.{s}.{conv}.weight"]) for part, at in order("down", "up") for s in at],
        "layers": [blocks(part, s) for part, at in order("enc", "dec") for s in at],
    }


def _norms(weights: Mapping[str, Tensor], conditions: Sequence[str], source: str) -> dict[str, Any]:
    """Arguments that say how SpUNet-v1m3's norms are made, from those of its first layer."""
    own = {name.removeprefix("conv_input.bn.") for name in weights if name.startswith("conv_input.bn.")}
    count = len({name.split(".")[1] for name in own if name.startswith("bns.")})
    if count and count != len(conditions):
        raise ConfigError(
            f"checkpoint {source} has norms for {count} datasets, not for {', '.join(conditions)}; "
            "give its own config with --config"
        )
    modulation = weights.get("conv_input.bn.modulation.1.weight")
    return {
        "conditions": conditions,
        "norm_decouple": count > 0,
        "norm_adaptive": modulation is not None,
        "norm_affine": not own.isdisjoint({"bns.0.weight", "bn.weight"}),
        **({} if modulation is None else {"context_channels": modulation.shape[-1]}),
    }


def _context(state: Mapping[str, Tensor], prefix: str, condition: str, order: Sequence[str], source: str) -> Tensor:
    """[1, context_channels] of a dataset; the table belongs to the model around the backbone."""
    name = prefix.removesuffix("backbone.") + "embedding_table.weight"
    if name not in state:
        raise CheckpointError(f"checkpoint {source} lacks {name}, which the backbone's norms need")
    if condition not in order or len(state[name]) != len(order):
        raise ConfigError(
            f"checkpoint {source} has contexts of {len(state[name])} datasets, not of {', '.join(order)}; "
            "give its own config with --config"
        )
    row = list(order).index(condition)
    return state[name][row : row + 1].clone()
