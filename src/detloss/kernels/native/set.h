// Everything that is compiled once per instruction set. KERNEL_SET names the namespace, KERNEL_TABLE its entry points,
// KERNEL_MATCHING those of its matching (exact.h).

#include "kernels.h"

namespace detloss {
namespace KERNEL_SET {
#include "lanes.h"
#include "eights.h"
#include "sigmoid_loops.h"
#include "sigmoid.h"
#include "boxes_cells.h"
#include "boxes_plain.h"
#include "boxes.h"
#include "softmax.h"
#include "divergence.h"
#include "coordinates.h"
#include "rotated.h"
#include "masks.h"
#include "expectation.h"
#include "prototypes.h"
}  // namespace KERNEL_SET

extern const InstructionSet KERNEL_TABLE = {KERNEL_NAME, KERNEL_SET::sigmoid, KERNEL_SET::boxes, KERNEL_SET::softmax,
                                             KERNEL_SET::coordinates, KERNEL_SET::rotated, KERNEL_SET::masks, KERNEL_SET::expectation, KERNEL_SET::prototypes,
                                             &KERNEL_MATCHING};

}  // namespace detloss
