"""The map between the classes of student and teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import ConfigError, did_you_mean

# Groups of names for the same class in VOC, COCO and other files.
SYNONYMS: tuple[frozenset[str], ...] = tuple(
    frozenset(names)
    for names in (
        ('aeroplane', 'airplane', 'plane'),
        ('motorbike', 'motorcycle'),
        ('tvmonitor', 'tv', 'television'),
        ('sofa', 'couch'),
        ('diningtable', 'table'),
        ('pottedplant', 'plant'),
        ('bike', 'bicycle'),
        ('person', 'people', 'pedestrian'),
        ('cellphone', 'mobilephone'),
        ('hairdrier', 'hairdryer'),
        ('doughnut', 'donut'),
    )
)
UNMAPPED = ('background', 'drop')
# A message lists at most so many of the teacher's classes.
SHOWN = 12


def _normalized_name(name: str) -> str:
    return ''.join(letter for letter in name.lower() if letter.isalnum())


def _counterpart(
    name: str, teacher: Sequence[str], synonyms: Mapping[str, str] | None = None
) -> int | None:
    """The index of the teacher's class that corresponds to a class of the student, or None."""
    plain = _normalized_name(name)
    given = {_normalized_name(a): _normalized_name(b) for a, b in (synonyms or {}).items()}
    index = {_normalized_name(theirs): i for i, theirs in reversed(list(enumerate(teacher)))}
    wanted = given.get(plain, plain)
    if wanted in index:
        return index[wanted]
    same = set().union(*(group for group in SYNONYMS if wanted in group))
    return next((index[other] for other in index if other in same), None)


def shared_labels(
    student: Sequence[str], teacher: Sequence[str], synonyms: Mapping[str, str] | None = None
) -> dict[int, int]:
    """Map the teacher's labels to the student's labels, for the classes that both models have.

    Args:
        student: Class names of the student, in the order of its outputs.
        teacher: Class names of the teacher, in the order of its outputs.
        synonyms: See :class:`ClassMap`.
    """
    found = {_counterpart(name, teacher, synonyms): label for label, name in enumerate(student)}
    return {index: label for index, label in found.items() if index is not None}


class ClassMap:
    """Pairs the classes of student and teacher by name.

    Names are compared without case, spaces and punctuation, then through a table of synonyms: VOC's
    ``tvmonitor`` is COCO's ``tv``.

    A softmax head has one more output than classes, the background, last. ``unmapped`` selects what
    happens to the teacher's probabilities of classes that the student lacks: ``background`` adds them to
    the background, because such objects are background for the student; ``drop`` removes them and
    renormalises the rest. The outputs of a sigmoid head are independent: classes without a counterpart
    are always removed.

    Args:
        student: Class names of the student, in the order of its outputs.
        teacher: Class names of the teacher, in the order of its outputs.
        synonyms: More synonyms, from student name to teacher name.
        exclude: Student classes that the teacher lacks and that are not distilled.
        unmapped: ``background`` or ``drop``, see above.

    Raises:
        ConfigError: A student class has no counterpart and is not excluded, or two have the same
            counterpart.

    Examples:
        >>> import torch
        >>> from mmkd.alignments import ClassMap
        >>> class_map = ClassMap(student=('person', 'tvmonitor'), teacher=('person', 'car', 'tv'))
        >>> class_map.teacher_index  # of the shared classes, in the student's order
        [0, 2]
        >>> scores = torch.tensor([[4.0, 1.0, 2.0, 0.0]])  # person, car, tv and background
        >>> class_map.teacher_logits(scores, softmax=True).shape  # person, tv and background
        torch.Size([1, 3])
    """

    def __init__(
        self,
        student: Sequence[str],
        teacher: Sequence[str],
        synonyms: Mapping[str, str] | None = None,
        exclude: Sequence[str] = (),
        unmapped: str = 'background',
    ) -> None:
        if unmapped not in UNMAPPED:
            raise ConfigError(f'class_map.unmapped: must be one of {UNMAPPED}, got {unmapped!r}')
        unknown = [name for name in exclude if name not in student]
        if unknown:
            raise ConfigError(
                f'class_map.exclude: must name classes of the student ({", ".join(student)}), got '
                f'{", ".join(unknown)}'
            )
        self.student, self.teacher, self.unmapped = tuple(student), tuple(teacher), unmapped
        named = {
            name: _counterpart(name, teacher, synonyms) for name in student if name not in exclude
        }
        unmatched = [name for name, index in named.items() if index is None]
        found = {name: index for name, index in named.items() if index is not None}
        if unmatched:
            more = f', … ({len(teacher)} in all)' if len(teacher) > SHOWN else ''
            wanted = (synonyms or {}).get(unmatched[0], unmatched[0])
            raise ConfigError(
                f'class_map: the teacher has no class for {", ".join(unmatched)}'
                f'{did_you_mean(wanted, teacher)} (it has {", ".join(teacher[:SHOWN])}{more}); add their '
                f'counterparts to class_map.synonyms, or do not distil them with '
                f'class_map=dict(exclude={unmatched})'
            )
        if not found:
            raise ConfigError(
                "class_map.exclude: must leave a class to compare, got all of the student's "
                f'({", ".join(student)}); switch off the losses on classes and boxes (losses.NAME=None), or '
                f'train the teacher on these classes'
            )
        taken: dict[int, str] = {}
        for name, index in found.items():
            if index in taken:
                raise ConfigError(
                    f"class_map: the student's classes {taken[index]} and {name} both match the teacher's "
                    f'class {teacher[index]}; add one of them to class_map.exclude'
                )
            taken[index] = name
        self.student_index = [i for i, name in enumerate(student) if name in found]
        self.teacher_index = [found[student[i]] for i in self.student_index]
        self.unmapped_teacher_index = [i for i in range(len(teacher)) if i not in taken]
        self.is_identity = self.student_index == self.teacher_index == list(range(len(teacher)))
        self._positions = [-1] * len(student) + [len(found)]
        for position, index in enumerate(self.student_index):
            self._positions[index] = position
        self._on_device: dict[tuple, Tensor] = {}

    def __len__(self) -> int:
        """Number of shared classes."""
        return len(self.student_index)

    @property
    def excludes(self) -> bool:
        """Whether some classes of the student are excluded."""
        return len(self) < len(self.student)

    def student_logits(self, scores: Tensor, softmax: bool, axis: int = -1) -> Tensor:
        """Return the student's scores of the shared classes, before the activation.

        Args:
            scores: Scores of all student classes along ``axis``, and of the background with a softmax.
            softmax: Whether the head uses a softmax with background; else sigmoids.
            axis: The class axis.

        Returns:
            ``len(self)`` scores along ``axis``, followed by the background with a softmax.
        """
        self._check_size(scores, self.student, 'student', softmax, axis)
        if not self.excludes:
            return scores
        keep = self.student_index + [len(self.student)] * softmax
        return scores.index_select(axis, self._tensor(keep, scores.device))

    def teacher_logits(self, scores: Tensor, softmax: bool, axis: int = -1) -> Tensor:
        """Return the teacher's scores of the shared classes; arguments as for :meth:`student_logits`."""
        self._check_size(scores, self.teacher, 'teacher', softmax, axis)
        if self.is_identity:
            return scores
        shared = scores.index_select(axis, self._tensor(self.teacher_index, scores.device))
        if not softmax:
            return shared
        others = [len(self.teacher)]
        if self.unmapped == 'background':
            others = self.unmapped_teacher_index + others
        rest = scores.index_select(axis, self._tensor(others, scores.device))
        # The logarithm of summed exponentials is the score of the summed probability.
        return torch.cat([shared, rest.logsumexp(axis, keepdim=True)], axis)

    def shared_index(self, labels: Tensor) -> Tensor:
        """Return the indices of student labels among the shared classes.

        Args:
            labels: Student labels of any shape; ``len(student classes)`` is the background.

        Returns:
            The same shape; ``len(self)`` for the background, -1 for an excluded class.
        """
        return self._tensor(self._positions, labels.device)[labels]

    def student_label(self, index: Tensor) -> Tensor:
        """Return the student's labels of shared classes; indices are in [0, ``len(self)``)."""
        return self._tensor(self.student_index, index.device)[index]

    def teacher_label(self, index: Tensor) -> Tensor:
        """Return the teacher's labels of shared classes; indices are in [0, ``len(self)``)."""
        return self._tensor(self.teacher_index, index.device)[index]

    def _check_size(
        self, scores: Tensor, names: Sequence[str], owner: str, softmax: bool, axis: int
    ) -> None:
        if scores.shape[axis] != len(names) + softmax:
            raise ConfigError(
                f'{owner}: the recorded output must have scores of {len(names)} classes'
                f'{" and the background" if softmax else ""}, got {scores.shape[axis]} (shape '
                f'{tuple(scores.shape)})'
            )

    def _tensor(self, values: Sequence[int], device: torch.device) -> Tensor:
        # Stored on the device: a copy from the host in each step would stall a GPU.
        key = (tuple(values), device)
        if key not in self._on_device:
            self._on_device[key] = torch.tensor(values, dtype=torch.long, device=device)
        return self._on_device[key]
