"""COCO metrics with precision, recall and F1 at the score thresholds that a deployed detector would use."""

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
    """Replace each CocoMetric of an evaluator's config by a CocoF1Metric with the same settings.

    Args:
        evaluator: The evaluator of an MMDetection config.
        key: The config key of the evaluator, for messages.

    Returns:
        The configs of all metrics.

    Raises:
        ConfigError: The evaluator has no CocoMetric.
    """
    metrics = evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]
    metrics = [dict(m) for e in metrics for m in (e['metrics'] if 'metrics' in e else [e])]
    coco = [m for m in metrics if m['type'].removeprefix('mmdet.') in ('CocoMetric', NAME)]
    if not coco:
        raise ConfigError(
            f'{key}: must have a CocoMetric for F1, got {[m["type"] for m in metrics]}; add one'
        )
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
    """Evaluate a detector on a data set, including F1, one image at a time.

    Args:
        model: The detector, in evaluation mode.
        dataset: A data set with the pipeline of a validation or test data loader.
        evaluator: The config of the evaluator.
        report: Called after each image with the finished share, in [0, 1].

    Returns:
        The metrics by name.
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
    """``CocoMetric`` with precision, recall and F1 of boxes.

    All numbers of ``CocoMetric`` stay as they are. The following are added, at IoU 0.5, for all areas and
    the 100 top-scoring detections per image and class:

    ===========================  ===================================================================
    ``bbox_F1``                  mean over classes of the best F1, with the best threshold per class
    ``bbox_F1_shared``           best mean F1 with one threshold for all classes
    ``bbox_F1_shared_threshold`` that threshold
    ``bbox_precision_at_0.5``    mean over classes of the precision at ``score_thr``
    ``bbox_recall_at_0.5``       mean over classes of the recall at ``score_thr``
    ``bbox_F1_at_0.5``           mean over classes of F1 at ``score_thr`` (not the F1 of the means)
    ===========================  ===================================================================

    ``0.5`` in the last three names is ``score_thr``. A table of these numbers per class is logged. With
    ``classwise=True`` the result also has ``<class>_F1`` and ``<class>_F1_threshold``.

    **Counting.** pycocotools matches detections to the ground truth greedily, from the highest score.
    Crowd regions absorb the detections on them, which then count neither as correct nor as wrong. A
    threshold keeps the detections with a score of at least the threshold; equal scores are kept or
    dropped together. The counts are exact and come from the matches (``COCOeval.evalImgs``): removing
    detections below a threshold does not change the matches of the others.

    **Relation to COCO's curve.** The accumulated ``precision`` and ``scores`` of pycocotools are the same
    counts at 101 recalls, but each precision is replaced by the highest precision at that recall or
    beyond. ``max 2PR/(P+R)`` over them is at most the best F1 given here, and less by at most 0.02 (apart
    from equal scores): the replacing precision comes with more recall, so it cannot raise the best F1.
    The precision at a given score would be too high, and the ``scores`` are not those of the best F1.

    **Special cases.** A class without ground truth (apart from crowds) has no F1 (NaN) and is left out of
    all means. If no class has ground truth, the means are -1, as in COCO. If no detection matches the
    ground truth of a class, its precision, recall, F1 and thresholds are 0. The same holds for a run
    without any detection, for which ``CocoMetric`` logs an error and returns nothing.

    To save the best checkpoint by F1, set the rule as well, which the hook cannot infer from the name:
    ``CheckpointHook(save_best='coco/bbox_F1', rule='greater')``.

    Args:
        score_thr: The fixed score threshold, in [0, 1].
        metric: See ``CocoMetric``. It must include ``'bbox'``.
        **kwargs: The other arguments of ``CocoMetric``.

    Raises:
        ConfigError: ``score_thr`` is not in [0, 1], or ``metric`` lacks ``'bbox'``.

    Examples:
        >>> from mmdet.registry import METRICS
        >>> import mmkd
        >>> metric = METRICS.build(dict(type='CocoF1Metric', score_thr=0.3))  # val_evaluator=… of a config
        >>> metric.score_thr, metric.metrics
        (0.3, ['bbox'])
    """

    def __init__(
        self, *, score_thr: float = 0.5, metric: str | list[str] = 'bbox', **kwargs: Any
    ) -> None:
        super().__init__(metric=metric, **kwargs)
        if not 0 <= score_thr <= 1:
            raise ConfigError(f'CocoF1Metric: score_thr must be in [0, 1], got {score_thr}')
        if 'bbox' not in self.metrics:
            raise ConfigError(
                f"CocoF1Metric: metric must include 'bbox', got {metric!r}; add it, or use CocoMetric"
            )
        self.score_thr = score_thr
        self._predictions: list[dict] = []

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict:
        """Write the predictions as ``CocoMetric`` does, and store the boxes for F1."""
        files = super().results2json(results, outfile_prefix)
        if not self.format_only:
            self._predictions = load(files['bbox'])
        return files

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Return the results of ``CocoMetric`` and those listed above."""
        metrics = super().compute_metrics(results)
        if not self.format_only:
            curves = self._score_curves(self._predictions)
            self._predictions = []
            metrics.update(self._summarize(curves))
        return metrics

    def _score_curves(self, predictions: list[dict]) -> dict[int, ScoreCurve]:
        """Match the predictions to the ground truth; returns one curve per category id."""
        matches: dict[int, list[dict]] = defaultdict(list)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            # loadRes fails on an empty list; an empty COCO has no annotations either.
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
            if (
                match is not None
            ):  # None: the image has no ground truth and no detections of this class
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
    """Numbers of correct and wrong detections of one class, by score threshold.

    Args:
        thresholds: The distinct scores, highest first, shape ``(n,)``.
        tp: Number of correct detections with a score of at least ``thresholds[i]``, shape ``(n,)``.
        fp: Number of wrong detections, shape ``(n,)``. Detections on crowds are in neither.
        num_gt: Number of ground-truth objects.

    Examples:
        >>> import numpy as np
        >>> from mmkd.f1_metric import ScoreCurve
        >>> scores, correct = np.array([0.9, 0.8, 0.3]), np.array([True, False, True])
        >>> curve = ScoreCurve.from_scores(scores, correct, num_gt=2)
        >>> curve.at(0.5)  # precision, recall and F1
        (0.5, 0.5, 0.5)
        >>> curve.best()  # F1 and its threshold
        (0.8, 0.3)
    """

    thresholds: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    num_gt: int

    @classmethod
    def from_matches(cls, matches: list[dict]) -> ScoreCurve:
        """Create a curve from the entries of ``COCOeval.evalImgs`` of one class, IoU and area range."""
        if not matches:
            return cls(np.zeros(0), np.zeros(0, int), np.zeros(0, int), 0)
        scores = np.concatenate([match['dtScores'] for match in matches]).astype(float)
        matched = np.concatenate([match['dtMatches'][0] for match in matches]) != 0
        counted = np.concatenate([match['dtIgnore'][0] for match in matches]) == 0
        num_gt = sum(int(np.sum(np.equal(match['gtIgnore'], 0))) for match in matches)
        return cls.from_scores(scores[counted], matched[counted], num_gt)

    @classmethod
    def from_scores(cls, scores: np.ndarray, right: np.ndarray, num_gt: int) -> ScoreCurve:
        """Create a curve from the scores of detections and whether each is correct, shape ``(n,)`` each."""
        # Every distinct score is a threshold; searchsorted finds the last detection that it keeps.
        order = np.argsort(-scores, kind='stable')
        thresholds = np.unique(scores)[::-1]
        last = np.searchsorted(-scores[order], -thresholds, side='right') - 1
        tp = np.cumsum(right[order])[last]
        fp = np.cumsum(~right[order])[last]
        return cls(thresholds, tp, fp, num_gt)

    def counts(self, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of correct and wrong detections at any thresholds, shape ``(m,)`` each."""
        kept = np.searchsorted(-self.thresholds, -thresholds, side='right')
        return np.append(0, self.tp)[kept], np.append(0, self.fp)[kept]

    def f1(self, thresholds: np.ndarray) -> np.ndarray:
        """Return F1 at any thresholds, shape ``(m,)``. ``num_gt`` must be above 0."""
        tp, fp = self.counts(thresholds)
        return 2 * tp / (tp + fp + self.num_gt)

    def best(self) -> tuple[float, float]:
        """Return the best F1 and the highest threshold that reaches it; NaN if ``num_gt`` is 0."""
        return best_shared_f1([self]) if self.num_gt else (float('nan'), float('nan'))

    def at(self, threshold: float) -> tuple[float, float, float]:
        """Return precision (0 without detections), recall and F1; NaN if ``num_gt`` is 0."""
        if not self.num_gt:
            return (float('nan'),) * 3
        (tp,), (fp,) = self.counts(np.array([threshold]))
        (f1,) = self.f1(np.array([threshold]))
        return float(tp / max(tp + fp, 1)), float(tp / self.num_gt), float(f1)


def best_shared_f1(curves: list[ScoreCurve]) -> tuple[float, float]:
    """Return the best mean F1 over classes with one shared threshold, and that threshold.

    ``(0, 0)`` if there is no correct detection at any threshold, ``(-1, -1)`` without classes.
    """
    if not curves:
        return -1.0, -1.0
    thresholds = np.unique(np.concatenate([curve.thresholds for curve in curves]))[::-1]
    mean = np.mean([curve.f1(thresholds) for curve in curves], axis=0)
    if not mean.any():
        return 0.0, 0.0
    best = int(np.argmax(mean))  # of equal values the first, which has the highest threshold
    return float(mean[best]), float(thresholds[best])
