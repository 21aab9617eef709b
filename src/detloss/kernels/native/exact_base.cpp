// The matching for any machine of the architecture.
#define KERNEL_SET base
#define KERNEL_MATCHING BASE_MATCHING
#include "exact.h"
