"""What a check finds that does not stop a run."""

from __future__ import annotations


class Advice(UserWarning):
    """A finding that a run can go on with; the message names what and where."""
