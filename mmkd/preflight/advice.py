"""Findings of a check that do not stop a run."""

from __future__ import annotations


class Advice(UserWarning):
    """A finding that does not stop a run; the message names the config key and the fault.

    Examples:
        >>> from mmkd.preflight import Advice
        >>> str(Advice('train_dataloader.dataset: 2 of 12 boxes without an area'))
        'train_dataloader.dataset: 2 of 12 boxes without an area'
    """
