"""transformers' DETR models in small, and batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["CLASSES", "MODELS", "batch", "build"]

CLASSES = 4
MODELS = ("Detr", "TableTransformer", "Yolos", "ConditionalDetr", "DabDetr", "DeformableDetr", "RTDetr", "RTDetrV2")
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
LAST_THREE = ["stage2", "stage3", "stage4"]
HEADS = {
    "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16, "num_queries": 9, "auxiliary_loss": True, "use_timm_backbone": False, "use_pretrained_backbone": False,
    "backbone": None,
}  # fmt: skip
RT = {
    "encoder_hidden_dim": 16, "encoder_in_channels": [8, 16, 16], "encoder_ffn_dim": 16, "encoder_attention_heads": 2,
    "d_model": 16, "num_queries": 12, "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 16, "decoder_layers": 2,
    "decoder_attention_heads": 2, "num_denoising": 20, "hidden_expansion": 1.0,
}  # fmt: skip
YOLOS = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": [64, 64],
    "patch_size": 16, "num_detection_tokens": 9, "use_mid_position_embeddings": False,
}  # fmt: skip


def build(name: str) -> Any:
    """A model with random weights."""
    import transformers

    if name == "Yolos":
        options: dict[str, Any] = dict(YOLOS)
    elif name.startswith("RT"):
        options = {**RT, "backbone_config": transformers.RTDetrResNetConfig(**STAGES, out_features=LAST_THREE)}
    else:
        several = name == "DeformableDetr"
        stages = LAST_THREE if several else LAST_THREE[-1:]
        options = {**HEADS, "backbone_config": transformers.ResNetConfig(**STAGES, out_features=stages)}
        options["hidden_size" if name == "DabDetr" else "d_model"] = 32
        options |= {"num_feature_levels": 3} if several else {}
    config = getattr(transformers, f"{name}Config")(**options, num_labels=CLASSES)
    return getattr(transformers, f"{name}ForObjectDetection")(config)


def batch(counts: Sequence[int] = (3, 1, 0)) -> dict[str, Any]:
    """Images and labels as an image processor gives them."""
    generator = torch.Generator().manual_seed(1)
    labels = []
    for count in counts:
        size = 0.2 + 0.4 * torch.rand(count, 2, generator=generator)
        centre = size / 2 + torch.rand(count, 2, generator=generator) * (1 - size)
        classes = torch.randint(CLASSES, (count,), generator=generator)
        labels.append({"boxes": torch.cat((centre, size), 1), "class_labels": classes})
    return {"pixel_values": torch.rand(len(counts), 3, 64, 64, generator=generator), "labels": labels}
