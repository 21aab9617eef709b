// How the losses of sigmoid_loops.h walk over logits x[O, C, I], their targets and weights. Included once per instruction set.

constexpr int64_t SMALL_CALL = 128;  // logits

// The buffers of one thread.
struct Buffers {
  float x[TILE], y[TILE], w[TILE], own[TILE], high[TILE], low[TILE], out[TILE];
  // Positive columns, taken together.
  float px[TILE], py[TILE], pw[TILE], pown[TILE], phigh[TILE], plow[TILE], pout[TILE];
  int64_t at[TILE];   // where each one belongs
  float position[TILE], sums[TILE];
  int32_t next[TILE];
  int64_t count;
};

INLINE float weight_at(const Sigmoid& a, int64_t position) {
  const float w = a.weight_spread == POSITION ? a.weight[position] : 1.0f;
  return w == 0.0f ? 0.0f : a.upstream_spread == POSITION ? w * a.upstream[position] : w;
}

INLINE bool any_weight(const Sigmoid& a) { return a.weight_spread != NONE || a.upstream_spread != NONE; }

// Multiplies w by the weights of single elements and marks those that count for nothing: x = OFF, y = 0.
INLINE void weigh_elements(const Sigmoid& a, int64_t at, int64_t n, float* __restrict x, float* __restrict y, float* __restrict w) {
  if (a.weight_spread == ELEMENT) {
    const float* __restrict given = a.weight + at;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) w[i] = w[i] == 0.0f ? 0.0f : w[i] * given[i];
  }
  if (a.upstream_spread == ELEMENT) {
    const float* __restrict given = a.upstream + at;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) w[i] = w[i] == 0.0f ? 0.0f : w[i] * given[i];
  }
  if (a.weight_spread == NONE) return;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) x[i] = w[i] == 0.0f ? OFF : x[i];
  if (!y) return;
#pragma omp simd
  for (int64_t i = 0; i < n; i++) y[i] = w[i] == 0.0f ? 0.0f : y[i];
}

INLINE int32_t outside_unit(const float* __restrict y, int64_t n) {
  int32_t bad = 0;
#pragma omp simd reduction(| : bad)
  for (int64_t i = 0; i < n; i++) bad |= (y[i] < 0.0f) | (y[i] > 1.0f);
  return bad;
}

using Negatives = float (*)(const float*, const float*, int64_t, float, float, float, float*);
using Mixed = float (*)(const float*, const float*, const Factors&, int64_t, float, const Options&, float*);

// The loops of one operation, exponent and result, each without and with weights. A sum is added up by those that make
// gradients even if none is wanted: it has the same bits in training and in evaluation.
struct Loops { Negatives negatives[2]; Mixed mixed[2]; };

template <int OP, int G, bool GRAD> constexpr Loops loops() {
  return {{negatives<G, GRAD, false>, negatives<G, GRAD, true>}, {mixed<OP, G, GRAD, false>, mixed<OP, G, GRAD, true>}};
}

static const Loops LOOPS[3][3][2] = {
    {{loops<0, 0, false>(), loops<0, 0, true>()}, {loops<0, 2, false>(), loops<0, 2, true>()},
     {loops<0, -1, false>(), loops<0, -1, true>()}},
    {{loops<1, 0, false>(), loops<1, 0, true>()}, {loops<1, 2, false>(), loops<1, 2, true>()},
     {loops<1, -1, false>(), loops<1, -1, true>()}},
    {{loops<2, 0, false>(), loops<2, 0, true>()}, {loops<2, 2, false>(), loops<2, 2, true>()},
     {loops<2, -1, false>(), loops<2, -1, true>()}},
};

struct SigmoidLoss {
  const Sigmoid& a;
  Buffers& b;
  Partial& result;
  const Options options;
  const Loops& loop;
  const bool smoothed;    // class indices become targets between 0 and 1: what does not count has a loss if its weight is not 0
  const bool one_by_one;  // every number goes through `mixed`
  const bool each, by_position, by_element;  // losses are asked for, summed over classes or one by one; else gradients

  SigmoidLoss(const Sigmoid& call, Buffers& buffers, Partial& partial)
      : a(call), b(buffers), result(partial),
        options{call.gamma, call.positive, call.negative, call.smoothing, call.negative, float(call.weigh_by_quality != 0)},
        loop(LOOPS[call.op][call.gamma == 0.0f ? 0 : call.gamma == 2.0f ? 1 : 2][call.out == nullptr]),
        smoothed(call.index && call.smoothing != 0.0f), one_by_one(!call.index || smoothed || small(call)), each(call.out != nullptr),
        by_position(each && call.out_spread == POSITION), by_element(each && call.out_spread == ELEMENT) {}

  // A call so small that it costs nothing to give it the same bits with class indices as with dense targets (rows).
  static bool small(const Sigmoid& call) { return call.outer * call.classes * call.inner <= SMALL_CALL; }

  // The target of the class that a position has.
  MEMBER float own_target(int64_t position) const { return a.score ? a.score[position] : 1.0f; }

  // Class of a position: 0…C − 1, −1 for background, −2 when it does not count. Checks its targets.
  MEMBER int32_t class_of(int64_t position) {
    const int64_t t = a.index[position];
    const bool ignored = t == a.ignore;
    result.bad |= !ignored && (t < 0 || t > a.classes);
    if (a.score) result.bad |= (a.score[position] < 0.0f) | (a.score[position] > 1.0f);
    if (ignored || (a.weight_spread == POSITION && a.weight[position] == 0.0f)) return -2;
    return t >= 0 && t < a.classes ? int32_t(t) : -1;
  }

  MEMBER void add_positive(int64_t at, float x, int64_t position, int64_t element, int32_t c) {
    float w = weight_at(a, position);
    if (a.weight_spread == ELEMENT) w = a.weight[element] == 0.0f ? 0.0f : w * a.weight[element];
    if (a.upstream_spread == ELEMENT) w = w == 0.0f ? 0.0f : w * a.upstream[element];
    const int64_t k = b.count++;
    b.at[k] = at;
    b.px[k] = w == 0.0f && a.weight_spread != NONE ? OFF : x;
    b.py[k] = own_target(position);
    b.pw[k] = w;
    b.pown[k] = a.class_weight ? a.class_weight[c] : 1.0f;
    b.phigh[k] = a.alpha ? a.alpha[c] : a.positive;
    b.plow[k] = a.alpha ? 1.0f - a.alpha[c] : a.negative;
  }

  MEMBER void run_positives() {
    const Factors factors{b.pw, b.pown, b.phigh, b.plow};
    result.sum += loop.mixed[1](b.px, b.py, factors, b.count, a.scale, options, b.pout);
  }

  // Losses or gradients of n numbers that lie side by side.
  MEMBER void run(const float* x, bool weighted, int64_t n, float factor, float* out) {
    const Factors factors{b.w, b.own, b.high, b.low};
    result.sum += one_by_one ? loop.mixed[weighted](x, b.y, factors, n, a.scale, options, out)
                             : loop.negatives[weighted](x, b.w, n, factor, a.scale, a.gamma, out);
  }

  // Where the results of a tile are computed, and where they go from there.
  MEMBER float* target_of(int64_t base) {
    return a.grad ? place(a.grad, a.type, base, b.out) : by_element ? a.out + base : b.out;
  }

  // `rows` rows of `columns` columns that lie side by side: I = 1.
  void tile(int64_t row, int64_t rows, int64_t column, int64_t columns) {
    const int64_t n = rows * columns, base = row * a.classes + column;
    const bool weighted = any_weight(a) || a.alpha || (one_by_one && (smoothed || a.class_weight));
    const bool copied = a.type != F32 || weighted || a.index;
    const float* x = b.x;
    if (copied) load(a.x, a.type, base, n, b.x);
    else x = static_cast<const float*>(a.x) + base;
    if (!a.index) {
      load(a.target, a.target_type, base, n, b.y);
      result.bad |= outside_unit(b.y, n);
    } else if (one_by_one) {
      for (int64_t i = 0; i < n; i++) b.y[i] = 0.0f;
    }
    if (weighted) spread_weights(row, rows, column, columns);
    b.count = 0;
    if (a.index) take_out_classes(row, rows, column, columns);
    if (weighted) weigh_elements(a, base, n, b.x, one_by_one ? b.y : nullptr, b.w);
    float* out = target_of(base);
    run(x, weighted, n, a.alpha || one_by_one ? 1.0f : a.negative, out);
    if (b.count) {
      run_positives();
      for (int64_t k = 0; k < b.count; k++) out[b.at[k]] = b.pout[k];
    }
    if (a.grad) store(a.grad, a.type, base, n, out);
    if (by_position) {
      for (int64_t r = 0; r < rows; r++) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < columns; c++) sum += out[r * columns + c];
        a.out[row + r] = column ? a.out[row + r] + sum : sum;
      }
    }
  }

  // Weights of a tile of rows; with alpha, the factor of the negatives of each class is part of them.
  MEMBER void spread_weights(int64_t row, int64_t rows, int64_t column, int64_t columns) {
    if (a.weight_spread != POSITION && a.upstream_spread != POSITION && !a.class_weight && !a.alpha) {
      const int64_t n = rows * columns;  // one number for all: rows may be as short as one number
#pragma omp simd
      for (int64_t i = 0; i < n; i++) { b.w[i] = 1.0f; b.own[i] = 1.0f; b.high[i] = a.positive; b.low[i] = a.negative; }
      return;
    }
    for (int64_t r = 0; r < rows; r++) {
      const float w = weight_at(a, row + r);
      const int64_t at = r * columns;
      for (int64_t c = 0; c < columns; c++) b.w[at + c] = w;
      if (one_by_one) {
        for (int64_t c = 0; c < columns; c++) {
          b.own[at + c] = a.class_weight ? a.class_weight[column + c] : 1.0f;
          b.high[at + c] = a.alpha ? a.alpha[column + c] : a.positive;
          b.low[at + c] = a.alpha ? 1.0f - a.alpha[column + c] : a.negative;
        }
      } else if (a.alpha) {
        for (int64_t c = 0; c < columns; c++) b.w[at + c] *= 1.0f - a.alpha[column + c];
      }
      if (!a.index && a.weight_spread == POSITION && w == 0.0f) {
        for (int64_t c = 0; c < columns; c++) { b.x[at + c] = OFF; b.y[at + c] = 0.0f; }
      }
    }
  }

  MEMBER void take_out_classes(int64_t row, int64_t rows, int64_t column, int64_t columns) {
    for (int64_t r = 0; r < rows; r++) {
      const int32_t c = class_of(row + r);
      const int64_t at = r * columns;
      if (c == -2) {
        for (int64_t i = 0; i < columns; i++) { b.x[at + i] = OFF; b.w[at + i] = 0.0f; }
      } else if (c >= column && c < column + columns) {
        const int64_t k = at + c - column;
        if (one_by_one) {
          b.y[k] = own_target(row + r);
        } else {
          add_positive(k, b.x[k], row + r, (row + r) * a.classes + c, c);
          b.x[k] = OFF;
        }
      }
    }
  }

  // All classes of n neighbouring positions of image `image`: x[O, C, I].
  void planes(int64_t image, int64_t first, int64_t n, int32_t* head) {
    const int64_t start = image * a.inner + first;
    bool masked = false;
    b.count = 0;
    if (a.index) {
      for (int64_t c = 0; c < a.classes; c++) head[c] = -1;
      for (int64_t i = 0; i < n; i++) {
        const int32_t c = class_of(start + i);
        masked |= c == -2;
        b.position[i] = c == -2 ? 0.0f : weight_at(a, start + i);
        if (c >= 0) { b.next[i] = head[c]; head[c] = int32_t(i); }
      }
    } else {
      for (int64_t i = 0; i < n; i++) b.position[i] = weight_at(a, start + i);
    }
    masked |= a.weight_spread == POSITION;
    if (by_position) for (int64_t i = 0; i < n; i++) b.sums[i] = 0.0f;
    for (int64_t c = 0; c < a.classes; c++) plane(image, c, first, n, a.index ? head[c] : -1, masked);
    if (b.count) {
      run_positives();
      for (int64_t k = 0; k < b.count; k++) {
        if (a.grad) store(a.grad, a.type, b.at[k], 1, b.pout + k);
        if (by_element) a.out[b.at[k]] = b.pout[k];
        if (by_position) b.sums[b.at[k] % a.inner - first] += b.pout[k];
      }
    }
    if (by_position) for (int64_t i = 0; i < n; i++) a.out[start + i] = b.sums[i];
  }

  // One class of those positions; `positive` begins the list of positions that have it.
  MEMBER void plane(int64_t image, int64_t c, int64_t first, int64_t n, int32_t positive, bool masked) {
    const int64_t base = (image * a.classes + c) * a.inner + first;
    const bool weighted = any_weight(a) || (one_by_one && (smoothed || a.class_weight || a.alpha));
    const float* x = b.x;
    if (a.type != F32 || weighted || masked || positive >= 0) load(a.x, a.type, base, n, b.x);
    else x = static_cast<const float*>(a.x) + base;
    if (!a.index) {
      load(a.target, a.target_type, base, n, b.y);
      result.bad |= outside_unit(b.y, n);
    } else if (one_by_one) {
      for (int64_t i = 0; i < n; i++) b.y[i] = 0.0f;
    }
    for (int32_t i = positive; i >= 0; i = b.next[i]) {
      if (one_by_one) b.y[i] = own_target(image * a.inner + first + i);
      else {
        add_positive(base + i, b.x[i], image * a.inner + first + i, base + i, int32_t(c));
        b.x[i] = OFF;
      }
    }
    const float high = a.alpha ? a.alpha[c] : a.positive, low = a.alpha ? 1.0f - a.alpha[c] : a.negative;
    if (weighted) {
      const float own = a.class_weight ? a.class_weight[c] : 1.0f;
      for (int64_t i = 0; i < n; i++) {
        b.w[i] = b.position[i]; b.own[i] = own; b.high[i] = high; b.low[i] = low;
      }
      weigh_elements(a, base, n, b.x, one_by_one ? b.y : nullptr, b.w);
    }
    if (masked) {
      for (int64_t i = 0; i < n; i++) b.x[i] = b.position[i] == 0.0f ? OFF : b.x[i];
      if (one_by_one) for (int64_t i = 0; i < n; i++) b.y[i] = b.position[i] == 0.0f ? 0.0f : b.y[i];
    }
    float* out = target_of(base);
    run(x, weighted, n, low, out);
    if (a.grad) store(a.grad, a.type, base, n, out);
    if (by_position) for (int64_t i = 0; i < n; i++) b.sums[i] += out[i];
  }

  void units_of(int64_t begin, int64_t end) {
    if (a.inner > 1) {
      const int64_t per_image = (a.inner + TILE - 1) / TILE;
      int32_t* head = a.index ? new int32_t[size_t(a.classes)] : nullptr;
      for (int64_t u = begin; u < end; u++) {
        const int64_t first = u % per_image * TILE, left = a.inner - first;
        planes(u / per_image, first, left < TILE ? left : TILE, head);
      }
      delete[] head;
    } else if (a.classes <= TILE) {
      const int64_t rows = TILE / a.classes;
      for (int64_t u = begin; u < end; u++) {
        const int64_t row = u * rows, left = a.outer - row;
        tile(row, left < rows ? left : rows, 0, a.classes);
      }
    } else {
      for (int64_t u = begin; u < end; u++) {
        for (int64_t c = 0; c < a.classes; c += TILE) tile(u, 1, c, a.classes - c < TILE ? a.classes - c : TILE);
      }
    }
  }
};

static void sigmoid(const Sigmoid& a, int64_t begin, int64_t end, Partial& result) {
  Buffers buffers;
  SigmoidLoss(a, buffers, result).units_of(begin, end);
}
