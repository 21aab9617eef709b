"""Fused loss-and-gradient kernels and the choice between them and the readable reference.

The reference is the element-wise formula in ``functional/``. Two back-ends compute the same numbers in one pass over memory:
``native`` on the CPU (built with the package, optional) and ``triton`` on CUDA. The native one also matches priors with objects
for some assigners. :func:`backend` says which one runs and why;
the environment variable ``DETLOSS_KERNELS`` and :func:`use` choose.
"""

from detloss.kernels.selection import Choice, backend, use

__all__ = ["Choice", "backend", "use"]
