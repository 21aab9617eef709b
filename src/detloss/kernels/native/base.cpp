// The kernels for any machine of the architecture (on ARM that includes NEON).
#if defined(__FMA__) || defined(__aarch64__)
#define KERNEL_FMA
#endif
#define KERNEL_SET base
#define KERNEL_TABLE BASE
#define KERNEL_MATCHING BASE_MATCHING
#define KERNEL_NAME "base"
#include "set.h"
