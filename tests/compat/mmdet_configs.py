"""Heads and models as mmdet's own configuration files write them."""

from __future__ import annotations

from typing import Any

STRIDES = [8, 16, 32]
RANDOM = {"type": "RandomSampler", "neg_pos_ub": -1}

RETINA = dict(
    type="RetinaHead",
    num_classes=3,
    in_channels=256,
    stacked_convs=4,
    feat_channels=256,
    anchor_generator=dict(
        type="AnchorGenerator", octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0], strides=STRIDES
    ),
    bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]),
    loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
    loss_bbox=dict(type="L1Loss", loss_weight=1.0),
)
RETINA_TRAIN = dict(
    assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
    sampler=dict(type="PseudoSampler"),
    allowed_border=-1,
    pos_weight=-1,
    debug=False,
)
FCOS = dict(
    type="FCOSHead",
    num_classes=3,
    in_channels=256,
    strides=STRIDES,
    regress_ranges=((-1, 64), (64, 128), (128, 1e8)),
    loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
    loss_bbox=dict(type="IoULoss", loss_weight=1.0),
    loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
)
SQUARE = dict(type="AnchorGenerator", ratios=[1.0], octave_base_scale=8, scales_per_octave=1, strides=STRIDES)
ATSS = dict(
    type="ATSSHead",
    num_classes=3,
    in_channels=256,
    anchor_generator=SQUARE,
    bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
    loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
    loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
    loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
)
ATSS_TRAIN = dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False)
GFL = dict(
    type="GFLHead",
    num_classes=3,
    in_channels=256,
    stacked_convs=4,
    anchor_generator=SQUARE,
    loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
    loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25),
    reg_max=8,
    loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
)
YOLOX = dict(
    type="YOLOXHead",
    num_classes=3,
    in_channels=128,
    strides=(8, 16, 32),
    use_depthwise=False,
    loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, reduction="sum", loss_weight=1.0),
    loss_bbox=dict(type="IoULoss", mode="square", eps=1e-16, reduction="sum", loss_weight=5.0),
    loss_obj=dict(type="CrossEntropyLoss", use_sigmoid=True, reduction="sum", loss_weight=1.0),
    loss_l1=dict(type="L1Loss", reduction="sum", loss_weight=1.0),
)
CENTERNET = dict(
    type="CenterNetHead",
    num_classes=3,
    in_channels=64,
    feat_channels=64,
    loss_center_heatmap=dict(type="GaussianFocalLoss", loss_weight=1.0),
    loss_wh=dict(type="L1Loss", loss_weight=0.1),
    loss_offset=dict(type="L1Loss", loss_weight=1.0),
)
RPN = dict(
    type="RPNHead",
    in_channels=256,
    feat_channels=256,
    anchor_generator=dict(type="AnchorGenerator", scales=[4], ratios=[0.5, 1.0, 2.0], strides=STRIDES),
    bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
    loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    loss_bbox=dict(type="L1Loss", loss_weight=1.0),
)
BOX_HEAD = dict(
    type="Shared2FCBBoxHead",
    in_channels=256,
    fc_out_channels=1024,
    roi_feat_size=7,
    num_classes=3,
    bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
    reg_class_agnostic=False,
    loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    loss_bbox=dict(type="L1Loss", loss_weight=1.0),
)
MASK_HEAD = dict(
    type="FCNMaskHead",
    num_convs=4,
    in_channels=256,
    conv_out_channels=256,
    num_classes=3,
    loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
)
TWO_STAGE_TRAIN = dict(
    rpn=dict(
        assigner=dict(
            type="MaxIoUAssigner", pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, match_low_quality=True, ignore_iof_thr=-1
        ),
        sampler={**RANDOM, "num": 10_000, "pos_fraction": 0.5, "add_gt_as_proposals": False},
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
    rcnn=dict(
        assigner=dict(
            type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=True, ignore_iof_thr=-1
        ),
        sampler={**RANDOM, "num": 512, "pos_fraction": 0.25, "add_gt_as_proposals": True},
        mask_size=28,
        pos_weight=-1,
        debug=False,
    ),
)
MASK_RCNN: dict[str, Any] = dict(
    type="MaskRCNN",
    data_preprocessor=dict(type="DetDataPreprocessor"),
    backbone=dict(type="ResNet", depth=50),
    neck=dict(type="FPN"),
    rpn_head=RPN,
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(type="SingleRoIExtractor"),
        bbox_head=BOX_HEAD,
        mask_roi_extractor=dict(type="SingleRoIExtractor"),
        mask_head=MASK_HEAD,
    ),
    train_cfg=TWO_STAGE_TRAIN,
    test_cfg=dict(rcnn=dict(score_thr=0.05)),
)
DETR = dict(
    type="DETRHead",
    num_classes=3,
    embed_dims=256,
    loss_cls=dict(type="CrossEntropyLoss", bg_cls_weight=0.1, use_sigmoid=False, loss_weight=1.0, class_weight=1.0),
    loss_bbox=dict(type="L1Loss", loss_weight=5.0),
    loss_iou=dict(type="GIoULoss", loss_weight=2.0),
)
DETR_TRAIN = dict(
    assigner=dict(
        type="HungarianAssigner",
        match_costs=[
            dict(type="ClassificationCost", weight=1.0),
            dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
            dict(type="IoUCost", iou_mode="giou", weight=2.0),
        ],
    )
)
DINO = dict(
    type="DINOHead",
    num_classes=3,
    sync_cls_avg_factor=True,
    loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
    loss_bbox=dict(type="L1Loss", loss_weight=5.0),
    loss_iou=dict(type="GIoULoss", loss_weight=2.0),
)
DINO_TRAIN = dict(
    assigner=dict(
        type="HungarianAssigner",
        match_costs=[
            dict(type="FocalLossCost", weight=2.0),
            dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
            dict(type="IoUCost", iou_mode="giou", weight=2.0),
        ],
    )
)
