// The losses of boxes_cells.h over rows of boxes: tiles are transposed, so that a vector holds one coordinate of many boxes.
// Included once per instruction set.

struct BoxBuffers {
  float pred[4 * BOXES], target[4 * BOXES], out[4 * BOXES];
  float p[4][BOXES], t[4][BOXES], g[4][BOXES], loss[BOXES], w[BOXES];
};

// Rows of four numbers to four columns, as corners.
INLINE void to_columns(const float* __restrict rows, int64_t n, int format, float (&columns)[4][BOXES]) {
  float *__restrict a = columns[0], *__restrict b = columns[1], *__restrict c = columns[2], *__restrict d = columns[3];
  for (int64_t i = 0; i < n; i++) { a[i] = rows[4 * i]; b[i] = rows[4 * i + 1]; c[i] = rows[4 * i + 2]; d[i] = rows[4 * i + 3]; }
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

template <int KIND, bool GRAD> static float box_loop(BoxBuffers& b, int64_t n, const Boxes& call, float* __restrict each) {
  const float eps = call.eps, extra = call.extra, scale = call.scale;
  const float *__restrict w = b.w, *__restrict p1 = b.p[0], *__restrict q1 = b.p[1], *__restrict p2 = b.p[2], *__restrict q2 = b.p[3];
  const float *__restrict t1 = b.t[0], *__restrict u1 = b.t[1], *__restrict t2 = b.t[2], *__restrict u2 = b.t[3];
  float *__restrict g1 = b.g[0], *__restrict h1 = b.g[1], *__restrict g2 = b.g[2], *__restrict h2 = b.g[3];
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) {
    const Pair c = pair_of<KIND>(p1[i], q1[i], p2[i], q2[i], t1[i], u1[i], t2[i], u2[i], eps, extra);
    const float loss = w[i] == 0.0f ? 0.0f : w[i] * c.loss;
    sum += loss;
    if (GRAD) {
      const float factor = w[i] * scale;
      g1[i] = w[i] == 0.0f ? 0.0f : factor * c.x1;
      h1[i] = w[i] == 0.0f ? 0.0f : factor * c.y1;
      g2[i] = w[i] == 0.0f ? 0.0f : factor * c.x2;
      h2[i] = w[i] == 0.0f ? 0.0f : factor * c.y2;
    } else {
      each[i] = loss;
    }
  }
  return sum;
}

using BoxLoop = float (*)(BoxBuffers&, int64_t, const Boxes&, float*);
#define BOX_LOOPS(kind) {box_loop<kind, false>, box_loop<kind, true>}
static const BoxLoop BOX_LOOP[8][2] = {BOX_LOOPS(0), BOX_LOOPS(1), BOX_LOOPS(2), BOX_LOOPS(3),
                                       BOX_LOOPS(4), BOX_LOOPS(5), BOX_LOOPS(6), BOX_LOOPS(7)};
#undef BOX_LOOPS

static void boxes(const Boxes& a, int64_t begin, int64_t end, Partial& result) {
  BoxBuffers b;
  const bool weighted = a.weight || a.upstream;
  const BoxLoop loop = BOX_LOOP[a.kind][a.out == nullptr];
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
    result.sum += loop(b, n, a, a.out ? a.out + row : b.loss);
    if (a.grad) {
      float* rows = place(a.grad, a.type, 4 * row, b.out);
      to_rows(b.g, n, a.format, rows);
      store(a.grad, a.type, 4 * row, 4 * n, rows);
    }
  }
}
