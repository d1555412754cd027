"""Free-standing furniture. Every maker returns a group: pieces that share one frame and are placed together.

Frame of a group: x to the right, +y to the front (the back stands against a wall at y = 0 for wall furniture;
free furniture is centred on the origin), z up from the floor. The first piece names the group.
"""

from __future__ import annotations

import math

from ponder.data.synthetic.palette import Palette, scaled
from ponder.data.synthetic.shapes import Capsule, Frustum, Furniture, Part, Placed, Vec3, block, sphere, tube
from ponder.data.synthetic.smallthings import books_flat, books_upright, lamp_small, vase
from ponder.data.synthetic.textures import pattern, solid

Group = tuple[Placed, ...]


def _legs(half_x: float, half_y: float, height: float, radius: float) -> list[Frustum]:
    """Four legs at the corners, slightly tapered."""
    corners = [(sx * half_x, sy * half_y) for sx in (-1, 1) for sy in (-1, 1)]
    return [tube(x, y, 0.0, height, 0.7 * radius, radius) for x, y in corners]


def at(furniture: Furniture, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> Placed:
    """A piece at a place of the group's frame."""
    return Placed(furniture, (x, y, z), yaw)


def chair(paint: Palette) -> Furniture:
    """A dining chair facing +y."""
    seat, frame = paint.painted(), paint.wood()
    w, d, h = paint.between(0.20, 0.23), paint.between(0.20, 0.22), paint.between(0.44, 0.47)
    top = h + paint.between(0.40, 0.50)
    parts = [Part(leg, frame) for leg in _legs(w - 0.03, d - 0.03, h - 0.02, 0.022)]
    parts.append(Part(block((-w, -d, h - 0.03), (w, d, h + 0.02), 0.02), seat))
    parts += [Part(tube(s * (w - 0.025), -d + 0.02, h, top - 0.02, 0.016), frame) for s in (-1, 1)]
    if paint.choice(("panel", "slats")) == "panel":
        parts.append(Part(block((-w, -d, h + 0.14), (w, -d + 0.04, top), 0.018), seat))
    else:
        for low in (h + 0.10, h + 0.22, top - 0.08):
            parts.append(Part(block((-w, -d + 0.005, low), (w, -d + 0.035, low + 0.07), 0.012), seat))
    return Furniture("chair", tuple(parts))


def table(paint: Palette, half_x: float, half_y: float, height: float) -> Furniture:
    """A rectangular or (where it is nearly square) round table centred on the origin."""
    top, frame = paint.wood(), paint.wood()
    if paint.generator.uniform() < 0.35:
        top = pattern("checker", paint.pale(), paint.vivid(), 0.2, "xy", 0.3)
    if abs(half_x - half_y) < 0.03:
        foot = Frustum((0.0, 0.0, 0.02), 0.012, 0.26, 0.20, 0.008)
        post = tube(0.0, 0.0, 0.03, height - 0.03, 0.05, 0.035)
        disc = Frustum((0.0, 0.0, height - 0.02), 0.008, half_x - 0.012, half_x - 0.012, 0.012)
        return Furniture("table", (Part(disc, top), Part(post, frame), Part(foot, frame)))
    parts = [Part(block((-half_x, -half_y, height - 0.045), (half_x, half_y, height), 0.012), top)]
    parts += [Part(leg, frame) for leg in _legs(half_x - 0.07, half_y - 0.07, height - 0.04, 0.035)]
    apron = block((-half_x + 0.08, -half_y + 0.08, height - 0.11), (half_x - 0.08, half_y - 0.08, height - 0.03))
    parts.append(Part(apron, frame))
    return Furniture("table", tuple(parts))


def dining_set(paint: Palette) -> Group:
    """A table with things on it and one to four chairs around it; free standing."""
    round_top = paint.generator.uniform() < 0.3
    hx = paint.between(0.42, 0.5) if round_top else paint.between(0.5, 0.72)
    hy = hx if round_top else paint.between(0.36, 0.44)
    height = paint.between(0.71, 0.76)
    pieces = [at(table(paint, hx, hy, height), 0.0, 0.0)]
    pieces.append(at(vase(paint), paint.between(-0.15, 0.15), paint.between(-0.1, 0.1), height))
    pieces.append(at(books_flat(paint), -0.62 * hx, 0.3 * hy, height, paint.between(-0.5, 0.5)))
    far_x, far_y, quarter = hx + 0.27, hy + 0.27, math.pi / 2
    seats = [(0.0, -far_y, 0.0), (0.0, far_y, math.pi), (-far_x, 0.0, -quarter), (far_x, 0.0, quarter)]
    count = int(paint.generator.integers(1, 5))
    model = chair(paint)
    for index in paint.generator.permutation(4)[:count]:
        x, y, yaw = seats[int(index)]
        pieces.append(at(model, x, y, 0.0, yaw + paint.between(-0.2, 0.2)))
    return tuple(pieces)


def shelf(paint: Palette) -> Group:
    """A bookcase against a wall, its compartments filled with books, vases and boxes."""
    w, d = paint.between(0.38, 0.55), paint.between(0.29, 0.34)
    levels = int(paint.generator.integers(4, 6))
    pitch = paint.between(0.36, 0.40)
    top = 0.06 + levels * pitch
    frame, back = paint.wood(), solid(paint.vivid() if paint.generator.uniform() < 0.5 else paint.deep())
    parts = [Part(block((s * w - 0.025, 0.0, 0.0), (s * w + 0.025, d, top), 0.004), frame) for s in (-1, 1)]
    parts.append(Part(block((-w, 0.0, 0.0), (w, 0.02, top - 0.002)), back))
    heights = [0.06 + level * pitch for level in range(levels + 1)]
    for z in heights:
        parts.append(Part(block((-w, 0.01, z - 0.03), (w, d - 0.008, z - 0.003 * (z == heights[-1]))), frame))
    pieces = [at(Furniture("shelf", tuple(parts)), 0.0, 0.0)]
    inner = w - 0.035
    for z in heights[:-1]:
        kind = paint.choice(("books", "books", "books", "vase", "box"))
        split = paint.between(-0.2, 0.5) * inner
        if kind == "books":
            pieces.append(at(books_upright(paint, inner + split, pitch - 0.07), -inner, 0.05, z))
        elif kind == "vase":
            pieces.append(at(vase(paint, pitch - 0.08), split, d / 2, z))
        else:
            crate = block((-inner, 0.05, 0.0), (split, d - 0.03, 0.6 * pitch), 0.01)
            pieces.append(at(Furniture("other", (Part(crate, paint.fabric("xz")),)), 0.0, 0.0, z))
    return tuple(pieces)


def sofa(paint: Palette) -> Group:
    """A sofa with two or three seats against a wall."""
    seats = int(paint.generator.integers(2, 4))
    seat_w, d = paint.between(0.56, 0.64), paint.between(0.82, 0.92)
    w, arm = seats * seat_w / 2, 0.16
    colour = paint.vivid()
    body, cushion = solid(scaled(colour, 0.8)), solid(colour)
    if paint.generator.uniform() < 0.4:
        cushion = pattern("stripes", colour, paint.pale(), 0.22, "x", 0.2)
    parts = [
        Part(block((-w, 0.0, 0.08), (w, d - 0.03, 0.30), 0.03), body),
        Part(block((-w, 0.0, 0.10), (w, 0.22, 0.82), 0.07), body),
    ]
    for s in (-1, 1):
        inner, outer = sorted((s * w, s * (w + arm)))
        parts.append(Part(block((inner, 0.0, 0.06), (outer, d, 0.60), 0.06), body))
    parts += [Part(leg, solid((0.15, 0.10, 0.08))) for leg in (_shifted_legs(w, d, 0.10))]
    for number in range(seats):
        x = -w + number * seat_w
        parts.append(Part(block((x + 0.005, 0.20, 0.29), (x + seat_w - 0.005, d - 0.01, 0.45), 0.05), cushion))
        parts.append(Part(block((x + 0.01, 0.16, 0.43), (x + seat_w - 0.01, 0.36, 0.80), 0.07), cushion))
    pillow = paint.fabric("xz")
    side = paint.choice(("left", "right"))
    x = (w - 0.24) * (-1 if side == "left" else 1)
    parts.append(Part(block((x - 0.2, 0.36, 0.45), (x + 0.2, 0.50, 0.82), 0.065), pillow))
    return (at(Furniture("sofa", tuple(parts)), 0.0, 0.0),)


def _shifted_legs(w: float, d: float, height: float) -> list[Frustum]:
    return [tube(sx * (w - 0.05), y, 0.0, height, 0.02, 0.025) for sx in (-1, 1) for y in (0.08, d - 0.10)]


def bed(paint: Palette) -> Group:
    """A bed with its head against a wall, and sometimes a night stand with a lamp."""
    w, length = paint.between(0.5, 0.8), paint.between(1.9, 2.05)
    frame, blanket = paint.wood(), paint.fabric("xy")
    parts = [
        Part(block((-w, 0.0, 0.0), (w, 0.06, paint.between(0.85, 1.05)), 0.015), frame),
        Part(block((-w, 0.05, 0.12), (w, length, 0.30), 0.01), frame),
        Part(block((-w + 0.02, 0.06, 0.28), (w - 0.02, length - 0.02, 0.48), 0.06), solid((0.94, 0.93, 0.90))),
        Part(block((-w + 0.005, 0.62, 0.26), (w - 0.005, length + 0.01, 0.52), 0.06), blanket),
    ]
    parts += [Part(tube(s * (w - 0.06), y, 0.0, 0.13, 0.03), frame) for s in (-1, 1) for y in (0.1, length - 0.08)]
    cushion = solid(paint.pale())
    for x in (-w / 2, w / 2) if w > 0.6 else (0.0,):
        parts.append(Part(block((x - 0.27, 0.09, 0.46), (x + 0.27, 0.50, 0.60), 0.065), cushion))
    pieces = [at(Furniture("bed", tuple(parts)), 0.0, 0.0)]
    if paint.generator.uniform() < 0.6:
        stand, x = cabinet_body(paint, 0.2, 0.38, 0.5, 1), (w + 0.26) * paint.generator.choice((-1, 1))
        pieces += [at(stand, float(x), 0.0), at(lamp_small(paint), float(x), 0.19, 0.5)]
    return tuple(pieces)


def cabinet_body(paint: Palette, w: float, d: float, h: float, doors: int) -> Furniture:
    """A cupboard on feet: carcass, door panels and knobs; `w` is half the width."""
    body, door = paint.wood(), paint.painted()
    knob = solid((0.92, 0.85, 0.55))
    parts = [Part(block((-w, 0.0, 0.06), (w, d - 0.02, h), 0.006), body)]
    parts += [Part(tube(s * (w - 0.05), y, 0.0, 0.07, 0.018, 0.024), body) for s in (-1, 1) for y in (0.05, d - 0.07)]
    step = 2 * w / doors
    for number in range(doors):
        x = -w + number * step
        parts.append(Part(block((x + 0.02, d - 0.03, 0.09), (x + step - 0.02, d - 0.006, h - 0.04), 0.004), door))
        handle = x + step - 0.06 if number % 2 == 0 else x + 0.06
        parts.append(Part(sphere((handle, d, 0.62 * h), 0.016), knob))
    return Furniture("cabinet", tuple(parts))


def cabinet(paint: Palette) -> Group:
    """A sideboard against a wall with a vase, books or a lamp on it."""
    doors = int(paint.generator.integers(2, 4))
    w, d, h = doors * paint.between(0.19, 0.23), paint.between(0.38, 0.46), paint.between(0.72, 0.95)
    pieces = [at(cabinet_body(paint, w, d, h, doors), 0.0, 0.0)]
    pieces.append(at(lamp_small(paint), -0.6 * w, d / 2, h))
    if paint.generator.uniform() < 0.5:
        pieces.append(at(books_upright(paint, 0.5 * w, 0.28), 0.1 * w, 0.08, h))
    else:
        pieces.append(at(vase(paint), 0.5 * w, d / 2, h))
    return tuple(pieces)


def floor_lamp(paint: Palette) -> Group:
    """A standing lamp: weighted foot, pole and a glowing shade."""
    metal = solid(paint.deep())
    h, r = paint.between(1.45, 1.7), paint.between(0.16, 0.21)
    shade = pattern("stripes", paint.pale(), scaled(paint.vivid(), 1.1), 0.12, "z", 0.1).glowing(0.7)
    parts = (
        Part(Frustum((0.0, 0.0, 0.018), 0.008, 0.15, 0.14, 0.01), metal),
        Part(tube(0.0, 0.0, 0.02, h - 0.05, 0.014), metal),
        Part(tube(0.0, 0.0, h - 0.28, h, r, 0.6 * r), shade),
    )
    return (at(Furniture("lamp", parts), 0.0, 0.0),)


def plant(paint: Palette) -> Group:
    """A potted plant: either long arching leaves or a bushy crown on a stem."""
    pot = pattern(paint.choice(("stripes", "dots", "solid")), paint.vivid(), paint.pale(), 0.12, "zx", 0.2)
    height, wide = paint.between(0.28, 0.38), paint.between(0.15, 0.19)
    green = (paint.between(0.10, 0.30), paint.between(0.45, 0.65), paint.between(0.12, 0.30))
    leaf = pattern("noise", scaled(green, 0.6), scaled(green, 1.3), 0.15, "xy", paint.between(0, 1), 2.0)
    parts = [
        Part(tube(0.0, 0.0, 0.0, height, 0.72 * wide, wide), pot),
        Part(tube(0.0, 0.0, height - 0.01, height + 0.004, 0.9 * wide), solid((0.20, 0.13, 0.09))),
    ]
    crown = height + paint.between(0.45, 0.75)
    if paint.generator.uniform() < 0.5:
        parts.append(Part(tube(0.0, 0.0, height, crown, 0.018), solid((0.35, 0.23, 0.13))))
        parts.append(Part(sphere((0.0, 0.0, crown), 0.17), leaf))
        for number in range(6):
            angle = number * 2.399 + paint.between(-0.3, 0.3)
            reach, lift = paint.between(0.12, 0.18), paint.between(-0.14, 0.18)
            ball = (reach * math.cos(angle), reach * math.sin(angle), crown + lift)
            parts.append(Part(sphere(ball, paint.between(0.09, 0.13)), leaf))
        return (at(Furniture("plant", tuple(parts)), 0.0, 0.0),)
    for number in range(11):
        angle = number * 2.399 + paint.between(-0.2, 0.2)
        spread = paint.between(0.10, 0.18)
        middle: Vec3 = (
            spread * math.cos(angle),
            spread * math.sin(angle),
            crown - 0.15 + paint.between(-0.1, 0.1),
        )
        far = spread + paint.between(0.08, 0.14)
        tip: Vec3 = (far * math.cos(angle), far * math.sin(angle), middle[2] + paint.between(-0.02, 0.22))
        parts.append(Part(Capsule((0.0, 0.0, height), middle, 0.013), leaf))
        parts.append(Part(Capsule(middle, tip, 0.028), leaf))
    return (at(Furniture("plant", tuple(parts)), 0.0, 0.0),)


def pouf(paint: Palette) -> Group:
    """Something to trip over: a pouf, a play ball or a storage box."""
    kind = paint.choice(("pouf", "ball", "crate"))
    cloth = pattern(paint.choice(("stripes", "dots")), paint.vivid(), paint.pale(), 0.2, "zx", 0.15)
    if kind == "pouf":
        part = Part(Frustum((0.0, 0.0, 0.19), 0.11, 0.18, 0.18, 0.08), cloth)
    elif kind == "ball":
        r = paint.between(0.16, 0.24)
        part = Part(sphere((0.0, 0.0, r), r), pattern("stripes", paint.vivid(), paint.pale(), 0.2, "x", 0.25))
    else:
        part = Part(block((-0.26, -0.2, 0.0), (0.26, 0.2, 0.36), 0.015), paint.fabric("xy"))
    return (at(Furniture("other", (part,)), 0.0, 0.0),)
