"""COCO's numbers, with precision, recall and F1 at the scores a user would deploy with."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.datasets.api_wrappers import COCO, COCOeval
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.fileio import load
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from terminaltables import AsciiTable

from mmkd.errors import ConfigError

F1_IOU = 0.5
NAME = 'CocoF1Metric'
MAX_DETECTIONS = 100  # per image and class, COCO's largest maxDets


def with_f1(evaluator: dict | list | tuple, key: str = 'test_evaluator') -> list[dict]:
    """The metrics of an evaluator's config, each CocoMetric as a CocoF1Metric of the same settings.

    Args:
        evaluator: As an MMDetection config has it.
        key: Its key there, for messages.

    Raises:
        ConfigError: It has no CocoMetric.
    """
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    metrics = [dict(m) for e in metrics for m in (e['metrics'] if 'metrics' in e else [e])]
    coco = [m for m in metrics if m['type'].removeprefix('mmdet.') in ('CocoMetric', NAME)]
    if not coco:
        raise ConfigError(f'F1 needs a CocoMetric, but {key} has {[m["type"] for m in metrics]}')
    for metric in coco:
        metric['type'] = NAME
    return metrics


@torch.no_grad()
def evaluate(
    model: BaseModel,
    dataset: BaseDataset,
    evaluator: dict | list | tuple,
    report: Callable[[float], None] = lambda share: None,
) -> dict[str, float]:
    """A detector's metrics on a dataset, F1 among them, one image at a time.

    Args:
        model: In evaluation mode.
        dataset: With the pipeline of a validation or test data loader.
        evaluator: The config of its evaluator.
        report: Called with the share that is done, in 0..1.
    """
    with DefaultScope.overwrite_default_scope('mmdet'):
        metrics = Evaluator(with_f1(evaluator))
    metrics.dataset_meta = dataset.metainfo
    for i in range(len(dataset)):
        batch = pseudo_collate([dataset[i]])
        metrics.process(data_samples=model.test_step(batch), data_batch=batch)
        report((i + 1) / len(dataset))
    return {key: float(value) for key, value in metrics.evaluate(len(dataset)).items()}


@METRICS.register_module()
class CocoF1Metric(CocoMetric):
    """``CocoMetric`` and, for boxes, F1.

    Every number of ``CocoMetric`` is left as it is. On top of them, at IoU 0.5, all areas, the
    100 best detections per image and class:

    ===========================  ===================================================================
    ``bbox_F1``                  mean over classes of each class's best F1, every class at the score
                                 threshold that suits it best
    ``bbox_F1_shared``           the best mean F1 that one threshold for all classes reaches
    ``bbox_F1_shared_threshold`` that threshold
    ``bbox_precision_at_0.5``    mean over classes of the precision at ``score_thr``
    ``bbox_recall_at_0.5``       mean over classes of the recall at ``score_thr``
    ``bbox_F1_at_0.5``           mean over classes of F1 at ``score_thr`` (not the F1 of the means)
    ===========================  ===================================================================

    ``0.5`` in the last three is ``score_thr``. A table of all this per class is logged; with
    ``classwise=True`` the result also has ``<class>_F1`` and ``<class>_F1_threshold``.

    The detections are matched to the ground truth by pycocotools: greedily from the highest
    score, crowd regions absorb what falls on them, and a detection on a crowd counts neither for
    nor against. A threshold keeps the detections whose score is at least the threshold. The
    counts are exact, taken from the matches (``COCOeval.evalImgs``): keeping the detections above
    a threshold leaves the matches among them unchanged, so counting those is the same as removing
    the others before matching. Equal scores are kept or dropped together.

    pycocotools' accumulated ``precision`` and ``scores`` (which AP is the mean of) are the same
    counts at 101 recalls, with precision replaced by the highest one at that recall or beyond.
    That replacement cannot raise the best F1, as the precision it borrows comes with more recall;
    the 101 steps can hide it by at most 0.02. So ``max 2PR/(P+R)`` over them is at most the best
    F1 given here and at least that less 0.02 (equal scores aside), but precision at a given score
    would be too high, and their ``scores`` are not those at which the best F1 is reached.

    A class without ground truth (crowds apart) has no F1 (NaN) and is left out of every mean. If no
    class has any, the means are -1, as COCO's are. A class whose ground truth nothing finds has
    precision, recall, F1 and thresholds of 0; so has a run without a single detection, for which
    ``CocoMetric`` itself logs an error and returns nothing.

    To keep the best checkpoint by F1, give the hook the rule, which it cannot guess from the name:
    ``CheckpointHook(save_best='coco/bbox_F1', rule='greater')``.

    Args:
        score_thr: The fixed score threshold, in [0, 1].
        metric: As for ``CocoMetric``. ``'bbox'`` must be among them.
        **kwargs: The other arguments of ``CocoMetric``.

    Raises:
        ConfigError: If ``score_thr`` is not in [0, 1] or ``metric`` lacks ``'bbox'``.
    """

    def __init__(
        self, *, score_thr: float = 0.5, metric: str | list[str] = 'bbox', **kwargs: Any
    ) -> None:
        super().__init__(metric=metric, **kwargs)
        if not 0 <= score_thr <= 1:
            raise ConfigError(f'CocoF1Metric: score_thr must be in [0, 1], got {score_thr}')
        if 'bbox' not in self.metrics:
            raise ConfigError(
                f'CocoF1Metric gives the F1 of boxes, but metric is {metric!r}: '
                "add 'bbox' to it, or use CocoMetric"
            )
        self.score_thr = score_thr
        self._predictions: list[dict] = []

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict:
        """Write the predictions as ``CocoMetric`` does and keep the boxes it is about to read."""
        files = super().results2json(results, outfile_prefix)
        if not self.format_only:
            self._predictions = load(files['bbox'])
        return files

    def compute_metrics(self, results: list) -> dict[str, float]:
        """``CocoMetric``'s results, followed by those listed above."""
        metrics = super().compute_metrics(results)
        if not self.format_only:
            curves = self._score_curves(self._predictions)
            self._predictions = []
            metrics.update(self._summarize(curves))
        return metrics

    def _score_curves(self, predictions: list[dict]) -> dict[int, ScoreCurve]:
        """Match the predictions to the ground truth; one curve per category id."""
        matches: dict[int, list[dict]] = defaultdict(list)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            # loadRes fails on an empty list; an empty COCO has no annotation either.
            detections = self._coco_api.loadRes(predictions) if predictions else COCO()
            coco_eval = COCOeval(self._coco_api, detections, 'bbox')
            coco_eval.params.catIds = self.cat_ids
            coco_eval.params.imgIds = self.img_ids
            coco_eval.params.iouThrs = np.array([F1_IOU])
            coco_eval.params.areaRng = coco_eval.params.areaRng[:1]  # all
            coco_eval.params.areaRngLbl = coco_eval.params.areaRngLbl[:1]
            coco_eval.params.maxDets = [MAX_DETECTIONS]
            coco_eval.evaluate()
        for match in coco_eval.evalImgs:
            if match is not None:  # neither ground truth nor detections of this class here
                matches[match['category_id']].append(match)
        return {cat_id: ScoreCurve.from_matches(matches[cat_id]) for cat_id in self.cat_ids}

    def _summarize(self, curves: dict[int, ScoreCurve]) -> dict[str, float]:
        at = f'at_{self.score_thr:g}'
        header = ('category', 'F1', 'threshold', f'precision_{at}', f'recall_{at}', f'F1_{at}')
        rows = []
        metrics: dict[str, float] = {}
        for cat_id, curve in curves.items():
            name = self._coco_api.loadCats(cat_id)[0]['name']
            rows.append((name, *curve.best(), *curve.at(self.score_thr)))
            if self.classwise:
                metrics[f'{name}_F1'], metrics[f'{name}_F1_threshold'] = rows[-1][1:3]

        counted = [curve for curve in curves.values() if curve.num_gt]
        shared_f1, shared_threshold = best_shared_f1(counted)
        columns = np.array([row[1:] for row in rows if not np.isnan(row[1])]).reshape(-1, 5)
        f1, _, *fixed = columns.mean(axis=0).tolist() if len(columns) else [-1.0] * 5
        metrics['bbox_F1'] = f1
        metrics['bbox_F1_shared'] = shared_f1
        metrics['bbox_F1_shared_threshold'] = shared_threshold
        for key, value in zip(header[3:], fixed, strict=True):
            metrics[f'bbox_{key}'] = value

        rows.append(('mean', f1, '', *fixed))
        cells = [[c if isinstance(c, str) else f'{c:.3f}' for c in row] for row in rows]
        MMLogger.get_current_instance().info(
            f'F1 at IoU {F1_IOU} (one threshold for all classes: {shared_f1:.3f} at '
            f'{shared_threshold:.3f})\n{AsciiTable([header, *cells]).table}'
        )
        return metrics


@dataclass(frozen=True)
class ScoreCurve:
    """What is right and wrong among one class's detections, as the score threshold falls.

    Args:
        thresholds: ``(n,)``, the distinct scores, highest first.
        tp: ``(n,)``, correct detections among those scored at least ``thresholds[i]``.
        fp: ``(n,)``, wrong ones. What lies on a crowd is in neither.
        num_gt: Number of objects to find.
    """

    thresholds: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    num_gt: int

    @classmethod
    def from_matches(cls, matches: list[dict]) -> ScoreCurve:
        """From the entries of ``COCOeval.evalImgs`` of one class (one IoU, one area range)."""
        if not matches:
            return cls(np.zeros(0), np.zeros(0, int), np.zeros(0, int), 0)
        scores = np.concatenate([match['dtScores'] for match in matches]).astype(float)
        matched = np.concatenate([match['dtMatches'][0] for match in matches]) != 0
        counted = np.concatenate([match['dtIgnore'][0] for match in matches]) == 0
        num_gt = sum(int(np.sum(np.equal(match['gtIgnore'], 0))) for match in matches)
        return cls.from_scores(scores[counted], matched[counted], num_gt)

    @classmethod
    def from_scores(cls, scores: np.ndarray, right: np.ndarray, num_gt: int) -> ScoreCurve:
        """From the detections that count, ``(n,)`` scores and whether each is correct."""
        # Every distinct score is a threshold; searchsorted finds the last detection it keeps.
        order = np.argsort(-scores, kind='stable')
        thresholds = np.unique(scores)[::-1]
        last = np.searchsorted(-scores[order], -thresholds, side='right') - 1
        tp = np.cumsum(right[order])[last]
        fp = np.cumsum(~right[order])[last]
        return cls(thresholds, tp, fp, num_gt)

    def counts(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Correct and wrong detections kept by any thresholds, ``(m,)`` each."""
        kept = np.searchsorted(-self.thresholds, -thresholds, side='right')
        return np.append(0, self.tp)[kept], np.append(0, self.fp)[kept]

    def f1(self, thresholds: np.ndarray) -> np.ndarray:
        """F1 at any thresholds, ``(m,)``. Needs something to find."""
        tp, fp = self.counts(thresholds)
        return 2 * tp / (tp + fp + self.num_gt)

    def best(self) -> tuple[float, float]:
        """Highest F1 and the highest threshold that gives it; NaN with nothing to find."""
        return best_shared_f1([self]) if self.num_gt else (float('nan'), float('nan'))

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Precision (0 if nothing is kept), recall and F1; NaN with nothing to find."""
        if not self.num_gt:
            return (float('nan'),) * 3
        (tp,), (fp,) = self.counts(np.array([threshold]))
        (f1,) = self.f1(np.array([threshold]))
        return float(tp / max(tp + fp, 1)), float(tp / self.num_gt), float(f1)


def best_shared_f1(curves: list[ScoreCurve]) -> tuple[float, float]:
    """Highest mean F1 that one threshold for several classes reaches, and that threshold.

    ``(0, 0)`` when no threshold finds anything, ``(-1, -1)`` without a class.
    """
    if not curves:
        return -1.0, -1.0
    thresholds = np.unique(np.concatenate([curve.thresholds for curve in curves]))[::-1]
    mean = np.mean([curve.f1(thresholds) for curve in curves], axis=0)
    if not mean.any():
        return 0.0, 0.0
    best = int(np.argmax(mean))  # the first of equals, which is the highest threshold
    return float(mean[best]), float(thresholds[best])
