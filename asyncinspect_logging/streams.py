"""Streams of tasks: what is read of a log, or of an export, that is too long to be held as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from .snapshot import Snapshot, TaskView

__all__ = ["TaskStream", "in_snapshot_order", "in_stream_order"]


@runtime_checkable
class TaskStream(Protocol):
    """Tasks one after the other: each when it has ended, and at last the live ones, the youngest of them first, so that
    most come after those that were begun in them. `rest()` is what a snapshot has besides tasks, known once they have
    been gone through.
    """

    def __iter__(self) -> Iterator[TaskView]: ...
    def rest(self) -> Snapshot: ...


def in_stream_order(tasks: Iterable[TaskView]) -> list[TaskView]:
    """The tasks of a snapshot as a stream has them."""
    finished, live = _apart(tasks)
    return finished + live[::-1]


def in_snapshot_order(tasks: Iterable[TaskView]) -> tuple[TaskView, ...]:
    """The tasks of a stream as a snapshot has them: the live ones, oldest first, and then the others."""
    finished, live = _apart(tasks := tuple(tasks))
    # Early exports have them as a snapshot has.
    if tasks and tasks[-1].duration is None:
        live.reverse()
    return (*live, *finished)


def _apart(tasks: Iterable[TaskView]) -> tuple[list[TaskView], list[TaskView]]:
    finished: list[TaskView] = []
    live: list[TaskView] = []
    for task in tasks:
        (live if task.duration is None else finished).append(task)
    return finished, live
