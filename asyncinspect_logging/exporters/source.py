"""What an exporter takes: an inspector, a snapshot, or a stream of tasks, which is never held as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from ..snapshot import Snapshot, TaskView
from ..streams import TaskStream, in_stream_order

__all__ = ["Progress", "Reading", "Source", "read_source"]

#: Called now and then with the tasks done, and the tasks in all (None where that is not known beforehand).
Progress: TypeAlias = Callable[[int, int | None], None]

#: Tasks from one call of the progress function to the next.
_STEP: Final = 1000


class _Inspector(Protocol):
    def snapshot(self) -> Snapshot: ...


Source: TypeAlias = _Inspector | Snapshot | TaskStream


class Reading(NamedTuple):
    """A source that is about to be read: its tasks, in the order of a stream, the rest (to be asked for after the
    tasks), and how many tasks.
    """

    tasks: Iterator[TaskView]
    rest: Callable[[], Snapshot]
    total: int | None


def read_source(source: Source, progress: Progress | None = None) -> Reading:
    """Begin to read `source`. `progress` is called while the tasks are taken, and once more after the last of them.

    Raises TypeError if `source` is none of the three.
    """
    taken: Any = source
    if not isinstance(source, Snapshot | type) and callable(getattr(source, "snapshot", None)):
        taken = taken.snapshot()
    if isinstance(taken, Snapshot):
        snapshot = taken
        tasks, total = in_stream_order(snapshot.tasks), len(snapshot.tasks)
        counted = iter(tasks) if progress is None else _count(iter(tasks), total, progress)
        return Reading(counted, lambda: snapshot._replace(tasks=()), total)
    if not isinstance(taken, TaskStream):
        raise TypeError(
            f"nothing to export in a {type(source).__name__}; give an Inspector, a Snapshot or a stream of tasks"
        )
    counted = iter(taken) if progress is None else _count(iter(taken), None, progress)
    return Reading(counted, taken.rest, None)


def _count(tasks: Iterator[TaskView], total: int | None, progress: Progress) -> Iterator[TaskView]:
    done = 0
    for done, task in enumerate(tasks, 1):
        yield task
        if done % _STEP == 0:
            progress(done, total)
    progress(done, total)
