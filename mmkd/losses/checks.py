"""Checks of numeric options that several losses share."""

from __future__ import annotations

from ..errors import ConfigError


def require_positive(**options: float) -> None:
    """Raise a ConfigError for the first option that is not above 0."""
    for name, value in options.items():
        if value <= 0:
            raise ConfigError(f'{name} must be above 0, got {value}')


def require_non_negative(**options: float) -> None:
    """Raise a ConfigError for the first option that is below 0."""
    for name, value in options.items():
        if value < 0:
            raise ConfigError(f'{name} must not be negative, got {value}')
