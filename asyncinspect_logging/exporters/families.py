"""The metric catalogue as a table: what each family is, and where its samples come from in a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple

from ..catalogue import (
    DROP_REASONS,
    DURATION_BOUNDS,
    EVENT_TYPES,
    LAG_BOUNDS,
    MEMORY_COMPONENTS,
    POLL_COUNT_BOUNDS,
    STEP_BOUNDS,
)
from ..snapshot import Histogram, Snapshot
from ..states import FINAL, LIVE

__all__ = ["DURATIONS", "FAMILIES", "Family", "Group", "Labels", "version_of_package"]

Group = Literal["task", "event", "memory", "health"]
Labels = tuple[str, ...]
Rows = Callable[[Snapshot], Iterable[tuple[Labels, Any]]]


class Family(NamedTuple):
    """A family of the catalogue. `name` is its OpenMetrics name, which for a counter lacks the samples' `_total`;
    `rows` gives (label values, value), where a histogram's value is a `Histogram`. Values are in `unit`, if any.
    """

    name: str
    type: Literal["counter", "gauge", "histogram", "unknown"]
    group: Group
    help: str
    labels: Labels
    rows: Rows
    bounds: tuple[float, ...] = ()
    unit: str = ""

    @property
    def sample(self) -> str:
        return self.name + "_total" if self.type == "counter" else self.name


def _by_name(field: str) -> Rows:
    get = attrgetter(field)
    return lambda snapshot: [((name,), get(view)) for name, view in snapshot.names.items()]


def _durations(snapshot: Snapshot) -> Iterable[tuple[Labels, Histogram]]:
    states = [state.value for state in FINAL]
    for name, view in snapshot.names.items():
        seen = view.durations
        for state in states:
            if state in seen:
                yield (name, state), seen[state]


def _by_key(field: str, known: Iterable[str]) -> Rows:
    zeros = dict.fromkeys(known, 0)
    return lambda snapshot: [((key,), value) for key, value in (zeros | dict(getattr(snapshot, field))).items()]


def _one(get: Callable[[Snapshot], Any]) -> Rows:
    return lambda snapshot: [((), get(snapshot))]


def _live(snapshot: Snapshot) -> int:
    return sum(snapshot.states.get(state.value, 0) for state in LIVE)


def _blocked(snapshot: Snapshot) -> int:
    return snapshot.states.get("blocked", 0)


@cache
def version_of_package() -> str:
    """The version that is installed, or "unknown". To be asked before there is a page to be made: a process that gives
    up its rights after that may not be able to read it any more.
    """
    try:
        return version("asyncinspect-logging")
    except Exception:  # run from a source tree that was never installed, or not readable
        return "unknown"


_NAME: Final = ("name",)
_STATES: Final = [state.value for state in (*LIVE, *FINAL)]

_TASK: Final = (
    Family("tasks", "counter", "task", "Tasks created.", _NAME, _by_name("spawned")),
    Family("tasks_completed", "counter", "task", "Tasks that returned.", _NAME, _by_name("completed")),
    Family("tasks_failed", "counter", "task", "Tasks that an exception ended.", _NAME, _by_name("failed")),
    Family(
        "tasks_cancelled",
        "counter",
        "task",
        "Tasks that were cancelled, abandoned or interrupted.",
        _NAME,
        _by_name("cancelled"),
    ),
    Family(
        "tasks_by_state",
        "gauge",
        "task",
        "Tasks in each state: pending, running and blocked are not yet finished; completed, failed and cancelled are"
        " finished and still kept for inspection.",
        ("state",),
        _by_key("states", _STATES),
    ),
    Family("active_tasks", "gauge", "task", "Tasks not yet finished: pending, running or blocked.", (), _one(_live)),
    Family("blocked_tasks", "gauge", "task", "Tasks that wait for something.", (), _one(_blocked)),
    Family(
        "task_duration_seconds",
        "histogram",
        "task",
        "Time from entering a task to leaving it, by final state, in seconds.",
        ("name", "state"),
        _durations,
        DURATION_BOUNDS,
        "seconds",
    ),
    Family("task_polls", "counter", "task", "Times that tasks were polled (stepped).", _NAME, _by_name("polls")),
    Family(
        "poll_count",
        "histogram",
        "task",
        "Polls per finished task.",
        _NAME,
        _by_name("poll_counts"),
        POLL_COUNT_BOUNDS,
    ),
    Family(
        "poll_duration_seconds",
        "histogram",
        "task",
        "Time that one poll held the event loop, in seconds.",
        _NAME,
        _by_name("poll_durations"),
        STEP_BOUNDS,
        "seconds",
    ),
    Family(
        "scheduled_seconds",
        "histogram",
        "task",
        "Time from being woken to being polled, in seconds.",
        _NAME,
        _by_name("scheduled_delays"),
        STEP_BOUNDS,
        "seconds",
    ),
    Family(
        "task_busy_seconds",
        "counter",
        "task",
        "Time that tasks held the event loop, in seconds.",
        _NAME,
        _by_name("busy"),
        unit="seconds",
    ),
    Family(
        "task_idle_seconds",
        "counter",
        "task",
        "Time that tasks were open without holding the event loop, in seconds.",
        _NAME,
        _by_name("idle"),
        unit="seconds",
    ),
)

_OTHERS: Final = (
    Family(
        "events",
        "counter",
        "event",
        "Events seen, by type; log is an ordinary log record inside a span.",
        ("type",),
        _by_key("events", EVENT_TYPES),
    ),
    Family("deadlocks", "counter", "health", "Deadlocks found.", (), _one(attrgetter("deadlocks"))),
    # The reference documents query this name, which OpenMetrics does not let a counter have.
    Family(
        "deadlocks_detected",
        "unknown",
        "health",
        "Deadlocks found: the value of async_inspect_deadlocks_total.",
        (),
        _one(attrgetter("deadlocks")),
    ),
    Family(
        "lints",
        "counter",
        "health",
        "Findings about tasks, by kind of finding.",
        ("lint", "name"),
        lambda snapshot: snapshot.lints.items(),
    ),
    Family(
        "event_loop_lag_seconds",
        "histogram",
        "health",
        "How late the event loop ran a callback that was due, in seconds.",
        (),
        _one(attrgetter("loop_lag")),
        LAG_BOUNDS,
        "seconds",
    ),
    Family(
        "dropped",
        "counter",
        "health",
        "Whatever could not be kept or understood, by reason.",
        ("reason",),
        _by_key("dropped", DROP_REASONS),
    ),
    Family(
        "memory_bytes",
        "gauge",
        "memory",
        "Memory that the inspector uses, by component, in bytes.",
        ("component",),
        _by_key("memory", MEMORY_COMPONENTS),
        unit="bytes",
    ),
    Family(
        "build_info",
        "gauge",
        "health",
        "Always 1; the label says which version of asyncinspect-logging runs.",
        ("version",),
        lambda snapshot: [((version_of_package(),), 1)],
    ),
)

#: In the order of the page.
FAMILIES: Final = tuple(family._replace(name=f"async_inspect_{family.name}") for family in (*_TASK, *_OTHERS))

#: The family whose bounds the user may choose.
DURATIONS: Final = next(family for family in FAMILIES if family.rows is _durations)
