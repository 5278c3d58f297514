"""Draw the ground truth and several detectors on the same images, side by side.

The outline of a box is solid if the box is right, dashed if it is wrong, and dotted for an object that was
missed. The colour of its label shows its class and is the same in every panel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from .boxes import Boxes, match_boxes

RIGHT, WRONG, MISSED, TRUTH = '#35d07f', '#ff4d4d', '#ffd23f', '#ffffff'
# Pale colours: black text is readable on them, and they differ from the colours of outlines.
PALETTES = ('Pastel1', 'Set3', 'Pastel2')
DPI = 110
WIDTH, GAP, MARGIN = 3.4, 0.12, 0.12  # inches: of a panel, between panels, at the edges
TALLEST = 1.3  # height of a panel over its width
HEAD, NOTE, CAPTION, KEY = (
    0.4,
    0.18,
    0.3,
    0.4,
)  # inches: titles, below them, below images, at the bottom


@dataclass
class Column:
    """One column of a figure: the detections of one detector.

    Attributes:
        title: Text above the column.
        found: Detections per image, in the order of the images, highest score first.
        note: Text below the title.

    Examples:
        >>> import numpy as np
        >>> from mmkd.visualization import Boxes, Column, as_image, draw_panels
        >>> image = np.zeros((80, 120, 3), np.uint8)
        >>> truth = Boxes(np.array([[10, 10, 60, 60.0]]), labels=np.array([0]))
        >>> found = Boxes(np.array([[12, 10, 60, 62.0]]), labels=np.array([0]), scores=np.array([0.9]))
        >>> figure = draw_panels([image], [truth], [Column('student', [found])], classes=['cat'])
        >>> len(figure.axes), as_image(figure).shape[2]  # ground truth and student; RGB
        (2, 3)
    """

    title: str
    found: list[Boxes] = field(default_factory=list)
    note: str = ''


def class_colours() -> list[Any]:
    """Colours of classes; a class has the colour at its label modulo the number of colours."""
    colours = [c for name in PALETTES for c in matplotlib.colormaps[name].colors]  # type: ignore[attr-defined]
    return list(dict.fromkeys(colours))


def draw_panels(
    images: Sequence[np.ndarray],
    truths: Sequence[Boxes],
    columns: Sequence[Column],
    classes: Sequence[str],
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw one row per image: the ground truth, then each column.

    Args:
        images: RGB, ``(H, W, 3)`` ``uint8``, of any sizes.
        truths: Ground truth per image.
        columns: One per detector.
        classes: Class names.
        names: Image names for the captions.
    """
    heights = [WIDTH * min(image.shape[0] / image.shape[1], TALLEST) for image in images]
    across = 1 + len(columns)
    width = across * WIDTH + (across - 1) * GAP + 2 * MARGIN
    head = HEAD + (NOTE if any(column.note for column in columns) else 0)
    height = head + sum(heights) + CAPTION * len(images) + KEY
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor='white')
    FigureCanvasAgg(figure)
    lefts = [MARGIN + column * (WIDTH + GAP) for column in range(across)]
    titles = [Column('ground truth'), *columns]
    for left, column in zip(lefts, titles, strict=True):
        middle = (left + WIDTH / 2) / width
        _title(figure, column, middle, height)
    upper = height - head
    for row, (image, truth) in enumerate(zip(images, truths, strict=True)):
        upper -= heights[row]
        for number, left in enumerate(lefts):
            area = (left / width, upper / height, WIDTH / width, heights[row] / height)
            panel = _Panel(figure.add_axes(area), image, classes)
            if number == 0:
                panel.draw_truth(truth)
                caption = f'{len(truth)} object{"" if len(truth) == 1 else "s"}'
                caption = f'{names[row]} · {caption}' if names else caption
            else:
                caption = panel.draw_found(columns[number - 1].found[row], truth)
            panel.caption(caption)
        upper -= CAPTION
    key = [
        Line2D([], [], color=RIGHT, linestyle='-', linewidth=2, label='right'),
        Line2D([], [], color=WRONG, linestyle='--', linewidth=2, label='wrong'),
        Line2D([], [], color='#d9a400', linestyle=':', linewidth=2, label='missed'),
    ]
    figure.legend(handles=key, loc='lower center', ncols=3, frameon=False, fontsize=10)
    return figure


def _title(figure: Figure, column: Column, middle: float, height: float) -> None:
    title = figure.text(
        middle, 1 - 0.2 / height, column.title, ha='center', va='center', fontsize=13, weight='bold'
    )
    wide = title.get_window_extent().width / (WIDTH * DPI)
    if wide > 1:
        title.set_fontsize(12.5 / wide)
    figure.text(
        middle,
        1 - 0.42 / height,
        column.note,
        ha='center',
        va='center',
        fontsize=9,
        color='#444444',
    )


class _Panel:
    """An image with boxes; labels are placed so that they overlap as little as possible."""

    def __init__(self, axes: Axes, image: np.ndarray, classes: Sequence[str]) -> None:
        self.axes, self.classes = axes, classes
        self.size = image.shape[1], image.shape[0]
        self.labels: list[Bbox] = []  # in px of the image
        axes.imshow(image, interpolation='bilinear')
        axes.set_axis_off()
        axes.apply_aspect()  # labels are measured before anything is drawn

    def draw_truth(self, truth: Boxes) -> None:
        for box in truth.boxes:
            self._outline(box, TRUTH, '-')
        for box, label in zip(truth.boxes, truth.labels, strict=True):
            self._label(box, int(label), self.classes[label])

    def draw_found(self, found: Boxes, truth: Boxes) -> str:
        """Draw the detections and the missed objects; returns the caption."""
        matches = match_boxes(found, truth)
        for box in truth.boxes[~matches.hit]:
            self._outline(box, MISSED, ':')
        assert found.scores is not None
        shown = [*np.flatnonzero(matches.wrong), *np.flatnonzero(matches.right)]
        for i in shown:  # right ones on top
            colour, line = (RIGHT, '-') if matches.right[i] else (WRONG, '--')
            self._outline(found.boxes[i], colour, line)
        for i in reversed(shown):  # right boxes place their labels first
            text = f'{self.classes[found.labels[i]]} {found.scores[i]:.2f}'
            self._label(found.boxes[i], int(found.labels[i]), text)
        return str(matches)

    def caption(self, text: str) -> None:
        self.axes.annotate(
            text,
            (0.5, 0),
            xytext=(0, -3),
            xycoords='axes fraction',
            textcoords='offset points',
            ha='center',
            va='top',
            fontsize=9,
            color='#444444',
        )

    def _outline(self, box: np.ndarray, colour: str, line: str) -> None:
        x1, y1, x2, y2 = box
        corner = (x1 - 0.5, y1 - 0.5)
        self.axes.add_patch(
            Rectangle(
                corner,
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor=colour,
                linewidth=1.9,
                linestyle=line,
                path_effects=[withStroke(linewidth=3, foreground='#404040', alpha=0.6)],
            )
        )

    def _label(self, box: np.ndarray, label: int, text: str) -> None:
        colours = class_colours()
        drawn = self.axes.text(
            0,
            0,
            text,
            ha='left',
            va='top',
            fontsize=7.5,
            color='#101010',
            bbox=dict(facecolor=colours[label % len(colours)], edgecolor='none', pad=1),
        )
        # The background of the label, which is wider than its text, in px of the image.
        canvas = self.axes.get_figure(root=True).canvas  # type: ignore[union-attr]
        assert isinstance(canvas, FigureCanvasAgg)
        drawn.update_bbox_position_size(canvas.get_renderer())
        background = drawn.get_bbox_patch()
        assert background is not None
        extent = background.get_window_extent().transformed(self.axes.transData.inverted())
        area = self._free_area(box, abs(extent.width), abs(extent.height))
        self.labels.append(area)
        drawn.set_position((area.x0 - extent.xmin, area.y0 - extent.ymin))

    def _free_area(self, box: np.ndarray, wide: float, high: float) -> Bbox:
        """The area at a corner of a box, first outside, where a label overlaps least with other labels."""
        x1, y1, x2, y2 = box - 0.5
        corners = [
            (x, y)
            for y in (y1 - high, y2, y1, y2 - high)
            for x in (x1, x2 - wide, (x1 + x2 - wide) / 2)
        ]
        areas = []
        for x, y in corners:
            x = min(max(x, -0.5), self.size[0] - 0.5 - wide)
            y = min(max(y, -0.5), self.size[1] - 0.5 - high)
            areas.append(Bbox.from_bounds(x, y, wide, high))
        return min(areas, key=lambda area: sum(_intersection(area, other) for other in self.labels))


def _intersection(first: Bbox, second: Bbox) -> float:
    """The area of the intersection of two boxes, px²."""
    width = min(first.x1, second.x1) - max(first.x0, second.x0)
    height = min(first.y1, second.y1) - max(first.y0, second.y0)
    return max(width, 0) * max(height, 0)


def as_image(figure: Figure) -> np.ndarray:
    """Render a figure to an RGB image, ``(H, W, 3)`` ``uint8``."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
