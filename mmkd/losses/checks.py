"""What several losses require of their options and inputs."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ConfigError


def require_positive(**options: float) -> None:
    """Raise a ConfigError for the first option that is not above 0."""
    for name, value in options.items():
        if value <= 0:
            raise ConfigError(f'{name} must be above 0, got {value}')


def require_not_negative(**options: float) -> None:
    """Raise a ConfigError for the first option that is below 0."""
    for name, value in options.items():
        if value < 0:
            raise ConfigError(f'{name} must not be negative, got {value}')


def require_maps(loss: nn.Module, value: Tensor) -> None:
    """Raise a ConfigError unless a value is feature maps, shape (N, C, H, W)."""
    if value.dim() != 4:
        raise ConfigError(
            f'{type(loss).__name__} compares feature maps of shape (N, C, H, W), got '
            f'{tuple(value.shape)}; record a backbone, neck or one of their layers, with '
            f"align=dict(type='FeatureAlignment')"
        )
