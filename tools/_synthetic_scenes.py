"""The data set of the demo: synthetic images from a seed, as JPEG files with COCO annotations.

A class is a shape *and* a texture, such as ``striped disc``, ``plain disc`` and ``striped box``. Colours are
random. Dotted shapes and triangles are distractors without annotation. Objects overlap and vary in size,
rotation, light and sharpness. A detector needs both outline and texture, so a small network is less accurate
than a larger one.

Outlines are formulas evaluated with numpy, so boxes do not depend on a drawing library. Pillow only encodes
the JPEG files.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from mmkd.errors import ConfigError

SHAPES = ('disc', 'box', 'star')
TEXTURES = ('plain', 'striped')
CLASSES = tuple(f'{texture} {shape}' for shape in SHAPES for texture in TEXTURES)
SPLITS = ('train', 'val')

# Version of the generator; increased when the same settings result in other images, to regenerate old data.
DRAWING = 1

SETTINGS_FILE = 'settings.json'
_SIDES = (160, 128)  # px; multiples of 32, so a batch of one orientation needs no padding
_OBJECTS = (5, 9)  # per scene, both ends included
_DISTRACTORS = (0, 2)
_RADIUS = (9.0, 24.0)  # px; half the object's mean side
_TURN = 0.6  # radians to either side
_MIN_VISIBLE = 0.45  # of an object's pixels; with fewer, even a person cannot classify it
_JPEG_QUALITY = (70, 95)


@dataclass(frozen=True)
class SceneSettings:
    """Settings of a data set; equal settings result in equal data sets.

    Args:
        train: Number of training images.
        val: Number of validation images.
        seed: Seed of the generator. Each image has its own random stream, so a larger data set starts with
            the images of a smaller one.

    Raises:
        ConfigError: A split has no images, or the seed is negative.
    """

    train: int = 800
    val: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for split in SPLITS:
            if getattr(self, split) < 1:
                raise ConfigError(f'{split}: must be at least 1, got {getattr(self, split)}')
        if self.seed < 0:
            raise ConfigError(f'--seed: must be at least 0, got {self.seed}')


def prepare_scenes(
    root: str | os.PathLike[str],
    settings: SceneSettings | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> bool:
    """Generate the data set in ``root``, unless the same data set exists there.

    ``root`` then contains ``train/*.jpg``, ``val/*.jpg``, ``annotations/{train,val}.json`` (COCO) and
    ``settings.json``. Everything is written to a temporary folder next to ``root`` and renamed at the end, so
    an interrupt leaves either the old data set or none.

    Args:
        root: The folder of the data set.
        settings: Settings of the data set.
        on_image: Called as ``on_image(done, total)`` after each image.

    Returns:
        Whether the data set was generated; ``False`` if it existed.

    Raises:
        ConfigError: ``root`` contains other files than such a data set.
    """
    settings = settings or SceneSettings()
    root = Path(root)
    if is_complete(root, settings):
        return False
    if root.exists() and any(root.iterdir()) and not (root / SETTINGS_FILE).is_file():
        raise ConfigError(
            f'{root}: must be empty or a data set of the demo, but contains other files; name another '
            f'folder, or delete it first'
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{root.name}-', dir=root.parent))
    unfinished = temporary / 'new'
    try:
        unfinished.mkdir()
        total, done = settings.train + settings.val, 0
        for split in SPLITS:
            for _ in _write_split(unfinished, split, settings):
                done += 1
                if on_image is not None:
                    on_image(done, total)
        _write_json(unfinished / SETTINGS_FILE, _marker(settings))
        if root.exists():
            root.rename(temporary / 'old')
        unfinished.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def is_complete(root: str | os.PathLike[str], settings: SceneSettings) -> bool:
    """Whether ``root`` contains the complete data set of these settings."""
    root = Path(root)
    try:
        marker = json.loads((root / SETTINGS_FILE).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return marker == _marker(settings) and all(
        (root / 'annotations' / f'{split}.json').is_file()
        and len(list((root / split).glob('*.jpg'))) == getattr(settings, split)
        for split in SPLITS
    )


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """Generate one image.

    Args:
        rng: The random generator for all choices.

    Returns:
        The image, RGB ``uint8`` of shape ``(H, W, 3)``, and one dict per object: ``category`` (an index into
        :data:`CLASSES`), ``bbox`` (``[x, y, w, h]`` in px, around the visible pixels), ``area`` (visible
        pixels) and ``visible`` (visible fraction of the object).
    """
    width, height = _SIDES if rng.random() < 0.5 else _SIDES[::-1]
    image = _background(rng, height, width)
    kinds = ['object'] * rng.integers(_OBJECTS[0], _OBJECTS[1] + 1)
    kinds += ['distractor'] * rng.integers(_DISTRACTORS[0], _DISTRACTORS[1] + 1)
    rng.shuffle(kinds)

    placed: list[_Placed] = []
    for kind in kinds:
        for _ in range(12):  # try positions until no earlier object is covered too much
            thing = _thing(rng, kind == 'object', height, width)
            if thing.solid.sum() >= _MIN_VISIBLE * thing.size and all(
                (other.mask & ~thing.solid_in(other.mask.shape)).sum() >= _MIN_VISIBLE * other.size
                for other in placed
            ):
                break
        else:
            continue
        solid = thing.solid_in((height, width))
        for other in placed:
            other.mask &= ~solid
        placed.append(_Placed(thing.category, thing.size, solid))
        thing.paint(image)

    objects = []
    for thing in placed:
        if thing.category is None:
            continue
        rows = np.flatnonzero(thing.mask.any(axis=1))
        columns = np.flatnonzero(thing.mask.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        area = int(thing.mask.sum())
        objects.append(
            {
                'category': thing.category,
                'bbox': [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                'area': area,
                'visible': round(min(area / thing.size, 1.0), 3),
            }
        )
    return _photograph(rng, image), objects


def _marker(settings: SceneSettings) -> dict:
    return {'drawing': DRAWING, 'classes': list(CLASSES), **asdict(settings)}


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1), encoding='utf-8')


def _write_split(root: Path, split: str, settings: SceneSettings) -> Iterator[None]:
    """Write one split; yields after each image."""
    (root / split).mkdir()
    (root / 'annotations').mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(getattr(settings, split)):
        rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
        pixels, objects = draw_scene(rng)
        name = f'{index:06d}.jpg'
        quality = int(rng.integers(_JPEG_QUALITY[0], _JPEG_QUALITY[1] + 1))
        Image.fromarray(pixels).save(root / split / name, quality=quality)
        images.append(
            {
                'id': index + 1,
                'file_name': name,
                'width': pixels.shape[1],
                'height': pixels.shape[0],
            }
        )
        for thing in objects:
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': index + 1,
                    'category_id': thing['category'] + 1,
                    'bbox': thing['bbox'],
                    'area': thing['area'],
                    'iscrowd': 0,
                    'visible': thing['visible'],
                }
            )
        yield
    _write_json(
        root / 'annotations' / f'{split}.json',
        {
            'info': {'description': f'synthetic images, {split}', **asdict(settings)},
            'licenses': [],
            'images': images,
            'annotations': annotations,
            'categories': [{'id': i + 1, 'name': name} for i, name in enumerate(CLASSES)],
        },
    )


# ---------------------------------------------------------------------------------- one object


@dataclass
class _Placed:
    """An object or distractor in the image, as needed for annotations."""

    category: int | None
    size: float  # number of pixels, including covered ones and those beyond the edge of the image
    mask: np.ndarray  # (H, W) bool, the visible pixels


@dataclass
class _Thing:
    """An object or distractor, drawn inside ``window`` of the image."""

    category: int | None  # None for a distractor
    size: float
    window: tuple[slice, slice]
    alpha: np.ndarray  # (h, w), coverage in 0..1
    shadow: np.ndarray  # (h, w), fraction of light removed by the shadow
    colour: np.ndarray  # (h, w, 3), 0..255

    @property
    def solid(self) -> np.ndarray:
        return self.alpha > 0.5

    def solid_in(self, shape: tuple[int, ...]) -> np.ndarray:
        mask = np.zeros(shape, dtype=bool)
        mask[self.window] = self.solid
        return mask

    def paint(self, image: np.ndarray) -> None:
        part = image[self.window]
        part *= 1 - self.shadow[..., None]
        part += (self.colour - part) * self.alpha[..., None]


def _thing(rng: np.random.Generator, is_object: bool, height: int, width: int) -> _Thing:
    """An object or distractor with random appearance at a random position."""
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    shape = SHAPES[rng.integers(len(SHAPES))]
    category: int | None = CLASSES.index(f'{texture} {shape}')
    if not is_object:
        category = None
        if rng.random() < 0.5:
            texture = 'dotted'
        else:
            shape = 'triangle'

    radius = float(np.exp(rng.uniform(*np.log(_RADIUS))))
    centre_x = rng.uniform(0.05, 0.95) * width
    centre_y = rng.uniform(0.05, 0.95) * height
    stretch = float(np.exp(rng.uniform(-0.25, 0.25)))
    turn = rng.uniform(-_TURN, _TURN)

    reach = 1.4 * radius * max(stretch, 1 / stretch) + 6  # px; the farthest tip and its shadow
    window = (
        slice(max(int(centre_y - reach), 0), min(int(centre_y + reach) + 1, height)),
        slice(max(int(centre_x - reach), 0), min(int(centre_x + reach) + 1, width)),
    )
    rows, columns = np.mgrid[window]
    dx, dy = columns + 0.5 - centre_x, rows + 0.5 - centre_y
    u, v = _turned(dx, dy, turn, stretch)
    down, right = rng.uniform(1, 4), rng.uniform(-3, 3)
    shadow_u, shadow_v = _turned(dx - right, dy - down, turn, stretch)
    outside = _distance(shape, u / radius, v / radius) * radius  # px
    shadow = _distance(shape, shadow_u / radius, shadow_v / radius) * radius / 3
    return _Thing(
        category=category,
        size=_unit_area(shape) * radius**2,
        window=window,
        alpha=np.clip(0.5 - outside, 0, 1),
        shadow=np.clip(0.5 - shadow, 0, 1) * rng.uniform(0.15, 0.5),
        colour=_surface(rng, texture, u, v, radius),
    )


def _turned(
    dx: np.ndarray, dy: np.ndarray, turn: float, stretch: float
) -> tuple[np.ndarray, np.ndarray]:
    """Image coordinates transformed to the axes of the object; areas are preserved."""
    u = (np.cos(turn) * dx + np.sin(turn) * dy) / stretch
    v = (-np.sin(turn) * dx + np.cos(turn) * dy) * stretch
    return u, v


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance of ``(u, v)`` to the outline with a mean radius of about one; negative inside."""
    if shape == 'disc':
        return np.hypot(u, v) - 1
    if shape == 'box':
        corner = 0.15
        du, dv = np.abs(u) - 0.88 + corner, np.abs(v) - 0.88 + corner
        beyond = np.hypot(np.maximum(du, 0), np.maximum(dv, 0))
        return beyond + np.minimum(np.maximum(du, dv), 0) - corner
    # A star of n points consists of n equal wedges; each edge goes from a tip to a notch.
    points, tip, notch = (5, 1.2, 0.62) if shape == 'star' else (3, 1.35, 0.675)
    wedge = np.pi / points
    angle = np.abs((np.arctan2(v, u) + wedge) % (2 * wedge) - wedge)
    along, across = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    edge_x, edge_y = notch * np.cos(wedge) - tip, notch * np.sin(wedge)
    return (across * -edge_x + (along - tip) * edge_y) / np.hypot(edge_x, edge_y)


@cache
def _unit_area(shape: str) -> float:
    """The area of the outline of radius one."""
    step = 0.02
    u, v = np.meshgrid(np.arange(-1.5, 1.5, step), np.arange(-1.5, 1.5, step))
    return float((_distance(shape, u, v) < 0).sum() * step**2)


def _surface(
    rng: np.random.Generator, texture: str, u: np.ndarray, v: np.ndarray, radius: float
) -> np.ndarray:
    """The colour of the object's surface at each pixel, ``(H, W, 3)`` in 0..255."""
    base = rng.uniform(30, 225, 3)
    other = base + rng.uniform(70, 130) * np.sign(127 - base) * rng.uniform(0.7, 1.0, 3)
    # Coarse enough to survive blur, noise and JPEG, fine enough for a few repetitions.
    period = max(5.5, radius * rng.uniform(0.45, 0.65))  # px
    turn = rng.uniform(-_TURN, _TURN)
    s = (np.cos(turn) * u + np.sin(turn) * v) / period + rng.random()
    t = (-np.sin(turn) * u + np.cos(turn) * v) / period + rng.random()
    if texture == 'striped':
        pattern = 0.5 + period * (np.abs(s % 1 - 0.5) - 0.25)
    elif texture == 'dotted':
        pattern = 0.5 + period * (0.36 - np.hypot(s % 1 - 0.5, t % 1 - 0.5))
    else:
        pattern = np.zeros_like(s)
    pattern = np.clip(pattern, 0, 1)[..., None]
    colour = base * (1 - pattern) + other * pattern
    light = 1 + rng.uniform(0, 0.3) * np.tanh(u / radius)
    light += rng.uniform(0, 0.2) * np.tanh(v / radius)
    return np.clip(colour * light[..., None], 0, 255)


# ----------------------------------------------------------------------- background and camera


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A background of gradient, low-frequency noise, grain and lines, ``(H, W, 3)`` in 0..255."""
    grey, tint = rng.uniform(60, 200), rng.uniform(-30, 30, 3)
    corners = grey + tint + rng.uniform(-35, 35, (2, 2, 3))
    image = _stretch(corners, height, width)
    image += rng.uniform(4, 14) * _stretch(rng.standard_normal((6, 6, 3)), height, width)
    grain = _stretch(rng.standard_normal((height // 4, width // 4, 1)), height, width)
    image += rng.uniform(2, 12) * grain
    rows, columns = np.mgrid[0:height, 0:width]
    for _ in range(rng.integers(1, 5)):
        turn, offset = rng.uniform(0, np.pi), rng.uniform(0, 1)
        across = np.cos(turn) * (columns - offset * width) + np.sin(turn) * (rows - offset * height)
        line = np.clip(rng.uniform(0.5, 3.0) - np.abs(across), 0, 1)[..., None]
        image += line * (rng.uniform(20, 235, 3) - image) * rng.uniform(0.3, 0.9)
    return np.clip(image, 0, 255)


def _stretch(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear upsampling of ``(h, w, C)`` to ``(height, width, C)``."""
    y = np.linspace(0, grid.shape[0] - 1, height)
    x = np.linspace(0, grid.shape[1] - 1, width)
    top = np.minimum(y.astype(int), grid.shape[0] - 2)
    left = np.minimum(x.astype(int), grid.shape[1] - 2)
    dy, dx = (y - top)[:, None, None], (x - left)[None, :, None]
    above = grid[top][:, left] * (1 - dx) + grid[top][:, left + 1] * dx
    below = grid[top + 1][:, left] * (1 - dx) + grid[top + 1][:, left + 1] * dx
    return above * (1 - dy) + below * dy


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Apply uneven light, slight blur and sensor noise to the image."""
    height, width = image.shape[:2]
    image = image * _stretch(rng.uniform(0.6, 1.2, (2, 2, 1)), height, width)
    soft = rng.uniform(0, 0.3)
    for axis in (0, 1):
        sides = np.roll(image, 1, axis) + np.roll(image, -1, axis)
        image = (1 - soft) * image + soft / 2 * sides
    image = image + rng.uniform(2, 7) * rng.standard_normal(image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
