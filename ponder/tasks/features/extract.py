"""Features of every point of a cloud, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.data.cloud_files import RawCloud
from ponder.tasks.features.blocks import Block, plan_blocks
from ponder.tasks.features.model import FeatureModel
from ponder.tasks.features.voxels import REDUCTIONS, VIEWPOINTS, Voxels, find_voxels, network_inputs

# Context of a block that is not given, voxels.
CONTEXT = 100


@dataclass(frozen=True)
class FeatureOptions:
    """How a cloud is cut up and looked at; every length in metres.

    Attributes:
        voxel: edge of a voxel; None: what the backbone was trained on.
        reduction: "mean" or "point", see `find_voxels`.
        viewpoint: where estimated normals point to: "centre", "up" or a position in the cloud's own coordinates.
        block: longest edge of a block, at least the network's coarsest voxel; None: as long as `chunk` allows.
        overlap: context on every side of a block; None: 100 voxels. The shipped networks see further than any room, but
            little of it matters: with 50 voxels around blocks as long, features of a network of random weights, its
            norms fitted to the room, moved by 5 %, with 64 by 2 %, without any by half.
        chunk: most voxels per pass of the network, which bounds its memory.

    Raises:
        ValueError: a value that is not possible.
    """

    voxel: float | None = None
    reduction: str = "mean"
    viewpoint: str | tuple[float, float, float] = "centre"
    block: float | None = None
    overlap: float | None = None
    chunk: int = 400_000

    def __post_init__(self) -> None:
        for name in ("voxel", "block"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: expected a positive number of metres, got {value}")
        if self.overlap is not None and not (self.overlap >= 0 and math.isfinite(self.overlap)):
            raise ValueError(f"overlap: expected 0 metres or more, got {self.overlap}")
        if self.chunk < 1:
            raise ValueError(f"chunk: expected at least 1 voxel, got {self.chunk}")
        if self.reduction not in REDUCTIONS:
            raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {self.reduction!r}")
        if self.viewpoint not in VIEWPOINTS and (isinstance(self.viewpoint, str) or len(self.viewpoint) != 3):
            raise ValueError(f"viewpoint: expected {', '.join(VIEWPOINTS)} or 3 numbers, got {self.viewpoint!r}")


@dataclass(frozen=True)
class Prepared:
    """A cloud ready for the network: V voxels, their inputs [V, F], the passes, and what was assumed."""

    voxels: Voxels
    inputs: Tensor
    blocks: list[Block]
    notes: tuple[str, ...]


def prepare_cloud(
    model: FeatureModel,
    cloud: RawCloud,
    options: FeatureOptions,
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Voxels, inputs and blocks of a cloud; arguments and errors as in `extract_features`.

    `progress` is called where normals have to be estimated, with (voxels finished, voxels in all).
    """
    size = model.voxel if options.voxel is None else options.voxel
    voxels = find_voxels(cloud, size, model.centred, options.reduction)
    viewpoint: Tensor | str
    if isinstance(options.viewpoint, str):
        viewpoint = options.viewpoint
    else:
        viewpoint = torch.tensor(options.viewpoint, dtype=torch.float64) - voxels.origin
    inputs, notes = network_inputs(voxels, model.inputs, viewpoint, progress)
    edge = None if options.block is None else math.floor(options.block / size)
    overlap = CONTEXT if options.overlap is None else math.ceil(options.overlap / size)
    blocks = plan_blocks(voxels.cells, options.chunk, overlap, edge, model.alignment)
    return Prepared(voxels, inputs, blocks, (*cloud.notes, *notes))


@torch.no_grad()
def voxel_features(
    model: FeatureModel, prepared: Prepared, progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """[V, C] float32 features of the voxels, on the CPU, computed in float32 where the network is.

    Args:
        model: its network is called in eval mode, and left in the mode it was in.
        prepared: of this model.
        progress: called with (voxels finished, voxels in all) before the first and after every pass.
    """
    device = next(model.network.parameters()).device
    was_training = model.network.training
    model.network.eval()
    features, done, total = torch.empty(0), 0, len(prepared.inputs)
    if progress is not None:
        progress(0, total)
    with torch.autocast(device.type, enabled=False):
        for block in prepared.blocks:
            cells = (prepared.voxels.cells[block.window] - block.origin).to(device)
            inputs = prepared.inputs[block.window].to(device)
            scene = torch.zeros(len(cells), dtype=torch.long, device=device)
            found = model.network(inputs, cells, scene, 1).cpu()
            if done == 0:
                features = found.new_empty(total, found.shape[1])
            features[block.core] = found[block.core_in_window]
            done += len(block.core)
            if progress is not None:
                progress(done, total)
    model.network.train(was_training)
    return features


def extract_features(
    model: FeatureModel,
    cloud: RawCloud,
    options: FeatureOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Features of every point of a cloud with a pre-trained backbone, frozen.

    Points are sorted into voxels, every occupied voxel goes through the network once, and every point gets the
    features of its voxel: points of one voxel, duplicates among them, have the same features, and the order of the
    points does not matter. A cloud of more voxels than `options.chunk` is computed in blocks with overlapping context.

        from ponder.data.cloud_files import read_cloud
        from ponder.tasks.features import extract_features, open_feature_model

        model = open_feature_model(Path("model_last.pth"), condition="ScanNet", device="cuda")
        features = extract_features(model, read_cloud(Path("office.ply")))

    Args:
        model: a backbone, on any device. One that is still being trained can be wrapped in a `FeatureModel`.
        cloud: N >= 1 points; colours and normals it lacks are replaced, see `network_inputs`.
        options: see `FeatureOptions`.
        progress: called with (voxels finished, voxels in all).

    Returns:
        [N, C] float32 on the CPU, in the order of the points.

    Raises:
        ValueError: `block` is shorter than the network's coarsest voxel.
        DataError: the cloud spans too many voxels.
        BlockError: `overlap` needs more than `chunk` voxels.
    """
    prepared = prepare_cloud(model, cloud, options or FeatureOptions())
    return voxel_features(model, prepared, progress)[prepared.voxels.of_point]
