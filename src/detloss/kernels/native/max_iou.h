// The largest IoU of anchors and of objects, and who claims which anchor. Included once per instruction set.

constexpr float MOST_PIXELS = 1e15f;  // areas stay finite up to here

// Anchors of a tile from rows to columns; those that are not usable, and what fills up the last tile, have no area.
static void max_iou_columns(const MaxIoU& a, const MaxIoUWork& w, int64_t image, int64_t tile) {
  AnchorTile& t = w.tiles[image * w.tile_count + tile];
  const int64_t first = tile * ANCHORS, n = a.priors - first < ANCHORS ? a.priors - first : ANCHORS;
  const float* boxes = a.boxes + 4 * (a.boxes_per_image ? image * a.priors + first : first);
  const uint8_t* valid = a.valid ? a.valid + (a.valid_per_image ? image * a.priors : 0) + first : nullptr;
  for (int64_t i = 0; i < ANCHORS; i++) {
    bool usable = i < n && (!valid || valid[i]);
    for (int k = 0; k < 4 && usable; k++) usable = is_finite(boxes[4 * i + k]);
    for (int k = 0; k < 4; k++) t.side[k][i] = usable ? smaller(larger(boxes[4 * i + k], -MOST_PIXELS), MOST_PIXELS) : 0.0f;
    t.area[i] = (t.side[2][i] - t.side[0][i]) * (t.side[3][i] - t.side[1][i]);
    t.usable[i] = usable;
  }
  for (int k = 0; k < 4; k++) {
    float bound = t.side[k][0];
    for (int64_t i = 1; i < n; i++) bound = k < 2 ? smaller(bound, t.side[k][i]) : larger(bound, t.side[k][i]);
    t.bound[k] = bound;
  }
}

// The objects of an image that are there, one after the other; returns whether any is valid.
static bool max_iou_objects(const MaxIoU& a, const MaxIoUWork& w, int64_t image) {
  bool any = false;
  int32_t found = 0;
  for (int64_t g = 0; g < a.objects; g++) {
    const float* box = a.truth + 4 * (image * a.objects + g);
    if (!a.present[image * a.objects + g]) continue;
    any = true;
    MatchedObject& o = w.objects[image * a.objects + found];
    bool finite = true;
    for (int k = 0; k < 4; k++) {
      finite = finite && is_finite(box[k]);
      o.side[k] = smaller(larger(box[k], -MOST_PIXELS), MOST_PIXELS);
    }
    o.area = (o.side[2] - o.side[0]) * (o.side[3] - o.side[1]);
    o.number = int32_t(g);
    found += finite;
  }
  w.count[image] = found;
  return any;
}

// Whether anything within the bounds can have more than an edge in common with the object.
INLINE bool touches(const float* bound, const MatchedObject& o) {
  return bound[0] < o.side[2] && bound[2] > o.side[0] && bound[1] < o.side[3] && bound[3] > o.side[1];
}

INLINE float tile_iou(const AnchorTile& t, const MatchedObject& o, int64_t i) {
  const float width = larger(smaller(o.side[2], t.side[2][i]) - larger(o.side[0], t.side[0][i]), 0.0f);
  const float height = larger(smaller(o.side[3], t.side[3][i]) - larger(o.side[1], t.side[1][i]), 0.0f);
  const float common = width * height;
  return common / larger((o.area + t.area[i]) - common, SMALLEST);
}

// The tiles of a span and the anchors in them.
struct Span {
  const AnchorTile* tiles;
  int64_t begin, end;
  MEMBER Span(const MaxIoUWork& w, int64_t image, int64_t span)
      : tiles(w.tiles + (w.tiles_per_image ? image * w.tile_count : 0)), begin(span * w.span_tiles), end(begin + w.span_tiles) {
    if (end > w.tile_count) end = w.tile_count;
  }
};

// Lists the objects that touch a span, nothing found for them yet.
static int32_t objects_near(const MaxIoU& a, const MaxIoUWork& w, int64_t image, const Span& s, SpanBest* near) {
  float bound[4];
  for (int k = 0; k < 4; k++) {
    bound[k] = s.tiles[s.begin].bound[k];
    for (int64_t tile = s.begin + 1; tile < s.end; tile++)
      bound[k] = k < 2 ? smaller(bound[k], s.tiles[tile].bound[k]) : larger(bound[k], s.tiles[tile].bound[k]);
  }
  int32_t found = 0;
  for (int32_t g = 0; g < w.count[image]; g++) {
    near[found] = {g, 0.0f};
    found += touches(bound, w.objects[image * a.objects + g]);
  }
  return found;
}

// First pass over the tiles of a span: the largest IoU of every anchor, whose it is, and the largest of every object here.
static void max_iou_best(const MaxIoU& a, const MaxIoUWork& w, int64_t image, int64_t span) {
  const MatchedObject* objects = w.objects + image * a.objects;
  const Span s(w, image, span);
  SpanBest* near = w.best + (image * w.span_count + span) * a.objects;
  const int32_t count = objects_near(a, w, image, s, near);
  w.near_count[image * w.span_count + span] = count;
  for (int64_t tile = s.begin; tile < s.end; tile++) {
    const AnchorTile& t = s.tiles[tile];
    float top[ANCHORS] = {};
    int32_t whose[ANCHORS] = {};
    for (int32_t k = 0; k < count; k++) {
      const MatchedObject o = objects[near[k].object];
      if (!touches(t.bound, o)) continue;
      float most = 0.0f;
#pragma omp simd reduction(max : most)
      for (int64_t i = 0; i < ANCHORS; i++) {
        const float iou = tile_iou(t, o, i);
        most = most > iou ? most : iou;
        whose[i] = iou > top[i] ? o.number : whose[i];
        top[i] = larger(iou, top[i]);
      }
      near[k].best = larger(near[k].best, most);
    }
    const int64_t first = tile * ANCHORS, n = a.priors - first < ANCHORS ? a.priors - first : ANCHORS;
    float* __restrict quality = a.quality + image * a.priors + first;
    int64_t* __restrict index = a.index + image * a.priors + first;
    for (int64_t i = 0; i < n; i++) quality[i] = top[i];
    for (int64_t i = 0; i < n; i++) index[i] = whose[i];
  }
}

// From the best IoU and whose it is to the assignment of the anchors of a tile, `last` having claimed them.
INLINE void decide(const MaxIoU& a, const AnchorTile& t, const int32_t* __restrict last, bool empty, int64_t at, int64_t n) {
  const float positive = a.positive, low = a.low, high = a.high;
  const bool any_low = empty || !(low > 0.0f), last_claims = a.last_claims;
  const float* __restrict quality = a.quality + at;
  int64_t* __restrict index = a.index + at;
  uint8_t* __restrict ignore = a.ignore + at;
  for (int64_t i = 0; i < n; i++) {
    const float iou = quality[i];
    const int32_t own = int32_t(index[i]), claimed = last_claims ? last[i] : own, kept = iou >= positive ? own : -1;
    const int32_t found = last[i] >= 0 ? claimed : kept;
    const bool negative = (iou < high) & (any_low | (iou >= low)) & bool(t.usable[i]);
    index[i] = found;
    ignore[i] = uint8_t(!negative & (found < 0));
  }
}

// Second pass: the last object that claims each anchor, looked for only where the best IoU of an object was found.
static void max_iou_claims(const MaxIoU& a, const MaxIoUWork& w, int64_t image, int64_t span) {
  const MatchedObject* objects = w.objects + image * a.objects;
  const float* wanted = w.wanted + image * a.objects;
  const Span s(w, image, span);
  const SpanBest* near = w.best + (image * w.span_count + span) * a.objects;
  const int32_t count = w.near_count[image * w.span_count + span];
  for (int64_t tile = s.begin; tile < s.end; tile++) {
    const AnchorTile& t = s.tiles[tile];
    int32_t last[ANCHORS];
    for (int64_t i = 0; i < ANCHORS; i++) last[i] = -1;
    for (int32_t k = 0; k < count; k++) {
      const float claimed = wanted[near[k].object];
      if (near[k].best != claimed) continue;
      const MatchedObject o = objects[near[k].object];
      if (!touches(t.bound, o)) continue;
#pragma omp simd
      for (int64_t i = 0; i < ANCHORS; i++) last[i] = tile_iou(t, o, i) == claimed ? o.number : last[i];
    }
    const int64_t first = tile * ANCHORS, n = a.priors - first < ANCHORS ? a.priors - first : ANCHORS;
    decide(a, t, last, !w.any[image], image * a.priors + first, n);
  }
}
