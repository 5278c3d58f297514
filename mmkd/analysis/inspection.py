"""Outputs of the modules of two detectors, and which of these outputs can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from torch import Tensor, nn

from ..alignments.features import common_levels
from ..alignments.padding import position_stride
from ..errors import UserError
from ..nested import tensors_of
from ..types import Detector
from .complexity import count_parameters

Size = tuple[int, int]
# Transforms with an option `scale` that resize images.
RESIZE_TRANSFORMS = ('Resize', 'FixScaleResize', 'FixShapeResize')
DEFAULT_SIZE = (800, 1333)


@dataclass(frozen=True)
class ModuleCall:
    """A module of a detector and its outputs in one forward pass.

    Attributes:
        path: Dotted path of the module, as used in losses.
        kind: Class of the module.
        shapes: Shapes of the tensors in its output, in order.
        strides: Stride, in px, of each tensor that is a feature map of the whole image; 0 for others.
        calls: Number of calls in the pass.
        parameters: Number of parameters.
        share: Fraction of the detector's parameters, 0 to 1.
    """

    path: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[float, ...]
    calls: int
    parameters: int
    share: float

    @property
    def maps(self) -> list[tuple[int, ...]]:
        """Shapes of the outputs that are feature maps of the whole image."""
        return [shape for shape, stride in zip(self.shapes, self.strides, strict=True) if stride]


@dataclass(frozen=True)
class Match:
    """Whether the feature maps of two modules can be compared.

    Attributes:
        student: Path in the student.
        teacher: Path in the teacher.
        levels: Number of levels with the same size.
        connector: Config of the required connector, None if none is needed.
        problem: The reason why they cannot be compared, None if they can.
    """

    student: str
    teacher: str
    levels: int = 0
    connector: dict[str, Any] | None = None
    problem: str | None = None


@dataclass
class Inspection:
    """A detector and the outputs of its modules for one image.

    Attributes:
        model: The detector.
        size: Height and width of the image with padding, px.
        modules: The modules that were called; parents before their children.
        idle: Paths of modules with parameters that were not called.
    """

    model: Detector
    size: Size
    modules: list[ModuleCall] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)

    def __getitem__(self, path: str) -> ModuleCall | None:
        return next((each for each in self.modules if each.path == path), None)


def image_size(config: Config) -> Size:
    """Height and width of test images after the resizing of the test pipeline, px."""
    for loader in ('test_dataloader', 'val_dataloader'):
        dataset = (config.get(loader) or {}).get('dataset') or {}
        while 'dataset' in dataset:
            dataset = dataset['dataset']
        for step in dataset.get('pipeline') or ():
            scale = step.get('scale')
            if step.get('type') in RESIZE_TRANSFORMS and isinstance(scale, (tuple, list)):
                longer, shorter = max(scale), min(scale)
                return (shorter, longer)
    return DEFAULT_SIZE


def random_batch(model: Detector, size: Size, images: int = 1, classes: int = 1) -> dict[str, Any]:
    """Random images with labels, after the detector's preprocessor.

    Args:
        model: The detector.
        size: Height and width, px.
        images: Number of images.
        classes: Number of classes; labels are random.
    """
    shapes, boxes = [(3, *size)] * images, [4] * images
    with_mask = getattr(model, 'with_mask', False)
    raw = demo_mm_inputs(
        images, shapes, num_items=boxes, num_classes=max(2, classes), with_mask=with_mask
    )
    for sample in raw['data_samples']:
        sample.gt_instances.labels %= max(1, classes)
    return model.data_preprocessor(raw, False)  # batch augmentation would need a training run


@torch.no_grad()
def inspect_detector(model: Detector, size: Size) -> Inspection:
    """Run a detector on a random image and record the outputs of all modules.

    Args:
        model: The detector; its weights may be random.
        size: Height and width of the image, px.
    """
    calls: dict[nn.Module, list[Any]] = {}
    handles = [
        module.register_forward_hook(lambda it, _, output: calls.setdefault(it, []).append(output))
        for module in model.modules()
        if module not in (model, model.data_preprocessor)
    ]
    training = model.training
    model.eval()
    try:
        data = random_batch(model, size)
        _run(model, data['inputs'], data['data_samples'])
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    padded = (data['inputs'].shape[-2], data['inputs'].shape[-1])
    found = Inspection(model, padded)
    total = max(1, count_parameters(model))
    for path, module in model.named_modules():
        count = count_parameters(module)
        if module in calls:
            tensors = tensors_of(calls[module])
            found.modules.append(
                ModuleCall(
                    path=path,
                    kind=type(module).__name__,
                    shapes=tuple(tuple(each.shape) for each in tensors),
                    strides=tuple(_stride(each, padded, path) for each in tensors),
                    calls=len(calls[module]),
                    parameters=count,
                    share=count / total,
                )
            )
        elif count and path and not any(inner in calls for inner in module.modules()):
            parent = model.get_submodule(path.rpartition('.')[0])
            # These weights are used without a call: the projections of attention, and query embeddings.
            if not isinstance(parent, nn.MultiheadAttention) and not isinstance(
                module, nn.Embedding
            ):
                found.idle.append(path)
    return found


def _run(model: Detector, inputs: Tensor, samples: Sequence[DetDataSample]) -> None:
    """Run a detector: its forward pass without decoding, or if that fails, its prediction or its features."""
    problems = []
    for run in (
        lambda: model(inputs, samples, mode='tensor'),
        lambda: model(inputs, samples, mode='predict'),
        lambda: model.extract_feat(inputs),
    ):
        try:
            run()
            return
        except Exception as error:  # the detector may not support this mode; try the next one
            problems.append(error)
    raise problems[0]


def _stride(tensor: Tensor, size: Size, path: str) -> float:
    """Stride, in px, of a feature map of the whole image; 0 for all other tensors."""
    if tensor.dim() != 4 or tensor.shape[0] != 1 or path.startswith('roi_head'):
        return 0.0
    strides = {position_stride(*each) for each in zip(size, tuple(tensor.shape[2:]), strict=True)}
    stride = strides.pop()
    return 0.0 if strides or stride != int(stride) else float(stride)


def matches(student: Inspection, teacher: Inspection) -> list[Match]:
    """Compare the feature maps of corresponding modules of both detectors.

    Compares backbone and neck; if a detector has no neck, also backbone with neck. Compares their direct
    children and those of heads with the module of the same path, or with a sibling of that module with the
    same map sizes.
    """
    pairs = [(path, path) for path in ('neck', 'backbone')]
    if student['neck'] is None or teacher['neck'] is None:
        pairs += [('neck', 'backbone'), ('backbone', 'neck')]
    for each in student.modules:
        if each.path.count('.') == 1 and each.parameters and 'Norm' not in each.kind:
            pairs.append((each.path, _counterpart(each, teacher)))
    found = []
    for ours, theirs in pairs:
        one, other = student[ours], teacher[theirs]
        if one is not None and other is not None and one.maps and other.maps:
            found.append(match(one, other))
    return found


def _counterpart(module: ModuleCall, other: Inspection) -> str:
    """The path of the same module if its map sizes match, else of the last sibling with matching sizes."""
    sizes = [shape[2:] for shape in module.maps]
    parent = module.path.rpartition('.')[0]
    alike = [
        each.path
        for each in other.modules
        if each.path.rpartition('.')[0] == parent and [it[2:] for it in each.maps] == sizes
    ]
    return module.path if module.path in alike or not alike else alike[-1]


def match(student: ModuleCall, teacher: ModuleCall) -> Match:
    """Check whether the feature maps of two modules can be compared, and with which connector."""
    ours, theirs = (
        [torch.empty(shape, device='meta') for shape in each.maps] for each in (student, teacher)
    )
    try:
        pairs = common_levels(ours, theirs, same_channels=False)
    except UserError as error:
        return Match(student.path, teacher.path, problem=str(error))
    connector = None
    if any(one.shape[1] != other.shape[1] for one, other in pairs):
        # All maps of the student pass through the connector, also those without a counterpart.
        widths = [
            next((other.shape[1] for one, other in pairs if one is level), pairs[-1][1].shape[1])
            for level in ours
        ]
        given = [level.shape[1] for level in ours]
        connector = dict(
            type='ConvConnector', in_channels=_one_or_all(given), out_channels=_one_or_all(widths)
        )
        if isinstance(connector['in_channels'], int) != isinstance(connector['out_channels'], int):
            connector.update(in_channels=given, out_channels=widths)
    return Match(student.path, teacher.path, len(pairs), connector)


def _one_or_all(numbers: list[int]) -> int | list[int]:
    """The number if all are equal, else the list."""
    return numbers[0] if len(set(numbers)) == 1 else numbers


def up_to_depth(modules: Sequence[ModuleCall], depth: int) -> Iterator[ModuleCall]:
    """The modules with at most ``depth`` names in their path."""
    return (each for each in modules if each.path.count('.') < depth)
