"""Element-wise maths of the kernels: from one exponential and two divisions to everything a sigmoid loss needs."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["TINY", "below", "capped", "log1p_unit", "power", "power_slope", "scale_of", "sigmoid_parts"]

TINY = tl.constexpr(1.1754944e-38)
LARGE = tl.constexpr(3.0e38)


@triton.jit
def log1p_unit(e: tl.tensor) -> tl.tensor:
    """ln(1 + e) for 0 <= e <= 1, by 2 artanh(e / (2 + e)), to 1e-7 of its value also for tiny e."""
    s = e / (2.0 + e)
    q = s * s
    series = ((0.134337795 * q + 0.141169816) * q + 0.20003835) * q + 0.333333198
    return 2.0 * (series * q * s + s)


@triton.jit
def sigmoid_parts(x: tl.tensor) -> tl.tensor:
    """σ(x), 1 − σ(x), −ln(1 − σ(x)) and −ln σ(x), none of them a difference of near equals."""
    e = tl.exp(-tl.abs(x))
    near = 1.0 / (1.0 + e)
    far = e * near
    log = log1p_unit(e)
    up = x >= 0
    return tl.where(up, near, far), tl.where(up, far, near), tl.where(x > 0, x, 0.0) + log, tl.where(x < 0, -x, 0.0) + log


@triton.jit
def capped(x: tl.tensor) -> tl.tensor:
    """``x`` kept finite, so that its product with 0 is 0; NaN stays."""
    return tl.where(x > LARGE, LARGE, x)


@triton.jit
def power(base: tl.tensor, GAMMA: tl.constexpr) -> tl.tensor:
    """``base ** GAMMA`` for ``base`` in [0, 1]."""
    if GAMMA == 0.0:
        return base * 0.0 + 1.0
    elif GAMMA == 1.0:
        return base
    elif GAMMA == 2.0:
        return base * base
    elif GAMMA == 0.5:
        return tl.sqrt(base)
    elif GAMMA == 1.5:
        return base * tl.sqrt(base)
    else:
        return tl.where(base == base, _power_of_any(base, GAMMA), base)


@triton.jit
def _power_of_any(base: tl.tensor, GAMMA: tl.constexpr) -> tl.tensor:
    """2^(γ log₂ base) with γ log₂ in two parts, since an error of the exponent grows with its size.

    base = 2^k · m; γ k = n + f with n whole. The product of k and γ rounded to 8 binary places is exact.
    """
    bits = tl.maximum(base, TINY).to(tl.int32, bitcast=True)
    k = ((bits >> 23) - 127).to(tl.float32)
    m = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    coarse = k * ((GAMMA * 256.0) // 1.0 / 256.0)
    n = tl.floor(coarse)
    f = (coarse - n) + k * (GAMMA - (GAMMA * 256.0) // 1.0 / 256.0) + GAMMA * tl.log2(m)
    return tl.exp2(n) * tl.exp2(f)


@triton.jit
def power_slope(base: tl.tensor, powered: tl.tensor, GAMMA: tl.constexpr) -> tl.tensor:
    """Derivative of ``base ** GAMMA``, given that power; 0 for a base of almost 0 where it has no bound."""
    if GAMMA == 0.0:
        return base * 0.0
    elif GAMMA == 1.0:
        return base * 0.0 + 1.0
    elif GAMMA == 2.0:
        return 2.0 * base
    else:
        return tl.where(base < TINY, 0.0, GAMMA * powered / tl.maximum(base, TINY))


@triton.jit
def below(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Share of ``min(a, b)`` that is ``a``'s: 1, 0, or ½ where they are equal; its derivative with respect to ``a``."""
    return tl.where(a < b, 1.0, tl.where(a == b, 0.5, 0.0))


@triton.jit
def scale_of(factor: tl.tensor, divisor: tl.tensor) -> tl.tensor:
    """``factor``, or ``factor / divisor`` where the divisor is above 0 and 0 elsewhere."""
    if divisor is None:
        return factor
    else:
        count = tl.load(divisor).to(tl.float32)
        return tl.where(count > 0, factor / count, 0.0)
