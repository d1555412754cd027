"""Triton kernels of ray sampling: box intersection, stratified edges, inverse-CDF resampling, merging.

All tensors are contiguous. Rays have less than 2^30 edges. None of the sizes is specialised on: a new number of rays,
bins or positions compiles nothing.
"""

import triton
import triton.language as tl

from ponder_kernels._constants import DIRECTION_MIN, DISTANCE_LIMIT, PDF_EPS, WEIGHT_LIMIT
from ponder_kernels.ray_sampling.spacing_kernels import clamp, place, slope

_DIRECTION_MIN = tl.constexpr(DIRECTION_MIN)
_DISTANCE_LIMIT = tl.constexpr(DISTANCE_LIMIT)
_PDF_EPS = tl.constexpr(PDF_EPS)
_WEIGHT_LIMIT = tl.constexpr(WEIGHT_LIMIT)


@triton.jit
def _slab(origins_ptr, directions_ptr, box_ptr, i, b, live, AXIS: tl.constexpr):
    """Entry and exit distance of one slab, not yet cut off, the divisor, its sign, and whether a hit is possible."""
    o = tl.load(origins_ptr + 3 * i + AXIS, mask=live, other=0.0).to(tl.float32)
    d = tl.load(directions_ptr + 3 * i + AXIS, mask=live, other=0.0).to(tl.float32)
    lower = tl.load(box_ptr + 6 * b + AXIS, mask=live, other=0.0).to(tl.float32)
    upper = tl.load(box_ptr + 6 * b + 3 + AXIS, mask=live, other=0.0).to(tl.float32)
    ahead = d > 0
    parallel = tl.abs(d) < _DIRECTION_MIN
    divisor = tl.where(parallel, 1.0, d)
    into = (tl.where(ahead, lower, upper) - o) / divisor
    out = (tl.where(ahead, upper, lower) - o) / divisor
    possible = tl.where(parallel, (lower <= o) & (o < upper), (lower <= upper) & (into == into) & (out == out))
    into = tl.where(parallel, -_DISTANCE_LIMIT, into)
    return into, tl.where(parallel, _DISTANCE_LIMIT, out), divisor, ahead, possible


@triton.jit
def _ends(into_x, into_y, into_z, out_x, out_y, out_z, possible, near_min):
    """The last entry and the first exit, cut off at the limit; the near end; whether the ray hits."""
    into = clamp(tl.maximum(tl.maximum(into_x, into_y), into_z), -_DISTANCE_LIMIT, _DISTANCE_LIMIT)
    out = clamp(tl.minimum(tl.minimum(out_x, out_y), out_z), -_DISTANCE_LIMIT, _DISTANCE_LIMIT)
    near = tl.where(into < near_min, near_min, into)
    return into, out, near, possible & (near < out)


@triton.jit(do_not_specialize=["n", "R"])
def intersect_aabb_forward_kernel(
    origins_ptr,  # [n, 3]
    directions_ptr,  # [n, 3]
    box_ptr,  # [n / R, 2, 3]
    near_ptr,  # [n]
    far_ptr,  # [n]
    n,
    R,  # rays in a row that share a box
    near_min,
    BLOCK: tl.constexpr,
):
    """near = max(near_min, max over axes of the entries), far = min over axes of the exits; both 0 at a miss.

    The rules for parallel components, faces and NaN are those of reference.intersect_aabb_reference.

    Grid (ceil(n / BLOCK),); a program owns BLOCK rays and writes each of their ends once. 24 B read a ray (its box,
    24 B a scene, from cache) and 8 B written, 19 FLOPs: bound by bandwidth.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    b = i // R
    into_x, out_x, _, _, possible_x = _slab(origins_ptr, directions_ptr, box_ptr, i, b, live, 0)
    into_y, out_y, _, _, possible_y = _slab(origins_ptr, directions_ptr, box_ptr, i, b, live, 1)
    into_z, out_z, _, _, possible_z = _slab(origins_ptr, directions_ptr, box_ptr, i, b, live, 2)
    possible = possible_x & possible_y & possible_z
    _, far, near, hit = _ends(into_x, into_y, into_z, out_x, out_y, out_z, possible, near_min)
    tl.store(near_ptr + i, tl.where(hit, near, 0.0), mask=live)
    tl.store(far_ptr + i, tl.where(hit, far, 0.0), mask=live)


@triton.jit
def _store_slab_gradients(
    to_near,
    to_far,
    into,
    out,
    divisor,
    ahead,
    i,
    live,
    grad_origins_ptr,
    grad_directions_ptr,
    grad_box_ptr,
    AXIS: tl.constexpr,
    TO_ORIGINS: tl.constexpr,
    TO_DIRECTIONS: tl.constexpr,
    TO_BOX: tl.constexpr,
):
    """Write one axis of the gradients; `to_near` and `to_far` are 0 where another slab decides."""
    # What does not decide may be NaN or infinite, and its divisor too.
    to_entry = tl.where(to_near == 0.0, 0.0, to_near / divisor)
    to_exit = tl.where(to_far == 0.0, 0.0, to_far / divisor)
    if TO_ORIGINS:
        tl.store(grad_origins_ptr + 3 * i + AXIS, -(to_entry + to_exit), mask=live)
    if TO_DIRECTIONS:
        turned = tl.where(to_near == 0.0, 0.0, to_entry * into) + tl.where(to_far == 0.0, 0.0, to_exit * out)
        tl.store(grad_directions_ptr + 3 * i + AXIS, -turned, mask=live)
    if TO_BOX:
        tl.store(grad_box_ptr + 6 * i + AXIS, tl.where(ahead, to_entry, to_exit), mask=live)
        tl.store(grad_box_ptr + 6 * i + 3 + AXIS, tl.where(ahead, to_exit, to_entry), mask=live)


@triton.jit(do_not_specialize=["n", "R"])
def intersect_aabb_backward_kernel(
    grad_near_ptr,  # [n]
    grad_far_ptr,  # [n]
    origins_ptr,  # [n, 3]
    directions_ptr,  # [n, 3]
    box_ptr,  # [n / R, 2, 3]
    grad_origins_ptr,  # [n, 3]
    grad_directions_ptr,  # [n, 3]
    grad_box_ptr,  # [n, 2, 3], per ray
    n,
    R,  # rays in a row that share a box
    near_min,
    TO_ORIGINS: tl.constexpr,
    TO_DIRECTIONS: tl.constexpr,
    TO_BOX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """t = (plane - o) / d of the deciding axis: dt/dplane = 1 / d, dt/do = -1 / d, dt/dd = -t / d, 0 on other axes.

    The first of several axes at one distance decides. A miss, and an end held at near_min or at the limit, has no
    gradient.

    Grid (ceil(n / BLOCK),); a program owns BLOCK rays and writes each of their gradients once, those to a shared box
    per ray (the host sums them): deterministic. 32 B read and 24 B written (48 B with the box) a ray, 43 FLOPs:
    bound by bandwidth. The slabs are computed again.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    b = i // R
    into_x, out_x, divisor_x, ahead_x, possible_x = _slab(origins_ptr, directions_ptr, box_ptr, i, b, live, 0)
    into_y, out_y, divisor_y, ahead_y, possible_y = _slab(origins_ptr, directions_ptr, box_ptr, i, b, live, 1)
    into_z, out_z, divisor_z, ahead_z, possible_z = _slab(origins_ptr, directions_ptr, box_ptr, i, b, live, 2)
    possible = possible_x & possible_y & possible_z
    into, out, _, hit = _ends(into_x, into_y, into_z, out_x, out_y, out_z, possible, near_min)
    g = tl.load(grad_near_ptr + i, mask=live, other=0.0).to(tl.float32)
    g = tl.where(hit & (into >= near_min) & (tl.abs(into) < _DISTANCE_LIMIT), g, 0.0)
    h = tl.load(grad_far_ptr + i, mask=live, other=0.0).to(tl.float32)
    h = tl.where(hit & (tl.abs(out) < _DISTANCE_LIMIT), h, 0.0)
    enters_x = (into_x >= into_y) & (into_x >= into_z)
    enters_y = (into_y >= into_z) & (enters_x == 0)
    leaves_x = (out_x <= out_y) & (out_x <= out_z)
    leaves_y = (out_y <= out_z) & (leaves_x == 0)
    _store_slab_gradients(
        tl.where(enters_x, g, 0.0), tl.where(leaves_x, h, 0.0), into_x, out_x, divisor_x, ahead_x, i, live,
        grad_origins_ptr, grad_directions_ptr, grad_box_ptr, 0, TO_ORIGINS, TO_DIRECTIONS, TO_BOX,
    )  # fmt: skip
    _store_slab_gradients(
        tl.where(enters_y, g, 0.0), tl.where(leaves_y, h, 0.0), into_y, out_y, divisor_y, ahead_y, i, live,
        grad_origins_ptr, grad_directions_ptr, grad_box_ptr, 1, TO_ORIGINS, TO_DIRECTIONS, TO_BOX,
    )  # fmt: skip
    _store_slab_gradients(
        tl.where(enters_x | enters_y, 0.0, g), tl.where(leaves_x | leaves_y, 0.0, h), into_z, out_z, divisor_z, ahead_z,
        i, live, grad_origins_ptr, grad_directions_ptr, grad_box_ptr, 2, TO_ORIGINS, TO_DIRECTIONS, TO_BOX,
    )  # fmt: skip


@triton.jit(do_not_specialize=["n", "S"])
def stratified_edges_forward_kernel(
    near_ptr,  # [n / (S + 1)]
    far_ptr,  # [n / (S + 1)]
    jitter_ptr,  # [n]; unused without HAS_JITTER
    out_ptr,  # [n]
    n,
    S,
    SPACING: tl.constexpr,
    HAS_JITTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """t_k = s^-1((1 - u_k) s(near) + u_k s(far)), u_k = (k + jitter) / S; formulas in reference.py.

    Grid (ceil(n / BLOCK),); a program owns BLOCK edges of all rays laid end to end and writes each once. 4 B read (the
    jitter; 8 B a ray more, from cache) and 4 B written, 12 ("uniform") to 47 ("log") FLOPs an edge: bound by bandwidth.
    s(near) and s(far) are computed for every edge.
    """
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    i = begin + tl.arange(0, BLOCK)
    live = i < n
    # One division of 64 bits a program, one of 32 bits an edge.
    ray = begin // (S + 1)
    along = (begin - ray * (S + 1)).to(tl.int32) + tl.arange(0, BLOCK)
    ray = ray + along // (S + 1)
    near = tl.load(near_ptr + ray, mask=live, other=1.0).to(tl.float32)
    far = tl.load(far_ptr + ray, mask=live, other=1.0).to(tl.float32)
    noise = near
    if HAS_JITTER:
        noise = tl.load(jitter_ptr + i, mask=live, other=0.0).to(tl.float32)
    t, _, _, _, _ = place(near, far, noise, along % (S + 1), S, SPACING, HAS_JITTER)
    tl.store(out_ptr + i, t, mask=live)


@triton.jit(do_not_specialize=["R", "S"])
def stratified_edges_backward_kernel(
    grad_out_ptr,  # [R, S + 1]
    near_ptr,  # [R]
    far_ptr,  # [R]
    jitter_ptr,  # [R, S + 1]; unused without HAS_JITTER
    grad_near_ptr,  # [R]
    grad_far_ptr,  # [R]
    R,
    S,
    SPACING: tl.constexpr,
    HAS_JITTER: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """grad_near = sum_k g_k (1 - u_k) s'(near) / s'(t_k), grad_far = sum_k g_k u_k s'(far) / s'(t_k).

    Without jitter the end edges are near and far themselves, with derivative 1.

    Grid (ceil(R / BLOCK_R),); a program owns BLOCK_R rays, walks their edges BLOCK_S at a time and writes each of their
    two sums once: deterministic. 8 B read an edge (4 B without jitter) and 8 B written a ray, 18 to 55 FLOPs an edge:
    bound by bandwidth. The distances are computed again.
    """
    ray = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    inside = ray < R
    near = tl.load(near_ptr + ray, mask=inside, other=1.0).to(tl.float32)
    far = tl.load(far_ptr + ray, mask=inside, other=1.0).to(tl.float32)
    to_near = tl.zeros([BLOCK_R, BLOCK_S], dtype=tl.float32)
    to_far = tl.zeros([BLOCK_R, BLOCK_S], dtype=tl.float32)
    begin = tl.program_id(0) * 0
    while begin <= S:
        k = begin + tl.arange(0, BLOCK_S)[None, :]
        live = inside & (k <= S)
        here = ray * (S + 1) + k
        g = tl.load(grad_out_ptr + here, mask=live, other=0.0).to(tl.float32)
        noise = g
        if HAS_JITTER:
            noise = tl.load(jitter_ptr + here, mask=live, other=0.0).to(tl.float32)
        # Behind the last edge there is nothing to compute.
        k = tl.minimum(k, S)
        t, v, u, linear, outside = place(near, far, noise, k, S, SPACING, HAS_JITTER)
        by_near = tl.where(linear, v, slope(v, t, near, SPACING))
        by_far = tl.where(linear, u, slope(u, t, far, SPACING))
        if not HAS_JITTER:
            by_near = tl.where(k == 0, 1.0, tl.where(k == S, 0.0, by_near))
            by_far = tl.where(k == S, 1.0, tl.where(k == 0, 0.0, by_far))
        counts = live & (outside == 0)
        to_near += tl.where(counts, g * by_near, 0.0)
        to_far += tl.where(counts, g * by_far, 0.0)
        begin += BLOCK_S
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    tl.store(grad_near_ptr + row, tl.sum(to_near, axis=1), mask=row < R)
    tl.store(grad_far_ptr + row, tl.sum(to_far, axis=1), mask=row < R)


@triton.jit
def _clean(weight):
    """A weight that is negative or NaN counts as 0, one above the limit as that."""
    weight = tl.where(weight > 0.0, weight, 0.0)
    return tl.where(weight > _WEIGHT_LIMIT, _WEIGHT_LIMIT, weight)


@triton.jit(do_not_specialize=["R", "S", "K"])
def resample_edges_kernel(
    edges_ptr,  # [R, S + 1]
    weights_ptr,  # [R, S]
    jitter_ptr,  # [R] with JITTER 1, [R, K] with JITTER 2, unused with JITTER 0
    cdf_ptr,  # [R, S]: scratch
    out_ptr,  # [R, K]
    R,
    S,
    K,
    JITTER: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Position k is where the CDF (running sum of the weights, linear within a bin) is total (k + jitter) / K.

    Grid (ceil(R / BLOCK_R),); a program owns BLOCK_R rays, a warp each. It sums the weights BLOCK_S at a time into its
    rows of the scratch and, BLOCK_K positions at a time, finds the first bin whose running sum is above the target by
    binary search. The search takes the same turns for every target of a ray, so a larger target never finds an earlier
    bin, however the sums were rounded: positions are sorted. Each is written once: deterministic. 8 B read (the weight,
    the edge) and 4 B written a bin, up to 4 B read and 4 B written a position, besides 4 ceil(log2(S + 1)) + 16 B from
    cache: bound by the latency of the search, a chain of dependent loads.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    inside = row < R
    weights_ptr += row * S
    cdf_ptr += row * S
    edges_ptr += row * (S + 1)
    total = tl.zeros([BLOCK_R, 1], dtype=tl.float32)
    last = tl.zeros([BLOCK_R, 1], dtype=tl.int32)
    begin = tl.program_id(0) * 0
    while begin < S:
        i = begin + tl.arange(0, BLOCK_S)[None, :]
        live = inside & (i < S)
        weight = _clean(tl.load(weights_ptr + i, mask=live, other=0.0).to(tl.float32))
        cdf = total + tl.cumsum(weight, axis=1)
        tl.store(cdf_ptr + i, cdf, mask=live)
        # The largest and not the last: a parallel sum may round out of order.
        total = tl.max(cdf, axis=1)[:, None]
        last = tl.maximum(last, tl.max(tl.where(weight > 0.0, i, 0), axis=1)[:, None])
        begin += BLOCK_S
    # The search reads what other threads of this program have written.
    tl.debug_barrier()
    pad = tl.where(total < _PDF_EPS, (_PDF_EPS - total) / S, 0.0)
    last = tl.where(pad > 0.0, S - 1, last)
    stride = (total + pad * S) / K
    begin = tl.program_id(0) * 0
    while begin < K:
        k = begin + tl.arange(0, BLOCK_K)[None, :]
        live = inside & (k < K)
        jitter = 0.5
        if JITTER == 1:
            jitter = clamp(tl.load(jitter_ptr + row, mask=inside, other=0.0).to(tl.float32), 0.0, 1.0)
        if JITTER == 2:
            jitter = clamp(tl.load(jitter_ptr + row * K + k, mask=live, other=0.0).to(tl.float32), 0.0, 1.0)
        target = (k + jitter) * stride
        found = tl.zeros([BLOCK_R, BLOCK_K], dtype=tl.int32)
        above = found + S
        width = begin * 0 + S
        while width > 0:
            middle = (found + above) >> 1
            open_ = live & (found < above)
            cdf = tl.load(cdf_ptr + middle, mask=open_, other=0.0).to(tl.float32) + pad * (middle + 1)
            right = open_ & (cdf <= target)
            above = tl.where(right, above, tl.minimum(above, middle))
            found = tl.where(right, middle + 1, found)
            width = width >> 1
        chosen = tl.minimum(found, last)
        weight = _clean(tl.load(weights_ptr + chosen, mask=live, other=0.0).to(tl.float32))
        below = tl.load(cdf_ptr + chosen - 1, mask=live & (chosen > 0), other=0.0).to(tl.float32) + pad * chosen
        step = tl.load(cdf_ptr + chosen, mask=live, other=0.0).to(tl.float32) + pad * (chosen + 1) - below
        fraction = clamp(tl.div_rn(target - below, tl.where(step > 0.0, step, 1.0)), 0.0, 1.0)
        # Rounding may leave a bin without weight a step of the CDF, or one with weight none.
        fraction = tl.where((step > 0.0) & (weight + pad > 0.0), fraction, 0.0)
        fraction = tl.where(found > last, 1.0, fraction)
        start = tl.load(edges_ptr + chosen, mask=live, other=0.0).to(tl.float32)
        stop = tl.load(edges_ptr + chosen + 1, mask=live, other=0.0).to(tl.float32)
        position = start + fraction * (stop - start)
        position = tl.where(position > stop, stop, position)
        tl.store(out_ptr + row * K + k, tl.where(target == target, position, target), mask=live)
        begin += BLOCK_K


@triton.jit
def _not_after(a, b):
    """a <= b with NaN as the largest number."""
    return (a <= b) | (b != b)


@triton.jit(do_not_specialize=["n", "S", "K"])
def merge_edges_forward_kernel(
    first_ptr,  # [n / (S + K), S]
    second_ptr,  # [n / (S + K), K]
    out_ptr,  # [n]
    n,
    S,
    K,
    BLOCK: tl.constexpr,
):
    """out_p is the next of its two rows after p edges: first_i if first_i <= second_{p-i}, else second_{p-i}.

    i, the number of edges among those p that come from `first`, is the smallest with first_i > second_{p-1-i}: a binary
    search (merge path). NaN is the largest number, and `first` goes first where both are equal.

    Grid (ceil(n / BLOCK),); a program owns BLOCK edges of all rays laid end to end and writes each once, whatever the
    order of the inputs. 4 B read and 4 B written an edge, besides 8 ceil(log2(min(S, K) + 1)) B from cache: bound by
    the latency of the search, a chain of dependent loads.
    """
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    here = begin + tl.arange(0, BLOCK)
    live = here < n
    row = begin // (S + K)
    along = (begin - row * (S + K)).to(tl.int32) + tl.arange(0, BLOCK)
    row = row + along // (S + K)
    p = along % (S + K)
    first_row = first_ptr + row * S
    second_row = second_ptr + row * K
    i = tl.maximum(p - K, 0)
    most = tl.minimum(p, S)
    width = tl.minimum(S, K)
    while width > 0:
        middle = (i + most) >> 1
        open_ = live & (i < most)
        a = tl.load(first_row + middle, mask=open_, other=0.0).to(tl.float32)
        b = tl.load(second_row + p - 1 - middle, mask=open_, other=0.0).to(tl.float32)
        taken = _not_after(a, b)
        i = tl.where(open_ & taken, middle + 1, i)
        most = tl.where(open_ & (taken == 0), middle, most)
        width = width >> 1
    j = p - i
    a = tl.load(first_row + i, mask=live & (i < S), other=0.0).to(tl.float32)
    b = tl.load(second_row + j, mask=live & (j < K), other=0.0).to(tl.float32)
    from_first = (j >= K) | ((i < S) & _not_after(a, b))
    tl.store(out_ptr + here, tl.where(from_first, a, b), mask=live)


@triton.jit(do_not_specialize=["n", "S", "K"])
def merge_edges_backward_kernel(
    grad_out_ptr,  # [n / S, S + K]
    own_ptr,  # [n / S, S]
    other_ptr,  # [n / S, K]
    grad_own_ptr,  # [n]
    n,
    S,
    K,
    FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad_own_i = grad_out at i + (number of the other row's edges that come before own_i), by binary search.

    FIRST: `own` is the first input, before which only smaller edges of the other come, and not equal ones.

    Grid (ceil(n / BLOCK),); a program owns BLOCK edges of one input, all rays laid end to end, and writes each of their
    gradients once: deterministic. 8 B read and 4 B written an edge, besides 4 ceil(log2(K + 1)) B from cache: bound by
    the latency of the search, a chain of dependent loads.
    """
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    here = begin + tl.arange(0, BLOCK)
    live = here < n
    row = begin // S
    along = (begin - row * S).to(tl.int32) + tl.arange(0, BLOCK)
    row = row + along // S
    own = tl.load(own_ptr + here, mask=live, other=0.0).to(tl.float32)
    before = tl.zeros([BLOCK], dtype=tl.int32)
    most = before + K
    width = K + tl.program_id(0) * 0
    while width > 0:
        middle = (before + most) >> 1
        open_ = live & (before < most)
        other = tl.load(other_ptr + row * K + middle, mask=open_, other=0.0).to(tl.float32)
        comes_before = _not_after(other, own)
        if FIRST:
            comes_before = _not_after(own, other) == 0
        before = tl.where(open_ & comes_before, middle + 1, before)
        most = tl.where(open_ & (comes_before == 0), middle, most)
        width = width >> 1
    g = tl.load(grad_out_ptr + row * (S + K) + along % S + before, mask=live, other=0.0).to(tl.float32)
    tl.store(grad_own_ptr + here, g, mask=live)
