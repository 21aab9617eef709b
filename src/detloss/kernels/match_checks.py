"""Whether a match is one that kernels read: its device, dtypes, shapes and numbers."""

from __future__ import annotations

import torch

from detloss.kernels.matches import AlignedMatch, ATSSMatch, Match, MaxIoUMatch, PairCostMatch

__all__ = ["refuses_match"]

TAKEN = (torch.float32, torch.bool, torch.int64)
SCORES = (torch.float32, torch.bfloat16, torch.float16)
COSTS = ("iou", "giou")
MOST_PRIORS = 2**31 - 64  # numbers of priors are kept in 32 bits


def refuses_match(match: Match, most_candidates: int = 1024) -> str | None:
    """Why kernels do not take a match: tensors on several devices or not of fp32, bool and int64, shapes, sizes.

    Candidates of an object, or of a level of it, are kept in order by insertion, so there are at most ``most_candidates``.
    """
    scores, device = getattr(match, "scores", None), match.pred.device
    for tensor in (match.pred, *match.tensors()):
        if tensor.device != device:
            return f"input on {tensor.device.type!r}"
        if tensor.dtype not in TAKEN and not (tensor is scores and tensor.dtype in SCORES):
            return f"{str(tensor.dtype).removeprefix('torch.')} input"
    if isinstance(match, PairCostMatch):
        return _refuses_costs(match)
    if not (_aligned_fits(match) if isinstance(match, AlignedMatch) else _anchors_fit(match)):
        return "shapes that do not fit"
    if getattr(match, "topk", 0) > most_candidates:
        return f"more than {most_candidates} candidates"
    return "more than 2^31 priors" if match.pred.shape[-2] > MOST_PRIORS else None


def _anchors_fit(match: MaxIoUMatch | ATSSMatch) -> bool:
    """Whether anchors, what is valid of them, and objects have the shapes that the library reads."""
    (images, objects), priors = match.present.shape, match.boxes.shape[-2]
    if match.objects.shape != (images, objects, 4):
        return False
    shared = ((), (1,)) if isinstance(match, MaxIoUMatch) else ()
    leading = {(images,), *shared}
    if match.boxes.shape != (priors, 4) and (match.boxes.shape[-1] != 4 or match.boxes.shape[:-2] not in leading):
        return False
    if match.valid is not None and (match.valid.shape[-1:] != (priors,) or match.valid.shape[:-1] not in leading):
        return False
    return isinstance(match, MaxIoUMatch) or (sum(match.counts) == priors and min(match.counts) >= 0)


def _aligned_fits(match: AlignedMatch) -> bool:
    """Whether priors, predictions and objects have the shapes that the library reads."""
    images, priors, _ = match.scores.shape
    rows = len(match.labels)
    return (
        match.boxes.shape == (images, priors, 4)
        and match.valid.shape == (images, priors)
        and match.xy.shape in ((priors, 2), (images, priors, 2))
        and match.region.shape == match.objects.shape == (rows, 4)
        and images > 0
        and rows % images == 0
    )


def _refuses_costs(match: PairCostMatch) -> str | None:
    images, objects, queries = match.cost.shape
    fits = (
        match.boxes.shape == (images, queries, 4)
        and match.objects.shape == (images, objects, 4)
        and match.units.shape == (images, 2)
        and match.usable.shape == (images, queries)
        and match.valid.shape == (images, objects)
    )
    if not fits:
        return "shapes that do not fit"
    return None if match.iou in COSTS else f"a cost of {match.iou!r}"
