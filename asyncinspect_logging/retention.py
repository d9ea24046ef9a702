"""The details that are kept: finished tasks and timeline events, each up to a limit, the oldest going first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from itertools import repeat, starmap
from typing import Any, Final, NamedTuple

from . import process
from .config import Config
from .fields import text_of
from .spans import Span
from .states import OUTCOMES, TaskState
from .told import ToldSpan

__all__ = ["Note", "Retention"]

_MIX: Final = 0x9E3779B97F4A7C15  # 2**64 / golden ratio (Knuth, TAOCP 3, section 6.4): spreads consecutive numbers


class Note(NamedTuple):
    """A timeline entry before it is shown: wall time in ns, the span's number, a record kind or "log", and a text."""

    wall: int
    number: int
    kind: str
    detail: str


class Retention:
    """Keeps `Config.max_tasks` finished tasks and `Config.max_events` timeline entries; counts what it let go."""

    def __init__(self, config: Config) -> None:
        self._max_tasks = config.max_tasks
        self._max_events = config.max_events
        self._rate = int(config.sampling_rate)
        #: How long a task takes (ns) that is kept in any case.
        self.slow = round(config.slow_task * 1e9)
        self._max_length = config.max_field_length
        #: Finished tasks, oldest first. The limit is kept by `trim`, batch by batch. What came in bulk is here as its
        #: last record (`Placing.unfolded` makes a span of that).
        self.tasks: deque[Any] = deque()
        #: Notes, and lines of a log in place of those of what came in bulk; `trim` keeps the limit here too.
        self.notes: deque[Any] = deque()
        # Kept tasks that did not complete, by outcome: all others did, and so need no counting.
        self._uncompleted = dict.fromkeys(OUTCOMES, 0)
        self.dropped_tasks = 0
        self.dropped_events = 0
        #: What such a line says; given by whoever puts lines there.
        self.payload_in: Callable[[bytes], Mapping[str, Any]]
        #: Whether every trace is kept.
        self.everything = self._rate == 1

    def keep(self, finished: Any) -> None:
        self.tasks.append(finished)
        if finished.outcome != "completed":
            self._uncompleted[finished.outcome] += 1

    def wants(self, completed: Span | ToldSpan) -> bool:
        """Whether a task that completed is to be kept: if its trace is, or it was slow. Any other is kept always."""
        return self.samples(completed) or completed.exited_at - completed.entered_at >= self.slow

    def samples(self, task: Any) -> bool:
        """Whether the details of a trace are kept, given by anything that has its `trace`: the same answer for every
        task of it, anywhere.
        """
        if self.everything:
            return True
        trace = task.trace or ""
        low = process.spread(trace) if isinstance(trace, int) else int(trace[16:] or "0", 16)
        return (low * _MIX >> 32 & 0xFFFFFFFF) % self._rate == 0

    def trim(self) -> None:
        """Let go of the oldest tasks and notes beyond the limits."""
        limit, notes = self._max_events, self.notes
        if limit is not None and len(notes) > limit:
            excess = len(notes) - limit
            deque(starmap(notes.popleft, repeat((), excess)), maxlen=0)
            self.dropped_events += excess
        limit, tasks = self._max_tasks, self.tasks
        if limit is None:
            return
        excess = len(tasks) - limit
        if excess > 0:
            oldest = starmap(tasks.popleft, repeat((), excess))
            if any(self._uncompleted.values()):
                self._count_gone(oldest)
            else:
                deque(oldest, maxlen=0)  # as fast as can be
            self.dropped_tasks += excess

    def take(self, count: int) -> list[Any]:
        """Take the oldest tasks out: they are not kept any longer."""
        taken = list(starmap(self.tasks.popleft, repeat((), count)))
        self._count_gone(taken)
        self.dropped_tasks += count
        return taken

    def _count_gone(self, tasks: Iterable[Any]) -> None:
        for task in tasks:
            if task.outcome != "completed":
                self._uncompleted[task.outcome] -= 1

    def states(self) -> dict[str, int]:
        """Kept tasks by final state."""
        counts = {"completed": 0, "failed": 0, "cancelled": 0}
        for outcome, count in self._uncompleted.items():
            counts[OUTCOMES[outcome].value] += count
        counts[TaskState.COMPLETED.value] = len(self.tasks) - sum(counts.values())
        return counts

    def note(self, note: Note) -> None:
        if self._max_events is not None and len(self.notes) >= self._max_events:
            self.notes.popleft()
            self.dropped_events += 1
        self.notes.append(note)

    def note_of(self, note: Note | bytes) -> Note:
        """An entry of `notes`, which may be the line of a step."""
        if isinstance(note, Note):
            return note
        said = self.payload_in(note)
        on = said.get("on")
        on = text_of(on, self._max_length) if isinstance(on, str) else ""
        return Note(said["wall"], int(said["id"], 16), said["kind"], on)

    def notes_by_span(self, only: Container[int] | None = None) -> dict[int, list[Note]]:
        """The notes, by number of the span; `only`: those of these."""
        found: dict[int, list[Note]] = {}
        for note in map(self.note_of, self.notes):
            if only is None or note.number in only:
                found.setdefault(note.number, []).append(note)
        return found
