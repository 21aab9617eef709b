// The functions for assigners that Python calls: memory, and division of the work over threads.

#include "kernels.h"
#include "matching.h"

#include <algorithm>
#include <memory>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace detloss {

constexpr int64_t SPAN = 512 / ANCHORS;  // tiles for which the best of every object is kept, so that claims are looked for here alone

template <class Item> static std::unique_ptr<Item[]> memory_for(int64_t count) {
  return std::unique_ptr<Item[]>(new Item[size_t(count > 0 ? count : 1)]);
}

// Calls work(image, part) for all pairs, side by side, neighbours one after the other.
template <class Work> static void for_each(int64_t images, int64_t parts, int threads, const Work& work) {
  const int64_t all = images * parts, grain = std::max<int64_t>(1, all / (16 * std::max(threads, 1)));
#pragma omp parallel for schedule(dynamic, grain) num_threads(threads) if (threads > 1 && all > 1)
  for (int64_t i = 0; i < all; i++) work(i / parts, i % parts);
}

static void max_iou(const MaxIoU& a, const Matching& set, int threads) {
  MaxIoUWork w;
  w.tiles_per_image = a.boxes_per_image || a.valid_per_image;
  w.tile_count = (a.priors + ANCHORS - 1) / ANCHORS;
  // With very many objects the spans are longer, so that what is kept does not outgrow the result.
  w.span_tiles = SPAN * (1 + a.objects / 1024);
  w.span_count = (w.tile_count + w.span_tiles - 1) / w.span_tiles;
  const int64_t owners = w.tiles_per_image ? a.images : 1;
  const auto tiles = memory_for<AnchorTile>(owners * w.tile_count);
  const auto objects = memory_for<MatchedObject>(a.images * a.objects);
  const auto count = memory_for<int32_t>(a.images);
  const auto any = memory_for<uint8_t>(a.images);
  const auto best = memory_for<SpanBest>(a.images * w.span_count * a.objects);
  const auto near_count = memory_for<int32_t>(a.images * w.span_count);
  const auto wanted = memory_for<float>(a.images * a.objects);
  w.tiles = tiles.get(), w.objects = objects.get(), w.count = count.get(), w.any = any.get();
  w.best = best.get(), w.near_count = near_count.get(), w.wanted = wanted.get();
  for_each(owners, w.tile_count, threads, [&](int64_t image, int64_t tile) { set.max_iou_columns(a, w, image, tile); });
  for (int64_t image = 0; image < a.images; image++) w.any[image] = set.max_iou_objects(a, w, image);
  for_each(a.images, w.span_count, threads, [&](int64_t image, int64_t span) { set.max_iou_best(a, w, image, span); });
  for (int64_t image = 0; image < a.images; image++) {
    float* own = w.wanted + image * a.objects;
    std::fill(own, own + a.objects, 0.0f);
    for (int64_t span = 0; span < w.span_count; span++) {
      const int64_t at = image * w.span_count + span;
      const SpanBest* here = w.best + at * a.objects;
      for (int32_t k = 0; k < w.near_count[at]; k++) own[here[k].object] = std::max(own[here[k].object], here[k].best);
    }
    for (int32_t g = 0; g < w.count[image]; g++) own[g] = a.claims && own[g] > 0.0f && own[g] >= a.least ? own[g] : 2.0f;
  }
  for_each(a.images, w.span_count, threads, [&](int64_t image, int64_t span) { set.max_iou_claims(a, w, image, span); });
}

static void atss(const Atss& a, const Matching& set, int threads) {
  AtssWork w;
  std::vector<int64_t> tile_of_level{0}, first_of_tile;
  int64_t start = 0;
  w.candidates = 0;
  for (int64_t level = 0; level < a.levels; level++) {
    for (int64_t at = 0; at < a.counts[level]; at += ANCHORS) first_of_tile.push_back(start + at);
    start += a.counts[level];
    tile_of_level.push_back(int64_t(first_of_tile.size()));
    w.candidates += std::min(a.topk, a.counts[level]);
  }
  w.tile_count = int64_t(first_of_tile.size());
  first_of_tile.push_back(start);
  w.tile_of_level = tile_of_level.data(), w.first_of_tile = first_of_tile.data();
  w.tiles_per_image = a.boxes_per_image || a.valid;
  const int64_t owners = w.tiles_per_image ? a.images : 1;
  const int64_t bytes = std::max<int64_t>(1, a.images * w.candidates * 8);
  w.group = std::max<int64_t>(1, std::min(a.objects, a.memory / bytes));
  const auto tiles = memory_for<PointTile>(owners * w.tile_count);
  const auto bounds = memory_for<float>(owners * 4 * w.tile_count);
  const auto claim_iou = memory_for<float>(a.images * w.group * w.candidates);
  const auto claim_prior = memory_for<int32_t>(a.images * w.group * w.candidates);
  w.tiles = tiles.get(), w.bounds = bounds.get(), w.claim_iou = claim_iou.get(), w.claim_prior = claim_prior.get();
  const int64_t scratch = w.candidates * 3;  // of a thread, in 8 bytes: a key, two numbers and a flag per candidate
  const auto memory = memory_for<uint64_t>(threads * scratch);
  for_each(owners, w.tile_count, threads, [&](int64_t image, int64_t tile) { set.atss_centres(a, w, image, tile); });
  std::fill(a.owner, a.owner + a.images * a.priors, int64_t(-1));
  std::fill(a.quality, a.quality + a.images * a.priors, -1.0f);
  for (int64_t begin = 0; begin < a.objects; begin += w.group) {
    const int64_t end = std::min(begin + w.group, a.objects);
    for_each(a.images, end - begin, threads, [&](int64_t image, int64_t object) {
#ifdef _OPENMP
      const int thread = omp_get_thread_num();
#else
      const int thread = 0;
#endif
      set.atss_object(a, w, image, begin + object, memory.get() + thread * scratch);
    });
    for_each(a.images, 1, threads, [&](int64_t image, int64_t) { set.atss_settle(a, w, image, begin, end); });
  }
  for (int64_t i = 0; i < a.images * a.priors; i++) a.quality[i] = std::max(a.quality[i], 0.0f);
}

// Where the pairs of the objects of a part begin.
static std::vector<int64_t> starts(const Aligned& a) {
  std::vector<int64_t> start{0};
  for (int64_t row = a.first_row; row < a.last_row; row++) start.push_back(start.back() + a.count[row]);
  return start;
}

static void aligned_count(const Aligned& a, const Matching& set, int threads) {
  for_each(a.xy_per_image ? a.images : 1, a.tile_count, threads, [&](int64_t i, int64_t tile) { set.aligned_points(a, i, tile); });
  for_each(1, a.images * a.objects, threads, [&](int64_t, int64_t row) { a.count[row] = set.aligned_count(a, row); });
  std::fill(a.state, a.state + a.images * a.priors, PriorState{0.0f, 0.0f, -1.0f, 0.0f, -1, 0, -1});
}

static void aligned_pairs(const Aligned& a, const Matching& set, int threads) {
  const std::vector<int64_t> start = starts(a);
  for_each(1, a.last_row - a.first_row, threads,
           [&](int64_t, int64_t i) { set.aligned_pairs(a, a.first_row + i, start[size_t(i)]); });
}

static void aligned_overlap(const Aligned& a, const Matching& set, int threads) {
  constexpr int64_t BLOCK = 4096;
  for_each(1, (a.pairs + BLOCK - 1) / BLOCK, threads,
           [&](int64_t, int64_t i) { set.aligned_overlap(a, i * BLOCK, std::min((i + 1) * BLOCK, a.pairs)); });
}

static void aligned_claim(const Aligned& a, const Matching& set, int threads) {
  const std::vector<int64_t> start = starts(a);
  for_each(1, a.last_row - a.first_row, threads, [&](int64_t, int64_t i) {
    const int64_t begin = start[size_t(i)], end = start[size_t(i) + 1];
    const auto best = memory_for<int64_t>(std::min(a.topk, end - begin));
    set.aligned_choose(a, begin, end, best.get());
  });
  const int64_t first = a.first_row / a.objects, last = (a.last_row - 1) / a.objects;
  for_each(1, last - first + 1, threads, [&](int64_t, int64_t i) {
    const int64_t begin = std::max((first + i) * a.objects, a.first_row), end = std::min((first + i + 1) * a.objects, a.last_row);
    for (int64_t row = begin; row < end; row++)
      set.aligned_claim(a, row, start[size_t(row - a.first_row)], start[size_t(row - a.first_row) + 1]);
  });
}

static void aligned_settle(const Aligned& a, const Matching& set, int threads) {
  for_each(a.images, 1, threads, [&](int64_t image, int64_t) {
    const auto most = memory_for<float>(2 * a.objects);
    set.aligned_settle(a, image, most.get());
  });
}

static void pair_cost(const PairCost& a, const Matching& set, int threads) {
  for_each(1, a.images * a.objects, threads, [&](int64_t, int64_t row) { set.pair_cost(a, row); });
}

}  // namespace detloss

using namespace detloss;

extern "C" {

EXPORT void detloss_max_iou(const MaxIoU* call, int threads) { max_iou(*call, *current().matching, threads); }
EXPORT void detloss_atss(const Atss* call, int threads) { atss(*call, *current().matching, threads); }
EXPORT void detloss_pair_cost(const PairCost* call, int threads) { pair_cost(*call, *current().matching, threads); }

// The steps of task alignment, in this order; from aligned_pairs to aligned_claim once for every part.
EXPORT void detloss_aligned_count(const Aligned* call, int threads) { aligned_count(*call, *current().matching, threads); }
EXPORT void detloss_aligned_pairs(const Aligned* call, int threads) { aligned_pairs(*call, *current().matching, threads); }
EXPORT void detloss_aligned_overlap(const Aligned* call, int threads) { aligned_overlap(*call, *current().matching, threads); }
EXPORT void detloss_aligned_claim(const Aligned* call, int threads) { aligned_claim(*call, *current().matching, threads); }
EXPORT void detloss_aligned_settle(const Aligned* call, int threads) { aligned_settle(*call, *current().matching, threads); }

}
