"""The linter of lifecycles on a log: of its tasks and, in the same reading, of its records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..records import KEY
from .decoding import Begin, Enter, Exit, More, Resume, Spawn, Suspend, Unreadable, Wake, bare, decoded, parse
from .files import Batch
from .lifecycle import Flaw, Records
from .replay import LogTasks

__all__ = ["LogRecords"]

_KEY: Final = KEY.encode()
_ANY: Final = "1" * 16
_KINDS: Final[dict[Any, str]] = {
    Spawn: "spawn",
    Enter: "enter",
    Suspend: "suspend",
    Wake: "wake",
    Resume: "resume",
    More: "record",
}


class LogRecords:
    """Looks at the records of `log` while somebody else goes through its tasks. at: as that of the log."""

    def __init__(self, log: LogTasks, *, at: float | None = None) -> None:
        self._records = Records()
        self._at = None if at is None else round(at * 1e9)
        log.watch(self._take)

    def _take(self, batch: Batch) -> None:
        # What is longer than a record can be, and what is broken, the reader counts.
        if batch.long or batch.problem:
            return
        note, at = self._records.note, self._at
        for line, found in zip(batch.lines, decoded(batch.lines), strict=True):
            record: Any = None if found is None else found.asyncinspect
            if record is None or not _is_well_spelt(record):
                payload = _payload(line)
                if payload is not None and (at is None or not _is_after(payload, at)):
                    self._records.take(payload)
            elif at is not None and record.wall > at:
                pass
            elif isinstance(record, Exit):
                stepless = record.polls == 1 and not record.max_poll and record.slow_polls is None
                note(record.id, "exit", record.seq, record.t, record.name, stepless=stepless)
            else:
                note(record.id, _KINDS[type(record)], record.seq, record.t, getattr(record, "name", ""))

    def flaws(self, of_tasks: list[Flaw]) -> list[Flaw]:
        """Those of the tasks, and then those of the records that are not among them."""
        known = {(flaw.kind, flaw.span_ids) for flaw in of_tasks if flaw.span_ids}
        return [*of_tasks, *(flaw for flaw in self._records.done() if (flaw.kind, flaw.span_ids) not in known)]


def _is_well_spelt(record: Any) -> bool:
    """Whether its ids are as we write them; what else has to be right, is (see `decoding.Record`)."""
    ids = [record.id]
    if isinstance(record, Begin):
        ids += [record.trace or _ANY, record.parent or _ANY]
    digits = "".join(ids)
    try:
        return bytes.fromhex(digits).hex() == digits and all(each.strip("0") for each in ids)
    except ValueError:
        return False


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
