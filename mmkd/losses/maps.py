"""Feature maps of which only some positions count.

Images of one batch differ in size and are padded to the largest. The ``mask`` of a loss, bool of shape
(N, H, W), is True at the positions that show the image; None means all. With it, the loss of an image
is what it would be without padding, and an image without a valid position contributes 0.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import ConfigError

Mask = Tensor | None


def fill_outside(mask: Mask, *maps: Tensor, value: float = 0.0) -> list[Tensor]:
    """Each map in float32, with a value at the positions outside the mask, whatever they held.

    Maps have the shape (N, C, H, W); without a mask, any.
    """
    maps = tuple(side.float() for side in maps)
    return [side if mask is None else side.masked_fill(~mask[:, None], value) for side in maps]


def mean_inside(values: Tensor, mask: Mask) -> Tensor:
    """Mean over the valid positions, of values (N, C, H, W) that are 0 at all others, shape (N, C).

    Without a mask, all values count alike, and they are returned as they are.
    """
    if mask is None:
        return values
    return values.sum((2, 3)) / mask.sum((1, 2)).clamp(min=1)[:, None]


def require_maps(loss: nn.Module, value: Tensor) -> None:
    """Raise a ConfigError unless a value is feature maps, shape (N, C, H, W)."""
    if value.dim() != 4:
        raise ConfigError(
            f'{type(loss).__name__} compares feature maps of shape (N, C, H, W), got '
            f'{tuple(value.shape)}; record a backbone, neck or one of their layers, with '
            f"align=dict(type='FeatureAlignment')"
        )
