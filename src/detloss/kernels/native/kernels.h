// The calls that the library answers, as its instruction-set-specific parts see them. Plain C++ and OpenMP: no torch, no Python.

#ifndef DETLOSS_KERNELS_H
#define DETLOSS_KERNELS_H

#include "platform.h"
#include "matching.h"

#include <cstddef>
#include <cstdint>

namespace detloss {

enum Type { F32 = 0, BF16 = 1, F16 = 2 };
enum Spread { NONE = 0, POSITION = 1, ELEMENT = 2 };  // one number per position [O, I], or per element [O, C, I]

constexpr int64_t BOXES = 256;  // boxes of a tile
constexpr int64_t TILE = 1024;  // numbers of a tile: a few buffers of it stay in the first-level cache

// Losses of logits x[O, C, I] where every class is on its own.
struct Sigmoid {
  enum Op { FOCAL = 0, QUALITY = 1, VARIFOCAL = 2 };
  const void* x;
  const int64_t* index;   // [O, I], or null: dense target
  const void* target;     // [O, C, I]
  const float* score;     // [O, I], or null: 1
  const float* weight;    // by weight_spread
  const float* upstream;  // by upstream_spread; null: 1
  const float* class_weight;  // [C] or null
  const float* alpha;         // [C] or null
  void* grad;             // like x, or null
  float* out;             // by out_spread, or null
  int64_t outer, classes, inner, ignore;
  int32_t type, target_type, weight_spread, upstream_spread, out_spread, op, weigh_by_quality;
  float gamma, positive, negative, smoothing, scale;
};

enum Format { XYXY = 0, XYWH = 1, CXCYWH = 2 };

// Losses of aligned rows of boxes.
struct Boxes {
  enum Kind { LINEAR = 0, SQUARE = 1, LOG = 2, GIOU = 3, DIOU = 4, CIOU = 5, EIOU = 6, SIOU = 7 };
  const void *pred, *target;  // [rows, 4]
  const float *weight, *upstream;  // [rows] or null
  void* grad;  // like pred, or null
  float* out;  // [rows] or null
  int64_t rows;
  int32_t type, target_type, kind, format;
  float eps, extra, scale;
};

// Losses of a softmax over the classes (or bins) of logits x[O, C, I].
struct Softmax {
  enum Op { CLASSES = 0, DISTRIBUTION = 1, DIVERGENCE = 2 };
  const void* x;
  const int64_t* index;  // [O, I], or null
  const void* target;    // [O, C, I] shares or logits of a teacher, or [O] distances in bins
  const float *weight, *upstream;     // [O, I] or null
  const float *class_weight, *alpha;  // [C] or null
  void* grad;  // like x, or null
  float* out;  // [O, I] or null
  int64_t outer, classes, inner, ignore;
  int32_t type, target_type, op;
  float gamma, smoothing, temperature, scale;
};

// Differences of numbers one by one; `per_weight` neighbours share a weight.
struct Coordinates {
  enum Op { ABSOLUTE = 0, SMOOTH = 1, SQUARED = 2, HUBER = 3 };
  const void *pred, *target;  // [count]
  const float *weight;    // [count / per_weight] or null
  const float *upstream;  // [count] or null
  void* grad;  // like pred, or null
  float* out;  // [count] or null
  int64_t count, per_weight;
  int32_t type, target_type, op;
  float beta, scale;
};

// ProbIoU of aligned rows of rotated boxes.
struct Rotated {
  const void *pred, *target;  // [rows, 5]
  const float *weight, *upstream;  // [rows] or null
  void* grad;  // like pred, or null
  float* out;  // [rows] or null
  int64_t rows;
  int32_t type, target_type, itself;  // the distance itself, or its bounded form
  float eps, scale;
};

// Losses of whole masks: sums over the pixels of each.
struct Masks {
  const void *x, *target;  // [rows, pixels]
  const float *weight, *upstream;  // [rows] or null
  void* grad;  // like x, or null
  float* out;  // [rows] or null
  int64_t rows, pixels;
  int32_t type, target_type, squared;
  float alpha, beta, smooth, scale;
};

// Means of the bins of x[images, groups, bins, inner]; an image is `stride` numbers after the one before.
struct Expectation {
  const void* x;
  float* out;  // [images, groups, inner]
  int64_t images, stride, groups, bins, inner;
  int32_t type;
};

// Masks that are linear in prototypes: rows[R, count] times maps[images, count, height, width].
struct Prototypes {
  const float *rows, *maps;
  const float* masks;    // [masks, height, width]
  const float* weight;   // of every pixel of a crop
  const int64_t* crops;  // [crops, 9]: image, first and last row, y1, y2, x1, x2, mask, number of the object in it or 0
  const int64_t* first;  // [images + 1]: first crop of an image
  float *by_rows, *by_maps;  // gradients, added to, or null
  int64_t images, count, height, width;
};

// What a range of work units adds up to.
struct Partial {
  double sum;
  int32_t bad;  // a target was outside its range
};

// The entry points of one instruction set.
struct InstructionSet {
  const char* name;
  void (*sigmoid)(const Sigmoid&, int64_t begin, int64_t end, Partial&);
  void (*boxes)(const Boxes&, int64_t begin, int64_t end, Partial&);
  void (*softmax)(const Softmax&, int64_t begin, int64_t end, Partial&);
  void (*coordinates)(const Coordinates&, int64_t begin, int64_t end, Partial&);
  void (*rotated)(const Rotated&, int64_t begin, int64_t end, Partial&);
  void (*masks)(const Masks&, int64_t begin, int64_t end, Partial&);
  void (*expectation)(const Expectation&, int64_t begin, int64_t end, Partial&);
  void (*prototypes)(const Prototypes&, int64_t begin, int64_t end, Partial&);
  const Matching* matching;
};

// The instruction set in use.
const InstructionSet& current();

// How a call is divided: units of work, and how many numbers each has.
int64_t units(const Sigmoid&);
int64_t numbers_per_unit(const Sigmoid&);
int64_t units(const Boxes&);
int64_t numbers_per_unit(const Boxes&);
int64_t units(const Softmax&);
int64_t numbers_per_unit(const Softmax&);
int64_t positions_per_unit(const Softmax&);
int64_t units(const Coordinates&);
int64_t numbers_per_unit(const Coordinates&);
int64_t units(const Rotated&);
int64_t numbers_per_unit(const Rotated&);
int64_t units(const Masks&);
int64_t numbers_per_unit(const Masks&);
int64_t units(const Expectation&);
int64_t numbers_per_unit(const Expectation&);
int64_t units(const Prototypes&);
int64_t numbers_per_unit(const Prototypes&);

extern const InstructionSet BASE;
#ifdef DETLOSS_X86
extern const InstructionSet AVX2, AVX512;
#endif

}  // namespace detloss

#endif
