"""The tensors of a workload, drawn from a seed: volumes, rays through pixels of cameras, targets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import RenderCase, Sizes
from ponder.geometry import look_at, pixel_grid, rays_through_pixels

# Classes and width of the semantic targets, those of ScanNet and of CLIP.
CLASSES, EMBEDDING = 20, 512
# Size of the cameras whose pixels are drawn, in training.
CAMERA_SIZE = (640, 480)
# Share of rays without a measured depth: those that PonderV2 finds outside of its box.
MISSING = 0.02


@dataclass(frozen=True, eq=False)
class Inputs:
    """One step's data.

    Attributes:
        volumes: a leaf [C, D, H, W] per scene, channels last in memory.
        origins, directions: [B, R, 3] rays of each scene.
        targets: of all B R rays: "depth" [*, 1] along the ray (-0.001: missing), "rgb" [*, 3], "semantic" [*, 512] a
            class's embedding or zeros. Empty for an image.
    """

    volumes: list[Tensor]
    origins: Tensor
    directions: Tensor
    targets: dict[str, Tensor]

    def own(self) -> list[Tensor]:
        """Every tensor of the step that exists before it."""
        return [*self.volumes, self.origins, self.directions, *self.targets.values()]

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same numbers in another precision; volumes are leaves of their own."""
        volumes = [v.detach().to(dtype).requires_grad_(v.requires_grad) for v in self.volumes]
        targets = {name: value.to(dtype) for name, value in self.targets.items()}
        return replace(
            self,
            volumes=volumes,
            origins=self.origins.to(dtype),
            directions=self.directions.to(dtype),
            targets=targets,
        )


def make_inputs(case: RenderCase, sizes: Sizes, device: str, seed: int = 0) -> Inputs:
    """Volumes of independent normal numbers, cameras in the scene, random targets.

    Rays and targets are the same on every device; volumes are drawn where they are used.
    """
    g = torch.Generator().manual_seed(seed)
    scenes = [_rays(case, sizes, g) for _ in range(sizes.scenes)]
    origins, directions = (torch.stack(rows).to(device) for rows in zip(*scenes, strict=True))
    targets = _targets(sizes.all_rays, case.cube[1], g) if case.training else {}
    on_device = torch.Generator(device).manual_seed(seed)
    volumes = [make_volume(sizes.volume, device, on_device, case.training) for _ in range(sizes.scenes)]
    return Inputs(volumes, origins, directions, {name: value.to(device) for name, value in targets.items()})


def make_volume(
    shape: tuple[int, int, int, int], device: str, generator: torch.Generator | None = None, leaf: bool = True
) -> Tensor:
    """[C, D, H, W] features of standard deviation 0.1, channels last in memory; a leaf that wants a gradient."""
    channels, *extent = shape
    rows = torch.empty(*extent, channels, device=device).normal_(std=0.1, generator=generator)
    return rows.permute(3, 0, 1, 2).requires_grad_(leaf)


def _rays(case: RenderCase, sizes: Sizes, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Origins and directions of a scene's rays, [R, 3] each."""
    width, height = sizes.image or CAMERA_SIZE
    poses = _around(case, sizes.views) if case.outwards else _inwards(case, sizes.views, g)
    if sizes.image is None:
        pixels = torch.rand(sizes.views, sizes.rays, 2, generator=g) * torch.tensor([width, height])
    else:
        pixels = pixel_grid(height, width).view(1, -1, 2)
    # A horizontal field of view of 70 degrees.
    focal = width / 2 / math.tan(math.radians(35))
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    found = [rays_through_pixels(p, intrinsics, pose) for p, pose in zip(pixels, poses, strict=True)]
    origins, directions = (torch.cat(rows) for rows in zip(*found, strict=True))
    return origins.contiguous(), directions


def _inwards(case: RenderCase, views: int, g: torch.Generator) -> list[Tensor]:
    """Poses of cameras somewhere in the scene, looking past its middle."""
    low, length = case.cube
    middle = torch.full((3,), low + length / 2)
    up = torch.tensor([0.0, 0.0, 1.0])
    poses = []
    for _ in range(views):
        angle = float(torch.rand((), generator=g)) * 2 * math.pi
        eye = middle + 0.4 * length * torch.tensor([math.cos(angle), math.sin(angle), 0.25])
        aim = middle + 0.1 * length * (torch.rand(3, generator=g) - 0.5)
        poses.append(look_at(eye, aim, up))
    return poses


def _around(case: RenderCase, views: int) -> list[Tensor]:
    """Poses of cameras in the middle of the scene, looking at the horizon all around."""
    low, length = case.cube
    eye = torch.full((3,), low + length / 2)
    up = torch.tensor([0.0, 0.0, 1.0])
    angles = [2 * math.pi * view / views for view in range(views)]
    return [look_at(eye, eye + torch.tensor([math.cos(a), math.sin(a), 0.0]), up) for a in angles]


def _targets(rays: int, length: float, g: torch.Generator) -> dict[str, Tensor]:
    depth = (torch.rand(rays, 1, generator=g) * 0.5 + 0.1) * length
    depth[torch.rand(rays, generator=g) < MISSING] = -0.001
    table = F.normalize(torch.randn(CLASSES, EMBEDDING, generator=g), dim=-1)
    # PonderV2 gives class 0 no target.
    table[0] = 0.0
    labels = torch.randint(CLASSES, (rays,), generator=g)
    return {"depth": depth, "rgb": torch.rand(rays, 3, generator=g), "semantic": table[labels]}
