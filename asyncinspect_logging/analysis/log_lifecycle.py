"""The linter of lifecycles on a log: of its tasks and, in the same reading, of its records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..records import KEY
from .decoding import Unreadable, bare, parse
from .files import Batch
from .lifecycle import Flaw, Records
from .replay import LogTasks

__all__ = ["LogRecords"]

_KEY = KEY.encode()


class LogRecords:
    """Looks at the records of `log` while somebody else goes through its tasks. at: as that of the log."""

    def __init__(self, log: LogTasks, *, at: float | None = None) -> None:
        self._records = Records()
        self._at = None if at is None else round(at * 1e9)
        log.watch(self._take)

    def _take(self, batch: Batch) -> None:
        # What is longer than a record can be, and what is broken, the reader counts.
        for line in () if batch.long or batch.problem else batch.lines:
            payload = _payload(line)
            if payload is not None and (self._at is None or not _is_after(payload, self._at)):
                self._records.take(payload)

    def flaws(self, of_tasks: list[Flaw]) -> list[Flaw]:
        """Those of the tasks, and then those of the records that are not among them."""
        known = {(flaw.kind, flaw.span_ids) for flaw in of_tasks if flaw.span_ids}
        return [*of_tasks, *(flaw for flaw in self._records.done() if (flaw.kind, flaw.span_ids) not in known)]


def _payload(line: bytes) -> Mapping[str, Any] | None:
    """The payload that a line holds, or is."""
    if _KEY not in line and b'"kind"' not in line:
        return None
    text = bare(line)
    if not text.startswith(b"{"):
        return None
    try:
        found = parse(text)
    except Unreadable:
        return None
    payload = found.get(KEY) or found
    return payload if isinstance(payload, Mapping) else None


def _is_after(payload: Mapping[str, Any], at: int) -> bool:
    wall = payload.get("wall")
    return isinstance(wall, int) and wall > at
