"""Pascal VOC 2012 in miniature, and configs of it that train in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmcv import imwrite
from mmengine.config import Config

XML = """<annotation><size><width>160</width><height>120</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>21</xmin><ymin>31</ymin><xmax>81</xmax><ymax>101</ymax></bndbox></object>
<object><name>tvmonitor</name><difficult>1</difficult>
<bndbox><xmin>101</xmin><ymin>11</ymin><xmax>121</xmax><ymax>31</ymax></bndbox></object>
</annotation>"""


def write_voc(root: Path) -> Path:
    """Four images in VOC 2012's layout, each with a dog and a difficult tvmonitor."""
    voc = root / 'VOC2012'
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        names = [f'2008_{split}_{i}' for i in range(2)]
        for name in names:
            image = rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)
            imwrite(image, str(voc / f'JPEGImages/{name}.jpg'))
            xml = voc / f'Annotations/{name}.xml'
            xml.parent.mkdir(exist_ok=True)
            xml.write_text(XML)
        listing = voc / f'ImageSets/Main/{split}.txt'
        listing.parent.mkdir(exist_ok=True, parents=True)
        listing.write_text('\n'.join(names) + '\n')
    return root


def load(path, voc_root, monkeypatch):
    monkeypatch.setenv('MMKD_VOC', str(voc_root))
    return Config.fromfile(path)


def shrink(cfg, work_dir):
    """Two images at 128 px, one process, weights drawn at random."""
    small = (128, 128)
    student = cfg.model.get('student', cfg.model)
    student.backbone.init_cfg = None
    cfg.merge_from_dict(
        {
            'train_dataloader.batch_size': 1,
            'train_dataloader.dataset.indices': 2,
            'train_dataloader.dataset.pipeline.2.scale': small,
            'train_cfg.max_epochs': 1,
            'work_dir': str(work_dir),
            'experiment_name': work_dir.name,
        }
    )
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].update(num_workers=0, persistent_workers=False)
    for name in ('val', 'test'):
        cfg[f'{name}_dataloader'].dataset.indices = 2
        cfg[f'{name}_dataloader'].dataset.pipeline[1].scale = small
    return cfg
