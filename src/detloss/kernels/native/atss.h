// The nearest anchors of every object on every level, their IoU, and which of them are positive. Included once per
// instruction set.

INLINE uint32_t order_of(float distance) {  // the bits of floats that are not negative are in the order of their values
  return distance == distance ? uint32_t(to_bits(distance)) : 0x7fc00000u;
}

// Centres of the anchors of a tile of one level, with the box around them; what is not usable is infinitely far away.
static void atss_centres(const Atss& a, const AtssWork& w, int64_t image, int64_t tile) {
  PointTile& t = w.tiles[image * w.tile_count + tile];
  const int64_t first = w.first_of_tile[tile], n = w.first_of_tile[tile + 1] - first;
  const float* boxes = a.boxes + 4 * (a.boxes_per_image ? image * a.priors + first : first);
  const uint8_t* valid = a.valid ? a.valid + image * a.priors + first : nullptr;
  float low_x = INFINITE, low_y = INFINITE, high_x = -INFINITE, high_y = -INFINITE;
  for (int64_t i = 0; i < ANCHORS; i++) {
    float x = INFINITE, y = INFINITE;
    if (i < n && (!valid || valid[i])) {
      x = (boxes[4 * i] + boxes[4 * i + 2]) * 0.5f;
      y = (boxes[4 * i + 1] + boxes[4 * i + 3]) * 0.5f;
      x = x == x ? x : INFINITE;
      y = y == y ? y : INFINITE;
    }
    t.x[i] = x;
    t.y[i] = y;
    low_x = smaller(low_x, x); low_y = smaller(low_y, y);
    high_x = larger(high_x, x); high_y = larger(high_y, y);
  }
  float* bound = w.bounds + image * 4 * w.tile_count + tile;
  bound[0] = low_x; bound[w.tile_count] = low_y; bound[2 * w.tile_count] = high_x; bound[3 * w.tile_count] = high_y;
}

// Lower bound of the squared distances of a tile: rounding is monotone, so none is computed to be smaller.
INLINE float least_distance(const float* bound, int64_t stride, float x, float y) {
  const float dx = larger(larger(bound[0] - x, x - bound[2 * stride]), 0.0f);
  const float dy = larger(larger(bound[stride] - y, y - bound[3 * stride]), 0.0f);
  return dx * dx + dy * dy;
}

// The k smallest keys so far in order: distance above, number of the anchor below, so that no two are equal.
struct Smallest {
  uint64_t* key;
  int64_t k, count;
  MEMBER uint32_t worst() const { return count < k ? 0xffffffffu : uint32_t(key[k - 1] >> 32); }
  MEMBER void add(uint64_t value) {
    if (count == k && value >= key[k - 1]) return;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && key[at - 1] > value; at--) key[at] = key[at - 1];
    key[at] = value;
  }
};

INLINE void look_through(const PointTile& t, int64_t first, int64_t n, float x, float y, Smallest& found) {
  uint32_t order[ANCHORS];
  uint32_t least = 0xffffffffu;
#pragma omp simd reduction(min : least)
  for (int64_t i = 0; i < ANCHORS; i++) {
    const float dx = t.x[i] - x, dy = t.y[i] - y;
    order[i] = order_of(dx * dx + dy * dy);
    least = least < order[i] ? least : order[i];
  }
  if (least > found.worst()) return;
  for (int64_t i = 0; i < n; i++)
    if (order[i] <= found.worst()) found.add((uint64_t(order[i]) << 32) | uint64_t(first + i));
}

// The k anchors of a level nearest to (x, y), the first among equals. The tile that may hold the nearest one goes first, so
// that of the others those are left out that are too far away altogether.
static void nearest_of_level(const AtssWork& w, int64_t image, int64_t begin, int64_t end, float x, float y, Smallest& found) {
  const float* bounds = w.bounds + image * 4 * w.tile_count;
  const PointTile* tiles = w.tiles + image * w.tile_count;
  int64_t start = begin;
  float least = INFINITE;
  for (int64_t tile = begin; tile < end; tile++) {
    const float bound = least_distance(bounds + tile, w.tile_count, x, y);
    if (bound < least) { least = bound; start = tile; }
  }
  const int64_t* first = w.first_of_tile;
  look_through(tiles[start], first[start], first[start + 1] - first[start], x, y, found);
  for (int64_t tile = begin; tile < end; tile++) {
    if (tile == start || order_of(least_distance(bounds + tile, w.tile_count, x, y)) > found.worst()) continue;
    look_through(tiles[tile], first[tile], first[tile + 1] - first[tile], x, y, found);
  }
}

// The sum as the reference takes it, halves added to halves; overwrites the numbers.
INLINE float fold_sum(float* x, int64_t n) {
  for (; n > 1; n = n / 2 + n % 2) {
    const int64_t half = n / 2;
    for (int64_t i = 0; i < half; i++) x[i] = x[i] + x[half + i];
    if (n % 2) x[half] = x[2 * half];
  }
  return n ? x[0] : 0.0f;
}

// Mean plus unbiased standard deviation of the IoU of the usable candidates.
INLINE float atss_threshold(const float* iou, const uint8_t* usable, int64_t n, float* scratch) {
  float number = 0.0f, top = n ? (usable[0] ? iou[0] : 0.0f) : 0.0f;
  for (int64_t i = 0; i < n; i++) {
    scratch[i] = usable[i] ? iou[i] : 0.0f;
    number += usable[i] ? 1.0f : 0.0f;
    top = larger(scratch[i], top);
  }
  float mean = fold_sum(scratch, n) / larger(number, 1.0f);
  mean = mean > top ? top : mean;
  for (int64_t i = 0; i < n; i++) {
    const float apart = usable[i] ? iou[i] - mean : 0.0f;
    scratch[i] = apart * apart;
  }
  return mean + __builtin_sqrtf(fold_sum(scratch, n) / larger(number - 1.0f, 1.0f));
}

// The candidates of an object: their numbers, and their IoU where they claim the anchor, −1 where they do not.
static void atss_object(const Atss& a, const AtssWork& w, int64_t image, int64_t object, void* memory) {
  uint64_t* key = static_cast<uint64_t*>(memory);
  const int64_t at = image * a.objects + object, place = (image * w.group + object % w.group) * w.candidates;
  float* iou = reinterpret_cast<float*>(key + w.candidates);
  float* scratch = iou + w.candidates;
  uint8_t* usable = reinterpret_cast<uint8_t*>(scratch + w.candidates);
  float* claim = w.claim_iou + place;
  int32_t* prior = w.claim_prior + place;
  for (int64_t i = 0; i < w.candidates; i++) { claim[i] = -1.0f; prior[i] = 0; }
  if (!a.present[at]) return;
  const float* box = a.truth + 4 * at;
  const float x = (box[0] + box[2]) * 0.5f, y = (box[1] + box[3]) * 0.5f;
  const int64_t tiles_of = w.tiles_per_image ? image : 0;
  int64_t n = 0;
  for (int64_t level = 0; level < a.levels; level++) {
    Smallest found = {key + n, a.counts[level] < a.topk ? a.counts[level] : a.topk, 0};
    if (found.k) nearest_of_level(w, tiles_of, w.tile_of_level[level], w.tile_of_level[level + 1], x, y, found);
    n += found.k;
  }
  const float* boxes = a.boxes + (a.boxes_per_image ? 4 * image * a.priors : 0);
  for (int64_t i = 0; i < n; i++) {
    prior[i] = int32_t(uint32_t(key[i]));
    const float* own = boxes + 4 * int64_t(prior[i]);
    usable[i] = !a.valid || a.valid[image * a.priors + prior[i]];
    iou[i] = pair_overlap(own[0], own[1], own[2], own[3], box[0], box[1], box[2], box[3]).iou;
  }
  const float threshold = atss_threshold(iou, usable, n, scratch);
  for (int64_t i = 0; i < n; i++) {
    const float* own = boxes + 4 * int64_t(prior[i]);
    const float cx = (own[0] + own[2]) * 0.5f, cy = (own[1] + own[3]) * 0.5f;
    const bool inside = cx - box[0] > a.margin && box[2] - cx > a.margin && cy - box[1] > a.margin && box[3] - cy > a.margin;
    claim[i] = usable[i] && inside && iou[i] >= threshold ? iou[i] : -1.0f;
  }
}

// Objects begin … end of an image in their order: an anchor goes to the one of the highest IoU, the first among equals.
static void atss_settle(const Atss& a, const AtssWork& w, int64_t image, int64_t begin, int64_t end) {
  int64_t* owner = a.owner + image * a.priors;
  float* quality = a.quality + image * a.priors;
  for (int64_t object = begin; object < end; object++) {
    const int64_t place = (image * w.group + object - begin) * w.candidates;
    for (int64_t i = place; i < place + w.candidates; i++) {
      const int64_t prior = w.claim_prior[i];
      if (!(w.claim_iou[i] > quality[prior])) continue;
      quality[prior] = w.claim_iou[i];
      owner[prior] = object;
    }
  }
}
