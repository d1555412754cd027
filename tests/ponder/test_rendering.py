"""A field whose SDF is known: images, meshes and metrics against geometry worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import trimesh

from ponder.data.scene import Frames
from ponder.geometry import look_at, pixel_grid, rays_through_pixels
from ponder.render.image import Image, render_image
from ponder.render.mesh import extract_mesh
from ponder.render.renderer import NeusRenderer, RayBatch, RendererConfig, coarse_weights
from ponder.tasks.mesh_file import write_ply
from ponder.tasks.view_synthesis import ViewMetrics, compare, psnr, summarise
from ponder.train.preview import depth_colours, normal_colours, panel

CELL = 0.1
RADIUS = 0.8
BOX = torch.tensor([[[-1.6, -1.6, -1.2], [1.6, 1.6, 1.2]]])
COLOUR = torch.tensor([0.8, 0.3, 0.1])


def sphere_renderer() -> NeusRenderer:
    """A renderer whose SDF is the volume's first channel and whose colour is constant."""
    renderer = NeusRenderer(RendererConfig(4, 0, hidden=4, geometry_channels=2, initial_variance=0.55))
    sdf, rgb = renderer.field.sdf_decoder, renderer.field.rgb_decoder
    with torch.no_grad():
        for parameter in (*sdf.parameters(), *rgb.parameters()):
            parameter.zero_()
        sdf.lin0.bias.fill_(-1.0)
        sdf.fc_c[1].weight.copy_(torch.eye(4))
        sdf.lin1.weight[0, 0] = 1.0
        rgb.lin0.bias.copy_(torch.logit(COLOUR))
    return renderer


def sphere_volume() -> torch.Tensor:
    """[1, 4, 24, 32, 32]: distance to the sphere at the cell centres."""
    axes = [torch.arange(n) * CELL + low + CELL / 2 for n, low in zip((24, 32, 32), (-1.2, -1.6, -1.6), strict=True)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    volume = torch.zeros(1, 4, 24, 32, 32)
    volume[0, 0] = torch.stack([x, y, z], -1).norm(dim=-1) - RADIUS
    return volume


def camera() -> tuple[torch.Tensor, torch.Tensor]:
    pose = look_at(torch.tensor([1.5, 0.4, 0.3]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return torch.tensor([[40.0, 0.0, 16.0], [0.0, 40.0, 12.0], [0.0, 0.0, 1.0]]), pose


def test_image_of_a_sphere() -> None:
    intrinsics, pose = camera()
    reports: list[tuple[int, int]] = []
    image = render_image(
        sphere_renderer(), sphere_volume(), BOX, intrinsics, pose, (24, 32), lambda *report: reports.append(report)
    )
    origins, directions = rays_through_pixels(pixel_grid(24, 32), intrinsics, pose)
    along = (origins * directions).sum(-1)
    root = along**2 - (origins.square().sum(-1) - RADIUS**2)
    seen = root > 0.15
    ray_depth = -along - root.clamp_min(0).sqrt()
    z_depth = ray_depth * (directions @ pose[:3, 2])
    points = origins + directions * ray_depth.unsqueeze(-1)
    assert seen.sum() > 100
    assert (image.z_depth - z_depth)[seen].abs().max() < 0.02
    assert (image.opacity[seen] > 0.98).all()
    assert (image.rgb[seen] - COLOUR).abs().max() < 0.03
    unit = torch.nn.functional.normalize(image.normal[seen], dim=-1)
    assert (unit * points[seen] / RADIUS).sum(-1).min() > 0.98
    assert (image.opacity[root < -0.5] < 0.05).all()
    assert reports[-1] == (24 * 32, 24 * 32)


def test_refined_samples_gather_at_the_surface() -> None:
    renderer, volume = sphere_renderer(), sphere_volume()
    rays = RayBatch(torch.tensor([[[1.55, 0.0, 0.0]]]), torch.tensor([[[-1.0, 0.0, 0.0]]]))
    coarse = torch.linspace(0.05, 3.0, 49)[None, None]
    found = renderer._refine(volume, BOX, rays, coarse, renderer.collapse().field, None)
    extra = found.shape[-1] - 49
    near = ((found - (1.55 - RADIUS)).abs() < 0.12).sum() - ((coarse - (1.55 - RADIUS)).abs() < 0.12).sum()
    assert extra == renderer.config.importance_samples and near >= 0.7 * extra


def test_coarse_weights_ignore_surfaces_seen_from_behind() -> None:
    position = torch.linspace(0, 1, 11)
    entering, leaving = 0.5 - position, position + 0.02
    assert coarse_weights(entering, position, 60.0).argmax() in (4, 5)
    assert coarse_weights(leaving, position, 60.0).max() < 1e-2


def test_jitter_comes_from_the_given_generator_only() -> None:
    renderer, volume = sphere_renderer(), sphere_volume()
    rays = RayBatch(torch.tensor([[[1.55, 0.1, 0.0]]]), torch.tensor([[[-1.0, 0.0, 0.0]]]))
    one, two = (renderer(volume, BOX, rays, generator=torch.Generator().manual_seed(5)).depth for _ in range(2))
    other = renderer(volume, BOX, rays, generator=torch.Generator().manual_seed(6)).depth
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_mesh_of_a_sphere(tmp_path: Path) -> None:
    cloud = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    mesh = extract_mesh(sphere_renderer(), sphere_volume(), BOX, cloud * RADIUS, cell=0.08, reach=0.2)
    radius = mesh.vertices.norm(dim=-1)
    assert len(mesh.vertices) > 500
    assert (radius - RADIUS).abs().max() < 0.02
    assert (mesh.normals * mesh.vertices / radius.unsqueeze(-1)).sum(-1).min() > 0.95
    corners = mesh.vertices[mesh.faces]
    faces = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((faces * corners.mean(1)).sum(-1) > 0).float().mean() > 0.99, "faces wind towards the free space"
    assert (mesh.colours - COLOUR).abs().max() < 0.05
    write_ply(tmp_path / "m.ply", mesh)
    loaded = trimesh.load(tmp_path / "m.ply", process=False)
    torch.testing.assert_close(torch.tensor(loaded.vertices).float(), mesh.vertices)
    assert abs(int(loaded.visual.vertex_colors[0, 0]) - round(float(mesh.colours[0, 0]) * 255)) <= 1


@pytest.mark.parametrize("offset", [5.0, -5.0], ids=["all outside", "all inside"])
def test_no_crossing_gives_an_empty_mesh(offset: float, tmp_path: Path) -> None:
    mesh = extract_mesh(sphere_renderer(), sphere_volume() + offset, BOX, torch.zeros(1, 3), cell=0.1, reach=0.3)
    assert mesh.vertices.shape == mesh.normals.shape == mesh.colours.shape == (0, 3)
    write_ply(tmp_path / "m.ply", mesh)
    assert b"element vertex 0" in (tmp_path / "m.ply").read_bytes()


def test_unobserved_space_holds_no_surface() -> None:
    half = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    half = half[half[:, 0] > 0] * RADIUS
    mesh = extract_mesh(sphere_renderer(), sphere_volume(), BOX, half, cell=0.08, reach=0.15)
    assert len(mesh.vertices) > 200 and mesh.vertices[:, 0].min() > -0.35


def test_metrics_by_hand() -> None:
    rgb = torch.zeros(8, 8, 3)
    rgb[:, 4:] = 1.0
    image = Image((rgb * 0.8 + 0.1), torch.full((8, 8), 2.0), torch.zeros(8, 8, 3), torch.ones(8, 8))
    z_depth = torch.full((8, 8), 1.5)
    z_depth[0], z_depth[1] = 0.0, 3.0
    found = compare("view", image, rgb, z_depth)
    assert found.psnr == pytest.approx(20.0, abs=1e-3)
    assert found.psnr_mean_colour == pytest.approx(-20 * math.log10(0.5), abs=1e-3)
    assert found.depth_mae == pytest.approx((6 * 0.5 + 1.0) / 7, abs=1e-6)
    assert found.depth_rmse == pytest.approx(math.sqrt((6 * 0.25 + 1.0) / 7), abs=1e-6)
    assert compare("same", Image(rgb, z_depth, image.normal, image.opacity), rgb, z_depth).ssim == pytest.approx(1.0)
    assert psnr(rgb, rgb) == pytest.approx(100.0)


def test_views_without_depth_do_not_spoil_the_mean() -> None:
    views = [ViewMetrics("a", 10.0, 5.0, 0.5, 0.2, 0.3), ViewMetrics("b", 20.0, 7.0, 0.7, math.nan, math.nan)]
    summary = summarise(views)
    expected = {"psnr": 15.0, "psnr_mean_colour": 6.0, "ssim": 0.6, "depth_mae": 0.2, "depth_rmse": 0.3, "views": 2}
    assert summary == pytest.approx(expected)
    with pytest.raises(ValueError, match="views: expected at least one view, got none"):
        summarise([])


def test_pictures() -> None:
    depth = torch.tensor([[0.0, 1.0, 4.0]])
    colours = depth_colours(depth, 4.0)
    assert colours[0, 0].sum() == 0 and colours[0, 1].sum() > colours[0, 2].sum() > 0
    facing = normal_colours(torch.tensor([[[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]]), torch.eye(4))
    torch.testing.assert_close(facing[0, 0], torch.tensor([0.5, 0.5, 1.0]))
    assert facing[0, 1].sum() == 0
    rgb = torch.zeros(1, 4, 6, 3, dtype=torch.uint8)
    frames = Frames(("a",), rgb, torch.ones(1, 4, 6), torch.zeros(1, 4, 6, 3), torch.eye(3)[None], torch.eye(4)[None])
    image = Image(torch.ones(4, 6, 3), torch.ones(4, 6), torch.zeros(4, 6, 3), torch.ones(4, 6))
    assert panel(frames, 0, image).shape == (10, 18, 3)
