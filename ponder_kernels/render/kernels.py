"""Triton kernels from distances along rays to weights and loss sums, and back.

Rays are rows of S samples; a tile is [BLOCK_R, BLOCK_S] and what belongs to a ray is [BLOCK_R, 1]. None of the sizes
and strides is specialised on: a new number of rays or samples compiles nothing. An input that may be absent has a flag
`has_*` (0 or 1) at run time: loads that it masks off move nothing, and one compiled form per opacity model serves every
combination. The same formulas in torch: `render.opacity` and `render.chunk`.
"""

import triton
import triton.language as tl

from ponder_kernels._constants import NEUS_ALPHA_EPS, TRANSMITTANCE_EPS
from ponder_kernels.sdf_density.kernels import _expm1, _neus_terms

_ALPHA_EPS = tl.constexpr(NEUS_ALPHA_EPS)
_FACTOR_EPS = tl.constexpr(TRANSMITTANCE_EPS)
# exp(-|s| / beta) / 2 is 0 in any precision beyond this distance; the bound keeps 0 * infinity out (as in `Volsdf`).
_FAR = tl.constexpr(800.0)
# Smallest normal float32 number: divisor of a gradient of length 0.
_TINY = tl.constexpr(2.0**-126)


@triton.jit
def _before(total_a, before_a, total_b, before_b):
    """Combine for a product over what lies before each sample; a sample brings (factor, 1)."""
    return total_a * total_b, total_a * before_b


@triton.jit
def _behind(factor_a, offset_a, past_factor_a, past_offset_a, factor_b, offset_b, past_factor_b, past_offset_b):
    """Combine for a scan of maps u -> offset + factor u from the end, the later sample's map (a) applied first.

    The second pair is the same chain without the map of the sample itself; a sample brings the identity (1, 0) for it.
    """
    past_offset = past_offset_b + past_factor_b * offset_a
    return factor_a * factor_b, offset_b + factor_b * offset_a, factor_a * past_factor_b, past_offset


@triton.jit
def _columns(first_ptr, place, mask):
    """Three neighbouring numbers as float32, 0 where masked off."""
    x = tl.load(first_ptr + place, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(first_ptr + place + 1, mask=mask, other=0.0).to(tl.float32)
    z = tl.load(first_ptr + place + 2, mask=mask, other=0.0).to(tl.float32)
    return x, y, z


@triton.jit
def _rays(hit_ptr, ray_depth_ptr, slope_ptr, r, R, has_hit):
    """Measured depth and slope; whether the ray hits the box, and whether its depth was measured."""
    inside = r < R
    hit = tl.load(hit_ptr + r, mask=r < R * has_hit, other=1.0).to(tl.float32) != 0.0
    ray_depth = tl.load(ray_depth_ptr + r, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(slope_ptr + r, mask=inside, other=0.0).to(tl.float32)
    return ray_depth, slope, hit, hit & (ray_depth > 0.0)


@triton.jit
def _bins(edges_ptr, r, i, S, owned, middle):
    """Position of the samples along their rays, and lengths of their bins."""
    place = edges_ptr + r * (S + 1) + i
    start = tl.load(place, mask=owned, other=0.0).to(tl.float32)
    end = tl.load(place + 1, mask=owned, other=0.0).to(tl.float32)
    return start * (1.0 - middle) + end * middle, end - start


@triton.jit
def _targets(position, ray_depth, slope, measured, truncation):
    """SDF target; samples in front of the band and in it (formula in samples.sample_targets)."""
    goal = (ray_depth - position) * slope
    return goal, measured & (goal > truncation), measured & (tl.abs(goal) <= truncation)


@triton.jit
def _neus(sdf, cosine, delta, inv_s, ratio):
    """alpha, f = 1 - alpha + eps, and the derivatives of alpha by sdf, cosine and inv_s.

    The latter as in neus_alpha_backward_kernel, with 1 - alpha = N F written out: near 1 it keeps its digits.
    """
    _, half_step, p, not_p, n, not_n, drop = _neus_terms(sdf, cosine, delta, inv_s, ratio)
    over = 1.0 / (p + _ALPHA_EPS)
    left = n * over
    along = -left * (drop + _ALPHA_EPS * not_p * over)
    across = -left * (not_n + p * not_p * over)
    turn = tl.where(cosine < 1.0, 0.5 * (1.0 - ratio), 0.0) + tl.where(cosine < 0.0, ratio, 0.0)
    by_cosine = inv_s * across * delta * 0.5 * turn
    return (drop + _ALPHA_EPS) * over, left + _FACTOR_EPS, inv_s * along, by_cosine, sdf * along + half_step * across


@triton.jit
def _volsdf(sdf, delta, beta):
    """alpha, f = 1 - alpha, and the derivatives of alpha by sdf and beta; formula in opacity.Volsdf."""
    distance = tl.minimum(tl.abs(sdf) / beta, _FAR)
    half = 0.5 * tl.exp(-distance)
    depth = delta * tl.where(sdf >= 0.0, half, 1.0 - half) / beta
    factor = tl.exp(-depth)
    by_density = factor * delta / (beta * beta)
    by_beta = tl.where(sdf >= 0.0, half * (distance - 1.0), half - half * distance - 1.0)
    return -_expm1(-depth), factor, -by_density * half, by_density * by_beta


@triton.jit
def _opacity(sdf, cosine, delta, hit, sharpness, ratio, NEUS: tl.constexpr):
    """alpha, f of T_{i+1} = f T_i, derivatives of alpha by sdf, cosine and sharpness; a ray that misses has alpha 0."""
    if NEUS:
        alpha, factor, by_sdf, by_cosine, by_sharpness = _neus(sdf, cosine, delta, sharpness, ratio)
        clear = 1.0 + _FACTOR_EPS
    else:
        alpha, factor, by_sdf, by_sharpness = _volsdf(sdf, delta, sharpness)
        by_cosine = tl.zeros_like(sdf)
        clear = 1.0
    return tl.where(hit, alpha, 0.0), tl.where(hit, factor, clear), by_sdf, by_cosine, by_sharpness


@triton.jit
def _length_and_unit_backward(gx, gy, gz, nx, ny, nz, weight, eikonal_bar, normal_floor):
    """Derivative by g of eikonal_bar (|g| - 1)^2 + weight n . g / max(|g|, normal_floor), three components."""
    length = tl.sqrt(gx * gx + gy * gy + gz * gz)
    per_norm = 1.0 / tl.maximum(length, normal_floor)
    ux, uy, uz = gx * per_norm, gy * per_norm, gz * per_norm
    # Below the floor the norm is a constant, and nothing is lost along g.
    radial = tl.where(length > normal_floor, ux * nx + uy * ny + uz * nz, 0.0)
    pull = weight * per_norm
    # 1 / |g| times g first: with the other factors it may overflow where g is 0.
    per_length = 1.0 / tl.maximum(length, _TINY)
    stretch = 2.0 * eikonal_bar * (length - 1.0)
    x = pull * (nx - radial * ux) + stretch * (gx * per_length)
    y = pull * (ny - radial * uy) + stretch * (gy * per_length)
    z = pull * (nz - radial * uz) + stretch * (gz * per_length)
    return x, y, z


@triton.jit(do_not_specialize=["R", "S", "has_hit"])
def opacity_forward_kernel(
    sdf_ptr,  # [R, S]
    gradient_ptr,  # [R, S, 3]
    directions_ptr,  # [R, 3]
    edges_ptr,  # [R, S + 1]
    hit_ptr,  # [R], 0 or 1; unused without has_hit
    ray_depth_ptr,  # [R]
    slope_ptr,  # [R]
    sharpness_ptr,  # []
    weights_ptr,  # [R, S]
    transmittance_ptr,  # [R, S]
    losses_ptr,  # [R, 3]
    R,
    S,
    has_hit,
    ratio,
    truncation,
    middle,
    NEUS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """w_i = alpha_i T_i, T_i = prod_{j<i} f_j; sums of (|g| - 1)^2, relu(truncation - sdf) and |sdf - target| per ray.

    The eikonal sum runs over the samples of rays that hit, the others over those in front of the band and in it.
    `middle` is where a bin is sampled: 0.5 in its middle, 0 at its start.

    Grid (ceil(R / BLOCK_R),); a program owns BLOCK_R whole rays and walks them front to back in blocks of BLOCK_S
    samples with T carried in registers. Each output is written once: deterministic. 20 B read (the far edge of a bin
    again, from cache) and 8 B written, about 100 FLOPs per sample; 24 B read (28 with hit) and 12 B written per ray:
    bound by bandwidth, or by the latency of the walk where there are few rays.
    """
    r = (tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    inside = r < R
    sharpness = tl.load(sharpness_ptr).to(tl.float32)
    ray_depth, slope, hit, measured = _rays(hit_ptr, ray_depth_ptr, slope_ptr, r, R, has_hit)
    dx, dy, dz = _columns(directions_ptr, r * 3, inside)
    carry = tl.full([BLOCK_R], 1.0, dtype=tl.float32)
    eikonal = tl.zeros([BLOCK_R, BLOCK_S], dtype=tl.float32)
    free_space = tl.zeros([BLOCK_R, BLOCK_S], dtype=tl.float32)
    on_surface = tl.zeros([BLOCK_R, BLOCK_S], dtype=tl.float32)
    one = tl.full([BLOCK_R, BLOCK_S], 1.0, dtype=tl.float32)
    last = tl.arange(0, BLOCK_S)[None, :] == BLOCK_S - 1
    start = tl.program_id(0) * 0
    while start < S:
        i = start + tl.arange(0, BLOCK_S)[None, :]
        here, owned = r * S + i, inside & (i < S)
        sdf = tl.load(sdf_ptr + here, mask=owned, other=0.0).to(tl.float32)
        gx, gy, gz = _columns(gradient_ptr, here * 3, owned)
        position, delta = _bins(edges_ptr, r, i, S, owned, middle)
        cosine = gx * dx + gy * dy + gz * dz
        alpha, factor, _, _, _ = _opacity(sdf, cosine, delta, hit, sharpness, ratio, NEUS)
        through, ahead = tl.associative_scan((factor, one), 1, _before)
        transmittance = carry[:, None] * ahead
        carry *= tl.sum(tl.where(last, through, 0.0), axis=1)
        tl.store(weights_ptr + here, alpha * transmittance, mask=owned)
        tl.store(transmittance_ptr + here, transmittance, mask=owned)
        stretch = tl.sqrt(gx * gx + gy * gy + gz * gz) - 1.0
        eikonal += tl.where(owned & hit, stretch * stretch, 0.0)
        goal, front, band = _targets(position, ray_depth, slope, measured & owned, truncation)
        free_space += tl.where(front & (sdf < truncation), truncation - sdf, 0.0)
        on_surface += tl.where(band, tl.abs(sdf - goal), 0.0)
        start += BLOCK_S
    row = losses_ptr + r * 3
    tl.store(row, tl.sum(eikonal, axis=1)[:, None], mask=inside)
    tl.store(row + 1, tl.sum(free_space, axis=1)[:, None], mask=inside)
    tl.store(row + 2, tl.sum(on_surface, axis=1)[:, None], mask=inside)


@triton.jit(
    do_not_specialize=[
        "R",
        "S",
        "normal_stride",
        "by_stride",
        "has_hit",
        "has_normal",
        "has_by",
        "has_sdf",
        "has_gradient",
    ]
)
def opacity_backward_kernel(
    sdf_ptr,  # [R, S]
    gradient_ptr,  # [R, S, 3]
    directions_ptr,  # [R, 3]
    edges_ptr,  # [R, S + 1]
    hit_ptr,  # [R], 0 or 1; unused without has_hit
    ray_depth_ptr,  # [R]
    slope_ptr,  # [R]
    sharpness_ptr,  # []
    transmittance_ptr,  # [R, S]
    grad_weights_ptr,  # [R, S]
    grad_losses_ptr,  # [3]
    grad_normal_ptr,  # [R, 3], rows of the stride given; unused without has_normal
    by_ptr,  # [R * S, 3], rows of the stride given; unused without has_by
    grad_sdf_ptr,  # [R, S]; unused without has_sdf
    grad_gradient_ptr,  # [R, S, 3]; unused without has_gradient
    sdf_bar_ptr,  # [R, S]
    gradient_bar_ptr,  # [R, S, 3]
    partial_ptr,  # [programs]
    R,
    S,
    normal_stride,
    by_stride,
    has_hit,
    has_normal,
    has_by,
    has_sdf,
    has_gradient,
    ratio,
    truncation,
    middle,
    normal_floor,
    NEUS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Derivatives by sdf, gradient and sharpness, given those by weights, loss sums and sums of weighted unit normals.

    alpha_bar_i = T_i (gw_i - U_i), with U = 0 at the last sample and U_{i-1} = gw_i alpha_i + f_i U_i: no division by
    f_i, exact for alpha = 0 and alpha = 1. What already was collected by sdf and gradient (`by`, `grad_*`) is added.

    Grid (ceil(R / BLOCK_R),); a program owns BLOCK_R whole rays and walks them back to front in blocks of BLOCK_S
    samples; U is a scan of affine maps, its front value carried to the next block. alpha, f and the weights are
    recomputed. Each gradient is written once, as is one partial sum of the sharpness' per program: deterministic. 28 B
    read, up to 28 B more with everything optional, and 16 B written, about 180 FLOPs per sample; up to 40 B read per
    ray: bound by bandwidth, or by the latency of the walk where there are few rays.
    """
    r = (tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    inside = r < R
    sharpness = tl.load(sharpness_ptr).to(tl.float32)
    eikonal_bar = tl.load(grad_losses_ptr).to(tl.float32)
    free_bar = tl.load(grad_losses_ptr + 1).to(tl.float32)
    band_bar = tl.load(grad_losses_ptr + 2).to(tl.float32)
    ray_depth, slope, hit, measured = _rays(hit_ptr, ray_depth_ptr, slope_ptr, r, R, has_hit)
    dx, dy, dz = _columns(directions_ptr, r * 3, inside)
    nx, ny, nz = _columns(grad_normal_ptr, r * normal_stride, r < R * has_normal)
    carry = tl.zeros([BLOCK_R], dtype=tl.float32)
    to_sharpness = tl.zeros([BLOCK_R, BLOCK_S], dtype=tl.float32)
    one = tl.full([BLOCK_R, BLOCK_S], 1.0, dtype=tl.float32)
    zero = tl.zeros([BLOCK_R, BLOCK_S], dtype=tl.float32)
    nearest = tl.arange(0, BLOCK_S)[None, :] == 0
    start = (tl.cdiv(S, BLOCK_S) - 1) * BLOCK_S
    while start >= 0:
        i = start + tl.arange(0, BLOCK_S)[None, :]
        here, owned = r * S + i, inside & (i < S)
        sdf = tl.load(sdf_ptr + here, mask=owned, other=0.0).to(tl.float32)
        gx, gy, gz = _columns(gradient_ptr, here * 3, owned)
        position, delta = _bins(edges_ptr, r, i, S, owned, middle)
        cosine = gx * dx + gy * dy + gz * dz
        alpha, factor, by_sdf, by_cosine, by_sharpness = _opacity(sdf, cosine, delta, hit, sharpness, ratio, NEUS)

        # Past the end of a ray the map takes 0 to 0: nothing lies behind.
        grad = tl.load(grad_weights_ptr + here, mask=owned, other=0.0).to(tl.float32)
        maps = (factor, grad * alpha, one, zero)
        chain, total, past_chain, past_total = tl.associative_scan(maps, 1, _behind, reverse=True)
        behind = past_total + past_chain * carry[:, None]
        carry = tl.sum(tl.where(nearest, total + chain * carry[:, None], 0.0), axis=1)
        transmittance = tl.load(transmittance_ptr + here, mask=owned, other=0.0).to(tl.float32)
        alpha_bar = tl.where(owned & hit, transmittance * (grad - behind), 0.0)
        to_sharpness += alpha_bar * by_sharpness

        goal, front, band = _targets(position, ray_depth, slope, measured & owned, truncation)
        sdf_bar = tl.load(grad_sdf_ptr + here, mask=owned & (r < R * has_sdf), other=0.0).to(tl.float32)
        sdf_bar += alpha_bar * by_sdf - tl.where(front & (sdf < truncation), free_bar, 0.0)
        sdf_bar += tl.where(band & (sdf > goal), band_bar, 0.0) - tl.where(band & (sdf < goal), band_bar, 0.0)
        tl.store(sdf_bar_ptr + here, sdf_bar, mask=owned)

        stretch = tl.where(owned & hit, eikonal_bar, 0.0)
        ux, uy, uz = _length_and_unit_backward(gx, gy, gz, nx, ny, nz, alpha * transmittance, stretch, normal_floor)
        cosine_bar = alpha_bar * by_cosine
        x, y, z = _columns(by_ptr, here * by_stride, owned & (r < R * has_by))
        ex, ey, ez = _columns(grad_gradient_ptr, here * 3, owned & (r < R * has_gradient))
        place = gradient_bar_ptr + here * 3
        tl.store(place, x + ex + ux + cosine_bar * dx, mask=owned)
        tl.store(place + 1, y + ey + uy + cosine_bar * dy, mask=owned)
        tl.store(place + 2, z + ez + uz + cosine_bar * dz, mask=owned)
        start -= BLOCK_S
    tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.sum(to_sharpness, axis=1), axis=0))
