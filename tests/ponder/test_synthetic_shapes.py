"""Hand-made rooms, single shapes and patterns against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ponder.data.synthetic import CLASS_NAMES, Room, assemble_room, pinhole, render_room
from ponder.data.synthetic.layout import extent
from ponder.data.synthetic.primitives import Boxes, Capsules, Frustums
from ponder.data.synthetic.raytrace import march, trace
from ponder.data.synthetic.shapes import Box, Capsule, Frustum, Furniture, Part, Placed, sphere
from ponder.data.synthetic.textures import PATTERNS, pattern, solid, texture_table
from ponder.geometry import look_at, pixel_grid, rays_through_pixels


def ball_room(radius: float) -> Room:
    ball = Furniture("other", (Part(sphere((0.0, 0.0, 0.0), radius), solid((1.0, 0.0, 0.0))),))
    return assemble_room((4.0, 3.0, 2.5), [solid((0.8, 0.8, 0.8))] * 6, [Placed(ball, (2.0, 1.5, 1.0))])


def test_ball_in_a_box_equals_the_closed_form():
    radius, room = 0.5, ball_room(0.5)
    up = torch.tensor([0.0, 0.0, 1.0])
    pose = look_at(torch.tensor([0.4, 0.5, 1.4]), torch.tensor([2.0, 1.5, 1.0]), up)
    intrinsics = pinhole(64, 48, 75.0)
    assert float(intrinsics[0, 0]) == pytest.approx(32 / math.tan(math.radians(37.5)))
    frames = render_room(room, intrinsics, pose[None], 64, 48)
    origin, direction = rays_through_pixels(pixel_grid(48, 64).double(), intrinsics.double(), pose.double())
    to_ball = origin - torch.tensor([2.0, 1.5, 1.0], dtype=torch.float64)
    half_b = (to_ball * direction).sum(-1)
    root = half_b.square() - to_ball.square().sum(-1) + radius**2
    size = torch.tensor(room.size, dtype=torch.float64)
    wall = (torch.where(direction > 0, size - origin, -origin) / direction).amin(-1)
    ray_depth = torch.where(root > 0, -half_b - root.clamp(min=0).sqrt(), wall)
    forward = (direction * pose[:3, 2].double()).sum(-1)
    torch.testing.assert_close(frames.z_depth[0].double(), ray_depth * forward, atol=2e-6, rtol=1e-6)
    assert torch.equal(frames.instance[0] == 0, root > 0)
    assert torch.equal(frames.semantic[0] == CLASS_NAMES.index("other"), root > 0)
    on_ball = (origin + ray_depth[..., None] * direction - torch.tensor([2.0, 1.5, 1.0])) / radius
    torch.testing.assert_close(frames.normal[0].double()[root > 0], on_ball[root > 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(room.boxes.centre, torch.tensor([[2.0, 1.5, 1.0]]))
    torch.testing.assert_close(room.boxes.size, torch.full((1, 3), 1.0))


def test_ball_room_distance_equals_the_closed_form():
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = points * torch.tensor([4.0, 3.0, 2.5], dtype=torch.float64)
    ball = (points - torch.tensor([2.0, 1.5, 1.0], dtype=torch.float64)).norm(dim=1) - 0.5
    walls = torch.minimum(points, torch.tensor([4.0, 3.0, 2.5], dtype=torch.float64) - points).amin(1)
    torch.testing.assert_close(ball_room(0.5).sdf(points), torch.minimum(ball, walls), atol=1e-12, rtol=0)


def test_empty_room_and_origin_outside():
    room = assemble_room((3.0, 3.0, 2.5), [solid((0.5, 0.5, 0.5))] * 6, [])
    origin = torch.tensor([[1.5, 1.5, 1.0]], dtype=torch.float64)
    down = torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64)
    path, surface = trace(room.solids, origin, down)
    assert float(path) == 1.0 and int(surface) == 4
    assert room.boxes.centre.shape == (0, 3)
    with pytest.raises(ValueError, match="origin"):
        trace(room.solids, origin - 5, down)


SHAPES = {
    "box": Boxes.stack([Box((0.1, -0.2, 0.3), (0.5, 0.3, 0.2), 0.0, 0.7)]),
    "round box": Boxes.stack([Box((0.1, -0.2, 0.3), (0.5, 0.3, 0.2), 0.12, -0.4)]),
    "cylinder": Frustums.stack([Frustum((0.0, 0.1, 0.2), 0.4, 0.3, 0.3)]),
    "cone": Frustums.stack([Frustum((0.0, 0.1, 0.2), 0.3, 0.5, 0.15)]),
    "round cup": Frustums.stack([Frustum((0.0, 0.1, 0.2), 0.2, 0.2, 0.5, 0.1)]),
    "capsule": Capsules.stack([Capsule((-0.2, 0.0, 0.1), (0.4, 0.3, 0.2), 0.2)]),
    "sphere": Capsules.stack([sphere((0.1, 0.1, 0.1), 0.4)]),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_shape_distance_is_exact(name):
    """Outside, p - d grad d is the nearest point: on the surface, and no surface sample is nearer."""
    shape = SHAPES[name]
    generator = torch.Generator().manual_seed(3)
    points = torch.rand(4000, 3, generator=generator, dtype=torch.float64) * 2.4 - 1.1
    grown = shape.take((slice(None), None))
    distance, gradient = (value[0] for value in grown.distance_and_gradient(points))
    torch.testing.assert_close(distance, grown.distance(points)[0], atol=1e-14, rtol=0)
    torch.testing.assert_close(gradient.norm(dim=1), torch.ones(4000, dtype=torch.float64), atol=1e-9, rtol=0)
    step = 1e-6
    shifts = torch.eye(3, dtype=torch.float64) * step
    numeric = [(grown.distance(points + s) - grown.distance(points - s))[0] / (2 * step) for s in shifts]
    assert float(((torch.stack(numeric, -1) - gradient).norm(dim=1) < 1e-4).double().mean()) > 0.995
    foot = points - distance[:, None] * gradient
    outside = distance > 0
    assert float(grown.distance(foot[outside]).abs().max()) < 1e-9
    nearest = torch.cdist(points[outside][:300], foot[outside]).amin(1)
    assert float((distance[outside][:300] - nearest).max()) < 1e-9
    lower, upper = shape.bounds()
    assert bool((foot[outside] >= lower - 1e-9).all()) and bool((foot[outside] <= upper + 1e-9).all())


@pytest.mark.parametrize("name", list(SHAPES))
def test_march_finds_the_first_hit(name):
    """Against dense sampling along the ray: hits have distance 0 and nothing solid before them."""
    shape = SHAPES[name]
    generator = torch.Generator().manual_seed(4)
    angle = torch.rand(400, generator=generator, dtype=torch.float64) * 2 * math.pi
    height = torch.rand(400, generator=generator, dtype=torch.float64) * 2 - 1
    origin = torch.stack([2 * angle.cos(), 2 * angle.sin(), height], -1)
    target = torch.rand(400, 3, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    direction = torch.nn.functional.normalize(target - origin, dim=1)
    repeated = shape.take(torch.zeros(400, dtype=torch.long))
    path = march(repeated, origin, direction, torch.zeros(400, dtype=torch.float64))
    hit = torch.isfinite(path)
    assert 20 < int(hit.sum()) < 400
    at_hit = origin[hit] + path[hit, None] * direction[hit]
    assert float(shape.distance(at_hit).abs().max()) < 1e-9
    samples = torch.linspace(0, 4, 801, dtype=torch.float64)
    before = torch.where(hit, path, torch.inf)[:, None] - 1e-6 > samples
    distance = shape.distance(origin[:, None] + samples[:, None] * direction[:, None])
    assert float(distance[before].min()) > -1e-9


@pytest.mark.parametrize("name", list(PATTERNS))
def test_patterns_stay_between_their_colours_and_move_with_the_object(name):
    first, second = (0.1, 0.2, 0.3), (0.9, 0.7, 0.4)
    texture = pattern(name, first, second, 0.4, "xy", 0.13)
    turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    origin = torch.zeros(1, 3, dtype=torch.float64)
    here = texture_table([texture], torch.eye(3, dtype=torch.float64)[None], origin)
    moved = texture_table([texture], turn, origin + 0.7)
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3
    index = torch.zeros(500, dtype=torch.long)
    colour = here.albedo(points, index)
    low, high = torch.tensor([first, second], dtype=torch.float64).sort(0).values
    assert bool((colour >= low - 1e-9).all()) and bool((colour <= high + 1e-9).all())
    if name != "solid":
        assert float(colour.std(0).max()) > 0.02
    torch.testing.assert_close(moved.albedo(points @ turn[0].T + 0.7, index), colour, atol=1e-9, rtol=0)


def test_extent_of_a_turned_box():
    box = Furniture("other", (Part(Box((0.0, 0.0, 0.5), (1.0, 0.5, 0.5)), solid((1.0, 1.0, 1.0))),))
    lower, upper = extent([Placed(box, (2.0, 3.0, 0.0), math.pi / 2)])
    np.testing.assert_allclose([lower, upper], [[1.5, 2.0, 0.0], [2.5, 4.0, 1.0]], atol=1e-12)
