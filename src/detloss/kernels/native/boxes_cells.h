// The IoU family: one pair of boxes, its loss and the derivatives to the four corners of the prediction.
// Included once per instruction set. The forward formulas are those of geometry/iou.py and functional/iou.py, in their order;
// the backward ones follow PyTorch where a function has no derivative (a maximum of equal numbers gives half to each,
// a bound that is reached gives nothing).

constexpr float COORDINATE_LIMIT = 1e30f, SMALLEST_SIDE = 1e-12f;

// Conditions that are combined are 0 or 1 as numbers: compilers do not turn bool arithmetic into vector code.
INLINE float when(bool condition) { return condition ? 1.0f : 0.0f; }
INLINE float share_of_first(float a, float b) { return when(a < b) + 0.5f * when(a == b); }  // of the slope of min(a, b)
INLINE float sign(float x) { return when(x > 0.0f) - when(x < 0.0f); }
INLINE float at_least_0(float x) { return x < 0.0f ? 0.0f : x; }
INLINE float lesser(float a, float b) { return b < a ? b : a; }
INLINE float greater(float a, float b) { return b > a ? b : a; }

// 1 - exp(-a) for a >= 0 with all its digits.
INLINE float one_minus_exp(float a) {
  const float x = at_most(a, 80.0f);
  const float shifted = x * -1.44269504088896341f + 12582912.0f, n = shifted - 12582912.0f;
  float r = n * -0.693359375f - x;
  r = n * 2.12194440e-4f + r;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float two_n = of_bits(int32_t((uint32_t(to_bits(shifted)) << 23) + 0x3f800000u));
  return (1.0f - two_n) - two_n * (p * (r * r) + r);
}

// atan(y / x) for x >= 0, in [-π/2, π/2]; 0 where both are 0.
INLINE float arctangent(float y, float x) {
  const float a = __builtin_fabsf(y), high = greater(a, x), t = lesser(a, x) / at_least(high, SMALLEST), q = t * t;
  float p = 0.00396219135f;
  p = p * q - 0.0203646353f;
  p = p * q + 0.0493852494f;
  p = p * q - 0.0804232451f;
  p = p * q + 0.108774217f;
  p = p * q - 0.14259041f;
  p = p * q + 0.199988105f;
  p = p * q - 0.333333245f;
  const float r = p * (t * q) + t, whole = a > x ? 1.57079632679f - r : r;
  return y < 0.0f ? -whole : whole;
}

// a b - c d without cancellation error; exactly 0 where a b and c d are the same product.
INLINE float difference_of_products(float a, float b, float c, float d) {
  const float cd = c * d;
  return __builtin_fmaf(a, b, -cd) + __builtin_fmaf(-c, d, cd);
}

// x / y by the inverse of y, rounded as a division is: divisions are the slowest instructions here.
INLINE float divided(float x, float y, float inverse) {
#ifdef KERNEL_FMA
  const float q = x * inverse;
  return __builtin_fmaf(__builtin_fmaf(-q, y, x), inverse, q);
#else
  (void)inverse;
  return x / y;
#endif
}

// One axis of a pair: lengths in pixels, and shares of the enclosing length.
struct Axis {
  float p1, p2, t1, t2, size, target, enclosing, offset, common, unit, inverse, pred_share, target_share, common_share;
  float turned, same;  // 0 or 1
};

INLINE Axis axis_of(float p1, float p2, float t1, float t2) {
  Axis a;
  a.p1 = p1; a.p2 = p2; a.t1 = t1; a.t2 = t2;
  a.size = p2 - p1;
  a.target = at_least_0(t2 - t1);
  a.enclosing = greater(greater(p1, p2), greater(t1, t2)) - lesser(lesser(p1, p2), lesser(t1, t2));
  a.unit = at_least(a.enclosing, SMALLEST_SIDE);
  a.inverse = 1.0f / a.unit;
  a.common = lesser(p2, t2) - greater(p1, t1);
  a.offset = ((p1 - t1) + (p2 - t2)) * 0.5f;
  a.pred_share = divided(at_least_0(a.size), a.unit, a.inverse);
  a.target_share = divided(a.target, a.unit, a.inverse);
  a.common_share = divided(at_least_0(a.common), a.unit, a.inverse);
  a.turned = when(a.size < 0.0f) + when(a.size == 0.0f) * when(a.target > 0.0f);
  a.same = when(p1 == t1) * when(p2 == t2) * when(a.size >= 0.0f);
  return a;
}

// Derivatives of the loss to the numbers of an axis.
struct Slopes { float pred_share, target_share, common_share, enclosing, offset, size; };

// Those to p1 and p2, with that of the price of an inverted side.
INLINE void corners(const Axis& a, const Slopes& s, float& d1, float& d2) {
  const float by_unit = -(s.pred_share * a.pred_share + s.target_share * a.target_share + s.common_share * a.common_share) * a.inverse;
  const float enclosing = s.enclosing + (a.enclosing <= SMALLEST_SIDE ? 0.0f : by_unit);
  const float common = a.common < 0.0f ? 0.0f : s.common_share * a.inverse;
  const float size = (a.size < 0.0f ? 0.0f : s.pred_share * a.inverse) + s.size - a.turned * a.inverse;
  const float low_p = lesser(a.p1, a.p2), low_t = lesser(a.t1, a.t2), high_p = greater(a.p1, a.p2), high_t = greater(a.t1, a.t2);
  const float low = share_of_first(low_p, low_t), high = share_of_first(high_t, high_p);
  const float first_low = share_of_first(a.p1, a.p2), first_high = share_of_first(a.p2, a.p1);
  d1 = 0.5f * s.offset - size - common * share_of_first(a.t1, a.p1) +
       enclosing * (high * first_high - low * first_low);
  d2 = 0.5f * s.offset + size + common * share_of_first(a.p2, a.t2) +
       enclosing * (high * (1.0f - first_high) - low * (1.0f - first_low));
}

struct Pair { float loss, x1, y1, x2, y2; };

// The longer side of the enclosing box, in which lengths are measured that are squared.
struct Unit {
  float length, inverse;
  MEMBER float of(float x) const { return divided(x, length, inverse); }
};

// ρ²/c², and its slopes.
INLINE float centre_distance(const Axis& x, const Axis& y, Unit unit, Slopes& sx, Slopes& sy) {
  const float inverse = unit.inverse, dx = unit.of(x.offset), dy = unit.of(y.offset);
  const float cw = unit.of(x.enclosing), ch = unit.of(y.enclosing), diagonal = cw * cw + ch * ch;
  const float divisor = diagonal > 0.0f ? diagonal : 1.0f, per = 1.0f / divisor, distance = divided(dx * dx + dy * dy, divisor, per);
  const float slope = diagonal > 0.0f ? -2.0f * distance * per * inverse : 0.0f;
  sx.offset += 2.0f * dx * per * inverse;
  sy.offset += 2.0f * dy * per * inverse;
  sx.enclosing += slope * cw;
  sy.enclosing += slope * ch;
  return distance;
}

// A side of the angle of the aspect term: bounded below by eps of the enclosing one; `slope` is its derivative to the side.
INLINE float bounded_side(float side, float enclosing, float eps, Unit unit, float& slope) {
  const float bound = eps * enclosing, longer = greater(side, bound), least = eps * SMALLEST_SIDE;
  slope = longer <= least ? 0.0f : share_of_first(bound, side);
  return unit.of(at_least(longer, least));
}

// α v of CIoU; α is held constant.
INLINE float aspect(const Axis& x, const Axis& y, Unit unit, float eps, float threshold, float iou, Slopes& sx, Slopes& sy) {
  float w_slope, h_slope, ignored;
  const float w = bounded_side(x.size, x.enclosing, eps, unit, w_slope), h = bounded_side(y.size, y.enclosing, eps, unit, h_slope);
  const float tw = bounded_side(x.target, x.enclosing, eps, unit, ignored);
  const float th = bounded_side(y.target, y.enclosing, eps, unit, ignored);
  const float gap = arctangent(difference_of_products(tw, h, w, th), th * h + tw * w);
  const float v = 0.405284735f * gap * gap;
  const float ratio = v / at_least(1.0f - iou + v, SMALLEST);
  const float alpha = when(v > 0.0f) * when(iou > threshold) * ratio;
  const float slope = alpha * (-2.0f * 0.405284735f) * gap * unit.inverse / at_least(w * w + h * h, SMALLEST);
  sx.size += slope * h * w_slope;
  sy.size -= slope * w * h_slope;
  return alpha * v;
}

// The square of the difference of a side in units of the enclosing side (EIoU).
INLINE float side_difference(const Axis& a, Slopes& s) {
  const float n = divided(a.size - a.target, a.unit, a.inverse);
  s.size += 2.0f * n * a.inverse;
  s.enclosing -= when(a.size >= 0.0f) * when(a.enclosing > SMALLEST_SIDE) * 2.0f * n * n * a.inverse;
  return n * n;
}

// SIoU: 1 − exp(−(2 − Λ) ρ) of one axis, without the slope through Λ, which it adds to `by_angle`.
INLINE float axis_distance(const Axis& a, float angle, float factor, Slopes& s, float& by_angle) {
  const float n = divided(a.offset, a.unit, a.inverse), rho = n * n, steep = 2.0f - angle, e = exp_neg(steep * rho);
  const float slope = factor * steep * e * 2.0f * n * a.inverse;
  s.offset += slope;
  s.enclosing -= a.enclosing <= SMALLEST_SIDE ? 0.0f : slope * n;
  by_angle -= factor * rho * e;
  return one_minus_exp(steep * rho);
}

// SIoU: (1 − exp(−|s − s*| / max(s, s*)))^θ of one axis.
INLINE float axis_shape(const Axis& a, float eps, float theta, float factor, Slopes& s) {
  const float bound = eps * a.enclosing, longer = greater(a.size, a.target), widest = greater(longer, bound);
  const float divisor = at_least(widest, SMALLEST_SIDE), difference = a.size - a.target, gap = __builtin_fabsf(difference) / divisor;
  const float through = when(widest > SMALLEST_SIDE) * share_of_first(bound, longer) * share_of_first(a.target, a.size);
  const float base = one_minus_exp(gap), powered = power(base, theta - 1.0f);
  s.size += factor * theta * powered * exp_neg(gap) * (sign(difference) - gap * through) / divisor;
  return base * powered;
}

// SIoU: (Δ + Ω)/2, and its slopes.
INLINE float angle_distance_shape(const Axis& x, const Axis& y, Unit unit, float eps, float theta, Slopes& sx, Slopes& sy) {
  const float dx = unit.of(x.offset), dy = unit.of(y.offset), squared = dx * dx + dy * dy;
  const float divisor = squared > 0.0f ? squared : 1.0f, ax = __builtin_fabsf(dx), ay = __builtin_fabsf(dy);
  const float angle = 2.0f * ax * ay / divisor;
  float by_angle = 0.0f;
  float loss = axis_distance(x, angle, 0.5f, sx, by_angle);
  loss += axis_distance(y, angle, 0.5f, sy, by_angle);
  const float through = when(squared > 0.0f), per = by_angle * unit.inverse / divisor;
  sx.offset += per * 2.0f * (sign(dx) * ay - through * angle * dx);
  sy.offset += per * 2.0f * (sign(dy) * ax - through * angle * dy);
  loss += axis_shape(x, eps, theta, 0.5f, sx) + axis_shape(y, eps, theta, 0.5f, sy);
  return 0.5f * loss;
}

INLINE float limited(float x) { return at_most(at_least(x, -COORDINATE_LIMIT), COORDINATE_LIMIT); }
INLINE float within_limit(float x, float slope) { return __builtin_fabsf(x) >= COORDINATE_LIMIT ? 0.0f : slope; }

// What the IoU itself costs, and its derivative.
template <int KIND> INLINE float iou_term(float iou, float eps, float& by_iou) {
  if (KIND == Boxes::LOG) {
    const float c = at_least(iou, eps);
    by_iou = iou <= eps ? 0.0f : -1.0f / c;
    return c == c ? -log_of(c) : c;
  }
  by_iou = KIND == Boxes::SQUARE ? -2.0f * iou : -1.0f;
  return KIND == Boxes::SQUARE ? 1.0f - iou * iou : 1.0f - iou;
}

// Corners of both boxes to loss and slopes. `extra` is alpha_threshold (CIoU) or theta (SIoU).
template <int KIND>
INLINE Pair pair_of(float p1, float q1, float p2, float q2, float t1, float u1, float t2, float u2, float eps, float extra) {
  const Axis x = axis_of(limited(p1), limited(p2), limited(t1), limited(t2));
  const Axis y = axis_of(limited(q1), limited(q2), limited(u1), limited(u2));
  const float common = x.common_share * y.common_share;
  const float area = x.pred_share * y.pred_share + x.target_share * y.target_share - common;
  const float bounded = at_least(area, eps), inverse = 1.0f / bounded, ratio = divided(common, bounded, inverse);
  const float identical = x.same * y.same;
  const float iou = identical > 0.0f ? 1.0f : at_most(ratio, 1.0f);
  Slopes sx{}, sy{};
  float by_iou, by_hollow = 0.0f, loss = iou_term<KIND>(iou, eps, by_iou);
  if (KIND == Boxes::GIOU) {
    const float open = when(x.enclosing > 0.0f) * when(y.enclosing > 0.0f) * (1.0f - identical);
    loss += open * at_least_0(1.0f - area);
    by_hollow = open * when(area < 1.0f);
  }
  const float longest = at_least(greater(x.enclosing, y.enclosing), SMALLEST_SIDE);
  const Unit unit{longest, x.enclosing < y.enclosing ? y.inverse : x.inverse};
  if (KIND == Boxes::DIOU || KIND == Boxes::CIOU || KIND == Boxes::EIOU) loss += centre_distance(x, y, unit, sx, sy);
  if (KIND == Boxes::CIOU) loss += aspect(x, y, unit, eps, extra, iou, sx, sy);
  if (KIND == Boxes::EIOU) loss += side_difference(x, sx) + side_difference(y, sy);
  if (KIND == Boxes::SIOU) loss += angle_distance_shape(x, y, unit, eps, extra, sx, sy);
  loss += divided(x.turned * -x.size, x.unit, x.inverse) + divided(y.turned * -y.size, y.unit, y.inverse);

  const float by_ratio = (1.0f - identical) * when(ratio < 1.0f) * by_iou * inverse;
  const float by_area = (area <= eps ? 0.0f : -by_ratio * ratio) - by_hollow, by_common = by_ratio - by_area;
  sx.common_share += by_common * y.common_share;
  sy.common_share += by_common * x.common_share;
  sx.pred_share += by_area * y.pred_share;
  sy.pred_share += by_area * x.pred_share;
  sx.target_share += by_area * y.target_share;
  sy.target_share += by_area * x.target_share;
  Pair out;
  out.loss = loss;
  corners(x, sx, out.x1, out.x2);
  corners(y, sy, out.y1, out.y2);
  out.x1 = within_limit(p1, out.x1);
  out.x2 = within_limit(p2, out.x2);
  out.y1 = within_limit(q1, out.y1);
  out.y2 = within_limit(q2, out.y2);
  return out;
}
