"""Triton kernels of compositing: transmittance scans and weighted sums, with their derivatives.

Without PACKED a ray is a row of S samples and `offsets_ptr` is unused. With PACKED all rays lie one after the other in
S samples, ray r from offsets[r] to offsets[r + 1]. Rays have less than 2^31 samples. None of the sizes and strides is
specialised on: a new number of rays or samples compiles nothing.
"""

import triton
import triton.language as tl


@triton.jit
def _stretch(offsets_ptr, r, inside, S, PACKED: tl.constexpr):
    """First sample (int64) and number of samples (int32) of the rays r; none for a ray that is not `inside`."""
    if PACKED:
        # Clamped, so that no offset whatsoever leads out of the samples.
        first = tl.load(offsets_ptr + r, mask=inside, other=0).to(tl.int64)
        end = tl.load(offsets_ptr + r + 1, mask=inside, other=0).to(tl.int64)
        first = tl.minimum(tl.maximum(first, 0), S)
        length = (tl.minimum(tl.maximum(end, first), S) - first).to(tl.int32)
    else:
        first = r * S
        length = tl.where(inside, S, 0)
    return first, length


@triton.jit
def _chain(factor_a, offset_a, factor_b, offset_b):
    """Combine for a scan from the end: u -> offset + factor u, the later sample's map (a) applied first."""
    return factor_a * factor_b, offset_b + factor_b * offset_a


@triton.jit(do_not_specialize=["R", "S"])
def render_weights_forward_kernel(
    alpha_ptr,  # [R, S] or [S], contiguous
    offsets_ptr,  # [R + 1]
    weights_ptr,  # as alpha
    transmittance_ptr,  # as alpha
    R,
    S,
    eps,
    early_stop,
    PACKED: tl.constexpr,
    HAS_EARLY_STOP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """T_i = prod_{j<i} (1 - alpha_j + eps);  w_i = alpha_i T_i;  both 0 from the first T_i < early_stop on.

    Grid (ceil(R / BLOCK_R),); a program owns BLOCK_R whole rays and walks them front to back in blocks of BLOCK_S
    samples with the running product carried in registers; it leaves the walk when all its rays have ended, by length or
    by early_stop, and fills the rest with zeros. Each output is written once: deterministic. 4 B read (each alpha also
    a second time, from cache, as its right neighbour's factor; none behind the end of a ray), 8 B written, 4 FLOPs per
    sample: bound by bandwidth, or by the latency of the walk where there are few rays.
    """
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    first, length = _stretch(offsets_ptr, r, r < R, S, PACKED)
    carry = tl.full([BLOCK_R], 1.0, dtype=tl.float32)
    ended = tl.zeros([BLOCK_R], dtype=tl.int32)
    longest = tl.max(length, axis=0)
    limit = longest
    start = tl.program_id(0) * 0
    while start < limit:
        i = start + tl.arange(0, BLOCK_S)[None, :]
        here = first[:, None] + i
        owned = i < length[:, None]
        live = owned & (ended == 0)[:, None]
        alpha = tl.load(alpha_ptr + here, mask=live, other=0.0).to(tl.float32)
        # The scan runs over the factors shifted by one sample: an exclusive product without any division.
        has_previous = live & (i > 0)
        previous = tl.load(alpha_ptr + here - 1, mask=has_previous, other=0.0).to(tl.float32)
        factor = tl.where(has_previous, 1.0 - previous + eps, 1.0)
        product = carry[:, None] * tl.cumprod(factor, axis=1)
        weight = alpha * product
        last = tl.arange(0, BLOCK_S)[None, :] == BLOCK_S - 1
        carry = tl.sum(tl.where(last, product, 0.0), axis=1)
        if HAS_EARLY_STOP:
            below = (live & (product < early_stop)).to(tl.int32)
            over = (ended[:, None] + tl.cumsum(below, axis=1)) > 0
            product = tl.where(over, 0.0, product)
            weight = tl.where(over, 0.0, weight)
            ended = tl.maximum(ended, tl.max(below, axis=1))
            limit = tl.max(tl.where(ended == 0, length, 0), axis=0)
        tl.store(weights_ptr + here, weight, mask=owned)
        tl.store(transmittance_ptr + here, product, mask=owned)
        start += BLOCK_S
    if HAS_EARLY_STOP:
        nothing = tl.zeros([BLOCK_R, BLOCK_S], dtype=tl.float32)
        while start < longest:
            i = start + tl.arange(0, BLOCK_S)[None, :]
            here = first[:, None] + i
            owned = i < length[:, None]
            tl.store(weights_ptr + here, nothing, mask=owned)
            tl.store(transmittance_ptr + here, nothing, mask=owned)
            start += BLOCK_S


@triton.jit(do_not_specialize=["R", "S"])
def render_weights_backward_kernel(
    grad_weights_ptr,  # as alpha; unused without HAS_WEIGHTS
    grad_transmittance_ptr,  # as alpha; unused without HAS_TRANSMITTANCE
    alpha_ptr,  # [R, S] or [S], contiguous
    offsets_ptr,  # [R + 1]
    transmittance_ptr,  # as alpha
    grad_alpha_ptr,  # as alpha
    R,
    S,
    eps,
    PACKED: tl.constexpr,
    HAS_EARLY_STOP: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_TRANSMITTANCE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """grad_alpha_i = T_i (gw_i - U_i), with U = 0 at the last sample and U_{i-1} = gw_i alpha_i + gT_i + f_i U_i.

    f_i = 1 - alpha_i + eps as in the forward. U_i is what sits behind sample i, weighted by the transmittance
    from just after i: no division by f_i, exact for alpha = 0 and alpha = 1. With HAS_EARLY_STOP a ray ends before its
    first T_i = 0 (a T that counts is not below early_stop), and gradients are 0 from there on.

    Grid (ceil(R / BLOCK_R),); a program owns BLOCK_R whole rays and walks them back to front in blocks of
    BLOCK_S samples; U is a scan of affine maps, its front value carried to the next block. Each gradient is
    written once: deterministic. 12 or 16 B read (alpha and the upstream gradients a second time, from cache; only T
    behind an early end), 4 B written, about 8 FLOPs per sample: bound by bandwidth, or by the latency of the walk where
    there are few rays; the factors are recomputed.
    """
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    first, length = _stretch(offsets_ptr, r, r < R, S, PACKED)
    carry = tl.zeros([BLOCK_R], dtype=tl.float32)
    start = (tl.cdiv(tl.max(length, axis=0), BLOCK_S) - 1) * BLOCK_S
    while start >= 0:
        i = start + tl.arange(0, BLOCK_S)[None, :]
        here = first[:, None] + i
        owned = i < length[:, None]
        live = owned
        has_next = i + 1 < length[:, None]
        transmittance = tl.load(transmittance_ptr + here, mask=owned, other=0.0).to(tl.float32)
        if HAS_EARLY_STOP:
            behind_it = tl.load(transmittance_ptr + here + 1, mask=has_next, other=0.0).to(tl.float32)
            live = owned & (transmittance != 0.0)
            has_next = has_next & (behind_it != 0.0)
        alpha_next = tl.load(alpha_ptr + here + 1, mask=has_next, other=0.0).to(tl.float32)
        # Past the end of a ray the map is the identity, so that the carried value goes through unchanged.
        factor = tl.where(has_next, 1.0 - alpha_next + eps, 1.0)
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
        grad_alpha = transmittance * (grad - behind)
        if HAS_EARLY_STOP:
            grad_alpha = tl.where(live, grad_alpha, 0.0)
        tl.store(grad_alpha_ptr + here, grad_alpha, mask=owned)
        front = tl.arange(0, BLOCK_S)[None, :] == 0
        carry = tl.sum(tl.where(front, behind, 0.0), axis=1)
        start -= BLOCK_S


@triton.jit
def _sample_places(r, sample, i, stride_r, stride_s, C: tl.constexpr, PACKED: tl.constexpr, DENSE: tl.constexpr):
    """Where the values of samples begin: `sample` counts over all rays (int64), `i` along ray r."""
    if DENSE:
        # C is a constant: the compiler sees which rows start on 16 bytes, whatever R and S are.
        return sample * C
    if PACKED:
        return sample * stride_s
    return r * stride_r + i.to(tl.int64) * stride_s


@triton.jit(
    do_not_specialize=[
        "S",
        "stride_r",
        "stride_s",
        "stride_c",
        "background_stride_r",
        "background_stride_c",
    ]
)
def composite_forward_kernel(
    weights_ptr,  # [R, S] or [S], contiguous
    values_ptr,  # [R, S, C] or [S, C]; contiguous with DENSE, else of the strides given
    background_ptr,  # [R, C] any strides; unused without HAS_BACKGROUND
    offsets_ptr,  # [R + 1]
    out_ptr,  # [R, C] contiguous
    S,
    stride_r,
    stride_s,
    stride_c,
    background_stride_r,
    background_stride_c,
    C: tl.constexpr,
    PACKED: tl.constexpr,
    DENSE: tl.constexpr,
    HAS_BACKGROUND: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """out[r,c] = sum_i w[r,i] v[r,i,c] + background[r,c] (1 - sum_i w[r,i]).

    Grid (R, ceil(C / BLOCK_C)); a program owns one ray and BLOCK_C channels, walks the samples in blocks of
    BLOCK_S, and writes its channels once: deterministic. Reads 4 B per weight (per channel block) and every value once,
    writes 4 C B per ray; 2 S C FLOPs per ray: bound by the bandwidth of the values.
    """
    r = tl.program_id(0).to(tl.int64)
    first, length = _stretch(offsets_ptr, r, r >= 0, S, PACKED)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    step_c = 1 if DENSE else stride_c
    channel = values_ptr + c.to(tl.int64)[None, :] * step_c
    acc = tl.zeros([BLOCK_C], dtype=tl.float32)
    opacity = tl.zeros([BLOCK_S], dtype=tl.float32)
    start = tl.program_id(0) * 0
    while start < length:
        i = start + tl.arange(0, BLOCK_S)
        w = tl.load(weights_ptr + first + i, mask=i < length, other=0.0).to(tl.float32)
        mask = (i < length)[:, None] & (c < C)[None, :]
        place = _sample_places(r, first + i, i, stride_r, stride_s, C, PACKED, DENSE)
        v = tl.load(channel + place[:, None], mask=mask, other=0.0).to(tl.float32)
        acc += tl.sum(w[:, None] * v, axis=0)
        opacity += w
        start += BLOCK_S
    if HAS_BACKGROUND:
        place = background_ptr + r * background_stride_r + c.to(tl.int64) * background_stride_c
        background = tl.load(place, mask=c < C, other=0.0).to(tl.float32)
        acc += background * (1.0 - tl.sum(opacity, axis=0))
    tl.store(out_ptr + r * C + c, acc, mask=c < C)


@triton.jit(
    do_not_specialize=[
        "S",
        "stride_r",
        "stride_s",
        "stride_c",
        "background_stride_r",
        "background_stride_c",
    ]
)
def composite_backward_kernel(
    grad_out_ptr,  # [R, C] contiguous
    weights_ptr,  # [R, S] or [S], contiguous
    values_ptr,  # [R, S, C] or [S, C]; contiguous with DENSE, else of the strides given; unused without TO_WEIGHTS
    background_ptr,  # [R, C] any strides; unused without HAS_BACKGROUND
    offsets_ptr,  # [R + 1]
    grad_weights_ptr,  # as weights; unused without TO_WEIGHTS
    grad_values_ptr,  # [R, S, C] or [S, C], contiguous; unused without TO_VALUES
    S,
    stride_r,
    stride_s,
    stride_c,
    background_stride_r,
    background_stride_c,
    C: tl.constexpr,
    PACKED: tl.constexpr,
    DENSE: tl.constexpr,
    HAS_BACKGROUND: tl.constexpr,
    TO_WEIGHTS: tl.constexpr,
    TO_VALUES: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """grad_w[r,i] = sum_c g[r,c] (v[r,i,c] - background[r,c]);  grad_v[r,i,c] = g[r,c] w[r,i].

    Grid (R, P); the P programs of a ray take turns at its blocks of BLOCK_S samples with all their channels, and write
    both gradients once: deterministic. Reads and writes: cost.composite_backward_cost; up to 4 S C FLOPs per ray:
    bound by the bandwidth of the values and of their gradient.
    """
    r = tl.program_id(0).to(tl.int64)
    first, length = _stretch(offsets_ptr, r, r >= 0, S, PACKED)
    step_c = 1 if DENSE else stride_c
    start = tl.program_id(1) * BLOCK_S
    while start < length:
        i = start + tl.arange(0, BLOCK_S)
        live = i < length
        w = tl.load(weights_ptr + first + i, mask=live, other=0.0).to(tl.float32)
        place = _sample_places(r, first + i, i, stride_r, stride_s, C, PACKED, DENSE)
        to_weight = tl.zeros([BLOCK_S], dtype=tl.float32)
        for c0 in range(0, C, BLOCK_C):
            c = c0 + tl.arange(0, BLOCK_C)
            mask = live[:, None] & (c < C)[None, :]
            g = tl.load(grad_out_ptr + r * C + c, mask=c < C, other=0.0).to(tl.float32)
            if TO_WEIGHTS:
                channel = values_ptr + c.to(tl.int64)[None, :] * step_c
                v = tl.load(channel + place[:, None], mask=mask, other=0.0).to(tl.float32)
                if HAS_BACKGROUND:
                    behind = background_ptr + r * background_stride_r + c.to(tl.int64) * background_stride_c
                    v -= tl.load(behind, mask=c < C, other=0.0).to(tl.float32)[None, :]
                to_weight += tl.sum(g[None, :] * v, axis=1)
            if TO_VALUES:
                target = grad_values_ptr + (first + i)[:, None] * C + c[None, :]
                tl.store(target, w[:, None] * g[None, :], mask=mask)
        if TO_WEIGHTS:
            tl.store(grad_weights_ptr + first + i, to_weight, mask=live)
        start += BLOCK_S * tl.num_programs(1)
