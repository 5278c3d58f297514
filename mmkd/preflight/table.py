"""The checks before a run, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from ..errors import ConfigError, UserError
from . import boxes, classes, files, images, models, objects, pipelines, registered, teachers
from .advice import Advice
from .planned_run import PlannedRun


@dataclass(frozen=True)
class Check:
    """One check of a planned run.

    Attributes:
        name: The subject of the check, in a few words.
        find: Returns the faults of a run. The first line of its docstring is the requirement.
        needs: Names of the checks that must pass before this one can run.
        before_run: Whether tools run the check before they start. The run itself repeats the other
            checks before its first iteration, so running them earlier would only cost time.

    Examples:
        >>> from mmkd.preflight import CHECKS
        >>> check = next(check for check in CHECKS if check.name == 'boxes')
        >>> check.summary
        'Boxes are in pixels and have an area on their image.'
        >>> check.needs
        ('class names',)
    """

    name: str
    find: Callable[[PlannedRun], Iterable[UserError | Advice]]
    needs: tuple[str, ...] = ()
    before_run: bool = True

    @property
    def summary(self) -> str:
        """The requirement, in one sentence."""
        return (self.find.__doc__ or '').splitlines()[0]


def check_readable(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The annotations of every data set can be read."""
    yield from run.unreadable


def check_detector(run: PlannedRun) -> Iterator[UserError | Advice]:
    """The detector can be built."""
    if run.detector_config:
        run.detector  # noqa: B018  # raises
    yield from ()


CHECKS = (
    Check('data files', files.check_data_files),
    Check('weight files', files.check_weight_files),
    Check('teacher configs', teachers.check_teacher_configs),
    Check('annotations', check_readable),
    Check('class names', classes.check_names),
    Check('labels', classes.check_labels, needs=('class names',)),
    Check('classes agree', classes.check_classes_agree, needs=('class names',)),
    Check('boxes', boxes.check_boxes, needs=('class names',)),
    Check('references', objects.check_references),
    Check('objects', objects.check_objects, needs=('labels', 'boxes', 'references')),
    Check('iterations', objects.check_iterations),
    Check('image files', images.check_image_files),
    Check('image content', images.check_image_content),
    Check('evaluation', models.check_evaluation),
    Check('detector', check_detector),
    Check('number of classes', models.check_num_classes, needs=('class names', 'detector')),
    Check(
        'pipelines',
        pipelines.check_pipelines,
        needs=('annotations', 'objects', 'image files', 'image content', 'detector'),
    ),
    Check('data loaders', registered.check_loaders),
    Check('registered types', registered.check_types),
    Check('schedules', teachers.check_schedules),
    Check('pretrained weights', models.check_pretrained, needs=('detector',)),
    Check('load_from', models.check_load_from, needs=('detector',)),
    Check(
        'distillation',
        teachers.check_distillation,
        needs=('detector', 'weight files', 'teacher configs', 'class names', 'number of classes'),
        before_run=False,
    ),
)


@dataclass
class Verdict:
    """The result of a check.

    Attributes:
        check: The check that ran.
        errors: Faults that stop a run.
        advice: Faults that a run can continue with.
        skipped: Name of the failed check that this one needs; None if the check ran.

    Examples:
        >>> from mmkd.errors import ConfigError
        >>> from mmkd.preflight import CHECKS, Verdict
        >>> Verdict(CHECKS[0]).status
        'passed'
        >>> Verdict(CHECKS[0], errors=[ConfigError('data_root: no such folder')]).status
        'failed'
    """

    check: Check
    errors: list[UserError] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    skipped: str | None = None

    @property
    def status(self) -> str:
        """``failed``, ``skipped``, ``advice`` or ``passed``."""
        if self.errors:
            return 'failed'
        return 'skipped' if self.skipped else 'advice' if self.advice else 'passed'


def examine(run: PlannedRun, checks: Iterable[Check] = CHECKS) -> Iterator[Verdict]:
    """Run checks in the given order; a check is skipped if one that it needs failed.

    Yields:
        One verdict per check.
    """
    failed = set()
    for check in checks:
        verdict = Verdict(check)
        missing = [name for name in check.needs if name in failed]
        if missing:
            verdict.skipped = missing[0]
        else:
            try:
                for found in check.find(run):
                    if isinstance(found, Advice):
                        verdict.advice.append(found)
                    else:
                        verdict.errors.append(found)
            except UserError as error:
                verdict.errors.append(error)
            except ModuleNotFoundError as error:  # registries import their modules at first use
                scope = run.cfg.get('default_scope') or 'mmdet'
                verdict.errors.append(
                    ConfigError(
                        f'default_scope: {scope!r} or a type in it needs the package {error.name}, which is '
                        f'not installed; install it'
                    )
                )
        if verdict.errors or missing:
            failed.add(check.name)
        yield verdict


def require(
    run: PlannedRun,
    warn: Callable[[str], None] = lambda message: None,
    only: Iterable[str] | None = None,
) -> None:
    """Run the checks with ``before_run`` and stop at the first that finds an error.

    Args:
        run: The run that will start.
        warn: Called with each piece of advice, one line.
        only: Names of the checks to run; all by default.

    Raises:
        UserError: The first error of a check; the message counts the other errors of that check.
    """
    chosen = [
        check for check in CHECKS if check.before_run and (only is None or check.name in only)
    ]
    for verdict in examine(run, chosen):
        for each in verdict.advice:
            warn(str(each))
        if verdict.errors:
            first, *others = verdict.errors
            if others:
                more = (
                    f'; {len(others)} more: `python -m mmkd check {run.path or "CONFIG"}` lists all'
                )
                first.args = (f'{first}{more}',)
            raise first
