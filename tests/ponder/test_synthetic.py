"""Procedural rooms: exact geometry, consistent labels, reproducible scenes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from ponder.data.scene import Frames, Scene
from ponder.data.synthetic import (
    CLASS_NAMES,
    Room,
    RoomConfig,
    assemble_room,
    make_room,
    render_room,
    room_scene,
    surface_distance,
)
from ponder.data.synthetic.layout import overlaps
from ponder.data.synthetic.shapes import Box, Capsule, Frustum, Furniture, Part, Placed, sphere
from ponder.data.synthetic.textures import Texture, solid
from ponder.data.synthetic.viewpoints import MIN_CLEARANCE
from ponder.geometry import (
    pixel_grid,
    project_points,
    rays_through_pixels,
    rigid_error,
    unproject_depth,
)

SMALL = RoomConfig(train_views=3, heldout_views=1, width=40, height=30)
SEEDS = (0, 1, 7)


@pytest.fixture(scope="module")
def rooms() -> dict[int, Room]:
    return {seed: make_room(seed, SMALL) for seed in SEEDS}


@pytest.fixture(scope="module")
def scenes() -> dict[int, Scene]:
    return {seed: room_scene(seed, SMALL) for seed in SEEDS}


def tensors(scene: Scene) -> list[torch.Tensor]:
    """Every tensor of a scene, in a fixed order."""
    parts = (scene.cloud, scene.train, scene.heldout, scene.boxes)
    values = [getattr(part, field.name) for part in parts for field in dataclasses.fields(part)]
    return [value for value in values if isinstance(value, torch.Tensor)]


def surface_points(frames: Frames) -> torch.Tensor:
    return unproject_depth(frames.z_depth, frames.intrinsics, frames.camera_to_world)


def test_same_seed_is_bit_identical_and_ignores_global_random_state(scenes):
    torch.manual_seed(123)
    np.random.seed(5)
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = room_scene(0, SMALL)
    assert again.name == "room-0000"
    assert len(tensors(again)) == 21
    for first, second in zip(tensors(scenes[0]), tensors(again), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])


def test_different_seeds_differ(scenes, rooms):
    assert rooms[0].size != rooms[1].size
    assert not torch.equal(scenes[0].train.rgb, scenes[1].train.rgb)
    assert not torch.equal(scenes[0].train.z_depth, scenes[1].train.z_depth)


def test_number_of_views_and_noise_do_not_change_the_room():
    few = make_room(3, SMALL)
    other = make_room(3, dataclasses.replace(SMALL, train_views=5, width=8, cloud_noise=0.1))
    assert few.size == other.size
    assert torch.equal(few.boxes.centre, other.boxes.centre)


def test_rendering_leaves_the_thread_count_alone(rooms):
    threads = torch.get_num_threads()
    rooms[0].sdf(torch.rand(10, 3))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_lies_on_the_surface_it_is_labelled_with(rooms, scenes, seed):
    room, frames = rooms[seed], scenes[seed].train
    points = surface_points(frames).double().reshape(-1, 3)
    assert float(frames.z_depth.min()) > 0.05
    assert float(surface_distance(room, points).max()) < 1e-5
    semantic, instance = room.labels(room.nearest_surface(points))
    rendered_semantic, rendered_instance = frames.semantic.reshape(-1), frames.instance.reshape(-1)
    # Where two surfaces meet, float32 points may be a hair nearer to the other one.
    assert float((semantic == rendered_semantic).double().mean()) > 0.995
    assert float((instance == rendered_instance).double().mean()) > 0.995
    inside = rendered_instance >= 0
    assert bool(inside.any())
    assert torch.equal(room.boxes.semantic[rendered_instance[inside]], rendered_semantic[inside])
    assert set(rendered_semantic[~inside].tolist()) <= {0, 1, 2}


def test_labels_follow_the_objects_own_distance(rooms, scenes):
    """Each object alone has distance 0 at the pixels that carry its instance id."""
    room, frames = rooms[0], scenes[0].train
    points = surface_points(frames).double().reshape(-1, 3)
    instance = frames.instance.reshape(-1)
    for number in instance.unique().tolist():
        if number >= 0:
            own = [p.distance(points[instance == number]) for p in room.solids.pieces[number] if len(p)]
            assert float(torch.cat(own).amin(0).abs().max()) < 1e-5


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_are_the_gradient_of_the_distance(rooms, scenes, seed):
    room, frames = rooms[seed], scenes[seed].train
    normal = frames.normal.double().reshape(-1, 3)
    points = surface_points(frames).double().reshape(-1, 3)
    step = 1e-6
    # Both samples lie on the free side, 1e-4 m off the surface: away from the kink at edges seen from inside.
    offset = points + 1e-4 * normal
    shifts = torch.eye(3, dtype=torch.float64) * step
    differences = [(room.sdf(offset + s) - room.sdf(offset - s)) / (2 * step) for s in shifts]
    error = (torch.stack(differences, -1) - normal).norm(dim=-1)
    assert float((error < 1e-3).double().mean()) > 0.985  # the rest lies in concave corners, where sdf has a crease
    assert float((normal.norm(dim=1) - 1).abs().max()) < 1e-6
    _, directions = rays_through_pixels(
        pixel_grid(*frames.size), frames.intrinsics[:, None, None], frames.camera_to_world[:, None, None]
    )
    assert float((directions.double().reshape(-1, 3) * normal).sum(1).max()) < 1e-6


def test_points_project_back_to_their_pixels(scenes):
    frames = scenes[1].train
    points, pixels = surface_points(frames), pixel_grid(*frames.size)
    for view in range(len(frames)):
        back, depth = project_points(points[view].reshape(-1, 3), frames.intrinsics[view], frames.camera_to_world[view])
        assert float((back - pixels.reshape(-1, 2)).abs().max()) < 1e-3
        torch.testing.assert_close(depth, frames.z_depth[view].reshape(-1), atol=1e-5, rtol=1e-5)


def test_distance_is_lipschitz(rooms):
    generator = torch.Generator().manual_seed(0)
    for room in rooms.values():
        size = torch.tensor(room.size, dtype=torch.float64)
        first = (torch.rand(3000, 3, generator=generator, dtype=torch.float64) * 1.4 - 0.2) * size
        near = first + 0.05 * torch.randn(3000, 3, generator=generator, dtype=torch.float64)
        for second in (near, first.flip(0)):
            change = (room.sdf(first) - room.sdf(second)).abs()
            assert float((change - (first - second).norm(dim=1)).max()) < 1e-12
        outside = first[((first < 0) | (first > size)).any(1)]
        assert float(room.sdf(outside).max()) < 0


def test_distance_keeps_dtype_and_leading_dims(rooms):
    assert rooms[0].sdf(torch.ones(2, 5, 3)).shape == (2, 5)
    assert rooms[0].sdf(torch.ones(4, 3)).dtype == torch.float32
    assert rooms[0].sdf(torch.ones(0, 3)).shape == (0,)
    points = torch.rand(20000, 3, dtype=torch.float64) * 3
    assert torch.equal(rooms[0].sdf(points)[:100], rooms[0].sdf(points[:100]))


@pytest.mark.parametrize("seed", SEEDS)
def test_boxes_hold_their_instances_tightly(rooms, scenes, seed):
    room = rooms[seed]
    boxes = scenes[seed].boxes
    lower, upper = boxes.centre - boxes.size / 2, boxes.centre + boxes.size / 2
    assert torch.equal(boxes.instance, torch.arange(len(boxes.instance)))
    points = surface_points(scenes[seed].train).reshape(-1, 3)
    instance = scenes[seed].train.instance.reshape(-1)
    for number in instance.unique().tolist():
        if number >= 0:
            own = points[instance == number]
            assert bool((own > lower[number] - 1e-4).all()) and bool((own < upper[number] + 1e-4).all())
    # Tight: the object reaches each of the six faces. Its distance is 0 somewhere on a fine grid over the
    # face.
    grid = torch.linspace(0, 1, 60, dtype=torch.float64)
    u, v = (g.reshape(-1) for g in torch.meshgrid(grid, grid, indexing="ij"))
    for number in range(0, len(boxes.instance), 4):
        low = room.solids.object_lower[number]
        span = room.solids.object_upper[number] - low
        for axis in range(3):
            for side in (0.0, 1.0):
                unit = torch.stack([torch.full_like(u, side), u, v], -1).roll(axis, dims=1)
                face = low + unit * span
                own = [p.distance(face) for p in room.solids.pieces[number] if len(p)]
                # A touching point is at most half a grid diagonal away.
                assert -1e-9 < float(torch.cat(own).min()) < float(span.max()) / 80


@pytest.mark.parametrize("seed", SEEDS)
def test_furniture_stays_in_the_room_and_apart(rooms, seed):
    room = rooms[seed]
    size = torch.tensor(room.size, dtype=torch.float64)
    assert bool((room.solids.object_lower > -1e-9).all())
    assert bool((room.solids.object_upper < size + 1e-9).all())
    assert {CLASS_NAMES[i] for i in room.boxes.semantic.tolist()} >= {"door", "window", "rug", "picture"}
    names = [CLASS_NAMES[i] for i in room.boxes.semantic.tolist()]
    corners = list(zip(room.solids.object_lower.numpy(), room.solids.object_upper.numpy(), strict=True))
    standing = [c for c, n in zip(corners, names, strict=True) if n in {"table", "sofa", "bed", "cabinet", "shelf"}]
    for i, first in enumerate(standing):
        assert not any(overlaps(first, second, 0.0) for second in standing[:i])


@pytest.mark.parametrize("seed", SEEDS)
def test_cameras_are_free_distinct_and_level(rooms, scenes, seed):
    scene = scenes[seed]
    poses = torch.cat([scene.train.camera_to_world, scene.heldout.camera_to_world])
    assert max(rigid_error(pose) for pose in poses) < 1e-5
    eyes = poses[:, :3, 3]
    assert float(rooms[seed].sdf(eyes).min()) > MIN_CLEARANCE - 1e-5
    assert float(eyes[:, 2].min()) >= 1.0 and float(eyes[:, 2].max()) <= 1.8
    assert float(poses[:, 2, 2].max()) < 0  # looking down
    assert float(poses[:, 2, 0].abs().max()) < 1e-5  # no roll
    apart = torch.cdist(eyes, eyes) + torch.eye(len(eyes))
    assert float(apart.min()) > 0.02


def test_heldout_views_lie_between_training_views():
    config = RoomConfig(train_views=8, heldout_views=2, width=4, height=3, min_furniture=0, max_furniture=0)
    scene, room = room_scene(2, config), make_room(2, config)
    middle = torch.tensor(room.size[:2]) / 2

    def angles(frames: Frames) -> torch.Tensor:
        x, y = (frames.camera_to_world[:, :2, 3] - middle).unbind(1)
        return torch.atan2(y, x)

    for angle in angles(scene.heldout):
        gap = (angles(scene.train) - angle + math.pi).remainder(2 * math.pi) - math.pi
        assert float(gap[gap > 0].min()) < 1.0 and float(gap[gap < 0].max()) > -1.0


def test_scene_is_complete(scenes):
    scene = scenes[7]
    assert len(scene.train) == 3 and len(scene.heldout) == 1
    assert len(scene.cloud) == 3 * 30 * 40
    assert scene.train.rgb.dtype == torch.uint8 and scene.train.size == (30, 40)
    assert scene.train.semantic.dtype == scene.train.instance.dtype == torch.int64
    assert scene.cloud.coord.dtype == scene.cloud.colour.dtype == scene.cloud.normal.dtype == torch.float32
    assert float(scene.cloud.colour.min()) >= 0 and float(scene.cloud.colour.max()) <= 1
    torch.testing.assert_close(scene.cloud.coord[:1200], surface_points(scene.train)[0].reshape(-1, 3))
    assert float(scene.train.rgb.double().std()) > 30  # neither flat nor black


def test_cloud_noise_moves_points_by_its_deviation(scenes):
    noisy = room_scene(0, dataclasses.replace(SMALL, cloud_noise=0.02))
    shift = noisy.cloud.coord - scenes[0].cloud.coord
    assert float(shift.std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(noisy.train.z_depth, scenes[0].train.z_depth)


def test_zero_heldout_views():
    scene = room_scene(4, dataclasses.replace(SMALL, train_views=1, heldout_views=0, width=6, height=4))
    assert len(scene.train) == 1 and len(scene.heldout) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train_views", 0),
        ("heldout_views", -1),
        ("width", 0),
        ("height", 2.5),
        ("horizontal_fov", 180.0),
        ("min_furniture", -1),
        ("max_furniture", 3),
        ("cloud_noise", -0.1),
        ("cloud_noise", math.nan),
    ],
)
def test_bad_config_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        RoomConfig(**{field: value})


def test_bad_arguments_are_refused(rooms):
    with pytest.raises(ValueError, match="seed"):
        make_room(-1)
    shell = [solid((0.5, 0.5, 0.5))] * 6
    with pytest.raises(ValueError, match="shell"):
        assemble_room((3.0, 3.0, 2.5), shell[:5], [])
    with pytest.raises(ValueError, match="size"):
        assemble_room((3.0, 0.0, 2.5), shell, [])
    with pytest.raises(ValueError, match=r"objects\[0\]"):
        dragon = Furniture("dragon", (Part(sphere((0, 0, 0), 1), shell[0]),))
        assemble_room((3.0, 3.0, 2.5), shell, [Placed(dragon, (0, 0, 0))])
    with pytest.raises(ValueError, match="intrinsics"):
        render_room(rooms[0], torch.eye(4), torch.eye(4)[None], 4, 3)
    with pytest.raises(ValueError, match="camera_to_world"):
        render_room(rooms[0], torch.eye(3), torch.eye(4), 4, 3)
    with pytest.raises(ValueError, match="view 0 has its eye outside"):
        render_room(rooms[0], torch.eye(3), torch.eye(4)[None] - 1, 4, 3)
    for build in (lambda: Box((0, 0, 0), (1, 1, 0)), lambda: Box((0, 0, 0), (1, 1, 1), 2.0)):
        with pytest.raises(ValueError, match="Box"):
            build()
    with pytest.raises(ValueError, match="Frustum"):
        Frustum((0, 0, 0), 1.0, -1.0, 0.0)
    with pytest.raises(ValueError, match="Capsule"):
        Capsule((0, 0, 0), (0, 0, 1), 0.0)
    with pytest.raises(ValueError, match="pattern"):
        Texture("plaid", (0, 0, 0), (1, 1, 1))


def test_colour_is_the_same_from_every_view(rooms, scenes):
    """Pixels looked up as points of the room get the rendered colour without knowing the camera."""
    room, frames = rooms[1], scenes[1].train
    points, normal = surface_points(frames).reshape(-1, 3), frames.normal.reshape(-1, 3)
    colour = room.colour(points, normal, room.nearest_surface(points.double()))
    difference = (colour * 255 - frames.rgb.reshape(-1, 3)).abs().amax(1)
    assert float((difference < 2).double().mean()) > 0.985
