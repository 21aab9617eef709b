// What boxes cost as partners of objects, by the operations of assigners/hungarian.py in their order. Included once per
// instruction set.

constexpr int64_t QUERIES = 64;  // of a tile

// Adds the cost of the boxes to that of the classes, of all queries for one object.
static void pair_cost(const PairCost& a, int64_t row) {
  const int64_t image = row / a.objects;
  float* cost = a.cost + row * a.queries;
  if (!a.valid[row]) {
    for (int64_t q = 0; q < a.queries; q++) cost[q] = INFINITE;
    return;
  }
  const float *boxes = a.boxes + 4 * image * a.queries, *truth = a.truth + 4 * row;
  const uint8_t* usable = a.usable + image * a.queries;
  const float height = a.units[2 * image], width = a.units[2 * image + 1], by_distance = a.l1_weight, by_overlap = a.iou_weight;
  const float t1 = truth[0], u1 = truth[1], t2 = truth[2], u2 = truth[3];
  const float limit = a.limit;
  const bool hull = a.hull;
  for (int64_t first = 0; first < a.queries; first += QUERIES) {
    const int64_t n = a.queries - first < QUERIES ? a.queries - first : QUERIES;
    float side[4][QUERIES] = {};
    for (int64_t i = 0; i < n; i++) for (int k = 0; k < 4; k++) side[k][i] = boxes[4 * (first + i) + k];
    float* __restrict to = cost + first;
    const uint8_t* __restrict counts = usable + first;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      const PairOverlap o = pair_overlap(side[0][i], side[1][i], side[2][i], side[3][i], t1, u1, t2, u2);
      const PairAxis &x = o.x, &y = o.y;
      const bool has_rest = (smaller(x.enclosing, y.enclosing) > 0.0f) & !(x.same & y.same);
      const float hollow = has_rest ? at_least_0(1.0f - o.whole) : 0.0f;
      const float turned_x = at_least_0(-x.pred) / larger(x.enclosing, SMALLEST_SIDE);
      const float turned_y = at_least_0(-y.pred) / larger(y.enclosing, SMALLEST_SIDE);
      const float across = (__builtin_fabsf(x.offset) + __builtin_fabsf(x.pred - x.target)) / width;
      const float along = (__builtin_fabsf(y.offset) + __builtin_fabsf(y.pred - y.target)) / height;
      const float apart = hull ? (1.0f - o.iou) + hollow : 1.0f - o.iou;
      const float all = to[i] + (by_distance * (across + along) + by_overlap * (apart + (turned_x + turned_y)));
      to[i] = counts[i] ? smaller(larger(all, -limit), limit) : INFINITE;
    }
  }
}
