"""Convert class scores of a head to probabilities and between activations."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Detector


def uses_softmax(head: Detector) -> bool:
    """Return True if a head applies a softmax to its class scores, False if it applies sigmoids.

    A softmax head has one more output, the background (of a detection transformer: no-object), last.

    Args:
        head: An RPN head, a box head of an RoI head, or the head of a single-stage detector or detection
            transformer.
    """
    use_sigmoid = getattr(head, 'use_sigmoid_cls', None)
    if use_sigmoid is None:
        use_sigmoid = getattr(head.loss_cls, 'use_sigmoid', False)
    return not use_sigmoid


def class_probabilities(scores: Tensor, softmax: bool) -> Tensor:
    """Return the probabilities of the classes, without the background.

    Args:
        scores: Scores before the activation, shape (…, classes), or (…, classes + 1) with a softmax.
        softmax: Whether the head uses a softmax (:func:`uses_softmax`).

    Returns:
        Shape (…, classes).
    """
    return scores.softmax(-1)[..., :-1] if softmax else scores.sigmoid()


def scores_for_sigmoid(scores: Tensor) -> Tensor:
    """Convert scores for a softmax to scores for sigmoids, with the same probabilities.

    Args:
        scores: Scores before a softmax with no-object last, shape (…, classes + 1).

    Returns:
        Shape (…, classes).
    """
    log_p = scores.log_softmax(-1)[..., :-1]
    # If p rounds to 1 in float32, the logarithm of 1 - p is minus infinity.
    log_p = log_p.clamp(max=-1e-6)
    return log_p - torch.log(-torch.expm1(log_p))
