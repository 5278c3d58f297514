"""mmkd/cache/views.py: boxes follow what mmdet's own transforms do to an image."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes

from mmkd.cache.pipeline import META_KEYS
from mmkd.cache.views import View, ViewTransform, image_key
from mmkd.errors import ConfigError

BOXES = torch.tensor(
    [
        [0.0, 0.0, 200.0, 120.0],  # the whole image
        [10.0, 20.0, 50.0, 60.0],
        [150.0, 2.0, 199.0, 30.0],
        [90.5, 50.25, 97.75, 118.0],
        [0.0, 100.0, 30.0, 120.0],
    ]
)
RESIZE = dict(type='Resize', scale=(150, 100), keep_ratio=True)
CASES = dict(
    nothing=[],
    resize=[RESIZE],
    stretch=[dict(type='Resize', scale=(333, 77), keep_ratio=False)],
    enlarge=[dict(type='Resize', scale_factor=1.37)],
    fixed=[dict(type='FixShapeResize', width=160, height=90, keep_ratio=False)],
    shortest_edge=[dict(type='ResizeShortestEdge', scale=91, max_size=140)],
    fix_scale=[dict(type='FixScaleResize', scale=(150, 100), keep_ratio=True)],
    random_resize=[
        dict(type='RandomResize', scale=(200, 120), ratio_range=(0.3, 2), keep_ratio=True)
    ],
    choice=[dict(type='RandomChoiceResize', scales=[(80, 60), (300, 200)], keep_ratio=True)],
    horizontal=[dict(type='RandomFlip', prob=1.0, direction='horizontal')],
    vertical=[dict(type='RandomFlip', prob=1.0, direction='vertical')],
    diagonal=[dict(type='RandomFlip', prob=1.0, direction='diagonal')],
    crop=[dict(type='RandomCrop', crop_size=(70, 110), allow_negative_crop=True)],
    relative_crop=[
        dict(
            type='RandomCrop',
            crop_size=(0.4, 0.9),
            crop_type='relative_range',
            allow_negative_crop=True,
        )
    ],
    translate=[dict(type='TranslateX', prob=1.0, level=5)],
    pad=[RESIZE, dict(type='Pad', size_divisor=32)],
    detr=[
        dict(type='RandomFlip', prob=0.5),
        dict(type='RandomChoiceResize', scales=[(160, 96), (300, 180)], keep_ratio=True),
        dict(
            type='RandomCrop',
            crop_type='absolute_range',
            crop_size=(48, 80),
            allow_negative_crop=True,
        ),
        dict(type='RandomChoiceResize', scales=[(120, 90), (260, 170)], keep_ratio=True),
    ],
    everything=[
        dict(type='Resize', scale=(177, 140), keep_ratio=False),
        dict(type='RandomFlip', prob=1.0, direction='diagonal'),
        dict(type='RandomCrop', crop_size=(90, 101), allow_negative_crop=True),
        dict(type='RandomFlip', prob=1.0),
        dict(type='Resize', scale=(83, 211), keep_ratio=True),
    ],
)
OLD = dict(
    as_the_file=[],
    as_tested=[RESIZE],
    padded=[RESIZE, dict(type='Pad', pad_to_square=True)],
    flipped=[dict(type='RandomFlip', prob=1.0, direction='vertical')],
)


def shown(transforms: list[dict], boxes: torch.Tensor = BOXES, seed: int = 0) -> DetDataSample:
    """An image of 200 x 120 pixels with boxes, after mmdet's own transforms."""
    random.seed(seed)
    np.random.seed(seed)
    pack = dict(type='PackDetInputs', meta_keys=('img_shape', *META_KEYS))
    results = dict(
        img=np.zeros((120, 200, 3), dtype=np.uint8),
        img_shape=(120, 200),
        ori_shape=(120, 200),
        img_id=7,
        gt_bboxes=HorizontalBoxes(boxes.clone()),
        gt_bboxes_labels=np.arange(len(boxes)),
        gt_ignore_flags=np.zeros(len(boxes), dtype=bool),
    )
    return Compose([TRANSFORMS.build(each) for each in [*transforms, pack]])(results)[
        'data_samples'
    ]


@pytest.mark.parametrize('old', OLD.values(), ids=OLD)
@pytest.mark.parametrize('new', CASES.values(), ids=CASES)
def test_boxes_come_to_where_mmdet_puts_them(old, new):
    for seed in range(3):
        before, after = shown(old), shown(new, seed=seed)
        transform = ViewTransform.between([View.from_sample(before)], [View.from_sample(after)])
        moved, share = transform.boxes(before.gt_instances.bboxes.tensor[None])
        labels = after.gt_instances.labels
        wanted = after.gt_instances.bboxes.tensor
        torch.testing.assert_close(moved[0, labels], wanted, atol=2e-3, rtol=1e-5)
        gone = torch.ones(len(BOXES), dtype=torch.bool)
        gone[labels] = False  # mmdet drops what leaves the view
        assert (share[0, gone] == 0).all()
        assert (share[0, labels] > 0).all()
        width, height = (after.img_shape[1], after.img_shape[0])
        areas = (wanted[:, 2:] - wanted[:, :2]).prod(-1)
        scale = np.abs(np.diag(after.homography_matrix if new else np.eye(3)))[:2].prod()
        whole = (BOXES[labels, 2:] - BOXES[labels, :2]).prod(-1) * float(scale)
        torch.testing.assert_close(share[0, labels], areas / whole, atol=1e-3, rtol=1e-3)
        assert transform.size.tolist() == [[width, height]]
        # Rows that each belong to an image are brought likewise.
        rows = transform.rows(torch.zeros(len(BOXES), dtype=torch.long))
        torch.testing.assert_close(
            rows.boxes(before.gt_instances.bboxes.tensor)[0], moved[0], atol=0, rtol=0
        )


def test_the_same_view_is_told():
    views = [View.from_sample(shown(each)) for each in OLD.values()]
    assert ViewTransform.between(views, views).is_identity
    for name in ('horizontal', 'crop', 'resize'):
        others = [*views[:-1], View.from_sample(shown(CASES[name]))]
        assert not ViewTransform.between(views, others).is_identity
    # An image shown twice, once from each side.
    flips = CASES['horizontal'] * 2
    assert ViewTransform.between(views[:1], [View.from_sample(shown(flips))]).is_identity


def test_a_batch_brings_each_image_its_own_way():
    names = ['crop', 'vertical', 'everything']
    old = [View.from_sample(shown([]))] * 3
    new = [View.from_sample(shown(CASES[name])) for name in names]
    together = ViewTransform.between(old, new)
    boxes = torch.stack([BOXES] * 3)
    for index, view in enumerate(new):
        alone = ViewTransform.between(old[:1], [view])
        for a, b in zip(together.boxes(boxes), alone.boxes(BOXES[None]), strict=True):
            assert torch.equal(a[index], b[0])
    # With further dimensions, as decoder layers have them.
    layers = boxes[:, None].expand(-1, 2, -1, -1)
    assert torch.equal(together.boxes(layers)[0][:, 1], together.boxes(boxes)[0])


def test_boxes_are_cut_only_where_the_view_cuts_the_image():
    """A detector's boxes may reach over the edge of the image: those of its teacher may, too."""
    over = torch.tensor([[[-8.0, -4.0, 210.0, 130.0]]])
    whole = View((1.0, 1.0), (0.0, 0.0), (200.0, 120.0))
    left = View((1.0, 1.0), (0.0, 0.0), (150.0, 120.0))  # what it cuts off is on the right
    assert ViewTransform.between([whole], [left]).boxes(over)[0].tolist() == [[[-8, -4, 150, 130]]]
    middle = View((2.0, 1.0), (-40.0, -10.0), (200.0, 100.0))
    assert ViewTransform.between([whole], [middle]).boxes(over)[0].tolist() == [[[0, 0, 200, 100]]]
    flipped = View((-1.0, 1.0), (150.0, 0.0), (150.0, 120.0))  # of the same part, from behind
    assert ViewTransform.between([whole], [flipped]).boxes(over)[0].tolist() == [
        [[0, -4, 158, 130]]
    ]
    # Resizing rounds to pixels, which cuts nothing.
    rounded = View((0.333, 0.333), (0.0, 0.0), (66.0, 40.0))
    assert ViewTransform.between([whole], [rounded]).boxes(over)[0][0, 0, 2] > 69


def test_boxes_without_extent_are_in_or_out():
    boxes = torch.tensor([[[20.0, 20, 20, 20], [180, 20, 180, 60], [20, 20, 60, 20.0]]])
    whole, left = View((1, 1), (0, 0), (200, 120)), View((1, 1), (0, 0), (100, 120))
    for old, new, wanted in ((whole, left, [1, 0, 1]), (whole, whole, [1, 1, 1])):
        moved, share = ViewTransform.between([old], [new]).boxes(boxes)
        assert share.tolist() == [wanted]
        assert torch.isfinite(moved).all()


def test_what_turns_images_is_refused():
    for transform in (
        dict(type='Rotate', prob=1.0, level=3),
        dict(type='ShearX', prob=1.0, level=3),
        dict(type='ShearY', prob=1.0, level=3),
    ):
        with pytest.raises(ConfigError, match='image 7 was rotated, sheared or warped'):
            View.from_sample(shown([transform]))
    matrix = np.eye(3)
    matrix[2, 0] = 0.01
    sample = DetDataSample(metainfo=dict(img_shape=(2, 2), img_id=7, homography_matrix=matrix))
    with pytest.raises(ConfigError, match='warped'):
        View.from_sample(sample)
    # A quarter turn has no straight part at all.
    sample.set_metainfo(dict(homography_matrix=np.array([[0.0, -1, 5], [1, 0, 0], [0, 0, 1]])))
    with pytest.raises(ConfigError, match='rotated'):
        View.from_sample(sample)


def test_a_view_that_was_not_recorded_is_refused():
    for changes in (dict(ori_shape=(60, 100)), dict(flip=True)):
        meta = dict(dict(img_shape=(120, 200), ori_shape=(120, 200), img_id=7), **changes)
        with pytest.raises(ConfigError, match="add 'homography_matrix' to meta_keys"):
            View.from_sample(DetDataSample(metainfo=meta))
    meta = dict(img_shape=(120, 200), ori_shape=(120, 200), flip=False)
    assert View.from_sample(DetDataSample(metainfo=meta)).size == (200, 120)


def test_numbers_and_pixels():
    view = View.from_sample(shown(CASES['everything']))
    again = View.from_values(view.values().tolist())
    assert again == view
    twice = view.scaled((2.0, 2.0))
    assert twice.size == tuple(2 * length for length in view.size)
    point = torch.tensor([[[30.0, 40.0]]])
    file = View((1, 1), (0, 0), (200, 120))
    torch.testing.assert_close(
        ViewTransform.between([file], [twice]).points(point),
        2 * ViewTransform.between([file], [view]).points(point),
    )
    assert math.isclose(twice.scale[0], 2 * view.scale[0])


def test_what_an_image_is_called():
    def called(**meta) -> str:
        return image_key(DetDataSample(metainfo=meta))

    assert called(img_id=3, img_path='a/b/c.jpg') == '3 c.jpg'
    assert called(img_id='2008_01', img_path=None) == called(img_id='2008_01') == '2008_01'
    with pytest.raises(ConfigError, match="add 'img_id' to meta_keys"):
        called(img_path='c.jpg')
