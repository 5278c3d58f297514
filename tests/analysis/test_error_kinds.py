"""TIDE's kinds of errors, by hand-made cases, and what fixing them brings."""

from __future__ import annotations

import numpy as np
import pytest
from mmdet.datasets.api_wrappers import COCO, COCOeval

from mmkd.analysis.coco_results import Truth
from mmkd.analysis.error_kinds import KINDS, SUMS, find_errors, size_of

CAT, DOG = 1, 2
# Objects of 40 x 40 px, which is COCO's medium.
FIRST, SECOND = [0, 0, 40, 40], [100, 0, 40, 40]


def truth_of(*objects, images=1):
    """Each is a class and a box, x y width height, and maybe its image and further keys."""
    coco = COCO()
    coco.dataset = dict(
        info={},
        images=[dict(id=i) for i in range(images)],
        categories=[dict(id=CAT, name='cat'), dict(id=DOG, name='dog')],
        annotations=[
            dict(
                dict(id=i + 1, image_id=0, iscrowd=0, area=box[2] * box[3]),
                category_id=kind,
                bbox=box,
                **dict(*more),
            )
            for i, (kind, box, *more) in enumerate(objects)
        ],
    )
    coco.createIndex()
    return Truth(coco, [CAT, DOG], list(range(images)))


def results(*found):
    """Each is a class, a box and a score."""
    return [dict(image_id=0, category_id=kind, bbox=box, score=score) for kind, box, score in found]


def shifted(box, iou):
    """The box, moved to the right until it overlaps itself by an IoU."""
    x, y, width, height = box
    return [x + width * (1 - iou) / (1 + iou), y, width, height]


CASES = {
    'right': ((CAT, shifted(FIRST, 0.6)), ''),
    'classification': ((DOG, shifted(FIRST, 0.6)), 'classification'),
    'localisation': ((CAT, shifted(FIRST, 0.3)), 'localisation'),
    'at the lower threshold': ((CAT, shifted(FIRST, 0.1001)), 'localisation'),
    'both': ((DOG, shifted(FIRST, 0.3)), 'both'),
    'background': ((CAT, [0, 200, 30, 30]), 'background'),
    'hardly overlaps': ((CAT, shifted(FIRST, 0.09)), 'background'),
    'hardly overlaps another class': ((DOG, shifted(FIRST, 0.09)), 'background'),
}


@pytest.mark.parametrize(('found', 'kind'), CASES.values(), ids=CASES)
def test_the_kind_of_one_detection(found, kind):
    errors = find_errors(truth_of((CAT, FIRST)), results((*found, 0.9)))
    assert [each.kind for each in errors.detections] == [kind]
    # An object that an error of classification or localisation concerns is not missed.
    expected = kind in ('both', 'background')
    assert errors.count('missed') == expected
    assert errors.objects[1].missed == expected


def test_a_second_detection_of_an_object_is_a_duplicate():
    found = results(
        (CAT, shifted(FIRST, 0.9), 0.9), (CAT, FIRST, 0.8), (CAT, shifted(FIRST, 0.3), 0.7)
    )
    errors = find_errors(truth_of((CAT, FIRST)), found)
    assert [each.kind for each in errors.detections] == ['', 'duplicate', 'localisation']
    assert errors.count('missed') == 0


def test_an_object_without_a_detection_is_missed():
    errors = find_errors(truth_of((CAT, FIRST), (CAT, SECOND)), results((CAT, FIRST, 0.9)))
    assert {kind: errors.count(kind) for kind in KINDS if errors.count(kind)} == {'missed': 1}
    # Recall is a half, at 51 of 101 points; with one object to be found it is whole.
    assert errors.average_precision() == pytest.approx(51 / 101)
    assert errors.gain('missed') == pytest.approx(1 - 51 / 101)
    assert errors.gain('false negatives') == errors.gain('missed')
    nothing = find_errors(truth_of((CAT, FIRST)), [])
    assert nothing.average_precision() == 0 and nothing.gain('missed') == 1


def test_fixing_a_class_makes_it_right_in_the_other_class():
    """Once: a second error on the same object is removed, also where its score is higher."""
    found = results((DOG, FIRST, 0.9), (DOG, shifted(FIRST, 0.9), 0.8), (DOG, SECOND, 0.7))
    errors = find_errors(truth_of((CAT, FIRST), (DOG, SECOND)), found)
    assert errors.count('classification') == 2
    # Cats: nothing is found. Dogs: the only right one comes third.
    assert errors.average_precision() == pytest.approx((0 + 1 / 3) / 2)
    assert errors.average_precision(['classification']) == 1


def test_fixing_a_place_keeps_the_score():
    """A false alarm of a higher score still comes first."""
    found = results((CAT, [0, 200, 30, 30], 0.9), (CAT, shifted(FIRST, 0.3), 0.8))
    errors = find_errors(truth_of((CAT, FIRST)), found)
    assert errors.average_precision() == 0
    assert errors.gain('localisation') == pytest.approx(0.5)
    assert errors.average_precision(['localisation', 'background']) == 1
    assert errors.gain('background') == 0  # alone it lets nothing be found
    assert errors.gain('missed') == 0  # what has been found in part is not missed


def test_an_error_on_an_object_that_is_found_is_removed():
    found = results((CAT, shifted(FIRST, 0.3), 0.9), (CAT, FIRST, 0.8))
    errors = find_errors(truth_of((CAT, FIRST)), found)
    assert errors.average_precision() == pytest.approx(0.5)
    for kind in ('localisation', 'false positives'):
        assert errors.average_precision([kind]) == 1


def test_crowds_and_their_detections_do_not_count():
    truth = truth_of((CAT, FIRST), (CAT, [100, 0, 80, 80], dict(iscrowd=1)))
    errors = find_errors(truth, results((CAT, FIRST, 0.9), (CAT, [110, 10, 20, 20], 0.8)))
    assert [each.kind for each in errors.detections] == [''] and len(errors.objects) == 1


def test_sizes_are_those_of_the_objects():
    assert [size_of(each) for each in (1, 1023, 1024, 9215, 9216, 1e9)] == [
        *('small', 'small', 'medium', 'medium', 'large', 'large')
    ]
    small, large = [200, 0, 20, 20], [0, 200, 200, 200]
    truth = truth_of((CAT, FIRST), (CAT, small), (CAT, large))
    errors = find_errors(
        truth,
        results((CAT, FIRST, 0.9), (CAT, shifted(large, 0.3), 0.8), (CAT, [500, 0, 5, 5], 0.7)),
    )
    numbers = errors.numbers()
    assert numbers['count']['localisation'] == dict(all=1, small=0, medium=0, large=1)
    assert numbers['count']['background'] == dict(all=1, small=1, medium=0, large=0)
    assert numbers['count']['missed'] == dict(all=1, small=1, medium=0, large=0)
    assert numbers['objects'] == dict(all=3, small=1, medium=1, large=1)
    assert numbers['AP50_by_size']['medium'] == pytest.approx(100)
    assert numbers['AP50_by_size']['small'] == 0
    gains = numbers['dAP']['localisation']
    assert gains['large'] == gains['all'] > 0 and gains['small'] == gains['medium'] == 0


def drawn(seed, images=12):
    """Objects of two classes, and detections near them, elsewhere and of the other class."""
    random = np.random.default_rng(seed)
    objects, found = [], []
    for image in range(images):
        for _ in range(random.integers(0, 5)):
            box = [*random.uniform(0, 200, 2).tolist(), *random.uniform(10, 150, 2).tolist()]
            kind = int(random.choice([CAT, DOG]))
            objects.append((kind, box, dict(image_id=image)))
            for _ in range(random.integers(0, 4)):
                near = (np.array(box) + random.normal(0, 15, 4)).clip(1).tolist()
                other = int(random.choice([kind, kind, CAT, DOG]))
                found.append(
                    dict(
                        image_id=image,
                        category_id=other,
                        bbox=near,
                        score=round(float(random.uniform()), 1),
                    )
                )
        found.append(
            dict(
                image_id=image,
                category_id=CAT,
                bbox=[300, 300, 20, 20],
                score=float(random.uniform()),
            )
        )
    return truth_of(*objects, images=images), found


@pytest.mark.parametrize('seed', range(5))
def test_ap_is_cocos_and_fixing_all_restores_it(seed):
    truth, found = drawn(seed)
    errors = find_errors(truth, found)
    evaluation = COCOeval(truth.coco, truth.coco.loadRes([dict(each) for each in found]), 'bbox')
    evaluation.params.imgIds, evaluation.params.catIds = truth.images, truth.categories
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval['precision'][0, :, :, 0, -1]
    assert errors.average_precision() == pytest.approx(precision[precision > -1].mean(), abs=1e-12)
    assert errors.average_precision(KINDS) == 1
    assert errors.average_precision(SUMS) == 1
    assert all(errors.gain(kind) >= -1e-12 for kind in (*KINDS, *SUMS))
    assert len(errors.detections) == sum(errors.count(kind) for kind in ('', *KINDS[:-1]))
    assert errors.count('missed') > 0 and errors.count('both') > 0
