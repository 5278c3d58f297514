"""A subset of the classes of a COCO data set, with a fraction of the images without these classes."""

from __future__ import annotations

from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from ..errors import ConfigError


@DATASETS.register_module()
class ClassSubsetDataset(CocoDataset):
    """A COCO data set of selected classes that keeps some images without these classes.

    ``CocoDataset`` with ``metainfo=dict(classes=…)`` keeps either all images without the classes or
    none (``filter_empty_gt``). Without any, the detector never sees a scene without its classes. With
    all, most training images may be empty.

    Args:
        empty_images: Number of kept images without the classes, as a multiple of the number of images
            with them. The kept images are spread evenly over the annotation file.
        *args: Arguments of ``CocoDataset``.
        **kwargs: Arguments of ``CocoDataset``.

    Raises:
        ConfigError: ``empty_images`` is negative, or no image contains one of the classes.

    Examples:
        >>> from mmdet.registry import DATASETS
        >>> config = dict(
        ...     type='ClassSubsetDataset', ann_file='train.json', empty_images=0.5, lazy_init=True,
        ...     metainfo=dict(classes=('dog', 'person')),
        ... )
        >>> DATASETS.build(config).empty_images
        0.5
    """

    def __init__(self, *args: Any, empty_images: float = 0.0, **kwargs: Any) -> None:
        if empty_images < 0:
            raise ConfigError(f'empty_images: must be at least 0, got {empty_images}')
        self.empty_images = empty_images
        super().__init__(*args, **kwargs)

    def filter_data(self) -> list[dict]:
        """The images with the classes and the chosen ones without; all images in test mode."""
        if self.test_mode:
            return super().filter_data()
        every: Any = self.filter_cfg  # type: ignore[has-type]  # of mmengine's BaseDataset
        config = dict(every or {})
        try:
            self.filter_cfg = dict(config, filter_empty_gt=True)
            shown = super().filter_data()
            self.filter_cfg = dict(config, filter_empty_gt=False)
            kept = super().filter_data()
        finally:
            self.filter_cfg = every
        if not shown:
            raise ConfigError(
                f'metainfo.classes: no image of {self.ann_file} contains '
                f'{" or ".join(self.metainfo["classes"])}; choose other classes'
            )
        ids = {image['img_id'] for image in shown}
        empty = [image for image in kept if image['img_id'] not in ids]
        count = min(round(self.empty_images * len(shown)), len(empty))
        chosen = ids | {empty[i * len(empty) // count]['img_id'] for i in range(count)}
        return [image for image in kept if image['img_id'] in chosen]
