"""The deterministic gradient of a volume: host function and launches."""

from __future__ import annotations

import torch
from torch import Tensor

from ponder_kernels._launch import Plan, Specialisation, cdiv, launch, next_power_of_two, specialise
from ponder_kernels.volume_sample.layout import Options, layout_of

CORNERS = 8
BLOCK_N = 128
MAX_BLOCK_C = 128


def scatter(
    to_volume: Tensor,
    grad_out: Tensor,
    points: Tensor,
    along: Tensor | None,
    options: Options,
) -> None:
    """Add to a zeroed gradient what the points' corners receive, every voxel's terms in the order of the points.

    The same bits in every run, for the price of a stable sort and 8 x 28 bytes of workspace per point. Nothing is
    synchronised with the host.

    Args:
        to_volume: [B, C, D, H, W] float32 from `gradient_buffer`.
        grad_out: [B, N, C] contiguous, float32.
        points: [B, N, 3] contiguous.
        along: None: a corner's term is its weight times the point's row of `grad_out`. [B, N, 3] contiguous: the
            weight's derivative along this direction instead.
        options: as in `volume_sample`.
    """
    from ponder_kernels.volume_sample.scatter import kernels

    batch, channels, *sizes = to_volume.shape
    n_points = points.shape[1]
    entries = batch * n_points * CORNERS
    voxels = torch.empty(entries, dtype=torch.int64, device=points.device)
    weights = torch.empty(entries, dtype=torch.float32, device=points.device)
    listing = (points, points if along is None else along, voxels, weights)
    grid: tuple[int, ...] = (batch * cdiv(n_points, BLOCK_N),)
    plan = _entries_plan(options, along is not None)
    launch(kernels.volume_sample_entries_kernel, grid, plan, *listing, n_points, *sizes)
    ordered, order = torch.sort(voxels, stable=True)
    plan = _scatter_plan(channels, layout_of(to_volume).last)
    grid = (entries, cdiv(channels, plan.constexprs["BLOCK_C"]))
    summing = (ordered, order, weights, grad_out, to_volume)
    launch(kernels.volume_sample_scatter_kernel, grid, plan, *summing, entries, sizes[0] * sizes[1] * sizes[2])


def _entries_plan(options: Options, along: bool) -> Plan:
    return Plan({**options.flags(), "ALONG": along, "BLOCK_N": BLOCK_N})


def _scatter_plan(channels: int, last: bool) -> Plan:
    # One warp: a program is one voxel, and its channels are at most four per thread.
    block_c = min(MAX_BLOCK_C, next_power_of_two(channels))
    return Plan({"C": channels, "TO_LAST": last, "BLOCK_C": block_c}, num_warps=1)


def specialisations() -> list[Specialisation]:
    """Compiled forms of the scatter's kernels over options, layouts and channel counts that occur."""
    from ponder_kernels.volume_sample.scatter import kernels

    options = [Options("zeros", True, False), Options("border", False, False), Options("reflection", True, True)]
    integers = {"voxel_ptr": torch.int64, "order_ptr": torch.int64}
    return [
        *(
            specialise(kernels.volume_sample_entries_kernel, _entries_plan(option, along), integers)
            for option in options
            for along in (False, True)
        ),
        *(
            specialise(kernels.volume_sample_scatter_kernel, _scatter_plan(channels, last), integers)
            for channels, last in ((1, False), (3, False), (32, True), (128, True))
        ),
    ]
