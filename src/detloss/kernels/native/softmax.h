// Losses of a softmax over classes or bins: cross entropy, softmax focal, distribution focal, with their gradients.
// Included once per instruction set. A tile holds some positions with all their classes: passes over rows (or planes) find
// maxima and sums, passes over everything side by side take the exponentials, passes over positions the logarithms.

// log(1 + others / own) where own = exp(-gap) and total = own + others: −ln of the share of `own`, with all its digits.
INLINE float cost_of_share(float own, float others, float total, float gap) {
  const float ratio = others / at_least(own, SMALLEST), near = log1p_unit(at_most(ratio, 1.0f) / (2.0f + at_most(ratio, 1.0f)));
  const float far = gap + log_of(at_least(total, SMALLEST));
  return others < own ? near : far;
}

struct SoftmaxBuffers {
  // Per number of a tile.
  float *gap, *e, *t;
  // Per position of a tile.
  float top[TILE], w[TILE], sum[TILE], own_e[TILE], own_gap[TILE], factor[TILE], share[TILE], extra[TILE], loss[TILE];
  float by_p[TILE], at_own[TILE];
  int64_t own[TILE];  // where the own class lies in the tile, or -1
  int32_t bin[TILE];  // the lower of the two that a distance lies between
};

// C: number of bins where it is known to the compiler, which goes by eights, else 0 for any call. A plane has all positions of
// one class.
template <int C> struct SoftmaxLoss {
  const Softmax& a;
  SoftmaxBuffers& b;
  Partial& result;
  int64_t n, position, memory;  // of the tile: positions, the first one, where it lies
  const float* x;  // its logits, and where its gradient is made: rows of fp32 where they lie, without a copy
  float* g;

  SoftmaxLoss(const Softmax& call, SoftmaxBuffers& buffers, Partial& partial)
      : a(call), b(buffers), result(partial) {}

  MEMBER bool planar() const { return C == 0 && a.inner > 1; }

  MEMBER int64_t classes() const { return C ? C : a.classes; }

  MEMBER int64_t at(int64_t i, int64_t c) const { return planar() ? c * n + i : i * classes() + c; }

  MEMBER void load_tile(const void* from, int type, float* to) {
    if (!planar()) return load(from, type, memory, n * classes(), to);
    for (int64_t c = 0; c < classes(); c++) load(from, type, memory + c * a.inner, n, to + c * n);
  }

  // Finds x and g. Gradients that are not wanted go the way of e.
  MEMBER void find_tile() {
    const bool in_place = !planar() && a.type == F32;
    x = in_place ? static_cast<const float*>(a.x) + memory : b.gap;
    g = in_place && a.grad ? static_cast<float*>(a.grad) + memory : b.e;
    if (!in_place) load_tile(a.x, a.type, b.gap);
  }

  MEMBER void store_tile(const float* from) {
    if (!planar()) return store(a.grad, a.type, memory, n * classes(), from);
    for (int64_t c = 0; c < classes(); c++) store(a.grad, a.type, memory + c * a.inner, n, from + c * n);
  }

  MEMBER float most_of_row(const float* row) const {
    float most = row[0];
#pragma omp simd reduction(max : most)
    for (int64_t c = 0; c < classes(); c++) most = greater(most, row[c]);
    return most;
  }

  MEMBER void most_of_planes(const float* __restrict from, float* __restrict top) const {
    for (int64_t i = 0; i < n; i++) top[i] = from[i];
    for (int64_t c = 1; c < classes(); c++) for (int64_t i = 0; i < n; i++) top[i] = greater(top[i], from[c * n + i]);
  }

  // gap = maximum − x of every number; a position that does not count (w = 0) gets 0 everywhere.
  MEMBER void gaps() {
    float* __restrict top = b.top;
    if (planar()) {
      float* __restrict gap = b.gap;
      most_of_planes(gap, top);
      for (int64_t c = 0; c < classes(); c++) {
        for (int64_t i = 0; i < n; i++) gap[c * n + i] = b.w[i] == 0.0f ? 0.0f : top[i] - gap[c * n + i];
      }
      return;
    }
    for (int64_t i = 0; i < n; i++) {
      const float* row = x + i * classes();
      float* gap = b.gap + i * classes();
      const float most = most_of_row(row);
      if (b.w[i] == 0.0f) for (int64_t c = 0; c < classes(); c++) gap[c] = 0.0f;
      else {
#pragma omp simd
        for (int64_t c = 0; c < classes(); c++) gap[c] = most - row[c];
      }
    }
  }

  MEMBER void exponentials() {
    const float* __restrict gap = b.gap;
    float* __restrict e = b.e;
    for (int64_t i = 0; i < n * classes(); i++) e[i] = exp_neg(gap[i]);
  }

  // Sums over classes of every position.
  template <class Number> MEMBER void sums(float* __restrict to, Number number) {
    if (planar()) {
      for (int64_t i = 0; i < n; i++) to[i] = 0.0f;
      for (int64_t c = 0; c < classes(); c++) for (int64_t i = 0; i < n; i++) to[i] += number(c * n + i, c);
      return;
    }
    for (int64_t i = 0; i < n; i++) {
      float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < classes(); c++) sum += number(i * classes() + c, c);
      to[i] = sum;
    }
  }

  // The gradient: factor of the position times its e, less what `less` says.
  template <class Number> MEMBER void gradients(const float* __restrict factor, Number less) {
    const float* e = b.e;
    float* to = g;  // e itself, or memory of its own
    if (planar()) {
      for (int64_t c = 0; c < classes(); c++) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) to[c * n + i] = factor[i] * e[c * n + i] - less(c * n + i, i, c);
      }
      return;
    }
    for (int64_t i = 0; i < n; i++) {
#pragma omp simd
      for (int64_t c = 0; c < classes(); c++) to[i * classes() + c] = factor[i] * e[i * classes() + c] - less(i * classes() + c, i, c);
    }
  }

  // Weights; with class indices, also where the own class lies and its factor.
  MEMBER void positions() {
    for (int64_t i = 0; i < n; i++) {
      const float w = a.weight ? a.weight[position + i] : 1.0f;
      b.w[i] = w == 0.0f ? 0.0f : a.upstream ? w * a.upstream[position + i] : w;
      b.own[i] = -1;
      if (!a.index) continue;
      const int64_t t = a.index[position + i];
      const bool there = t != a.ignore && t >= 0 && t < classes();
      result.bad |= t != a.ignore && !there;
      if (!there) b.w[i] = 0.0f;
      if (b.w[i] == 0.0f) continue;
      b.own[i] = at(i, t);
      b.factor[i] = (a.class_weight ? a.class_weight[t] : 1.0f) * (a.alpha ? a.alpha[t] : 1.0f);
    }
  }

  // The own class leaves the sum, so that what is small beside it keeps its digits.
  MEMBER void take_out_own() {
    for (int64_t i = 0; i < n; i++) {
      const int64_t k = b.own[i];
      b.own_e[i] = k < 0 ? 1.0f : b.e[k];
      b.own_gap[i] = k < 0 ? 0.0f : b.gap[k];
      if (k < 0) b.factor[i] = 0.0f;
      else b.e[k] = 0.0f;
    }
  }

  MEMBER void with_index() {
    take_out_own();
    const float* __restrict e = b.e;
    sums(b.sum, [e](int64_t k, int64_t) __attribute__((always_inline)) { return e[k]; });
    const float smoothing = a.smoothing, per_class = smoothing / float(classes()), gamma = a.gamma, scale = a.scale;
    const float* class_weight = a.class_weight;
    float all = 0.0f;
    for (int64_t c = 0; c < classes(); c++) all += class_weight ? class_weight[c] : 1.0f;
    if (smoothing != 0.0f) {
      const float* __restrict gap = b.gap;
      sums(b.extra, [=](int64_t k, int64_t c) __attribute__((always_inline)) { return (class_weight ? class_weight[c] : 1.0f) * gap[k]; });
    }
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
      const float others = b.sum[i], own = b.own_e[i], total = own + others, inverse = 1.0f / total;
      const float missing = others * inverse, cost = cost_of_share(own, others, total, b.own_gap[i]);
      const float m = gamma == 0.0f ? 1.0f : gamma == 2.0f ? missing * missing : power(missing, gamma);
      const float steep = missing < SMALLEST ? 0.0f : gamma * m / missing * (own * inverse) * at_most(cost, LARGEST);
      const float kept = (1.0f - smoothing) * b.factor[i], w = b.w[i];
      const float spread = smoothing != 0.0f ? per_class * (b.extra[i] + all * log_of(at_least(total, SMALLEST))) : 0.0f;
      const float loss = w == 0.0f ? 0.0f : w * (kept * m * cost + spread);
      b.loss[i] = loss;
      sum += loss;
      const float by_p = w * scale * (kept * (m + steep) + per_class * all);
      b.by_p[i] = by_p * inverse;
      b.at_own[i] = -by_p * missing;
    }
    result.sum += sum;
    if (!a.grad) return;
    if (smoothing == 0.0f) gradients(b.by_p, [](int64_t, int64_t, int64_t) __attribute__((always_inline)) { return 0.0f; });
    else {
      const float* __restrict w = b.w;
      gradients(b.by_p, [=](int64_t, int64_t i, int64_t c) __attribute__((always_inline)) {
        return w[i] * scale * per_class * (class_weight ? class_weight[c] : 1.0f);
      });
    }
    for (int64_t i = 0; i < n; i++) {
      if (b.own[i] < 0) continue;
      const float own_weight = class_weight && smoothing != 0.0f ? class_weight[a.index[position + i]] : 1.0f;
      g[b.own[i]] = b.at_own[i] + b.w[i] * scale * per_class * (all - own_weight);
    }
  }

  // Σ t (gap + ln Σ e): t holds the targets, smoothed and weighed.
  MEMBER void with_dense() {
    load_tile(a.target, a.target_type, b.t);
    result.bad |= outside_unit(b.t, n * classes());
    const float kept = 1.0f - a.smoothing, per_class = a.smoothing / float(classes()), scale = a.scale;
    const float* class_weight = a.class_weight;
    float* __restrict t = b.t;
    for (int64_t c = 0; c < classes(); c++) {
      const float factor = class_weight ? class_weight[c] : 1.0f;
      for (int64_t i = 0; i < n; i++) t[at(i, c)] = b.w[i] == 0.0f ? 0.0f : (t[at(i, c)] * kept + per_class) * factor;
    }
    const float *__restrict e = b.e, *__restrict gap = b.gap;
    sums(b.sum, [e](int64_t k, int64_t) __attribute__((always_inline)) { return e[k]; });
    sums(b.share, [t](int64_t k, int64_t) __attribute__((always_inline)) { return t[k]; });
    sums(b.extra, [=](int64_t k, int64_t) __attribute__((always_inline)) { return t[k] == 0.0f ? 0.0f : t[k] * gap[k]; });
    float sum = 0.0f;
    for (int64_t i = 0; i < n; i++) {
      const float loss = b.w[i] == 0.0f ? 0.0f : b.w[i] * (b.extra[i] + b.share[i] * log_of(at_least(b.sum[i], SMALLEST)));
      b.loss[i] = loss;
      sum += loss;
      b.by_p[i] = b.w[i] * scale * b.share[i] / b.sum[i];
    }
    result.sum += sum;
    const float* __restrict w = b.w;
    if (a.grad) gradients(b.by_p, [=](int64_t k, int64_t i, int64_t) __attribute__((always_inline)) { return w[i] * scale * t[k]; });
  }

  // Maxima, sums and gradients without the target of eight rows, as columns.
  MEMBER void eight_rows(const float* from, const float* weights, float* to, float* top, float* sum) {
    Eight e[C ? C : 1];
    read_columns<C>(from, e);
    const Eight w = load_8(weights);
    if (a.weight || a.upstream) for (int c = 0; c < C; c++) e[c] = w == 0.0f ? (Eight){} : e[c];
    Eight most = e[0], total = {};
    for (int c = 1; c < C; c++) most = greater_8(most, e[c]);
    for (int c = 0; c < C; c++) total += e[c] = exp_neg(most - e[c]);
    const Eight factor = w * a.scale / total;
    for (int c = 0; c < C; c++) e[c] *= factor;
    write_columns<C>(e, to);
    store_8(top, most);
    store_8(sum, total);
  }

  // The same of the whole tile; what is left below eight rows is filled up.
  MEMBER void all_rows() {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) eight_rows(x + i * C, b.w + i, g + i * C, b.top + i, b.sum + i);
    if (i == n) return;
    float from[8 * (C ? C : 1)] = {}, to[8 * (C ? C : 1)], weights[8] = {}, top[8], sum[8];
    __builtin_memcpy(from, x + i * C, size_t(n - i) * C * 4);
    __builtin_memcpy(weights, b.w + i, size_t(n - i) * 4);
    eight_rows(from, weights, to, top, sum);
    __builtin_memcpy(g + i * C, to, size_t(n - i) * C * 4);
    __builtin_memcpy(b.top + i, top, size_t(n - i) * 4);
    __builtin_memcpy(b.sum + i, sum, size_t(n - i) * 4);
  }

  MEMBER float gap_at(int64_t i, int64_t k) const { return C ? b.top[i] - x[k] : b.gap[k]; }

  // (1 − share) (gap_k + ln Σ e) + share (gap_{k+1} + ln Σ e) for a distance of k + share bins.
  MEMBER void with_distance() {
    if constexpr (C != 0) all_rows();
    else {
      const float* __restrict e = b.e;
      sums(b.sum, [e](int64_t k, int64_t) __attribute__((always_inline)) { return e[k]; });
    }
    const float last = float(classes() - 1), before_last = last - 1.0f, scale = a.scale;
    load(a.target, a.target_type, position, n, b.extra);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      const float distance = b.w[i] == 0.0f ? 0.0f : at_most(at_least(b.extra[i], 0.0f), last);
      b.bin[i] = int32_t(distance > 0.0f ? at_most(distance, before_last) : 0.0f);
      b.share[i] = distance - float(b.bin[i]);
    }
    for (int64_t i = 0; i < n; i++) {
      const int64_t own = i * classes() + b.bin[i];
      b.own_gap[i] = (1.0f - b.share[i]) * gap_at(i, own) + b.share[i] * gap_at(i, own + 1);
    }
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
      const float loss = b.w[i] == 0.0f ? 0.0f : b.w[i] * (b.own_gap[i] + log_of(at_least(b.sum[i], SMALLEST)));
      b.loss[i] = loss;
      sum += loss;
      b.by_p[i] = b.w[i] * scale / b.sum[i];
    }
    result.sum += sum;
    if (!a.grad) return;
    if constexpr (C == 0) gradients(b.by_p, [](int64_t, int64_t, int64_t) __attribute__((always_inline)) { return 0.0f; });
    for (int64_t i = 0; i < n; i++) {
      float* own = g + i * classes() + b.bin[i];
      own[0] -= b.w[i] * scale * (1.0f - b.share[i]);
      own[1] -= b.w[i] * scale * b.share[i];
    }
  }

  void tile(int64_t first_position, int64_t count, int64_t first_number) {
    position = first_position;
    n = count;
    memory = first_number;
    positions();
    find_tile();
    if constexpr (C != 0) with_distance();
    else {
      gaps();
      exponentials();
      if (a.op == Softmax::DISTRIBUTION) with_distance();
      else if (a.index) with_index();
      else with_dense();
    }
    if (a.grad) store_tile(g);
    if (a.out) for (int64_t i = 0; i < n; i++) a.out[position + i] = b.loss[i];
  }
};

// All tiles of some units of work.
template <class Loss> INLINE void tiles_of(Loss&& loss, int64_t begin, int64_t end) {
  const Softmax& a = loss.a;
  const int64_t size = positions_per_unit(a), per_image = (a.inner + size - 1) / size;
  for (int64_t u = begin; u < end; u++) {
    if (loss.planar()) {
      const int64_t image = u / per_image, first = u % per_image * size, left = a.inner - first;
      loss.tile(image * a.inner + first, left < size ? left : size, image * a.classes * a.inner + first);
    } else {
      const int64_t row = u * size, left = a.outer - row;
      loss.tile(row, left < size ? left : size, row * a.classes);
    }
  }
}
