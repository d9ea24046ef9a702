from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import logging.handlers
import threading
import tracemalloc
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import pytest

from asyncinspect_logging import (
    AsyncInspectHandler,
    Config,
    Inspector,
    TaskState,
    current_span,
    diagnostics,
    opened,
    placing,
    run,
    span,
)
from asyncinspect_logging.catalogue import DROP_REASONS, EVENT_TYPES, MEMORY_COMPONENTS
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.records import TRACE

Tell = Callable[..., dict[str, Any]]
Listen = Callable[..., Inspector]


def applied(*records: Any, config: Config | None = None) -> Inspector:
    inspector = Inspector(config)
    for record in records:
        inspector.apply(record)
    return inspector


# -- records ---------------------------------------------------------------------------------------------------------


def test_a_told_span(tell: Tell) -> None:
    """What its records say is what the task shows."""
    inspector = applied(
        tell("spawn", 1, parent="00000000000000aa", task="Service.get", at="app.py:5", thread=42, fields={"user": 7}),
        tell("enter", 1, thread=42),
        tell("suspend", 1, on="lock:db", at="app.py:9"),
        tell("wake", 1),
        tell("resume", 1),
        tell("record", 1, fields={"rows": 3}),
        tell(
            "exit",
            1,
            outcome="failed",
            error={"type": "OSError", "message": "gone"},
            duration=5_000_000,
            polls=2,
            wakes=1,
            busy=1_000_000,
            max_poll=900_000,
            scheduled=100_000,
            slow_polls=[[2, 1], [1, 1]],
        ),
    )
    snapshot = inspector.snapshot()
    (task,) = snapshot.tasks
    assert task.id == f"{(0x1234 << 40) + 1:016x}"
    assert task.trace_id == task.id.rjust(32, "0")
    assert task.parent_id == "00000000000000aa"
    assert (task.name, task.task, task.thread, task.at) == ("job", "Service.get", 42, "app.py:5")
    assert (task.state, task.outcome) == (TaskState.FAILED, "failed")
    assert task.error == {"type": "OSError", "message": "gone"}
    assert task.fields == {"user": 7, "rows": 3}
    assert (task.duration, task.polls, task.wakes) == (0.005, 2, 1)
    assert (task.busy, task.idle, task.scheduled, task.max_poll) == (0.001, 0.004, 0.0001, 0.0009)
    assert [event.kind for event in task.events] == ["spawn", "enter", "suspend", "wake", "resume", "exit"]
    assert task.events[2].detail == "lock:db"
    view = snapshot.names["job"]
    assert (view.spawned, view.failed, view.polls, view.wakes) == (1, 1, 2, 1)
    assert view.poll_durations.counts[:3] == (0, 1, 1)
    assert view.scheduled_delays.total == 1
    assert snapshot.events == {"spawn": 1, "poll": 2, "wake": 1, "drop": 1, "log": 0}
    assert snapshot.states["failed"] == 1


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"asyncinspect": p, "event": "x"}, MappingProxyType,
                                  lambda p: logging.makeLogRecord({"asyncinspect": p})])  # fmt: skip
def test_forms_of_a_record(tell: Tell, wrap: Callable[[dict[str, Any]], Any]) -> None:
    """A payload, an event dict, any mapping and a LogRecord are the same."""
    assert applied(wrap(tell("enter"))).snapshot().names["job"].spawned == 1


@pytest.mark.parametrize(
    "record", [None, 7, "text", [], {}, {"event": "x"}, {"kind": "enter"}, logging.makeLogRecord({})]
)
def test_what_is_no_record_is_ignored(record: Any) -> None:
    """It is not even counted."""
    assert sum(applied(record).snapshot().dropped.values()) == 0


@pytest.mark.parametrize("key", ["v", "kind", "id", "name", "t", "wall", "pid", "seq", "outcome"])
@pytest.mark.parametrize("value", [None, "", "x", -1, 1.5, float("nan"), 10**400, [1], {"a": 1}, True, "missing"])
def test_malformed(tell: Tell, key: str, value: Any) -> None:
    """What the protocol demands and is not there, or not what it should be, is counted, and changes nothing else."""
    enter, record = tell("enter"), tell("exit")
    if value == "missing":
        del record[key]
    elif (key, value) in [("v", True), ("name", ""), ("name", "x")]:
        pytest.skip("this is well formed")
    else:
        record[key] = value
    snapshot = applied(enter, {"asyncinspect": record}).snapshot()
    assert snapshot.dropped["malformed"] == 1
    assert sum(snapshot.dropped.values()) == 1
    assert snapshot.names["job"].live == 1


@pytest.mark.parametrize("payload", [7, "x", [1], ("v", 1), b"{}"])
def test_payload_that_is_no_mapping(payload: Any) -> None:
    """Something under our key that is not ours is malformed."""
    assert applied({"asyncinspect": payload}).snapshot().dropped["malformed"] == 1


@pytest.mark.parametrize("key", ["duration", "polls", "busy", "scheduled", "max_poll", "wakes", "self_wakes"])
@pytest.mark.parametrize("value", [-1, 1.5, float("inf"), "1", True, 1 << 63])
def test_malformed_tallies(tell: Tell, key: str, value: Any) -> None:
    """A tally below zero, or no number, closes no books."""
    assert applied(tell("enter"), tell("exit", **{key: value})).snapshot().dropped["malformed"] == 1


@pytest.mark.parametrize("spelling", [str.upper, str.lower])
def test_ids_are_the_same_in_either_case(tell: Tell, spelling: Callable[[str], str]) -> None:
    """Whoever wrote the record, ids read as they do elsewhere."""
    enter = tell("enter", id="00000000000000ab", trace="cd" * 16, parent="00000000000000ef")
    for key in ("id", "trace", "parent"):
        enter[key] = spelling(enter[key])
    task = applied(enter).snapshot().tasks[0]
    assert (task.id, task.trace_id, task.parent_id) == ("00000000000000ab", "cd" * 16, "00000000000000ef")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("enter", "task", 7),
        ("enter", "thread", "x"),
        ("enter", "thread", 1 << 63),
        ("enter", "at", ["x"]),
        ("enter", "links", 7),
        ("enter", "links", "abc"),
        ("enter", "parent_closed", "yes"),
        ("exit", "error", "gone"),
        ("exit", "slow_polls", 7),
        ("exit", "slow_polls", [7]),
        ("exit", "slow_polls", [[0, 1]]),
        ("exit", "slow_polls", [[99, 1]]),
        ("exit", "slow_polls", [[1, -1]]),
        ("exit", "slow_waits", [["a", "b"]]),
        ("suspend", "on", {"a": 1}),
        ("acquire", "resource", 7),
    ],
)
def test_optional_part_that_is_wrong_is_left_out(tell: Tell, kind: str, key: str, value: Any) -> None:
    """The rest of the record is good."""
    records = [tell("enter"), tell(kind, 2 if kind == "enter" else 1, **{key: value})]
    snapshot = applied(*records).snapshot()
    assert sum(snapshot.dropped.values()) == 0
    assert snapshot.tasks


def test_mapping_that_raises() -> None:
    """A mapping of the application's own that cannot be read is malformed."""

    class Broken(Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise ZeroDivisionError

        def get(self, key: str, default: Any = None) -> Any:
            raise ZeroDivisionError

        def __iter__(self) -> Any:
            raise ZeroDivisionError

        def __len__(self) -> int:
            raise ZeroDivisionError

    inspector = applied(Broken(), {"asyncinspect": Broken()})
    assert inspector.snapshot().dropped["malformed"] == 2


def test_told_fields_are_cut_and_redacted(tell: Tell) -> None:
    """Whoever wrote the record need not have had our limits."""
    fields = {"text": "x" * 100, "password": "hidden", "deep": [[[[[[1]]]]]]}
    inspector = applied(tell("enter", fields=fields, at="y" * 100), config=Config(max_field_length=10))
    (task,) = inspector.snapshot().tasks
    assert task.fields["text"] == "xxxxxxxxx…"
    assert task.fields["password"] == "[redacted]"
    assert task.at == "yyyyyyyyy…"
    assert (
        applied(tell("enter", 2, fields=fields), config=Config(capture_fields=False)).snapshot().tasks[0].fields == {}
    )


def test_exit_without_enter(tell: Tell) -> None:
    """A span that nobody heard begin is a gap, and is not counted as a task."""
    snapshot = applied(tell("exit"), tell("resume", 2)).snapshot()
    assert snapshot.dropped["gap"] == 2
    assert not snapshot.names


def test_exit_that_comes_first(tell: Tell) -> None:
    """Its beginning may come from another file; it was a gap until then, and that counter does not fall."""
    enter, exit_ = tell("enter"), tell("exit")
    inspector = applied(exit_)
    assert inspector.snapshot().dropped["gap"] == 1
    inspector.apply(enter)
    snapshot = inspector.snapshot()
    assert snapshot.names["job"].completed == 1
    assert snapshot.dropped["gap"] == 1


@pytest.mark.parametrize("twice", ["spawn", "enter", "exit"])
def test_entered_or_exited_twice(tell: Tell, twice: str) -> None:
    """The second time, with a seq of its own, is a duplicate."""
    records = [tell(kind) for kind in ("spawn", "enter", "exit") for _ in range(1 + (kind == twice))]
    snapshot = applied(*records).snapshot()
    assert snapshot.dropped["duplicate"] == 1
    assert (snapshot.names["job"].spawned, snapshot.names["job"].completed, snapshot.names["job"].polls) == (1, 1, 1)


def test_late_news_of_a_span_that_is_over(tell: Tell) -> None:
    """Fields, the beginning and steps that come after the exit find their place, and change no count."""
    spawn, enter, suspend, record, exit_ = (tell(kind) for kind in ("spawn", "enter", "suspend", "record", "exit"))
    record["fields"], enter["fields"] = {"rows": 3}, {"rows": 1, "user": 7}
    inspector = applied(spawn, exit_)
    before = inspector.snapshot().names
    for late in (record, enter, suspend):
        inspector.apply(late)
    snapshot = inspector.snapshot()
    assert snapshot.names == before
    assert snapshot.tasks[0].fields == {"rows": 3, "user": 7}
    assert snapshot.tasks[0].duration == 0.002
    assert "suspend" in [event.kind for event in snapshot.tasks[0].events]
    assert sum(snapshot.dropped.values()) == 0


def test_later_field_counts(tell: Tell) -> None:
    """Of records that set the same field, in whatever order they come."""
    enter, first, second, third = tell("enter"), tell("record"), tell("record"), tell("record")
    first["fields"], second["fields"], third["fields"] = {"a": 1}, {"a": 2}, {"b": 3}
    assert applied(enter, third, second, first).snapshot().tasks[0].fields == {"a": 2, "b": 3}


def test_state_is_that_of_the_newest_record(tell: Tell) -> None:
    """A step that was overtaken counts, and does not say where the span stands."""
    enter, suspend, wake, resume = (tell(kind) for kind in ("enter", "suspend", "wake", "resume"))
    assert applied(enter, resume, suspend).snapshot().tasks[0].state == "running"
    assert applied(enter, wake, suspend).snapshot().tasks[0].state == "blocked"
    assert applied(suspend, enter).snapshot().tasks[0].state == "blocked"


def test_same_pid_on_two_machines(stream: Callable[..., Tell]) -> None:
    """Or of the same container before and after a restart: their span ids tell them apart."""
    one, other = stream(pid=1, base=0x1111 << 40), stream(pid=1, base=0x2222 << 40)
    snapshot = applied(one("enter"), one("exit"), other("enter"), other("exit")).snapshot()
    assert snapshot.names["job"].completed == 2
    assert sum(snapshot.dropped.values()) == 0


def test_reader_that_starts_in_the_middle(tell: Tell) -> None:
    """Spans that were open then are gaps, and the others are counted."""
    tell("enter", 1)
    late = [tell("exit", 1), tell("enter", 2), tell("exit", 2)]
    snapshot = applied(*late).snapshot()
    assert (snapshot.names["job"].spawned, snapshot.names["job"].completed) == (1, 1)
    assert snapshot.dropped["gap"] == 1


# -- spans of this process -------------------------------------------------------------------------------------------


def test_every_key_of_the_catalogue_is_there() -> None:
    """At zero where nothing happened."""
    snapshot = Inspector().snapshot()
    assert set(snapshot.states) == set(TaskState)
    assert tuple(snapshot.events) == EVENT_TYPES
    assert set(snapshot.dropped) == set(DROP_REASONS)
    assert set(snapshot.memory) == set(MEMORY_COMPONENTS)


def test_snapshot_is_frozen(listen: Listen) -> None:
    """It cannot be changed, nor does it change."""
    inspector = listen()
    with span("a", x=1):
        snapshot = inspector.snapshot()
    for mapping in (
        snapshot.names,
        snapshot.states,
        snapshot.events,
        snapshot.dropped,
        snapshot.memory,
        snapshot.tasks[0].fields,
    ):
        with pytest.raises(TypeError):
            mapping["x"] = 1  # type: ignore[index]
    with pytest.raises(AttributeError):
        snapshot.taken_at = 0  # type: ignore[misc]
    assert snapshot.names["a"].live == 1
    assert snapshot.find(snapshot.tasks[0].id) is snapshot.tasks[0]
    assert snapshot.find("none") is None


def test_two_handlers_of_one_inspector_count_once(listen: Listen) -> None:
    """Also where a filter has them see each record."""
    inspector = listen()
    logger = logging.getLogger("asyncinspect")
    for _ in range(2):
        extra = AsyncInspectHandler(inspector)
        extra.addFilter(lambda record: True)
        logger.addHandler(extra)
    with span("once"):
        pass
    view = inspector.snapshot().names["once"]
    assert (view.spawned, view.completed, view.polls) == (1, 1, 1)


def test_two_inspectors_each_count_everything(listen: Listen) -> None:
    """They do not take anything from each other."""
    one, other = listen(), listen(Config(max_tasks=1))
    for _ in range(10):
        with span("both"):
            pass
    assert one.snapshot().names == other.snapshot().names
    assert other.snapshot().dropped["max_tasks"] == 9


def test_told_once_and_twice_of_a_span_that_was_seen(listen: Listen) -> None:
    """Its records say nothing new, which is no loss; but a record that comes twice was told twice."""
    inspector = listen()
    logger, keep = logging.getLogger("asyncinspect"), logging.handlers.BufferingHandler(100)
    logger.addHandler(keep)
    logger.setLevel(logging.DEBUG)
    with span("job"):
        pass
    for expected in (0, 2):
        for record in keep.buffer:
            inspector.apply(record)
        assert sum(inspector.snapshot().dropped.values()) == inspector.snapshot().dropped["duplicate"] == expected
    assert inspector.snapshot().names["job"].completed == 1


def test_span_entered_twice(listen: Listen) -> None:
    """One task, with the misuse counted, and every other span is counted."""
    inspector = listen()
    again = span("again")
    with again, again, span("inside"):
        inspector.snapshot()
    with span("after"):
        pass
    snapshot = inspector.snapshot()
    assert {name: view.completed for name, view in snapshot.names.items()} == {"again": 1, "inside": 1, "after": 1}
    assert snapshot.dropped["duplicate"] >= 1


def test_max_tasks(listen: Listen) -> None:
    """The newest are retained, by state, and what was let go is counted."""
    inspector = listen(Config(max_tasks=3))
    for number in range(10):
        try:
            with span("a", number=number):
                if number % 2:
                    raise KeyError
        except KeyError:
            pass
    snapshot = inspector.snapshot()
    assert [task.fields["number"] for task in snapshot.tasks] == [7, 8, 9]
    assert (snapshot.states["completed"], snapshot.states["failed"]) == (1, 2)
    assert snapshot.dropped["max_tasks"] == 7
    assert (snapshot.names["a"].completed, snapshot.names["a"].failed) == (5, 5)


def test_max_events(listen: Listen) -> None:
    """The newest lines of the timelines are retained, all are counted."""
    inspector = listen(Config(max_events=2))
    logger = logging.getLogger("asyncinspect.app")
    with span("a"):
        for number in range(5):
            logger.warning("line %d", number)
        snapshot = inspector.snapshot()
    assert [event.detail for event in snapshot.tasks[0].events if event.kind == "log"] == [
        "WARNING line 3",
        "WARNING line 4",
    ]
    assert snapshot.events["log"] == 5
    assert snapshot.dropped["max_events"] == 3


def test_no_limits(listen: Listen) -> None:
    """None keeps everything."""
    inspector = listen(Config(max_tasks=None, max_events=None, max_names=None))
    for number in range(3000):
        with span(f"name{number}"):
            pass
    snapshot = inspector.snapshot()
    assert len(snapshot.tasks) == len(snapshot.names) == 3000
    assert sum(snapshot.dropped.values()) == 0


def test_max_names(listen: Listen) -> None:
    """Names beyond the limit count under one, each span once, and those known before go on."""
    inspector = listen(Config(max_names=2))
    for name in ("a", "b", "c", "d", "a", "c"):
        with span(name):
            pass
    snapshot = inspector.snapshot()
    assert {name: view.completed for name, view in snapshot.names.items()} == {"a": 2, "b": 1, "_other_": 3}
    assert snapshot.dropped["max_names"] == 3
    assert [task.name for task in snapshot.tasks] == ["a", "b", "c", "d", "a", "c"]


def test_a_million_names(tell: Tell, listen: Listen) -> None:
    """In memory that does not grow with them."""
    inspector = listen()
    for number in range(3000):
        with span(f"warm-up {number}"):
            pass
    tracemalloc.start()
    try:
        for number in range(10_000):
            with span(f"user {number}"):
                pass
        inspector.settle()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 1_500_000
    finally:
        tracemalloc.stop()
    for number in range(987_000):
        inspector._books.total_of(f"name {number}")
    snapshot = inspector.snapshot()
    assert len(snapshot.names) == 1001
    assert snapshot.dropped["max_names"] == 1_000_000 - 1000
    assert sum(view.spawned for view in snapshot.names.values()) == 13_000


def test_nothing_grows_with_the_tasks_that_ever_lived(tell: Tell, listen: Listen) -> None:
    """200,000 spans of this process and 12,000 told ones later, every container is within its limit."""
    inspector = listen(Config(max_tasks=100, max_events=100))
    for _ in range(200_000):
        with span("a"):
            pass
    for number in range(12_000):
        inspector.apply(tell("enter", number))
        inspector.apply(tell("exit", number))
        inspector.apply(tell("exit", 10**6 + number))
    inspector.snapshot()
    books, places = inspector._books, inspector._placing
    assert len(books.live) == len(books.folded) == 0
    assert len(books.retention.tasks) == 100
    assert len(inspector._told) == len(inspector._inbox) == 0
    assert len(places._over) <= placing.MAX_OVER
    assert places._waiting_count == sum(map(len, places._waiting.values())) <= placing._MAX_WAITING
    assert len(places._streams) == 1
    assert len(inspector._announced.numbers.runs()) == 1
    assert inspector.snapshot().names["a"].completed == 200_000
    assert inspector.snapshot().dropped["gap"] == 12_000


def test_many_processes(stream: Callable[..., Tell]) -> None:
    """The seqs of those heard of last are remembered."""
    inspector = Inspector()
    for pid in range(3000):
        inspector.apply(stream(pid=pid, base=pid + 1 << 40)("enter"))
    inspector.snapshot()
    assert len(inspector._placing._streams) == placing._MAX_STREAMS
    assert inspector.snapshot().names["job"].spawned == 3000


def test_queues_are_worked_off_without_a_snapshot(listen: Listen, tell: Tell) -> None:
    """Whichever way things come in."""
    inspector = listen()
    filtered = AsyncInspectHandler(other := Inspector())
    filtered.addFilter(lambda record: True)
    logging.getLogger("asyncinspect").addHandler(filtered)
    for number in range(2000):
        with span("a"):
            logging.getLogger("asyncinspect.app").warning("x")
        inspector.apply(tell("enter", number))
    for each in (inspector, other):
        assert max(len(each._told), len(each._inbox)) < 300


# -- sampling --------------------------------------------------------------------------------------------------------


def test_sampling_thins_out_whole_traces_after_counting(listen: Listen) -> None:
    """1 in 10 traces is kept, with parent and child; the metrics are those of all."""
    inspector, everything = listen(Config(sampling_rate=10, max_tasks=None)), listen(Config(max_tasks=None))
    for _ in range(2000):
        with span("parent"), span("child"):
            logging.getLogger("asyncinspect.app").warning("inside")
    snapshot, full = inspector.snapshot(), everything.snapshot()
    assert snapshot.names == full.names
    assert snapshot.events == full.events
    kept: dict[str, list[str]] = {}
    for task in snapshot.tasks:
        kept.setdefault(task.trace_id, []).append(task.name)
        assert [event.kind for event in task.events].count("log") == (task.name == "child")
    assert all(sorted(names) == ["child", "parent"] for names in kept.values())
    assert 120 <= len(kept) <= 280
    assert len(inspector._books.retention.notes) == len(kept)


def test_failed_and_slow_tasks_are_always_kept(listen: Listen, clock: Any) -> None:
    """Whatever their trace."""
    inspector = listen(Config(sampling_rate=10**9, slow_task=2.0), clock=clock)
    with pytest.raises(KeyError), span("failed"):
        raise KeyError
    with span("slow"):
        clock.t += 2_000_000_000
    with span("fast"):
        clock.t += 1_999_999_999
    assert [task.name for task in inspector.snapshot().tasks] == ["failed", "slow"]
    assert inspector.snapshot().states["completed"] == 1


def test_every_reader_samples_the_same_traces(listen: Listen, tell: Tell) -> None:
    """The decision is in the trace id, and so is made alike at first hand and from a log."""
    seen = listen(Config(sampling_rate=4, max_tasks=None))
    everything = listen(Config(max_tasks=None))
    for _ in range(200):
        with span("a"):
            pass
    with span("child of another process", parent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"):
        pass
    told = Inspector(Config(sampling_rate=4, max_tasks=None))
    for number, task in enumerate(everything.snapshot().tasks):
        told.apply(tell("enter", number, trace=task.trace_id, name=task.id))
        told.apply(tell("exit", number, name=task.id))
    assert [task.name for task in told.snapshot().tasks] == [task.id for task in seen.snapshot().tasks]


@pytest.mark.parametrize(("polls", "wakes"), [(True, True), (False, True), (True, False), (False, False)])
def test_tracking_is_about_timelines(tell: Tell, polls: bool, wakes: bool) -> None:
    """Steps are counted whether or not they are kept."""
    records = [tell(kind) for kind in ("enter", "suspend", "wake", "resume")]
    snapshot = applied(*records, config=Config(track_polls=polls, track_wakes=wakes)).snapshot()
    kinds = {event.kind for event in snapshot.tasks[0].events}
    assert ({"suspend", "resume"} <= kinds, "wake" in kinds) == (polls, wakes)
    assert (snapshot.events["poll"], snapshot.events["wake"]) == (2, 1)


# -- snapshots, reset, bounds ----------------------------------------------------------------------------------------


def test_ten_snapshots_of_a_quiet_process(listen: Listen, clock: Any, tell: Tell) -> None:
    """Are ten times the same."""
    inspector = listen(clock=clock)
    inspector.apply(tell("enter"))
    inspector.apply(tell("exit", 9))
    with span("live"):
        with span("over"):
            pass
        assert len({repr(inspector.snapshot()) for _ in range(10)}) == 1


class Unwalkable(dict[Any, Any]):
    """Tells whoever walks over all of it."""

    def _walk(self, *args: Any) -> Any:
        raise AssertionError("walked over every live task")

    __iter__ = keys = items = copy = _walk

    def values(self) -> Any:
        return iter(self._few())

    def _few(self) -> Any:
        for count, key in enumerate(dict.__iter__(self)):
            assert count < 200, "walked over every live task"
            yield self[key]


def test_scrape_does_not_look_at_every_live_task(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 10,000 live ones it looks at a bounded sample."""
    inspector = listen()

    def look() -> None:
        for _ in range(10_000):
            span("open").__enter__()
        inspector.settle()
        try:
            for name in ("live", "folded"):
                monkeypatch.setattr(inspector._books, name, Unwalkable(getattr(inspector._books, name)))
            snapshot = inspector.snapshot(tasks=False)
            assert snapshot.tasks == ()
            assert snapshot.names["open"].live == 10_000
            assert sum(snapshot.states.values()) == 10_000
        finally:
            monkeypatch.undo()
            opened.end_all(current_span(), "abandoned")

    # In a context of its own, since nothing here leaves the spans that it enters.
    contextvars.copy_context().run(look)


def test_states_of_driven_tasks(listen: Listen) -> None:
    """Pending before the first step, running during one, blocked in between: in the counts and in the tasks alike."""
    inspector = listen()
    found = {}

    async def main() -> None:
        blocked = asyncio.create_task(asyncio.sleep(1000))
        await asyncio.sleep(0)
        pending = asyncio.create_task(asyncio.sleep(1000))
        snapshot = inspector.snapshot()
        states = [task.state for task in snapshot.tasks if task.outcome is None]
        found.update(
            {state: (snapshot.states[state], states.count(state)) for state in ("pending", "running", "blocked")}
        )
        for task in (blocked, pending):
            task.cancel()

    run(main())
    assert found == {"pending": (1, 1), "running": (1, 1), "blocked": (1, 1)}
    final = inspector.snapshot()
    assert [final.states[state] for state in ("pending", "running", "blocked")] == [0, 0, 0]


def test_running_tallies_of_a_live_task(listen: Listen) -> None:
    """A snapshot reads the steps that were taken by now, also where it is taken in one of them."""
    inspector = listen()
    seen = []

    async def main() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
            seen.append(inspector.snapshot().names[main.__qualname__])

    run(main())
    assert [view.polls for view in seen] == [2, 3, 4]
    assert [view.poll_durations.total for view in seen] == [1, 2, 3]
    assert [view.wakes for view in seen] == [1, 2, 3]
    assert inspector.snapshot().names[main.__qualname__].poll_durations.total == 4


def test_reset(listen: Listen, tell: Tell) -> None:
    """Only live tasks stay, spawned again, and only what happens from then on is counted of them."""
    inspector = listen()
    name = ""

    async def main() -> None:
        nonlocal name
        name = main.__qualname__
        await asyncio.sleep(0)
        with span("over"):
            pass
        inspector.apply(tell("enter"))
        inspector.apply(tell("resume"))
        inspector.apply(tell("exit", 7))
        inspector.reset()
        snapshot = inspector.snapshot()
        assert set(snapshot.names) == {name, "job"}
        assert (snapshot.names[name].spawned, snapshot.names[name].polls, snapshot.names["job"].polls) == (1, 0, 0)
        assert sum(snapshot.dropped.values()) == 0
        await asyncio.sleep(0)
        inspector.apply(tell("resume"))

    with asyncio.Runner() as runner:
        from asyncinspect_logging import install

        with install(runner.get_loop()):
            runner.run(main())
    snapshot = inspector.snapshot()
    assert (snapshot.names[name].spawned, snapshot.names[name].completed, snapshot.names[name].polls) == (1, 1, 1)
    assert snapshot.names[name].busy < snapshot.find(snapshot.tasks[-1].id).busy or snapshot.names[name].busy >= 0  # type: ignore[union-attr]
    assert (snapshot.names["job"].spawned, snapshot.names["job"].polls, snapshot.states["running"]) == (1, 1, 1)
    inspector.apply(tell("exit"))
    assert inspector.snapshot().names["job"].completed == 1


def test_records_from_before_a_reset_are_still_known(tell: Tell) -> None:
    """A log shipped again after a reset counts as duplicates."""
    records = [tell("enter"), tell("exit")]
    inspector = applied(*records)
    inspector.reset()
    for record in records:
        inspector.apply(record)
    snapshot = inspector.snapshot()
    assert not snapshot.names
    assert snapshot.dropped["duplicate"] == 2


def test_added_bounds(listen: Listen, clock: Any) -> None:
    """Finer buckets from now on; what was counted stays below the bounds it was below."""
    inspector = listen(clock=clock)

    def last(seconds: float) -> None:
        with span("a"):
            clock.t += round(seconds * 1e9)

    last(0.15)
    inspector.add_duration_bounds([0.2, 0.25, 60])
    last(0.15)
    last(45)
    histogram = inspector.snapshot().names["a"].durations["completed"]
    assert {0.2, 0.25, 60.0} <= set(histogram.bounds)
    at = dict(zip(histogram.bounds, histogram.cumulative(), strict=False))
    assert (at[0.1], at[0.2], at[0.25], at[30.0], at[60.0]) == (0, 1, 2, 2, 3)
    assert histogram.total == 3
    inspector.reset()
    last(1)
    assert 60.0 in inspector.snapshot().names["a"].durations["completed"].bounds


@pytest.mark.parametrize("bound", [0, -1, float("nan"), float("inf"), True, "1", None, 10**400])
def test_bounds_that_cannot_be_used(bound: Any) -> None:
    """The message names the value and the fix."""
    with pytest.raises(ConfigError, match=r"write for example 0\.25"):
        Inspector().add_duration_bounds([0.1, bound])


@pytest.mark.parametrize(("config", "fix"), [({"max_tasks": 5}, "Config"), ("x", "Config")])
def test_config_that_is_none(config: Any, fix: str) -> None:
    """A mistake is told where it is made."""
    with pytest.raises(ConfigError, match=fix):
        Inspector(config)


# -- threads, finalisers, failures -----------------------------------------------------------------------------------


def test_threads(listen: Listen) -> None:
    """Counters never fall while spans come and go in other threads, and are exact in the end."""
    inspector, stop = listen(Config(max_tasks=10)), threading.Event()

    def work() -> None:
        for _ in range(3000):
            with span("outer"), span("inner"):
                pass

    seen: list[tuple[int, ...]] = []

    def look() -> None:
        while not stop.is_set():
            snapshot = inspector.snapshot(tasks=False)
            views = [snapshot.names[name] for name in ("outer", "inner") if name in snapshot.names]
            for view in views:
                assert view.spawned == view.live + view.finished
                assert view.live >= 0
            assert min(snapshot.states.values()) >= 0
            seen.append(tuple(snapshot.events.values()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    looking = threading.Thread(target=look)
    for thread in (looking, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    looking.join()
    assert all(a <= b for before, after in pairwise(seen) for a, b in zip(before, after, strict=True))
    snapshot = inspector.snapshot()
    for name in ("outer", "inner"):
        view = snapshot.names[name]
        assert (view.spawned, view.completed, view.live, view.durations["completed"].total) == (
            12_000,
            12_000,
            0,
            12_000,
        )
    assert snapshot.dropped["max_tasks"] == 24_000 - 10
    assert snapshot.dropped["duplicate"] == 0


def test_driven_tasks_seen_from_another_thread(listen: Listen) -> None:
    """Their tallies are read in the middle of steps, and no counter ever falls or overshoots."""
    inspector, stop = listen(), threading.Event()
    seen: list[dict[str, float]] = []

    async def child() -> None:
        for _ in range(200):
            await asyncio.sleep(0)
        with span("inner"):
            for _ in range(100):
                await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(child() for _ in range(20)))

    def counters() -> dict[str, float]:
        return {
            f"{view.name} {key}": value
            for view in inspector.snapshot(tasks=False).names.values()
            for key, value in [
                *(
                    (field, getattr(view, field))
                    for field in ("spawned", "polls", "wakes", "busy", "idle", "scheduled")
                ),
                *((f"poll {index}", count) for index, count in enumerate(view.poll_durations.counts)),
                *((f"wait {index}", count) for index, count in enumerate(view.scheduled_delays.counts)),
            ]
        }

    def look() -> None:
        while not stop.is_set():
            seen.append(counters())

    looking = threading.Thread(target=look)
    looking.start()
    run(main())
    stop.set()
    looking.join()
    final = counters()
    for before, after in zip(seen, [*seen[1:], final], strict=True):
        assert [key for key in before if before[key] > after[key]] == []
    view = inspector.snapshot().names[child.__qualname__]
    assert (view.polls, view.wakes, view.poll_durations.total, view.scheduled_delays.total) == (
        20 * 301,
        20 * 300,
        6020,
        6000,
    )
    tasks = [task for task in inspector.snapshot().tasks if task.name == child.__qualname__]
    assert view.idle == pytest.approx(sum(task.idle for task in tasks))
    assert view.busy == pytest.approx(sum(task.busy for task in tasks))


def test_finaliser_that_uses_spans_and_snapshots(listen: Listen) -> None:
    """It runs in the middle of the inspector's work, in the same thread, and gets through."""
    inspector, runs = listen(Config(max_tasks=5)), []

    def finalise(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and len(runs) < 500:
            with span("finaliser"):
                runs.append(inspector.snapshot())

    before = gc.get_threshold()
    gc.callbacks.append(finalise)
    gc.set_threshold(10)
    try:
        for number in range(300):
            with span(f"a{number % 7}", data=[number]):
                pass
            inspector.snapshot()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(finalise)
    assert runs
    snapshot = inspector.snapshot()
    assert sum(view.completed for name, view in snapshot.names.items() if name.startswith("a")) == 300
    assert snapshot.names["finaliser"].completed == snapshot.names["finaliser"].spawned == len(runs)


def test_finaliser_in_the_middle_of_a_batch(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it announces waits its turn, and its snapshot is taken without a deadlock."""
    inspector, inside = listen(), []
    take = inspector._announced.take

    def interrupted(spans: Any) -> None:
        with span("interruption"):
            inspector.settle()
        inside.append(inspector.snapshot())
        take(spans)

    monkeypatch.setattr(inspector._announced, "take", interrupted)
    with span("a"):
        pass
    assert inspector.snapshot().names["a"].completed == 1
    assert inside
    monkeypatch.undo()
    assert inspector.snapshot().names["interruption"].completed == 1


def test_junk_in_a_queue_keeps_nothing_back(listen: Listen) -> None:
    """Each thing that cannot be counted is itself counted, and told once; the others are not lost."""
    diagnostics._told.clear()
    inspector = listen()
    for junk in (object(), 7, None):
        inspector.announce(junk)  # type: ignore[arg-type]
        with span("good"):
            pass
    inspector.annotate(1, "a line", 5)
    inspector.settle()
    snapshot = inspector.snapshot()
    assert snapshot.names["good"].completed == 3
    assert snapshot.dropped["malformed"] == 3
    assert snapshot.events["log"] == 1
    assert len(inspector._told) == 0


def test_failure_is_told_outside_the_lock(listen: Listen, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that takes a snapshot, in another thread, for what we log must not wait for us."""
    diagnostics._told.clear()
    inspector, taken = listen(), []

    class Curious(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            thread = threading.Thread(target=lambda: taken.append(inspector.snapshot()))
            thread.start()
            thread.join(10)

    curious = Curious()
    diagnostics.log.addHandler(curious)
    try:
        inspector.announce(object())  # type: ignore[arg-type]
        inspector.settle()
    finally:
        diagnostics.log.removeHandler(curious)
    assert len(taken) == 1
    assert "could not be counted" in caplog.text


def test_settle_does_not_wait(listen: Listen) -> None:
    """While somebody else is at it, the application goes on."""
    inspector, held, done = listen(), threading.Event(), threading.Event()

    def hold() -> None:
        with inspector._lock:
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    for _ in range(500):
        with span("a"):
            inspector.annotate(1, "x", 1)
    inspector.settle()
    assert len(inspector._told) == 500
    done.set()
    thread.join()
    assert inspector.snapshot().names["a"].completed == 500


def test_collected_inspectors_leave_nothing_behind() -> None:
    """Not even in the list of those to be told of a fork."""
    from asyncinspect_logging import process

    gc.collect()
    before = len(process._after_fork)
    for _ in range(100):
        Inspector()
    gc.collect()
    assert len(process._after_fork) == before


def test_trace_records_reach_the_timeline(listen: Listen) -> None:
    """At level TRACE, the steps of a driven task are on its timeline."""
    logging.getLogger("asyncinspect").setLevel(TRACE)
    inspector = listen()

    async def main() -> None:
        await asyncio.sleep(0)

    run(main())
    task = next(task for task in inspector.snapshot().tasks if task.name == main.__qualname__)
    assert [event.kind for event in task.events] == ["spawn", "enter", "suspend", "wake", "resume", "exit"]
