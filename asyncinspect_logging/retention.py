"""The details that are kept: finished tasks and timeline events, each up to a limit, the oldest going first."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from .config import Config
from .spans import Span
from .states import OUTCOMES
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
        self.tasks: deque[Span | ToldSpan] = deque()
        self.notes: deque[Note] = deque()
        # By outcome, under plain texts: to hash a member of an enum takes as long as all the rest of keeping a task.
        self.kept = dict.fromkeys(OUTCOMES, 0)
        self.dropped_tasks = 0
        self.dropped_events = 0
        self.everything = self._rate == 1

    def keep(self, finished: Span | ToldSpan) -> None:
        """Keep a finished task if its trace is kept, it did not complete, or it was slow."""
        outcome = finished.outcome
        assert outcome is not None
        if (
            self.everything
            or outcome != "completed"
            or finished.exited_at - finished.entered_at >= self._slow
            or self.samples(finished)
        ):
            self.tasks.append(finished)
            self.kept[outcome] += 1

    def samples(self, task: Span | ToldSpan) -> bool:
        """Whether the details of this task's trace are kept: the same answer for every task of a trace, anywhere."""
        if self.everything:
            return True
        trace = task.trace if isinstance(task, Span) else task.trace_id
        low = trace if isinstance(trace, int) else int(trace[16:] or "0", 16)
        return (low * _MIX >> 32 & 0xFFFFFFFF) % self._rate == 0

    def trim(self) -> None:
        """Let go of the oldest beyond the limit."""
        limit, tasks = self._max_tasks, self.tasks
        if limit is None:
            return
        excess = len(tasks) - limit
        if excess > 0:
            kept, oldest = self.kept, tasks.popleft
            for _ in range(excess):
                kept[oldest().outcome] -= 1  # type: ignore[index]
            self.dropped_tasks += excess

    def states(self) -> dict[str, int]:
        """Kept tasks by final state."""
        counts: dict[str, int] = {}
        for outcome, count in self.kept.items():
            state = OUTCOMES[outcome].value
            counts[state] = counts.get(state, 0) + count
        return counts

    def note(self, note: Note) -> None:
        self.notes.append(note)
        if self._max_events is not None and len(self.notes) > self._max_events:
            self.notes.popleft()
            self.dropped_events += 1

    def notes_by_span(self) -> dict[int, list[Note]]:
        found: dict[int, list[Note]] = {}
        for note in self.notes:
            found.setdefault(note.number, []).append(note)
        return found

    def sample_of(self, kept: deque[Any], count: int) -> Iterable[Any]:
        """Some of what is kept, from both ends, to be measured."""
        half = min(len(kept) // 2 + 1, count // 2)
        return [kept[index] for index in range(min(half, len(kept)))] + [kept[-1 - index] for index in range(min(half, len(kept)))]
