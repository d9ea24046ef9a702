"""What must hold whatever records come, in whatever order: checked on streams that Hypothesis makes up and shuffles."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinspect_logging import Config, Inspector, Snapshot, instrument, run, span
from asyncinspect_logging.records import LEVELS, TRACE
from asyncinspect_logging.states import OUTCOMES

NAMES = ("fetch", "store", "wait")


class Still:
    """A clock that stands."""

    def monotonic_ns(self) -> int:
        return 10_000_000_000

    def time_ns(self) -> int:
        return 1_700_000_010_000_000_000


@st.composite
def streams(draw: st.DrawFn, *, complete: bool = False) -> list[dict[str, Any]]:
    """The records of some spans of some processes, in the order in which they were made."""
    records: list[dict[str, Any]] = []
    lives = []
    for number in range(draw(st.integers(1, 6))):
        steps = draw(st.lists(st.sampled_from(["suspend", "wake", "resume", "record", "wait", "acquire"]), max_size=6))
        spawned = draw(st.booleans())
        outcome = draw(st.sampled_from(sorted(OUTCOMES))) if complete or draw(st.booleans()) else None
        kinds = [*(["spawn"] if spawned else []), "enter", *steps, *(["exit"] if outcome else [])]
        lives.append((number, draw(st.integers(0, 2)), draw(st.sampled_from(NAMES)), outcome, kinds))
    seqs = [0, 0, 0]
    turns = [index for index, life in enumerate(lives) for _ in life[4]]
    at = [0] * len(lives)
    for t, index in enumerate(draw(st.permutations(turns))):
        number, process, name, outcome, kinds = lives[index]
        kind = kinds[at[index]]
        at[index] += 1
        seqs[process] += 1
        t = 1_000_000 * (t + 1)
        record: dict[str, Any] = {
            "v": 1,
            "kind": kind,
            "id": f"{(process + 5 << 40) + number:016x}",
            "t": t,
            "wall": t + 1_700_000_000_000_000_000,
            "pid": 100 + process % 2,
            "seq": seqs[process],
            "name": name,
        }
        if kind in ("spawn", "enter", "record"):
            record["fields"] = {"last": t, f"of_{kind}": t}
        if kind == "exit":
            polls, wakes = 1 + kinds.count("resume"), kinds.count("wake")
            record |= {
                "outcome": outcome,
                "duration": 700_000 * number,
                "polls": polls,
                "wakes": wakes,
                "self_wakes": 0,
            }
            record |= {"busy": 1000 * polls, "max_poll": 1000, "scheduled": 10 * wakes}
            record |= {"slow_polls": [[2, 1]]} if polls > 2 else {}
        records.append(record)
    return records


def told(records: list[dict[str, Any]], config: Config | None = None) -> Snapshot:
    inspector = Inspector(config, clock=Still())
    for record in records:
        inspector.apply(record)
    return inspector.snapshot()


def check(snapshot: Snapshot) -> None:
    """What is true of every snapshot."""
    live = sum(snapshot.states[state] for state in ("pending", "running", "blocked"))
    assert live == sum(view.live for view in snapshot.names.values())
    for view in snapshot.names.values():
        assert view.spawned == view.live + view.finished
        assert view.live >= 0
        for state in ("completed", "failed", "cancelled"):
            histogram = view.durations.get(state)
            assert (histogram.total if histogram else 0) == getattr(view, state)
        assert view.poll_counts.total == view.finished
        histograms = (*view.durations.values(), view.poll_counts, view.poll_durations, view.scheduled_delays)
        assert all(count >= 0 for histogram in histograms for count in histogram.counts)
        assert all(histogram.sum >= 0 for histogram in histograms)
        assert all(value >= 0 for value in view[1:11])
        assert view.poll_durations.total <= view.polls
        assert view.scheduled_delays.total <= view.wakes
    for counts in (snapshot.states, snapshot.events, snapshot.dropped, snapshot.memory):
        assert all(count >= 0 for count in counts.values())
    for task in snapshot.tasks:
        assert min(task.age, task.busy, task.idle, task.scheduled, task.polls, task.wakes, task.duration or 0) >= 0
    assert snapshot.events["spawn"] == sum(view.spawned for view in snapshot.names.values())
    assert snapshot.events["drop"] == sum(view.finished for view in snapshot.names.values())


def counters(snapshot: Snapshot) -> dict[str, float]:
    """Everything that must never fall."""
    found: dict[str, float] = {f"event {kind}": count for kind, count in snapshot.events.items()}
    found |= {f"dropped {reason}": count for reason, count in snapshot.dropped.items()}
    for view in snapshot.names.values():
        for field in ("spawned", "completed", "failed", "cancelled", "polls", "wakes", "busy", "idle", "scheduled"):
            found[f"{view.name} {field}"] = getattr(view, field)
        histograms = {
            **view.durations,
            "polls": view.poll_counts,
            "poll": view.poll_durations,
            "wait": view.scheduled_delays,
        }
        for key, histogram in histograms.items():
            found |= {f"{view.name} {key} {index}": count for index, count in enumerate(histogram.counts)}
            found[f"{view.name} {key} sum"] = histogram.sum
    return found


def assert_not_fallen(before: Snapshot, after: Snapshot) -> None:
    now = counters(after)
    assert [key for key, value in counters(before).items() if now[key] < value] == []


def timeless(snapshot: Snapshot) -> Snapshot:
    """Without what changes when nothing happens."""
    return snapshot._replace(taken_at=0, tasks=tuple(task._replace(age=0, idle=0) for task in snapshot.tasks))


def outline(snapshot: Snapshot) -> dict[str, Any]:
    """What does not depend on the order in which tasks ended and notes came."""
    tasks = {task.id: task._replace(events=tuple(sorted(task.events))) for task in snapshot.tasks}
    return snapshot._replace(tasks=())._asdict() | {"tasks": tasks, "memory": None}


@given(streams(), st.data())
def test_any_interleaving_keeps_the_invariants(records: list[dict[str, Any]], data: st.DataObject) -> None:
    """Records may be missing, repeated and out of order."""
    heard = data.draw(st.lists(st.sampled_from(records), max_size=2 * len(records)))
    inspector = Inspector(Config(max_tasks=2, max_events=3, max_names=2))
    before = inspector.snapshot()
    for record in heard:
        inspector.apply(record)
        snapshot = inspector.snapshot()
        check(snapshot)
        assert_not_fallen(before, snapshot)
        before = snapshot
    assert len({repr(timeless(inspector.snapshot())) for _ in range(10)}) == 1


@given(streams(), st.data())
def test_a_complete_stream_may_be_shuffled(records: list[dict[str, Any]], data: st.DataObject) -> None:
    """The order of arrival does not matter where nothing is missing: not to any count, state, field or timeline."""
    assert outline(told(data.draw(st.permutations(records)))) == outline(told(records))


@given(streams(), st.data())
def test_a_stream_told_twice_changes_nothing_but_duplicates(records: list[dict[str, Any]], data: st.DataObject) -> None:
    """In the same order or another one, and with records missing the first time."""
    first = data.draw(st.lists(st.sampled_from(records), unique_by=lambda record: (record["id"], record["seq"])))
    again = data.draw(st.permutations(first))
    once, twice = told(first), told([*first, *again])
    assert twice.dropped["duplicate"] == once.dropped["duplicate"] + len(first)
    assert outline(twice) | {"dropped": None} == outline(once) | {"dropped": None}


@given(streams(complete=True))
def test_tallies_close_the_books(records: list[dict[str, Any]]) -> None:
    """Without the records of single steps, the counters end the same."""
    short = told([record for record in records if LEVELS[record["kind"]] > TRACE])
    full = told(records)
    assert short.names == full.names
    assert short.events == full.events
    assert short.states == full.states


scraps = st.sampled_from([None, True, 0, -1, 3, 1.5, float("nan"), float("inf"), 10**400, "", "x", "enter", b"x"])
junk = st.recursive(
    scraps | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=4,
)
KEYS = [
    "v",
    "kind",
    "id",
    "trace",
    "parent",
    "name",
    "t",
    "wall",
    "pid",
    "seq",
    "task",
    "thread",
    "fields",
    "outcome",
    "error",
    "duration",
    "polls",
    "busy",
    "scheduled",
    "max_poll",
    "wakes",
    "self_wakes",
    "slow_polls",
    "slow_waits",
    "on",
    "at",
    "resource",
    "holders",
    "links",
    "parent_closed",
]


@settings(max_examples=15)
@given(streams(), st.data())
def test_any_key_may_hold_anything(records: list[dict[str, Any]], data: st.DataObject) -> None:
    """A record that was tampered with raises nothing, then or in a snapshot, and the others are counted."""
    inspector = Inspector()
    for record in records:
        changes: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(KEYS), junk, max_size=2))
        inspector.apply(record | changes)
        check(inspector.snapshot())
    assert sum(counters(inspector.snapshot()).values()) >= 0


@given(junk | st.dictionaries(st.sampled_from([*KEYS, "asyncinspect"]), junk))
def test_anything_may_be_applied(record: Any) -> None:
    """What is no record is ignored, and what pretends to be one is counted."""
    inspector = Inspector()
    inspector.apply(record)
    inspector.apply({"asyncinspect": record})
    check(inspector.snapshot())
    assert not inspector.snapshot().names


# -- live spans, against the same spans told by records --------------------------------------------------------------


class Teller(logging.Handler):
    """Hands each lifecycle record to an inspector as a queue would: as a copy."""

    accepts_spans = True

    def __init__(self, inspector: Inspector) -> None:
        super().__init__()
        self.inspector = inspector

    def emit(self, record: logging.LogRecord) -> None:
        self.inspector.apply(copy.copy(record))


async def child(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    with span("inner", turns=turns) as inner:
        inner.record(more=turns)
        await asyncio.sleep(0)


async def fail() -> None:
    await asyncio.sleep(0)
    raise ValueError("on purpose")


async def service() -> None:
    with span("service"):
        async with asyncio.TaskGroup() as group:
            for turns in range(4):
                group.create_task(child(turns))
        await instrument(child(2), name="named")
        await asyncio.gather(fail(), asyncio.create_task(fail()), return_exceptions=True)
        never = asyncio.create_task(asyncio.sleep(1000))
        await asyncio.sleep(0)
        never.cancel()
        unstarted = asyncio.create_task(asyncio.sleep(1000))
        unstarted.cancel()
        await asyncio.wait([never, unstarted])


def plain_work() -> None:
    with span("outer"), span("middle", user=1):
        with pytest.raises(ValueError, match="on purpose"), span("bad"):
            raise ValueError("on purpose")

        def work() -> None:
            for _ in range(20):
                with span("in a thread"):
                    pass

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("clock", [None, Still()], ids=["running", "still"])
@pytest.mark.parametrize("level", [logging.WARNING, TRACE])
@pytest.mark.parametrize(
    "work", [plain_work, lambda: asyncio.run(service()), lambda: run(service())], ids=["sync", "async", "driven"]
)
def test_told_is_as_good_as_seen(
    listen: Callable[..., Inspector], level: int, work: Callable[[], None], clock: Still | None
) -> None:
    """An inspector that was told by records ends with what the one has that saw the spans, also where by the clock no
    step took any time.
    """
    logging.getLogger("asyncinspect").setLevel(level)
    seen, told_of = listen(clock=clock), listen(clock=clock, handler=Teller)
    work()
    live, told = seen.snapshot(), told_of.snapshot()
    for snapshot in (live, told):
        check(snapshot)
        assert sum(snapshot.dropped.values()) == 0
    assert told.names == live.names
    assert told.states == live.states
    assert told.events == live.events
    assert len(told.tasks) == len(live.tasks)
    by_id = {task.id: task for task in told.tasks}
    for task in live.tasks:
        other = by_id[task.id]
        # A task that is gone cannot be asked for its name; and a spawn is told at level TRACE only.
        unlike: dict[str, Any] = {"age": 0, "events": ()} | ({} if level == TRACE else {"started_at": 0})
        assert other._replace(**unlike) == task._replace(**unlike)
        assert [event.kind for event in other.events] == [event.kind for event in task.events]


@pytest.mark.parametrize("level", [logging.DEBUG, TRACE])
@pytest.mark.parametrize("work", [plain_work, lambda: run(service())], ids=["sync", "driven"])
def test_told_of_what_was_seen(listen: Callable[..., Inspector], level: int, work: Callable[[], None]) -> None:
    """The same spans at first hand and by records, as with a handler and a queue listener, count once. Only step
    records, which the handler gets too, are told twice.
    """
    logging.getLogger("asyncinspect").setLevel(level)
    inspector, alone = listen(), listen()
    teller = Teller(inspector)
    logging.getLogger("asyncinspect").addHandler(teller)
    work()
    both, once = inspector.snapshot(), alone.snapshot()
    steps = [event for task in once.tasks for event in task.events if event.kind in ("suspend", "wake", "resume")]
    assert sum(both.dropped.values()) == both.dropped["duplicate"] == len(steps)
    assert both.names == once.names
    assert both.events == once.events
    assert both.states == once.states
    assert [task._replace(age=0) for task in both.tasks] == [task._replace(age=0) for task in once.tasks]
