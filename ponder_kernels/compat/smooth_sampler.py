"""smooth_sampler's `SmoothSampler` on our operators: the same calls, shapes and numbers, on CPU and GPU.

A user changes one import line, ``from ponder_kernels.compat.smooth_sampler import SmoothSampler``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels import _check
from ponder_kernels.volume_sample.layout import PADDINGS
from ponder_kernels.volume_sample.op import volume_sample

__all__ = ["SmoothSampler"]


class SmoothSampler:
    """Trilinear sampling with optional smoothstep weights, differentiable twice and more.

    Not a torch.autograd.Function itself: only `apply` is meant to be called, as there. It runs on the CPU as well,
    takes inputs of any strides, never waits for the GPU, and refuses an unknown padding mode, which the CUDA extension
    takes for "reflection".
    """

    @staticmethod
    def apply(
        input: Tensor,
        grid: Tensor,
        padding_mode: str = "zeros",
        align_corners: bool = True,
        apply_smoothstep: bool = False,
    ) -> Tensor:
        """Sample `input` at the points of `grid`, as ``torch.nn.functional.grid_sample`` does (mode "bilinear").

        Args:
            input: [B, C, D, H, W] float16, bfloat16, float32 or float64.
            grid: [B, d, h, w, 3] floating point, as (x, y, z) with x on the last axis of `input`, which spans [-1, 1].
                Half-precision coordinates are computed with in float32.
            padding_mode: "zeros", "border" or "reflection"; coordinates that are not finite as in `volume_sample`.
            align_corners: True puts -1 and 1 on the centres of the end cells, False on their outer faces.
            apply_smoothstep: True replaces the fraction t inside a cell by ``t^2 (3 - 2 t)`` on each axis.

        Returns:
            [B, C, d, h, w] contiguous, in the dtype of `input`.

        Raises:
            TypeError: not a tensor, or not floating point.
            ValueError: wrong shape, batch sizes or devices that differ, an empty D, H or W, an unknown padding mode.

        Reference: smooth_sampler, the CUDA extension of GO-Surf (arXiv 2206.14735) that PonderV2 uses.
        """
        _check.floating("input", input)
        _check.floating("grid", grid)
        dims = _check.shape("input", input, "B C D H W")
        _check.shape("grid", grid, "B d h w 3", dims)
        if 0 in input.shape[2:]:
            raise ValueError(f"input: expected D, H and W of at least 1, got {list(input.shape)}")
        _check.same_device("input", input, grid=grid)
        _check.choice("padding_mode", padding_mode, PADDINGS)
        batch, *inner, _ = grid.shape
        wide = torch.float64 in (input.dtype, grid.dtype)
        points = grid.to(torch.float64 if wide else torch.float32).flatten(1, 3)
        values = volume_sample(
            input, points, padding=padding_mode, align_corners=align_corners, smoothstep=apply_smoothstep
        )
        return values.transpose(1, 2).reshape(batch, input.shape[1], *inner).to(input.dtype).contiguous()
