"""Small networks, clouds and checkpoints of the tests of features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ponder.data.cloud_files import RawCloud
from ponder.models.pdnorm_unet import PDNormUNet
from ponder.models.sparse_unet import SparseUNetBase

SIZES = {"base_channels": 4, "channels": [4, 8, 8, 4], "layers": [1, 1, 1, 1]}
CONTEXTS = ("Structured3D", "ScanNet", "S3DIS")
VOXEL = 0.02
# Context vectors of the datasets, in the order of CONTEXTS.
TABLE = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))


def lively(network: SparseUNetBase) -> SparseUNetBase:
    """Weights that show a confusion of channels, datasets or neighbours; running statistics included."""
    random = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            spread = torch.randn(tensor.shape, generator=random)
            positive = "running_var" in name or (tensor.dim() == 1 and name.endswith("weight"))
            tensor.copy_(spread.abs() + 0.5 if positive else spread * 0.2)
    return network.eval()


def prompted() -> PDNormUNet:
    """A network for ScanNet, S3DIS and Structured3D."""
    return lively(PDNormUNet(6, context_channels=5, norm_affine=True, zero_init=False, **SIZES))


def room(count: int = 1500, seed: int = 0, size: float = 1.0) -> RawCloud:
    """Points on two walls and the floor of a box, some of them twice."""
    random = np.random.default_rng(seed)
    coord = random.uniform(0, size, (count, 3))
    coord[np.arange(count), np.arange(count) % 3] = 0
    coord[count // 2 :: 5] = coord[: len(coord[count // 2 :: 5])]
    normal = np.eye(3)[np.arange(count) % 3]
    parts = (coord, random.uniform(size=(count, 3)), normal)
    return RawCloud(*(torch.from_numpy(part) for part in parts))


def select(cloud: RawCloud, index: Tensor) -> RawCloud:
    """The points at `index`."""
    parts = (cloud.coord, cloud.colour, cloud.normal)
    return RawCloud(*(None if part is None else part[index] for part in parts))


def around(network: SparseUNetBase, prefix: str = "backbone.", **further: Tensor) -> dict[str, Tensor]:
    """A PonderV2 state dict: the backbone inside a model with other parts."""
    state = {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}
    return {"logit_scale": torch.tensor(4.6), **state, "proj_net.final_conv.weight": torch.ones(2, 2), **further}
