"""What tests of COCO-format data share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from detloss.train.data import CocoDataset
from detloss.train.errors import UserError

LEAVES = "expected the name of an image file inside"
SHAPE = "expected a COCO file: an object with the lists 'images', 'annotations' and 'categories'"


def load(coco: Any, **options: Any) -> CocoDataset:
    return CocoDataset(coco.images, coco.annotations, **{"image_size": 40, **options})


def refusal(call: Callable[[], object]) -> str:
    """The message of the UserError, which must be one line that names no exception class."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and "\x1b" not in message and "Error" not in message
    return message


def check_refused(coco: Any, *parts: str, **options: Any) -> None:
    message = refusal(lambda: load(coco, **options))
    missing = [part for part in (str(coco.annotations), *parts) if part not in message]
    assert not missing, f"{missing} not in: {message}"
