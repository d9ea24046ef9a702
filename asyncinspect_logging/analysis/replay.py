"""From a log back to the inspector that was live when it was written, or to a stream of its tasks.

A line is a record of ours (a JSON object with the key `asyncinspect`, or the payload itself), an ordinary one that was
written inside a span (it has our `span_id`) and becomes an entry of that span's timeline, or none of our business.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from ..errors import ConfigError
from ..inspector import Inspector
from ..placing import UNNUMBERED, Placing
from ..records import KEY, flaw_of
from ..retention import Note
from ..snapshot import Snapshot, TaskView
from ..states import TaskState
from ..told import ToldSpan
from ..views import task_view
from .bulk import Bulk
from .decoding import Exit, Ordinary, Unreadable, annotation, is_object_begun, ordinary, ordinary_of, parse
from .decoding import bare as bare_of
from .files import LONG_LINE, Batch, LogFileError, Paths, batches, sources
from .quick_view import view_of

__all__ = ["LogTasks", "Replay", "ReplayError", "Report", "RulesLike", "replay"]

#: Problems kept in a report; the others are counted.
_MAX_PROBLEMS: Final = 100
#: Records that may wait for the beginning of their span, which another file may have. In a file of n shuffled lines, up
#: to n / 4 wait at a time, of 600 bytes each.
_MAX_WAITING: Final = 1 << 18
#: Finished tasks that are held back for what may yet be told of them, and entries held for each task.
_HELD_BACK: Final = 1000
_MAX_NOTES: Final = 10_000
#: Entries held for spans that are not there (yet), in all.
_MAX_STRAY_NOTES: Final = 50_000
_FOREVER: Final = (1 << 63) - 1
_KEY: Final = KEY.encode()
_FIX: Final = "take the line out, or read without strict"


class ReplayError(LogFileError):
    """A log has a line that is broken, and that was not to be borne (`strict`). The message says where and why."""


class RulesLike(Protocol):
    """See `analysis.rules`."""

    def payloads(self, line: bytes | str, file: str, number: int) -> Iterable[Mapping[str, Any]]: ...


@dataclasses.dataclass(slots=True)
class Report:
    """What was met in a log.

    lines: all of them. records: lifecycle records, also those that came twice. annotations: lines inside a span.
    foreign: lines of others. broken: lines that could not be read, and records that say what no record can.
    missing: records that were written and are not there, by their numbers: if there are any, all numbers are "at least"
    so much, and the snapshot counts them as dropped for the reason `gap`.
    bytes_read: of the files, as they are stored. problems: (file, line, what is wrong) of the first broken ones.
    """

    lines: int = 0
    records: int = 0
    annotations: int = 0
    foreign: int = 0
    broken: int = 0
    missing: int = 0
    bytes_read: int = 0
    problems: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)


class LogClock:
    """A clock that stands at the latest time in a log. `now`: Unix time in ns, for the monotonic time too."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic_ns(self) -> int:
        return self.now

    def time_ns(self) -> int:
        return self.now


class Reader:
    """Reads logs into an inspector, batch by batch."""

    def __init__(
        self,
        paths: Paths,
        inspector: Inspector,
        *,
        at: float | None,
        strict: bool,
        rules: RulesLike | None,
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        if at is not None and (isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < _FOREVER / 1e9):
            raise ConfigError(f"at={at!r} is no moment; write Unix time in seconds, such as 1700000000.5")
        self.sources = sources(paths)
        self.inspector = inspector
        self.report = Report()
        self._limit = _FOREVER if at is None else round(at * 1e9)
        self.at = at
        self.strict = strict
        self._rules = rules
        self.progress = progress
        self._length = inspector.config.max_field_length
        self._bulk: Bulk | None = None
        self._batch: Batch | None = None
        #: Is given each batch of lines that is read.
        self.watch: Callable[[Batch], object] | None = None
        # Lines of the batch that went the general way.
        self._oddities = 0

    def read(self) -> Iterator[None]:
        """All of it; a turn is a batch of lines."""
        for batch in batches(self.sources, self.progress, getattr(self._rules, "first_time", None)):
            self.take(batch)
            yield
        self.finish()

    def take(self, batch: Batch) -> None:
        """A batch of lines."""
        self._batch = batch
        if self.watch is not None:
            self.watch(batch)
        self.inspector.enter(self._enter)
        clock = self.inspector.clock
        if isinstance(clock, LogClock) and self._bulk is not None:
            clock.now = self._bulk.latest if self.at is None else self._limit

    def finish(self) -> None:
        """There are no more."""
        self.inspector.enter(self._finish)

    def _enter(self, placing: Placing) -> None:
        bulk, report, batch = self._bulk, self.report, self._batch
        assert batch is not None
        if bulk is None or placing.bulk is not bulk:
            bulk = self._bulk = Bulk(placing, self._limit)
            placing.max_waiting = _MAX_WAITING
        if batch.problem:
            report.lines += 1
            self._broken(batch.first, batch.problem)
            return
        report.lines += len(batch.lines)
        if batch.long:
            self._odd(batch.lines[0], 0)
            return
        self._oddities, before = 0, bulk.later
        bulk.take(batch.lines, self._odd)
        report.records += len(batch.lines) - self._oddities - (bulk.later - before)

    def _finish(self, placing: Placing) -> None:
        finish = getattr(self._rules, "finish", None)
        if finish is not None:
            for payload in finish():
                self._record(payload, placing, 0, ruled=True)
        self.report.missing = placing.holes()
        placing.missing = max(placing.missing, self.report.missing)
        self.report.bytes_read = sum(source.done for source in self.sources)

    # -- lines out of the ordinary -----------------------------------------------------------------------------------

    def _odd(self, line: bytes, index: int) -> None:
        """Take in a line by the general rules."""
        self._oddities += 1
        batch, bulk = self._batch, self._bulk
        assert batch is not None
        assert bulk is not None
        number, placing = batch.first + index, bulk.placing
        cut = batch.cut and index == len(batch.lines) - 1
        if _KEY not in line:
            # Most likely not a record. What is wanted of it is read in C, and the rest passed over.
            try:
                self._ordinary(ordinary(line), line, number, placing)
                return
            except Exception:
                pass
        bare = bare_of(line)
        if not bare:
            if b"\0" in line:
                self._broken(number, "there is nothing in the line but NUL bytes")
            return
        if not bare.startswith(b"{"):
            self._foreign(line, number, placing)
            return
        try:
            if len(bare) > LONG_LINE:
                raise Unreadable(f"it is longer than {LONG_LINE >> 20} MB, which no record is")
            found = parse(bare)
        except Unreadable as problem:
            if not is_object_begun(bare):
                self._foreign(line, number, placing)
            elif cut:
                self._broken(number, f"the line is cut short: the file ends in it ({problem})")
            else:
                self._broken(number, str(problem))
            return
        if not isinstance(found, dict):
            self._foreign(line, number, placing)
        elif found.get(KEY) is not None:
            self._record(found[KEY], placing, number)
        elif "kind" in found and "v" in found:
            self._record(found, placing, number)
        else:
            self._ordinary(ordinary_of(found), line, number, placing)

    def _record(self, payload: Any, placing: Placing, number: int, *, ruled: bool = False) -> None:
        bulk = self._bulk
        assert bulk is not None
        if not isinstance(payload, Mapping):
            what = f"{KEY} is {type(payload).__name__}, not an object; write the log with a formatter for JSON"
            self._broken(number, what)
            return
        flaw = flaw_of(payload)
        if flaw is not None:
            self._broken(number, flaw[:500])
            return
        if ruled:
            payload = {**payload, "pid": UNNUMBERED}
        if payload["wall"] > self._limit:
            if payload["pid"] != UNNUMBERED:
                placing.seqs_of(payload["pid"], int(payload["id"], 16) >> 32).add(payload["seq"])
            return
        bulk.latest = max(bulk.latest, payload["wall"])
        if not ruled:
            self.report.records += 1
        placing.place(payload)

    def _ordinary(self, line: Ordinary, text: bytes, number: int, placing: Placing) -> None:
        if line.is_told():
            raise ValueError
        bulk = self._bulk
        assert bulk is not None
        found = annotation(line, bulk.latest, self._length)
        if found is None:
            self._foreign(text, number, placing)
            return
        span, told, wall = found
        if wall <= self._limit:
            self.report.annotations += 1
            bulk.latest = max(bulk.latest, wall)
            placing.annotate(Note(wall, span, "log", told))

    def _foreign(self, line: bytes, number: int, placing: Placing) -> None:
        self.report.foreign += 1
        if self._rules is not None:
            assert self._batch is not None
            for payload in self._rules.payloads(line.removesuffix(b"\n"), self._batch.source.name, number):
                self._record(payload, placing, number, ruled=True)

    def _broken(self, number: int, what: str) -> None:
        assert self._batch is not None
        assert self._bulk is not None
        name = self._batch.source.name
        if self.strict:
            raise ReplayError(f"{name}:{number}: {what}; {_FIX}")
        self.report.broken += 1
        self._bulk.placing.books.dropped["malformed"] += 1
        if len(self.report.problems) < _MAX_PROBLEMS:
            self.report.problems.append((name, number, what))


class Replay:
    """A log to be read: `run()` gives the inspector, `report` says what was met.

    paths: a file, a pattern, "-" for stdin, or several of these; gzip and zstd are read too.
    at: Unix time in seconds: the state at that moment, without what came later.
    strict: a broken line is an error.
    inspector: where to count; default: a new one, whose clock stands at the latest time in the log (or `at`).
    rules: see `analysis.rules.load_rules`: makes records of the lines of others.
    progress: called now and then with the bytes done, and the bytes in all or None.
    processes: how many files may be read at a time, each in a process of its own; default: 1. It can only be of use
        where they were written by several processes, are large, and there are idle cores: a process takes 0.45 s
        before it reads, and on two busy cores no gain was seen. Not with `inspector`, `rules` or stdin. As with any
        process pool, the main module must be fit to be imported.

    Raises LogFileError for what cannot be read, ConfigError for an `at` that is no time, MissingExtraError where a
    package is missing.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        at: float | None = None,
        strict: bool = False,
        inspector: Inspector | None = None,
        rules: RulesLike | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        processes: int | None = None,
    ) -> None:
        self.inspector = log_inspector() if inspector is None else inspector
        # Rules remember what they have met, and an inspector may have books already.
        alone = inspector is not None or rules is not None
        self._processes = 1 if alone or processes is None else processes
        self._reader = Reader(paths, self.inspector, at=at, strict=strict, rules=rules, progress=progress)
        self.report = self._reader.report

    def run(self) -> Inspector:
        """Read everything. Raises ReplayError where `strict` and a line is broken."""
        if self._processes > 1 and len(self._reader.sources) > 1:
            from .parallel import read_in_parallel

            if read_in_parallel(self._reader, self._processes):
                return self.inspector
        for _ in self._reader.read():
            pass
        # A deadlock is told when it is seen a second time.
        self.inspector.look()
        self.inspector.look()
        return self.inspector


def replay(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    at: float | None = None,
    strict: bool = False,
    inspector: Inspector | None = None,
    rules: RulesLike | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Inspector:
    """The inspector that a log makes: the one that was live when it was written. For arguments and errors see `Replay`,
    which also says what was met.
    """
    return Replay(paths, at=at, strict=strict, inspector=inspector, rules=rules, progress=progress).run()


def log_inspector(config: Any = None) -> Inspector:
    """An inspector of a log: this process is none of its business."""
    inspector = Inspector(config, clock=LogClock())
    inspector.first_hand = False
    return inspector


class LogTasks:
    """The tasks in a log, one after the other, each with its whole timeline: in memory that depends on how many are
    open at a time, and not on the length of the log. Can be iterated once.

    A task comes some time after its end, so that what comes a bit late is in it; those still open come last. `age` runs
    to the latest time read by then. `rest()` has everything else, once all have come. For the arguments see `Replay`;
    of an `inspector`, the config is used, without its limits.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        at: float | None = None,
        strict: bool = False,
        inspector: Inspector | None = None,
        rules: RulesLike | None = None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> None:
        from ..config import Config

        config = Config() if inspector is None else inspector.config
        self._inspector = log_inspector(dataclasses.replace(config, max_tasks=None, max_events=None))
        self._reader = Reader(paths, self._inspector, at=at, strict=strict, rules=rules, progress=progress)
        self.report = self._reader.report
        self._notes: dict[int, list[Note]] = {}
        self._dropped_notes = 0
        # How many are held, and at how many those are looked for whose span is not there.
        self._held = 0
        self._look_at = _MAX_STRAY_NOTES
        self._ready: list[TaskView] = []
        self._begun = False

    def watch(self, watch: Callable[[Batch], object]) -> None:
        """Have `watch` called with each batch of lines when it is read."""
        self._reader.watch = watch

    def __iter__(self) -> Iterator[TaskView]:
        """Raises ReplayError where `strict` and a line is broken."""
        if self._begun:
            raise ReplayError("the tasks of a log can be gone through once; make another LogTasks")
        self._begun = True
        for _ in self._reader.read():
            self._inspector.enter(lambda placing: self._take(placing, _HELD_BACK))
            yield from self._ready
        self._inspector.look()
        self._inspector.look()
        self._inspector.enter(lambda placing: self._take(placing, 0))
        yield from self._ready
        self._inspector.enter(self._take_open)
        yield from self._ready
        self._ready = []
        self._notes.clear()

    def rest(self) -> Snapshot:
        """Everything but the tasks."""
        snapshot = self._inspector.snapshot(tasks=False)
        states = dict(snapshot.states)
        for state in ("completed", "failed", "cancelled"):
            states[state] = sum(getattr(view, state) for view in snapshot.names.values())
        dropped = {**snapshot.dropped, "max_tasks": 0, "max_events": self._dropped_notes}
        return snapshot._replace(states=states, dropped=dropped)

    def _take(self, placing: Placing, hold_back: int) -> None:
        retention = placing.books.retention
        self._sort_notes(retention)
        if self._held > self._look_at:
            self._drop_strays(placing)
        excess = len(retention.tasks) - hold_back
        self._ready = []
        if excess > 0:
            now, policy = self._inspector.clock.monotonic_ns(), placing.policy
            for task in retention.take(excess):
                view = None
                if isinstance(task, Exit) and not isinstance(task.begun, ToldSpan):
                    number = int(task.id, 16)
                    view = view_of(task, now, self._notes.get(number, ()), policy)
                    if view is not None:
                        self._held -= len(self._notes.pop(number, ()))
                self._ready.append(view or self._view(placing.unfolded(task), TaskState.COMPLETED))

    def _take_open(self, placing: Placing) -> None:
        placing.complete()
        # The youngest first, so that most come after those that were begun in them.
        live = reversed(placing.books.live.values())
        self._ready = [self._view(task, getattr(task, "state", None) or TaskState.PENDING) for task in live]

    def _sort_notes(self, retention: Any) -> None:
        """By span, so that they go with their task."""
        notes, found = retention.notes, self._notes
        while notes:
            note = retention.note_of(notes.popleft())
            of_span = found.setdefault(note.number, [])
            of_span.append(note)
            self._held += 1
            if len(of_span) > 2 * _MAX_NOTES:
                self._drop(of_span, len(of_span) - _MAX_NOTES)

    def _drop(self, notes: list[Note], count: int) -> None:
        del notes[:count]
        self._held -= count
        self._dropped_notes += count

    def _drop_strays(self, placing: Placing) -> None:
        """Let go of the oldest entries of spans that have not begun, or went by long ago."""
        books, bulk, notes = placing.books, placing.bulk, self._notes
        there = {int(task.id, 16) for task in books.retention.tasks}
        strays = [
            number
            for number in notes
            if number not in there and number not in books.live and bulk.trace_of(number) is None
        ]
        strays.sort(key=lambda number: notes[number][-1].wall)
        excess = sum(len(notes[number]) for number in strays) - _MAX_STRAY_NOTES // 2
        for number in strays:
            if excess <= 0:
                break
            excess -= len(notes[number])
            self._drop(notes[number], len(notes[number]))
            del notes[number]
        self._look_at = self._held + _MAX_STRAY_NOTES // 2

    def _view(self, task: Any, state: TaskState) -> TaskView:
        notes = self._notes.pop(task.number, [])
        self._held -= len(notes)
        return task_view(task, state, self._inspector.clock.monotonic_ns(), notes, 0)
