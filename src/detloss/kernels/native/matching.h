// The matching of priors with objects that the library answers, as its parts see it. Plain C++: no torch, no Python.
// What these kernels compute decides, so they are compiled without contraction to fused multiply-adds: every operation
// rounds as that of the reference does, and ties are the same ties.

#ifndef DETLOSS_MATCHING_H
#define DETLOSS_MATCHING_H

#include "platform.h"

#include <cstddef>
#include <cstdint>

namespace detloss {

constexpr int64_t ANCHORS = 64;  // neighbouring priors of a tile, left out together when they are all too far away

// Largest IoU of every anchor, and the anchors that objects claim.
struct MaxIoU {
  const float* boxes;      // [P, 4] or, per image, [B, P, 4] corners
  const uint8_t* valid;    // [P] or, per image, [B, P]; null: all
  const float* truth;      // [B, G, 4] corners
  const uint8_t* present;  // [B, G]
  int64_t* index;          // [B, P] object or −1
  float* quality;          // [B, P]
  uint8_t* ignore;         // [B, P]
  int64_t images, priors, objects;
  int32_t boxes_per_image, valid_per_image, claims, last_claims;
  float positive, low, high, least;
};

struct AnchorTile {
  float side[4][ANCHORS], area[ANCHORS];
  float bound[4];  // of the box around the anchors
  uint8_t usable[ANCHORS];
};

struct MatchedObject {
  float side[4], area;
  int32_t number;
};

// The largest IoU of an object (its place among those that are there) within a span of tiles.
struct SpanBest {
  int32_t object;
  float best;
};

struct MaxIoUWork {
  AnchorTile* tiles;  // [1 or B, tile_count]
  MatchedObject* objects;  // [B, G], those that are there first
  int32_t* count;          // [B] how many are there
  uint8_t* any;            // [B] whether an object is valid
  SpanBest* best;          // [B, span_count, G], those that touch the span first
  int32_t* near_count;     // [B, span_count] how many do
  float* wanted;           // [B, G] the IoU at which an object claims; 2 for none
  int64_t tile_count, span_tiles, span_count;
  int32_t tiles_per_image;
};

// Nearest anchors of every level and which of them are positive.
struct Atss {
  const float* boxes;      // [P, 4] or, per image, [B, P, 4] corners
  const uint8_t* valid;    // [B, P] or null
  const float* truth;      // [B, G, 4]
  const uint8_t* present;  // [B, G]
  const int64_t* counts;   // [levels]
  int64_t* owner;          // [B, P] object or −1
  float* quality;          // [B, P]
  int64_t images, priors, objects, levels, topk, memory;
  int32_t boxes_per_image;
  float margin;
};

struct PointTile { float x[ANCHORS], y[ANCHORS]; };

struct AtssWork {
  PointTile* tiles;             // [1 or B, tile_count]
  float* bounds;                // [1 or B, 4, tile_count]
  const int64_t* tile_of_level;  // [levels + 1]
  const int64_t* first_of_tile;  // [tile_count + 1] first prior of every tile
  float* claim_iou;             // [B, group, candidates]
  int32_t* claim_prior;         // [B, group, candidates]
  int64_t tile_count, candidates, group;
  int32_t tiles_per_image;
};

struct PriorTile { float x[ANCHORS], y[ANCHORS], bound[4]; };

// What is known of a prior: the object that chose it last and how many did, and the one that overlaps it most.
struct PriorState {
  float overlap, metric, most_overlap, most_metric;
  int32_t object, number, most_object;
};

// Task alignment. Objects of all images are rows, R = B · G of them; pairs of an object and a prior are dealt with in parts
// that hold whole objects. Columns of a part: logit, later score to the power of alpha, later metric; IoU, later overlap;
// distance of the centres, later overlap to the power of beta; and for the CIoU width and height of the object and of the
// prediction, of which an angle is left later.
struct Aligned {
  const float* xy;        // [P, 2] or, per image, [B, P, 2]
  const uint8_t* valid;   // [B, P]
  const float* region;    // [R, 4]
  const float* truth;     // [R, 4]
  const int64_t* labels;  // [R]
  const void* scores;     // [B, P, C] by score_stride
  const float* boxes;     // [B, P, 4]
  PriorTile* tiles;       // [1 or B, tile_count]
  PriorState* state;      // [B, P]
  int64_t* count;         // [R] pairs of every object
  int32_t* position;      // [pairs]
  float* columns;         // [3 or 7, pairs]
  const float* power;     // [pairs] the third of them
  uint8_t* chosen;        // [pairs]
  int64_t* index;         // [B, P]
  float* quality;         // [B, P]
  int64_t images, priors, objects, classes, topk, tile_count;
  int64_t score_stride[3];
  int64_t pairs, first_row, last_row;  // of the part
  int32_t xy_per_image, score_type, complete;
  float eps;
};

// What all queries cost as partners of all objects.
struct PairCost {
  const float* boxes;     // [B, Q, 4] corners
  const float* truth;     // [B, G, 4]
  const float* units;     // [B, 2] height and width that distances are measured in
  const uint8_t* usable;  // [B, Q]
  const uint8_t* valid;   // [B, G]
  float* cost;            // [B, G, Q] that of the classes, added to
  int64_t images, objects, queries;
  int32_t hull;  // GIoU, else IoU
  float l1_weight, iou_weight, limit;
};

// The entry points of one instruction set.
struct Matching {
  void (*max_iou_columns)(const MaxIoU&, const MaxIoUWork&, int64_t image, int64_t tile);
  bool (*max_iou_objects)(const MaxIoU&, const MaxIoUWork&, int64_t image);
  void (*max_iou_best)(const MaxIoU&, const MaxIoUWork&, int64_t image, int64_t span);
  void (*max_iou_claims)(const MaxIoU&, const MaxIoUWork&, int64_t image, int64_t span);
  void (*atss_centres)(const Atss&, const AtssWork&, int64_t image, int64_t tile);
  void (*atss_object)(const Atss&, const AtssWork&, int64_t image, int64_t object, void* memory);
  void (*atss_settle)(const Atss&, const AtssWork&, int64_t image, int64_t begin, int64_t end);
  void (*aligned_points)(const Aligned&, int64_t image, int64_t tile);
  int64_t (*aligned_count)(const Aligned&, int64_t row);
  void (*aligned_pairs)(const Aligned&, int64_t row, int64_t at);
  void (*aligned_overlap)(const Aligned&, int64_t begin, int64_t end);
  void (*aligned_choose)(const Aligned&, int64_t begin, int64_t end, int64_t* best);
  void (*aligned_claim)(const Aligned&, int64_t row, int64_t begin, int64_t end);
  void (*aligned_settle)(const Aligned&, int64_t image, float* most);
  void (*pair_cost)(const PairCost&, int64_t row);
};

extern const Matching BASE_MATCHING;
#ifdef DETLOSS_X86
extern const Matching AVX2_MATCHING, AVX512_MATCHING;
#endif

}  // namespace detloss

#endif
