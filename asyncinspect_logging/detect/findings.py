"""What was found to be wrong: counted, kept, and waiting to be told.

A finding is told (as a log record, and to callbacks) by whoever takes a snapshot and by the watcher's thread, never
where the application enters or leaves a span: there any lock may be held.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from ..catalogue import LAG_BOUNDS
from ..diagnostics import warn_once
from ..snapshot import Finding
from ..totals import Cell

__all__ = ["DEADLOCK", "Findings", "tell"]

#: The logger of findings; deadlocks are errors, all else warnings.
LOGGER: Final = logging.getLogger("asyncinspect.findings")
DEADLOCK: Final = "deadlock"
#: Findings kept.
_MAX_KEPT: Final = 1000


class Findings:
    """Those of one inspector."""

    def __init__(self) -> None:
        #: The latest, oldest first.
        self.kept: deque[Finding] = deque(maxlen=_MAX_KEPT)
        #: Those that nobody was told of yet.
        self.untold: deque[Finding] = deque(maxlen=_MAX_KEPT)
        #: Lints by (lint, label of the name).
        self.lints: dict[tuple[str, str], int] = {}
        self.deadlocks = 0
        #: How late the event loops called back, in ns.
        self.lag = Cell(len(LAG_BOUNDS))

    def add(self, finding: Finding, label: str | None = None) -> None:
        """Count a finding, keep it, and have it told. `label`: the name that it counts under if it is a lint."""
        if finding.kind == DEADLOCK:
            self.deadlocks += 1
        elif label is not None:
            key = (finding.kind, label)
            self.lints[key] = self.lints.get(key, 0) + 1
        self.kept.append(finding)
        self.untold.append(finding)

    def withdraw(self, finding: Finding) -> None:
        """What was found is no more: it is not kept any longer. The counters stay."""
        if finding in self.kept:
            self.kept.remove(finding)


def tell(finding: Finding, callbacks: list[Callable[[Finding], object]], *, logged: bool = True) -> None:
    """Log a finding, if it is to be `logged`, and hand it to callbacks. Raises nothing."""
    level = logging.ERROR if finding.kind == DEADLOCK else logging.WARNING
    try:
        if logged:
            LOGGER.log(level, "%s", finding.message, extra={"finding": finding._asdict()})
    except Exception as error:
        warn_once("finding not logged", type(error).__qualname__, "a finding could not be logged: %r", error)
    for callback in callbacks:
        try:
            callback(finding)
        except Exception as error:
            warn_once("callback", type(error).__qualname__, "a callback for findings raised: %r", error)
