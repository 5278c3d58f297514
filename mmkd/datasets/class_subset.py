"""Some of a data set's classes: images that show them, and a share of those that do not."""

from __future__ import annotations

from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS

from ..errors import ConfigError


@DATASETS.register_module()
class ClassSubsetDataset(CocoDataset):
    """A COCO data set of chosen classes that keeps some images of none of them.

    ``CocoDataset`` with ``metainfo=dict(classes=…)`` keeps all images without the classes or none,
    by its ``filter_empty_gt``. A detector that is trained on none of them has never seen a scene
    without its classes; with all of them, most of what it sees is empty.

    Args:
        empty_images: How many images of none of the classes are kept, as a share of those that show
            one. They are spread evenly over the annotation file.
        args, kwargs: Those of ``CocoDataset``.

    Raises:
        ConfigError: A negative share, or no image shows one of the classes.
    """

    def __init__(self, *args: Any, empty_images: float = 0.0, **kwargs: Any) -> None:
        if empty_images < 0:
            raise ConfigError(f'empty_images={empty_images} must not be negative')
        self.empty_images = empty_images
        super().__init__(*args, **kwargs)

    def filter_data(self) -> list[dict]:
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
                f'no image of {self.ann_file} shows {" or ".join(self.metainfo["classes"])}; choose '
                f'other classes in metainfo.classes'
            )
        ids = {image['img_id'] for image in shown}
        empty = [image for image in kept if image['img_id'] not in ids]
        count = min(round(self.empty_images * len(shown)), len(empty))
        chosen = ids | {empty[i * len(empty) // count]['img_id'] for i in range(count)}
        return [image for image in kept if image['img_id'] in chosen]
