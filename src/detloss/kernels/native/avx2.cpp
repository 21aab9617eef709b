// The kernels for x86 machines with AVX2 and FMA.
#include "platform.h"
#ifdef DETLOSS_X86
DETLOSS_TARGET_BEGIN("avx2,fma")
#define KERNEL_SET avx2
#define KERNEL_FMA
#define KERNEL_TABLE AVX2
#define KERNEL_MATCHING AVX2_MATCHING
#define KERNEL_NAME "avx2"
#include "set.h"
DETLOSS_TARGET_END
#endif
