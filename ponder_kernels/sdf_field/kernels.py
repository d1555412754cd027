"""Triton kernels of the SDF field: features, decoder and closed-form gradient of a tile of points, on tensor cores.

The decoder arrives as one packed float32 array (`sdf_field.packing`): LAYERS hidden layers padded to HIDDEN units,
their input padded to INPUTS columns [FIRST channels | 3 point coordinates with POINTS | zeros]. What later steps need
again is one row of STATE_WIDTH columns per point: [input INPUTS | last activation HIDDEN | second channels SECOND_WIDTH
| geometry 16 | earlier activations | d sdf / d input INPUTS], where geometry is [gradient 3, ray direction 3, 1,
distance along the ray, unit gradient 3, zeros]. So whatever a head computes from them is one matrix product, biases and
directions included.
"""

import triton
import triton.language as tl

from ponder_kernels._constants import SOFTPLUS_FLOOR
from ponder_kernels.sdf_field.gather_kernels import _axes, _corner, _load_vector, _row

_FLOOR = tl.constexpr(SOFTPLUS_FLOOR)
_TF32 = tl.constexpr(0)
_TF32X3 = tl.constexpr(1)
_BF16 = tl.constexpr(2)
_GEOMETRY = tl.constexpr(16)


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    """a b with float32 sums; the operands are rounded as PRECISION says."""
    if PRECISION == _TF32:
        return tl.dot(a, b, input_precision="tf32")
    elif PRECISION == _TF32X3:
        return tl.dot(a, b, input_precision="tf32x3")
    elif PRECISION == _BF16:
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _softplus(y):
    """softplus(y) and its derivative."""
    y = tl.where(y > _FLOOR, y, _FLOOR)
    small = tl.exp(-tl.abs(y))
    near = 1.0 / (1.0 + small)
    return tl.maximum(y, 0.0) - tl.log(near), tl.where(y >= 0.0, near, small * near)


@triton.jit
def _inputs_weight(chain_ptr, LAYER: tl.constexpr, INPUTS: tl.constexpr, HIDDEN: tl.constexpr):
    """[HIDDEN, INPUTS] of a layer."""
    row, column = tl.arange(0, HIDDEN), tl.arange(0, INPUTS)
    return tl.load(chain_ptr + LAYER * HIDDEN * INPUTS + row[:, None] * INPUTS + column[None, :])


@triton.jit
def _previous_weight(chain_ptr, LAYER: tl.constexpr, LAYERS: tl.constexpr, INPUTS: tl.constexpr, HIDDEN: tl.constexpr):
    """[HIDDEN, HIDDEN] of layer LAYER >= 1 on the activation of the layer before."""
    row = tl.arange(0, HIDDEN)
    start = LAYERS * HIDDEN * (INPUTS + 1) + (LAYER - 1) * HIDDEN * HIDDEN
    return tl.load(chain_ptr + start + row[:, None] * HIDDEN + row[None, :])


@triton.jit
def _last_weights(chain_ptr, LAYERS: tl.constexpr, INPUTS: tl.constexpr, HIDDEN: tl.constexpr):
    """Row of the SDF: on the input [INPUTS], on the last activation [HIDDEN], and its bias."""
    start = chain_ptr
    if LAYERS > 0:
        start += LAYERS * HIDDEN * (INPUTS + 1) + (LAYERS - 1) * HIDDEN * HIDDEN
    on_input = tl.load(start + tl.arange(0, INPUTS))
    on_hidden = tl.load(start + INPUTS + tl.arange(0, HIDDEN))
    return on_input, on_hidden, tl.load(start + INPUTS + HIDDEN)


_SIZES = ["START", "N", "PER_SCENE", "S", "D", "H", "W"]


@triton.jit(do_not_specialize=_SIZES)
def sdf_field_forward_kernel(
    volume_ptr,  # [B D H W, CHANNELS] contiguous
    points_ptr,  # [N, 3] contiguous, in box coordinates
    box_ptr,  # [B, 2, 3] contiguous
    chain_ptr,  # packed decoder
    directions_ptr,  # [N / S, 3] contiguous; used with RAYS
    position_ptr,  # [N], distance along the ray; used with RAYS
    sdf_ptr,  # [N]
    gradient_ptr,  # [N, 3]; used with GRADIENT
    state_ptr,  # [N, STATE_WIDTH]; used with STORE
    START,
    N,
    PER_SCENE,
    S,
    D,
    H,
    W,
    normal_floor,
    CHANNELS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    POINTS: tl.constexpr,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAYERS: tl.constexpr,
    SECOND_WIDTH: tl.constexpr,
    STATE_WIDTH: tl.constexpr,
    ALIGN: tl.constexpr,
    BORDER: tl.constexpr,
    GRADIENT: tl.constexpr,
    STORE: tl.constexpr,
    RAYS: tl.constexpr,
    STORE_SLOPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """sdf, its gradient sum_c (d w_c / d p) (V_c . g) with g = d sdf / d input, and the state, of N points.

    Grid (ceil(N / BLOCK_M),); a program owns BLOCK_M consecutive points, which lie along rays, so that corner
    rows are shared through the first-level cache. The corners are read once for the features and once more for the
    gradient. Every output is written once, without atomics: deterministic. Bytes and FLOPs: cost.field_forward_cost;
    bound by the gather.
    """
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = m < N
    column, unit = tl.arange(0, INPUTS), tl.arange(0, HIDDEN)
    x, y, z, X, Y, Z, first_row = _axes(points_ptr, box_ptr, m, live, START, PER_SCENE, D, H, W, ALIGN, BORDER)
    state = state_ptr + m[:, None] * STATE_WIDTH
    features = tl.zeros([BLOCK_M, INPUTS], dtype=tl.float32)
    for k in tl.range(0, 8, loop_unroll_factor=1):
        row, weight, _, _, _ = _corner(X, Y, Z, first_row, D, H, W, k)
        features += weight[:, None] * _row(volume_ptr, row, column, live, 0, FIRST, CHANNELS)
    if POINTS:
        features = tl.where((column == FIRST)[None, :], x[:, None], features)
        features = tl.where((column == FIRST + 1)[None, :], y[:, None], features)
        features = tl.where((column == FIRST + 2)[None, :], z[:, None], features)
    on_input, on_hidden, bias = _last_weights(chain_ptr, LAYERS, INPUTS, HIDDEN)
    sdf = tl.sum(features * on_input[None, :], axis=1) + bias
    if STORE:
        tl.store(state + column[None, :], features, mask=live[:, None])
        if LAYERS == 0:
            tl.store(state + INPUTS + unit[None, :], tl.zeros([BLOCK_M, HIDDEN], dtype=tl.float32), mask=live[:, None])
    REST: tl.constexpr = INPUTS + HIDDEN + SECOND_WIDTH + _GEOMETRY
    slopes, hidden = (), features
    for layer in tl.static_range(LAYERS):
        w = _inputs_weight(chain_ptr, layer, INPUTS, HIDDEN)
        pre = _dot(features, tl.trans(w), PRECISION)
        pre += tl.load(chain_ptr + LAYERS * HIDDEN * INPUTS + layer * HIDDEN + unit)[None, :]
        if layer > 0:
            pre += _dot(hidden, tl.trans(_previous_weight(chain_ptr, layer, LAYERS, INPUTS, HIDDEN)), PRECISION)
        hidden, slope = _softplus(pre)
        if STORE:
            start = INPUTS if layer == LAYERS - 1 else REST + layer * HIDDEN
            tl.store(state + start + unit[None, :], hidden, mask=live[:, None])
        if layer == LAYERS - 1:
            sdf += tl.sum(hidden * on_hidden[None, :], axis=1)
        slopes = slopes + (slope,)
    tl.store(sdf_ptr + m, sdf, mask=live)
    if GRADIENT:
        by_input = tl.zeros([BLOCK_M, INPUTS], dtype=tl.float32) + on_input[None, :]
        for step in tl.static_range(LAYERS):
            if step == 0:
                u = slopes[LAYERS - 1] * on_hidden[None, :]
            else:
                previous = _previous_weight(chain_ptr, LAYERS - step, LAYERS, INPUTS, HIDDEN)
                u = slopes[LAYERS - 1 - step] * _dot(u, previous, PRECISION)
            by_input += _dot(u, _inputs_weight(chain_ptr, LAYERS - 1 - step, INPUTS, HIDDEN), PRECISION)
        if STORE_SLOPE:
            tl.store(state + (STATE_WIDTH - INPUTS) + column[None, :], by_input, mask=live[:, None])
        nx = tl.zeros([BLOCK_M], dtype=tl.float32)
        ny = tl.zeros([BLOCK_M], dtype=tl.float32)
        nz = tl.zeros([BLOCK_M], dtype=tl.float32)
        for k in tl.range(0, 8, loop_unroll_factor=1):
            row, _, slope_x, slope_y, slope_z = _corner(X, Y, Z, first_row, D, H, W, k)
            along = tl.sum(_row(volume_ptr, row, column, live, 0, FIRST, CHANNELS) * by_input, axis=1)
            nx += slope_x * along
            ny += slope_y * along
            nz += slope_z * along
        if POINTS:
            nx += tl.sum(tl.where((column == FIRST)[None, :], by_input, 0.0), axis=1)
            ny += tl.sum(tl.where((column == FIRST + 1)[None, :], by_input, 0.0), axis=1)
            nz += tl.sum(tl.where((column == FIRST + 2)[None, :], by_input, 0.0), axis=1)
        tl.store(gradient_ptr + m * 3, nx, mask=live)
        tl.store(gradient_ptr + m * 3 + 1, ny, mask=live)
        tl.store(gradient_ptr + m * 3 + 2, nz, mask=live)
        if RAYS:
            geometry = state + (INPUTS + HIDDEN + SECOND_WIDTH)
            _store_geometry(geometry, directions_ptr + (m // S) * 3, position_ptr + m, nx, ny, nz, normal_floor, live)
    if STORE:
        for start in tl.static_range(0, SECOND, BLOCK_C):
            more = start + tl.arange(0, BLOCK_C)
            other = tl.zeros([BLOCK_M, BLOCK_C], dtype=tl.float32)
            for k in tl.range(0, 8, loop_unroll_factor=1):
                row, weight, _, _, _ = _corner(X, Y, Z, first_row, D, H, W, k)
                other += weight[:, None] * _row(volume_ptr, row, more, live, FIRST, CHANNELS, CHANNELS)
            mask = live[:, None] & (more < SECOND_WIDTH)[None, :]
            tl.store(state + (INPUTS + HIDDEN) + more[None, :], other, mask=mask)


@triton.jit
def _store_geometry(geometry, direction, position, nx, ny, nz, normal_floor, live):
    """The 16 columns of the state that do not come from the volume."""
    norm = tl.maximum(tl.sqrt(nx * nx + ny * ny + nz * nz), normal_floor)
    c = tl.arange(0, 16)[None, :]
    value = tl.where(c == 0, nx[:, None], tl.where(c == 1, ny[:, None], tl.where(c == 2, nz[:, None], 0.0)))
    # Columns 3 to 5 are the direction.
    along = tl.load(direction[:, None] + (c - 3), mask=live[:, None] & (c >= 3) & (c < 6), other=0.0)
    distance = tl.load(position, mask=live, other=0.0)
    value += along + tl.where(c == 6, 1.0, 0.0) + tl.where(c == 7, distance[:, None], 0.0)
    value += tl.where(c == 8, (nx / norm)[:, None], 0.0) + tl.where(c == 9, (ny / norm)[:, None], 0.0)
    value += tl.where(c == 10, (nz / norm)[:, None], 0.0)
    tl.store(geometry + c, value, mask=live[:, None])


@triton.jit
def _slope(hidden_ptr, mask):
    """Slope of the activation from its value: sigmoid(y) = 1 - exp(-softplus(y))."""
    return 1.0 - tl.exp(-tl.load(hidden_ptr, mask=mask, other=0.0))


@triton.jit
def _add_rows(out_ptr, row, column, value, mask, CHANNELS: tl.constexpr):
    """Atomic float32 sums into channels of voxels `row`."""
    tl.atomic_add(out_ptr + (row * CHANNELS)[:, None] + column[None, :], value, mask=mask, sem="relaxed")


@triton.jit
def _store_tail(ptr, value, live):
    """16 columns: `value` and zeros."""
    c = tl.arange(0, 16)[None, :]
    tl.store(ptr + c, tl.where(c == 0, value[:, None], 0.0), mask=live[:, None])


@triton.jit(do_not_specialize=_SIZES)
def sdf_field_backward_kernel(
    volume_ptr,  # [B D H W, CHANNELS] contiguous
    points_ptr,  # [N, 3] contiguous
    box_ptr,  # [B, 2, 3] contiguous
    chain_ptr,  # packed decoder
    state_ptr,  # [N, STATE_WIDTH] of the forward kernel
    sdf_bar_ptr,  # [N]
    gradient_bar_ptr,  # [N, 3]
    state_bar_ptr,  # [N, STATE_WIDTH] in the state's columns; used with HAS_STATE_BAR
    left_ptr,  # [2, N, LAYERS HIDDEN + 16]
    right_ptr,  # [2, N, INPUTS + 16]
    v_bar_ptr,  # [N, LAYERS HIDDEN]
    input_bar_ptr,  # [N, INPUTS]
    START,
    N,
    PER_SCENE,
    D,
    H,
    W,
    CHANNELS: tl.constexpr,
    FIRST: tl.constexpr,
    POINTS: tl.constexpr,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    LAYERS: tl.constexpr,
    SECOND_WIDTH: tl.constexpr,
    STATE_WIDTH: tl.constexpr,
    ALIGN: tl.constexpr,
    BORDER: tl.constexpr,
    HAS_STATE_BAR: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Derivatives of sdf, its gradient n and the state by the decoder's input, and factors of those by the decoder.

    With z the input, h_l, s_l activations and slopes, u_l = d sdf / d y_l, v_l = d sdf / d h_l and J the derivative of
    the features: first the gradient backwards, g_bar = J n_bar, v_bar_l = s_l u_bar_l with
    u_bar_l = A_l g_bar + B_l v_bar_{l-1}; then the value, y_bar_l = s_l (h_bar_l + (1 - s_l) v_l u_bar_l),
    input_bar = sum_l A_l^T y_bar_l + sdf_bar * row.
    The decoder's derivatives are sums over points of outer products: `left` holds [u_l | 1] and below it
    [y_bar_l | sdf_bar], `right` [g_bar | 0] and below it [z | 1], so that left^T right has all of them but those by the
    weights between layers, for which `v_bar` is stored.

    Grid (ceil(N / BLOCK_M),); a program owns BLOCK_M points. Every output is written once, without atomics:
    deterministic. Bytes and FLOPs: cost.field_backward_cost; bound by the gather and the stores.
    """
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = m < N
    mine = live[:, None]
    column, unit = tl.arange(0, INPUTS), tl.arange(0, HIDDEN)
    _x, _y, _z, X, Y, Z, first_row = _axes(points_ptr, box_ptr, m, live, START, PER_SCENE, D, H, W, ALIGN, BORDER)
    nx, ny, nz = _load_vector(gradient_bar_ptr, m, live)
    directional = tl.zeros([BLOCK_M, INPUTS], dtype=tl.float32)
    for k in tl.range(0, 8, loop_unroll_factor=1):
        row, _, slope_x, slope_y, slope_z = _corner(X, Y, Z, first_row, D, H, W, k)
        along = slope_x * nx + slope_y * ny + slope_z * nz
        directional += along[:, None] * _row(volume_ptr, row, column, live, 0, FIRST, CHANNELS)
    if POINTS:
        directional = tl.where((column == FIRST)[None, :], nx[:, None], directional)
        directional = tl.where((column == FIRST + 1)[None, :], ny[:, None], directional)
        directional = tl.where((column == FIRST + 2)[None, :], nz[:, None], directional)

    state = state_ptr + m[:, None] * STATE_WIDTH
    state_bar = state_bar_ptr + m[:, None] * STATE_WIDTH
    REST: tl.constexpr = INPUTS + HIDDEN + SECOND_WIDTH + _GEOMETRY
    UNITS: tl.constexpr = LAYERS * HIDDEN
    count = N.to(tl.int64)
    u_row, y_row = left_ptr + m[:, None] * (UNITS + 16), left_ptr + (count + m)[:, None] * (UNITS + 16)
    g_row, z_row = right_ptr + m[:, None] * (INPUTS + 16), right_ptr + (count + m)[:, None] * (INPUTS + 16)
    sdf_bar = tl.load(sdf_bar_ptr + m, mask=live, other=0.0)
    tl.store(g_row + column[None, :], directional, mask=mine)
    tl.store(z_row + column[None, :], tl.load(state + column[None, :], mask=mine, other=0.0), mask=mine)
    _store_tail(g_row + INPUTS, sdf_bar * 0.0, live)
    _store_tail(z_row + INPUTS, tl.where(live, 1.0, 0.0), live)
    _store_tail(u_row + UNITS, tl.where(live, 1.0, 0.0), live)
    _store_tail(y_row + UNITS, sdf_bar, live)
    on_input, on_hidden, _bias = _last_weights(chain_ptr, LAYERS, INPUTS, HIDDEN)

    # From the SDF down: u and v of every layer. Slopes are taken from the state wherever they are needed.
    vs, u = (), directional
    for step in tl.static_range(LAYERS):
        if step == 0:
            v = tl.zeros([BLOCK_M, HIDDEN], dtype=tl.float32) + on_hidden[None, :]
        else:
            v = _dot(u, _previous_weight(chain_ptr, LAYERS - step, LAYERS, INPUTS, HIDDEN), PRECISION)
        start = INPUTS if step == 0 else REST + (LAYERS - 1 - step) * HIDDEN
        u = _slope(state + start + unit[None, :], mine) * v
        tl.store(u_row + (LAYERS - 1 - step) * HIDDEN + unit[None, :], u, mask=mine)
        vs = vs + (v,)
    # The gradient backwards, from the input up.
    curvatures, v_bar = (), directional
    for layer in tl.static_range(LAYERS):
        u_bar = _dot(directional, tl.trans(_inputs_weight(chain_ptr, layer, INPUTS, HIDDEN)), PRECISION)
        if layer > 0:
            u_bar += _dot(v_bar, tl.trans(_previous_weight(chain_ptr, layer, LAYERS, INPUTS, HIDDEN)), PRECISION)
        start = INPUTS if layer == LAYERS - 1 else REST + layer * HIDDEN
        slope = _slope(state + start + unit[None, :], mine)
        v_bar = u_bar * slope
        tl.store(v_bar_ptr + m[:, None] * UNITS + layer * HIDDEN + unit[None, :], v_bar, mask=mine)
        curvatures = curvatures + (u_bar * vs[LAYERS - 1 - layer] * (1.0 - slope),)
    # The value, from the SDF down.
    z_bar = sdf_bar[:, None] * on_input[None, :]
    if HAS_STATE_BAR:
        z_bar += tl.load(state_bar + column[None, :], mask=mine, other=0.0)
    y_bar = z_bar
    for step in tl.static_range(LAYERS):
        if step == 0:
            h_bar = sdf_bar[:, None] * on_hidden[None, :]
            if HAS_STATE_BAR:
                h_bar += tl.load(state_bar + INPUTS + unit[None, :], mask=mine, other=0.0)
        else:
            h_bar = _dot(y_bar, _previous_weight(chain_ptr, LAYERS - step, LAYERS, INPUTS, HIDDEN), PRECISION)
        start = INPUTS if step == 0 else REST + (LAYERS - 1 - step) * HIDDEN
        y_bar = _slope(state + start + unit[None, :], mine) * (h_bar + curvatures[LAYERS - 1 - step])
        tl.store(y_row + (LAYERS - 1 - step) * HIDDEN + unit[None, :], y_bar, mask=mine)
        z_bar += _dot(y_bar, _inputs_weight(chain_ptr, LAYERS - 1 - step, INPUTS, HIDDEN), PRECISION)
    tl.store(input_bar_ptr + m[:, None] * INPUTS + column[None, :], z_bar, mask=mine)


@triton.jit(do_not_specialize=_SIZES)
def sdf_field_scatter_kernel(
    points_ptr,  # [N, 3] contiguous
    box_ptr,  # [B, 2, 3] contiguous
    state_ptr,  # [N, STATE_WIDTH] of the forward kernel
    gradient_bar_ptr,  # [N, 3]
    input_bar_ptr,  # [N, INPUTS]
    state_bar_ptr,  # [N, STATE_WIDTH] in the state's columns; used with HAS_STATE_BAR
    volume_bar_ptr,  # [B D H W, CHANNELS] float32, added to
    START,
    N,
    PER_SCENE,
    D,
    H,
    W,
    CHANNELS: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    STATE_WIDTH: tl.constexpr,
    ALIGN: tl.constexpr,
    BORDER: tl.constexpr,
    HAS_STATE_BAR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """V_bar_c += w_c input_bar + (d w_c / d p . n_bar) g for the first channels, w_c second_bar for the others.

    Grid (ceil(N / BLOCK_M),); a program owns BLOCK_M points. The sums are atomic float32 adds, whose last bits depend
    on the order of arrival; the sorted sums of sdf_field.gather are the deterministic way. Bytes and FLOPs:
    cost.field_scatter_cost; bound by the atomics.
    """
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = m < N
    mine = live[:, None]
    _x, _y, _z, X, Y, Z, first_row = _axes(points_ptr, box_ptr, m, live, START, PER_SCENE, D, H, W, ALIGN, BORDER)
    nx, ny, nz = _load_vector(gradient_bar_ptr, m, live)
    for start in tl.static_range(0, FIRST, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        wanted = mine & (column < FIRST)[None, :]
        value_bar = tl.load(input_bar_ptr + m[:, None] * INPUTS + column[None, :], mask=wanted, other=0.0)
        slope = tl.load(
            state_ptr + m[:, None] * STATE_WIDTH + (STATE_WIDTH - INPUTS + column)[None, :], mask=wanted, other=0.0
        )
        for k in tl.range(0, 8, loop_unroll_factor=1):
            row, weight, slope_x, slope_y, slope_z = _corner(X, Y, Z, first_row, D, H, W, k)
            along = slope_x * nx + slope_y * ny + slope_z * nz
            mask = wanted & ((weight != 0.0) | (along != 0.0))[:, None]
            _add_rows(volume_bar_ptr, row, column, weight[:, None] * value_bar + along[:, None] * slope, mask, CHANNELS)
    if HAS_STATE_BAR:
        for start in tl.static_range(0, SECOND, BLOCK_C):
            column = start + tl.arange(0, BLOCK_C)
            wanted = mine & (column < SECOND)[None, :]
            at = state_bar_ptr + m[:, None] * STATE_WIDTH + (INPUTS + HIDDEN + column)[None, :]
            second_bar = tl.load(at, mask=wanted, other=0.0)
            for k in tl.range(0, 8, loop_unroll_factor=1):
                row, weight, _, _, _ = _corner(X, Y, Z, first_row, D, H, W, k)
                mask = wanted & (weight != 0.0)[:, None]
                _add_rows(volume_bar_ptr, row, FIRST + column, weight[:, None] * second_bar, mask, CHANNELS)
