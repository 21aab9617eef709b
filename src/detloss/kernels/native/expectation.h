// Means of bins: sum of c e^x / sum of e^x. Included once per instruction set.

// BINS: the number of bins where it is known to the compiler, else 0. A group is the bins of one side of one row.
template <int BINS> static void expectation_rows(const Expectation& a, int64_t row, int64_t rows) {
  const int64_t bins = BINS ? BINS : a.bins, numbers = a.groups * bins;
  float* memory = new float[size_t(2 * numbers)];
  float* e = memory + numbers;
  for (int64_t r = row; r < row + rows; r++) {
    const float* x = static_cast<const float*>(a.x) + r * a.stride;
    if (a.type != F32) { load(a.x, a.type, r * a.stride, numbers, memory); x = memory; }
    for (int64_t g = 0; g < a.groups; g++) {
      const float* own = x + g * bins;
      float top = own[0];
#pragma omp simd reduction(max : top)
      for (int64_t c = 0; c < bins; c++) top = greater(top, own[c]);
#pragma omp simd
      for (int64_t c = 0; c < bins; c++) e[g * bins + c] = top - own[c];
    }
#pragma omp simd
    for (int64_t i = 0; i < numbers; i++) e[i] = exp_neg(e[i]);
    for (int64_t g = 0; g < a.groups; g++) {
      const float* own = e + g * bins;
      float total = 0.0f, weighted = 0.0f;
#pragma omp simd reduction(+ : total, weighted)
      for (int64_t c = 0; c < bins; c++) {
        total += own[c];
        weighted += float(int32_t(c)) * own[c];
      }
      a.out[r * a.groups + g] = weighted / total;
    }
  }
  delete[] memory;
}

// Positions of a map, whose bins are planes.
INLINE void expectation_plane(const Expectation& a, int64_t image, int64_t group, int64_t position, int64_t n) {
  float top[BOXES], total[BOXES], weighted[BOXES], buffer[BOXES];
  const int64_t first = image * a.stride + group * a.bins * a.inner + position;
  const auto plane = [&](int64_t c) __attribute__((always_inline)) {
    if (a.type == F32) return static_cast<const float*>(a.x) + first + c * a.inner;
    load(a.x, a.type, first + c * a.inner, n, buffer);
    return static_cast<const float*>(buffer);
  };
  load(a.x, a.type, first, n, top);
  for (int64_t c = 1; c < a.bins; c++) {
    const float* x = plane(c);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) top[i] = greater(top[i], x[i]);
  }
  for (int64_t i = 0; i < n; i++) total[i] = weighted[i] = 0.0f;
  for (int64_t c = 0; c < a.bins; c++) {
    const float* x = plane(c);
    const float distance = float(c);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      const float e = exp_neg(top[i] - x[i]);
      total[i] += e;
      weighted[i] += distance * e;
    }
  }
  float* to = a.out + (image * a.groups + group) * a.inner + position;
  for (int64_t i = 0; i < n; i++) to[i] = weighted[i] / total[i];
}

static void expectation(const Expectation& a, int64_t begin, int64_t end, Partial&) {
  const int64_t per_plane = (a.inner + BOXES - 1) / BOXES;
  if (a.inner == 1) {
    if (a.bins == 16) return expectation_rows<16>(a, begin, end - begin);
    if (a.bins == 17) return expectation_rows<17>(a, begin, end - begin);
    return expectation_rows<0>(a, begin, end - begin);
  }
  for (int64_t u = begin; u < end; u++) {
    const int64_t plane = u / per_plane, position = u % per_plane * BOXES, left = a.inner - position;
    expectation_plane(a, plane / a.groups, plane % a.groups, position, left < BOXES ? left : BOXES);
  }
}
