// Arithmetic that compilers turn into vector code on every machine: no libm, no branches, NaN stays NaN.
// Included once per instruction set, inside a namespace of that set.

#define INLINE static inline __attribute__((always_inline))
#define MEMBER inline __attribute__((always_inline))

constexpr float LARGEST = 3.4e38f;    // stands in for inf where a factor of 0 must win
constexpr float SMALLEST = 1.17549435e-38f;
constexpr float LAST_EXPONENT = 87.33f;  // exp(-87.33) is the smallest normal number; beyond it exp_neg is 0

INLINE float of_bits(int32_t i) { float f; __builtin_memcpy(&f, &i, 4); return f; }
INLINE int32_t to_bits(float f) { int32_t i; __builtin_memcpy(&i, &f, 4); return i; }
INLINE float at_least(float x, float low) { return x < low ? low : x; }
INLINE float at_most(float x, float high) { return high < x ? high : x; }

template <class To, class From> INLINE To same_bits(From x) { To y; __builtin_memcpy(&y, &x, sizeof y); return y; }

// exp(-(a + low)) for a >= 0 and a small correction `low`; about 1 ulp. Of a float, or of a vector of them with its bits.
template <class Real, class Bits> INLINE Real exp_neg_of(Real a, Real low) {
  const Real last = LAST_EXPONENT - Real{};
  const Real x = last < a ? last : a;
  const Real shifted = x * -1.44269504088896341f + 12582912.0f;  // rounds to an integer held in the low bits
  const Real n = shifted - 12582912.0f;
  Real r = n * -0.693359375f - x;
  r = n * 2.12194440e-4f + r - low;
  Real p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 0 is made before the product, not after: denormal numbers on the way would cost more than all of this.
  const Bits scale = (same_bits<Bits>(shifted) << 23) + 0x3f800000u;
  return p * same_bits<Real>(a > last ? Bits{} : scale);
}

INLINE float exp_neg(float a, float low = 0.0f) { return exp_neg_of<float, uint32_t>(a, low); }

// log(1 + e) = 2 atanh(s) for e in [0, 1] and s = e / (2 + e).
INLINE float log1p_unit(float s) {
  const float q = s * s;
  float p = 0.134337795f;
  p = p * q + 0.141169816f;
  p = p * q + 0.20003835f;
  p = p * q + 0.333333198f;
  return 2.0f * (p * q * s + s);
}

struct Log { float high, low; };  // high + low is the logarithm to more than 24 bits

// log(x) for normal x > 0.
INLINE Log log_parts(float x) {
  const int32_t b = to_bits(x), e = (b - 0x3f3504f3) >> 23;
  const float f = of_bits(int32_t(uint32_t(b) - (uint32_t(e) << 23))) - 1.0f;
  const float s = f / (2.0f + f), z = s * s;
  float p = 0.2958112f;
  p = p * z + 0.399887473f;
  p = p * z + 0.666666852f;
  const float n = float(e), high = n * 0.693359375f;
  const float rest = n * -2.12194440e-4f + (p * z * s + 2.0f * s);
  const float sum = high + rest;
  return {sum, (high - sum) + rest};
}

INLINE float log_of(float x) { const Log l = log_parts(x); return l.high; }

// exp(-exponent * (high + low)) for high >= 0: a power whose logarithm is known, free of the rounding of the product.
INLINE float power_of_log(float exponent, float high, float low) {
  const float t = exponent * high;
  return exp_neg(t, __builtin_fmaf(exponent, high, -t) + exponent * low);
}

// base ** exponent for base in [0, 1]; a base below the smallest normal number counts as that number.
INLINE float power(float base, float exponent) {
  const Log l = log_parts(at_least(base, SMALLEST));
  return power_of_log(exponent, at_least(-l.high, 0.0f), -l.low);
}

// bf16 and fp16 by their bits, rounding to nearest even.
INLINE float of_bf16(uint16_t h) { return of_bits(int32_t(uint32_t(h) << 16)); }
INLINE uint16_t to_bf16(float f) {
  const uint32_t b = uint32_t(to_bits(f));
  const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  return uint16_t((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
INLINE float of_fp16(uint16_t h) {
  const uint32_t magnitude = uint32_t(h & 0x7fffu) << 13;
  const float scaled = of_bits(int32_t(magnitude)) * 5.192296858534828e33f;  // 2^112: also exact for denormal numbers
  const uint32_t b = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : uint32_t(to_bits(scaled));
  return of_bits(int32_t(b | (uint32_t(h & 0x8000u) << 16)));
}
INLINE uint16_t to_fp16(float f) {
  const uint32_t b = uint32_t(to_bits(f)), sign = (b >> 16) & 0x8000u, m = b & 0x7fffffffu;
  const uint32_t normal = (m + 0xc8000fffu + ((m >> 13) & 1u)) >> 13;
  const uint32_t denormal = uint32_t(to_bits(of_bits(int32_t(m)) + 0.5f)) - 0x3f000000u;
  uint32_t h = m < 0x38800000u ? denormal : normal;
  h = m >= 0x477ff000u ? 0x7c00u : h;
  h = m > 0x7f800000u ? 0x7e00u : h;
  return uint16_t(h | sign);
}

// `n` numbers of dtype `type` from position `at` on, as fp32.
INLINE void load(const void* from, int type, int64_t at, int64_t n, float* __restrict to) {
  if (type == F32) {
    __builtin_memcpy(to, static_cast<const float*>(from) + at, size_t(n) * 4);
  } else if (type == BF16) {
    const uint16_t* __restrict x = static_cast<const uint16_t*>(from) + at;
    for (int64_t i = 0; i < n; i++) to[i] = of_bf16(x[i]);
  } else {
    const uint16_t* __restrict x = static_cast<const uint16_t*>(from) + at;
    for (int64_t i = 0; i < n; i++) to[i] = of_fp16(x[i]);
  }
}

// The inverse of load; nothing to do where fp32 numbers were computed in place.
INLINE void store(void* to, int type, int64_t at, int64_t n, const float* __restrict from) {
  if (type == F32) {
    float* y = static_cast<float*>(to) + at;
    if (y != from) __builtin_memcpy(y, from, size_t(n) * 4);
  } else if (type == BF16) {
    uint16_t* __restrict y = static_cast<uint16_t*>(to) + at;
    for (int64_t i = 0; i < n; i++) y[i] = to_bf16(from[i]);
  } else {
    uint16_t* __restrict y = static_cast<uint16_t*>(to) + at;
    for (int64_t i = 0; i < n; i++) y[i] = to_fp16(from[i]);
  }
}

// Where to compute `n` numbers that end at position `at`: in place for fp32, else in `buffer`.
INLINE float* place(void* to, int type, int64_t at, float* buffer) {
  return type == F32 ? static_cast<float*>(to) + at : buffer;
}
