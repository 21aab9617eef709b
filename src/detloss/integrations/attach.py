"""A model that computes its losses with a criterion: the class of this one instance changes, nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from detloss.checks import did_you_mean
from detloss.criteria.base import Criterion
from detloss.integrations.meter import detached
from detloss.registry import CRITERIA, check_arguments
from detloss.types import LossDict

__all__ = ["Attached", "CriterionModel", "Kinds", "agree", "attach", "criterion_for", "detach", "on_device_of"]

M = TypeVar("M", bound=nn.Module)
Kinds = Mapping[type[Criterion], Mapping[str, Any]]


class Attached:
    """Base of the mixins that :func:`attach` puts before the class of one instance. Pickling and copying keep the mixin."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As the class of the model does it, but for what makes the empty object: the joined class has no name of its own."""
        make, arguments, *rest = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        if not arguments or arguments[0] is not type(self):  # the class makes its objects in a way of its own
            return (make, arguments, *rest)
        mixin, base = type(self).__bases__
        return (_empty, (mixin, base), *rest)


def _empty(mixin: type, base: type) -> Any:
    kind: Any = _joined(mixin, base)
    return kind.__new__(kind)


@cache
def _joined(mixin: Any, base: Any) -> Any:
    """``base`` with the methods of ``mixin`` before its own, under its own name."""
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (mixin, base), names)


def attach(module: M, mixin: type[Attached], **state: Any) -> M:
    """Give this instance the methods of ``mixin`` and the attributes ``state``, which are no parameters or submodules."""
    detach(module)
    kinds: Any = (mixin, type(module))
    module.__class__ = _joined(*kinds)
    module.__dict__.update(state)
    module.__dict__["_detloss_state"] = tuple(state)
    return module


def detach(module: M) -> M:
    """Take off what :func:`attach` put on; nothing happens where there is nothing."""
    if isinstance(module, Attached):
        for name in module.__dict__.pop("_detloss_state"):
            module.__dict__.pop(name, None)
        module.__class__ = type(module).__bases__[1]
    return module


class CriterionModel(Attached):
    """A detector whose losses are those of ``criterion``.

    Attributes:
        criterion: the criterion; it is no submodule, so the ``state_dict`` of the model stays as it was.
        losses_in_eval: whether a call with targets gives losses in eval mode too.
        last_losses: the losses of the last call, without their graph; ``None`` before the first.
    """

    criterion: Any
    losses_in_eval: bool
    last_losses: LossDict | None

    def compute_losses(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> LossDict:
        """The losses of a batch, in train and eval mode alike. Arguments as in the call of the model in training.

        Under ``torch.no_grad()`` in eval mode it is a validation loss.
        """
        losses = self._losses(images, targets)
        self.__dict__["last_losses"] = detached(losses)
        return losses

    def forward(self, images: Sequence[Tensor], targets: Any = None) -> Any:
        """Losses in training mode (with ``losses_in_eval`` whenever targets are given), else what the model detects."""
        if self.training or (self.losses_in_eval and targets is not None):  # type: ignore[attr-defined]
            return self.compute_losses(images, targets)
        return super().forward(images, targets)  # type: ignore[misc]

    def _losses(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]]) -> LossDict:
        raise TypeError(f"{type(self).__name__} must implement _losses(images, targets)")


def criterion_for(where: str, given: Any, kinds: Kinds, options: Mapping[str, Any], preset: str = "") -> Criterion:
    """The criterion from an object, configuration or name, if it is of a kind that the model's outputs fit.

    Args:
        where: the call, for messages.
        given: a criterion, ``dict(type=…)`` or a registered name.
        kinds: class of criterion → options that follow from the model, used where the configuration does not set them.
        options: options besides those of the configuration.
        preset: name of the settings that configurations start from, in classes that have them.

    Raises:
        TypeError: no criterion, unknown options, or options for a ready object.
        ValueError: a criterion that does not fit.
    """
    names = ", ".join(kind.__name__ for kind in kinds)
    if isinstance(given, (str, Mapping)):
        settings = {"type": given} if isinstance(given, str) else {str(key): value for key, value in given.items()}
        name = settings.pop("type", None)
        entry = CRITERIA.find(name) if isinstance(name, str) else None
        if entry is None or entry.cls not in kinds:
            near = did_you_mean(str(name), [kind.__name__ for kind in kinds])
            raise ValueError(f"{where}: the outputs of this model fit {names}; got {name!r}.{near}")
        return _built(entry.cls, _merged(kinds[entry.cls], {**settings, **options}), preset)
    if not isinstance(given, Criterion):
        raise TypeError(
            f"{where}: criterion must be a criterion of detloss ({names}), dict(type=…) or a name; got {type(given).__name__}"
        )
    if not isinstance(given, tuple(kinds)):
        raise ValueError(f"{where}: the outputs of this model fit {names}; got {type(given).__name__}")
    if options:
        raise TypeError(
            f"{where}: options go with a name or configuration; got {sorted(options)} for a ready {type(given).__name__}"
        )
    return given


def _merged(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` over ``known``; entries that are options of a part themselves (``roi={…}``, ``weights={…}``) one by one."""

    def part(value: Any) -> bool:
        return isinstance(value, Mapping) and "type" not in value

    both = {key for key in given if part(given[key]) and part(known.get(key))}
    return {**known, **given, **{key: {**known[key], **given[key]} for key in both}}


def _built(kind: Any, options: dict[str, Any], preset: str) -> Criterion:
    check_arguments(kind.__name__, kind, options)
    found: Criterion = kind.preset(preset, **options) if preset in kind.PRESETS else kind(**options)
    return found


def agree(where: str, criterion: Criterion, expected: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the settings of the criterion are those of the model."""
    for name, value in expected.items():
        own: Any = criterion
        for part in name.split("."):
            own = getattr(own, part)
        if own != value:
            raise ValueError(f"{where}: this model needs a {type(criterion).__name__} with {name}={value!r}; got {own!r}")


def on_device_of(criterion: nn.Module, like: Tensor) -> Any:
    """The criterion with its buffers (class weights, moving averages) where ``like`` is."""
    first = next(chain(criterion.buffers(), criterion.parameters()), None)
    return criterion if first is None or first.device == like.device else criterion.to(like.device)
