"""Corners of points in a volume, and rows of its channels: what the SDF field's Triton kernels gather."""

import triton
import triton.language as tl


@triton.jit
def _axis(position, low, high, size, ALIGN: tl.constexpr, BORDER: tl.constexpr):
    """Neighbours along one axis; see sdf_field.gather.find_corners.

    Returns a tuple: [0] number of the lower neighbour (int32), [1 + k] weights and [3 + k] slopes of the lower (k = 0)
    and the upper neighbour, 0 outside the volume.
    """
    cells = (size - 1 if ALIGN else size) * 1.0
    slope = cells / (high - low)
    index = (position - low) * slope
    if not ALIGN:
        index -= 0.5
    # Bounded before it becomes an integer; comparisons with NaN are false, so that NaN goes outside as well.
    index = tl.where(index > -2.0, index, -2.0)
    index = tl.where(index < size + 1.0, index, size + 1.0)
    if BORDER:
        moves = (index >= 0.0) & (index <= size - 1.0) & (size > 1)
        slope = tl.where(moves, slope, 0.0)
        index = tl.minimum(tl.maximum(index, 0.0), size - 1.0)
        floor = tl.minimum(tl.floor(index), tl.maximum(size - 2.0, 0.0))
    else:
        floor = tl.floor(index)
    upper = index - floor
    number = floor.to(tl.int32)
    lower_inside = (number >= 0) & (number < size)
    upper_inside = (number >= -1) & (number < size - 1)
    slope_low, slope_up = tl.where(lower_inside, -slope, 0.0), tl.where(upper_inside, slope, 0.0)
    return number, tl.where(lower_inside, 1.0 - upper, 0.0), tl.where(upper_inside, upper, 0.0), slope_low, slope_up


@triton.jit
def _load_vector(ptr, m, live):
    """Three numbers of each point."""
    x = tl.load(ptr + m * 3, mask=live, other=0.0)
    y = tl.load(ptr + m * 3 + 1, mask=live, other=0.0)
    z = tl.load(ptr + m * 3 + 2, mask=live, other=0.0)
    return x, y, z


@triton.jit
def _axes(points_ptr, box_ptr, m, live, START, PER_SCENE, D, H, W, ALIGN: tl.constexpr, BORDER: tl.constexpr):
    """Positions of points m (int64), `_axis` of the three coordinates, and the first row (int64) of their scene.

    Point 0 is point START of all scenes, PER_SCENE of which belong to each.
    """
    scene = (START + m) // PER_SCENE
    box = box_ptr + scene * 6
    # Beyond the end, a box that can be divided by.
    x, y, z = _load_vector(points_ptr, m, live)
    X = _axis(x, tl.load(box, mask=live, other=0.0), tl.load(box + 3, mask=live, other=1.0), W, ALIGN, BORDER)
    Y = _axis(y, tl.load(box + 1, mask=live, other=0.0), tl.load(box + 4, mask=live, other=1.0), H, ALIGN, BORDER)
    Z = _axis(z, tl.load(box + 2, mask=live, other=0.0), tl.load(box + 5, mask=live, other=1.0), D, ALIGN, BORDER)
    return x, y, z, X, Y, Z, scene * D * H * W


@triton.jit
def _corner(X, Y, Z, first_row, D, H, W, k):
    """Row (int64, always in range), weight and the weight's derivatives along x, y, z of corner k in 0..7."""
    up_x, up_y, up_z = k & 1, (k >> 1) & 1, k >> 2
    x = tl.minimum(tl.maximum(X[0] + up_x, 0), W - 1)
    y = tl.minimum(tl.maximum(Y[0] + up_y, 0), H - 1)
    z = tl.minimum(tl.maximum(Z[0] + up_z, 0), D - 1)
    row = first_row + (z.to(tl.int64) * H + y) * W + x
    wx, sx = tl.where(up_x == 1, X[2], X[1]), tl.where(up_x == 1, X[4], X[3])
    wy, sy = tl.where(up_y == 1, Y[2], Y[1]), tl.where(up_y == 1, Y[4], Y[3])
    wz, sz = tl.where(up_z == 1, Z[2], Z[1]), tl.where(up_z == 1, Z[4], Z[3])
    return row, wx * wy * wz, sx * wy * wz, wx * sy * wz, wx * wy * sz


@triton.jit
def _row(volume_ptr, row, column, live, FROM: tl.constexpr, TO: tl.constexpr, CHANNELS: tl.constexpr):
    """Channels FROM + column < TO of voxels `row`, float32; 0 beyond."""
    mask = live[:, None] & (FROM + column < TO)[None, :]
    return tl.load(volume_ptr + (row * CHANNELS + FROM)[:, None] + column[None, :], mask=mask, other=0.0).to(tl.float32)
