"""Several detectors on the same images, side by side, next to the ground truth.

A box is drawn by what became of it: solid for a right one, dashed for a wrong one, dotted for an
object that was missed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from mmdet.structures.bbox import bbox_overlaps
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.model import BaseModel
from PIL import Image

IOU = 0.5  # of a right box with its object, as for F1

RIGHT, WRONG, MISSED, TRUTH = '#35d07f', '#ff4d4d', '#ffd23f', '#ffffff'


@dataclass
class Boxes:
    """The boxes of one image.

    Attributes:
        boxes: ``(n, 4)``, x1 y1 x2 y2, in px of the original image.
        labels: ``(n,)``, indices into the class names.
        scores: ``(n,)``, or ``None`` for ground truth.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, threshold: float) -> Boxes:
        """Those whose score is at least ``threshold``, the best first.

        Args:
            threshold: In 0..1.
        """
        assert self.scores is not None
        keep = np.flatnonzero(self.scores >= threshold)
        return self._only(keep[np.argsort(-self.scores[keep], kind='stable')])

    def distinct(self) -> Boxes:
        """Of boxes that overlap at an IoU of 0.5 or more, whatever their classes, the first one."""
        keep: list[int] = []
        overlaps = _overlaps(self.boxes, self.boxes)
        for i in range(len(self)):
            if not keep or overlaps[i, keep].max() < IOU:
                keep.append(i)
        return self._only(np.array(keep, dtype=int))

    def _only(self, keep: np.ndarray) -> Boxes:
        scores = None if self.scores is None else self.scores[keep]
        return Boxes(self.boxes[keep], self.labels[keep], scores)


@dataclass
class Column:
    """What one detector found.

    Attributes:
        title: Stands above the column.
        found: One per image, in the order of the images.
    """

    title: str
    found: list[Boxes] = field(default_factory=list)


def compare(
    detectors: dict[str, BaseModel],
    dataset: BaseDataset,
    out_file: str | os.PathLike[str],
    indices: Sequence[int] | None = None,
    thresholds: dict[str, float] | None = None,
) -> None:
    """Run detectors on some images of a dataset and draw what they find.

    A detector may report one object as several classes. All of that counts in the metrics, but a
    figure of it cannot be read: of boxes that overlap, only the top-scoring one is drawn.

    Args:
        detectors: By title, in evaluation mode; all have the dataset's classes.
        dataset: Of the test data loader: its pipeline loads the annotations too or not, no matter.
        out_file: A PNG file; its folder is made.
        indices: Which images; by default :func:`spread`.
        thresholds: The least score of a drawn box, by title; 0.5 where there is none.
    """
    indices = spread(dataset) if indices is None else indices
    thresholds = thresholds or {}
    truths = [ground_truth(dataset, i) for i in indices]
    columns = [
        Column(
            title,
            [
                predict(model, dataset, i).above(thresholds.get(title, 0.5)).distinct()
                for i in indices
            ],
        )
        for title, model in detectors.items()
    ]
    images = [read_image(dataset, i) for i in indices]
    draw_comparison(images, truths, columns, dataset.metainfo['classes'], out_file)


def spread(dataset: BaseDataset, count: int = 4, objects: int = 3) -> list[int]:
    """Images from beginning to end of a dataset that hold some objects; nothing else picks them.

    Args:
        dataset: Any detection dataset.
        count: How many images.
        objects: How many objects each has at least, if there are such images.
    """
    every = range(len(dataset))
    full = [i for i in every if len(ground_truth(dataset, i)) >= objects] or list(every)
    count = min(count, len(full))
    return [full[(2 * i + 1) * len(full) // (2 * count)] for i in range(count)]


def ground_truth(dataset: BaseDataset, index: int) -> Boxes:
    """The annotations of one image, without those to be ignored.

    Args:
        dataset: Any detection dataset.
        index: Which image.
    """
    instances = [
        instance
        for instance in dataset.get_data_info(index)['instances']
        if not instance.get('ignore_flag')
    ]
    return Boxes(
        np.array([instance['bbox'] for instance in instances], dtype=float).reshape(-1, 4),
        np.array([instance['bbox_label'] for instance in instances], dtype=int),
    )


def read_image(dataset: BaseDataset, index: int) -> np.ndarray:
    """The original image, RGB, ``(H, W, 3)``.

    Args:
        dataset: Any detection dataset.
        index: Which image.
    """
    path = dataset.get_data_info(index)['img_path']
    return cv2.cvtColor(cv2.imread(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@torch.no_grad()
def predict(model: BaseModel, dataset: BaseDataset, index: int) -> Boxes:
    """What a detector finds in one image, at any score.

    Args:
        model: In evaluation mode.
        dataset: With the pipeline of the test data loader.
        index: Which image.
    """
    found = model.test_step(pseudo_collate([dataset[index]]))[0].pred_instances.cpu()
    return Boxes(found.bboxes.numpy(), found.labels.numpy(), found.scores.numpy())


def judge(found: Boxes, truth: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes are right and which objects were found.

    From the best score down, a box takes the object of its class that it overlaps most among those
    left; it is right if their IoU is at least 0.5.

    Args:
        found: Best first.
        truth: The objects.

    Returns:
        ``right`` of shape ``(len(found),)`` and ``hit`` of shape ``(len(truth),)``, both bool.
    """
    right = np.zeros(len(found), dtype=bool)
    hit = np.zeros(len(truth), dtype=bool)
    overlaps = _overlaps(found.boxes, truth.boxes)
    for i in range(len(found)):
        free = np.where((truth.labels == found.labels[i]) & ~hit, overlaps[i], 0)
        if free.size and free.max() >= IOU:
            right[i] = hit[free.argmax()] = True
    return right, hit


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of every box of ``(n, 4)`` with every one of ``(m, 4)``."""
    pair = (torch.from_numpy(np.asarray(boxes, dtype=np.float32)) for boxes in (first, second))
    return bbox_overlaps(*pair).numpy()


def draw_comparison(
    images: Sequence[np.ndarray],
    truths: Sequence[Boxes],
    columns: Sequence[Column],
    classes: Sequence[str],
    out_file: str | os.PathLike[str],
) -> None:
    """Draw a row per image: the ground truth, then each column.

    Args:
        images: RGB, ``(H, W, 3)`` ``uint8``, of any sizes.
        truths: One per image.
        columns: The detectors.
        classes: Class names.
        out_file: A PNG file; its folder is made.
    """
    width = 3.1  # inches of a cell
    heights = [min(width * image.shape[0] / image.shape[1], 1.3 * width) for image in images]
    gap, top, bottom = 0.34, 0.5, 0.42
    total_width = width * (1 + len(columns)) + 0.12 * (2 + len(columns))
    total_height = sum(heights) + gap * len(images) + top + bottom
    figure = Figure(figsize=(total_width, total_height), facecolor='white')
    canvas = FigureCanvasAgg(figure)

    upper = total_height - top
    for row, (image, truth) in enumerate(zip(images, truths, strict=True)):
        upper -= heights[row]
        for column in range(1 + len(columns)):
            left = 0.12 + column * (width + 0.12)
            axes = figure.add_axes(
                (
                    left / total_width,
                    upper / total_height,
                    width / total_width,
                    heights[row] / total_height,
                )
            )
            axes.imshow(image, interpolation='bilinear')
            axes.set_axis_off()
            if column == 0:
                for box, label in zip(truth.boxes, truth.labels, strict=True):
                    _box(axes, image, box, TRUTH, '-', classes[label])
                caption = f'{len(truth)} objects'
            else:
                caption = _draw_found(axes, image, columns[column - 1].found[row], truth, classes)
            axes.text(
                0.5,
                -0.02,
                caption,
                transform=axes.transAxes,
                ha='center',
                va='top',
                fontsize=9,
                color='#444444',
            )
            if row == 0:
                title = 'ground truth' if column == 0 else columns[column - 1].title
                figure.text(
                    (left + width / 2) / total_width,
                    1 - 0.28 / total_height,
                    title,
                    ha='center',
                    va='center',
                    fontsize=13,
                    fontweight='bold',
                )
        upper -= gap
    key = [
        Line2D([], [], color=RIGHT, linestyle='-', linewidth=2, label='right'),
        Line2D([], [], color=WRONG, linestyle='--', linewidth=2, label='wrong'),
        Line2D([], [], color='#d9a400', linestyle=':', linewidth=2, label='missed'),
    ]
    figure.legend(handles=key, loc='lower center', ncols=3, frameon=False, fontsize=11)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(100)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')
    # 256 colours, chosen on every third pixel: a quarter of the bytes, and hardly a difference.
    sample = picture.resize((picture.width // 3, picture.height // 3), Image.Resampling.NEAREST)
    palette = sample.quantize(256, kmeans=1)
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(out_file, optimize=True)


def _draw_found(
    axes: Axes, image: np.ndarray, found: Boxes, truth: Boxes, classes: Sequence[str]
) -> str:
    right, hit = judge(found, truth)
    for box in truth.boxes[~hit]:
        _box(axes, image, box, MISSED, ':')
    assert found.scores is not None
    for i in np.argsort(right, kind='stable'):  # right ones on top
        text = f'{classes[found.labels[i]]} {found.scores[i]:.2f}'
        colour, line = (RIGHT, '-') if right[i] else (WRONG, '--')
        _box(axes, image, found.boxes[i], colour, line, text)
    return f'{right.sum()} right · {(~right).sum()} wrong · {(~hit).sum()} missed'


def _box(
    axes: Axes, image: np.ndarray, box: np.ndarray, colour: str, line: str, text: str = ''
) -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(
        Rectangle(
            (x1 - 0.5, y1 - 0.5),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=colour,
            linewidth=1.9,
            linestyle=line,
        )
    )
    if not text:
        return
    # Above the box, or inside it where the image ends; never across the right edge.
    at_right = x1 > 0.6 * image.shape[1]
    axes.text(
        x2 - 0.5 if at_right else x1 - 0.5,
        y1 - 1 if y1 > 0.07 * image.shape[0] else y1 + 0.5,
        text,
        ha='right' if at_right else 'left',
        va='bottom' if y1 > 0.07 * image.shape[0] else 'top',
        fontsize=7.5,
        color='#101010',
        bbox=dict(facecolor=colour, edgecolor='none', pad=1, alpha=0.85),
        clip_on=True,
    )
