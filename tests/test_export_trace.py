"""The Chrome trace: every event as the Trace Event Format has it, whatever the tasks are.

The trace processor of Perfetto reads such traces in `tests/real/test_perfetto.py`.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import a_view

from asyncinspect_logging import Inspector, Snapshot
from asyncinspect_logging.exporters import chrome_trace
from asyncinspect_logging.exporters.chrome_trace import ChromeTraceExporter
from asyncinspect_logging.snapshot import Event, TaskView

EMPTY = Inspector().snapshot()


def a_task(id: str, begin: float, end: float | None, parent: str | None = None, **more: Any) -> TaskView:
    """A task from `begin` to `end`, in seconds; None: it is live at 1000 s."""
    return a_view(
        begin, end, now=1000, **({"id": id, "parent_id": parent, "name": f"name of {id}", "thread": 1} | more)
    )


def with_steps(task: TaskView, *steps: tuple[float, str]) -> TaskView:
    """With suspend, wake and resume at these times."""
    events = [*task.events, *(Event(at, kind, "") for at, kind in steps)]
    events.sort(key=lambda event: event.at)
    return task._replace(events=tuple(events), polls=1 + sum(kind == "resume" for _, kind in steps))


def events_of(*tasks: TaskView) -> list[dict[str, Any]]:
    """The events of an export, checked."""
    return checked(ChromeTraceExporter.export_to_string(EMPTY._replace(tasks=tasks)))


def no_constant(text: str) -> Any:
    pytest.fail(f"{text} is no JSON")


def checked(text: str) -> list[dict[str, Any]]:
    """The events, after everything has been checked that the format asks for, and more strictly."""
    document = json.loads(text, parse_constant=no_constant)
    assert document["displayTimeUnit"] in ("ms", "ns")
    events: list[dict[str, Any]] = document["traceEvents"]
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    threads: dict[int, list[tuple[int, int]]] = defaultdict(list)
    flows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    named = {0}
    for event in events:
        assert event["ph"] in "MbenX"
        assert type(event["name"]) is str
        assert type(event["pid"]) is int
        assert type(event["tid"]) is int
        assert type(event.get("args", {})) is dict
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            named.add(event["tid"])
            continue
        assert type(event["ts"]) is int
        assert 0 <= event["ts"] < 1 << 53
        assert event["cat"]
        assert event["tid"] in named, "a thread is named before it is used"
        if event["ph"] == "X":
            assert type(event["dur"]) is int
            assert event["dur"] >= 0
            threads[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
        else:
            rows[event["id"]].append(event)
        if "bind_id" in event:
            assert event["ph"] in "bX"
            flows[event["bind_id"]].append(event)
    for row in rows.values():
        check_row(row)
    for flow in flows.values():
        begins, ends = [e for e in flow if e.get("flow_out")], [e for e in flow if e.get("flow_in")]
        assert (len(begins), len(ends)) == (1, 1)
        assert begins[0]["ts"] <= ends[0]["ts"]
    return events


def check_row(row: list[dict[str, Any]]) -> None:
    """In order of time, and each slice ended, the inner one first."""
    assert [event["ts"] for event in row] == sorted(event["ts"] for event in row)
    open_: list[str] = []
    for event in row:
        if event["ph"] == "b":
            open_.append(event["name"])
        elif event["ph"] == "e":
            assert open_.pop() == event["name"]
        else:
            assert open_, "a point on no slice"
    assert not open_


def check_nesting(events: list[dict[str, Any]]) -> None:
    """No slice of a thread ends within another that began after it: a trace processor would leave one out."""
    by_thread = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            by_thread[event["tid"]].append((event["ts"], -event["dur"]))
    for slices in by_thread.values():
        ends: list[int] = []
        for ts, negative in sorted(slices):
            while ends and ends[-1] <= ts:
                ends.pop()
            assert not ends or ts - negative <= ends[-1]
            ends.append(ts - negative)


def rows_of(events: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The tasks of each row, by its id."""
    rows: dict[str, list[str]] = defaultdict(list)
    for event in events:
        if event["ph"] == "b" and "args" in event:
            rows[event["id"]].append(event["args"]["id"])
    return dict(rows)


def flows_of(events: list[dict[str, Any]]) -> list[tuple[str, int, str, int]]:
    """Name and time of both ends of each arrow."""
    out = {e["bind_id"]: (e["name"], e["ts"]) for e in events if e.get("flow_out")}
    return [(*out[e["bind_id"]], e["name"], e["ts"]) for e in events if e.get("flow_in")]


def test_a_child_is_drawn_in_its_parent() -> None:
    """If it lies within it, and beside none of its siblings; the order is that of the ends, as in a log."""
    inner, outer = a_task("c", 2, 3, "b"), a_task("b", 1, 4, "a")
    later, root = a_task("d", 4, 5, "a"), a_task("a", 1, 6)
    events = events_of(inner, outer, later, root)
    assert rows_of(events) == {"a": ["a", "b", "c", "d"]}
    assert not flows_of(events)


def test_children_beside_each_other_have_rows_and_arrows() -> None:
    """From the parent, at the moment when they began; one that outlives the parent, too."""
    first, second, third = a_task("b", 1, 3, "a"), a_task("c", 2, 4, "a"), a_task("d", 4, 9, "a")
    events = events_of(first, second, a_task("a", 0, 5), third)
    assert rows_of(events) == {"a": ["a"], "b": ["b"], "c": ["c"], "d": ["d"]}
    assert sorted(flows_of(events)) == [
        (f"spawn name of {id}", ts, f"name of {id}", ts)
        for id, ts in (("b", 10**6), ("c", 2 * 10**6), ("d", 4 * 10**6))
    ]


def test_a_child_after_its_parents_end_has_no_arrow() -> None:
    """There is nothing for it to begin in."""
    events = events_of(a_task("a", 0, 5), a_task("b", 6, 7, "a"))
    assert rows_of(events) == {"a": ["a"], "b": ["b"]}
    assert not flows_of(events)


def test_a_live_task_ends_at_the_snapshot() -> None:
    """With its state."""
    (slice_,) = [event for event in events_of(a_task("a", 990.5, None)) if event["ph"] == "e"]
    assert slice_["ts"] == 1000 * 10**6


def test_what_is_said_of_a_task() -> None:
    """Fields, outcome, error and tallies."""
    task = a_task(
        "a", 1, 2, fields=MappingProxyType({"n": 1, "x": float("nan")}), error={"type": "E", "message": "\ud800"}
    )
    (begin,) = [event for event in events_of(task) if event["ph"] == "b"]
    assert begin["args"]["fields"] == {"n": 1, "x": "nan"}
    assert begin["args"]["error"] == {"type": "E", "message": "\\ud800"}
    assert (begin["args"]["outcome"], begin["args"]["polls"], begin["args"]["duration"]) == ("completed", 1, 1)


def test_polls_and_wakes() -> None:
    """A slice for each poll, an arrow from each wake; one's own wake and one while it runs are none."""
    task = with_steps(
        a_task("a", 1, 9), (2, "suspend"), (3, "wake"), (4, "resume"), (5, "suspend"), (5, "wake"), (6, "resume")
    )
    events = events_of(task)
    polls = [(e["ts"] // 10**6, e["dur"] // 10**6) for e in events if e["ph"] == "X" and e["cat"] == "poll"]
    assert polls == [(1, 1), (4, 1), (6, 3)]
    assert flows_of(events) == [("wake name of a", 3 * 10**6, "name of a", 4 * 10**6)]


def test_polls_of_which_the_first_are_gone() -> None:
    """What is not known is not drawn: here the end of the first poll that is there belongs to a later one."""
    task = with_steps(a_task("a", 1, 9), (5, "suspend"), (7, "resume"))._replace(polls=5)
    assert [e["ts"] // 10**6 for e in events_of(task) if e["ph"] == "X"] == [7]


def test_polls_without_steps() -> None:
    """The one poll of a task that never waited is known; of any other there is none."""
    known, unknown, live = (
        a_task("a", 1, 2, busy=0.9),
        a_task("b", 1, 2, busy=0.9, polls=2),
        a_task("c", 1, None, busy=1),
    )
    assert [e["args"]["id"] for e in events_of(known, unknown, live) if e["ph"] == "X"] == ["a"]


def test_log_lines_are_points() -> None:
    """On the task's row."""
    task = a_task("a", 1, 3)
    task = task._replace(events=(*task.events[:2], Event(2, "log", "INFO x"), task.events[2]))
    (point,) = [event for event in events_of(task) if event["ph"] == "n"]
    assert (point["id"], point["ts"], point["args"]) == ("a", 2 * 10**6, {"detail": "INFO x"})


def test_threads_have_rows() -> None:
    """Each with its name; those of forked processes, with the same ids, too. Past a limit they share one."""
    tasks = [a_task(id, 1, 2, busy=0.5, thread=7) for id in ("aaaaaa01", "aaaaaa02", "bbbbbb01")]
    events = events_of(*tasks)
    assert [e["args"]["name"] for e in events if e["name"] == "thread_name"] == ["thread 7", "thread 7"]
    assert [e["tid"] for e in events if e["ph"] == "X"] == [1, 1, 2]
    many = [a_task(f"aaaaaa{number}", 1, 2, thread=number) for number in range(1500)]
    assert len({e["tid"] for e in events_of(*many)}) == 1001


def test_parents_are_found_within_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a program that goes on for long, each request is whole, however little is held back."""

    def program() -> Iterator[TaskView]:
        for number in range(100):
            yield a_task(f"q{number}", number + 0.1, number + 0.2, f"r{number}")
            yield a_task(f"r{number}", number, number + 0.9, "main")
        yield a_task("main", 0, 100)

    whole = rows_of(events_of(*program()))
    assert whole["main"][:5] == ["main", "r0", "q0", "r1", "q1"]
    monkeypatch.setattr(chrome_trace, "_WINDOW", 10)
    parts = rows_of(events_of(*program()))
    assert parts["r17"] == ["r17", "q17"]
    assert sum(map(len, parts.values())) == 201


def test_deep_nesting() -> None:
    """No recursion."""
    depth = 5000
    tasks = [a_task(str(n), 0, 1, str(n - 1) if n else None) for n in reversed(range(depth))]
    assert rows_of(events_of(*tasks)) == {"0": [str(n) for n in range(depth)]}


IDS = st.sampled_from("abcde")
TIMES = st.sampled_from([0.0, 1.0, 1.0000002, 2.0, 3.0, 4.5, -1.0, 1e300, float("inf"), float("nan")]) | st.floats()
STEPS = st.lists(
    st.builds(Event, TIMES, st.sampled_from(["suspend", "wake", "resume", "enter", "exit", "log"]), st.text())
)
TASKS = st.builds(
    lambda id, begin, end, parent, steps, **more: a_task(id, begin, end, parent, **more)._replace(events=tuple(steps)),
    IDS,
    TIMES,
    st.none() | TIMES,
    st.none() | IDS,
    STEPS,
    name=st.text(st.characters(exclude_categories=()), max_size=3),
    thread=st.none() | st.integers(),
    polls=st.integers(0, 3),
    busy=st.floats(),
)


@given(st.lists(TASKS, max_size=12))
def test_whatever_the_tasks_are(tasks: list[TaskView]) -> None:
    """Ids that come twice or name each other, times that cannot be: every task is there once, in a trace that holds."""
    # Rows of tasks with one id would be one row.
    events = json.loads(ChromeTraceExporter.export_to_string(EMPTY._replace(tasks=tuple(tasks))))["traceEvents"]
    assert sorted(e["args"]["id"] for e in events if e["ph"] == "b" and "args" in e) == sorted(t.id for t in tasks)
    unique = {task.id: task for task in tasks}.values()
    checked(ChromeTraceExporter.export_to_string(EMPTY._replace(tasks=tuple(unique))))


@given(st.data())
def test_trees_of_tasks(data: st.DataObject) -> None:
    """Trees that could be, in the order of their ends, with steps: slices of threads nest, too."""
    numbers = itertools.count()

    def grow(begin: float, end: float, parent: str | None, depth: int) -> Iterator[TaskView]:
        id = f"{next(numbers):016x}"
        at = begin
        while depth < 3 and data.draw(st.booleans()):
            child = data.draw(st.floats(at, end)), data.draw(st.floats(begin, 2 * end))
            yield from grow(child[0], max(child), id, depth + 1)
        yield a_task(id, begin, end, parent, busy=end - begin, thread=next(numbers))

    tasks = list(grow(0, 100, None, 0))
    events = events_of(*sorted(tasks, key=lambda task: (task.events[-1].at, -task.started_at)))
    check_nesting(events)
    # A row is a task's own, or its parent's.
    parents = {task.id: task.parent_id for task in tasks}
    for row, ids in rows_of(events).items():
        assert ids[0] == row
        assert all(parents[id] in ids for id in ids[1:])


def test_the_checks_find_what_is_wrong() -> None:
    """So that what they let pass is right."""
    good = {
        "displayTimeUnit": "ms",
        "traceEvents": events_of(a_task("b", 1, 3, "a"), a_task("c", 2, 4, "a"), a_task("a", 0, 5)),
    }
    checked(json.dumps(good))
    for number, event in enumerate(good["traceEvents"]):
        if event["ph"] in "be" or event["name"] == "thread_name":
            bad = {**good, "traceEvents": [e for n, e in enumerate(good["traceEvents"]) if n != number]}
            with pytest.raises((AssertionError, IndexError)):
                checked(json.dumps(bad))
    with pytest.raises(AssertionError):
        check_nesting([{"ph": "X", "tid": 1, "ts": 1, "dur": 5}, {"ph": "X", "tid": 1, "ts": 3, "dur": 5}])


def test_snapshot_type() -> None:
    """An empty one makes an empty trace that is one."""
    assert isinstance(EMPTY, Snapshot)
    assert [event["name"] for event in events_of()] == ["process_name"]
