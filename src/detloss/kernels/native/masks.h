// Tversky loss of masks x[rows, pixels], and Dice loss, which is one of them. Included once per instruction set.

struct Shares { float common, falsely, missed; };  // Σ p t, Σ (p' − p t), Σ (t' − p t), where x' is x or x²

template <bool SQUARED> INLINE float sized(float x) { return SQUARED ? x * x : x; }

struct Sigma { float p, slope; };  // σ(x) and its derivative

INLINE Sigma sigma(float x) {
  const float e = exp_neg(__builtin_fabsf(x)), near = 1.0f / (1.0f + e), far = e * near;
  return {x < 0.0f ? far : near, near * far};
}

template <bool SQUARED> static Shares mask_shares(const float* __restrict x, const float* __restrict t, int64_t n, int32_t& bad) {
  float common = 0.0f, falsely = 0.0f, missed = 0.0f;
  int32_t outside = 0;
#pragma omp simd reduction(+ : common, falsely, missed) reduction(| : outside)
  for (int64_t i = 0; i < n; i++) {
    const float p = sigma(x[i]).p, both = p * t[i];
    common += both;
    falsely += sized<SQUARED>(p) - both;
    missed += sized<SQUARED>(t[i]) - both;
    outside |= (t[i] < 0.0f) | (t[i] > 1.0f);
  }
  bad |= outside;
  return {common, falsely, missed};
}

// `by_size` and `by_common` are the derivatives of the loss to Σ p' and Σ p t.
template <bool SQUARED>
static void mask_slopes(const float* __restrict x, const float* __restrict t, int64_t n, float by_size, float by_common,
                        float* __restrict out) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) {
    const Sigma s = sigma(x[i]);
    out[i] = ((SQUARED ? 2.0f * s.p : 1.0f) * by_size + t[i] * by_common) * s.slope;
  }
}

template <bool SQUARED> static void mask_row(const Masks& a, int64_t row, Partial& result) {
  float bx[TILE], bt[TILE], bout[TILE];
  const auto tile = [&](int64_t at, int64_t n, const float*& x, const float*& t) {
    x = static_cast<const float*>(a.x) + at;
    t = static_cast<const float*>(a.target) + at;
    if (a.type != F32) { load(a.x, a.type, at, n, bx); x = bx; }
    if (a.target_type != F32) { load(a.target, a.target_type, at, n, bt); t = bt; }
  };
  const int64_t begin = row * a.pixels, end = begin + a.pixels;
  const float *x, *t;
  double common = 0.0, falsely = 0.0, missed = 0.0;
  for (int64_t at = begin; at < end; at += TILE) {
    const int64_t n = end - at < TILE ? end - at : TILE;
    tile(at, n, x, t);
    const Shares s = mask_shares<SQUARED>(x, t, n, result.bad);
    common += s.common;
    falsely += s.falsely;
    missed += s.missed;
  }
  const float w = a.weight ? a.weight[row] : 1.0f;
  const double missing = a.alpha * falsely + a.beta * missed, whole = common + missing + a.smooth;
  const bool bounded = whole < double(SMALLEST);  // by the smallest number, which has no slope
  const double divisor = bounded ? double(SMALLEST) : whole;
  const float loss = w == 0.0f ? 0.0f : float(w * (missing / divisor));
  result.sum += loss;
  if (a.out) a.out[row] = loss;
  if (!a.grad) return;
  const double share = bounded ? 1.0 : (common + a.smooth) / whole, rest = bounded ? 0.0 : missing / whole;
  const double scale = w == 0.0f ? 0.0 : double(w) * (a.upstream ? a.upstream[row] : 1.0f) * a.scale / divisor;
  const float by_size = float(scale * a.alpha * share), by_common = float(-scale * ((a.alpha + a.beta) * share + rest));
  for (int64_t at = begin; at < end; at += TILE) {
    const int64_t n = end - at < TILE ? end - at : TILE;
    tile(at, n, x, t);
    float* out = place(a.grad, a.type, at, bout);
    if (w == 0.0f) {
      for (int64_t i = 0; i < n; i++) out[i] = 0.0f;
    } else {
      mask_slopes<SQUARED>(x, t, n, by_size, by_common, out);
    }
    store(a.grad, a.type, at, n, out);
  }
}

static void masks(const Masks& a, int64_t begin, int64_t end, Partial& result) {
  for (int64_t row = begin; row < end; row++) a.squared ? mask_row<true>(a, row, result) : mask_row<false>(a, row, result);
}
