"""What the import of a configuration gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from detloss.compat.configs.criteria import criterion_config
from detloss.compat.configs.sections import ConfigLog

__all__ = ["Imported", "imported"]


@dataclass(frozen=True)
class Imported:
    """A criterion (or one loss) made from another framework's configuration, and what became of every option.

    Attributes:
        criterion: the criterion; a loss where the configuration was that of a single loss.
        used: options that it honours, by path (``bbox_head.loss_cls.gamma``).
        ignored: options that do not concern the loss, such as ``bbox_head.in_channels``.
        unknown: options that are unknown here and there, and known ones with a value that cannot be kept.
        notes: why not, likely misspellings, and differences to know of.
    """

    criterion: nn.Module
    used: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_config(self) -> dict[str, Any]:
        """The configuration that :func:`detloss.build` turns into an equal criterion; see :func:`criterion_config`."""
        return criterion_config(self.criterion)

    def __str__(self) -> str:
        lines = [type(self.criterion).__name__]
        for name in ("used", "ignored", "unknown", "notes"):
            found = getattr(self, name)
            between = "\n    " if name == "notes" else ", "
            lines.append(f"  {name}: {between.join(found) or 'none'}")
        return "\n".join(lines)


def imported(criterion: nn.Module, log: ConfigLog, strict: bool) -> Imported:
    """The result; with ``strict`` a ``ValueError`` when options are unknown."""
    used, ignored, unknown = log.outcome()
    if strict and unknown:
        notes = "".join(f"\n    {note}" for note in log.notes)
        raise ValueError(f"options that cannot be kept: {', '.join(unknown)}{notes}")
    return Imported(criterion, tuple(used), tuple(ignored), tuple(unknown), tuple(log.notes))
