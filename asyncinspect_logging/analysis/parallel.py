"""Several logs on several cores: each file is read in a process of its own, together with those that have records of
the same processes, and what was counted is added up.

That is exact, as long as there are no more names than `Config.max_names`: processes have nothing else in common.
Whether two groups of files have a process in common after all is known when they were read; then the result is thrown
away.
"""

from __future__ import annotations

import multiprocessing
import re
from collections import deque
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, Final

from ..books import Books
from ..config import Config
from ..inspector import Inspector
from ..placing import Placing
from ..retention import Note
from ..snapshot import Finding
from ..totals import Cell, NameTotals
from .files import Source
from .replay import Reader, Replay, Report

__all__ = ["read_in_parallel"]

#: The process of a record: pid, and the higher half of the span's id.
_PROCESS: Final = (re.compile(rb'"id":\s?"([0-9a-f]{8})[0-9a-f]{8}"'), re.compile(rb'"pid":\s?(\d+)'))
_Part = tuple[dict[str, Any], Report, int]


def read_in_parallel(reader: Reader, processes: int) -> bool:
    """Read all of it; returns False where that cannot be done in parts, and nothing was."""
    groups = _groups(reader.sources)
    if len(groups) < 2:
        return False
    parts = _read_groups(groups, reader, min(processes, len(groups)))
    streams = [tuple(stream[:2]) for saved, _, _ in parts for stream in saved["streams"]]
    if len(streams) != len(set(streams)):
        return False
    inspector, report = reader.inspector, reader.report
    # At one go: in between, what is beyond the limits would go before the oldest of all is known.
    inspector.enter(lambda placing: _add_all(placing, [saved for saved, _, _ in parts], inspector.config))
    for _, of_part, latest in parts:
        for field in ("lines", "records", "annotations", "foreign", "broken", "missing", "bytes_read"):
            setattr(report, field, getattr(report, field) + getattr(of_part, field))
        report.problems += of_part.problems[: 100 - len(report.problems)]
        inspector.clock.now = max(inspector.clock.now, latest)  # type: ignore[attr-defined] # the log's
    return True


def _groups(sources: list[Source]) -> list[list[str]]:
    """The files, those together that begin with records of the same process."""
    groups: dict[object, list[str]] = {}
    for source in sources:
        head = b"" if source.size is None else source.head()
        found = [pattern.search(head) for pattern in _PROCESS]
        key: object = source.name if None in found else tuple(each[1] for each in found if each is not None)
        groups.setdefault(key, []).append(source.name)
    return list(groups.values()) if all(source.size is not None for source in sources) else []


def _read_groups(groups: list[list[str]], reader: Reader, processes: int) -> list[_Part]:
    total = sum(source.size or 0 for source in reader.sources)
    # A fork of a process with threads may hang.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(_read, names, reader.at, reader.strict) for names in groups]
        done = 0
        for task in as_completed(tasks):
            done += task.result()[1].bytes_read
            if reader.progress is not None:
                reader.progress(done, total)
        return [task.result() for task in tasks]


def _read(names: list[str], at: float | None, strict: bool) -> _Part:
    """In a process of its own."""
    replayed = Replay(names, at=at, strict=strict)
    inspector = replayed.run()
    return inspector.checkpoint(), replayed.report, inspector.clock.monotonic_ns()


def _add_all(placing: Placing, parts: list[dict[str, Any]], config: Config) -> None:
    kept: list[Finding] = []
    for saved in parts:
        part = Inspector(config)
        part.first_hand = False
        part.resume(saved)
        part.enter(lambda other: _add(placing, other))
        part.enter(lambda other: kept.extend(other.books.findings.kept))
    _sort(placing, kept)


def _add(placing: Placing, other: Placing) -> None:
    books, more = placing.books, other.books
    for name, total in more.totals.items():
        _add_total(books.total_of(name), total)
    for number, span in more.live.items():
        books.live[number] = span
        books.folded[number] = more.folded[number]
    for state, count in more.told_states.items():
        books.told_states[state] += count
    for reason, count in more.dropped.items():
        books.dropped[reason] += count
    books.logs += more.logs
    _add_details(books, more)
    for pid, base, seqs in other.streams():
        placing.put_by(pid, base, seqs)
    placing._holes += other._holes
    placing._waiting.update(other._waiting)
    placing._waiting_count += other._waiting_count
    placing._gaps += other._gaps
    placing._over.update(other._over)


def _add_total(total: NameTotals, more: NameTotals) -> None:
    for slot in NameTotals.__slots__:
        mine, theirs = getattr(total, slot), getattr(more, slot)
        if isinstance(mine, Cell):
            mine.counts = [one + other for one, other in zip(mine.counts, theirs.counts, strict=True)]
            mine.sum += theirs.sum
        elif isinstance(mine, int):
            setattr(total, slot, mine + theirs)


def _add_details(books: Books, more: Books) -> None:
    for task in more.retention.tasks:
        books.retention.keep(task)
    books.retention.notes.extend(more.retention.notes)
    books.retention.dropped_tasks += more.retention.dropped_tasks
    books.retention.dropped_events += more.retention.dropped_events
    for key, count in more.findings.lints.items():
        books.findings.lints[key] = books.findings.lints.get(key, 0) + count
    books.findings.deadlocks += more.findings.deadlocks


def _sort(placing: Placing, kept: list[Finding]) -> None:
    """So that what is let go for want of room is the oldest of all."""
    retention, findings = placing.books.retention, placing.books.findings
    findings.kept = deque(sorted(kept, key=lambda finding: finding.at), findings.kept.maxlen)
    retention.tasks = deque(sorted(retention.tasks, key=lambda task: task.exited_at + task.wall_offset))
    retention.notes = deque(sorted(retention.notes, key=_wall))


def _wall(note: Note) -> int:
    return note.wall
