"""Initialise a student with weights of its teacher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..alignments import ClassMap, layer_map
from ..errors import ConfigError, PathError, did_you_mean
from ..families.transformer import is_transformer, queries_from_image
from ..types import Detector

# Stacks of layers, with the part that they belong to. Heads of Deformable DETR and DINO have one branch per
# decoder layer.
STACKS = {
    'encoder.layers': 'encoder',
    'decoder.layers': 'decoder',
    'bbox_head.cls_branches': 'decoder',
    'bbox_head.reg_branches': 'decoder',
}
# Layers with one score per class: fc_cls, cls_branches.0, retina_cls, multi_level_conv_cls.0, rtm_cls.0 …
CLASSIFIER = re.compile(r'(^|\.)\w*cls\w*(\.\d+)*\.(weight|bias)$')
# DINO embeds the labels of its denoising queries: one row per class, none for no-object.
LABEL_EMBEDDING = re.compile(r'(^|\.)label_embedding\.weight$')
# Layers of an RoI head, or of one of its stages, with one box or mask per class unless class-agnostic.
ROI_LAYER = re.compile(r'^(roi_head\.(?:bbox|mask)_head(?:\.\d+)?)\.(fc_reg|conv_logits)\.')


@dataclass
class InheritanceReport:
    """The tensors that were copied and those that were not.

    Args:
        copied: Names of the student's tensors that were copied from the teacher.
        not_copied: Names of the tensors that were not copied, with the reason.
        num_weights: Number of copied weights.
    """

    copied: list[str] = field(default_factory=list)
    not_copied: dict[str, str] = field(default_factory=dict)
    num_weights: int = 0

    def __str__(self) -> str:
        text = f'{len(self.copied)} tensors ({self.num_weights / 1e6:.2f} M weights) copied'
        if not self.not_copied:
            return f'{text}, all that init_student.from_teacher names'
        reasons: dict[str, list[str]] = {}
        for name, why in self.not_copied.items():
            reasons.setdefault(why, []).append(name)
        listed = '; '.join(
            f'{", ".join(names[:3])}{f" and {len(names) - 3} more" if len(names) > 3 else ""} ({why})'
            for why, names in reasons.items()
        )
        return f'{text}, {len(self.not_copied)} not copied: {listed}'


def require_modules(owner: str, model: Detector, modules: Sequence[str]) -> None:
    """Check that a detector has modules or parameters at these paths.

    Raises:
        PathError: A path does not exist; the message lists similar paths.
    """
    names = {*dict(model.named_modules()), *dict(model.named_parameters())} - {''}
    for module in modules:
        if module not in names:
            raise PathError(
                f'init_student.from_teacher: the {owner} ({type(model).__name__}) has no module '
                f"'{module}'{did_you_mean(module, names)}"
            )


@torch.no_grad()
def inherit(
    student: Detector,
    teacher: Detector,
    modules: Sequence[str],
    class_map: ClassMap | None = None,
) -> InheritanceReport:
    """Copy the teacher's weights into the student's modules of the same names, if their shapes are equal.

    For a classifier, and other layers with rows per class, the rows of the shared classes and of no-object
    are copied. If the numbers of layers differ, each of the student's layers receives the weights of the
    layer that it is paired with for distillation (:func:`mmkd.alignments.layer_map`).

    Args:
        student: The student, changed in place.
        teacher: The teacher's detector.
        modules: Paths of modules or single parameters, e.g. ``encoder`` or ``level_embed``.
        class_map: The map between the classes; needed if the modules contain a classifier.

    Raises:
        PathError: The student or the teacher has no such module.
        ConfigError: No tensor could be copied.
    """
    require_modules('student', student, modules)
    require_modules('teacher', teacher, modules)
    ours, theirs = student.state_dict(), teacher.state_dict()
    report = InheritanceReport()
    for name, tensor in ours.items():
        if not _is_inside(name, modules):
            continue
        source = _counterpart(name, student, teacher)
        if source not in theirs:
            report.not_copied[name] = 'not in the teacher'
            continue
        value = theirs[source].to(tensor)
        count = tensor.numel()
        rows = _rows_per_class(name, student)
        if rows != _rows_per_class(source, teacher):
            why = 'class-agnostic in only one of the two'
        elif rows:
            priors = _priors_per_position(student), _priors_per_position(teacher)
            why = _copy_rows(tensor, value, class_map, priors, rows)
        elif value.shape == tensor.shape:
            tensor.copy_(value)
            why = ''
        else:
            why = f'shapes differ: student {tuple(tensor.shape)}, teacher {tuple(value.shape)}'
        if why:
            report.not_copied[name] = why
        else:
            report.copied.append(name)
            if rows and class_map is not None and class_map.excludes:
                missing = (len(class_map.student) - len(class_map)) * rows
                report.not_copied[f'{missing} rows of {name}'] = 'classes that the teacher lacks'
                count -= missing * _priors_per_position(student) * tensor[0].numel()
            report.num_weights += count
    if not report.copied:
        raise ConfigError(
            f'init_student.from_teacher: {list(modules)} copies nothing: {report}; name other modules'
        )
    return report


def _counterpart(name: str, student: Detector, teacher: Detector) -> str:
    """The teacher's name of a student's tensor. Names differ only inside stacks of unequal depth."""
    if not (is_transformer(student) and is_transformer(teacher)):
        return name
    for stack, coder in STACKS.items():
        match = re.match(rf'{re.escape(stack)}\.(\d+)\.(.*)', name)
        if not match:
            continue
        ours, theirs = (getattr(model, coder).num_layers for model in (student, teacher))
        layer = int(match.group(1))
        if layer < ours:
            other = layer_map(ours, theirs)[layer][1]
        else:  # the branch after the decoder's belongs to the encoder
            other = theirs if queries_from_image(teacher) else -1
        return f'{stack}.{other}.{match.group(2)}'
    return name


def depends_on_classes(student: Detector, modules: Sequence[str]) -> bool:
    """Return whether a module has rows per class, in which case :func:`inherit` needs a class map."""
    return any(
        _is_inside(name, modules) and _rows_per_class(name, student)
        for name in student.state_dict()
    )


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f'{module}.') for module in modules)


def _rows_per_class(name: str, model: Detector) -> int:
    """Number of rows of a tensor per class (and prior); 0 if its rows do not belong to classes."""
    layer = ROI_LAYER.match(name)
    if layer:
        head, boxes = model.get_submodule(layer[1]), layer[2] == 'fc_reg'
        if getattr(head, 'reg_class_agnostic' if boxes else 'class_agnostic', False):
            return 0
        return head.bbox_coder.encode_size if boxes else 1
    # An RPN separates objects from background, independently of the classes.
    classifier = CLASSIFIER.search(name) and not name.startswith('rpn_head.')
    return int(bool(classifier or LABEL_EMBEDDING.search(name)))


def _priors_per_position(model: Detector) -> int:
    """Number of priors (anchors or points) per position of a dense head; its classifier has rows for each."""
    generator = getattr(getattr(model, 'bbox_head', None), 'prior_generator', None)
    return generator.num_base_priors[0] if generator is not None else 1


def _copy_rows(
    tensor: Tensor, value: Tensor, class_map: ClassMap | None, priors: tuple[int, int], rows: int
) -> str:
    """Copy the rows of the shared classes, and of no-object if both models have it.

    Args:
        tensor: The student's tensor, shape (priors * outputs * rows, …).
        value: The teacher's tensor, of the same form.
        class_map: The map between the classes.
        priors: Number of priors per position, of student and teacher.
        rows: Number of rows per output.

    Returns:
        The reason if the rows cannot be copied, else an empty text.
    """
    if class_map is None:
        raise ConfigError(
            'init_student: needs the class names of student and teacher for a classifier, got none; set '
            'model.classes and model.teacher.classes'
        )
    sides = zip((tensor, value), (class_map.student, class_map.teacher), priors, strict=True)
    # Outputs in addition to the classes: both models or neither must have no-object.
    extra = {len(side) / (own * rows) - len(names) for side, names, own in sides}
    same = tensor.shape[1:] == value.shape[1:] and priors[0] == priors[1]
    if not same or extra not in ({0}, {1}):
        return (
            f'shapes {tuple(tensor.shape)} and, in the teacher, {tuple(value.shape)}: widths or priors '
            f'differ, or one head uses a softmax and the other sigmoids'
        )
    ours, theirs = (side.unflatten(0, (priors[0], -1, rows)) for side in (tensor, value))
    ours[:, class_map.student_index] = theirs[:, class_map.teacher_index]
    if extra == {1}:
        ours[:, -1] = theirs[:, -1]
    return ''
