"""Colour images of a camera with a wider view than the depth camera, resampled into the depth view.

Devices with two lenses, such as the first Kinect, store colour that is not registered to depth: the colour
camera has a shorter focal length f_colour at the same image size and about the same principal point c. What
the depth camera sees at u, the colour camera sees near c + (f_colour / f_depth) (u - c). Only this zoom is
undone. The offset between the lenses (26 mm on the Kinect) is left in: it takes colour from that far beside
the true point, whatever the distance, and correcting it would take a hole for every depth edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ponder.data.scene import DataError, Frames
from ponder.data.threads import one_thread
from ponder.geometry import project_points, unproject_depth

MIN_RATIO = 0.5
_STRIP_ROWS = 16
# Estimates are sought between this ratio and 1; the grid starts a step below, so that a minimum there is one.
MIN_ESTIMATE = 0.8
_STEP = 0.02
_FINE_STEP = 0.004
# A ratio is taken over "registered as it is" only if it lowers the error by this share: chance alone, on pure
# noise, comes to 0.02 even in a short recording.
_MIN_GAIN = 0.05
# And by this much in grey levels of 0..255: what is below comes of rounding, not of a wrong place.
_MIN_GAIN_GREY = 0.1
# Frames compared, the neighbours taken of each, and the pixels drawn of each.
_MAX_SOURCES = 32
_MAX_NEIGHBOURS = 4
_MAX_POINTS = 1000
# Pairs with a smaller share of their points in common say little and may be chance.
_MIN_OVERLAP = 0.1
_MIN_POINTS = 50
# Wider images are reduced to this width before the golden ratio; finer detail is lost to pose errors anyway.
_WORKING_WIDTH = 320
# Width of the border left out, in pixels of the working width: the blur averages less there, and a ratio below 1
# keeps away from it.
_BORDER = 4
_GOLDEN = (1 + math.sqrt(5)) / 2
_BLUR = (1.0, 4.0, 6.0, 4.0, 1.0)


def check_ratio(name: str, ratio: float) -> float:
    """Return a focal ratio if it is possible.

    Raises:
        DataError: outside (0.5, 1].
    """
    if not MIN_RATIO < ratio <= 1:
        raise DataError(f"{name}: expected a focal ratio above {MIN_RATIO} and at most 1, got {ratio:g}")
    return ratio


def register_colour(rgb: Tensor, ratio: float, centre: tuple[float, float] | None = None) -> Tensor:
    """Resample colour images into the view of a depth camera with a longer focal length.

    The pixel at u takes the colour at centre + ratio (u - centre), bilinearly; the image is only ever
    enlarged, so nothing aliases. Do it at the stored size, before any reduction. Beyond the outermost pixel
    centres the image continues with its edge.

    Args:
        rgb: [V, H, W, 3] or [H, W, 3] uint8.
        ratio: focal length of the colour camera over that of the depth camera, in (0.5, 1].
        centre: principal point (cx, cy) in pixels of these images, pixel centres at +0.5, shared by both
            cameras; None is the centre of the image.

    Returns:
        the shape of `rgb`, uint8; `rgb` itself if the ratio is 1.

    Raises:
        DataError: `ratio` outside (0.5, 1].
        ValueError: `rgb` of another shape or type.
    """
    check_ratio("ratio", ratio)
    if rgb.dtype != torch.uint8 or rgb.ndim not in (3, 4) or rgb.shape[-1] != 3:
        raise ValueError(f"rgb: expected uint8 [V, H, W, 3] or [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
    if ratio == 1:
        return rgb
    height, width = rgb.shape[-3:-1]
    cx, cy = centre if centre is not None else (width / 2, height / 2)
    above, below, down = _zoom_taps(height, cy, ratio)
    left, right, across = (_per_channel(taps) for taps in _zoom_taps(width, cx, ratio))
    out = torch.empty_like(rgb, memory_format=torch.contiguous_format)
    images = rgb.reshape(-1, height, width * 3)
    # A few rows at a time: they stay in the processor's cache, and no recording is in memory in floating point.
    for image, target in zip(images, out.view(images.shape), strict=True):
        for top in range(0, height, _STRIP_ROWS):
            strip = slice(top, top + _STRIP_ROWS)
            rows = image.index_select(0, above[strip]).float()
            rows.lerp_(image.index_select(0, below[strip]).float(), down[strip, None])
            pixels = rows.index_select(1, left).lerp_(rows.index_select(1, right), across)
            target[strip] = pixels.round_()
    return out


def _per_channel(taps: Tensor) -> Tensor:
    """Column taps [W] as taps [3 W] of rows of interleaved colours: pixel positions become those of each channel."""
    spread = taps.unsqueeze(1).expand(-1, 3)
    return (spread if taps.is_floating_point() else 3 * spread + torch.arange(3)).reshape(-1)


def _zoom_taps(size: int, centre: float, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis, the pixels on both sides of each sample [size] int64 and the second one's weight."""
    position = centre + ratio * (torch.arange(size, dtype=torch.float64) + 0.5 - centre) - 0.5
    position = position.clamp(0, size - 1)
    lower = position.floor().long()
    return lower, (lower + 1).clamp(max=size - 1), (position - lower).float()


def estimate_colour_ratio(frames: Frames, *, max_distance: float = 0.05) -> float:
    """Focal length of the colour camera over that of the depth camera, from the frames' own agreement.

    Points seen by two frames must have one colour. Pixels of some frames are carried into others by depth and
    pose, and the ratio at which their colours differ least is found on a grid of 0.8 to 1, then refined. The
    result is a pure function of the frames.

    Args:
        frames: unregistered training frames, neighbours in time near each other in the order; intrinsics and
            principal points are those of the depth camera.
        max_distance: metres between a carried point and the depth measured where it arrives, beyond which the
            two are different surfaces.

    Returns:
        the ratio in [0.8, 1]; exactly 1 if no two frames overlap or if no ratio lowers the mean difference by
        a clear margin.
    """
    with one_thread():
        matches = _find_matches(frames, max_distance)
        if matches is None:
            return 1.0
        return _search(_photometric_error(frames, matches))


def _search(error: Callable[[float], float]) -> float:
    """Ratio of least error if it clearly improves on 1, else 1.0."""
    grid = [1 - _STEP * k for k in range(round((1 - MIN_ESTIMATE) / _STEP) + 1, -1, -1)]
    errors = [error(ratio) for ratio in grid]
    best = min(range(len(grid)), key=errors.__getitem__)
    if best == 0:
        return 1.0
    fine = [grid[best] + _FINE_STEP * k for k in range(-4, 5) if grid[best] + _FINE_STEP * k <= 1]
    fine_errors = [error(ratio) for ratio in fine]
    ratio = _vertex(fine, fine_errors)
    gain = errors[-1] - error(ratio)
    clear = gain >= max(_MIN_GAIN * errors[-1], _MIN_GAIN_GREY)
    return min(max(ratio, MIN_ESTIMATE), 1.0) if clear else 1.0


def _vertex(ratios: list[float], errors: list[float]) -> float:
    """Place of the minimum of a parabola through the least error and its neighbours."""
    best = min(range(len(ratios)), key=errors.__getitem__)
    if not 0 < best < len(ratios) - 1:
        return ratios[best]
    before, least, after = errors[best - 1 : best + 2]
    bend = before - 2 * least + after
    return ratios[best] + _FINE_STEP * (before - after) / (2 * bend) if bend > 0 else ratios[best]


@dataclass(frozen=True)
class _Matches:
    """M pixels of one frame and where their points appear in another.

    Attributes:
        frame: [2, M] int64 positions of both frames.
        pixel: [2, M, 2] (u, v) in the depth images.
        pair: [M] int64, counting pairs of frames from 0.
    """

    frame: Tensor
    pixel: Tensor
    pair: Tensor


def _find_matches(frames: Frames, max_distance: float) -> _Matches | None:
    """Points in common of frames spread over the recording and their neighbours; None if there are none."""
    count = len(frames)
    height, width = frames.size
    border = _border(width)
    central = torch.zeros(height, width, dtype=torch.bool)
    central[border:-border, border:-border] = True
    matches: list[tuple[int, int, Tensor, Tensor]] = []
    for source in sorted({k * (count - 1) // (_MAX_SOURCES - 1) for k in range(_MAX_SOURCES)} if count else ()):
        valid = (central & (frames.z_depth[source] > 0)).flatten().nonzero().squeeze(1)
        chosen = valid[:: max(math.ceil(valid.numel() / _MAX_POINTS), 1)]
        world = unproject_depth(frames.z_depth[source], frames.intrinsics[source], frames.camera_to_world[source])
        points = world.reshape(-1, 3)[chosen]
        start = torch.stack([chosen % width, chosen // width], -1) + 0.5
        found = []
        for other in _neighbours(source, count):
            end, seen = _arrive(points, frames, other, max_distance)
            if int(seen.sum()) >= max(_MIN_POINTS, _MIN_OVERLAP * chosen.numel()):
                # A wrong ratio shifts colour by the distance from the centre: only what moves can show it.
                moved = float((end - start)[seen].norm(dim=-1).sum())
                found.append((moved, other, start[seen], end[seen]))
        found.sort(key=lambda item: -item[0])
        matches += [(source, other, begin, end) for _, other, begin, end in found[:_MAX_NEIGHBOURS]]
    if not matches:
        return None
    sizes = torch.tensor([len(begin) for _, _, begin, _ in matches])
    return _Matches(
        frame=torch.tensor([match[:2] for match in matches]).T.repeat_interleave(sizes, dim=1),
        pixel=torch.stack([torch.cat([match[2] for match in matches]), torch.cat([match[3] for match in matches])]),
        pair=torch.arange(len(matches)).repeat_interleave(sizes),
    )


def _neighbours(index: int, count: int) -> list[int]:
    """Frames 1, 2, 4, 8, ... places before and after: near ones overlap for certain, far ones moved enough."""
    steps = [1 << k for k in range(max(count - 1, 0).bit_length())]
    return [index + sign * step for step in steps for sign in (-1, 1) if 0 <= index + sign * step < count]


def _border(width: int) -> int:
    """Width in pixels of the border left out of images `width` pixels wide."""
    return math.ceil(_BORDER * max(width / _WORKING_WIDTH, 1.0))


def _arrive(points: Tensor, frames: Frames, index: int, max_distance: float) -> tuple[Tensor, Tensor]:
    """Where world points [N, 3] fall in a frame, (u, v) [N, 2], and which of them it sees off its border [N]."""
    height, width = frames.size
    border = _border(width)
    pixels, depth = project_points(points, frames.intrinsics[index], frames.camera_to_world[index])
    column, row = pixels.floor().long().unbind(-1)
    inside = (column >= border) & (column < width - border) & (row >= border) & (row < height - border) & (depth > 0)
    flat = torch.where(inside, row * width + column, 0)
    measured = frames.z_depth[index].flatten()[flat]
    return pixels, inside & (measured > 0) & ((measured - depth).abs() <= max_distance)


def _photometric_error(frames: Frames, matches: _Matches) -> Callable[[float], float]:
    """The mean colour difference of the matches in grey levels, as a function of the ratio.

    The mean difference of each pair of frames and channel is taken off first: automatic exposure and white
    balance change from frame to frame by more than a wrong ratio does.
    """
    pairs = int(matches.pair.max()) + 1
    points = matches.pair.bincount(minlength=pairs).unsqueeze(1)
    used, position = matches.frame.unique(return_inverse=True)
    images = _smooth(frames.rgb, used)
    height, width = images.shape[1:3]
    scale = torch.tensor([width / frames.size[1], height / frames.size[0]])
    centre = (frames.intrinsics[matches.frame][..., :2, 2] * scale).reshape(-1, 2)
    offset = matches.pixel.reshape(-1, 2) * scale - centre
    base = position.flatten() * (height * width)
    table = images.reshape(-1, 3)

    def error(ratio: float) -> float:
        u, v = (centre + ratio * offset - 0.5).unbind(-1)
        u, v = u.clamp(0, width - 1), v.clamp(0, height - 1)
        column, row = u.floor().clamp(max=width - 2), v.floor().clamp(max=height - 2)
        across, down = (u - column)[:, None], (v - row)[:, None]
        corner = base + row.long() * width + column.long()
        upper = torch.lerp(table[corner], table[corner + 1], across)
        lower = torch.lerp(table[corner + width], table[corner + width + 1], across)
        first, second = torch.lerp(upper, lower, down).chunk(2)
        difference = first - second
        exposure = difference.new_zeros(pairs, 3).index_add_(0, matches.pair, difference) / points
        return float((difference - exposure[matches.pair]).abs().mean())

    return error


def _smooth(rgb: Tensor, index: Tensor) -> Tensor:
    """The chosen images [F, h, w, 3] float32, reduced and blurred.

    Interpolation averages noise wherever it falls between pixels. At a ratio of 1 the pixels of the first frame
    would be spared that, and noise would count against 1. On a grid without a common period with the pixels,
    every ratio falls between them alike.
    """
    height, width = rgb.shape[1:3]
    scale = min(_WORKING_WIDTH / width, 1.0) / _GOLDEN
    size = (max(round(height * scale), 2), max(round(width * scale), 2))
    weight = (torch.tensor(_BLUR) / sum(_BLUR)).expand(3, 1, 1, -1)
    reach = len(_BLUR) // 2
    out = []
    for image in rgb[index]:
        planes = image.permute(2, 0, 1)[None].float()
        planes = functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
        planes = functional.pad(planes, (reach,) * 4, mode="replicate")
        planes = functional.conv2d(planes, weight, groups=3)
        planes = functional.conv2d(planes, weight.transpose(2, 3), groups=3)
        out.append(planes[0].permute(1, 2, 0))
    return torch.stack(out)
