// Kullback-Leibler divergence of a student's softmax p from a teacher's q at a temperature T, times T². Included once per
// instruction set. The tiles are those of softmax.h.
//
// ln(q/p) is a difference of logarithms that are almost equal where a student has learned, and T² enlarges what it loses.
// With v = (x - y)/T less its mean under q, KL = ln(1 + s) with s = Σ q (exp(v) - 1 - v), a sum of what is never below 0.
// Where v is small its series keeps all digits; elsewhere q exp(v) = p exp(KL), with KL as the plain difference gives it,
// which is also the answer where it is large.

#define ALWAYS_INLINE __attribute__((always_inline))

constexpr float SERIES = 2.0f;          // the series holds for |v| up to it
constexpr float PLAIN = 0.69314718f;    // KL above it is taken from the plain difference: s would be above 1
constexpr float BEYOND_SERIES = 1e30f;  // stands in for x - y where q is 0

// (exp(v) - 1 - v) / v² for |v| <= SERIES; 4e-8 of it at most.
INLINE float bend(float v) {
  float p = 2.540635080094944e-08f;
  p = p * v + 2.966129386550165e-07f;
  p = p * v + 2.7614037207968067e-06f;
  p = p * v + 2.472973574185744e-05f;
  p = p * v + 0.00019838727894239128f;
  p = p * v + 0.0013889871770516038f;
  p = p * v + 0.008333365432918072f;
  p = p * v + 0.04166661947965622f;
  p = p * v + 0.1666666567325592f;
  return p * v + 0.5f;
}

struct Divergence : SoftmaxLoss<0> {
  static constexpr int64_t MOST = TILE;  // positions of a tile
  // Per number: exp(-gap/T) of the teacher and of the student, and x - y less its mean.
  float *q, *p, *u;
  // Per position: maximum of the teacher, 1 / Σ of q and of p, p to q exp(v), two parts of the mean, the divergence, the
  // limit of the series, the factor of the gradient.
  float top[MOST], by_q[MOST], by_p[MOST], lifted[MOST], mean[MOST], rest[MOST], cost[MOST], limit[MOST], slope[MOST];

  Divergence(const Softmax& call, SoftmaxBuffers& buffers, Partial& partial, float* more)
      : SoftmaxLoss<0>(call, buffers, partial), q(buffers.e), p(more), u(more + positions_per_unit(call) * call.classes) {}

  // f(number, what `at` gives for its position) of every number of the tile.
  template <class At, class Each> MEMBER void each(At at, Each f) {
    if (planar()) {
      for (int64_t c = 0; c < classes(); c++) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) f(c * n + i, at(i));
      }
      return;
    }
    for (int64_t i = 0; i < n; i++) {
      const int64_t first = i * classes(), last = first + classes();
      const auto here = at(i);
#pragma omp simd
      for (int64_t k = first; k < last; k++) f(k, here);
    }
  }

  // Gaps to the maxima, in units of the temperature: those of the teacher in q, of the student in p.
  MEMBER void gaps(float cold) {
    struct Here { bool counts; float student, teacher; };
    const float *from = x, *y = b.t, *w = b.w, *of_student = b.top, *of_teacher = top;
    float *q = this->q, *p = this->p;
    if (planar()) most_of_planes(from, b.top), most_of_planes(y, top);
    else for (int64_t i = 0; i < n; i++) b.top[i] = most_of_row(from + i * classes()), top[i] = most_of_row(y + i * classes());
    each([=](int64_t i) ALWAYS_INLINE { return Here{w[i] != 0.0f, of_student[i], of_teacher[i]}; },
         [=](int64_t k, Here here) ALWAYS_INLINE {
           q[k] = here.counts ? (here.teacher - y[k]) * cold : 0.0f;
           p[k] = here.counts ? (here.student - from[k]) * cold : 0.0f;
         });
  }

  // Exponentials of the gaps, their sums, and the divergence as the plain difference gives it, in `cost`.
  MEMBER void plain() {
    float *__restrict q = this->q, *__restrict p = this->p, *__restrict u = this->u;
    for (int64_t k = 0; k < n * classes(); k++) {
      const float teacher = q[k], student = p[k], e = exp_neg(teacher);
      q[k] = e;
      p[k] = exp_neg(student);
      u[k] = e == 0.0f ? 0.0f : e * (student - teacher);
    }
    sums(by_q, [q](int64_t k, int64_t) ALWAYS_INLINE { return q[k]; });
    sums(by_p, [p](int64_t k, int64_t) ALWAYS_INLINE { return p[k]; });
    sums(mean, [u](int64_t k, int64_t) ALWAYS_INLINE { return u[k]; });
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
      const float of_q = by_q[i], of_p = by_p[i], apart = mean[i] / of_q, lost = (of_q - of_q) + (of_p - of_p);
      cost[i] = apart + log_of(of_p) - log_of(of_q) + lost;  // `lost` is NaN where a sum is: log_of is not
      mean[i] = (b.top[i] - top[i]) - apart * a.temperature;
      by_q[i] = 1.0f / of_q;
      by_p[i] = 1.0f / of_p;
      const float bounded = at_most(at_least(cost[i], 0.0f), 1.0f);
      lifted[i] = by_p[i] / exp_neg(bounded);
      limit[i] = cost[i] <= PLAIN ? SERIES : -1.0f;
    }
  }

  // x - y less `mean`, to the last digit; what rounding left in the mean goes to `rest`.
  MEMBER void centre() {
    struct Here { bool counts; float mean; };
    const float *from = x, *y = b.t, *w = b.w, *q = this->q, *mean = this->mean;
    float* u = this->u;
    each([=](int64_t i) ALWAYS_INLINE { return Here{w[i] != 0.0f, mean[i]}; }, [=](int64_t k, Here here) ALWAYS_INLINE {
      const float difference = from[k] - y[k], back = difference - from[k];
      const float lost = (from[k] - (difference - back)) - (y[k] + back);
      const float centred = (difference - here.mean) + lost;
      u[k] = !here.counts ? 0.0f : q[k] == 0.0f ? BEYOND_SERIES : centred;
    });
    sums(rest, [=](int64_t k, int64_t) ALWAYS_INLINE { return q[k] * u[k]; });
    for (int64_t i = 0; i < n; i++) rest[i] *= by_q[i];
  }

  // Σ q (exp(v) - 1 - v) in b.sum.
  MEMBER void excess(float cold) {
    struct Here { float rest, by_q, lifted; };
    const float *q = this->q, *p = this->p, *u = this->u, *rest = this->rest, *by_q = this->by_q, *lifted = this->lifted;
    float* terms = b.t;
    each([=](int64_t i) ALWAYS_INLINE { return Here{rest[i], by_q[i], lifted[i]}; }, [=](int64_t k, Here here) ALWAYS_INLINE {
      const float v = (u[k] - here.rest) * cold, share = q[k] * here.by_q;
      terms[k] = __builtin_fabsf(v) <= SERIES ? share * (v * v * bend(v)) : p[k] * here.lifted - share * (1.0f + v);
    });
    sums(b.sum, [=](int64_t k, int64_t) ALWAYS_INLINE { return terms[k]; });
  }

  MEMBER void costs() {
    const float hot = a.temperature, scale = a.scale;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
      const float s = at_most(b.sum[i], 1.0f);
      cost[i] = cost[i] <= PLAIN ? log1p_unit(s / (2.0f + s)) : cost[i];
      const float loss = b.w[i] == 0.0f ? 0.0f : b.w[i] * (hot * (hot * cost[i]));
      b.loss[i] = loss;
      sum += loss;
      slope[i] = b.w[i] * scale * hot;
    }
    result.sum += sum;
  }

  // T (p - q), where they are near as q (exp(v - KL) - 1).
  MEMBER void slopes(float cold) {
    struct Here { float rest, by_q, by_p, cost, limit, slope; };
    const float *q = this->q, *p = this->p, *u = this->u, *rest = this->rest, *by_q = this->by_q, *by_p = this->by_p;
    const float *cost = this->cost, *limit = this->limit, *slope = this->slope;
    float* to = g;
    each([=](int64_t i) ALWAYS_INLINE { return Here{rest[i], by_q[i], by_p[i], cost[i], limit[i], slope[i]}; },
         [=](int64_t k, Here here) ALWAYS_INLINE {
           const float v = (u[k] - here.rest) * cold - here.cost, share = q[k] * here.by_q;
           const float near = share * (v + v * v * bend(v)), far = p[k] * here.by_p - share;
           to[k] = here.slope * (__builtin_fabsf(v) <= here.limit ? near : far);
         });
  }

  void tile(int64_t first_position, int64_t count, int64_t first_number) {
    position = first_position;
    n = count;
    memory = first_number;
    const float cold = 1.0f / a.temperature;
    positions();
    find_tile();
    load_tile(a.target, a.target_type, b.t);
    gaps(cold);
    plain();
    centre();
    excess(cold);
    costs();
    if (a.grad) {
      slopes(cold);
      store_tile(g);
    }
    if (a.out) for (int64_t i = 0; i < n; i++) a.out[position + i] = b.loss[i];
  }
};

static void softmax(const Softmax& a, int64_t begin, int64_t end, Partial& result) {
  const size_t numbers = size_t(positions_per_unit(a) * a.classes);
  const bool divergence = a.op == Softmax::DIVERGENCE;
  SoftmaxBuffers b;
  float* memory = new float[(divergence ? 5 : 3) * numbers];
  b.gap = memory;
  b.e = memory + numbers;
  b.t = memory + 2 * numbers;
  const int64_t bins = a.op == Softmax::DISTRIBUTION ? a.classes : 0;
  if (divergence) tiles_of(Divergence(a, b, result, memory + 3 * numbers), begin, end);
  else if (bins == 16) tiles_of(SoftmaxLoss<16>(a, b, result), begin, end);
  else if (bins == 17) tiles_of(SoftmaxLoss<17>(a, b, result), begin, end);
  else tiles_of(SoftmaxLoss<0>(a, b, result), begin, end);
  delete[] memory;
}
