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
    for (int k = 0; k < 4; k++) usable = usable && is_finite(boxes[4 * i + k]);
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

// Whether any anchor of the tile can have more than an edge in common with the object.
INLINE bool touches(const AnchorTile& t, const MatchedObject& o) {
  return t.bound[0] < o.side[2] && t.bound[2] > o.side[0] && t.bound[1] < o.side[3] && t.bound[3] > o.side[1];
}

INLINE float tile_iou(const AnchorTile& t, const MatchedObject& o, int64_t i) {
  const float width = larger(smaller(o.side[2], t.side[2][i]) - larger(o.side[0], t.side[0][i]), 0.0f);
  const float height = larger(smaller(o.side[3], t.side[3][i]) - larger(o.side[1], t.side[1][i]), 0.0f);
  const float common = width * height;
  return common / larger((o.area + t.area[i]) - common, SMALLEST);
}

// First pass over the tiles of a span: the largest IoU of every anchor, whose it is, and the largest of every object here.
static void max_iou_best(const MaxIoU& a, const MaxIoUWork& w, int64_t image, int64_t span) {
  const MatchedObject* objects = w.objects + image * a.objects;
  const int32_t count = w.count[image];
  float* best = w.best_of_span + (image * w.span_count + span) * a.objects;
  for (int32_t g = 0; g < count; g++) best[g] = 0.0f;
  const int64_t last = (span + 1) * w.span_tiles, end = last < w.tile_count ? last : w.tile_count;
  for (int64_t tile = span * w.span_tiles; tile < end; tile++) {
    const AnchorTile& t = w.tiles[w.tiles_per_image ? image * w.tile_count + tile : tile];
    float top[ANCHORS] = {};
    int32_t whose[ANCHORS] = {};
    for (int32_t g = 0; g < count; g++) {
      const MatchedObject o = objects[g];
      if (!touches(t, o)) continue;
      float most = 0.0f;
#pragma omp simd reduction(max : most)
      for (int64_t i = 0; i < ANCHORS; i++) {
        const float iou = tile_iou(t, o, i);
        most = most > iou ? most : iou;
        whose[i] = iou > top[i] ? o.number : whose[i];
        top[i] = larger(iou, top[i]);
      }
      best[g] = larger(best[g], most);
    }
    const int64_t first = tile * ANCHORS, n = a.priors - first < ANCHORS ? a.priors - first : ANCHORS;
    for (int64_t i = 0; i < n; i++) {
      a.quality[image * a.priors + first + i] = top[i];
      a.index[image * a.priors + first + i] = whose[i];
    }
  }
}

// Second pass: the last object that claims each anchor, looked for only where the best IoU of an object was found.
static void max_iou_claims(const MaxIoU& a, const MaxIoUWork& w, int64_t image, int64_t span) {
  const MatchedObject* objects = w.objects + image * a.objects;
  const float *best = w.best_of_span + (image * w.span_count + span) * a.objects, *wanted = w.wanted + image * a.objects;
  const int64_t stop = (span + 1) * w.span_tiles, end = stop < w.tile_count ? stop : w.tile_count;
  for (int64_t tile = span * w.span_tiles; tile < end; tile++) {
    const AnchorTile& t = w.tiles[w.tiles_per_image ? image * w.tile_count + tile : tile];
    int32_t last[ANCHORS];
    for (int64_t i = 0; i < ANCHORS; i++) last[i] = -1;
    for (int32_t g = 0; g < w.count[image]; g++) {
      const MatchedObject o = objects[g];
      if (best[g] != wanted[g] || !touches(t, o)) continue;
      const float claimed = wanted[g];
#pragma omp simd
      for (int64_t i = 0; i < ANCHORS; i++) last[i] = tile_iou(t, o, i) == claimed ? o.number : last[i];
    }
    const int64_t first = tile * ANCHORS, n = a.priors - first < ANCHORS ? a.priors - first : ANCHORS;
    const int64_t at = image * a.priors + first;
    for (int64_t i = 0; i < n; i++) {
      const float iou = a.quality[at + i];
      const int64_t own = a.index[at + i];
      const int64_t claimed = a.last_claims ? last[i] : own;
      const int64_t index = last[i] >= 0 ? claimed : iou >= a.positive ? own : -1;
      const bool negative = iou < a.high && (!(a.low > 0.0f) || iou >= a.low || !w.any[image]);
      a.index[at + i] = index;
      a.ignore[at + i] = !(negative && t.usable[i]) && index < 0;
    }
  }
}
