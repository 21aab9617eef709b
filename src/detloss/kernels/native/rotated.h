// ProbIoU of rotated boxes, rows of (x, y, w, h, angle). Included once per instruction set. The forward formulas are those of
// geometry/rotated.py and functional/gaussian_boxes.py; no difference of near equals is taken there, and none is taken here.

constexpr float ROTATED_LIMIT = 1e15f, SMALLEST_UNIT = 1e-30f, NEAREST_UNIT = 1e-6f, TURNS_LIMIT = 8192.0f;
constexpr float SMALLEST_SHARE = 1e-9f;  // of the longest side, whose fourth power is a normal number

struct Turn { float cos, sin; };

// Of an angle of at most TURNS_LIMIT: what is left of it after whole quarter turns, by polynomials.
INLINE Turn turn_of(float angle) {
  const float shifted = angle * 0.636619772f + 12582912.0f, n = shifted - 12582912.0f;
  float r = angle - n * 1.5703125f;  // π/2 in three parts: the products with the first two are exact
  r = r - n * 4.837512969970703125e-4f;
  r = r - n * 7.54978995489188216e-8f;
  const float q = r * r;
  const float sin = ((-1.9515295891e-4f * q + 8.3321608736e-3f) * q - 1.6666654611e-1f) * (q * r) + r;
  const float cos = ((2.443315711809948e-5f * q - 1.388731625493765e-3f) * q + 4.166664568298827e-2f) * (q * q) - 0.5f * q + 1.0f;
  const int32_t quarter = to_bits(shifted);
  const float c = (quarter & 1) ? sin : cos, s = (quarter & 1) ? cos : sin;
  return {((quarter + 1) & 2) ? -c : c, (quarter & 2) ? -s : s};
}

struct RotatedBuffers {
  float rows[5 * BOXES], p[5][BOXES], t[5][BOXES], g[5][BOXES], loss[BOXES], w[BOXES];
  float cos_p[BOXES], sin_p[BOXES], cos_t[BOXES], sin_t[BOXES], cos_b[BOXES], sin_b[BOXES];
};

static void turns(int64_t n, RotatedBuffers& b) {
  const float *__restrict p = b.p[4], *__restrict t = b.t[4];
  float *__restrict cp = b.cos_p, *__restrict sp = b.sin_p, *__restrict ct = b.cos_t, *__restrict st = b.sin_t;
  float *__restrict cb = b.cos_b, *__restrict sb = b.sin_b;
  int32_t far = 0;
#pragma omp simd reduction(| : far)
  for (int64_t i = 0; i < n; i++) {
    const float angle = p[i], other = t[i], between = angle - other, back = between - angle;
    const float lost = (angle - (between - back)) - (other + back);  // in the subtraction
    const Turn first = turn_of(angle), second = turn_of(other), third = turn_of(between);
    cp[i] = first.cos; sp[i] = first.sin; ct[i] = second.cos; st[i] = second.sin;
    cb[i] = third.cos - lost * third.sin;
    sb[i] = third.sin + lost * third.cos;
    far |= int32_t(!(greater(__builtin_fabsf(angle), __builtin_fabsf(other)) < 0.5f * TURNS_LIMIT));
  }
  for (int64_t i = 0; far && i < n; i++) {
    const double angle = p[i], other = t[i], between = angle - other;
    if (greater(__builtin_fabsf(p[i]), __builtin_fabsf(t[i])) < 0.5f * TURNS_LIMIT) continue;
    cp[i] = float(__builtin_cos(angle)); sp[i] = float(__builtin_sin(angle));
    ct[i] = float(__builtin_cos(other)); st[i] = float(__builtin_sin(other));
    cb[i] = float(__builtin_cos(between)); sb[i] = float(__builtin_sin(between));
  }
}

struct Side { float length, slope; };

INLINE Side side_of(float length, float unit, float inverse, float eps) {
  const float share = divided(at_least_0(length), unit, inverse), lacking = eps - share;
  const float whole = length < 0.0f ? 0.0f : inverse;
  return {share + 0.5f * at_least_0(lacking), lacking > 0.0f ? 0.5f * whole : whole};
}

INLINE float log1p_of(float x) {
  const float small = at_most(x, 1.0f);
  return x > 1.0f ? log_of(1.0f + x) : log1p_unit(small / (2.0f + small));
}

INLINE float bounded_length(float x) { return at_most(at_least(x, -ROTATED_LIMIT), ROTATED_LIMIT); }
INLINE float within_length(float x, float slope) { return __builtin_fabsf(x) > ROTATED_LIMIT ? 0.0f : slope; }

struct RotatedCell { float loss, x, y, w, h, angle; };

// L2: the distance itself, else √(1 − exp(−distance)).
template <bool L2>
INLINE RotatedCell probiou_of(float px, float py, float p_w, float p_h, float tx, float ty, float t_w, float t_h, Turn own,
                              Turn other, Turn between, float eps) {
  const float x = bounded_length(px), y = bounded_length(py), w = bounded_length(p_w), h = bounded_length(p_h);
  const float a = bounded_length(t_w), b = bounded_length(t_h), dx = x - bounded_length(tx), dy = y - bounded_length(ty);
  const float longest = greater(greater(w, h), greater(a, b)), apart = NEAREST_UNIT * greater(__builtin_fabsf(dx), __builtin_fabsf(dy));
  const float unit = at_least(greater(longest, apart), SMALLEST_UNIT), inverse = 1.0f / unit;
  const Side pw = side_of(w, unit, inverse, eps), ph = side_of(h, unit, inverse, eps);
  const float width = side_of(a, unit, inverse, eps).length, height = side_of(b, unit, inverse, eps).length;
  const float sin2 = between.sin * between.sin, cos2 = between.cos * between.cos;
  const bool across = sin2 > cos2;
  const float s = across ? cos2 : sin2, tw = across ? height : width, th = across ? width : height;
  const float by_turn = (across ? -2.0f : 2.0f) * between.sin * between.cos;  // of s
  const float ux = divided(dx, unit, inverse), uy = divided(dy, unit, inverse);
  const float pu = ux * own.cos + uy * own.sin, pv = uy * own.cos - ux * own.sin;
  const float tu = ux * other.cos + uy * other.sin, tv = uy * other.cos - ux * other.sin;

  const float area = pw.length * ph.length, target_area = tw * th, least = 4.0f * (area * target_area);
  const float straight = difference_of_products(pw.length, th, tw, ph.length);
  const float crossed = difference_of_products(pw.length, tw, ph.length, th);
  const float more = difference_of_products(pw.length, ph.length, tw, th);
  const float excess = more * more + (1.0f - s) * (straight * straight) + s * (crossed * crossed);
  const float hu = ph.length * pu, wv = pw.length * pv, tall = height * tu, wide = width * tv;
  const float offset = (hu * hu + wv * wv) + (tall * tall + wide * wide), whole = least + excess, per = 1.0f / whole;
  const float part = 3.0f * divided(offset, whole, per), z = excess / least;
  const float distance = part + 0.5f * log1p_of(z);

  float loss = distance, by_distance = 1.0f;
  if (!L2) {
    const float missing = one_minus_exp(distance), root = __builtin_sqrtf(at_least_0(missing));
    loss = missing > 0.0f ? root : missing;
    by_distance = missing > 0.0f ? 0.5f * exp_neg(distance) / at_least(root, SMALLEST) : 1.0f;
  }
  const float depth = greater(greater(__builtin_fabsf(w), __builtin_fabsf(h)), unit), negative = at_least_0(-w) + at_least_0(-h);
  const float inverted = negative / depth;
  const bool floored = (inverted > 0.0f) & (loss < 1.0f);
  loss = (floored ? 1.0f : loss) + inverted;
  by_distance = floored ? 0.0f : by_distance;

  const float q = by_distance * per, by_offset = 6.0f * q, by_excess = 2.0f * q * (0.5f - part), by_least = -4.0f * q * (part + 0.5f * z);
  const float by_straight = by_excess * (1.0f - s) * straight, by_crossed = by_excess * s * crossed, by_more = by_excess * more;
  const float by_w = by_offset * (pw.length * (pv * pv)) + by_more * ph.length + by_straight * th + by_crossed * tw +
                     by_least * (target_area * ph.length);
  const float by_h = by_offset * (ph.length * (pu * pu)) + by_more * pw.length - by_straight * tw - by_crossed * th +
                     by_least * (target_area * pw.length);
  const float by_pu = by_offset * (hu * ph.length), by_pv = by_offset * (wv * pw.length);
  const float by_tu = by_offset * (tall * height), by_tv = by_offset * (wide * width);
  const float by_ux = (by_pu * own.cos - by_pv * own.sin) + (by_tu * other.cos - by_tv * other.sin);
  const float by_uy = (by_pu * own.sin + by_pv * own.cos) + (by_tu * other.sin + by_tv * other.cos);
  const float by_s = 0.5f * by_excess * ((crossed - straight) * (crossed + straight));
  RotatedCell cell;
  // What a comparison dropped: 0 of finite numbers, NaN of NaN.
  const float broken = ((x + y) + (w + h) + (dx + dy) + (a + b) + (own.cos + other.cos)) * 0.0f;
  cell.loss = loss + broken;
  cell.x = within_length(px, by_ux * inverse) + broken;
  cell.y = within_length(py, by_uy * inverse) + broken;
  cell.w = within_length(p_w, by_w * pw.slope - (w < 0.0f ? 1.0f / depth : 0.0f)) + broken;
  cell.h = within_length(p_h, by_h * ph.slope - (h < 0.0f ? 1.0f / depth : 0.0f)) + broken;
  cell.angle = by_offset * (pu * pv) * ((ph.length - pw.length) * (ph.length + pw.length)) + by_s * by_turn + broken;
  return cell;
}

template <bool L2, bool GRAD>
static float rotated_loop(RotatedBuffers& b, int64_t n, float eps, float scale, float* __restrict each) {
  const float *__restrict px = b.p[0], *__restrict py = b.p[1], *__restrict pw = b.p[2], *__restrict ph = b.p[3];
  const float *__restrict tx = b.t[0], *__restrict ty = b.t[1], *__restrict tw = b.t[2], *__restrict th = b.t[3];
  float *__restrict gx = b.g[0], *__restrict gy = b.g[1], *__restrict gw = b.g[2], *__restrict gh = b.g[3], *__restrict ga = b.g[4];
  const float *__restrict cp = b.cos_p, *__restrict sp = b.sin_p, *__restrict ct = b.cos_t, *__restrict st = b.sin_t;
  const float *__restrict cb = b.cos_b, *__restrict sb = b.sin_b, *__restrict w = b.w;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    const RotatedCell c = probiou_of<L2>(px[i], py[i], pw[i], ph[i], tx[i], ty[i], tw[i], th[i], {cp[i], sp[i]}, {ct[i], st[i]},
                                         {cb[i], sb[i]}, eps);
    const float loss = w[i] == 0.0f ? 0.0f : w[i] * c.loss, factor = w[i] * scale;
    sum += loss;
    if (GRAD) {
      gx[i] = w[i] == 0.0f ? 0.0f : factor * c.x;
      gy[i] = w[i] == 0.0f ? 0.0f : factor * c.y;
      gw[i] = w[i] == 0.0f ? 0.0f : factor * c.w;
      gh[i] = w[i] == 0.0f ? 0.0f : factor * c.h;
      ga[i] = w[i] == 0.0f ? 0.0f : factor * c.angle;
    } else {
      each[i] = loss;
    }
  }
  return sum;
}

// Rows of five numbers of any dtype to five columns.
INLINE void to_five_columns(const void* from, int type, int64_t row, int64_t n, float* __restrict buffer, float (&columns)[5][BOXES]) {
  const float* __restrict rows = static_cast<const float*>(from) + 5 * row;
  if (type != F32) { load(from, type, 5 * row, 5 * n, buffer); rows = buffer; }
  for (int64_t i = 0; i < n; i++) for (int k = 0; k < 5; k++) columns[k][i] = rows[5 * i + k];
}

static void rotated(const Rotated& a, int64_t begin, int64_t end, Partial& result) {
  RotatedBuffers b;
  using Loop = float (*)(RotatedBuffers&, int64_t, float, float, float*);
  static const Loop LOOPS[2][2] = {{rotated_loop<false, false>, rotated_loop<false, true>},
                                   {rotated_loop<true, false>, rotated_loop<true, true>}};
  const Loop loop = LOOPS[a.itself != 0][a.grad != nullptr];
  for (int64_t u = begin; u < end; u++) {
    const int64_t row = u * BOXES, n = a.rows - row < BOXES ? a.rows - row : BOXES;
    to_five_columns(a.pred, a.type, row, n, b.rows, b.p);
    to_five_columns(a.target, a.target_type, row, n, b.rows, b.t);
    for (int64_t i = 0; i < n; i++) {
      const float w = a.weight ? a.weight[row + i] : 1.0f;
      b.w[i] = w == 0.0f ? 0.0f : a.upstream ? w * a.upstream[row + i] : w;
    }
    turns(n, b);
    result.sum += loop(b, n, at_least(a.eps, SMALLEST_SHARE), a.scale, a.out ? a.out + row : b.loss);
    if (a.grad) {
      float* __restrict rows = place(a.grad, a.type, 5 * row, b.rows);
      for (int64_t i = 0; i < n; i++) for (int k = 0; k < 5; k++) rows[5 * i + k] = b.g[k][i];
      store(a.grad, a.type, 5 * row, 5 * n, rows);
    }
  }
}
