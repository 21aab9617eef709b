"""Loss and slope of one logit: focal, binary cross entropy (focal with γ = 0), quality focal and varifocal."""

from __future__ import annotations

import triton
import triton.language as tl

from detloss.kernels.triton_backend.maths import capped, power, power_slope, sigmoid_parts

__all__ = ["focal_index_cell", "soft_cell"]


@triton.jit
def focal_index_cell(x: tl.tensor, hit: tl.tensor, high: tl.tensor, low: tl.tensor, GAMMA: tl.constexpr) -> tl.tensor:
    """Focal loss of a class that is there (``hit``, factor ``high``) or not (``low``): one formula, in x or in −x."""
    p, q, softplus, _ = sigmoid_parts(tl.where(hit, -x, x))
    factor = tl.where(hit, high, low)
    faded = factor * power(p, GAMMA)
    slope = faded * p if GAMMA == 0.0 else faded * (GAMMA * q * capped(softplus) + p)
    return faded * softplus, tl.where(hit, -slope, slope)


@triton.jit
def _entropy(y: tl.tensor, own: tl.tensor, p: tl.tensor, q: tl.tensor, softplus: tl.tensor, softplus_neg: tl.tensor) -> tl.tensor:
    """−own · y ln σ − (1 − y) ln(1 − σ) and its slope; a term whose share is 0 is dropped."""
    yes, no = y * own, 1.0 - y
    entropy = tl.where(y == 0, 0.0, yes * softplus_neg) + tl.where(y == 1, 0.0, no * softplus)
    return entropy, no * p - yes * q


@triton.jit
def soft_cell(
    x: tl.tensor,
    y: tl.tensor,
    own: tl.tensor,
    high: tl.tensor,
    low: tl.tensor,
    OP: tl.constexpr,
    GAMMA: tl.constexpr,
    SMOOTHING: tl.constexpr,
    BY_QUALITY: tl.constexpr,
) -> tl.tensor:
    """Loss and slope for any target y in [0, 1].

    ``own`` weighs the positive part; for focal ``high`` and ``low`` are the factors of y and of 1 − y, for varifocal ``low`` is
    that of the negatives.
    """
    p, q, softplus, softplus_neg = sigmoid_parts(x)
    if OP == "focal":
        entropy, slope = _entropy(y * (1.0 - SMOOTHING) + 0.5 * SMOOTHING, own, p, q, softplus, softplus_neg)
        factor = high * y + low * (1.0 - y)
        if GAMMA != 0.0:
            missing = y * q + (1.0 - y) * p
            faded = power(missing, GAMMA)
            fading = power_slope(missing, faded, GAMMA) * (1.0 - 2.0 * y) * (p * q)
            slope = fading * capped(entropy) + faded * slope
            entropy = faded * entropy
        return factor * entropy, factor * slope
    entropy, slope = _entropy(y, 1.0, p, q, softplus, softplus_neg)
    if OP == "quality":
        gap = tl.where(y == 1, q, y - p)
        distance = tl.abs(gap)
        faded = power(distance, GAMMA)
        fading = power_slope(distance, faded, GAMMA) * tl.where(gap > 0, -p * q, p * q)
        return faded * entropy, fading * capped(entropy) + faded * slope
    else:
        gone = low * power(p, GAMMA)
        there = y if BY_QUALITY else 1.0
        factor = tl.where(y > 0, there, gone)
        fading = tl.where(y > 0, 0.0, gone * GAMMA * q)
        return factor * entropy, fading * capped(entropy) + factor * slope
