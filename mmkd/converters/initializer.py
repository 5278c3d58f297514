"""``init_cfg=dict(type='ConvertedCheckpoint', …)``: a model starts with weights as they are published."""

from __future__ import annotations

from typing import Any

from mmengine.logging import print_log
from mmengine.model import update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from ..checkpoints import load_weights
from ..errors import ConfigError
from .convert import convert, find_format
from .reading import read_weights

# Pretraining has no relative positions; where a detector has them they start as it sets them.
REL_POS = r'layers\.\d+\.attn\.rel_pos_[hw]'
HEADS = r'(?!backbone\.|neck\.).+'


@WEIGHT_INITIALIZERS.register_module()
class ConvertedCheckpoint:
    """Start a backbone, or a detector's backbone and neck, with a published file.

    Everything has to fit, but for

    - position embeddings of another grid, which the model interpolates as it loads them,
    - the class token and the final norm, which are left out if the model has none,
    - relative positions, which the model keeps as they are if the file (``dino``, ``dinov2``, ``mae``)
      has none,
    - a detector's heads, to which ``vitdet`` gives nothing.

    Args:
        source: Where the weights come from, a name in :data:`mmkd.converters.FORMATS`. ``vitdet`` fills a
            detector's ``backbone`` and ``neck`` in the ``init_cfg`` of the detector, and the backbone
            alone in that of the backbone.
        checkpoint: The file's path or URL.

    Raises:
        ConfigError: There is no such source, or another entry of a list of ``init_cfg`` comes after this.
        MissingFileError: There is no such file.
        CheckpointError: The file is of another kind, or something is missing or left over.
    """

    def __init__(self, source: str, checkpoint: str) -> None:
        find_format(source)
        self.source, self.checkpoint = source, checkpoint

    def __call__(self, module: nn.Module) -> None:
        _check_last(module)
        # MMEngine has children initialise themselves after this, unless they say that they have.
        child: Any
        for child in module.children():
            if hasattr(child, 'init_weights') and not getattr(child, 'is_init', False):
                child.init_weights()
                child.is_init = True
        where = f'{self.checkpoint} (init_cfg.checkpoint)'
        own = module.state_dict()
        detector = self.source == 'vitdet' and hasattr(module, 'backbone')
        state = convert(
            self.source,
            read_weights(self.checkpoint, where, 'set init_cfg.checkpoint to a file or URL'),
            class_token='cls_token' in own,
            backbone_only=not detector,
            where=where,
        )
        if 'ln1.weight' not in own:
            state = {key: value for key, value in state.items() if not key.startswith('ln1.')}
        optional = HEADS if detector else '' if self.source == 'vitdet' else REL_POS
        load_weights(module, dict(state_dict=state), where, optional)
        kept = sum(key not in state and not key.endswith('num_batches_tracked') for key in own)
        print_log(
            f'{type(module).__name__}: {len(state)} of {len(own)} entries from the {self.source} weights '
            f'{self.checkpoint}' + (f', {kept} as they were initialised' if kept else ''),
            logger='current',
        )
        if hasattr(module, '_params_init_info'):
            update_init_info(module, f'{type(self).__name__}: {self.source}, {self.checkpoint}')


def _check_last(module: nn.Module) -> None:
    entries = getattr(module, 'init_cfg', None)
    names = (ConvertedCheckpoint, ConvertedCheckpoint.__name__)
    if isinstance(entries, (list, tuple)) and entries[-1].get('type') not in names:
        raise ConfigError(
            f"{type(module).__name__}.init_cfg: type='ConvertedCheckpoint' has to be the last in the list, "
            'or what follows would overwrite its weights'
        )
