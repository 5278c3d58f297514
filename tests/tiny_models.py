"""Model configs small enough for a test, and checkpoints for them."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

CLASSES = ('cat', 'dog', 'person')


def faster_rcnn(classes: int = 3, channels: int = 16, depth: int = 18, **changes) -> dict:
    """A Faster R-CNN of well under a million weights; ``changes`` are merged into the config.

    Args:
        classes: Foreground classes.
        channels: Of the FPN.
        depth: Of the ResNet, whose stem has 8 channels in place of 64.
        changes: Nested dicts to merge.
    """
    deltas = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4)
    loss_bbox = dict(type='L1Loss', loss_weight=1.0)
    assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.3)
    proposals = dict(
        nms_pre=100, max_per_img=32, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0
    )
    model = ConfigDict(
        type='FasterRCNN',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[123.675, 116.28, 103.53],
            std=[58.395, 57.12, 57.375],
            bgr_to_rgb=True,
            pad_size_divisor=32,
        ),
        backbone=dict(
            type='ResNet',
            depth=depth,
            stem_channels=8,
            base_channels=8,
            num_stages=4,
            out_indices=(0, 1, 2, 3),
        ),
        neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=channels, num_outs=5),
        rpn_head=dict(
            type='RPNHead',
            in_channels=channels,
            feat_channels=channels,
            anchor_generator=dict(
                type='AnchorGenerator',
                scales=[4],
                ratios=[0.5, 1.0, 2.0],
                strides=[4, 8, 16, 32, 64],
            ),
            bbox_coder=dict(target_stds=[1.0] * 4, **deltas),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_bbox=loss_bbox,
        ),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
                out_channels=channels,
                featmap_strides=[4, 8, 16, 32],
            ),
            bbox_head=dict(
                type='Shared2FCBBoxHead',
                in_channels=channels,
                fc_out_channels=32,
                num_classes=classes,
                bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2], **deltas),
                loss_cls=dict(type='CrossEntropyLoss'),
                loss_bbox=loss_bbox,
            ),
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=assigner,
                # No ground truth among the anchors: its indices would lie beyond their targets.
                sampler=dict(
                    type='RandomSampler', num=32, pos_fraction=0.5, add_gt_as_proposals=False
                ),
                allowed_border=-1,
                pos_weight=-1,
            ),
            rpn_proposal=proposals,
            rcnn=dict(
                assigner=assigner,
                sampler=dict(
                    type='RandomSampler', num=16, pos_fraction=0.25, add_gt_as_proposals=True
                ),
                pos_weight=-1,
            ),
        ),
        test_cfg=dict(
            rpn=proposals,
            rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20),
        ),
    )
    merge(model, changes)
    return copy.deepcopy(model)


def cascade_rcnn(
    classes: int = 3, channels: int = 16, stages: int = 3, head: dict | None = None, **changes
) -> dict:
    """The same with a cascade of box heads, as published: agnostic of classes, ever stricter.

    Args:
        classes: Foreground classes.
        channels: Of the FPN.
        stages: Up to three.
        head: Changes of every stage's box head.
        changes: Nested dicts to merge.
    """
    model = faster_rcnn(classes, channels)
    single, rcnn = model['roi_head'], model['train_cfg']['rcnn']
    merge(single['bbox_head'], dict(reg_class_agnostic=True, **(head or {})))
    scales = (1.0, 0.5, 1 / 3)[:stages]
    heads, trainings = [], []
    for stage, scale in enumerate(scales):
        heads.append(copy.deepcopy(single['bbox_head']))
        heads[-1]['bbox_coder']['target_stds'] = [v * scale for v in (0.1, 0.1, 0.2, 0.2)]
        trainings.append(copy.deepcopy(rcnn))
        threshold = 0.5 + 0.1 * stage
        trainings[-1]['assigner'] = dict(
            type='MaxIoUAssigner',
            pos_iou_thr=threshold,
            neg_iou_thr=threshold,
            min_pos_iou=threshold,
        )
    model['type'] = 'CascadeRCNN'
    model['roi_head'] = dict(
        type='CascadeRoIHead',
        num_stages=stages,
        stage_loss_weights=list(scales),
        bbox_roi_extractor=single['bbox_roi_extractor'],
        bbox_head=heads,
    )
    model['train_cfg']['rcnn'] = trainings
    merge(model, changes)
    return copy.deepcopy(model)


def mask_branch(channels: int = 16, classes: int = 3, own_extractor: bool = True) -> dict:
    """What an RoI head gets besides, to find masks.

    Args:
        channels: Of the FPN.
        classes: Foreground classes.
        own_extractor: Whether it has an RoI extractor of its own, or uses that of the boxes.
    """
    branch = dict(
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=1,
            in_channels=channels,
            conv_out_channels=8,
            num_classes=classes,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        )
    )
    if own_extractor:
        branch['mask_roi_extractor'] = dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=channels,
            featmap_strides=[4, 8, 16, 32],
        )
    return branch


def mask_rcnn(classes: int = 3, channels: int = 16) -> dict:
    """The same Faster R-CNN with a mask branch."""
    return faster_rcnn(
        classes,
        channels,
        type='MaskRCNN',
        data_preprocessor=dict(pad_mask=True),
        roi_head=mask_branch(channels, classes),
        train_cfg=dict(rcnn=dict(mask_size=28)),
        test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
    )


def merge(config: dict, changes: dict) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            merge(config[key], value)
        else:
            config[key] = value


def save_teacher(
    path: Path, model: dict, classes: tuple[str, ...] | None = CLASSES, seed: int = 1
) -> Path:
    """Write a checkpoint of random weights that belongs to a model config."""
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(copy.deepcopy(model))
    # Fresh heads are all but constant; spread them so that teacher and student disagree.
    if hasattr(detector, 'level_embed'):  # mmdet leaves it to init_weights: until then, any memory
        nn.init.normal_(detector.level_embed)
    for module in detector.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.5)
    meta = dict(dataset_meta=dict(classes=classes)) if classes else {}
    torch.save(dict(state_dict=detector.state_dict(), meta=meta), path)
    return path


ROI_LOSSES = dict(
    loss_kd_cls=dict(
        type='KLDivergence',
        tau=2.0,
        student='roi_head.bbox_head.fc_cls',
        teacher='roi_head.bbox_head.fc_cls',
        align=dict(type='RoIClassAlignment'),
    ),
    loss_kd_bbox=dict(
        type='MSE',
        student='roi_head.bbox_head.fc_reg',
        teacher='roi_head.bbox_head.fc_reg',
        align=dict(type='RoIBoxAlignment'),
    ),
)
RPN_LOSSES = dict(
    loss_kd_rpn_cls=dict(
        type='KLDivergence',
        activation='sigmoid',
        student='rpn_head.rpn_cls',
        teacher='rpn_head.rpn_cls',
        align=dict(type='RPNClassAlignment'),
    ),
    loss_kd_rpn_bbox=dict(
        type='SmoothL1',
        student='rpn_head.rpn_reg',
        teacher='rpn_head.rpn_reg',
        align=dict(type='RPNBoxAlignment'),
    ),
)


def feature_loss(in_channels: int = 16, out_channels: int = 24) -> dict:
    """An entry that compares the necks through a connector."""
    return dict(
        type='MSE',
        student='neck',
        teacher='neck',
        connector=dict(type='ConvConnector', in_channels=in_channels, out_channels=out_channels),
    )


def batch(
    size: tuple[int, int] = (96, 128), images: int = 2, seed: int = 0, masks: bool = False
) -> dict:
    """Raw data of a step, as a data loader gives it: BGR images and ground truth of three objects.

    Args:
        size: Height and width of the first image.
        images: How many.
        seed: Of their pixels.
        masks: Whether objects have masks, which fill their boxes.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    inputs, samples = [], []
    for index in range(images):
        shape = (height, width - 16 * index)  # of unequal width, so that there is padding
        inputs.append(torch.randint(0, 256, (3, *shape), generator=generator, dtype=torch.uint8))
        top = torch.tensor(
            [[4.0, 6.0, 44.0, 50.0], [30.0, 20.0, 90.0, 88.0], [50.0, 2.0, 70.0, 30.0]]
        )
        sample = DetDataSample(
            metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), img_id=index)
        )
        sample.gt_instances = InstanceData(bboxes=top, labels=torch.tensor([0, 1, 2]))
        if masks:
            drawn = torch.zeros(len(top), *shape, dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(drawn, top.int().tolist(), strict=True):
                mask[y1:y2, x1:x2] = 1
            sample.gt_instances.masks = BitmapMasks(drawn.numpy(), *shape)
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        )
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def pair_of_detectors(folder: Path, losses: dict) -> nn.Module:
    """A distiller of two tiny Faster R-CNNs, the teacher's random weights in ``folder``."""
    checkpoint = save_teacher(folder / 'teacher.pth', faster_rcnn())
    teacher = dict(config=dict(model=faster_rcnn()), checkpoint=str(checkpoint))
    return MODELS.build(
        dict(
            type='Distiller', student=faster_rcnn(), teacher=teacher, losses=losses, classes=CLASSES
        )
    )
