"""Tasks as they finish, each given once, for an exporter that passes them on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import clock as system_clock
from .errors import ConfigError
from .snapshot import TaskView
from .states import OUTCOMES
from .told import ToldSpan
from .views import task_view

if TYPE_CHECKING:
    from .placing import Placing
    from .routing import Clock

__all__ = ["WAITING", "Finished", "FinishedTask"]

#: Tasks that wait for their reader.
WAITING: Final = 50_000


class FinishedTask(NamedTuple):
    """A task that is over. `started_ns` (when it was entered) and `ended_ns`: Unix time in ns, and exact, while the
    floats of a view are so to 0.2 µs.
    """

    view: TaskView
    started_ns: int
    ended_ns: int


class Finished:
    """The tasks of an inspector that finished since this was made, in the order in which they are known to have, each
    given once: what `Inspector.finished` gives. Whoever wants all of them takes them often enough; of those that
    nobody took, `limit` are kept, and further ones are counted in `dropped`. Neither sampling nor what the inspector
    retains has a part in it.
    """

    def __init__(self, enter: Callable[[Callable[[Placing], None]], None], clock: Clock, limit: int = WAITING) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigError(f"limit={limit!r} is not a number of tasks above 0; write {WAITING}")
        self._enter, self._clock = enter, clock
        self._limit = limit
        self._waiting: deque[Any] = deque()
        #: Tasks for which there was no room.
        self.dropped = 0
        self._enter(lambda placing: placing.books.readers.append(self))

    def add(self, task: Any) -> None:
        """A task is over: called by the inspector, and in the application's own thread. Not more than an append."""
        if len(self._waiting) < self._limit:
            self._waiting.append(task)
        else:
            self.dropped += 1

    def __len__(self) -> int:
        """Tasks that can be taken, of those that the inspector has worked off."""
        return len(self._waiting)

    def take(self, count: int | None = None) -> list[FinishedTask]:
        """The oldest `count` of the tasks that were not taken yet; None: all. The application goes on meanwhile."""
        tasks: list[Any] = []
        notes: dict[int, list[Any]] = {}

        def look(placing: Placing) -> None:
            most = len(self._waiting) if count is None else min(count, len(self._waiting))
            tasks.extend(starmap(self._waiting.popleft, repeat((), most)))
            if tasks:
                notes.update(placing.books.retention.notes_by_span())

        self._enter(look)
        now = self._clock.monotonic_ns()
        offset = system_clock.wall_ns(0, self._clock)
        found = []
        for task in tasks:
            own = task.wall_offset if isinstance(task, ToldSpan) else offset
            view = task_view(task, OUTCOMES[task.outcome], now, notes.get(task.number, ()), offset)
            found.append(FinishedTask(view, (task.entered_at or task.spawned_at) + own, task.exited_at + own))
        return found

    def close(self) -> None:
        """Take no more. May be repeated."""

        def leave(placing: Placing) -> None:
            readers = placing.books.readers
            readers[:] = [reader for reader in readers if reader is not self]

        self._enter(leave)
        self._waiting.clear()

    def forget(self) -> None:
        """In the child of a fork: what is here, the parent passes on."""
        self._waiting.clear()
        self.dropped = 0
