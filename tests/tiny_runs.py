"""Finished work directories of trainings that take seconds, and what tests change in them."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner
from tiny_models import ROI_LOSSES, faster_rcnn
from tiny_training import train, training_config, write_coco

CLASSES = ('person', 'dog')


def make_runs(root: Path) -> Path:
    """Train a teacher (resumed after its first epoch), two seeds of a student alone and distilled,
    and a student for half as long; each two epochs of two steps. Returns ``root``.
    """
    write_coco(root / 'data', images=4, classes=CLASSES)
    teacher = faster_rcnn(classes=2, channels=24)
    run_training(root, 'teacher', teacher, epochs=1)
    run_training(root, 'teacher', teacher, resume=True)
    for seed in (0, 1):
        run_training(root, f'student_seed{seed}', faster_rcnn(classes=2), seed=seed)
        run_training(root, f'distilled_seed{seed}', distiller(root), seed=seed, f1=True)
    run_training(root, 'short', faster_rcnn(classes=2), epochs=1)
    return root


def distiller(root: Path) -> dict:
    """A Distiller that is taught by the run ``teacher``."""
    return dict(
        type='Distiller',
        student=faster_rcnn(classes=2),
        teacher=dict(
            config=str(root / 'configs' / 'teacher.py'),
            checkpoint=str(root / 'teacher' / 'epoch_2.pth'),
        ),
        losses=copy.deepcopy(ROI_LOSSES),
    )


def config_of(
    root: Path, name: str, model: dict, epochs: int, f1: bool = False, **changes
) -> Config:
    """A config of the run ``name``, from a file, so that its work directory names it."""
    cfg = training_config(model, root / 'data', root / name)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = cfg[loader].dataset
        dataset.metainfo = dict(classes=CLASSES)
        if loader != 'train_dataloader':  # the same numbers whenever it is evaluated
            dataset.pipeline = [step for step in dataset.pipeline if step.type != 'RandomFlip']
    cfg.val_evaluator.type = 'CocoF1Metric' if f1 else 'CocoMetric'
    cfg.custom_imports = dict(imports=['mmkd'])
    cfg.merge_from_dict(changes)
    path = root / 'configs' / f'{name}.py'
    path.parent.mkdir(exist_ok=True)
    cfg.dump(str(path))
    return Config.fromfile(str(path))


def run_training(
    root: Path, name: str, model: dict, epochs: int = 2, seed: int = 7, resume: bool = False, **more
) -> None:
    cfg = config_of(root, name, model, epochs, **more)
    cfg.randomness = dict(seed=seed)
    cfg.resume = resume
    cfg.experiment_name = cfg.visualizer.name = (
        f'{root}/{name}_{epochs}'  # mmengine keeps them by name
    )
    train(cfg)


def run_test(root: Path, name: str, checkpoint: Path, model: dict, **changes) -> None:
    """Test a checkpoint into the work directory ``name``, with F1."""
    cfg = config_of(root, name, model, epochs=2, **changes)
    cfg.test_evaluator.type = 'CocoF1Metric'
    cfg.load_from = str(checkpoint)
    cfg.experiment_name = cfg.visualizer.name = f'{root}/test_{name}_{checkpoint.parent.name}'
    Runner.from_cfg(cfg).test()


def copied(root: Path, name: str, to: Path) -> Path:
    """A copy of a run, to be changed."""
    return Path(shutil.copytree(root / name, to))


def edit_log(work_dir: Path, change) -> None:
    """Give each record of the logs to ``change``, which returns what becomes of it, or None."""
    for path in work_dir.glob('*/vis_data/scalars.json'):
        records = [change(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text(''.join(f'{json.dumps(record)}\n' for record in records if record))


def set_scores(work_dir: Path, **scores: float) -> None:
    """Put other metrics in place of those that the last validation logged."""
    names = dict(mAP='coco/bbox_mAP', AP50='coco/bbox_mAP_50', F1='coco/bbox_F1')
    new = {names[name]: value for name, value in scores.items()}
    edit_log(
        work_dir,
        lambda record: record | new if 'iter' not in record and record['step'] == 2 else record,
    )
