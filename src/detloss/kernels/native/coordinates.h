// L1, smooth L1, Huber and squared error of numbers one by one. Included once per instruction set.

struct Distance { float loss, slope; };

INLINE float sign_or_nan(float x) { return x == x ? sign(x) : x; }

template <int OP> INLINE Distance difference(float x, float t, float beta) {
  const float d = x - t, size = __builtin_fabsf(d);
  if (OP == Coordinates::SQUARED) return {d * d, 2.0f * d};
  if (OP == Coordinates::ABSOLUTE) return {size, sign_or_nan(d)};
  const float near = at_most(size, beta);  // all of it within the parabola, else up to the bend
  const float steep = OP == Coordinates::HUBER ? near : near / beta;
  return {steep * (size - 0.5f * near), __builtin_copysignf(steep, d)};
}

template <int OP, bool GRAD, bool W>
static float coordinate_loop(const float* __restrict x, const float* __restrict t, const float* __restrict w, int64_t n,
                             float beta, float scale, float* __restrict out) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    const Distance c = difference<OP>(x[i], t[i], beta);
    const float loss = !W ? c.loss : w[i] == 0.0f ? 0.0f : w[i] * c.loss;
    sum += loss;
    const float slope = !W ? scale * c.slope : w[i] == 0.0f ? 0.0f : w[i] * scale * c.slope;
    out[i] = GRAD ? slope : loss;
  }
  return sum;
}

using CoordinateLoop = float (*)(const float*, const float*, const float*, int64_t, float, float, float*);
#define COORDINATE_LOOPS(op) \
  {{coordinate_loop<op, false, false>, coordinate_loop<op, false, true>}, {coordinate_loop<op, true, false>, coordinate_loop<op, true, true>}}
static const CoordinateLoop COORDINATE_LOOP[4][2][2] = {COORDINATE_LOOPS(0), COORDINATE_LOOPS(1), COORDINATE_LOOPS(2), COORDINATE_LOOPS(3)};
#undef COORDINATE_LOOPS

static void coordinates(const Coordinates& a, int64_t begin, int64_t end, Partial& result) {
  float bx[TILE], bt[TILE], bw[TILE], bout[TILE];
  const bool weighted = a.weight || a.upstream;
  const CoordinateLoop loop = COORDINATE_LOOP[a.op][a.out == nullptr][weighted];
  for (int64_t u = begin; u < end; u++) {
    const int64_t at = u * TILE, n = a.count - at < TILE ? a.count - at : TILE;
    const float *x = static_cast<const float*>(a.pred) + at, *t = static_cast<const float*>(a.target) + at;
    if (a.type != F32) { load(a.pred, a.type, at, n, bx); x = bx; }
    if (a.target_type != F32) { load(a.target, a.target_type, at, n, bt); t = bt; }
    if (weighted) {
      int64_t row = at / a.per_weight, left = a.per_weight - at % a.per_weight;
      for (int64_t i = 0; i < n; i++) {
        bw[i] = a.weight ? a.weight[row] : 1.0f;
        if (--left == 0) { row++; left = a.per_weight; }
      }
      if (a.upstream) for (int64_t i = 0; i < n; i++) bw[i] = bw[i] == 0.0f ? 0.0f : bw[i] * a.upstream[at + i];
    }
    float* out = a.grad ? place(a.grad, a.type, at, bout) : a.out ? a.out + at : bout;
    result.sum += loop(x, t, bw, n, a.beta, a.scale, out);
    if (a.grad) store(a.grad, a.type, at, n, out);
  }
}
