// The losses of boxes_cells.h over rows of boxes: tiles are transposed, so that a vector holds one coordinate of many boxes.
// Included once per instruction set.

constexpr int64_t BLOCK = 64;  // boxes that one special pair among them makes slow

struct BoxBuffers {
  float pred[4 * BOXES], target[4 * BOXES], out[4 * BOXES];
  float p[4][BOXES], t[4][BOXES], g[4][BOXES], loss[BOXES], w[BOXES];
  int32_t special[BOXES];
};

// Rows of four numbers to four columns, as corners.
INLINE void to_columns(const float* __restrict rows, int64_t n, int format, float (&columns)[4][BOXES]) {
  float *__restrict a = columns[0], *__restrict b = columns[1], *__restrict c = columns[2], *__restrict d = columns[3];
  int64_t first = 0;
  for (; first + 8 <= n; first += 8) {
    Eight r[4] = {load_8(rows + 4 * first), load_8(rows + 4 * first + 8), load_8(rows + 4 * first + 16), load_8(rows + 4 * first + 24)};
    fours_to_columns(r);
    store_8(a + first, r[0]); store_8(b + first, r[1]); store_8(c + first, r[2]); store_8(d + first, r[3]);
  }
  for (int64_t i = first; i < n; i++) { a[i] = rows[4 * i]; b[i] = rows[4 * i + 1]; c[i] = rows[4 * i + 2]; d[i] = rows[4 * i + 3]; }
  if (format == XYWH) {
    for (int64_t i = 0; i < n; i++) { c[i] = a[i] + c[i]; d[i] = b[i] + d[i]; }
  } else if (format == CXCYWH) {
    for (int64_t i = 0; i < n; i++) {
      const float w = 0.5f * c[i], h = 0.5f * d[i], x = a[i], y = b[i];
      a[i] = x - w; b[i] = y - h; c[i] = x + w; d[i] = y + h;
    }
  }
}

// Derivatives to corners, four columns, to derivatives to rows of a format.
INLINE void to_rows(const float (&columns)[4][BOXES], int64_t n, int format, float* __restrict rows) {
  const float *__restrict a = columns[0], *__restrict b = columns[1], *__restrict c = columns[2], *__restrict d = columns[3];
  if (format == XYXY) {
    for (int64_t i = 0; i < n; i++) { rows[4 * i] = a[i]; rows[4 * i + 1] = b[i]; rows[4 * i + 2] = c[i]; rows[4 * i + 3] = d[i]; }
    return;
  }
  const float first = format == XYWH ? 0.0f : -0.5f, second = format == XYWH ? 1.0f : 0.5f;
  for (int64_t i = 0; i < n; i++) {
    rows[4 * i] = a[i] + c[i];
    rows[4 * i + 1] = b[i] + d[i];
    rows[4 * i + 2] = first * a[i] + second * c[i];
    rows[4 * i + 3] = first * b[i] + second * d[i];
  }
}

// How a block is computed: all pairs by the plain formulas; those that are special again, by all the rules, so that no pair's
// numbers depend on its neighbours; all by all the rules.
enum Way { SHORT, MENDING, WHOLE };

template <int KIND, Way WAY>
INLINE Pair any_pair_of(float p1, float q1, float p2, float q2, float t1, float u1, float t2, float u2, float eps, float extra,
                        int32_t& special) {
  if constexpr (WAY == SHORT) return plain_pair_of<KIND>(p1, q1, p2, q2, t1, u1, t2, u2, eps, extra, special);
  return pair_of<KIND>(p1, q1, p2, q2, t1, u1, t2, u2, eps, extra);
}

struct BlockSum { float sum; int32_t special; };

// Losses of a range, and gradients; whether a pair that counts is special.
template <int KIND, bool GRAD, Way WAY>
static BlockSum box_loop(BoxBuffers& b, int64_t begin, int64_t end, const Boxes& call, float* __restrict each) {
  const float eps = at_least(call.eps, SMALLEST), extra = call.extra, scale = call.scale;  // an eps that has an inverse
  const float *__restrict w = b.w, *__restrict p1 = b.p[0], *__restrict q1 = b.p[1], *__restrict p2 = b.p[2], *__restrict q2 = b.p[3];
  const float *__restrict t1 = b.t[0], *__restrict u1 = b.t[1], *__restrict t2 = b.t[2], *__restrict u2 = b.t[3];
  float *__restrict g1 = b.g[0], *__restrict h1 = b.g[1], *__restrict g2 = b.g[2], *__restrict h2 = b.g[3];
  int32_t* __restrict specials = b.special;
  float sum = 0.0f;
  int32_t any = 0;
#pragma omp simd reduction(+ : sum) reduction(| : any)
  for (int64_t i = begin; i < end; i++) {
    int32_t special = 0;
    const Pair c = any_pair_of<KIND, WAY>(p1[i], q1[i], p2[i], q2[i], t1[i], u1[i], t2[i], u2[i], eps, extra, special);
    if (WAY == SHORT) {
      special &= int32_t(w[i] != 0.0f);
      specials[i] = special;
      any |= special;
    }
    const bool kept = WAY == MENDING && specials[i] == 0;
    const float weighted = w[i] == 0.0f ? 0.0f : w[i] * c.loss, loss = kept ? each[i] : weighted;
    sum += loss;
    each[i] = loss;
    if (GRAD) {
      const float factor = w[i] * scale;
      const float x1 = w[i] == 0.0f ? 0.0f : factor * c.x1, y1 = w[i] == 0.0f ? 0.0f : factor * c.y1;
      const float x2 = w[i] == 0.0f ? 0.0f : factor * c.x2, y2 = w[i] == 0.0f ? 0.0f : factor * c.y2;
      g1[i] = kept ? g1[i] : x1;
      h1[i] = kept ? h1[i] : y1;
      g2[i] = kept ? g2[i] : x2;
      h2[i] = kept ? h2[i] : y2;
    }
  }
  return {sum, any};
}

using BoxLoop = BlockSum (*)(BoxBuffers&, int64_t, int64_t, const Boxes&, float*);
struct BoxLoops { BoxLoop first, mend; };  // the second one where the first one met something special
#define BOX_LOOPS(kind) {{box_loop<kind, false, SHORT>, box_loop<kind, false, MENDING>}, {box_loop<kind, true, SHORT>, box_loop<kind, true, MENDING>}}
#define NEVER_SHORT(kind) {{box_loop<kind, false, WHOLE>, nullptr}, {box_loop<kind, true, WHOLE>, nullptr}}  // which calls nothing special
static const BoxLoops BOX_LOOP[8][2] = {BOX_LOOPS(0), BOX_LOOPS(1), BOX_LOOPS(2), BOX_LOOPS(3),
                                        BOX_LOOPS(4), BOX_LOOPS(5), BOX_LOOPS(6), NEVER_SHORT(7)};
#undef BOX_LOOPS
#undef NEVER_SHORT

static void boxes(const Boxes& a, int64_t begin, int64_t end, Partial& result) {
  BoxBuffers b;
  const bool weighted = a.weight || a.upstream;
  const BoxLoops& loops = BOX_LOOP[a.kind][a.out == nullptr];
  for (float& w : b.w) w = 1.0f;
  for (int64_t u = begin; u < end; u++) {
    const int64_t row = u * BOXES, n = a.rows - row < BOXES ? a.rows - row : BOXES;
    const float *pred = static_cast<const float*>(a.pred) + 4 * row, *target = static_cast<const float*>(a.target) + 4 * row;
    if (a.type != F32) { load(a.pred, a.type, 4 * row, 4 * n, b.pred); pred = b.pred; }
    if (a.target_type != F32) { load(a.target, a.target_type, 4 * row, 4 * n, b.target); target = b.target; }
    to_columns(pred, n, a.format, b.p);
    to_columns(target, n, a.format, b.t);
    if (weighted) {
      for (int64_t i = 0; i < n; i++) {
        const float w = a.weight ? a.weight[row + i] : 1.0f;
        b.w[i] = w == 0.0f ? 0.0f : a.upstream ? w * a.upstream[row + i] : w;
      }
    }
    for (int64_t at = 0; at < n; at += BLOCK) {
      const int64_t last = at + BLOCK < n ? at + BLOCK : n;
      BlockSum block = loops.first(b, at, last, a, a.out ? a.out + row : b.loss);
      if (block.special) block = loops.mend(b, at, last, a, a.out ? a.out + row : b.loss);
      result.sum += block.sum;
    }
    if (a.grad) {
      float* rows = place(a.grad, a.type, 4 * row, b.out);
      to_rows(b.g, n, a.format, rows);
      store(a.grad, a.type, 4 * row, 4 * n, rows);
    }
  }
}
