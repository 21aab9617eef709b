// Eight numbers at once, and eight rows turned into columns: a sum within a row is then a sum of vectors. Vector types of GCC and
// Clang, which compile for every machine. Included once per instruction set.

typedef float Eight __attribute__((vector_size(32)));
typedef uint32_t EightBits __attribute__((vector_size(32)));

#ifdef __clang__
#define SHUFFLE_8(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE_8(a, b, ...) __builtin_shuffle(a, b, EightBits{__VA_ARGS__})
#endif

INLINE Eight load_8(const float* from) { Eight x; __builtin_memcpy(&x, from, sizeof x); return x; }
INLINE void store_8(float* to, Eight x) { __builtin_memcpy(to, &x, sizeof x); }
INLINE Eight greater_8(Eight a, Eight b) { return b > a ? b : a; }

INLINE Eight exp_neg(Eight a) { return exp_neg_of<Eight, EightBits>(a, Eight{}); }

// Rows to columns and back.
INLINE void transpose_8(Eight* __restrict r) {
  Eight pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = SHUFFLE_8(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = SHUFFLE_8(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int k = 0; k < 2; k++) {
      fours[i + 2 * k] = SHUFFLE_8(pairs[i + k], pairs[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      fours[i + 2 * k + 1] = SHUFFLE_8(pairs[i + k], pairs[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; i++) {
    r[i] = SHUFFLE_8(fours[i], fours[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = SHUFFLE_8(fours[i], fours[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// Eight rows of four numbers, one after the other, to four columns.
INLINE void fours_to_columns(Eight* __restrict r) {
  const Eight a = SHUFFLE_8(r[0], r[2], 0, 1, 2, 3, 8, 9, 10, 11), b = SHUFFLE_8(r[0], r[2], 4, 5, 6, 7, 12, 13, 14, 15);
  const Eight c = SHUFFLE_8(r[1], r[3], 0, 1, 2, 3, 8, 9, 10, 11), d = SHUFFLE_8(r[1], r[3], 4, 5, 6, 7, 12, 13, 14, 15);
  const Eight low_0 = SHUFFLE_8(a, b, 0, 8, 1, 9, 4, 12, 5, 13), high_0 = SHUFFLE_8(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  const Eight low_2 = SHUFFLE_8(c, d, 0, 8, 1, 9, 4, 12, 5, 13), high_2 = SHUFFLE_8(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
  r[0] = SHUFFLE_8(low_0, low_2, 0, 1, 8, 9, 4, 5, 12, 13);
  r[1] = SHUFFLE_8(low_0, low_2, 2, 3, 10, 11, 6, 7, 14, 15);
  r[2] = SHUFFLE_8(high_0, high_2, 0, 1, 8, 9, 4, 5, 12, 13);
  r[3] = SHUFFLE_8(high_0, high_2, 2, 3, 10, 11, 6, 7, 14, 15);
}

// The bins of eight rows, 8, 16 or 17 each, as columns.
template <int C> INLINE void read_columns(const float* from, Eight* __restrict column) {
  for (int block = 0; block + 8 <= C; block += 8) {
    for (int r = 0; r < 8; r++) column[block + r] = load_8(from + r * C + block);
    transpose_8(column + block);
  }
  for (int c = C / 8 * 8; c < C; c++) for (int r = 0; r < 8; r++) column[c][r] = from[r * C + c];
}

template <int C> INLINE void write_columns(Eight* __restrict column, float* to) {
  for (int block = 0; block + 8 <= C; block += 8) {
    transpose_8(column + block);
    for (int r = 0; r < 8; r++) store_8(to + r * C + block, column[block + r]);
  }
  for (int c = C / 8 * 8; c < C; c++) for (int r = 0; r < 8; r++) to[r * C + c] = column[c][r];
}
