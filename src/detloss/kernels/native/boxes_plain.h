// The IoU family where nothing is special: a pair of proper boxes without ties, in the formulas of a textbook and in pixels.
// Included once per instruction set. `special` says that the numbers are not to be used: boxes_cells.h has the rules then.

constexpr float PLAIN_LIMIT = 1e9f, PLAIN_SIDE = 1e-9f;  // between them the products of four lengths stay within fp32

struct PlainAxis { float p1, p2, t1, t2, size, target, enclosing, common, offset; };

INLINE PlainAxis plain_axis(float p1, float p2, float t1, float t2) {
  PlainAxis a;
  a.p1 = p1; a.p2 = p2; a.t1 = t1; a.t2 = t2;
  a.size = p2 - p1;
  a.target = t2 - t1;
  a.enclosing = greater(p2, t2) - lesser(p1, t1);
  a.common = lesser(p2, t2) - greater(p1, t1);
  a.offset = ((p1 - t1) + (p2 - t2)) * 0.5f;
  return a;
}

// Not a box, beyond the limits, so much smaller than the other one that eps decides, or with an end in common. What it says of NaN
// does not matter: both formulas keep it.
INLINE int32_t is_special(const PlainAxis& a, float eps) {
  const float shortest = lesser(a.size, a.target), least = greater(eps * a.enclosing, PLAIN_SIDE);
  const float most = greater(greater(a.p2, a.t2), -lesser(a.p1, a.t1));
  return int32_t(!(shortest > least)) | int32_t(!(most < PLAIN_LIMIT)) | int32_t(a.p1 == a.t1) | int32_t(a.p2 == a.t2);
}

struct PlainSlopes { float common, enclosing, offset, size; };

INLINE void plain_corners(const PlainAxis& a, const PlainSlopes& s, float& d1, float& d2) {
  const float common = a.common < 0.0f ? 0.0f : s.common;
  d1 = 0.5f * s.offset - s.size - (a.p1 < a.t1 ? s.enclosing : common);
  d2 = 0.5f * s.offset + s.size + (a.t2 < a.p2 ? s.enclosing : common);
}

// Every kind but SIOU. Sides of more than eps of the enclosing ones make a union of more than eps of the enclosing area, or no
// intersection: the bound of the union needs no look.
template <int KIND>
INLINE Pair plain_pair_of(float p1, float q1, float p2, float q2, float t1, float u1, float t2, float u2, float eps, float extra,
                          int32_t& special) {
  static_assert(KIND != Boxes::SIOU, "has no plain form");
  const PlainAxis x = plain_axis(p1, p2, t1, t2), y = plain_axis(q1, q2, u1, u2);
  const float common_x = at_least_0(x.common), common_y = at_least_0(y.common), common = common_x * common_y;
  const float area = x.size * y.size + x.target * y.target - common;
  const float inverse = 1.0f / area, ratio = common * inverse, iou = at_most(ratio, 1.0f);
  special = is_special(x, eps) | is_special(y, eps);
  float by_iou, loss = iou_term<KIND>(iou, eps, by_iou);
  const float by_ratio = by_iou * inverse;
  float by_area = -by_ratio * ratio, by_hull = 0.0f;
  if (KIND == Boxes::GIOU) {
    const float per = 1.0f / (x.enclosing * y.enclosing), share = area * per;
    loss += at_least_0(1.0f - share);
    const float open = share < 1.0f ? per : 0.0f;
    by_area -= open;
    by_hull = open * share;
  }
  const float by_common = by_ratio - by_area;
  PlainSlopes sx{by_common * common_y, by_hull * y.enclosing, 0.0f, by_area * y.size};
  PlainSlopes sy{by_common * common_x, by_hull * x.enclosing, 0.0f, by_area * x.size};
  if (KIND == Boxes::DIOU || KIND == Boxes::CIOU || KIND == Boxes::EIOU) {
    const float per = 1.0f / (x.enclosing * x.enclosing + y.enclosing * y.enclosing);
    const float distance = (x.offset * x.offset + y.offset * y.offset) * per, twice = 2.0f * per, slope = distance * twice;
    loss += distance;
    sx.offset = twice * x.offset;
    sy.offset = twice * y.offset;
    sx.enclosing = -slope * x.enclosing;
    sy.enclosing = -slope * y.enclosing;
  }
  if (KIND == Boxes::CIOU) {
    const float gap = arctangent(difference_of_products(x.target, y.size, x.size, y.target), y.target * y.size + x.target * x.size);
    const float v = 0.405284735f * gap * gap, ratio_of_v = v / at_least(1.0f - iou + v, SMALLEST);
    const float alpha = iou > extra ? ratio_of_v : 0.0f;
    const float slope = alpha * gap * (-2.0f * 0.405284735f) / (x.size * x.size + y.size * y.size);
    loss += alpha * v;
    sx.size += slope * y.size;
    sy.size -= slope * x.size;
  }
  if (KIND == Boxes::EIOU) {
    const float per_x = 1.0f / x.enclosing, per_y = 1.0f / y.enclosing;
    const float nx = (x.size - x.target) * per_x, ny = (y.size - y.target) * per_y;
    const float slope_x = 2.0f * nx * per_x, slope_y = 2.0f * ny * per_y;
    loss += nx * nx + ny * ny;
    sx.size += slope_x;
    sy.size += slope_y;
    sx.enclosing -= slope_x * nx;
    sy.enclosing -= slope_y * ny;
  }
  Pair out;
  out.loss = loss;
  plain_corners(x, sx, out.x1, out.x2);
  plain_corners(y, sy, out.y1, out.y2);
  return out;
}
