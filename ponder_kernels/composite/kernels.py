"""Triton kernels of compositing: transmittance scans and weighted sums, with their derivatives."""

import triton
import triton.language as tl

from ponder_kernels._constants import TRANSMITTANCE_EPS

_EPS = tl.constexpr(TRANSMITTANCE_EPS)


@triton.jit
def _chain(factor_a, offset_a, factor_b, offset_b):
    """Combine for a scan from the end: u -> offset + factor u, the later sample's map (a) applied first."""
    return factor_a * factor_b, offset_b + factor_b * offset_a


@triton.jit(do_not_specialize=["R", "S"])
def render_weights_forward_kernel(
    alpha_ptr,  # [R, S] contiguous
    weights_ptr,  # [R, S] contiguous
    transmittance_ptr,  # [R, S] contiguous
    R,
    S,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """T_i = prod_{j<i} (1 - alpha_j + eps);  w_i = alpha_i T_i.

    Grid (ceil(R / BLOCK_R),); a program owns BLOCK_R whole rays and walks them front to back in blocks of
    BLOCK_S samples with the running product carried in registers; each output is written once. 4 B read (each
    alpha also a second time, from cache, as its right neighbour's factor), 8 B written, 4 FLOPs per sample.
    """
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = r.to(tl.int64)[:, None] * S
    inside_rays = (r < R)[:, None]
    carry = tl.full([BLOCK_R], 1.0, dtype=tl.float32)
    start = tl.program_id(0) * 0
    while start < S:
        i = start + tl.arange(0, BLOCK_S)
        live = inside_rays & (i < S)[None, :]
        alpha = tl.load(alpha_ptr + row + i[None, :], mask=live, other=0.0).to(tl.float32)
        # The scan runs over the factors shifted by one sample: an exclusive product without any division.
        has_previous = live & (i > 0)[None, :]
        previous = tl.load(alpha_ptr + row + i[None, :] - 1, mask=has_previous, other=0.0).to(tl.float32)
        factor = tl.where(has_previous, 1.0 - previous + _EPS, 1.0)
        product = carry[:, None] * tl.cumprod(factor, axis=1)
        tl.store(weights_ptr + row + i[None, :], alpha * product, mask=live)
        tl.store(transmittance_ptr + row + i[None, :], product, mask=live)
        last = (tl.arange(0, BLOCK_S) == BLOCK_S - 1)[None, :]
        carry = tl.sum(tl.where(last, product, 0.0), axis=1)
        start += BLOCK_S


@triton.jit(do_not_specialize=["R", "S"])
def render_weights_backward_kernel(
    grad_weights_ptr,  # [R, S] contiguous; unused without HAS_WEIGHTS
    grad_transmittance_ptr,  # [R, S] contiguous; unused without HAS_TRANSMITTANCE
    alpha_ptr,  # [R, S] contiguous
    transmittance_ptr,  # [R, S] contiguous
    grad_alpha_ptr,  # [R, S] contiguous
    R,
    S,
    HAS_WEIGHTS: tl.constexpr,
    HAS_TRANSMITTANCE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """grad_alpha_i = T_i (gw_i - U_i), with U_{S-1} = 0 and U_{i-1} = gw_i alpha_i + gT_i + f_i U_i.

    f_i = 1 - alpha_i + eps as in the forward. U_i is what sits behind sample i, weighted by the transmittance
    from just after i: no division by f_i, exact for alpha = 0 and alpha = 1.

    Grid (ceil(R / BLOCK_R),); a program owns BLOCK_R whole rays and walks them back to front in blocks of
    BLOCK_S samples; U is a scan of affine maps, its front value carried to the next block. Each gradient is
    written once: deterministic. 12 or 16 B read (alpha and the upstream gradients a second time, from cache),
    4 B written, about 8 FLOPs per sample; the factors are recomputed.
    """
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    row = r.to(tl.int64)[:, None] * S
    inside_rays = (r < R)[:, None]
    carry = tl.zeros([BLOCK_R], dtype=tl.float32)
    start = (tl.cdiv(S, BLOCK_S) - 1) * BLOCK_S
    while start >= 0:
        i = start + tl.arange(0, BLOCK_S)
        here = row + i[None, :]
        live = inside_rays & (i < S)[None, :]
        has_next = inside_rays & (i + 1 < S)[None, :]
        alpha_next = tl.load(alpha_ptr + here + 1, mask=has_next, other=0.0).to(tl.float32)
        # Past the end of a ray the map is the identity, so that the carried value goes through unchanged.
        factor = tl.where(has_next, 1.0 - alpha_next + _EPS, 1.0)
        offset = tl.zeros([BLOCK_R, BLOCK_S], dtype=tl.float32)
        grad = tl.zeros([BLOCK_R, BLOCK_S], dtype=tl.float32)
        if HAS_WEIGHTS:
            grad = tl.load(grad_weights_ptr + here, mask=live, other=0.0).to(tl.float32)
            following = tl.load(grad_weights_ptr + here + 1, mask=has_next, other=0.0).to(tl.float32)
            offset += following * alpha_next
        if HAS_TRANSMITTANCE:
            offset += tl.load(grad_transmittance_ptr + here + 1, mask=has_next, other=0.0).to(tl.float32)
        product, total = tl.associative_scan((factor, offset), 1, _chain, reverse=True)
        behind = total + product * carry[:, None]
        transmittance = tl.load(transmittance_ptr + here, mask=live, other=0.0).to(tl.float32)
        tl.store(grad_alpha_ptr + here, transmittance * (grad - behind), mask=live)
        first = (tl.arange(0, BLOCK_S) == 0)[None, :]
        carry = tl.sum(tl.where(first, behind, 0.0), axis=1)
        start -= BLOCK_S


@triton.jit(do_not_specialize=["S"])
def composite_forward_kernel(
    weights_ptr,  # [R, S] contiguous
    values_ptr,  # [R, S, C] any strides
    background_ptr,  # [R, C] any strides; unused without HAS_BACKGROUND
    out_ptr,  # [R, C] contiguous
    S,
    stride_r,
    stride_s,
    stride_c,
    background_stride_r,
    background_stride_c,
    C: tl.constexpr,
    HAS_BACKGROUND: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[r,c] = sum_i w[r,i] v[r,i,c] + background[r,c] (1 - sum_i w[r,i]).

    Grid (R, ceil(C / BLOCK_C)); a program owns one ray and BLOCK_C channels, walks the samples in blocks of
    BLOCK_S, and writes its channels once. Reads 4 B per weight (per channel block) and every value once,
    writes 4 C B per ray; 2 S C FLOPs per ray.
    """
    r = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel = values_ptr + r * stride_r + c.to(tl.int64)[None, :] * stride_c
    acc = tl.zeros([BLOCK_C], dtype=tl.float32)
    opacity = tl.zeros([BLOCK_S], dtype=tl.float32)
    start = tl.program_id(0) * 0
    while start < S:
        i = start + tl.arange(0, BLOCK_S)
        w = tl.load(weights_ptr + r * S + i, mask=i < S, other=0.0).to(tl.float32)
        mask = (i < S)[:, None] & (c < C)[None, :]
        v = tl.load(channel + i.to(tl.int64)[:, None] * stride_s, mask=mask, other=0.0).to(tl.float32)
        acc += tl.sum(w[:, None] * v, axis=0)
        opacity += w
        start += BLOCK_S
    if HAS_BACKGROUND:
        place = background_ptr + r * background_stride_r + c.to(tl.int64) * background_stride_c
        background = tl.load(place, mask=c < C, other=0.0).to(tl.float32)
        acc += background * (1.0 - tl.sum(opacity, axis=0))
    tl.store(out_ptr + r * C + c, acc, mask=c < C)


@triton.jit(do_not_specialize=["S"])
def composite_backward_kernel(
    grad_out_ptr,  # [R, C] contiguous
    weights_ptr,  # [R, S] contiguous
    values_ptr,  # [R, S, C] any strides; unused without TO_WEIGHTS
    background_ptr,  # [R, C] any strides; unused without HAS_BACKGROUND
    grad_weights_ptr,  # [R, S] contiguous; unused without TO_WEIGHTS
    grad_values_ptr,  # [R, S, C] contiguous; unused without TO_VALUES
    S,
    stride_r,
    stride_s,
    stride_c,
    background_stride_r,
    background_stride_c,
    C: tl.constexpr,
    HAS_BACKGROUND: tl.constexpr,
    TO_WEIGHTS: tl.constexpr,
    TO_VALUES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad_w[r,i] = sum_c g[r,c] (v[r,i,c] - background[r,c]);  grad_v[r,i,c] = g[r,c] w[r,i].

    Grid (R, ceil(S / BLOCK_S)); a program owns BLOCK_S samples of one ray with all their channels, and writes
    both gradients once: deterministic. Reads and writes: cost.composite_backward_cost; up to 4 S C FLOPs per
    ray.
    """
    r = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK_S + tl.arange(0, BLOCK_S)
    live = i < S
    w = tl.load(weights_ptr + r * S + i, mask=live, other=0.0).to(tl.float32)
    to_weight = tl.zeros([BLOCK_S], dtype=tl.float32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        mask = live[:, None] & (c < C)[None, :]
        g = tl.load(grad_out_ptr + r * C + c, mask=c < C, other=0.0).to(tl.float32)
        if TO_WEIGHTS:
            place = r * stride_r + i.to(tl.int64)[:, None] * stride_s + c.to(tl.int64)[None, :] * stride_c
            v = tl.load(values_ptr + place, mask=mask, other=0.0).to(tl.float32)
            if HAS_BACKGROUND:
                place = r * background_stride_r + c.to(tl.int64) * background_stride_c
                v -= tl.load(background_ptr + place, mask=c < C, other=0.0).to(tl.float32)[None, :]
            to_weight += tl.sum(g[None, :] * v, axis=1)
        if TO_VALUES:
            target = grad_values_ptr + (r * S + i)[:, None] * C + c[None, :]
            tl.store(target, w[:, None] * g[None, :], mask=mask)
    if TO_WEIGHTS:
        tl.store(grad_weights_ptr + r * S + i, to_weight, mask=live)
