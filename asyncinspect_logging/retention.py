"""The details that are kept: finished tasks and timeline events, each up to a limit, the oldest going first."""

from __future__ import annotations

from collections import deque
from itertools import repeat, starmap
from typing import Final, NamedTuple

from .config import Config
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
        self._slow = round(config.slow_task * 1e9)
        #: Finished tasks, oldest first. The limit is kept by `trim`, batch by batch.
        self.tasks: deque[Span | ToldSpan] = deque()
        self.notes: deque[Note] = deque()
        # Kept tasks that did not complete, by outcome: all others did, and so need no counting.
        self._uncompleted = dict.fromkeys(OUTCOMES, 0)
        self.dropped_tasks = 0
        self.dropped_events = 0
        #: Whether every trace is kept.
        self.everything = self._rate == 1

    def keep(self, finished: Span | ToldSpan) -> None:
        self.tasks.append(finished)
        if finished.outcome != "completed":
            self._uncompleted[finished.outcome] += 1  # type: ignore[index]

    def wants(self, completed: Span | ToldSpan) -> bool:
        """Whether a task that completed is to be kept: if its trace is, or it was slow. Any other is kept always."""
        return self.samples(completed) or completed.exited_at - completed.entered_at >= self._slow

    def samples(self, task: Span | ToldSpan) -> bool:
        """Whether the details of this task's trace are kept: the same answer for every task of a trace, anywhere."""
        if self.everything:
            return True
        trace = task.trace
        low = trace if isinstance(trace, int) else int(trace[16:] or "0", 16)
        return (low * _MIX >> 32 & 0xFFFFFFFF) % self._rate == 0

    def trim(self) -> None:
        """Let go of the oldest tasks beyond the limit."""
        limit, tasks = self._max_tasks, self.tasks
        if limit is None:
            return
        excess = len(tasks) - limit
        if excess > 0:
            uncompleted, oldest = self._uncompleted, starmap(tasks.popleft, repeat((), excess))
            if any(uncompleted.values()):
                for task in oldest:
                    if task.outcome != "completed":
                        uncompleted[task.outcome] -= 1  # type: ignore[index]
            else:
                deque(oldest, maxlen=0)  # as fast as can be
            self.dropped_tasks += excess

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

    def notes_by_span(self) -> dict[int, list[Note]]:
        found: dict[int, list[Note]] = {}
        for note in self.notes:
            found.setdefault(note.number, []).append(note)
        return found
