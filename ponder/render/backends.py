"""Which implementation each operator takes on a device, for reports to people."""

from __future__ import annotations

import torch

from ponder_kernels._backend import choose_backend

DISPATCHED = (
    "volume_sample",
    "neus_alpha",
    "laplace_density",
    "alpha_from_density",
    "render_weights",
    "composite",
    "intersect_aabb",
    "stratified_edges",
    "resample_edges",
    "merge_edges",
    # For decoders that fit the kernels, as those of the recipes do.
    "sdf_field",
    "render_rays",
)


def operator_backends(device: torch.device) -> dict[str, str]:
    """Backend ("triton" or "torch") that every public operator uses for float32 tensors on a device."""
    probe = torch.empty(0, device=device)
    chosen = choose_backend("auto", probe)
    return dict.fromkeys(DISPATCHED, chosen)
