"""What lies on tables and shelves, lies on the floor, hangs on walls or from the ceiling."""

from __future__ import annotations

from ponder.data.synthetic.palette import Palette, scaled
from ponder.data.synthetic.shapes import Capsule, Frustum, Furniture, Part, block, sphere, tube
from ponder.data.synthetic.textures import Texture, pattern, solid


def books_upright(paint: Palette, length: float, tallest: float) -> Furniture:
    """A row of standing books from x = 0 to at most `length`, backs towards +y, each of its own colour."""
    parts, x = [], 0.0
    while x + 0.03 < length:
        thick = min(paint.between(0.03, 0.06), length - x)
        tall, deep = tallest * paint.between(0.7, 1.0), paint.between(0.16, 0.20)
        colour = paint.vivid() if paint.generator.uniform() < 0.7 else paint.choice_colour()
        # A hair's breadth between books keeps their sides from coinciding.
        parts.append(Part(block((x + 0.001, 0.0, 0.0), (x + thick - 0.001, deep, tall), 0.003), solid(colour)))
        x += thick
    if not parts:
        parts.append(Part(block((0.0, 0.0, 0.0), (0.04, 0.17, tallest), 0.003), paint.painted()))
    return Furniture("book", tuple(parts))


def books_flat(paint: Palette) -> Furniture:
    """A pile of two to four lying books, centred on the origin."""
    parts, z = [], 0.0
    for _ in range(int(paint.generator.integers(2, 5))):
        thick, w, d = paint.between(0.02, 0.04), paint.between(0.08, 0.12), paint.between(0.11, 0.15)
        parts.append(Part(block((-w, -d, z), (w, d, z + thick), 0.003), paint.painted()))
        z += thick + 0.0005
    return Furniture("book", tuple(parts))


def vase(paint: Palette, tallest: float = 0.45) -> Furniture:
    """A vase, with flowers where there is room above it (class "plant"; without them "other")."""
    colour = paint.vivid()
    glaze = pattern("stripes", colour, paint.pale(), 0.09, "z", 0.1)
    r, h = paint.between(0.05, 0.07), min(paint.between(0.16, 0.24), 0.8 * tallest)
    parts = [
        Part(Frustum((0.0, 0.0, 0.30 * h), 0.30 * h - 0.02, 0.6 * r, r - 0.02, 0.02), glaze),
        Part(tube(0.0, 0.0, 0.5 * h, h, 0.8 * r, 0.45 * r), glaze),
    ]
    if tallest < h + 0.2:
        return Furniture("other", tuple(parts))
    stem, bloom = solid((0.2, 0.5, 0.2)), paint.painted()
    for angle_x, angle_y in ((-0.08, 0.03), (0.07, 0.06), (0.02, -0.08), (0.0, 0.0)):
        tip = (angle_x, angle_y, h + paint.between(0.10, 0.15))
        parts.append(Part(Capsule((0.0, 0.0, 0.7 * h), tip, 0.006), stem))
        parts.append(Part(sphere(tip, paint.between(0.03, 0.042)), bloom))
    return Furniture("plant", tuple(parts))


def lamp_small(paint: Palette) -> Furniture:
    """A table lamp with a glowing shade."""
    foot = paint.painted()
    shade = solid(scaled(paint.pale(), 1.05)).glowing(0.8)
    parts = (
        Part(Frustum((0.0, 0.0, 0.03), 0.01, 0.06, 0.05, 0.02), foot),
        Part(tube(0.0, 0.0, 0.03, 0.24, 0.012), foot),
        Part(sphere((0.0, 0.0, 0.12), 0.045), foot),
        Part(tube(0.0, 0.0, 0.22, 0.38, 0.12, 0.07), shade),
    )
    return Furniture("lamp", parts)


def pendant(paint: Palette, drop: float) -> Furniture:
    """A lamp hanging `drop` metres below z = 0 (the ceiling)."""
    shade = solid(scaled(paint.vivid(), 1.1)).glowing(0.6)
    parts = (
        Part(tube(0.0, 0.0, -drop + 0.12, 0.0, 0.006), solid((0.12, 0.12, 0.12))),
        Part(tube(0.0, 0.0, -0.03, 0.0, 0.05), solid((0.85, 0.85, 0.85))),
        Part(tube(0.0, 0.0, -drop, -drop + 0.17, 0.19, 0.06), shade),
        Part(sphere((0.0, 0.0, -drop + 0.01), 0.055), solid((1.0, 0.97, 0.85)).glowing(1.0)),
    )
    return Furniture("lamp", parts)


def rug(paint: Palette, half_x: float, half_y: float, round_rug: bool) -> Furniture:
    """A carpet with a border; lies on the floor, centred on the origin."""
    name = paint.choice(("rings", "checker", "stripes", "dots"))
    first, second, period = paint.vivid(), paint.choice_colour(), paint.between(0.28, 0.45)
    cloth = pattern(name, first, second, period, "xy", 0.0 if round_rug else 0.2)
    if round_rug:
        return Furniture("rug", (Part(Frustum((0.0, 0.0, 0.007), 0.003, half_y, half_y, 0.004), cloth),))
    border = solid(paint.deep())
    outer = block((-half_x, -half_y, 0.0), (half_x, half_y, 0.010), 0.003)
    inner = block((-half_x + 0.1, -half_y + 0.1, 0.0), (half_x - 0.1, half_y - 0.1, 0.014), 0.003)
    return Furniture("rug", (Part(outer, border), Part(inner, cloth)))


def _art(paint: Palette, scale: float) -> Texture:
    name = paint.choice(("noise", "rings", "horizon", "checker", "stripes"))
    first, second = paint.vivid(), paint.choice_colour()
    return pattern(name, first, second, scale, "xzy" if name != "horizon" else "xyz", 0.0, 5.0)


def picture(paint: Palette, half_x: float, half_z: float) -> Furniture:
    """A framed picture centred on the origin of the wall plane y = 0, facing +y."""
    frame = solid(paint.deep()) if paint.generator.uniform() < 0.6 else paint.wood()
    mount = solid((0.95, 0.94, 0.90))
    parts = (
        Part(block((-half_x, 0.0, -half_z), (half_x, 0.03, half_z), 0.006), frame),
        Part(block((-half_x + 0.03, 0.0, -half_z + 0.03), (half_x - 0.03, 0.033, half_z - 0.03)), mount),
        Part(
            block((-half_x + 0.08, 0.0, -half_z + 0.08), (half_x - 0.08, 0.036, half_z - 0.08)),
            _art(paint, half_x),
        ),
    )
    return Furniture("picture", parts)


def window(paint: Palette, half_x: float, low: float, high: float) -> Furniture:
    """A window between heights `low` and `high` with a view, a sill and curtains, on the wall plane y = 0."""
    white, middle = solid((0.96, 0.96, 0.95)), (low + high) / 2
    sky = pattern("horizon", (0.30, 0.55, 0.25), (0.55, 0.80, 1.0), 0.6, "xyz", 0.0, 14.0).glowing(0.85)
    # The pattern's zero height is the horizon: a third of the way up the pane.
    offset = -(low + 0.35 * (high - low)) / 0.6
    view = Texture(sky.pattern, sky.first, sky.second, sky.rows, (0.3, 0.0, offset), sky.sharpness, sky.glow)
    parts = [Part(block((-half_x, 0.0, low), (half_x, 0.02, high)), view)]
    for x in (-half_x, 0.0, half_x):
        parts.append(Part(block((x - 0.03, 0.0, low - 0.03), (x + 0.03, 0.05, high + 0.03), 0.005), white))
    for z in (low, middle, high):
        parts.append(Part(block((-half_x - 0.029, 0.0, z - 0.025), (half_x + 0.029, 0.045, z + 0.025), 0.005), white))
    parts.append(Part(block((-half_x - 0.08, 0.0, low - 0.07), (half_x + 0.08, 0.14, low - 0.03), 0.008), white))
    cloth = pattern("stripes", paint.vivid(), paint.pale(), 0.4, "z", 0.1, 2.0)
    rod = solid(paint.deep())
    reach = half_x + 0.30
    parts.append(Part(Capsule((-reach, 0.08, high + 0.12), (reach, 0.08, high + 0.12), 0.014), rod))
    for side in (-1, 1):
        for fold in range(5):
            x = side * (reach - 0.05 - 0.065 * fold)
            parts.append(Part(Capsule((x, 0.08, low - 0.30), (x, 0.08, high + 0.08), 0.036), cloth))
    return Furniture("window", tuple(parts))


def door(paint: Palette, half_x: float, height: float) -> Furniture:
    """A closed panelled door with its frame on the wall plane y = 0, standing on the floor."""
    leaf, trim = paint.vivid(), solid((0.93, 0.91, 0.86))
    inset = solid(scaled(leaf, 0.75))
    parts = [Part(block((-half_x, 0.0, 0.0), (half_x, 0.03, height), 0.003), solid(leaf))]
    for s in (-1, 1):
        parts.append(Part(block((s * half_x - 0.05, 0.0, 0.0), (s * half_x + 0.05, 0.055, height + 0.05), 0.006), trim))
    parts.append(Part(block((-half_x, 0.0, height - 0.05), (half_x, 0.052, height + 0.048), 0.006), trim))
    for low, high in ((0.15, 0.85), (1.05, height - 0.20)):
        for s in (-1, 1):
            inner, outer = sorted((s * 0.05, s * (half_x - 0.12)))
            parts.append(Part(block((inner, 0.0, low), (outer, 0.04, high), 0.006), inset))
    parts.append(Part(Capsule((half_x - 0.10, 0.06, 0.97), (half_x - 0.20, 0.06, 0.97), 0.013), solid((0.9, 0.8, 0.4))))
    return Furniture("door", tuple(parts))
