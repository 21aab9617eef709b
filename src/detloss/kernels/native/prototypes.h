// Cross entropy of masks that are linear in prototypes, with the gradients of both factors. Included once per instruction set.
// A piece of a crop is copied once, then all rows of the object go over it: what they predict is never held.

constexpr int64_t PIECE = 64;  // pixels: 8 vectors of 8, which stay in registers

struct PrototypeBuffers {
  float *maps, *slopes;  // [K, PIECE]: prototypes of a piece and their gradients
  float target[PIECE];
};

// Calls line(place in a plane, place in the piece, length) for the lines of which the `n` pixels of a crop from pixel `at` on
// consist.
template <class Line> INLINE void each_line(const int64_t* crop, int64_t width, int64_t at, int64_t n, Line line) {
  const int64_t wide = crop[6] - crop[5];
  for (int64_t done = 0; done < n;) {
    const int64_t y = (at + done) / wide, x = (at + done) % wide, left = wide - x, length = left < n - done ? left : n - done;
    line((crop[3] + y) * width + crop[5] + x, done, length);
    done += length;
  }
}

// Loss of one row over a piece; g becomes the gradient of its logits.
INLINE float row_of_piece(const Prototypes& a, const PrototypeBuffers& b, const float* row, int64_t n, float weight, Eight* g) {
  Eight x[8] = {};
  for (int64_t k = 0; k < a.count; k++) {
    for (int j = 0; j < 8; j++) x[j] += row[k] * load_8(b.maps + k * PIECE + 8 * j);
  }
  float logit[PIECE], slope[PIECE], sum = 0.0f;
  __builtin_memcpy(logit, x, sizeof logit);
  const float* __restrict target = b.target;
  const Options plain = {0.0f, 1.0f, 1.0f, 0.0f, 1.0f, 0.0f};
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < PIECE; i++) {
    const Cell c = mixed_cell<Sigmoid::FOCAL, 0>(logit[i], target[i], 1.0f, 1.0f, 1.0f, plain);
    sum += i < n ? c.loss : 0.0f;
    slope[i] = i < n ? weight * c.slope : 0.0f;
  }
  __builtin_memcpy(g, slope, sizeof slope);
  return sum;
}

// The gradients of a row and, added up, of the prototypes.
INLINE void slopes_of_row(const Prototypes& a, const PrototypeBuffers& b, const float* row, const Eight* g, float* by_row) {
  Eight sums[8];
  for (int64_t first = 0; first < a.count; first += 8) {
    const int64_t some = a.count - first < 8 ? a.count - first : 8;
    for (int64_t k = 0; k < 8; k++) {
      sums[k] = (Eight){};
      if (k >= some) continue;
      const float *maps = b.maps + (first + k) * PIECE, factor = row[first + k];
      float* slopes = b.slopes + (first + k) * PIECE;
      for (int j = 0; j < 8; j++) {
        sums[k] += g[j] * load_8(maps + 8 * j);
        store_8(slopes + 8 * j, load_8(slopes + 8 * j) + factor * g[j]);
      }
    }
    transpose_8(sums);
    const Eight total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    for (int64_t k = 0; k < some; k++) by_row[first + k] += total[k];
  }
}

static void crop_of_prototypes(const Prototypes& a, PrototypeBuffers& b, int64_t number, Partial& result) {
  const int64_t *crop = a.crops + 9 * number, plane = a.height * a.width, pixels = (crop[4] - crop[3]) * (crop[6] - crop[5]);
  const float *maps = a.maps + crop[0] * a.count * plane, *mask = a.masks + crop[7] * plane, weight = a.weight[number];
  const float wanted = float(crop[8]);
  for (int64_t at = 0; at < pixels; at += PIECE) {
    const int64_t n = pixels - at < PIECE ? pixels - at : PIECE;
    for (int64_t i = 0; i < PIECE; i++) b.target[i] = 0.0f;
    for (int64_t i = 0; i < a.count * PIECE; i++) b.slopes[i] = 0.0f;
    if (n < PIECE) for (int64_t i = 0; i < a.count * PIECE; i++) b.maps[i] = 0.0f;
    each_line(crop, a.width, at, n, [&](int64_t from, int64_t to, int64_t length) __attribute__((always_inline)) {
      for (int64_t i = 0; i < length; i++) b.target[to + i] = crop[8] ? float(mask[from + i] == wanted) : mask[from + i];
      for (int64_t k = 0; k < a.count; k++) {
        for (int64_t i = 0; i < length; i++) b.maps[k * PIECE + to + i] = maps[k * plane + from + i];
      }
    });
    double sum = 0.0;
    for (int64_t r = crop[1]; r < crop[2]; r++) {
      Eight g[8];
      sum += row_of_piece(a, b, a.rows + r * a.count, n, weight, g);
      if (a.by_rows) slopes_of_row(a, b, a.rows + r * a.count, g, a.by_rows + r * a.count);
    }
    result.sum += weight * sum;
    if (!a.by_rows) continue;
    float* by_maps = a.by_maps + crop[0] * a.count * plane;
    each_line(crop, a.width, at, n, [&](int64_t to, int64_t from, int64_t length) __attribute__((always_inline)) {
      for (int64_t k = 0; k < a.count; k++) {
        for (int64_t i = 0; i < length; i++) by_maps[k * plane + to + i] += b.slopes[k * PIECE + from + i];
      }
    });
  }
}

// An image at a time: the gradients of its prototypes are added up by one thread.
static void prototypes(const Prototypes& a, int64_t begin, int64_t end, Partial& result) {
  float* memory = new float[size_t(2 * a.count * PIECE)];
  PrototypeBuffers b;
  b.maps = memory;
  b.slopes = memory + a.count * PIECE;
  for (int64_t image = begin; image < end; image++) {
    for (int64_t c = a.first[image]; c < a.first[image + 1]; c++) crop_of_prototypes(a, b, c, result);
  }
  delete[] memory;
}
