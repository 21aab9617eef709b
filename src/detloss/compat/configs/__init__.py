"""Configurations of other frameworks as criteria of this one, and criteria as configurations.

:func:`from_mmdet` takes losses, heads and models of mmdet and visdet, :func:`from_ultralytics` training arguments,
:func:`load_config` reads their files without executing them; :func:`criterion_config` is the way back.
"""

from detloss.compat.configs.criteria import criterion_config
from detloss.compat.configs.files import load_config
from detloss.compat.configs.mmdet import from_mmdet
from detloss.compat.configs.python_files import ConfigFileError
from detloss.compat.configs.result import Imported
from detloss.compat.configs.ultralytics import from_ultralytics

__all__ = ["ConfigFileError", "Imported", "criterion_config", "from_mmdet", "from_ultralytics", "load_config"]
