"""What every reader and generator returns: a point cloud and posed RGB-D frames, in metres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


class DataError(ValueError):
    """Input data that cannot be used; the message is one sentence naming the file and what is wrong with it."""


@dataclass(frozen=True)
class PointCloud:
    """N coloured, oriented points.

    Attributes:
        coord: [N, 3] float32, metres, world frame.
        colour: [N, 3] float32, 0..1.
        normal: [N, 3] float32, unit length towards the free space, 0 where unknown.
    """

    coord: Tensor
    colour: Tensor
    normal: Tensor

    def __len__(self) -> int:
        return self.coord.shape[0]

    def select(self, index: Tensor) -> PointCloud:
        """The points at `index` (integers or a mask)."""
        return PointCloud(self.coord[index], self.colour[index], self.normal[index])


@dataclass(frozen=True)
class Frames:
    """V posed RGB-D views of one scene, all of one size.

    Attributes:
        names: V frame names.
        rgb: [V, H, W, 3] uint8.
        z_depth: [V, H, W] float32 metres along the camera axis, 0 = missing.
        normal: [V, H, W, 3] float32 world-frame unit normals facing the camera, 0 = missing.
        intrinsics: [V, 3, 3] float32 in pixels, pixel centres at +0.5.
        camera_to_world: [V, 4, 4] float32 rigid.
        semantic: [V, H, W] int64 class ids, -1 = none; or None.
        instance: [V, H, W] int64 instance ids, -1 = none; or None.
    """

    names: tuple[str, ...]
    rgb: Tensor
    z_depth: Tensor
    normal: Tensor
    intrinsics: Tensor
    camera_to_world: Tensor
    semantic: Tensor | None = None
    instance: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.rgb.shape[1], self.rgb.shape[2]

    def select(self, index: Sequence[int]) -> Frames:
        """The views at the given positions, in that order."""
        positions = torch.as_tensor(list(index), dtype=torch.long)
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "names"}
        picked = {k: v[positions] for k, v in tensors.items() if v is not None}
        return replace(self, names=tuple(self.names[i] for i in index), **picked)


@dataclass(frozen=True)
class Boxes3D:
    """M axis-aligned object boxes.

    Attributes:
        centre: [M, 3] metres.
        size: [M, 3] full extents in metres.
        semantic: [M] int64 class ids.
        instance: [M] int64 instance ids, as in `Frames.instance`.
    """

    centre: Tensor
    size: Tensor
    semantic: Tensor
    instance: Tensor


@dataclass(frozen=True)
class Scene:
    """One scene: the input cloud, the views to learn from and the views kept out of learning.

    Attributes:
        name: unique name.
        cloud: input points; for recorded scenes fused from the `train` frames only.
        train: views whose pixels supervise rendering.
        heldout: views never used for the cloud or for supervision.
        boxes: object boxes where known.
        colour_ratio: focal length of the colour camera over that of the depth camera, which the colour of both
            `train` and `heldout` has been corrected for; 1 = colour was registered to depth already.
    """

    name: str
    cloud: PointCloud
    train: Frames
    heldout: Frames
    boxes: Boxes3D | None = None
    colour_ratio: float = 1.0
