"""What losses on feature maps have in common."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ConfigError


def require_maps(loss: nn.Module, value: Tensor) -> None:
    """Raise a ConfigError unless a value is feature maps, shape (N, C, H, W)."""
    if value.dim() != 4:
        raise ConfigError(
            f'{type(loss).__name__} compares feature maps of shape (N, C, H, W), got '
            f'{tuple(value.shape)}; record a backbone, neck or one of their layers, with '
            f"align=dict(type='FeatureAlignment')"
        )
