"""Learning from a 2D teacher: rendered feature maps are pulled towards those of a network that saw the images.

The field's `feature_decoder` renders the features. Without hidden layers (`n_blocks=0`) it is affine and is applied
once per ray, to composited inputs: as cheap as the semantic one, however wide the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.models.ponderv2.pixel_rays import Drawn


@dataclass(frozen=True)
class Distillation:
    """How the teacher is followed.

    Attributes:
        weight: factor of the loss.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"distillation.weight: expected a number of at least 0, got {self.weight}")

    def loss(self, rendered: Tensor, teacher: Tensor, drawn: Drawn, measured: Tensor, images: Sequence[int]) -> Tensor:
        """[] weighted `cosine_loss` at the drawn pixels.

        Args:
            rendered: [R, C] composited features.
            teacher: [B, V, H', W', C] maps of any resolution over the same images.
            drawn: the pixels of the R rays.
            measured: [R] bool, rays that count.
            images: (B, V, H, W) of the images whose pixels were drawn.

        Raises:
            ValueError: a teacher of another number of views or channels.
        """
        scenes, views, height, width = images
        channels = rendered.shape[1]
        if teacher.dim() != 5 or (*teacher.shape[:2], teacher.shape[4]) != (scenes, views, channels):
            raise ValueError(
                f"teacher: expected shape [B={scenes}, V={views}, H', W', C={channels}], C being the width of the"
                f" feature decoder, got {list(teacher.shape)}"
            )
        wanted = sample_maps(teacher.flatten(0, 1), drawn, (height, width))
        return self.weight * cosine_loss(rendered, wanted, measured)


@torch.no_grad()
def sample_maps(maps: Tensor, drawn: Drawn, image: tuple[int, int]) -> Tensor:
    """[R, C] float32 bilinear values at drawn pixels of maps [B V, H', W', C] that cover images of (H, W) pixels.

    Maps and images share their outer edges, and beyond the outermost centres a map keeps its value: a map of the
    images' own size gives its entries unchanged.
    """
    height, width = maps.shape[1:3]
    top, below, v = _neighbours(drawn.y, image[0], height)
    left, right, u = _neighbours(drawn.x, image[1], width)

    def along(row: Tensor) -> Tensor:
        first, second = (maps[drawn.view, row, column].float() for column in (left, right))
        return torch.lerp(first, second, u)

    return torch.lerp(along(top), along(below), v)


def _neighbours(pixel: Tensor, pixels: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells [R] between whose centres that of a pixel [R] lies, and how far towards the second [R, 1]."""
    place = ((pixel + 0.5) * (cells / pixels) - 0.5).clamp(0, cells - 1)
    first = place.floor().long()
    return first, (first + 1).clamp_max(cells - 1), (place - first)[:, None].float()


def cosine_loss(rendered: Tensor, wanted: Tensor, measured: Tensor) -> Tensor:
    """[] mean of 1 - cosine between rows [R, C], over rays [R] that are measured and have a teacher; 0 without any.

    A row of zeros, or one that is not finite, has no teacher.
    """
    counts = measured & torch.isfinite(wanted).all(1) & wanted.any(1)
    wanted = torch.where(counts[:, None], wanted, 0.0)
    apart = 1 - F.cosine_similarity(rendered.float(), wanted, dim=1)
    return (apart * counts).sum() / counts.sum().clamp(min=1)
