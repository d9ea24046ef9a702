"""Tasks as they finish, each given once, for an exporter that passes them on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, repeat, starmap
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import clock as system_clock
from . import process
from .errors import ConfigError
from .opened import pending_numbers, running_spans
from .snapshot import TaskView
from .spans import REMOTE, Span
from .stacktraces import stacktrace
from .states import OUTCOMES, TaskState
from .told import ToldSpan
from .traceparent import SAMPLED, Trace
from .views import task_view

if TYPE_CHECKING:
    from .placing import Placing
    from .retention import Note
    from .routing import Clock

__all__ = ["WAITING", "Ending", "Finished", "FinishedSpan", "FinishedTask", "endings"]

#: Finished tasks that are looked at for examples.
_NEWEST: Final = 1000
#: Tasks that wait for their reader.
WAITING: Final = 50_000


class FinishedTask(NamedTuple):
    """A task that is over. `started_ns` (when it was entered) and `ended_ns`: Unix time in ns, and exact, while the
    floats of a view are so to 0.2 µs.
    """

    view: TaskView
    started_ns: int
    ended_ns: int


class FinishedSpan(NamedTuple):
    """A task as plain as can be, for who passes on many of them: made in a fifth of the time of a `TaskView`, whose
    fields have the same names here. Ids are numbers (0 for no parent), and `trace` is the id in hex, with flags and
    state where it came from elsewhere (`traceparent.Trace`). Times are in ns, `started` and `ended` Unix times; of a
    task that goes on `ended` is 0, and `outcome` None. `remote`: the parent came with a request. `notes` are its
    timeline entries: Unix time in ns, kind, text.
    """

    id: int
    parent: int
    trace: str
    name: str
    state: str
    outcome: str | None
    spawned: int
    started: int
    ended: int
    fields: Mapping[str, Any]
    polls: int
    wakes: int
    self_wakes: int
    busy: int
    scheduled: int
    max_poll: int
    stepped: bool
    task: str | None
    thread: int | None
    at: str | None
    error: Mapping[str, Any] | None
    links: tuple[str, ...]
    parent_closed: bool
    remote: bool
    notes: tuple[tuple[int, str, str], ...]


class Ending(NamedTuple):
    """How a task ended that is kept. `duration` and `max_poll` in ns, `at` in Unix time in s."""

    name: str
    state: str
    duration: int
    polls: int
    max_poll: int
    at: float
    trace_id: str
    span_id: str


def endings(placing: Placing, clock: Clock) -> list[Ending]:
    """The newest of the finished tasks that are kept, newest first, but for those of traces that the caller does not
    record.
    """
    offset = system_clock.wall_ns(0, clock)
    found = []
    for task in islice(reversed(placing.books.retention.tasks), _NEWEST):
        if isinstance(task, ToldSpan):
            tally: Any = task
            own = task.wall_offset
        elif isinstance(task, Span):
            tally, own = task.tally, offset
        else:
            continue  # came in bulk, out of a log
        if isinstance(task.trace, Trace) and not task.trace.flags & SAMPLED:
            continue
        found.append(
            Ending(
                task.name,
                _STATES[task.outcome],
                task.exited_at - (task.entered_at or task.spawned_at),
                1 if tally is None else tally.polls,
                0 if tally is None else tally.max_poll,
                (task.exited_at + own) / 1e9,
                task.trace_id,
                task.id,
            )
        )
    return found


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
        tasks, notes = self._take(count)
        now = self._clock.monotonic_ns()
        offset = system_clock.wall_ns(0, self._clock)
        found = []
        for task in tasks:
            own = task.wall_offset if isinstance(task, ToldSpan) else offset
            view = task_view(task, OUTCOMES[task.outcome], now, notes.get(task.number, ()), offset)
            found.append(FinishedTask(view, (task.entered_at or task.spawned_at) + own, task.exited_at + own))
        return found

    def take_spans(self, count: int | None = None) -> list[FinishedSpan]:
        """Like `take`, as `FinishedSpan`."""
        tasks, notes = self._take(count)
        offset = system_clock.wall_ns(0, self._clock)
        return [finished_span(task, offset, notes.get(task.number, ())) for task in tasks]

    def live_spans(self) -> tuple[list[FinishedSpan], int]:
        """The tasks that are not over, the oldest first, and the time of now (Unix, ns)."""
        tasks: list[Any] = []
        states: dict[int, str] = {}
        notes: dict[int, list[Note]] = {}

        def look(placing: Placing) -> None:
            placing.complete()
            tasks.extend(task for task in placing.books.live.values() if task.outcome is None)
            pending, running = set(pending_numbers()), {span.number for span in running_spans()}
            for task in tasks:
                number = task.number
                if isinstance(task, ToldSpan):
                    states[number] = (task.state or TaskState.PENDING).value
                else:
                    states[number] = "pending" if number in pending else "running" if number in running else "blocked"
            notes.update(placing.books.retention.notes_by_span())

        self._enter(look)
        now = system_clock.wall_ns(self._clock.monotonic_ns(), self._clock)
        offset = system_clock.wall_ns(0, self._clock)
        found = [finished_span(task, offset, notes.get(task.number, ())) for task in tasks]
        # One may have ended meanwhile, and will be given as a finished one.
        return [s._replace(state=states[s.id], outcome=None, ended=0) for s in found], now

    def _take(self, count: int | None) -> tuple[list[Any], dict[int, list[Note]]]:
        tasks: list[Any] = []
        notes: dict[int, list[Note]] = {}

        def look(placing: Placing) -> None:
            most = len(self._waiting) if count is None else min(count, len(self._waiting))
            tasks.extend(starmap(self._waiting.popleft, repeat((), most)))
            if tasks:
                notes.update(placing.books.retention.notes_by_span({task.number for task in tasks}))

        self._enter(look)
        return tasks, notes

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


_STATES: Final = {outcome: state.value for outcome, state in OUTCOMES.items()}
_no_notes: Final[tuple[tuple[int, str, str], ...]] = ()


def finished_span(task: Any, offset: int, notes: Sequence[Note] = ()) -> FinishedSpan:
    """`task`: a span of this process or a told one, over or not. `offset`: from monotonic to Unix time, in ns."""
    tally, outcome = task.tally, task.outcome
    if isinstance(task, ToldSpan):
        offset, stepped = task.wall_offset, task.stepped
        parent, remote = int(task.parent_id or "0", 16), False
    else:
        stepped, parent = tally is not None, task.parent_number
        remote = bool(parent) and task._parent is REMOTE
    error: Mapping[str, Any] | None = None
    if outcome is not None and outcome != "completed":
        error = getattr(task, "error", None)
        stack = stacktrace(task) if outcome == "failed" else None
        if stack is not None:
            error = {**(error or {}), "stacktrace": stack}
    trace = task.trace
    spawned, entered = task.spawned_at, task.entered_at
    if tally is None:
        polls, wakes, self_wakes, busy, scheduled, max_poll = 1, 0, 0, 0, 0, 0
    else:
        polls, wakes, self_wakes = tally.polls if entered else 0, tally.wakes, tally.self_wakes
        busy, scheduled, max_poll = tally.busy, tally.scheduled, tally.max_poll
    return FinishedSpan(
        task.number,
        parent,
        trace if isinstance(trace, str) else process.trace_id(trace),
        task.name,
        "pending" if outcome is None else _STATES[outcome],
        outcome,
        spawned + offset,
        (entered or spawned) + offset,
        task.exited_at + offset if outcome is not None else 0,
        task.fields,
        polls,
        wakes,
        self_wakes,
        busy,
        scheduled,
        max_poll,
        stepped,
        task.task_name,
        task.thread,
        task.at,
        error,
        task.links,
        task.parent_closed,
        remote,
        tuple([(note.wall, note.kind, note.detail) for note in notes]) if notes else _no_notes,
    )
