// What two boxes have in common, by the operations of geometry/iou.py in their order. Included once per instruction set.

INLINE float larger(float a, float b) { return a > b ? a : b; }
INLINE float smaller(float a, float b) { return a < b ? a : b; }
INLINE bool is_finite(float x) { return __builtin_fabsf(x) <= 3.40282347e38f; }

constexpr float INFINITE = __builtin_inff();
constexpr float PAIR_LIMIT = 1e30f, SMALLEST_SIDE = 1e-12f, LEAST_UNION = 1e-6f;
constexpr float LEAST_SHAPE = 1e-6f, FOUR_BY_PI_SQUARED = 0.405284734569351f;

// One axis: lengths in pixels and, as shares, in units of the enclosing length.
struct PairAxis { float pred, target, enclosing, offset, pred_share, target_share, common_share; bool same; };

INLINE float within(float x) { return smaller(larger(x, -PAIR_LIMIT), PAIR_LIMIT); }
INLINE float at_least_0(float x) { return x < 0.0f ? 0.0f : x; }

INLINE PairAxis pair_axis(float p1, float p2, float t1, float t2) {
  PairAxis a;
  const float length = p2 - p1;
  a.pred = at_least_0(length);
  a.target = at_least_0(t2 - t1);
  a.enclosing = larger(larger(p1, p2), larger(t1, t2)) - smaller(smaller(p1, p2), smaller(t1, t2));
  const float unit = larger(a.enclosing, SMALLEST_SIDE);
  const float common = at_least_0(smaller(p2, t2) - larger(p1, t1));
  a.offset = ((p1 - t1) + (p2 - t2)) * 0.5f;
  a.pred_share = a.pred / unit;
  a.target_share = a.target / unit;
  a.common_share = common / unit;
  a.same = p1 == t1 && p2 == t2 && length >= 0.0f;
  a.pred = length;
  return a;
}

// Both axes, the union in units of the enclosing area, IoU.
struct PairOverlap { PairAxis x, y; float whole, iou; };

// Corners of a prediction and of a target; NaN where a coordinate of the prediction is NaN.
INLINE PairOverlap pair_overlap(float p1, float q1, float p2, float q2, float t1, float u1, float t2, float u2) {
  PairOverlap o;
  o.x = pair_axis(within(p1), within(p2), within(t1), within(t2));
  o.y = pair_axis(within(q1), within(q2), within(u1), within(u2));
  const float common = o.x.common_share * o.y.common_share;
  o.whole = (o.x.pred_share * o.y.pred_share + o.x.target_share * o.y.target_share) - common;
  const float share = smaller(common / larger(o.whole, LEAST_UNION), 1.0f);
  const bool lost = p1 != p1 || q1 != q1 || p2 != p2 || q2 != q2;
  o.iou = lost ? __builtin_nanf("") : o.x.same && o.y.same ? 1.0f : share;
  return o;
}
