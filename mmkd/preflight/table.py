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
    """One check.

    Attributes:
        name: What is checked, in a few words.
        find: Returns what is wrong.
        needs: Names of checks without whose success this one cannot run.
        before_run: Whether tools run it before they start; the others cost time that the run spends
            anyway, and their faults stop it before its first iteration.
    """

    name: str
    find: Callable[[PlannedRun], Iterable[UserError | Advice]]
    needs: tuple[str, ...] = ()
    before_run: bool = True

    @property
    def summary(self) -> str:
        """What it requires, in a sentence."""
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
    """What a check found: errors, advice, or the name of a check without which it could not run."""

    check: Check
    errors: list[UserError] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    skipped: str | None = None

    @property
    def word(self) -> str:
        """``failed``, ``skipped``, ``advice`` or ``passed``."""
        if self.errors:
            return 'failed'
        return 'skipped' if self.skipped else 'advice' if self.advice else 'passed'


def examine(run: PlannedRun, checks: Iterable[Check] = CHECKS) -> Iterator[Verdict]:
    """Run checks in their order; one without what it needs is skipped."""
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
            except (
                ModuleNotFoundError
            ) as error:  # of a registry, which imports its modules when first asked
                scope = run.cfg.get('default_scope') or 'mmdet'
                what = f'default_scope={scope!r} or a type in it needs the package {error.name}, which is not'
                verdict.errors.append(ConfigError(f'{what} installed; install it'))
        if verdict.errors or missing:
            failed.add(check.name)
        yield verdict


def require(
    run: PlannedRun,
    warn: Callable[[str], None] = lambda message: None,
    only: Iterable[str] | None = None,
) -> None:
    """Stop at the first check that finds an error, of those that belong before a run.

    Args:
        run: What is about to run.
        warn: Given each advice, one line.
        only: Names of the checks to run; default all.

    Raises:
        UserError: Its first error; the message counts its others.
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
