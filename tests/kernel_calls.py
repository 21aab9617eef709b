"""Calls of every fused operation beside the formula that they stand for, to hold a back-end against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detloss import functional as F
from detloss.geometry.boxes import convert_boxes
from detloss.kernels.contract import Backend, Call, loss_shape

__all__ = ["Pair", "check", "on", "pairs", "poisoned"]

IGNORED = -100
CLASSES = 5
PER_CLASS = torch.tensor([0.5, 1.0, 2.0, 0.25, 1.5])
ALPHA = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])


@dataclass(frozen=True)
class Pair:
    """A call and its reference: predictions (float64) to the weighted element-wise loss."""

    id: str
    call: Call
    reference: Callable[[Tensor], Tensor]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _logits(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=_generator(seed)) * 4
    x.view(-1)[:2] = torch.tensor([60.0, -60.0])
    return x


def _index(places: tuple[int, ...], background: bool) -> Tensor:
    index = torch.randint(0, CLASSES + background, places, generator=_generator(1))
    index.view(-1)[3] = IGNORED
    return index


def _weight(shape: tuple[int, ...]) -> Tensor:
    weight = torch.rand(shape, generator=_generator(2))
    weight.view(-1)[0] = 0
    return weight


def _class_pairs(
    name: str, function: Callable[..., Tensor], background: bool, options: dict[str, Any], call: dict[str, Any], kinds: str
) -> Iterator[Pair]:
    """Class indices (i), index and score (s), dense targets (d) over rows; capital letters: over planes."""
    for kind in kinds:
        form, shape = ("rows", (61, CLASSES)) if kind.islower() else ("planes", (2, CLASSES, 3, 7))
        places = (*shape[:1], *shape[2:])
        index, dense = _index(places, background), torch.rand(shape, generator=_generator(3))
        score = torch.rand(places, generator=_generator(4))
        dense.view(-1)[:4], score.view(-1)[:2] = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0])
        weight = _weight(
            places if form == "rows" or call["op"] not in ("sigmoid_focal", "binary_cross_entropy", "varifocal") else shape
        )
        targets: dict[str, tuple[Any, dict[str, Tensor]]] = {
            "i": (index, {"index": index}),
            "s": ((index, score), {"index": index, "score": score}),
            "d": (dense, {"target": dense}),
        }
        given, named = targets[kind.lower()]
        w = weight if kind in "isD" else None
        made = Call(pred=_logits(shape), weight=w, ignore_index=IGNORED, **call, **named)
        yield Pair(f"{name}-{form}-{kind}", made, partial(function, target=given, weight=w, reduction="none", **options))


def _pairs_of_classes() -> Iterator[Pair]:
    for gamma, alpha, kinds in (
        (2.0, 0.25, "idID"),
        (0.0, 0.5, "id"),
        (1.5, 0.25, "id"),
        (1.0, 0.3, "i"),
        (0.7, 0.3, "i"),
        (5.3, 0.3, "d"),
    ):
        call: dict[str, Any] = {"op": "sigmoid_focal", "numbers": (gamma, alpha, 1 - alpha, 0.0)}
        yield from _class_pairs("focal", F.sigmoid_focal_loss, True, {"gamma": gamma, "alpha": alpha}, call, kinds)
    for smoothing, kinds in ((0.0, "iI"), (0.1, "iD")):
        options: dict[str, Any] = {"alpha": ALPHA, "class_weight": PER_CLASS, "label_smoothing": smoothing}
        call = {"op": "sigmoid_focal", "numbers": (2.0, 1.0, 1.0, smoothing), "alpha": ALPHA, "class_weight": PER_CLASS}
        yield from _class_pairs("focal-options", F.sigmoid_focal_loss, True, options, call, kinds)
    call = {"op": "binary_cross_entropy", "numbers": (0.0,)}
    yield from _class_pairs("bce", F.binary_cross_entropy_loss, True, {}, call, "iDd")
    weighted: dict[str, Any] = {"class_weight": PER_CLASS, "label_smoothing": 0.2}
    call = {"op": "binary_cross_entropy", "numbers": (0.2,), "class_weight": PER_CLASS}
    yield from _class_pairs("bce-options", F.binary_cross_entropy_loss, True, weighted, call, "id")
    for beta, kinds in ((2.0, "sdSD"), (1.5, "sd"), (0.0, "sd")):
        call = {"op": "quality_focal", "numbers": (beta,)}
        yield from _class_pairs("qfl", F.quality_focal_loss, True, {"beta": beta}, call, kinds)
    for by_quality, kinds in ((True, "sdS"), (False, "sd")):
        call = {"op": "varifocal", "numbers": (0.75, 2.0, float(by_quality))}
        yield from _class_pairs("vfl", F.varifocal_loss, True, {"iou_weighted": by_quality}, call, kinds)
    call = {"op": "varifocal", "numbers": (0.75, 0.0, 1.0)}
    yield from _class_pairs("vfl-0", F.varifocal_loss, True, {"gamma": 0.0}, call, "sd")
    yield from _class_pairs("ce", F.cross_entropy_loss, False, {}, {"op": "cross_entropy", "numbers": (0.0,)}, "idID")
    call = {"op": "cross_entropy", "numbers": (0.2,), "class_weight": PER_CLASS}
    yield from _class_pairs("ce-options", F.cross_entropy_loss, False, weighted, call, "idI")
    for gamma in (2.0, 0.5):
        call = {"op": "softmax_focal", "numbers": (gamma, 0.0), "alpha": torch.full((CLASSES,), 0.25)}
        yield from _class_pairs("softmax-focal", F.softmax_focal_loss, False, {"gamma": gamma}, call, "idI")
    call = {"op": "softmax_focal", "numbers": (2.0, 0.2), "alpha": ALPHA, "class_weight": PER_CLASS}
    yield from _class_pairs("softmax-focal-options", F.softmax_focal_loss, False, weighted | {"alpha": ALPHA}, call, "iD")


def _pairs_of_numbers() -> Iterator[Pair]:
    for name, function, numbers in (
        ("l1", F.l1_loss, ()), ("mse", F.mse_loss, ()), ("smooth_l1", partial(F.smooth_l1_loss, beta=0.5), (0.5,)),
        ("huber", partial(F.huber_loss, delta=0.3), (0.3,)),
        ("binary_cross_entropy", F.binary_cross_entropy_loss, (0.0,)), ("varifocal", F.varifocal_loss, (0.75, 2.0, 1.0)),
    ):  # fmt: skip
        for shape, weight in (
            ((301, 4), None),
            ((301, 4), (301,)),
            ((301, 4), (301, 4)),
            ((3, 5, 7), (3, 5)),
            ((1100,), None),
            ((9, 5), ()),
        ):
            pred, target = torch.randn(shape, generator=_generator()), torch.rand(shape, generator=_generator(1))
            target.view(-1)[0] = pred.view(-1)[0] = 0.0
            w = None if weight is None else torch.tensor(0.5) if weight == () else _weight(weight)
            call = Call(name, pred, target=target, weight=w, numbers=numbers)
            yield Pair(f"{name}-{list(shape)}-{weight}", call, partial(function, target=target, weight=w, reduction="none"))
    for bins, weight in ((17, (67,)), (17, None), (16, (67,)), (16, None), (2, None), (33, None)):
        target = torch.rand(67, generator=_generator(1)) * (bins - 1)
        target[:5] = torch.tensor([0.0, bins - 1.0, -3.0, 99.0, 1.0])
        w = None if weight is None else _weight(weight)
        call = Call("distribution_focal", _logits((67, bins)), target=target, weight=w)
        reference = partial(F.distribution_focal_loss, target=target, weight=w, reduction="none")
        yield Pair(f"distribution_focal-{bins}", call, reference)


def _pairs_of_distillation() -> Iterator[Pair]:
    """A student far from its teacher, near it, and shifted as a whole; over rows and planes, with and without weights."""
    for form, shape, weighted in (
        ("rows", (61, CLASSES), True),
        ("bins", (43, 17), False),
        ("planes", (2, CLASSES, 3, 7), True),
    ):
        teacher, noise = _logits(shape, 5), torch.randn(shape, generator=_generator(6))
        kinds = {
            "far": (_logits(shape), 4.0),
            "near": (teacher + 0.05 * noise, 10.0),
            "cold": (_logits(shape), 0.3),
            "shifted": (teacher + 900 + noise, 1.0),
        }
        for name in kinds if form == "rows" else ("far", "near"):
            student, temperature = kinds[name]
            w = _weight((*shape[:1], *shape[2:])) if weighted else None
            call = Call("kl_divergence", student, target=teacher, weight=w, numbers=(temperature,))
            options: dict[str, Any] = {"temperature": temperature, "weight": w, "reduction": "none"}
            yield Pair(f"kl-{form}-{name}", call, partial(F.kl_distillation_loss, target=teacher, **options))


def _boxes(number: int) -> tuple[Tensor, Tensor]:
    """Predictions and targets as corners: near, far, nested, touching, equal in a side, identical, without area, inverted."""
    centre, size = torch.rand(number, 2, generator=_generator()) * 400, torch.rand(number, 2, generator=_generator(1)) * 90 + 2
    target = torch.cat((centre - size / 2, centre + size / 2), 1)
    pred = target + torch.randn(number, 4, generator=_generator(2)) * 9
    pred[: number // 4] += 300
    special = torch.tensor(
        [[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 3, 3], [0, 0, 9, 9], [5, 5, 5, 5], [5, 5, 5, 5],
         [4, 4, 0, 0], [4, 0, 0, 4], [0, 0, 0, 4], [0, 0, 1e6, 1e-3]],
    )  # fmt: skip
    others = torch.tensor(
        [[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 2, 4], [4, 0, 8, 4], [0, 0, 4, 4], [1, 1, 3, 3], [5, 5, 5, 5], [4, 4, 6, 6],
         [0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 0, 4], [0, 0, 1e6, 2e-3]],
    )  # fmt: skip
    return torch.cat((special, pred)), torch.cat((others, target))


def _pairs_of_boxes() -> Iterator[Pair]:
    pred, target = _boxes(130)
    eps = 1e-6
    for op, function, numbers, options in (
        ("iou", F.iou_loss, (0.0,), {"mode": "linear"}), ("iou", F.iou_loss, (1.0,), {"mode": "square"}),
        ("iou", F.iou_loss, (2.0,), {}),
        ("giou", F.giou_loss, (), {}), ("diou", F.diou_loss, (), {}), ("ciou", F.ciou_loss, (-1.0,), {}),
        ("ciou", F.ciou_loss, (0.5,), {"alpha_threshold": 0.5}), ("eiou", F.eiou_loss, (), {}), ("siou", F.siou_loss, (4.0,), {}),
        ("siou", F.siou_loss, (1.0,), {"theta": 1.0}), ("siou", F.siou_loss, (2.5,), {"theta": 2.5}),
    ):  # fmt: skip
        forms = enumerate(("xyxy", "xywh", "cxcywh")) if op in ("giou", "siou") else [(0, "xyxy")]
        for number, form in forms:
            for scale in (1.0, 1e-3) if number == 0 else (1.0,):
                weight = None if number else _weight(pred.shape[:1])
                p, t = (convert_boxes(x * scale, "xyxy", form) for x in (pred, target))
                call = Call(op, p, target=t, weight=weight, numbers=(eps, float(number), *numbers))
                reference = partial(function, target=t, weight=weight, eps=eps, box_format=form, reduction="none", **options)
                yield Pair(f"{op}-{form}-{scale}", call, reference)


def _pairs_of_rotated_boxes() -> Iterator[Pair]:
    """Near, far and nested, turned a little, a quarter, many turns; long and thin, inverted, sideless, identical."""
    number = 200
    target = torch.rand(number, 5, generator=_generator()) * torch.tensor([400.0, 400, 90, 90, 3.2])
    target[:, 2:4] += 1
    pred = target + torch.randn(number, 5, generator=_generator(1)) * torch.tensor([9.0, 9, 5, 5, 0.3])
    pred[40:60, 4] += torch.pi / 2
    pred[60:70, 4] += 40 * torch.pi
    pred[70:90, :2] += 300
    pred[90:95], target[95:100, 4] = target[90:95], pred[95:100, 4]
    target[100:110, 2], target[110:120, 3] = 300.0, 0.7
    pred[100:120, :4] = target[100:120, :4] + 0.1
    pred[120:124, 2], pred[124:128, 3], pred[128:130, 2:4], target[130:134, 2] = -3.0, 0.0, -5.0, 0.0
    weight = _weight((number,))
    for mode, form in (("l1", 0.0), ("l2", 1.0)):
        for scale in (1.0, 1e-3):
            w = weight if scale == 1 else None
            p, t = (x * torch.tensor([scale, scale, scale, scale, 1.0]) for x in (pred, target))
            call = Call("probiou", p, target=t, weight=w, numbers=(1e-4, form))
            reference = partial(F.probiou_loss, target=t, weight=w, mode=mode, eps=1e-4, reduction="none")
            yield Pair(f"probiou-{mode}-{scale}", call, reference)


def _pairs_of_masks() -> Iterator[Pair]:
    """Masks of few and of many pixels; perfect ones, empty ones, targets between 0 and 1."""
    for number, pixels in ((7, 33), (3, 5000), (40, 784)):
        logits = torch.randn(number, pixels, generator=_generator()) * 4
        soft = torch.rand(number, pixels, generator=_generator(3))
        hard = (soft > 0.6).float()
        logits[0], hard[1], soft[1] = hard[0] * 400 - 200, 0, 0
        weight = _weight((number,))
        for name, target, function, options, numbers in (
            ("dice", hard, F.dice_loss, {}, (0.5, 0.5, 0.5, 0.0)),
            ("dice-0", hard, F.dice_loss, {"smooth": 0.0}, (0.5, 0.5, 0.0, 0.0)),
            ("dice-squared", soft, F.dice_loss, {"squared": True, "smooth": 0.1}, (0.5, 0.5, 0.05, 1.0)),
            ("tversky", soft, F.tversky_loss, {"alpha": 0.3, "beta": 0.9}, (0.3, 0.9, 1.0, 0.0)),
        ):
            w = weight if target is soft else None
            call = Call("tversky", logits, target=target, weight=w, numbers=numbers)
            yield Pair(f"{name}-{pixels}", call, partial(function, target=target, weight=w, reduction="none", **options))


def pairs() -> list[Pair]:
    """All calls, with unique names."""
    made = [
        *_pairs_of_classes(),
        *_pairs_of_numbers(),
        *_pairs_of_distillation(),
        *_pairs_of_boxes(),
        *_pairs_of_rotated_boxes(),
        *_pairs_of_masks(),
    ]
    return [replace(pair, id=f"{pair.id}-{number}") for number, pair in enumerate(made)]


def poisoned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function that makes uninitialised tensors, made to fill them with NaN, or with a number that is no object."""

    def make(*arguments: Any, **options: Any) -> Tensor:
        made = function(*arguments, **options)
        return made.fill_(torch.nan if made.is_floating_point() else 77)

    return make


def _near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    found = found.cpu()
    if not torch.isfinite(found).all():
        raise AssertionError(f"{(~torch.isfinite(found)).sum()} of {found.numel()} numbers are not finite")
    error, largest = (found.double() - expected).abs().max(), expected.abs().max()
    if error > tolerance * largest:
        raise AssertionError(f"error {error:.2e}, {error / largest:.2e} of the largest, {largest:.2e}")


def on(call: Call, device: str) -> Call:
    """The call with all its tensors on a device."""
    values = {field.name: getattr(call, field.name) for field in fields(call)}
    return replace(call, **{name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)})


def check(
    backend: Backend,
    pair: Pair,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 2e-6,
    expand: bool = False,
    device: str = "cpu",
) -> None:
    """Sum, gradient, element-wise loss and its gradient on a device against the reference in float64 on the CPU.

    With ``expand`` the upstream gradient of the element-wise loss is one number for all, as ``sum()`` gives it.
    """
    call = on(replace(pair.call, pred=pair.call.pred.to(dtype)), device)
    if problem := backend.refuses(call):
        raise AssertionError(problem)
    exact = call.pred.cpu().double().requires_grad_()
    loss = pair.reference(exact)
    fine = max(tolerance, {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-11}.get(dtype, 0.0))
    divisor = torch.tensor([3.0], device=call.pred.device)
    result = backend.total(call, 2.0, divisor, True, True)
    if result is None or result[1] is None:
        raise AssertionError("no gradient")
    total, grad = result
    _near(total, loss.detach().sum() * 2.0 / 3.0, tolerance)
    if grad.dtype != dtype or grad.shape != call.pred.shape:
        raise AssertionError(f"gradient {grad.dtype} {list(grad.shape)}")
    _near(grad, torch.autograd.grad(loss.sum() * 2.0 / 3.0, exact, retain_graph=True)[0], fine)
    alone = backend.total(call, 0.5, None, False, True)
    if alone is None or alone[1] is not None:
        raise AssertionError("a gradient that was not asked for")
    _near(alone[0], loss.detach().sum() * 0.5, tolerance)
    losses = backend.elements(call, True)
    if losses is None or losses.shape != loss_shape(call) or losses.dtype != torch.float32:
        raise AssertionError(f"element-wise loss {losses}")
    _near(losses, loss.detach(), tolerance)
    above = torch.rand(loss.shape, generator=_generator(9)) if not expand else torch.tensor(3.0).expand(loss.shape)
    found = backend.gradient(call, above.to(device) if not expand else torch.tensor(3.0, device=device).expand(loss.shape))
    _near(found, torch.autograd.grad(loss, exact, above.double())[0], fine)
