"""Triton kernels of the SDF-to-density operators: elementwise over flat [n] float32 arrays.

A TO_<INPUT> flag says whether that input's gradient is wanted; without it the output pointer is not touched.
"""

import triton
import triton.language as tl

from ponder_kernels._constants import NEUS_ALPHA_EPS

_EPS = tl.constexpr(NEUS_ALPHA_EPS)


@triton.jit
def _sigmoid_pair(x):
    """sigmoid(x) and sigmoid(-x), both without overflow or cancellation."""
    small = tl.exp(-tl.abs(x))
    near = 1.0 / (1.0 + small)
    far = small * near
    return tl.where(x >= 0, near, far), tl.where(x >= 0, far, near)


@triton.jit
def _expm1(x):
    """exp(x) - 1; below |x| = 0.5, where the difference cancels, a Taylor series of degree 8 (error 1e-8)."""
    small = tl.where(tl.abs(x) < 0.5, x, 0.0)
    series = 1.0 + small * (1.0 / 7.0) * (1.0 + small * (1.0 / 8.0))
    series = 1.0 + small * (1.0 / 5.0) * (1.0 + small * (1.0 / 6.0) * series)
    series = 1.0 + small * (1.0 / 3.0) * (1.0 + small * (1.0 / 4.0) * series)
    series = small * (1.0 + small * 0.5 * series)
    return tl.where(tl.abs(x) < 0.5, series, tl.exp(x) - 1.0)


@triton.jit
def _neus_terms(sdf, cosine, delta, inv_s, ratio):
    """Slope m, half step m delta / 2, P, 1 - P, N, 1 - N and P - N; P and N as in reference.neus_alpha.

    P - N = P (1 - N) (1 - exp(inv_s m delta)) keeps its digits where the plain difference of two sigmoids
    near each other (free space, short intervals) loses them. A negative interval, which no sampler makes, takes the
    plain difference: there the exponential would overflow. `where` and not `maximum`, which drops NaN.
    """
    soft = tl.where(cosine > 1.0, 0.0, 0.5 - 0.5 * cosine)
    slope = -(soft * (1.0 - ratio) + tl.where(cosine > 0.0, 0.0, -cosine) * ratio)
    half_step = slope * delta * 0.5
    p, not_p = _sigmoid_pair((sdf - half_step) * inv_s)
    n, not_n = _sigmoid_pair((sdf + half_step) * inv_s)
    backwards = half_step > 0.0
    drop = tl.where(backwards, p - n, -p * not_n * _expm1(tl.where(backwards, 0.0, 2.0 * half_step * inv_s)))
    return slope, half_step, p, not_p, n, not_n, drop


@triton.jit(do_not_specialize=["n"])
def neus_alpha_forward_kernel(
    sdf_ptr,  # [n]
    cosine_ptr,  # [n]
    delta_ptr,  # [n]
    inv_s_ptr,  # [1]
    out_ptr,  # [n]
    n,
    cos_anneal_ratio,
    BLOCK: tl.constexpr,
):
    """alpha = clip((P - N + eps) / (P + eps), 0, 1); formula in reference.neus_alpha.

    Grid (ceil(n / BLOCK),); a program owns BLOCK samples and writes each alpha once. 12 B read and 4 B
    written, about 56 FLOPs per sample.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    sdf = tl.load(sdf_ptr + i, mask=live, other=0.0).to(tl.float32)
    cosine = tl.load(cosine_ptr + i, mask=live, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + i, mask=live, other=0.0).to(tl.float32)
    inv_s = tl.load(inv_s_ptr).to(tl.float32)
    _, _, p, _, _, _, drop = _neus_terms(sdf, cosine, delta, inv_s, cos_anneal_ratio)
    alpha = (drop + _EPS) / (p + _EPS)
    alpha = tl.where(alpha < 0.0, 0.0, alpha)
    tl.store(out_ptr + i, tl.where(alpha > 1.0, 1.0, alpha), mask=live)


@triton.jit(do_not_specialize=["n"])
def neus_alpha_backward_kernel(
    grad_out_ptr,  # [n]
    sdf_ptr,  # [n]
    cosine_ptr,  # [n]
    delta_ptr,  # [n]
    inv_s_ptr,  # [1]
    grad_sdf_ptr,  # [n]
    grad_cosine_ptr,  # [n]
    grad_delta_ptr,  # [n]
    partial_ptr,  # [programs]
    n,
    cos_anneal_ratio,
    TO_SDF: tl.constexpr,
    TO_COSINE: tl.constexpr,
    TO_DELTA: tl.constexpr,
    TO_INV_S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Derivatives of alpha = 1 - N / (P + eps), zero where the clip is active (its ends pass, as in torch).

    With F = 1 / (P + eps), q = g N F, A = -q (P - N + eps (1 - P) F), B = -q (1 - N + P (1 - P) F):
    grad_sdf = inv_s A;  grad_m = inv_s B delta / 2;  grad_delta = inv_s B m / 2;
    grad_cosine = grad_m dm/dcosine;  grad_inv_s = sum of A sdf + B m delta / 2.
    A is the sum of the derivatives by the two distances, written without their cancellation.

    Grid (ceil(n / BLOCK),); a program owns BLOCK samples, writes their three gradients and one partial sum of
    grad_inv_s, each once: deterministic. 16 B read and 12 B written, about 80 FLOPs per sample; the forward
    is recomputed.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    g = tl.load(grad_out_ptr + i, mask=live, other=0.0).to(tl.float32)
    sdf = tl.load(sdf_ptr + i, mask=live, other=0.0).to(tl.float32)
    cosine = tl.load(cosine_ptr + i, mask=live, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + i, mask=live, other=0.0).to(tl.float32)
    inv_s = tl.load(inv_s_ptr).to(tl.float32)
    terms = _neus_terms(sdf, cosine, delta, inv_s, cos_anneal_ratio)
    slope, half_step, p, not_p, after, not_after, drop = terms
    alpha = (drop + _EPS) / (p + _EPS)
    g = tl.where((alpha >= 0.0) & (alpha <= 1.0), g, 0.0)
    over = 1.0 / (p + _EPS)
    q = g * after * over
    along = -q * (drop + _EPS * not_p * over)
    across = -q * (not_after + p * not_p * over)
    if TO_SDF:
        tl.store(grad_sdf_ptr + i, inv_s * along, mask=live)
    if TO_COSINE:
        turn = tl.where(cosine < 1.0, 0.5 * (1.0 - cos_anneal_ratio), 0.0)
        turn += tl.where(cosine < 0.0, cos_anneal_ratio, 0.0)
        tl.store(grad_cosine_ptr + i, inv_s * across * delta * 0.5 * turn, mask=live)
    if TO_DELTA:
        tl.store(grad_delta_ptr + i, inv_s * across * slope * 0.5, mask=live)
    if TO_INV_S:
        weighted = sdf * along + half_step * across
        tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.where(live, weighted, 0.0), axis=0))


@triton.jit(do_not_specialize=["n"])
def laplace_density_forward_kernel(
    sdf_ptr,  # [n]
    beta_ptr,  # [1]
    out_ptr,  # [n]
    n,
    BLOCK: tl.constexpr,
):
    """density = e / (2 beta) outside, (1 - e / 2) / beta inside, e = exp(-|sdf| / beta).

    Grid (ceil(n / BLOCK),); a program owns BLOCK samples and writes each density once. 4 B read, 4 B written,
    about 7 FLOPs per sample.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    sdf = tl.load(sdf_ptr + i, mask=live, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr).to(tl.float32)
    half = 0.5 * tl.exp(-tl.abs(sdf) / beta)
    tl.store(out_ptr + i, tl.where(sdf >= 0.0, half, 1.0 - half) / beta, mask=live)


@triton.jit(do_not_specialize=["n"])
def laplace_density_backward_kernel(
    grad_out_ptr,  # [n]
    sdf_ptr,  # [n]
    beta_ptr,  # [1]
    grad_sdf_ptr,  # [n]
    partial_ptr,  # [programs]
    n,
    TO_SDF: tl.constexpr,
    TO_BETA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad_sdf = -g h / beta^2; grad_beta = sum of g h (x - 1) / beta^2 outside, g (h - h x - 1) / beta^2
    inside.

    x = |sdf| / beta, h = exp(-x) / 2.

    Grid (ceil(n / BLOCK),); a program owns BLOCK samples, writes their gradients and one partial sum of
    grad_beta, each once: deterministic. 8 B read, 4 B written, about 16 FLOPs per sample.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    g = tl.load(grad_out_ptr + i, mask=live, other=0.0).to(tl.float32)
    sdf = tl.load(sdf_ptr + i, mask=live, other=0.0).to(tl.float32)
    beta = tl.load(beta_ptr).to(tl.float32)
    x = tl.abs(sdf) / beta
    half = 0.5 * tl.exp(-x)
    g = g / (beta * beta)
    if TO_SDF:
        tl.store(grad_sdf_ptr + i, -g * half, mask=live)
    if TO_BETA:
        to_beta = g * tl.where(sdf >= 0.0, half * (x - 1.0), half - half * x - 1.0)
        tl.store(partial_ptr + tl.program_id(0), tl.sum(tl.where(live, to_beta, 0.0), axis=0))


@triton.jit(do_not_specialize=["n"])
def alpha_from_density_forward_kernel(
    density_ptr,  # [n]
    delta_ptr,  # [n]
    out_ptr,  # [n]
    n,
    BLOCK: tl.constexpr,
):
    """alpha = -expm1(-delta density).

    Grid (ceil(n / BLOCK),); a program owns BLOCK samples and writes each alpha once. 8 B read, 4 B written,
    about 20 FLOPs per sample.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    density = tl.load(density_ptr + i, mask=live, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + i, mask=live, other=0.0).to(tl.float32)
    tl.store(out_ptr + i, -_expm1(-delta * density), mask=live)


@triton.jit(do_not_specialize=["n"])
def alpha_from_density_backward_kernel(
    grad_out_ptr,  # [n]
    density_ptr,  # [n]
    delta_ptr,  # [n]
    grad_density_ptr,  # [n]
    grad_delta_ptr,  # [n]
    n,
    TO_DENSITY: tl.constexpr,
    TO_DELTA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad_density = g delta exp(-delta density); grad_delta = g density exp(-delta density).

    Grid (ceil(n / BLOCK),); a program owns BLOCK samples and writes their two gradients once. 12 B read, 8 B
    written, about 6 FLOPs per sample.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < n
    g = tl.load(grad_out_ptr + i, mask=live, other=0.0).to(tl.float32)
    density = tl.load(density_ptr + i, mask=live, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + i, mask=live, other=0.0).to(tl.float32)
    scaled = g * tl.exp(-delta * density)
    if TO_DENSITY:
        tl.store(grad_density_ptr + i, scaled * delta, mask=live)
    if TO_DELTA:
        tl.store(grad_delta_ptr + i, scaled * density, mask=live)
