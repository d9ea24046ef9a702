"""From the books to a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from . import clock as system_clock
from . import opened
from .books import Books
from .catalogue import EVENT_TYPES, LAG_BOUNDS
from .detect.stuck import NOWHERE, Lookout
from .memory import memory_of
from .placing import Placing
from .snapshot import NameView, Snapshot, TaskView
from .spans import Span
from .states import TaskState
from .told import ToldSpan
from .views import task_view

__all__ = ["summarize"]


def summarize(books: Books, placing: Placing, clock: Any, *, tasks: bool, memory: bool = True) -> Snapshot:
    """The snapshot of the books as they are. Without `tasks`, nothing here walks over the live tasks. Without `memory`,
    that is empty: it takes most of the time where there is little else.
    """
    now = clock.monotonic_ns()
    offset = system_clock.wall_ns(0, clock)
    # Both are asked once, so that the tasks and the counts of their states agree.
    pending = {number for number in opened.pending_numbers() if number in books.live}
    running = {span.number for span in opened.running_spans() if span.number in books.live} - pending
    names = {name: total.view(books.bounds) for name, total in books.totals.items()}
    return Snapshot(
        taken_at=(now + offset) / 1e9,
        tasks=_task_views(books, placing.unfolded, pending, running, now, offset) if tasks else (),
        names=MappingProxyType(names),
        states=MappingProxyType(_states(books, len(pending), len(running))),
        events=MappingProxyType(_events(books, names)),
        dropped=MappingProxyType(_dropped(books, placing)),
        memory=MappingProxyType(memory_of(books, placing) if memory else {}),
        findings=tuple(books.findings.kept),
        deadlocks=books.findings.deadlocks,
        lints=MappingProxyType(dict(books.findings.lints)),
        loop_lag=books.findings.lag.histogram(LAG_BOUNDS),
    )


def _task_views(
    books: Books,
    unfolded: Callable[[Any], Span | ToldSpan],
    pending: set[int],
    running: set[int],
    now: int,
    offset: int,
) -> tuple[TaskView, ...]:
    notes = books.retention.notes_by_span()
    views = []
    lookout = Lookout()

    def ended_at(task: Span | ToldSpan) -> int:
        return task.exited_at + (task.wall_offset if isinstance(task, ToldSpan) else offset)

    # In the order in which they ended: they were entered in that in which their batches began.
    retained = sorted(map(unfolded, books.retention.tasks), key=ended_at)
    for task in (*books.live.values(), *retained):
        number, where = task.number, NOWHERE
        if isinstance(task, ToldSpan):
            state = task.state or TaskState.PENDING
        elif number in pending:
            state = TaskState.PENDING
        else:
            state = TaskState.RUNNING if number in running else TaskState.BLOCKED
        if isinstance(task, Span) and task.outcome is None:
            where = lookout.where(task)
        views.append(task_view(task, state, now, notes.get(number, ()), offset, where))
    return tuple(views)


def _states(books: Books, pending: int, running: int) -> dict[str, int]:
    told = books.told_states
    known_at_first_hand = len(books.live) - sum(told.values())
    return {
        "pending": pending + told[TaskState.PENDING],
        "running": running + told[TaskState.RUNNING],
        "blocked": known_at_first_hand - pending - running + told[TaskState.BLOCKED],
        **books.retention.states(),
    }


def _events(books: Books, names: Mapping[str, NameView]) -> dict[str, int]:
    counts = dict.fromkeys(EVENT_TYPES, 0)
    for view in names.values():
        counts["spawn"] += view.spawned
        counts["poll"] += view.polls
        counts["wake"] += view.wakes
        counts["drop"] += view.finished
    counts["log"] = books.logs
    return counts


def _dropped(books: Books, placing: Placing) -> dict[str, int]:
    return {
        **books.dropped,
        "max_tasks": books.retention.dropped_tasks,
        "max_events": books.retention.dropped_events,
        "gap": placing.gaps,
    }
