// The matching of one instruction set; see matching.h. KERNEL_SET names the namespace, KERNEL_MATCHING its entry points.

#include "kernels.h"

namespace detloss {
namespace KERNEL_SET {
#include "lanes.h"
#include "pairs.h"
#include "max_iou.h"
#include "atss.h"
#include "aligned.h"
#include "pair_cost.h"
}  // namespace KERNEL_SET

extern const Matching KERNEL_MATCHING = {
    KERNEL_SET::max_iou_columns, KERNEL_SET::max_iou_objects, KERNEL_SET::max_iou_best,   KERNEL_SET::max_iou_claims,
    KERNEL_SET::atss_centres,    KERNEL_SET::atss_object,     KERNEL_SET::atss_settle,    KERNEL_SET::aligned_points,
    KERNEL_SET::aligned_count,   KERNEL_SET::aligned_pairs,   KERNEL_SET::aligned_overlap, KERNEL_SET::aligned_choose,
    KERNEL_SET::aligned_claim,   KERNEL_SET::aligned_settle,  KERNEL_SET::pair_cost};

}  // namespace detloss
