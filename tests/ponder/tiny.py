"""The smallest run that still goes through every stage."""

from __future__ import annotations

TINY = (
    "data.rooms=1",
    "data.train_views=3",
    "data.heldout_views=1",
    "data.width=32",
    "data.height=24",
    "model.voxel=0.15",
    "model.cell=0.2",
    "model.margin=0.2",
    "model.sparse_base=4",
    "model.sparse_channels=[4,4,4,4]",
    "model.sparse_layers=[1,1,1,1]",
    "model.dense_base=4",
    "model.dense_levels=3",
    "model.renderer.sdf_channels=4",
    "model.renderer.colour_channels=4",
    "model.renderer.hidden=8",
    "model.renderer.geometry_channels=4",
    "model.renderer.uniform_samples=12",
    "model.renderer.importance_samples=4",
    "rays=64",
    "views=2",
    "mesh_cell=0.2",
)


def tiny(*overrides: str) -> list[str]:
    """The overrides of a tiny run, with further ones behind."""
    return [*TINY, *overrides]
