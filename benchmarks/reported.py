"""Print the reported figures of the paper beside figures measured in your work directories.

The paper: Negi and Shah, Knowledge Distillation for Object Detection. Reported and measured figures are in
separate columns. A training run is matched to a reported figure by the name of its config, or with --as.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / 'tools')]

from mmengine.config import Config  # noqa: E402

from _cli import run_tool  # noqa: E402
from mmkd.analysis.pairing import assign_roles, differences, row_of  # noqa: E402
from mmkd.analysis.rows import Row, read_rows  # noqa: E402
from mmkd.analysis.statistics import interval  # noqa: E402
from mmkd.analysis.tables import DASH, markdown_table, with_error  # noqa: E402
from mmkd.analysis.work_dir import METRICS, WorkDir, comparable_config  # noqa: E402
from mmkd.errors import ConfigError, did_you_mean  # noqa: E402
from mmkd.teachers.config import config_classes  # noqa: E402


@dataclass(frozen=True)
class Reported:
    """One detector of the paper.

    Attributes:
        title: Description of the detector.
        data: The data set of the evaluation.
        classes: Number of classes.
        configs: Names of the configs of this detector in mmkd or mmdet.
        parameters: In millions.
        mAP: In percent.
        F1: In percent.
        epochs: Number of training epochs.
    """

    title: str
    data: str
    classes: int
    configs: tuple[str, ...]
    parameters: float | None = None
    mAP: float | None = None  # noqa: N815  (as the metric is written)
    F1: float | None = None
    epochs: int | None = None


VOC, COCO = 'Pascal VOC 2012', 'COCO, person and dog'
REPORTED = {
    'dino': Reported(
        'DINO backbone, class token at every position, Faster R-CNN',
        VOC,
        20,
        ('faster-rcnn_dino-b-cls-repeat_voc2012',),
        parameters=110,
        mAP=4,
    ),
    'vitdet': Reported(
        'ViTDet backbone, Faster R-CNN',
        VOC,
        20,
        ('faster-rcnn_vitdet-b_voc2012',),
        parameters=106,
        mAP=50,
    ),
    'mobilenetv2': Reported(
        'MobileNetV2, Faster R-CNN, alone',
        VOC,
        20,
        ('faster-rcnn_mobilenetv2_fpn_10e_voc2012',),
        parameters=19,
        mAP=29,
        epochs=10,
    ),
    'mobilenetv2-distilled': Reported(
        'MobileNetV2 distilled with MSE on boxes and KL on classes',
        VOC,
        20,
        ('vitdet-b_to_mobilenetv2_voc2012',),
        mAP=40,
    ),
    'detr-r50': Reported(
        'DETR R50, teacher', COCO, 2, ('detr_r50_8xb2-150e_coco',), parameters=41, F1=78
    ),
    'detr-r18-distilled': Reported(
        'DETR R18 distilled with logits',
        COCO,
        2,
        ('detr_r50_to_r18_coco-person-dog',),
        F1=53,
        epochs=10,
    ),
}


def match_reported(
    rows: Sequence[Row], assigned: Mapping[str, str] | None = None
) -> dict[str, Row]:
    """Match work directories to reported detectors.

    Args:
        rows: Rows of the work directories.
        assigned: Work directories by keys of :data:`REPORTED`. These replace the match by config name.

    Returns:
        Rows by keys of :data:`REPORTED`.

    Raises:
        ConfigError: A key or work directory does not exist, or several rows match the same key.
    """
    for key in assigned or {}:
        if key not in REPORTED:
            raise ConfigError(
                f'--as {key}: no such figure{did_you_mean(key, REPORTED)}; known: {", ".join(REPORTED)}'
            )
    matched = {}
    for key, reported in REPORTED.items():
        found = [row for row in rows if set(row.first.names) & set(reported.configs)]
        if key in (assigned or {}):
            found = [row_of(assigned[key], rows)]
        if len(found) > 1:
            names = ', '.join(row.name for row in found)
            raise ConfigError(f'--as {key}: matches {names}; choose one with --as {key}=WORK_DIR')
        if found:
            matched[key] = found[0]
    return matched


def reported_table(matched: Mapping[str, Row]) -> str:
    """The table: one line per reported figure, with the measured value in a column of its own."""
    rows = [['data', 'detector', 'figure', 'reported', 'measured here', 'work directory']]
    notes = []
    for key, reported in REPORTED.items():
        row = matched.get(key)
        for figure in ('parameters', *METRICS, 'epochs'):
            cells = _reported(reported, figure), _measured(row, figure, reported)
            if cells != (DASH, DASH):
                where = DASH if cells[1] == DASH else row.name
                rows.append([reported.data, reported.title, figure, *cells, where])
        if row and not _same_task(row, reported):
            notes.append(
                f'{row.name} has {_classes(row)} classes, the reported detector {reported.classes}: their '
                f'accuracies are not compared.'
            )
        changes = row and _changes(row, reported)
        if changes:
            notes.append(f'{row.name} was not trained with {reported.configs[0]}: {changes}.')
    return '\n\n'.join([markdown_table(rows, left=3), *notes])


def _changes(row: Row, reported: Reported) -> str:
    """The settings of schedule and data in which a run differs from the shipped config."""
    folder = HERE.parent / 'configs'
    found = [path for name in reported.configs for path in folder.rglob(f'{name}.py')]
    if not found:
        return ''  # a config of MMDetection
    shipped, used = (
        WorkDir(Path(), config, (), trained=0).recipe(dict(type=None))
        for config in (Config.fromfile(str(found[0])), row.first.config)
    )
    return differences(
        comparable_config(shipped, ('data_root',)), comparable_config(used, ('data_root',))
    )


def _reported(reported: Reported, figure: str) -> str:
    value = getattr(reported, figure, None)
    return DASH if value is None else f'{value} M' if figure == 'parameters' else str(value)


def _measured(row: Row | None, figure: str, reported: Reported) -> str:
    if row is None or not row.finished:
        return DASH
    if figure == 'parameters':
        return f'{row.cost.parameters / 1e6:.1f} M' if row.cost else DASH
    if figure == 'epochs':
        counted = row.first.unit == 'epoch' and row.first.trained is not None
        return str(row.first.trained) if counted else DASH
    values = row.values(figure) if _same_task(row, reported) else None
    return DASH if values is None else with_error(*interval([100 * value for value in values]))


def _same_task(row: Row, reported: Reported) -> bool:
    return _classes(row) == reported.classes


def _classes(row: Row) -> int:
    return len(config_classes(row.first.config) or ())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        'work_dirs',
        nargs='*',
        metavar='WORK_DIR',
        help='work directories of finished training runs',
    )
    parser.add_argument(
        '--as',
        dest='assigned',
        action='append',
        default=[],
        metavar='FIGURE=WORK_DIR',
        help=f'compare a run with a figure; FIGURE is one of {", ".join(REPORTED)}',
    )
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    parser.set_defaults(device=None, gpus=None, local_rank=0)
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    for option in args.assigned:
        if not all(option.partition('=')):
            raise ConfigError(f'--as: must be FIGURE=WORK_DIR, got {option!r}')
    rows = assign_roles(read_rows(args.work_dirs)) if args.work_dirs else []
    print(reported_table(match_reported(rows, dict(o.split('=', 1) for o in args.assigned))))


if __name__ == '__main__':
    run_tool(main, parse_args())
