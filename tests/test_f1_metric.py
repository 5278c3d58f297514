"""CocoF1Metric against F1 computed literally: filter by score, match by hand, count."""

import json
import math

import numpy as np
import pytest
import torch
from mmdet.datasets.api_wrappers import COCO, COCOeval
from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.structures import InstanceData

import mmkd.f1_metric  # noqa: F401  registers CocoF1Metric
from mmkd.errors import ConfigError

CLASSES = ('cat', 'dog', 'crowd only', 'absent', 'unfound')
CROWD_ONLY, ABSENT, UNFOUND = 2, 3, 4
SIZE = 200


def make_image(img_id, instances, detections):
    """A tested image. instances: (box, label, crowd); detections: (box, label, score)."""
    sample = DetDataSample(
        metainfo=dict(
            img_id=img_id,
            ori_shape=(SIZE, SIZE),
            instances=[
                dict(bbox=list(box), bbox_label=label, ignore_flag=int(crowd))
                for box, label, crowd in instances
            ],
        )
    )
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([box for box, _, _ in detections]).float().reshape(-1, 4),
        labels=torch.tensor([label for _, label, _ in detections], dtype=torch.long),
        scores=torch.tensor([score for _, _, score in detections]).double(),
    )
    return sample


def random_images(seed, *, ties=True, num_images=12):
    """Objects, near misses, duplicates and strays of every class but the absent one."""
    rng = np.random.default_rng(seed)

    def box():
        x, y = rng.integers(0, 120, 2)
        w, h = rng.integers(10, 80, 2)
        return np.array([x, y, x + w, y + h])

    def score():
        return rng.integers(1, 20) / 20 if ties else rng.random()

    images = []
    for i in range(num_images):
        instances, detections = [], []
        for _ in range(rng.integers(0, 6)):
            label = int(rng.choice([0, 0, 1, CROWD_ONLY, UNFOUND]))
            crowd = label == CROWD_ONLY or rng.random() < 0.2
            truth = box()
            instances.append((truth.tolist(), label, crowd))
            for _ in range(rng.integers(0, 4) if label != UNFOUND else 0):
                near = truth + rng.integers(-8, 9, 4)
                near[2:] = np.maximum(near[2:], near[:2] + 1)
                detections.append((near.tolist(), label, score()))
        for _ in range(rng.integers(0, 4)):
            detections.append((box().tolist(), int(rng.integers(0, 4)), score()))
        images.append(make_image(f'{seed}_{i:03}', instances, detections))
    return images


def evaluate(images, type='CocoF1Metric', **kwargs):
    evaluator = Evaluator(METRICS.build(dict(type=type, **kwargs)))
    evaluator.dataset_meta = dict(classes=CLASSES)
    evaluator.process(images)
    return evaluator.evaluate(len(images))


def overlap(det, truth, crowd):
    width = min(det[2], truth[2]) - max(det[0], truth[0])
    height = min(det[3], truth[3]) - max(det[1], truth[1])
    inter = max(width, 0) * max(height, 0)
    area = [(b[2] - b[0]) * (b[3] - b[1]) for b in (det, truth)]
    return inter / (area[0] if crowd else area[0] + area[1] - inter)


def literal_counts(images, label, threshold):
    """Correct, wrong and wanted detections of a class, with the others removed beforehand."""
    tp = fp = wanted = 0
    for image in images:
        truths = [i for i in image.instances if i['bbox_label'] == label]
        wanted += sum(not t['ignore_flag'] for t in truths)
        pred = image.pred_instances
        kept = [
            (score, box)
            for box, lab, score in zip(
                pred.bboxes.tolist(), pred.labels.tolist(), pred.scores.tolist(), strict=True
            )
            if lab == label and score >= threshold
        ]
        free = [t for t in truths if not t['ignore_flag']]
        crowds = [t for t in truths if t['ignore_flag']]
        for _, box in sorted(kept, key=lambda pair: -pair[0])[:100]:
            ious = [overlap(box, t['bbox'], crowd=False) for t in free]
            if ious and max(ious) >= 0.5:
                free.pop(ious.index(max(ious)))
                tp += 1
            elif not any(overlap(box, t['bbox'], crowd=True) >= 0.5 for t in crowds):
                fp += 1
    return tp, fp, wanted


def literal_f1(images, label, threshold):
    tp, fp, wanted = literal_counts(images, label, threshold)
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / wanted
    f1 = 2 * precision * recall / (precision + recall) if tp else 0.0
    return precision, recall, f1


def all_scores(images):
    return sorted({s for i in images for s in i.pred_instances.scores.tolist()}, reverse=True)


def counted_labels(images):
    return [k for k in range(len(CLASSES)) if literal_counts(images, k, 0)[2]]


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('ties', [True, False])
def test_agrees_with_the_literal_computation(seed, ties):
    images = random_images(seed, ties=ties)
    result = evaluate(images, classwise=True, score_thr=0.45)

    labels, scores = counted_labels(images), all_scores(images)
    assert {0, 1} <= set(labels) and not {CROWD_ONLY, ABSENT} & set(labels)
    f1 = np.array([[literal_f1(images, k, s)[2] for s in scores] for k in labels])
    for row, label in zip(f1, labels, strict=True):
        name = CLASSES[label]
        assert result[f'coco/{name}_F1'] == pytest.approx(row.max(), abs=1e-12)
        # The highest threshold of those that give it; equal F1 differ by rounding in this form.
        threshold = scores[int(np.argmax(row > row.max() - 1e-12))] if row.any() else 0
        assert result[f'coco/{name}_F1_threshold'] == threshold
    assert result['coco/bbox_F1'] == pytest.approx(f1.max(axis=1).mean())

    shared = f1.mean(axis=0)
    assert result['coco/bbox_F1_shared'] == pytest.approx(shared.max())
    at = scores.index(result['coco/bbox_F1_shared_threshold'])
    assert shared[at] == pytest.approx(shared.max())

    fixed = np.mean([literal_f1(images, k, 0.45) for k in labels], axis=0)
    for value, key in zip(fixed, ('precision', 'recall', 'F1'), strict=True):
        assert result[f'coco/bbox_{key}_at_0.45'] == pytest.approx(value)


def test_a_threshold_keeps_the_scores_equal_to_it():
    box = [10, 10, 50, 50]
    image = make_image('a', [(box, 0, False)], [(box, 0, 0.5)])
    assert evaluate([image])['coco/bbox_recall_at_0.5'] == 1
    assert evaluate([image], score_thr=0.51)['coco/bbox_recall_at_0.51'] == 0


def test_classes_without_ground_truth_are_left_out_of_the_means():
    box = [10, 10, 50, 50]
    truth = [(box, 0, False), ([60, 60, 90, 90], CROWD_ONLY, True)]
    detections = [(box, 0, 0.9), (box, CROWD_ONLY, 0.9), (box, ABSENT, 0.9)]
    result = evaluate([make_image('a', truth, detections)], classwise=True)
    assert result['coco/bbox_F1'] == result['coco/bbox_F1_at_0.5'] == 1
    assert math.isnan(result['coco/crowd only_F1'])
    assert math.isnan(result['coco/absent_F1'])

    nothing_to_find = evaluate([make_image('a', [], detections)])
    f1_keys = [k for k in nothing_to_find if '_F1' in k or '_at_' in k]
    assert len(f1_keys) == 6
    assert all(nothing_to_find[k] == -1 for k in f1_keys + ['coco/bbox_mAP'])


@pytest.mark.parametrize('truth', [[([10, 10, 50, 50], 0, False)], []])
def test_no_detection_at_all(truth):
    result = evaluate([make_image('a', truth, [])])
    assert len(result) == 6
    assert set(result.values()) == {0.0 if truth else -1.0}


def test_more_than_100_detections_an_image_are_cut_as_coco_does():
    box = [10, 10, 50, 50]
    strays = [([100, 100, 120, 120], 0, 0.9)] * 100
    last, truth = (box, 0, 0.1), [(box, 0, False)]
    as_the_100th = evaluate([make_image('a', truth, [*strays[1:], last])])
    assert as_the_100th['coco/bbox_F1'] == pytest.approx(2 / (100 + 1))
    as_the_101st = evaluate([make_image('a', truth, [*strays, last])])
    assert as_the_101st['coco/bbox_F1'] == 0


def test_coco_metric_is_unchanged():
    images = random_images(3)
    kwargs = dict(metric=['bbox', 'proposal'], classwise=True)
    plain = evaluate(images, type='CocoMetric', **kwargs)
    result = evaluate(images, **kwargs)
    assert plain['coco/bbox_mAP_50'] > 0
    assert list(plain) == list(result)[: len(plain)]
    np.testing.assert_array_equal(list(plain.values()), list(result.values())[: len(plain)])


def test_every_epoch_is_counted_afresh_and_the_prefix_is_kept():
    evaluator = Evaluator(METRICS.build(dict(type='CocoF1Metric', prefix='student')))
    evaluator.dataset_meta = dict(classes=CLASSES)
    results = []
    images = random_images(1)
    empty = [make_image(i.img_id, [], []) for i in images]
    for epoch in (images, empty, images):
        evaluator.process(epoch)
        results.append(evaluator.evaluate(len(epoch)))
    assert results[0]['student/bbox_F1'] > 0
    assert results[1]['student/bbox_F1'] == 0
    assert results[0] == results[2]


def coco_json(images, path):
    """The images' ground truth as a file, with category ids in no order."""
    ids = [30, 7, 22, 5, 11]
    annotations = []
    for image in images:
        for instance in image.instances:
            x1, y1, x2, y2 = instance['bbox']
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image.img_id,
                    category_id=ids[instance['bbox_label']],
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=instance['ignore_flag'],
                )
            )
    path.write_text(
        json.dumps(
            dict(
                images=[dict(id=i.img_id, width=SIZE, height=SIZE) for i in images],
                categories=[dict(id=i, name=n) for i, n in zip(ids, CLASSES, strict=True)],
                annotations=annotations,
            )
        )
    )
    return str(path)


def test_annotation_file_and_annotations_of_the_samples_give_the_same(tmp_path):
    images = random_images(2)
    ann_file = coco_json(images, tmp_path / 'gt.json')
    from_samples = evaluate(images, classwise=True)
    from_file = evaluate(images, classwise=True, ann_file=ann_file)
    assert from_samples['coco/cat_F1'] > 0
    # <class>_precision is CocoMetric's own, which takes the ids to be in ascending order.
    keys = [key for key in from_file if not key.endswith('_precision')]
    assert len(keys) == 6 + 2 * len(CLASSES) + 6
    np.testing.assert_array_equal([from_samples[k] for k in keys], [from_file[k] for k in keys])


@pytest.mark.parametrize('seed', range(4))
def test_relation_to_the_accumulated_precision_is_as_documented(seed, tmp_path):
    images = random_images(seed, ties=False, num_images=40)
    ann_file = coco_json(images, tmp_path / 'gt.json')
    prefix = tmp_path / 'dt'
    evaluate(images, ann_file=ann_file, outfile_prefix=str(prefix))
    gt = COCO(ann_file)
    coco_eval = COCOeval(gt, gt.loadRes(f'{prefix}.bbox.json'), 'bbox')
    coco_eval.evaluate()
    coco_eval.accumulate()
    result = evaluate(images, classwise=True)
    for name in ('cat', 'dog'):
        k = coco_eval.params.catIds.index(gt.getCatIds([name])[0])
        precision, recall = coco_eval.eval['precision'][0, :, k, 0, -1], coco_eval.params.recThrs
        grid = (2 * precision * recall / np.maximum(precision + recall, 1e-9)).max()
        assert grid - 1e-9 <= result[f'coco/{name}_F1'] <= grid + 0.02


def test_format_only_writes_the_file_and_computes_nothing(tmp_path):
    result = evaluate(random_images(0), format_only=True, outfile_prefix=str(tmp_path / 'dt'))
    assert result == {}
    assert (tmp_path / 'dt.bbox.json').exists()


def test_wrong_options_are_refused():
    with pytest.raises(ConfigError, match=r"metric must include 'bbox', got \['segm'\]"):
        METRICS.build(dict(type='CocoF1Metric', metric=['segm']))
    with pytest.raises(ConfigError, match=r'score_thr must be in \[0, 1\], got 50'):
        METRICS.build(dict(type='CocoF1Metric', score_thr=50))


def test_documented_save_best_is_accepted():
    CheckpointHook(save_best='coco/bbox_F1', rule='greater')
    with pytest.raises(ValueError, match='Cannot infer the rule'):
        CheckpointHook(save_best='coco/bbox_F1')
