"""Writing meshes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh

from ponder.render.mesh import Mesh
from ponder.train.files import write_bytes


def write_ply(path: Path, mesh: Mesh) -> None:
    """Write a binary PLY with vertex normals and 8-bit colours, atomically. An empty mesh gives a valid empty file."""
    attributes = {}
    if len(mesh.vertices):
        colours = (mesh.colours.numpy() * 255).round().astype(np.uint8)
        attributes = {"vertex_normals": mesh.normals.numpy(), "vertex_colors": colours}
    shape = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False, **attributes)
    data = shape.export(file_type="ply", vertex_normal=len(mesh.vertices) > 0)
    assert isinstance(data, bytes)
    write_bytes(path, data)
