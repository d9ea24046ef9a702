"""The one source of time.

Every module reads `clock.monotonic_ns()` through this module and keeps no reference of its own, so that freezegun
(which replaces the attribute here, as it does in any module) and `testing.FakeClock` both move the whole library.
"""

from __future__ import annotations

import sys
from time import monotonic_ns, time_ns
from typing import Any

__all__ = ["monotonic_ns", "time_ns", "wall_ns"]

_OFFSET = time_ns() - monotonic_ns()
# In a tuple, where freezegun does not find it to replace it too.
_REAL = (monotonic_ns,)


def wall_ns(t: int, clock: Any = None) -> int:
    """Unix time in ns of the monotonic time `t` (ns): one anchor per process plus `t`.

    `clock`: where `t` came from, if not from here: it has `monotonic_ns()` and `time_ns()`.
    """
    if clock is not None and clock is not sys.modules[__name__]:
        return t + int(clock.time_ns()) - int(clock.monotonic_ns())
    source = monotonic_ns
    if source is not _REAL[0]:
        # A test has replaced the clock. The anchor of the real one stays, so that wall times never run backwards.
        return t + time_ns() - source()
    return t + _OFFSET
