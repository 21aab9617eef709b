"""Fused loss-and-gradient kernels and the choice between them and the readable reference.

The reference is the element-wise formula in ``functional/``. Two back-ends compute the same numbers in one pass over memory:
``native`` on the CPU (built with the package, optional) and ``triton`` on CUDA.
"""
