"""Detectors to export: random, and with scores that differ from each other."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from tiny_dense import single_stage
from tiny_models import faster_rcnn
from tiny_transformers import transformer
from torch import Tensor, nn

from mmkd.building import build_random

# A pyramid of three maps is traced in half the time that one of five takes.
THREE = dict(neck=dict(num_outs=3), bbox_head=dict(anchor_generator=dict(strides=[8, 16, 32])))
CONFIGS = {
    'FasterRCNN': lambda: faster_rcnn(),
    'RetinaNet': lambda: single_stage('RetinaNet', **THREE),
    'GFL': lambda: single_stage('GFL', width=64, **THREE),
    'FCOS': lambda: single_stage('FCOS', width=64),
    'ATSS': lambda: single_stage('ATSS', width=64, **THREE),
    'RTMDet': lambda: single_stage('RTMDet', test_cfg=dict(nms_pre=300)),
    'YOLOX': lambda: single_stage('YOLOX'),
    'DETR': lambda: transformer('DETR'),
    'DeformableDETR': lambda: transformer('DeformableDETR'),
    'DINO': lambda: transformer('DINO', layers=(1, 1)),
}
# Their outputs would grow from layer to layer with other weights than their own.
OWN_SCALE = ('RTMDet', 'YOLOX')


def spread_detector(kind: str, seed: int = 0) -> nn.Module:
    """A random detector whose scores lie far apart, so that rounding does not exchange two boxes."""
    torch.manual_seed(seed)
    detector = build_random(CONFIGS[kind](), 'model').eval()
    for name, module in detector.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
        elif isinstance(module, nn.Conv2d) and kind not in OWN_SCALE:
            head = name.startswith(('bbox_head', 'rpn_head'))
            nn.init.normal_(module.weight, std=0.05) if head else nn.init.kaiming_normal_(
                module.weight
            )
    if kind not in ('FasterRCNN', 'DETR', 'DeformableDETR', 'DINO'):
        _spread_head(detector)
    return detector.requires_grad_(False)


@torch.no_grad()
def _spread_head(detector: nn.Module) -> None:
    """Give the last layers outputs of mean 0 and deviation 1, as seen on a random image."""
    head = detector.bbox_head
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}

    def note(module: nn.Conv2d, _: Any, output: Tensor) -> None:
        made[id(output)] = (module, output)

    convs = [each for each in head.modules() if isinstance(each, nn.Conv2d)]
    hooks = [conv.register_forward_hook(note) for conv in convs]
    image = random_images(1, 256, 256)[0].permute(2, 0, 1)
    data = detector.data_preprocessor(dict(inputs=[image], data_samples=[DetDataSample()]))
    head(detector.extract_feat(data['inputs']))
    for hook in hooks:
        hook.remove()
    last = dict(made.values())
    for module, output in last.items():
        if output.shape[1] <= 64 and module.out_channels != module.in_channels:
            module.weight /= output.std()
            nn.init.zeros_(module.bias)


def predict(detector: nn.Module, image: Tensor) -> InstanceData:
    """What mmdet finds in an image ``(height, width, 3)``, in px of that image."""
    shape = tuple(image.shape[:2])
    sample = DetDataSample(metainfo=dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
    data = dict(inputs=[image.permute(2, 0, 1)], data_samples=[sample])
    data = detector.data_preprocessor(data)
    with torch.no_grad():
        found = detector.predict(data['inputs'], data['data_samples'], rescale=False)
    return found[0].pred_instances


def random_images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """``(count, height, width, 3)``, BGR."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator, dtype=torch.uint8)
