"""The view of a finished task straight from the lines it began and ended with, where these say what is usual.

It is the same that `views.task_view` makes of the span (`bulk.unfold`), without the span: no record is read as a
mapping and looked through key by key, which is what takes most of the time there.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import Annotated, Any, Final

import msgspec

from ..fields import FieldPolicy
from ..retention import Note
from ..snapshot import Event, TaskView
from ..states import OUTCOMES
from ..telling import read_error, read_slow
from .bulk import Open
from .decoding import Begin, Exit, payload_in

__all__ = ["view_of"]

_NS: Final = 1e9
_at: Final = itemgetter(0)


class _Begin(msgspec.Struct, gc=False):
    """What is shown of a begin, and not needed to count it (see `decoding.Begin`)."""

    task: str | None = None
    thread: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None
    at: str | None = None
    links: None = None
    parent_closed: bool | None = None
    fields: dict[str, Any] = {}


class _Line(msgspec.Struct, gc=False):
    asyncinspect: _Begin


_line: Final = msgspec.json.Decoder(_Line).decode


def view_of(exit: Exit, now: int, notes: Sequence[Note], policy: FieldPolicy) -> TaskView | None:
    """The view of an exit that `Bulk` took in, `notes` being the entries of its timeline; None where it takes the
    general way. now: Unix time in ns.
    """
    begun: Begin | Open = exit.begun
    polls, wakes, spawn = exit.polls, exit.wakes, None
    if isinstance(begun, Open):
        if begun.more:
            return None
        polls, wakes, spawn, begun = max(polls, begun.polls + 1), max(wakes, begun.wakes), begun.spawn, begun.enter
        if spawn is not None and spawn.seq >= begun.seq:
            return None
    began = begun.t
    if not began:
        return None
    try:
        said = _line(begun.line).asyncinspect
        before = None if spawn is None else _line(spawn.line).asyncinspect
    except Exception:
        return None
    parent, trace, parent_closed = begun.parent, begun.trace, said.parent_closed is True
    task, thread, at, fields = said.task, said.thread, said.at, said.fields
    spawned = began
    if spawn is not None and before is not None:
        spawned = spawn.t
        parent, trace = parent or spawn.parent, trace or spawn.trace
        parent_closed = parent_closed or before.parent_closed is True
        task = before.task if task is None else task
        thread = before.thread if thread is None else thread
        at = before.at if at is None else at
        fields = {**policy.apply(before.fields), **policy.apply(fields)}
    else:
        fields = policy.apply(fields)
    limit = policy.max_length
    if (task is not None and policy.name(task, limit) != task) or (at is not None and policy.name(at, limit) != at):
        return None
    outcome, offset = exit.outcome, begun.wall - began
    duration = exit.duration if exit.duration >= 0 else max(0, exit.t - began)
    polls = polls or 1
    stepped = polls > 1 or exit.max_poll or (exit.slow_polls is not None and read_slow(exit.slow_polls) is not None)
    busy = exit.busy if stepped else 0
    events = [
        Event((spawned + offset) / _NS, "spawn", ""),
        *(Event(note.wall / _NS, note.kind, note.detail) for note in notes),
        Event((began + offset) / _NS, "enter", ""),
        Event((began + duration + offset) / _NS, "exit", outcome),
    ]
    if notes or spawned > began:
        events.sort(key=_at)
    return TaskView(
        exit.id,
        parent,
        trace,
        policy.name(begun.name if spawn is None else spawn.name),
        OUTCOMES[outcome],
        outcome,
        MappingProxyType(fields),
        max(0, now - offset - spawned) / _NS,
        duration / _NS,
        polls,
        wakes,
        exit.self_wakes,
        busy / _NS,
        max(0, duration - busy) / _NS if stepped else 0.0,
        exit.scheduled / _NS,
        exit.max_poll / _NS,
        (spawned + offset) / _NS,
        task,
        thread,
        at,
        None if outcome == "completed" else read_error(payload_in(exit.line).get("error"), policy),
        None,
        None,
        (),
        (),
        parent_closed,
        tuple(events),
    )
