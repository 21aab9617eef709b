// The functions that Python calls: choice of the instruction set, division of the work over threads.

#include "kernels.h"

#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#endif

namespace detloss {

static const InstructionSet* widest() {
#ifdef DETLOSS_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return &AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &AVX2;
#endif
  return &BASE;
}

static const InstructionSet* chosen = widest();
const InstructionSet& current() { return *chosen; }

constexpr int64_t CHUNK = 1 << 16;  // numbers per piece of work; fixed, so that sums do not depend on the threads

// Runs all units in pieces and adds up the pieces in their order.
template <class Call>
static Partial run(const Call& call, void (*kernel)(const Call&, int64_t, int64_t, Partial&), int threads) {
  const int64_t count = units(call), grain = 1 + (CHUNK - 1) / numbers_per_unit(call), pieces = (count + grain - 1) / grain;
  if (pieces == 1) {  // as most calls with a few hundred rows: no team, no memory
    Partial all{0.0, 0};
    kernel(call, 0, count, all);
    return all;
  }
  std::vector<Partial> partial(size_t(pieces), Partial{0.0, 0});
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < pieces; i++) {
    const int64_t end = (i + 1) * grain;
    kernel(call, i * grain, end < count ? end : count, partial[size_t(i)]);
  }
  Partial total{0.0, 0};
  for (const Partial& p : partial) {
    total.sum += p.sum;
    total.bad |= p.bad;
  }
  return total;
}

// Writes the sum times `factor` (0 wins over inf and NaN) where a total is wanted; says whether a target was out of range.
static int answer(const Partial& all, double factor, float* total) {
  if (total) *total = factor == 0.0 ? 0.0f : float(all.sum * factor);
  return all.bad;
}

int64_t units(const Sigmoid& a) {
  if (a.inner > 1) return a.outer * ((a.inner + TILE - 1) / TILE);
  const int64_t rows = a.classes <= TILE ? TILE / a.classes : 1;
  return (a.outer + rows - 1) / rows;
}

int64_t numbers_per_unit(const Sigmoid& a) {
  if (a.inner > 1) return a.classes * (a.inner < TILE ? a.inner : TILE);
  return a.classes <= TILE ? TILE : a.classes;
}

int64_t units(const Boxes& a) { return (a.rows + BOXES - 1) / BOXES; }
int64_t numbers_per_unit(const Boxes&) { return 16 * BOXES; }  // one box is as much work as 16 logits

int64_t positions_per_unit(const Softmax& a) {
  const int64_t fit = 4 * TILE / a.classes, least = a.inner > 1 ? 16 : 1, most = TILE;
  return fit < least ? least : fit > most ? most : fit;
}

int64_t units(const Softmax& a) {
  const int64_t size = positions_per_unit(a);
  return a.inner > 1 ? a.outer * ((a.inner + size - 1) / size) : (a.outer + size - 1) / size;
}

int64_t numbers_per_unit(const Softmax& a) { return positions_per_unit(a) * a.classes; }

int64_t units(const Coordinates& a) { return (a.count + TILE - 1) / TILE; }
int64_t numbers_per_unit(const Coordinates&) { return TILE; }

int64_t units(const Rotated& a) { return (a.rows + BOXES - 1) / BOXES; }
int64_t numbers_per_unit(const Rotated&) { return 32 * BOXES; }

int64_t units(const Masks& a) { return a.rows; }
int64_t numbers_per_unit(const Masks& a) { return a.pixels; }

// A row, or a tile of the positions of one group.
int64_t units(const Expectation& a) {
  return a.inner == 1 ? a.images : a.images * a.groups * ((a.inner + BOXES - 1) / BOXES);
}

int64_t numbers_per_unit(const Expectation& a) {
  return a.inner == 1 ? a.groups * a.bins : a.bins * (a.inner < BOXES ? a.inner : BOXES);
}

int64_t units(const Prototypes& a) { return a.images; }
int64_t numbers_per_unit(const Prototypes&) { return CHUNK; }

}  // namespace detloss

using namespace detloss;

extern "C" {

// Version of the calls below; the Python side refuses a library of another one.
EXPORT int detloss_version() { return 8; }

EXPORT const char* detloss_instruction_set() { return chosen->name; }

// 0 any machine, 1 AVX2, 2 AVX-512, for tests; returns 0 when this machine has it not.
EXPORT int detloss_choose(int set) {
  const InstructionSet* best = widest();
  const InstructionSet* wanted = &BASE;
#ifdef DETLOSS_X86
  wanted = set == 2 ? &AVX512 : set == 1 ? &AVX2 : &BASE;
  if ((wanted == &AVX512 && best != &AVX512) || (wanted == &AVX2 && best == &BASE)) return 0;
#else
  if (set != 0) return 0;
#endif
  (void)best;
  chosen = wanted;
  return 1;
}

// Asks for large pages for fresh memory that is about to be filled: the faults of small ones cost more than the arithmetic.
EXPORT void detloss_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t PAGE = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + PAGE - 1) & ~(PAGE - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(bytes)) & ~(PAGE - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

EXPORT int detloss_sigmoid(const Sigmoid* call, int threads, double factor, float* total) {
  return answer(run(*call, chosen->sigmoid, threads), factor, total);
}

EXPORT int detloss_boxes(const Boxes* call, int threads, double factor, float* total) {
  return answer(run(*call, chosen->boxes, threads), factor, total);
}

EXPORT int detloss_coordinates(const Coordinates* call, int threads, double factor, float* total) {
  return answer(run(*call, chosen->coordinates, threads), factor, total);
}

EXPORT int detloss_rotated(const Rotated* call, int threads, double factor, float* total) {
  return answer(run(*call, chosen->rotated, threads), factor, total);
}

EXPORT int detloss_masks(const Masks* call, int threads, double factor, float* total) {
  return answer(run(*call, chosen->masks, threads), factor, total);
}

EXPORT int detloss_expectation(const Expectation* call, int threads, double factor, float* total) {
  return answer(run(*call, chosen->expectation, threads), factor, total);
}

EXPORT int detloss_prototypes(const Prototypes* call, int threads, double factor, float* total) {
  return answer(run(*call, chosen->prototypes, threads), factor, total);
}

EXPORT int detloss_softmax(const Softmax* call, int threads, double factor, float* total) {
  return answer(run(*call, chosen->softmax, threads), factor, total);
}

}
