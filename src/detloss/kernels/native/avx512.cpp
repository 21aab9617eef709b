// The kernels for x86 machines with AVX-512, with its full vector length.
#include "platform.h"
#ifdef DETLOSS_X86
DETLOSS_TARGET_BEGIN("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl" DETLOSS_FULL_LENGTH)
#define KERNEL_SET avx512
#define KERNEL_FMA
#define KERNEL_TABLE AVX512
#define KERNEL_MATCHING AVX512_MATCHING
#define KERNEL_NAME "avx512"
#include "set.h"
DETLOSS_TARGET_END
#endif
