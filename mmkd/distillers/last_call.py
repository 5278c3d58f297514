"""Where a teacher's pass may end."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from mmengine.logging import MMLogger

from ..recorder import Recorder, Source

# Every so many passes one runs whole, to see whether it still makes the calls that are expected.
RECHECK = 1000


class LastCall:
    """Ends a teacher's passes after the last call that is recorded of them.

    How often a module is called in a pass (a head, once a level) is learnt from passes that run whole:
    the first one, those of more or fewer, larger or smaller images than before, and every
    :data:`RECHECK`-th. A pass of a size between those of two whole ones, none of its sides larger than
    the one's or smaller than the other's, ends after as many calls as they made. Once two whole passes
    differ in their calls, none ends early any more.

    Nor does any where what the pass returns is needed, where something that is recorded is not called,
    or where it is a list or a dict, in which later calls could replace a tensor.

    Args:
        recorder: What is recorded of a pass.
        may_end: Whether a pass may end early at all.
    """

    def __init__(self, recorder: Recorder, may_end: bool = True) -> None:
        self.recorder = recorder
        #: What whole passes called; None as long as there was none.
        self.calls: dict[Source, list[int]] | None = None
        self._may_end = may_end
        self._sizes: list[Sequence[int]] = []
        self._passes = 0

    def expect(self, size: Sequence[int]) -> None:
        """Set the recorder's ``enough`` for the next pass.

        Args:
            size: Of the images, (N, 3, H, W).
        """
        early = self._may_end and self._is_between(size) and self._passes % RECHECK != 0
        self.recorder.enough = self.calls if early else None
        self._passes += 1

    def learn(self, size: Sequence[int], result_is_needed: bool) -> None:
        """Take note of a pass that is over.

        Args:
            size: As before.
            result_is_needed: Whether what it returned is read.
        """
        calls = self.recorder.calls
        if not self._may_end or calls == self.recorder.enough:
            return
        called = all(count > 0 for counts in calls.values() for count in counts)
        self._may_end = called and self.recorder.holds_tensors_only and not result_is_needed
        if self.calls not in (None, calls):
            self._may_end = False
            if self._is_between(size):
                MMLogger.get_current_instance().warning(
                    f'the {self.recorder.owner} no longer makes as many calls as before of '
                    f'{", ".join(str(each) for each in calls if calls[each] != self.calls[each])}; '
                    f'earlier passes may have ended before the last of them'
                )
        self.calls = calls
        if not self._is_between(size):
            self._sizes.append(tuple(size))

    def _is_between(self, size: Sequence[int]) -> bool:
        below = any(all(map(operator.le, each, size)) for each in self._sizes)
        return below and any(all(map(operator.ge, each, size)) for each in self._sizes)
