"""Dicts that remember which of their keys were read, so that no option of a configuration gets lost unseen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from detloss.checks import did_you_mean

__all__ = ["ConfigLog", "Section"]

# Options of heads and models that say how a network is built, run or tested, not what it learns from.
ARCHITECTURE_NAMES = """
    act_cfg as_two_stage avg_pool backbone bbox_roi_extractor batch_augments
    cls_predictor_cfg conv_bias conv_cfg conv_kernel_size conv_out_channels conv_to_res data_preprocessor dcn_on_last_conv
    debug decoder deform_groups dn_cfg embed_dims encoder feat_channels fc_out_channels fp16 frozen_stages group
    _scope_ in_channels in_index init_cfg input_img_h input_img_w layer_cfg mask_roi_extractor neck norm_cfg
    norm_eval num_cls_convs num_cls_fcs num_convs num_feature_levels num_fcs num_pred_layer num_query num_queries
    num_reg_convs num_reg_fcs num_shared_convs num_shared_fcs out_channels positional_encoding pred_kernel_size
    predict_box_type predictor_cfg pretrained reg_predictor_cfg roi_feat_size share_pred_layer shared_head
    shared_roi_extractor stacked_convs test_cfg transformer upsample_cfg use_depthwise with_avg_pool
    with_box_refine with_cls with_reg random_size_interval random_size_range input_size size_multiplier mask_size
    mask_thr_binary nms_pre use_box_type gpu_assign_thr
"""
ARCHITECTURE = frozenset(ARCHITECTURE_NAMES.split())


class ConfigLog:
    """What became of every option of a configuration, by its path (``bbox_head.loss_cls.gamma``)."""

    def __init__(self) -> None:
        self.sections: list[Section] = []
        self.notes: list[str] = []
        self.unsupported: list[str] = []

    def note(self, text: str) -> None:
        """Something that the user should know of the result."""
        if text not in self.notes:
            self.notes.append(text)

    def outcome(self) -> tuple[list[str], list[str], list[str]]:
        """Paths of the options that were used, ignored and unknown, each sorted; hints for unknown ones become notes."""
        used, ignored, unknown = [], [], list(self.unsupported)
        for section in self.sections:
            for key in section.values:
                path = section.path_of(key)
                if path in self.unsupported:
                    continue
                if key in section.read:
                    used.append(path)
                elif key in section.skipped or key in ARCHITECTURE:
                    ignored.append(path)
                else:
                    unknown.append(path)
                    hint = did_you_mean(key, section.asked)
                    if hint:
                        self.note(f"{path}:{hint}")
        return sorted(set(used)), sorted(set(ignored)), sorted(set(unknown))


class Section:
    """One dict of a configuration with its path; what is read through it counts as used.

    Args:
        values: the dict.
        path: where it is in the configuration, for messages; empty for the outermost.
        log: what became of the options so far.
        given: whether the user wrote it; defaults are not listed.
    """

    def __init__(self, values: Mapping[str, Any], path: str, log: ConfigLog, given: bool = True) -> None:
        self.values, self.path, self.log = values, path, log
        self.read: set[str] = set()
        self.skipped: set[str] = set()
        self.asked: set[str] = set()
        self._parts: dict[str, Section] = {}
        if given:
            log.sections.append(self)

    def path_of(self, key: str) -> str:
        """The path of an option of this section."""
        return f"{self.path}.{key}" if self.path else str(key)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def get(self, key: str, default: Any = None) -> Any:
        """The option ``key``, which is thereby used."""
        self.asked.add(key)
        if key not in self.values:
            return default
        self.read.add(key)
        return self.values[key]

    def need(self, key: str) -> Any:
        """The option ``key``; a ``ValueError`` when it is not there."""
        found = self.get(key)
        if found is None:
            raise ValueError(
                f"{self.path or 'configuration'}: expected {key!r}; got {', '.join(map(str, self.values)) or 'nothing'}"
            )
        return found

    def take(self, *keys: str) -> dict[str, Any]:
        """Those of the options ``keys`` that are set."""
        self.asked.update(keys)
        return {key: self.get(key) for key in keys if key in self.values}

    def part(self, key: str, default: Mapping[str, Any] | None = None) -> Section | None:
        """The dict ``key`` as a section; one of ``default`` when it is not set, ``None`` without a default."""
        if key in self._parts:
            return self._parts[key]
        found = self.get(key)
        value = default if found is None else found
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.path_of(key)}: expected a dict; got {type(value).__name__} {value!r}")
        self._parts[key] = Section(value, self.path_of(key), self.log, given=found is not None)
        return self._parts[key]

    def kind(self, default: str | None = None) -> str:
        """The ``type``, without the scope in front of it (``mmdet.FocalLoss``)."""
        kind = self.get("type", default)
        if not isinstance(kind, str):
            raise ValueError(f"{self.path or 'configuration'}: expected a 'type', the name of a class; got {kind!r}")
        return kind.rsplit(".", 1)[-1]

    def skip(self, *keys: str, why: str = "") -> None:
        """The options ``keys`` do not concern the loss; ``why`` is noted where one is set."""
        self.asked.update(keys)
        for key in keys:
            self.skipped.add(key)
            if why and key in self.values:
                self.log.note(f"{self.path_of(key)}: {why}")

    def skip_rest(self) -> None:
        """Nothing else in here concerns the loss."""
        self.skipped.update(set(self.values) - self.read)

    def expect(self, key: str, allowed: Iterable[Any], why: str) -> None:
        """An option of which only the values ``allowed`` can be kept; another one counts as unknown, and ``why`` is noted."""
        value = self.get(key)
        if key in self.values and value not in list(allowed):
            self.refuse(key, why)

    def refuse(self, key: str, why: str) -> None:
        """An option that cannot be kept: it counts as unknown, and ``why`` is noted."""
        self.get(key)
        self.log.unsupported.append(self.path_of(key))
        self.log.note(f"{self.path_of(key)} = {self.values.get(key)!r}: {why}")

    def error(self, text: str) -> ValueError:
        """A ``ValueError`` that begins with the path."""
        return ValueError(f"{self.path or 'configuration'}: {text}")
