// Sigmoid focal, binary cross entropy (focal with gamma 0), quality focal and varifocal loss: the arithmetic, with gradients.
// Included once per instruction set. Two loops do the arithmetic: `negatives` for columns whose target is 0, which is nearly
// all of them, and `mixed` for any target. Class indices are never made one-hot: a tile's positive columns are taken out of
// the first loop (their logit is replaced by OFF, whose loss and gradient are 0) and go through the second, side by side.

constexpr float OFF = -200.0f;

struct Parts { float p, q, softplus, softplus_neg; };  // σ(x), 1 − σ(x), −ln(1 − σ(x)), −ln σ(x)

INLINE Parts parts(float x) {
  const float e = exp_neg(__builtin_fabsf(x));
  // 1 / (1 + e) and e / (2 + e) from one division, each with a step of Newton's method for the last bits.
  const float u = 1.0f + e, v = 2.0f + e, r = 1.0f / (u * v);
  const float rough = r * v, near = rough * (1.0f - u * rough) + rough, far = e * near;
  const float inverse = r * u, s = e * inverse;
  const float l = log1p_unit(inverse * (e - s * v) + s);
  const bool up = x >= 0.0f;
  return {up ? near : far, up ? far : near, (x > 0.0f ? x : 0.0f) + l, (x < 0.0f ? -x : 0.0f) + l};
}

// G: exponent 0, 2, or -1 for the one given.
template <int G> INLINE float power_g(float base, float gamma) {
  return G == 0 ? 1.0f : G == 2 ? base * base : power(base, gamma);
}
template <int G> INLINE float power_slope(float base, float powered, float gamma) {
  return G == 0 ? 0.0f : G == 2 ? 2.0f * base : base < SMALLEST ? 0.0f : gamma * powered / base;
}

struct Cell { float loss, slope; };

// p^γ softplus(x): what a class costs that is not there.
template <int G> INLINE Cell negative_cell(float x, float gamma) {
  const Parts s = parts(x);
  float pg;
  if (G == 0) pg = 1.0f;
  else if (G == 2) pg = s.p * s.p;
  else {
    const float a = x < 0.0f ? -x : 0.0f, l = s.softplus_neg - a;
    pg = power_of_log(gamma, s.softplus_neg, (a - s.softplus_neg) + l);
  }
  const float g = G == 0 ? s.p : pg * ((G == 2 ? 2.0f : gamma) * s.q * at_most(s.softplus, 128.0f) + s.p);
  return {pg * s.softplus, g};
}

struct Options {
  float gamma, positive, negative, smoothing, alpha;
  float by_quality;  // 1: varifocal weighs positives by their quality; 0: it does not
};

// Any target y in [0, 1]; `own` weighs the positive part, `high` and `low` are the factors of y and 1 − y.
template <int OP, int G> INLINE Cell mixed_cell(float x, float y, float own, float high, float low, const Options& o) {
  const Parts s = parts(x);
  const float soft = OP == Sigmoid::FOCAL ? y * (1.0f - o.smoothing) + 0.5f * o.smoothing : y;
  const float yes = soft * own, no = 1.0f - soft;
  const float entropy = (soft == 0.0f ? 0.0f : yes * s.softplus_neg) + (soft == 1.0f ? 0.0f : no * s.softplus);
  const float slope = no * s.p - yes * s.q, pq = s.p * s.q, finite = at_most(entropy, LARGEST);
  if (OP == Sigmoid::FOCAL) {
    const float factor = high * y + low * (1.0f - y);
    if (G == 0) return {factor * entropy, factor * slope};
    const float missing = y * s.q + (1.0f - y) * s.p, m = power_g<G>(missing, o.gamma);
    const float dm = power_slope<G>(missing, m, o.gamma) * (1.0f - 2.0f * y) * pq;
    return {factor * m * entropy, factor * (dm * finite + m * slope)};
  }
  if (OP == Sigmoid::QUALITY) {
    const float gap = y == 1.0f ? s.q : y - s.p, distance = __builtin_fabsf(gap), m = power_g<G>(distance, o.gamma);
    const float dm = power_slope<G>(distance, m, o.gamma) * (gap > 0.0f ? -pq : pq);
    return {m * entropy, dm * finite + m * slope};
  }
  const float pg = power_g<G>(s.p, o.gamma);
  const float gamma = G == 2 ? 2.0f : o.gamma;
  const float present = y > 0.0f ? 1.0f : 0.0f, there = present * (o.by_quality * y + 1.0f - o.by_quality);
  const float gone = (1.0f - present) * o.alpha * pg;
  return {(there + gone) * entropy, there * slope + gone * (gamma * s.q * finite + slope)};
}

// Sum of weighted losses of columns whose target is 0; writes to `out` the gradients (GRAD) or the losses.
template <int G, bool GRAD, bool W>
static float negatives(const float* __restrict x, const float* __restrict w, int64_t n, float factor, float scale, float gamma,
                       float* __restrict out) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    const Cell c = negative_cell<G>(x[i], gamma);
    const float weight = W ? w[i] * factor : factor, loss = weight * c.loss;
    sum += loss;
    out[i] = GRAD ? weight * scale * c.slope : loss;
  }
  return sum;
}

// What `mixed` reads of each number besides its logit and target.
struct Factors { const float *w, *own, *high, *low; };

template <int OP, int G, bool GRAD, bool W>
static float mixed(const float* __restrict x, const float* __restrict y, const Factors& a, int64_t n, float scale,
                   const Options& given, float* __restrict out) {
  const Options o = given;
  const float *__restrict w = a.w, *__restrict own = a.own, *__restrict high = a.high, *__restrict low = a.low;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    const Cell c = W ? mixed_cell<OP, G>(x[i], y[i], own[i], high[i], low[i], o)
                     : mixed_cell<OP, G>(x[i], y[i], 1.0f, o.positive, o.negative, o);
    const float loss = W ? w[i] * c.loss : c.loss;
    sum += loss;
    out[i] = GRAD ? (W ? w[i] * scale : scale) * c.slope : loss;
  }
  return sum;
}
