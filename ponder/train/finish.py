"""The mesh of a finished run and its distance to the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ponder.data.scene import Scene
from ponder.data.sources import room_config
from ponder.data.synthetic import make_room, surface_distance
from ponder.geometry import unproject_depth
from ponder.render.mesh import Mesh, extract_mesh
from ponder.tasks.mesh_file import write_ply
from ponder.train.progress import Stage

if TYPE_CHECKING:
    from ponder.train.run import Run


def mesh_report(run: Run) -> dict[str, Any]:
    """Write `mesh.ply` of the first scene and measure it.

    Returns:
        numbers of vertices and faces, and the median distance of vertices to the true surface in metres: the analytic
        one of a procedural room, else the nearest measured point of the training and held-out frames.
    """
    item = run.scenes[0]
    run.model.eval()
    with torch.no_grad(), Stage("extracting the mesh", run.console) as stage:
        volume = run.model.encode([item.encoded])
        mesh = extract_mesh(
            run.model.renderer, volume.features, volume.box, item.scene.cloud.coord,
            cell=run.config.mesh_cell, reach=run.config.loss.truncation, progress=stage,
        )  # fmt: skip
    run.model.train()
    write_ply(run.folder / "mesh.ply", mesh)
    report: dict[str, Any] = {
        "scene": item.scene.name,
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
    }
    if len(mesh.vertices):
        report |= _distance(run, item.scene, mesh)
    return report


def _distance(run: Run, scene: Scene, mesh: Mesh) -> dict[str, Any]:
    config = run.config.data
    if config.source == "rooms":
        room = make_room(config.first_seed, room_config(config))
        distance, against = surface_distance(room, mesh.vertices.double()), "analytic surface"
    else:
        distance, against = _to_measured(scene, mesh.vertices), "measured depth of all frames"
    return {"median_distance": float(distance.median()), "distance_to": against}


def _to_measured(scene: Scene, vertices: Tensor) -> Tensor:
    """Distance of vertices to the nearest measured point of any frame."""
    points = []
    for frames in (scene.train, scene.heldout):
        world = unproject_depth(frames.z_depth, frames.intrinsics, frames.camera_to_world)
        points.append(world[frames.z_depth > 0][::4])
    distance, _ = cKDTree(torch.cat(points).numpy()).query(vertices.numpy())
    return torch.from_numpy(distance)
