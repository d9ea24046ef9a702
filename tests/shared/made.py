"""Tasks, snapshots and streams made by hand, of what a test says and else of nothing in particular."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hypothesis import strategies as st

from asyncinspect_logging import TaskState
from asyncinspect_logging.snapshot import Event, Histogram, Snapshot, TaskView

BASE = 0x1234 << 40
T0 = 1_700_000_000.0
NO_HISTOGRAM = Histogram((), (0,), 0.0)

#: A task that has just begun.
BLANK = TaskView(
    id="00000000000000a1",
    parent_id=None,
    trace_id="1" * 32,
    name="job",
    state=TaskState.RUNNING,
    outcome=None,
    fields=MappingProxyType({}),
    age=0.0,
    duration=None,
    polls=1,
    wakes=0,
    self_wakes=0,
    busy=0.0,
    idle=0.0,
    scheduled=0.0,
    max_poll=0.0,
    started_at=0.0,
    task=None,
    thread=None,
    at=None,
    error=None,
    waiting_on=None,
    waiting_since=None,
    await_chain=(),
    links=(),
    parent_closed=False,
    events=(),
)


def a_view(
    made: float, end: float | None, *, now: float, entered: float | None = None, told: Iterable[Event] = (), **more: Any
) -> TaskView:
    """A task that was made at one time, and ran from then, or from `entered`, to `end` (None: it is live at `now`), in
    seconds of Unix time, with this on its timeline.
    """
    begin = made if entered is None else entered
    events = [Event(made, "spawn", ""), Event(begin, "enter", ""), *told]
    if end is not None:
        events.append(Event(end, "exit", more.get("outcome") or "completed"))
    given = {
        "state": TaskState.BLOCKED if end is None else TaskState.COMPLETED,
        "outcome": None if end is None else "completed",
        "age": now - made,
        "duration": None if end is None else end - begin,
        "started_at": made,
        "events": tuple(events),
    }
    return BLANK._replace(**(given | more))


def id_of(number: int) -> str:
    return f"{BASE + number:016x}"


def task(
    number: int,
    name: str = "job",
    parent: int | None = None,
    began: float = 0.0,
    ended: float | None = 1.0,
    *,
    now: float = 100.0,
    entered: float | None = None,
    told: Iterable[tuple[float, str, str]] = (),
    **more: Any,
) -> TaskView:
    """A task from `began` to `ended` (None: it is live at `now`), in seconds after a fixed moment."""
    return a_view(
        T0 + began,
        None if ended is None else T0 + ended,
        now=T0 + now,
        entered=None if entered is None else T0 + entered,
        told=[Event(T0 + at, kind, detail) for at, kind, detail in told],
        id=id_of(number),
        **({"parent_id": None if parent is None else id_of(parent), "name": name} | more),
    )


def snapshot(*tasks: TaskView, **more: Any) -> Snapshot:
    """Of these tasks, and of nothing else that it is not told."""
    empty = Snapshot(T0 + 100, tasks, {}, {}, {}, {}, {}, (), 0, {}, NO_HISTOGRAM)
    return empty._replace(**more)


def write_log(path: Path, payloads: Iterable[Mapping[str, Any]]) -> Path:
    """A log of these payloads at this path, which is given back."""
    path.write_text("".join(json.dumps({"asyncinspect": payload}) + "\n" for payload in payloads))
    return path


class TaskList:
    """Tasks that come one after the other, as those of a log do: a list, or what makes them."""

    def __init__(self, tasks: Iterable[TaskView] | Callable[[], Iterator[TaskView]], rest: Snapshot | None = None):
        self._tasks = tasks
        self._rest = rest or snapshot()
        self._ended = False

    def __iter__(self) -> Iterator[TaskView]:
        yield from self._tasks() if callable(self._tasks) else self._tasks
        self._ended = True

    def rest(self) -> Snapshot:
        assert self._ended, "the rest was asked for before the tasks had been gone through"
        return self._rest


@st.composite
def forests(draw: st.DrawFn, within: bool = True) -> list[TaskView]:
    """Tasks, parents first; whose children lie within them in time, or else may outlive them and be live."""
    tasks: list[TaskView] = []
    spans: list[tuple[int, int]] = []
    for number in range(draw(st.integers(1, 12))):
        parent = draw(st.none() | st.integers(0, number - 1)) if number else None
        low, high = (0, 4096) if parent is None else spans[parent]
        # In 64ths of a second, which floats of this size hold exactly.
        one, other = sorted(draw(st.tuples(*[st.integers(low, high)] * 2)))
        live = False
        if not within:
            other = draw(st.integers(one, 4096))
            live = draw(st.booleans())
        spans.append((one, 4096 if live else other))
        busy = draw(st.integers(0, spans[-1][1] - one))
        tasks.append(
            task(
                number + 1,
                draw(st.sampled_from("abc")),
                None if parent is None else parent + 1,
                one / 64,
                None if live else other / 64,
                now=64.0,
                busy=busy / 64,
                idle=(spans[-1][1] - one - busy) / 64,
                task=draw(st.sampled_from("xy")),
            )
        )
    return tasks


def by_end(tasks: list[TaskView]) -> list[TaskView]:
    """As a log tells them: what ends first comes first, of what ends together, children, and what is live at last."""
    return sorted(
        tasks, key=lambda each: (each.duration is None, each.started_at + (each.duration or 0.0), -int(each.id, 16))
    )
