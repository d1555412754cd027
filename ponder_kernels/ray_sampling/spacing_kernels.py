"""Triton functions of the spacings of stratified edges: s(t), its inverse and its slope."""

import triton
import triton.language as tl

from ponder_kernels.ray_sampling.reference import SPACINGS

_UNIFORM = tl.constexpr(SPACINGS.index("uniform"))
_DISPARITY = tl.constexpr(SPACINGS.index("disparity"))
_SQRT = tl.constexpr(SPACINGS.index("sqrt"))
_LOG = tl.constexpr(SPACINGS.index("log"))
_PIECEWISE = tl.constexpr(SPACINGS.index("piecewise"))
_LOG2_E = tl.constexpr(1.4426950408889634)
# ln 2 in two parts: the first has few digits, so that its product with a small integer is exact.
_LN_2_HIGH = tl.constexpr(0.693359375)
_LN_2_LOW = tl.constexpr(-2.12194440e-4)


@triton.jit
def clamp(x, low, high):
    """x in [low, high]; NaN stays NaN (`tl.minimum` and `tl.maximum` drop it)."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def _exp(x):
    """exp(x) whose rounding never breaks the order: 2^k p(x - k ln 2), p a series of positive terms, at most 2.

    Sums and products of numbers that are not negative and do not fall round to numbers that do not fall; the hardware's
    exponential promises no such thing. Returned as two factors, for k may be out of float32's range.
    """
    k = tl.floor(x * _LOG2_E)
    rest = (x - k * _LN_2_HIGH) - k * _LN_2_LOW
    rest = tl.where(rest < 0.0, 0.0, rest)
    p = 1.0 + rest * (1.0 / 9.0) * (1.0 + rest * (1.0 / 10.0))
    p = 1.0 + rest * (1.0 / 7.0) * (1.0 + rest * (1.0 / 8.0) * p)
    p = 1.0 + rest * (1.0 / 5.0) * (1.0 + rest * (1.0 / 6.0) * p)
    p = 1.0 + rest * (1.0 / 3.0) * (1.0 + rest * (1.0 / 4.0) * p)
    p = 1.0 + rest * (1.0 + rest * 0.5 * p)
    p = tl.where(p > 2.0, 2.0, p)
    k = clamp(tl.where(x == x, k, 0.0), -252.0, 252.0).to(tl.int32)
    half = k >> 1
    scale = ((half + 127) << 23).to(tl.float32, bitcast=True)
    rest_of_scale = ((k - half + 127) << 23).to(tl.float32, bitcast=True)
    return p * scale, rest_of_scale


@triton.jit
def _end_to_s(t, SPACING: tl.constexpr):
    """s(t) as in reference._to_s (negated disparity; piecewise less 1); "log" relative to near is left to `place`."""
    if SPACING == _DISPARITY:
        return -1.0 / t
    elif SPACING == _SQRT:
        return tl.sqrt(t)
    elif SPACING == _LOG:
        return tl.log(t)
    elif SPACING == _PIECEWISE:
        return tl.where(t < 1.0, 0.5 * t - 1.0, -0.5 / tl.where(t < 1.0, 1.0, t))
    else:
        return t


@triton.jit
def place(near, far, noise, k, S, SPACING: tl.constexpr, HAS_JITTER: tl.constexpr):
    """Distance of edge k, its weights (1 - u) and u, and whether s is linear on the ray or has no value there.

    `near`, `far` and `k` broadcast; `noise` has the shape of the edges. Every step from u to the distance is monotone
    in floating point, see reference.stratified_edges_reference.
    """
    position = k.to(tl.float32)
    bins = S.to(tl.float32)
    inverse = 1.0 / bins
    if HAS_JITTER:
        lowest = tl.where(k == 0, 0.0, position - 0.5)
        width = tl.where((k == 0) | (k == S), 0.5, 1.0)
        position = lowest + width * clamp(noise, 0.0, 1.0)
    u = position * inverse
    v = (bins - position) * inverse
    low = tl.where(far < near, far, near)
    high = tl.where(far < near, near, far)
    linear = near == far
    outside = near < near
    if SPACING == _PIECEWISE:
        linear = linear | (high < 1.0)
    if (SPACING == _DISPARITY) | (SPACING == _LOG):
        outside = ((near <= 0.0) | (far <= 0.0)) & (near != far)
    if SPACING == _SQRT:
        outside = (near < 0.0) | (far < 0.0)
    if SPACING == _UNIFORM:
        start = near
        stop = far
    else:
        plain = linear | outside
        start = tl.where(linear, near, _end_to_s(tl.where(plain, 1.0, near), SPACING))
        stop = tl.where(linear, far, _end_to_s(tl.where(plain, 1.0, far), SPACING))
    if SPACING == _LOG:
        # Relative to near: exp gets no large numbers, whose rounding it would multiply.
        stop = tl.where(linear, stop, stop - start)
        start = tl.where(linear, start, 0.0)
    length = stop - start
    first = 2.0 * position <= bins
    s = tl.where(first, start + u * length, stop - v * length)
    middle = start + 0.5 * length
    across = tl.where(first == (length >= 0.0), s > middle, s < middle)
    s = tl.where(across, middle, s)
    if SPACING == _DISPARITY:
        t = tl.where(linear, s, tl.div_rn(-1.0, tl.where(linear, -1.0, s)))
    elif SPACING == _SQRT:
        t = tl.where(linear, s, s * s)
    elif SPACING == _LOG:
        factor, scale = _exp(tl.where(linear, 0.0, s))
        t = tl.where(linear, s, near * factor * scale)
    elif SPACING == _PIECEWISE:
        t = tl.where(s < -0.5, 2.0 * (s + 1.0), tl.div_rn(-0.5, tl.where(linear | (s < -0.5), -0.5, s)))
        t = tl.where(linear, s, t)
    else:
        t = s
    t = clamp(t, low, high)
    if not HAS_JITTER:
        t = tl.where(k == 0, near, tl.where(k == S, far, t))
    t = tl.where(outside, float("nan"), t)
    return t, v, u, linear, outside


@triton.jit
def slope(weight, t, end, SPACING: tl.constexpr):
    """weight s'(end) / s'(t): what a distance moves by when that end of its ray does."""
    if SPACING == _DISPARITY:
        ratio = t / end
        return weight * ratio * ratio
    elif SPACING == _SQRT:
        return tl.where(end == 0.0, 0.0, weight * (tl.sqrt(t) / tl.sqrt(tl.where(end == 0.0, 1.0, end))))
    elif SPACING == _LOG:
        return weight * t / end
    elif SPACING == _PIECEWISE:
        ratio = tl.where(t < 1.0, 1.0, t) / tl.where(end < 1.0, 1.0, end)
        return weight * ratio * ratio
    else:
        return tl.where(t == t, weight, t)
