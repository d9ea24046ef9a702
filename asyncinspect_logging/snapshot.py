"""Frozen views of an inspector: plain data, safe to keep, to pass to another thread and to read at leisure.

They are tuples underneath, because a scrape builds some six of them for each span name and building a tuple costs
a third of what a frozen dataclass does.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NamedTuple

from .states import TaskState

__all__ = ["Event", "Finding", "Histogram", "NameView", "Snapshot", "TaskView"]


class Histogram(NamedTuple):
    """A distribution. `counts[i]` observations were <= `bounds[i]` and above the bound before it; the last entry of
    `counts`, one longer than `bounds`, holds those above every bound. Bounds and sum are in seconds, or in polls.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def total(self) -> int:
        """Number of observations (`count` is taken by tuple)."""
        return sum(self.counts)

    def cumulative(self) -> tuple[int, ...]:
        """Observations <= each bound, then all of them: the values of Prometheus's `le` buckets, +Inf last."""
        return tuple(accumulate(self.counts))


class Event(NamedTuple):
    """One entry of a task's timeline. `at` is Unix time in seconds; `kind` a record kind, or "log"."""

    at: float
    kind: str
    detail: str


class Finding(NamedTuple):
    """Something wrong with the program. `at` is Unix time in seconds.

    `evidence` lists what shows it: records, as `span:kind:t` (deadlocks) or `pid:seq` (lints that were found in a log),
    or frames: those of the thread of a blocked loop, outermost first, or where a thread's lock is waited for and where
    it was taken (deadlocks). It is empty where a lint was found live.
    """

    kind: str
    name: str
    span_ids: tuple[str, ...]
    message: str
    evidence: tuple[str, ...]
    at: float


class TaskView(NamedTuple):
    """One task, live or retained. All times are in seconds; `started_at` is Unix time.

    `age` runs from enter (or spawn) to the snapshot, `duration` from enter to exit (None while live).
    `busy + idle` is the task's time: busy while it held the loop, idle while it did not; `scheduled` is the part of
    idle between being woken and being polled. Where nobody saw the steps (no driver), `polls` is 1 and all of them
    are 0.

    `task` is the qualified name of the coroutine of the task that the span is in; None outside tasks. Without a driver
    nothing of the task is kept, and so it is None, too, once the task is gone, unless its beginning was recorded.

    Of a live task that is blocked, `waiting_on` says what it waits for (such as `lock:db held by checkout`) and
    `waiting_since` from when on, in Unix time; None where that is not known, as where nobody saw the steps.
    `await_chain` lists the frames that it is in as `file.py:41 function`, outermost first, and `awaiting` the ids of
    the spans of the tasks that it waits for.
    """

    id: str
    parent_id: str | None
    trace_id: str
    name: str
    state: TaskState
    outcome: str | None
    fields: Mapping[str, Any]
    age: float
    duration: float | None
    polls: int
    wakes: int
    self_wakes: int
    busy: float
    idle: float
    scheduled: float
    max_poll: float
    started_at: float
    task: str | None
    thread: int | None
    at: str | None
    error: Mapping[str, Any] | None
    waiting_on: str | None
    waiting_since: float | None
    await_chain: tuple[str, ...]
    links: tuple[str, ...]
    parent_closed: bool
    events: tuple[Event, ...]
    awaiting: tuple[str, ...] = ()


class NameView(NamedTuple):
    """Everything counted under one span name since the inspector began (or was reset). Times in seconds.

    `durations` maps a final state to its histogram and has only the states that were seen.
    """

    name: str
    spawned: int
    completed: int
    failed: int
    cancelled: int
    polls: int
    wakes: int
    self_wakes: int
    busy: float
    idle: float
    scheduled: float
    durations: Mapping[str, Histogram]
    poll_counts: Histogram
    poll_durations: Histogram
    scheduled_delays: Histogram

    @property
    def finished(self) -> int:
        return self.completed + self.failed + self.cancelled

    @property
    def live(self) -> int:
        return self.spawned - self.finished


class Snapshot(NamedTuple):
    """An inspector at one moment. `taken_at` is Unix time in seconds.

    `tasks` lists the live tasks, oldest first, then the retained ones, oldest first. `states`, `events`, `dropped`
    and `memory` (bytes) have every key of the metric catalogue, at zero where nothing happened.
    """

    taken_at: float
    tasks: tuple[TaskView, ...]
    names: Mapping[str, NameView]
    states: Mapping[str, int]
    events: Mapping[str, int]
    dropped: Mapping[str, int]
    memory: Mapping[str, int]
    findings: tuple[Finding, ...]
    deadlocks: int
    lints: Mapping[tuple[str, str], int]
    loop_lag: Histogram

    def find(self, id: str) -> TaskView | None:
        """The task with this span id, or None if it is neither live nor retained."""
        return next((task for task in self.tasks if task.id == id), None)
