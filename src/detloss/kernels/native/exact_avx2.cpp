// The matching for x86 machines with AVX2.
#include "platform.h"
#ifdef DETLOSS_X86
DETLOSS_TARGET_BEGIN("avx2,fma")
#define KERNEL_SET avx2
#define KERNEL_MATCHING AVX2_MATCHING
#include "exact.h"
DETLOSS_TARGET_END
#endif
