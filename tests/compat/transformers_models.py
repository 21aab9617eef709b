"""Tiny detectors of transformers with random weights: what the patch tests train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf
from torch import nn

__all__ = ["CLASSES", "MODELS", "QUERIES", "SIDE"]

CLASSES, QUERIES, SIDE, WIDTH = 5, 12, 64, 32
PLAIN = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "num_labels": CLASSES,
    "num_queries": QUERIES, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": WIDTH, "decoder_ffn_dim": WIDTH,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "auxiliary_loss": True, "dropout": 0.0,
}  # fmt: skip
REAL_TIME = {
    "num_labels": CLASSES, "num_queries": QUERIES, "encoder_hidden_dim": WIDTH, "encoder_layers": 1, "encoder_ffn_dim": WIDTH,
    "encoder_attention_heads": 2, "encoder_in_channels": [8, 16, 16], "d_model": WIDTH, "decoder_in_channels": [WIDTH] * 3,
    "decoder_ffn_dim": WIDTH, "decoder_layers": 2, "decoder_attention_heads": 2, "num_denoising": 8, "hidden_expansion": 1.0,
    "dropout": 0.0, "freeze_backbone_batch_norms": False,
}  # fmt: skip


def spread(model: nn.Module) -> nn.Module:
    """Queries that differ from one another: at the start they are so alike that which is matched hangs on the last bit."""
    for weight in model.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return model


def settled(model: nn.Module) -> nn.Module:
    """Also batch norm kept as it is, as in fine-tuning: corners refined from layer to layer enlarge every rounding error."""
    for module in spread(model).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
    return model


def resnet(stages: int) -> Any:
    """One block per stage; the last map has stride 2^(stages + 1)."""
    widths, last = [8, 16, 16][:stages], [f"stage{k}" for k in range(2, stages + 1)]
    return hf.ResNetConfig(embedding_size=8, hidden_sizes=widths, depths=[1] * stages, layer_type="basic", out_features=last)


def plain(name: str, stages: int = 2, **options: Any) -> Callable[[], nn.Module]:
    """DETR and its relatives without a fast encoder."""

    def build() -> nn.Module:
        width = {"hidden_size" if name == "DabDetr" else "d_model": WIDTH}
        config = getattr(hf, f"{name}Config")(backbone_config=resnet(stages), **PLAIN, **width, **options)
        model: nn.Module = getattr(hf, f"{name}ForObjectDetection")(config)
        return model

    return build


def real_time(
    name: str, backbone: Callable[[], Any], points: Any, start: Callable[[nn.Module], nn.Module], **options: Any
) -> Callable[[], nn.Module]:
    """RT-DETR, D-FINE and their relatives, with denoising and auxiliary losses."""

    def build() -> nn.Module:
        config = getattr(hf, f"{name}Config")(backbone_config=backbone(), decoder_n_points=points, **REAL_TIME, **options)
        return start(getattr(hf, f"{name}ForObjectDetection")(config))

    return build


def rt_resnet() -> Any:
    maps = ["stage2", "stage3", "stage4"]
    widths = [8, 8, 16, 16]
    return hf.RTDetrResNetConfig(embedding_size=8, hidden_sizes=widths, depths=[1] * 4, layer_type="basic", out_features=maps)


def hgnet() -> Any:
    return hf.HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 8, 16], stage_mid_channels=[8] * 4, stage_out_channels=[8, 8, 16, 16],
        stage_num_blocks=[1] * 4, stage_numb_of_layers=[1] * 4, out_features=["stage2", "stage3", "stage4"],
        hidden_sizes=[8, 8, 16, 16], embedding_size=8, depths=[1] * 4,
    )  # fmt: skip


def yolos() -> nn.Module:
    config = hf.YolosConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=WIDTH, image_size=[SIDE, SIDE],
        patch_size=16, num_detection_tokens=QUERIES, num_labels=CLASSES, use_mid_position_embeddings=False,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model: nn.Module = hf.YolosForObjectDetection(config)
    return model


def lw_detr() -> nn.Module:
    backbone = hf.LwDetrViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1, image_size=SIDE, pretrain_image_size=SIDE,
        patch_size=16, num_windows=4, window_block_indices=[0], out_indices=[1],
    )  # fmt: skip
    config = hf.LwDetrConfig(
        backbone_config=backbone, projector_scale_factors=[1.0], d_model=WIDTH, decoder_layers=2, decoder_ffn_dim=WIDTH,
        num_queries=QUERIES, num_labels=CLASSES, group_detr=3, decoder_self_attention_heads=2, decoder_cross_attention_heads=2,
        num_feature_levels=1, decoder_n_points=2,
    )  # fmt: skip
    model: nn.Module = hf.LwDetrForObjectDetection(config)
    return model


LEVELS = {"num_feature_levels": 2, "encoder_n_points": 2, "decoder_n_points": 2}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "detr": plain("Detr"),
    "deformable": plain("DeformableDetr", 3, **LEVELS),
    "conditional": plain("ConditionalDetr"),
    "dab": plain("DabDetr"),
    "table": plain("TableTransformer"),
    "yolos": yolos,
    "rt_detr": real_time("RTDetr", rt_resnet, 2, spread, use_timm_backbone=False, use_pretrained_backbone=False),
    "rt_detr_v2": real_time("RTDetrV2", rt_resnet, 2, spread, use_timm_backbone=False, use_pretrained_backbone=False),
    "d_fine": real_time("DFine", hgnet, [2, 2, 2], settled),
    "deimv2": real_time("Deimv2", hgnet, [2, 2, 2], settled),
    "lw_detr": lw_detr,
}
