"""The environment of a run, read before anything changes it: some packages set variables when they are imported.

Imported before PyTorch, which reads them. Threads that wait give their core away unless it is asked otherwise, as in the
Makefile: spinning, they are several times slower beside any other busy process.
"""

from __future__ import annotations

import os

__all__ = ["VARIABLES"]

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
NAMES = ("OMP_", "MKL_", "DETLOSS_KERNELS")
VARIABLES = {name: os.environ[name] for name in sorted(os.environ) if name.startswith(NAMES)}
