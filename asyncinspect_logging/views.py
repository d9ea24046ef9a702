"""From a span, or from what was told of one, to its frozen view."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final

from .detect.stuck import NOWHERE, Where
from .retention import Note
from .snapshot import Event, TaskView
from .spans import Span
from .states import OUTCOMES, TaskState
from .told import ToldSpan

__all__ = ["task_view"]

_NS: Final = 1e9


def task_view(
    task: Span | ToldSpan, state: TaskState, now: int, notes: Sequence[Note], offset: int, where: Where = NOWHERE
) -> TaskView:
    """The view of a task in `state` at the monotonic time `now`; `offset` leads from that to Unix time (both in ns).
    `where`: where a span of this process stands; a told one says that itself.
    """
    tally, outcome = task.tally, task.outcome
    spawned, entered = task.spawned_at, task.entered_at
    began = entered or spawned
    if isinstance(task, ToldSpan):
        # Its times are by the clock of its process, which may have been another.
        now += offset - task.wall_offset
        stepped, offset = task.stepped, task.wall_offset
    else:
        stepped = tally is not None
    ended = now if outcome is None else task.exited_at
    busy = max(0, tally.busy) if tally is not None and stepped else 0
    events = [Event((spawned + offset) / _NS, "spawn", ""), *(Event(n.wall / _NS, n.kind, n.detail) for n in notes)]
    if entered:
        events.append(Event((entered + offset) / _NS, "enter", ""))
    if outcome is not None:
        events.append(Event((ended + offset) / _NS, "exit", outcome))
    events.sort(key=_at)
    waiting_on, since = _wait_of(task, state, now, offset, where)
    return TaskView(
        id=task.id,
        parent_id=task.parent_id,
        trace_id=task.trace_id,
        name=task.name,
        state=state if outcome is None else OUTCOMES[outcome],
        outcome=outcome,
        fields=MappingProxyType(dict(task.fields)),
        age=max(0, now - spawned) / _NS,
        duration=None if outcome is None else (ended - began) / _NS,
        polls=0 if not entered else 1 if tally is None else tally.polls,
        wakes=0 if tally is None else tally.wakes,
        self_wakes=0 if tally is None else tally.self_wakes,
        busy=busy / _NS,
        idle=max(0, ended - began - busy) / _NS if stepped and entered else 0.0,
        scheduled=0.0 if tally is None else max(0, tally.scheduled) / _NS,
        max_poll=0.0 if tally is None else tally.max_poll / _NS,
        started_at=(spawned + offset) / _NS,
        task=task.task_name,
        thread=task.thread,
        at=task.at,
        error=getattr(task, "error", None) if outcome not in (None, "completed") else None,
        waiting_on=waiting_on,
        waiting_since=None if since is None else since / _NS,
        await_chain=where.await_chain,
        links=tuple(map(str, task.links)) if task.links else (),
        parent_closed=task.parent_closed,
        events=tuple(events),
        awaiting=where.awaiting,
    )


def _wait_of(
    task: Span | ToldSpan, state: TaskState, now: int, offset: int, where: Where
) -> tuple[str | None, float | None]:
    """What a task waits for, and since when (Unix time in ns), as far as that is known."""
    if state is not TaskState.BLOCKED or task.outcome is not None:
        return None, None
    if isinstance(task, ToldSpan):
        return task.on, task.suspended_at or None
    if where.waiting_on is None:
        return None, None
    if task.tally is not None and task.steps is not None and not task.steps.started:
        # When the last step that was seen ended.
        return where.waiting_on, task.tally.part_from + offset
    return where.waiting_on, None if where.ago is None else now - where.ago * _NS + offset


def _at(event: Event) -> float:
    return event.at
