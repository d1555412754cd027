"""Rays through drawn pixels, against plain loops written from the description of PonderV2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.models.ponderv2.pixel_rays import PixelRays, Views, draw_pixels, draw_rays, hits_box
from ponder.models.ponderv2.unit_cube import UnitCube, to_unit_cube
from tests.ponder.ponderv2_rooms import look_at, room_batch

SIZES = [(4.0, 3.0, 2.5), (2.2, 2.0, 2.4)]
BOUND = 0.55
CLASSES = 6


def drawn_from(
    batch: dict[str, Any], per_view: int = 10, classes: int = CLASSES, class_zero: bool = False, seed: int = 3
) -> tuple[UnitCube, PixelRays]:
    cube = to_unit_cube(batch["coord"], batch["offset"], batch["extrinsic"], batch["depth_scale"])
    views = Views(batch["rgb"], batch["depth"], batch["intrinsic"], batch.get("semantic"))
    torch.manual_seed(seed)
    return cube, draw_rays(views, cube, per_view, BOUND, classes, class_zero)


def through_box(origin: Tensor, direction: Tensor) -> bool:
    """Slab test with components moved away from 0, beyond a distance of 0.1."""
    near, far = 0.1, float("inf")
    for o, v in zip(origin.tolist(), direction.tolist(), strict=True):
        if -1e-10 < v < 1e-5:
            v = 1e-5
        if -1e-5 < v < 1e-10:
            v = -1e-5
        first, second = sorted(((-BOUND - o) / v, (BOUND - o) / v))
        near, far = max(near, first), min(far, second)
    return near < far


def rays_by_the_text(batch: dict[str, Any], cube: UnitCube, per_view: int, seed: int) -> dict[str, Tensor]:
    """View after view and ray after ray, in double precision but for the draws."""
    torch.manual_seed(seed)
    rows: dict[str, list[Any]] = {key: [] for key in ("origin", "direction", "rgb", "depth", "label")}
    for b in range(len(batch["offset"])):
        for v in range(batch["depth"].shape[1]):
            depth, camera = batch["depth"][b, v], cube.extrinsic[b, v].double()
            back = torch.linalg.inv(camera)
            from_pixel = torch.linalg.inv(batch["intrinsic"][b, v, :3, :3].double())
            origin = back[:3, 3]
            axis = F.normalize((back @ torch.tensor([0.0, 0, 1, 1]).double())[:3] - origin, dim=0)
            candidates = [(y, x) for y in range(depth.shape[0]) for x in range(depth.shape[1]) if depth[y, x] > 0]
            for number in torch.randperm(len(candidates))[:per_view].tolist():
                y, x = candidates[number]
                seen = F.normalize(from_pixel @ torch.tensor([float(x), float(y), 1.0]).double(), dim=0)
                direction = F.normalize(back[:3, :3] @ seen, dim=0)
                inside = through_box(origin, direction)
                along = float(depth[y, x]) * float(cube.depth_scale[b]) / float(direction @ axis)
                label = int(batch["semantic"][b, v, y, x])
                rows["origin"].append(origin)
                rows["direction"].append(direction)
                rows["rgb"].append(batch["rgb"][b, v, y, x].double() if inside else torch.zeros(3).double())
                rows["depth"].append(torch.tensor([along if inside else -0.001]))
                rows["label"].append(torch.tensor(label if inside and label > 0 else -1))
    return {key: torch.stack(found) for key, found in rows.items()}


def outside(batch: dict[str, Any]) -> dict[str, Any]:
    """The second view of the first scene stands outside its box, and looks along a wall so that some rays miss."""
    corner = batch["coord"][0]
    eye = corner + torch.tensor([6.0, 5.0, 1.0])
    batch["extrinsic"][0, 1] = look_at(eye, corner + torch.tensor([3.0, 1.0, 1.5]))
    return batch


def touching(batch: dict[str, Any]) -> dict[str, Any]:
    """The first view of the second scene stands within a tenth of the cube of the box's face, looking out."""
    corner = batch["coord"][300]
    eye = corner + torch.tensor([2.35, 1.0, 1.0])
    batch["extrinsic"][1, 0] = look_at(eye, eye + torch.tensor([1.0, 0.2, 0.1]))
    return batch


@pytest.mark.parametrize(
    "prepare, missed", [(lambda batch: batch, (0, 0)), (outside, (2, 9)), (touching, (5, 10))],
    ids=["inside", "outside", "leaving at once"],
)  # fmt: skip
def test_rays(prepare: Callable[[dict[str, Any]], dict[str, Any]], missed: tuple[int, int]) -> None:
    batch = prepare(room_batch(SIZES))
    cube, rays = drawn_from(batch, per_view=10, seed=3)
    wanted = rays_by_the_text(batch, cube, per_view=10, seed=3)
    assert rays.drawn.counts == [20, 20]
    torch.testing.assert_close(rays.origins.double(), wanted["origin"], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(rays.directions.double(), wanted["direction"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rays.depth, wanted["depth"], rtol=1e-5, atol=0)
    torch.testing.assert_close(rays.rgb.double(), wanted["rgb"], rtol=1e-6, atol=0)
    assert torch.equal(rays.labels, wanted["label"])
    out = rays.depth[:, 0] == -0.001
    assert missed[0] <= int(out.sum()) <= missed[1]
    assert not rays.rgb[out].any() and bool((rays.labels[out] == -1).all())
    assert bool((rays.depth[~out] > 0).all())


def test_rays_end_on_the_walls() -> None:
    """The measured point of every ray lies on a wall of its room, in the cube as in the world."""
    batch = room_batch(SIZES, missing=0.3)
    cube, rays = drawn_from(batch, per_view=40)
    ends = rays.origins + rays.directions * rays.depth
    scene = torch.tensor([0, 1]).repeat_interleave(torch.tensor(rays.drawn.counts))
    low, high = (
        torch.stack([pick(cube.unit[cube.batch == n], 0) for n in range(2)]) for pick in (torch.amin, torch.amax)
    )
    gap = torch.minimum((ends - low[scene]).abs(), (ends - high[scene]).abs()).amin(1)
    assert gap.max() < 1e-4
    # Colours are places within the room.
    place = (ends - low[scene]) / (high - low)[scene]
    torch.testing.assert_close(rays.rgb, place.clamp(0, 1), rtol=0, atol=1e-3)


def test_the_draw_is_that_of_one_seed() -> None:
    batch = room_batch(SIZES)
    first, again, other = (drawn_from(batch, seed=seed)[1].directions for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_views_with_few_pixels_give_what_they_have() -> None:
    """And leave the draws of the others alone."""
    batch = room_batch(SIZES)
    few = {**batch, "depth": batch["depth"].clone()}
    few["depth"][0, 0] = 0
    few["depth"][0, 0, 2, 3:6] = 900
    few["depth"][1, 1] = 0
    _, rays = drawn_from(few, per_view=10)
    assert rays.drawn.counts == [13, 10]
    assert torch.bincount(rays.drawn.view, minlength=4).tolist() == [3, 10, 10, 0]
    assert {(int(x), int(y)) for x, y in zip(rays.drawn.x[:3], rays.drawn.y[:3], strict=True)} == {
        (3, 2),
        (4, 2),
        (5, 2),
    }
    assert bool((few["depth"].flatten(0, 1)[rays.drawn.view, rays.drawn.y, rays.drawn.x] > 0).all())
    few["depth"][:] = 0
    _, none = drawn_from(few)
    assert none.drawn.counts == [0, 0] and none.origins.shape == (0, 3) and none.labels.shape == (0,)


def test_all_pixels_are_drawn_once() -> None:
    measured = torch.rand(2, 3, 5, 7) < 0.6
    drawn = draw_pixels(measured, 35)
    seen = torch.zeros(6, 5, 7, dtype=torch.int)
    seen.index_put_((drawn.view, drawn.y, drawn.x), torch.ones(len(drawn.view), dtype=torch.int), accumulate=True)
    assert torch.equal(seen.unflatten(0, (2, 3)), measured.int())
    assert drawn.counts == measured.flatten(1).sum(1).tolist()


@pytest.mark.parametrize(
    "form", [lambda k: k[..., :3, :3], lambda k: k[:, 0], lambda k: k[:, 0, :3, :3]], ids=["BV33", "B44", "B33"]
)
def test_forms_of_intrinsics(form: Callable[[Tensor], Tensor]) -> None:
    batch = room_batch(SIZES)
    _, rays = drawn_from(batch)
    _, other = drawn_from(batch | {"intrinsic": form(batch["intrinsic"])})
    assert torch.equal(rays.directions, other.directions) and torch.equal(rays.depth, other.depth)


def test_labels_of_class_zero() -> None:
    batch = room_batch(SIZES)
    _, without = drawn_from(batch)
    _, with_zero = drawn_from(batch, class_zero=True)
    zero = with_zero.labels == 0
    assert zero.any() and not (without.labels == 0).any()
    assert torch.equal(torch.where(zero, -1, with_zero.labels), without.labels)


def test_labels_that_are_no_class() -> None:
    """Are left out and counted; PonderV2 stops."""
    batch = room_batch(SIZES)
    _, all_known = drawn_from(batch)
    _, rays = drawn_from(batch, classes=4)
    assert int(all_known.ignored) == 0
    assert int(rays.ignored) == int((all_known.labels >= 4).sum()) > 0
    assert torch.equal(rays.labels, torch.where(all_known.labels >= 4, -1, all_known.labels))


def test_no_labels() -> None:
    batch = room_batch(SIZES)
    del batch["semantic"]
    _, rays = drawn_from(batch)
    assert bool((rays.labels == -1).all()) and len(rays.labels) == 40


def test_unusable_cameras_give_no_rays() -> None:
    """Poses that tracking lost (-inf), a singular one, intrinsics of zeros; and a scene without points."""
    batch = room_batch([*SIZES, SIZES[0], SIZES[1]])
    batch["extrinsic"][0, 0] = -torch.inf
    batch["extrinsic"][0, 1, 2] = batch["extrinsic"][0, 1, 1]
    batch["intrinsic"][1, 0] = 0
    batch["coord"] = batch["coord"][:900]
    batch["offset"] = torch.tensor([300, 600, 900, 900])
    _, rays = drawn_from(batch)
    assert rays.drawn.counts == [0, 10, 20, 0]
    assert all(bool(torch.isfinite(value).all()) for value in (rays.origins, rays.directions, rays.depth))


def test_depths_that_are_not_finite_are_missing() -> None:
    batch = room_batch(SIZES)
    batch["depth"][0, 0, 0], batch["depth"][0, 0, 1] = torch.inf, torch.nan
    _, rays = drawn_from(batch, per_view=200)
    assert bool(torch.isfinite(rays.depth).all())
    assert bool((rays.drawn.y[rays.drawn.view == 0] > 1).all())


@pytest.mark.parametrize(
    "origin, direction, hits",
    [
        ([0.0, 0.0, 0.0], [1.0, 0.0, 0.0], True),
        ([0.0, 0.5, 0.0], [0.0, 1.0, 0.0], False),
        ([0.0, 0.44, 0.0], [0.0, 1.0, 0.0], True),
        ([2.0, 0.0, 0.0], [-1.0, 0.0, 0.0], True),
        ([2.0, 0.0, 0.0], [1.0, 0.0, 0.0], False),
        ([2.0, 0.56, 0.0], [-1.0, 0.0, 0.0], False),
        # A component of 0 becomes 1e-5: a long way off it decides.
        ([3e4, 0.3, 0.0], [-1.0, 0.0, 0.0], False),
        ([3e4, -0.3, 0.0], [-1.0, 0.0, 0.0], True),
        ([3e4, -0.3, 0.0], [-1.0, -1e-6, 0.0], False),
        ([3e4, -0.3, 0.0], [-1.0, 1e-6, 0.0], True),
    ],
)
def test_box(origin: list[float], direction: list[float], hits: bool) -> None:
    rays = torch.tensor([origin]), torch.tensor([direction])
    assert hits_box(*rays, BOUND).tolist() == [hits] == [through_box(rays[0][0], rays[1][0])]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"depth": torch.zeros(2, 3, 12, 16)}, r"depth: expected shape \[B=2, V=2, H, W\], got \[2, 3, 12, 16\]"),
        ({"rgb": torch.zeros(2, 2, 12, 16)}, r"rgb: expected shape \[2, 2, 12, 16, 3\] as depth has"),
        ({"semantic": torch.zeros(2, 2, 6, 8)}, r"semantic: expected shape \[2, 2, 12, 16\] as depth has"),
        ({"intrinsic": torch.zeros(2, 3, 4)}, r"intrinsic: expected shape .* got \[2, 3, 4\]"),
    ],
)
def test_wrong_shapes(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawn_from(room_batch(SIZES) | changes)
