"""Writing meshes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import trimesh

from ponder.render.mesh import Mesh
from ponder.train.files import write_atomically


def write_ply(path: Path, mesh: Mesh) -> None:
    """Write a binary PLY with vertex normals and 8-bit colours, atomically. An empty mesh gives a valid empty file."""
    shape = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
    if len(mesh.vertices):
        shape.vertex_normals = mesh.normals.numpy()
        shape.visual.vertex_colors = (mesh.colours.numpy() * 255).round().astype(np.uint8)
    data = shape.export(file_type="ply", vertex_normal=len(mesh.vertices) > 0)
    write_atomically(path, lambda stream: stream.write(data) and None)
