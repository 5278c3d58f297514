"""What the modules of two detectors compute, and which of their outputs can be compared."""

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
# Of a test pipeline; what else resizes images is not known by name.
RESIZES = ('Resize', 'FixScaleResize', 'FixShapeResize')
DEFAULT_SIZE = (800, 1333)


@dataclass(frozen=True)
class ModuleCall:
    """What one module of a detector computed.

    Attributes:
        path: Its dotted path, by which a loss names it.
        kind: Its class.
        shapes: Shapes of the tensors in its output, in order.
        strides: Pixels per position, of those that are maps of the whole images; 0 for others.
        calls: How many times it was called in the pass.
        parameters: Number of parameters in it.
        share: Of the parameters of the detector, from 0 to 1.
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
        """The shapes of its outputs that are maps of the whole images."""
        return [shape for shape, stride in zip(self.shapes, self.strides, strict=True) if stride]


@dataclass(frozen=True)
class Match:
    """Whether the maps of two modules can be compared.

    Attributes:
        student: Path in the student.
        teacher: Path in the teacher.
        levels: Number of maps of the same size.
        connector: Config of the connector that is needed, None for none.
        problem: Why they cannot be compared, None if they can.
    """

    student: str
    teacher: str
    levels: int = 0
    connector: dict[str, Any] | None = None
    problem: str | None = None


@dataclass
class Inspection:
    """A detector and what its modules computed for an image.

    Attributes:
        model: The detector.
        size: Height and width of the images with their padding, px.
        modules: The modules that were called, each before those in it.
        idle: Paths of modules with parameters of which none was called.
    """

    model: Detector
    size: Size
    modules: list[ModuleCall] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)

    def __getitem__(self, path: str) -> ModuleCall | None:
        return next((each for each in self.modules if each.path == path), None)


def image_size(config: Config) -> Size:
    """Height and width of the images that a config tests on, as its pipeline resizes them; px."""
    for loader in ('test_dataloader', 'val_dataloader'):
        dataset = (config.get(loader) or {}).get('dataset') or {}
        while 'dataset' in dataset:
            dataset = dataset['dataset']
        for step in dataset.get('pipeline') or ():
            scale = step.get('scale')
            if step.get('type') in RESIZES and isinstance(scale, (tuple, list)):
                longer, shorter = max(scale), min(scale)
                return (shorter, longer)
    return DEFAULT_SIZE


def random_batch(model: Detector, size: Size, images: int = 1, classes: int = 1) -> dict[str, Any]:
    """Random images with labels, as the detector's preprocessor makes them.

    Args:
        model: The detector.
        size: Height and width, px.
        images: How many.
        classes: Number of classes that labels are drawn from.
    """
    shapes, boxes = [(3, *size)] * images, [4] * images
    with_mask = getattr(model, 'with_mask', False)
    raw = demo_mm_inputs(
        images, shapes, num_items=boxes, num_classes=max(2, classes), with_mask=with_mask
    )
    for sample in raw['data_samples']:
        sample.gt_instances.labels %= max(1, classes)
    return model.data_preprocessor(raw, False)  # what augments whole batches needs a training run


@torch.no_grad()
def inspect_detector(model: Detector, size: Size) -> Inspection:
    """Run a detector on a random image and look at what each of its modules computes.

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
            # Weights that are used without a call: of its projection, and embeddings of queries.
            if not isinstance(parent, nn.MultiheadAttention) and not isinstance(
                module, nn.Embedding
            ):
                found.idle.append(path)
    return found


def _run(model: Detector, inputs: Tensor, samples: Sequence[DetDataSample]) -> None:
    """The forward pass without decoding where a detector has one, else its prediction or its features."""
    problems = []
    for run in (
        lambda: model(inputs, samples, mode='tensor'),
        lambda: model(inputs, samples, mode='predict'),
        lambda: model.extract_feat(inputs),
    ):
        try:
            run()
            return
        except Exception as error:  # of the detector's own code; the next way may do
            problems.append(error)
    raise problems[0]


def _stride(tensor: Tensor, size: Size, path: str) -> float:
    """Pixels per position of a map of the whole images, 0 for all other tensors."""
    if tensor.dim() != 4 or tensor.shape[0] != 1 or path.startswith('roi_head'):
        return 0.0
    strides = {position_stride(*each) for each in zip(size, tuple(tensor.shape[2:]), strict=True)}
    stride = strides.pop()
    return 0.0 if strides or stride != int(stride) else float(stride)


def matches(student: Inspection, teacher: Inspection) -> list[Match]:
    """The maps of both detectors, compared by the paths of their modules.

    Backbone and neck, across each other where one has no neck; and what stands directly in them and in
    heads, each with the module of the same path or, in the same parent, of the same map sizes.
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
    """The module of the same path if its maps have the same sizes, else the last beside it that has them."""
    sizes = [shape[2:] for shape in module.maps]
    parent = module.path.rpartition('.')[0]
    alike = [
        each.path
        for each in other.modules
        if each.path.rpartition('.')[0] == parent and [it[2:] for it in each.maps] == sizes
    ]
    return module.path if module.path in alike or not alike else alike[-1]


def match(student: ModuleCall, teacher: ModuleCall) -> Match:
    """Whether the maps of two modules can be compared, and with which connector."""
    ours, theirs = (
        [torch.empty(shape, device='meta') for shape in each.maps] for each in (student, teacher)
    )
    try:
        pairs = common_levels(ours, theirs, same_channels=False)
    except UserError as error:
        return Match(student.path, teacher.path, problem=str(error))
    connector = None
    if any(one.shape[1] != other.shape[1] for one, other in pairs):
        # All of the student's maps pass through it, those that nothing is compared with, too.
        widths = [
            next((other.shape[1] for one, other in pairs if one is level), pairs[-1][1].shape[1])
            for level in ours
        ]
        given = [level.shape[1] for level in ours]
        connector = dict(type='ConvConnector', in_channels=_one(given), out_channels=_one(widths))
        if isinstance(connector['in_channels'], int) != isinstance(connector['out_channels'], int):
            connector.update(in_channels=given, out_channels=widths)
    return Match(student.path, teacher.path, len(pairs), connector)


def _one(numbers: list[int]) -> int | list[int]:
    """The number that all are, or all of them."""
    return numbers[0] if len(set(numbers)) == 1 else numbers


def shown(modules: Sequence[ModuleCall], depth: int) -> Iterator[ModuleCall]:
    """The modules whose path has at most ``depth`` names."""
    return (each for each in modules if each.path.count('.') < depth)
