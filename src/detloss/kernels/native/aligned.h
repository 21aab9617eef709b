// The pairs of an object and a prior inside its region, what of their alignment takes no function but arithmetic, and who gets
// what. Roots, powers and angles are computed by torch in between. Included once per instruction set.

// Centres of the priors of a tile with the box around them; what fills up the last tile is inside nothing.
static void aligned_points(const Aligned& a, int64_t image, int64_t tile) {
  PriorTile& t = a.tiles[image * a.tile_count + tile];
  const int64_t first = tile * ANCHORS, n = a.priors - first < ANCHORS ? a.priors - first : ANCHORS;
  const float* xy = a.xy + 2 * (image * a.priors + first);
  float low_x = INFINITE, low_y = INFINITE, high_x = -INFINITE, high_y = -INFINITE;
  for (int64_t i = 0; i < ANCHORS; i++) {
    t.x[i] = i < n ? xy[2 * i] : __builtin_nanf("");
    t.y[i] = i < n ? xy[2 * i + 1] : __builtin_nanf("");
    low_x = t.x[i] < low_x ? t.x[i] : low_x;
    low_y = t.y[i] < low_y ? t.y[i] : low_y;
    high_x = t.x[i] > high_x ? t.x[i] : high_x;
    high_y = t.y[i] > high_y ? t.y[i] : high_y;
  }
  t.bound[0] = low_x; t.bound[1] = low_y; t.bound[2] = high_x; t.bound[3] = high_y;
}

INLINE bool reaches(const PriorTile& t, const float* region) {
  return t.bound[2] > region[0] && t.bound[0] < region[2] && t.bound[3] > region[1] && t.bound[1] < region[3];
}

// Marks the priors of a tile strictly inside a region; returns their number.
INLINE int32_t inside_of(const PriorTile& t, const float* region, uint8_t* __restrict inside) {
  const float x1 = region[0], y1 = region[1], x2 = region[2], y2 = region[3];
  int32_t found = 0;
#pragma omp simd reduction(+ : found)
  for (int64_t i = 0; i < ANCHORS; i++) {
    const int32_t hit = (t.x[i] > x1) & (t.x[i] < x2) & (t.y[i] > y1) & (t.y[i] < y2);
    inside[i] = uint8_t(hit);
    found += hit;
  }
  return found;
}

INLINE const PriorTile* tiles_of(const Aligned& a, int64_t row) {
  return a.tiles + (a.xy_per_image ? row / a.objects * a.tile_count : 0);
}

// The number of priors inside the region of an object.
static int64_t aligned_count(const Aligned& a, int64_t row) {
  const PriorTile* tiles = tiles_of(a, row);
  const float* region = a.region + 4 * row;
  uint8_t inside[ANCHORS];
  int64_t found = 0;
  for (int64_t tile = 0; tile < a.tile_count; tile++)
    if (reaches(tiles[tile], region)) found += inside_of(tiles[tile], region, inside);
  return found;
}

INLINE float logit_at(const Aligned& a, int64_t at) {
  if (a.score_type == F32) return static_cast<const float*>(a.scores)[at];
  const uint16_t half = static_cast<const uint16_t*>(a.scores)[at];
  return a.score_type == BF16 ? of_bf16(half) : of_fp16(half);
}

struct Prediction { float x1[ANCHORS], y1[ANCHORS], x2[ANCHORS], y2[ANCHORS]; };

// Sides of a box in units of the longer side of the enclosing one, bounded below; their angle is that of its shape.
INLINE float shape_side(float size, float enclosing, float unit) {
  return larger(larger(size, LEAST_SHAPE * enclosing), LEAST_SHAPE * SMALLEST_SIDE) / unit;
}

// IoU (−1 where the prediction does not count) and, for the CIoU, distance of the centres and sides of both boxes.
INLINE void pair_columns(const Aligned& a, const Prediction& p, const float* box, const uint8_t* counts, int64_t at, int64_t n) {
  const float t1 = box[0], u1 = box[1], t2 = box[2], u2 = box[3];
  float* __restrict iou = a.columns + a.pairs + at;
  if (!a.complete) {
    for (int64_t i = 0; i < n; i++)
      iou[i] = counts[i] ? pair_overlap(p.x1[i], p.y1[i], p.x2[i], p.y2[i], t1, u1, t2, u2).iou : -1.0f;
    return;
  }
  float *__restrict distance = iou + a.pairs, *__restrict wide = distance + a.pairs, *__restrict high = wide + a.pairs;
  float *__restrict own_wide = high + a.pairs, *__restrict own_high = own_wide + a.pairs;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const PairOverlap o = pair_overlap(p.x1[i], p.y1[i], p.x2[i], p.y2[i], t1, u1, t2, u2);
    const float unit = larger(larger(o.x.enclosing, o.y.enclosing), SMALLEST_SIDE);
    const float cw = o.x.enclosing / unit, ch = o.y.enclosing / unit, dx = o.x.offset / unit, dy = o.y.offset / unit;
    const float diagonal = cw * cw + ch * ch;
    iou[i] = counts[i] ? o.iou : -1.0f;
    distance[i] = (dx * dx + dy * dy) / (diagonal > 0.0f ? diagonal : 1.0f);
    wide[i] = shape_side(o.x.target, o.x.enclosing, unit);
    high[i] = shape_side(o.y.target, o.y.enclosing, unit);
    own_wide[i] = shape_side(o.x.pred, o.x.enclosing, unit);
    own_high[i] = shape_side(o.y.pred, o.y.enclosing, unit);
  }
}

// The pairs of an object, from place `at` of the columns on.
static void aligned_pairs(const Aligned& a, int64_t row, int64_t at) {
  const int64_t image = row / a.objects, label = a.labels[row] < 0 ? a.labels[row] + a.classes : a.labels[row];
  const PriorTile* tiles = tiles_of(a, row);
  const float *region = a.region + 4 * row, *boxes = a.boxes + 4 * image * a.priors;
  const uint8_t* valid = a.valid + image * a.priors;
  const int64_t logits = image * a.score_stride[0] + label * a.score_stride[2];
  uint8_t inside[ANCHORS], counts[ANCHORS];
  Prediction p;
  for (int64_t tile = 0; tile < a.tile_count; tile++) {
    if (!reaches(tiles[tile], region) || !inside_of(tiles[tile], region, inside)) continue;
    int64_t n = 0;
    for (int64_t i = 0; i < ANCHORS; i++) {
      if (!inside[i]) continue;
      const int64_t prior = tile * ANCHORS + i;
      const float logit = logit_at(a, logits + prior * a.score_stride[1]);
      const float* own = boxes + 4 * prior;
      const bool box = is_finite(own[0]) & is_finite(own[1]) & is_finite(own[2]) & is_finite(own[3]);
      counts[n] = valid[prior] && box && is_finite(logit);
      a.position[at + n] = int32_t(prior);
      a.columns[at + n] = counts[n] ? logit : 0.0f;
      p.x1[n] = own[0]; p.y1[n] = own[1]; p.x2[n] = own[2]; p.y2[n] = own[3];
      n++;
    }
    pair_columns(a, p, a.truth + 4 * row, counts, at, n);
    at += n;
  }
}

// The overlap of pairs begin … end, once the third and the fifth column are the angles of both boxes.
static void aligned_overlap(const Aligned& a, int64_t begin, int64_t end) {
  float* __restrict iou = a.columns + a.pairs;
  const float *__restrict distance = iou + a.pairs, *__restrict angle = distance + a.pairs, *__restrict own = angle + 2 * a.pairs;
#pragma omp simd
  for (int64_t i = begin; i < end; i++) {
    const float apart = angle[i] - own[i], gap = FOUR_BY_PI_SQUARED * (apart * apart);
    const float share = gap / larger((1.0f - iou[i]) + gap, SMALLEST), alpha = gap > 0.0f ? share : 0.0f;
    const float overlap = (iou[i] - distance[i]) - alpha * gap;
    iou[i] = iou[i] < 0.0f || overlap < 0.0f ? 0.0f : overlap;
  }
}

// Metrics of the pairs begin … end of an object, and which are the `topk` highest above 0, the first ones among equals.
static void aligned_choose(const Aligned& a, int64_t begin, int64_t end, int64_t* best) {
  float *__restrict metric = a.columns, *__restrict overlap = a.columns + a.pairs;
  const float* __restrict power = a.power;
  for (int64_t i = begin; i < end; i++) overlap[i] = overlap[i] > 0.0f ? overlap[i] : 0.0f;
  for (int64_t i = begin; i < end; i++) metric[i] = overlap[i] > 0.0f ? metric[i] * power[i] : 0.0f;
  int64_t count = 0;
  float least = 0.0f;  // what a further pair has to exceed
  for (int64_t i = begin; i < end; i++) {
    a.chosen[i] = 0;
    if (!(metric[i] > least)) continue;
    int64_t at = count < a.topk ? count++ : a.topk - 1;
    for (; at > 0 && metric[best[at - 1]] < metric[i]; at--) best[at] = best[at - 1];
    best[at] = i;
    least = count == a.topk ? metric[best[count - 1]] : 0.0f;
  }
  for (int64_t k = 0; k < count; k++) a.chosen[best[k]] = 1;
}

// Takes the pairs of an object into account, the objects of an image in their order: what chose each prior, and which object
// of those that contain it overlaps its prediction most, the first one among equals.
static void aligned_claim(const Aligned& a, int64_t row, int64_t begin, int64_t end) {
  const int64_t image = row / a.objects;
  PriorState* state = a.state + image * a.priors;
  const float *metric = a.columns, *overlap = a.columns + a.pairs;
  const int32_t object = int32_t(row - image * a.objects);
  for (int64_t i = begin; i < end; i++) {
    PriorState& s = state[a.position[i]];
    if (overlap[i] > s.most_overlap) s.most_overlap = overlap[i], s.most_metric = metric[i], s.most_object = object;
    if (a.chosen[i]) s.overlap = overlap[i], s.metric = metric[i], s.object = object, s.number++;
  }
}

// The objects and qualities of an image; `most` is memory for two numbers per object.
static void aligned_settle(const Aligned& a, int64_t image, float* most) {
  PriorState* state = a.state + image * a.priors;
  for (int64_t g = 0; g < 2 * a.objects; g++) most[g] = 0.0f;
  for (int64_t i = 0; i < a.priors; i++) {
    PriorState& s = state[i];
    if (s.number > 1) s.object = s.most_object, s.metric = s.most_metric, s.overlap = s.most_overlap;
    if (s.object < 0) continue;
    most[2 * s.object] = larger(most[2 * s.object], s.overlap);
    most[2 * s.object + 1] = larger(most[2 * s.object + 1], s.metric);
  }
  for (int64_t i = 0; i < a.priors; i++) {
    const PriorState& s = state[i];
    const bool taken = s.object >= 0;
    a.index[image * a.priors + i] = s.object;
    a.quality[image * a.priors + i] = taken ? s.metric * most[2 * s.object] / (most[2 * s.object + 1] + a.eps) : 0.0f;
  }
}
