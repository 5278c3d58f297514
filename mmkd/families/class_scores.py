"""Class scores of a head, and their probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Detector


def uses_softmax(head: Detector) -> bool:
    """Whether a head's class scores go through a softmax with background last, else sigmoids.

    Args:
        head: The RPN head, the box head of an RoI head, or the head of a one-stage detector or of a
            detection transformer, whose background is no-object.
    """
    use_sigmoid = getattr(head, 'use_sigmoid_cls', None)
    if use_sigmoid is None:
        use_sigmoid = getattr(head.loss_cls, 'use_sigmoid', False)
    return not use_sigmoid


def class_probabilities(scores: Tensor, softmax: bool) -> Tensor:
    """Probabilities of the classes, without the background.

    Args:
        scores: Before the activation, shape (…, classes), one more with a softmax.
        softmax: As :func:`uses_softmax`.

    Returns:
        Shape (…, classes).
    """
    return scores.softmax(-1)[..., :-1] if softmax else scores.sigmoid()


def scores_for_sigmoid(scores: Tensor) -> Tensor:
    """Scores whose sigmoid is the probability a softmax gives each class.

    Args:
        scores: Before a softmax with no-object last, shape (…, classes + 1).

    Returns:
        Shape (…, classes).
    """
    log_p = scores.log_softmax(-1)[..., :-1]
    # Below the rounding of float32 the logarithm of 1 - p would be minus infinity.
    log_p = log_p.clamp(max=-1e-6)
    return log_p - torch.log(-torch.expm1(log_p))
