"""Initialise a model from published weights: ``init_cfg=dict(type='ConvertedCheckpoint', …)``."""

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

# Weights that a file may lack: pretrained models have no relative positions, converted detectors no heads.
REL_POS = r'layers\.\d+\.attn\.rel_pos_[hw]'
HEADS = r'(?!backbone\.|neck\.).+'


@WEIGHT_INITIALIZERS.register_module()
class ConvertedCheckpoint:
    """Initialises a backbone, or the backbone and neck of a detector, from published weights.

    The weights must match exactly, with these exceptions:

    - Position embeddings of another grid are interpolated.
    - The class token and the final norm are dropped if the model has none.
    - Relative positions keep their initial values if the file (``dino``, ``dinov2``, ``mae``) has none.
    - The heads of a detector keep their initial values with ``vitdet``.

    Args:
        source: The publisher of the weights, a key of :data:`mmkd.converters.FORMATS`. ``vitdet``
            initialises ``backbone`` and ``neck`` in the ``init_cfg`` of a detector, and only the backbone
            in the ``init_cfg`` of a backbone.
        checkpoint: Path or URL of the published file.

    Raises:
        ConfigError: ``source`` is unknown, or this is not the last entry of a list in ``init_cfg``.
        MissingFileError: The file does not exist.
        CheckpointError: The file has another format, lacks weights, or has unknown weights.

    Examples:
        >>> from mmengine.registry import WEIGHT_INITIALIZERS
        >>> backbone = dict(
        ...     type='MobileNetV2',
        ...     init_cfg=dict(
        ...         type='ConvertedCheckpoint',
        ...         source='torchvision-mobilenetv2',
        ...         checkpoint='mobilenet_v2-b0353104.pth',
        ...     ),
        ... )
        >>> WEIGHT_INITIALIZERS.build(backbone['init_cfg']).source
        'torchvision-mobilenetv2'
    """

    def __init__(self, source: str, checkpoint: str) -> None:
        find_format(source)
        self.source, self.checkpoint = source, checkpoint

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a module; called by ``init_weights`` of MMEngine."""
        _check_last(module)
        # Otherwise MMEngine would initialise the children later and overwrite these weights.
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
            f'{self.checkpoint}' + (f', {kept} keep their initial values' if kept else ''),
            logger='current',
        )
        if hasattr(module, '_params_init_info'):
            update_init_info(module, f'{type(self).__name__}: {self.source}, {self.checkpoint}')


def _check_last(module: nn.Module) -> None:
    entries = getattr(module, 'init_cfg', None)
    names = (ConvertedCheckpoint, ConvertedCheckpoint.__name__)
    if isinstance(entries, (list, tuple)) and entries[-1].get('type') not in names:
        raise ConfigError(
            f"{type(module).__name__}.init_cfg: type='ConvertedCheckpoint' must be last in the list, got "
            f'{entries[-1].get("type")!r} last, which may overwrite its weights; move it to the end'
        )
