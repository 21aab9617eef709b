"""A DETR criterion in the form in which transformers' models call their loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detloss.compat.patches.detr_layers import Truth
from detloss.criteria.detr import DETRLoss
from detloss.geometry.boxes import to_xyxy
from detloss.integrations.attach import Attached, on_device_of
from detloss.integrations.meter import LossMeter, detached
from detloss.types import LossDict, Target

__all__ = ["DETRFunction", "SingleColumns"]

LARGEST_EXPONENT = 80.0
LEAST = 1e-6  # probability of "no object" where several classes are likely at once


class SingleColumns(Attached):
    """A classifier of C + 1 columns whose first C are learnt one by one; the last, "no object", follows from them.

    With z = ln(1 − Σ_{c≠m} e^{x_c}), m the best class, softmax gives e^{x_m} / (e^{x_m} + 1) = σ(x_m).
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The logits of the classes as they are, and the column of "no object", which has no gradient."""
        logits: Tensor = super().forward(*args, **kwargs)[..., :-1]  # type: ignore[misc]
        return torch.cat((logits, rest_of(logits.detach()).to(logits.dtype)), dim=-1)


def rest_of(logits: Tensor) -> Tensor:
    """``[..., 1]``: ln(1 − Σ e^{x_c} over all classes but the best), at least ln 1e-6."""
    x = logits.float()
    best = x.amax(-1, keepdim=True)
    others = x.masked_fill(torch.arange(x.shape[-1], device=x.device) == x.argmax(-1, keepdim=True), -torch.inf)
    total = others.clamp(max=LARGEST_EXPONENT).exp().sum(-1, keepdim=True) + 0 * best
    return (1 - total).clamp(min=LEAST).log()


class DETRFunction:
    """``loss, loss_dict, auxiliary_outputs = loss_function(logits, labels, device, pred_boxes, config, …)``.

    Attributes:
        criterion: the DETRLoss.
        last_losses: its losses of the last call, without their graph.
    """

    def __init__(self, criterion: Any) -> None:
        self.criterion: DETRLoss = criterion
        self.last_losses: LossDict | None = None
        self._meters: dict[str, LossMeter] = {}

    def __call__(
        self,
        logits: Tensor,
        labels: Sequence[Mapping[str, Tensor]],
        device: Any,
        pred_boxes: Tensor,
        config: Any,
        outputs_class: Tensor | None = None,
        outputs_coord: Tensor | None = None,
        enc_topk_logits: Tensor | None = None,
        enc_topk_bboxes: Tensor | None = None,
        denoising_meta_values: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]] | None]:
        criterion: Any = on_device_of(self.criterion, logits)
        layers: list[tuple[Tensor, Tensor]] = []
        if config.auxiliary_loss and outputs_class is not None and outputs_coord is not None:
            # RT-DETR, the one with proposals of the encoder, has the layers in the second dimension.
            dim = 0 if enc_topk_logits is None else 1
            layers = list(zip(outputs_class.unbind(dim), outputs_coord.unbind(dim), strict=True))
        last, denoising = (logits, pred_boxes), []
        if denoising_meta_values is not None:
            number, _ = denoising_meta_values["dn_num_split"]
            denoising = [(x[:, :number], y[:, :number]) for x, y in layers]
            last, *layers = [(x[:, number:], y[:, number:]) for x, y in (last, *layers)]
        aux = layers[:-1]
        given: dict[str, Any] = {}
        if enc_topk_logits is not None and enc_topk_bboxes is not None and config.auxiliary_loss:
            given["enc_outputs"] = self._classes((enc_topk_logits, enc_topk_bboxes))
        if denoising and denoising_meta_values is not None:
            given["dn_outputs"] = [self._classes(layer) for layer in denoising]
            given["dn_gt_index"] = _reconstructed(denoising_meta_values, labels, denoising[0][1])
        if criterion.target_format == "xyxy_pixel":
            given["image_sizes"] = (1, 1)
        losses: LossDict = criterion(
            *self._classes(last), self._targets(labels), [self._classes(layer) for layer in aux], **given
        )
        self._note(losses)
        others: list[Any] = [*aux, (enc_topk_logits, enc_topk_bboxes)] if "enc_outputs" in given else aux
        auxiliary = [{"logits": x, "pred_boxes": y} for x, y in others] if config.auxiliary_loss else None
        # A plain dict: the Trainer makes new ones of its type, of arrays too.
        return losses.total_loss, dict(losses), auxiliary

    def measure(self) -> None:
        """Keep means from now on, those of steps with a gradient apart from those without."""
        self._meters = {"train": LossMeter(), "eval": LossMeter()}

    def means(self, kind: str, prefix: str = "") -> dict[str, float]:
        """The means since the last call for this ``kind``, ``"train"`` or ``"eval"``."""
        meter = self._meters[kind]
        found = meter.means(prefix)
        meter.reset()
        return found

    def _note(self, losses: LossDict) -> None:
        self.last_losses = detached(losses)
        if self._meters:
            self._meters["train" if torch.is_grad_enabled() else "eval"].update(losses)

    def _classes(self, layer: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The layer without the column of "no object", where the criterion does not learn it."""
        logits, boxes = layer
        return (logits if self.criterion.background_column else logits[..., : self.criterion.num_classes]), boxes

    def _targets(self, labels: Sequence[Mapping[str, Tensor]]) -> list[Target]:
        """transformers' labels as the criterion takes them, in units of the image."""
        corners = self.criterion.target_format == "xyxy_pixel"
        return [
            {
                "boxes": to_xyxy(label["boxes"], "cxcywh") if corners else label["boxes"],
                "labels": label["class_labels"],
                **({"iscrowd": label["iscrowd"]} if "iscrowd" in label else {}),
            }
            for label in labels
        ]


def _reconstructed(meta: Mapping[str, Any], labels: Sequence[Mapping[str, Tensor]], boxes: Tensor) -> Tensor:
    """``[B, N]`` object that each of the denoising queries ``boxes [B, N, 4]`` reconstructs; −1 for none."""
    index = Truth.of(labels, boxes).denoising_index(meta["dn_positive_idx"], int(meta["dn_num_group"]), (1, *boxes.shape[:2]))
    return index[0]
