"""``transformers``: the losses of its detectors of the DETR family, at the paths they have there.

Configurations are read by attribute, so any object that has them will do; transformers itself is not needed.
"""

from detloss.compat.transformers import loss

__all__ = ["loss"]
