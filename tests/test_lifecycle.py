"""The lifecycle linter finds what is wrong, once each, and nothing in what is right."""

from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import TaskList, id_of, snapshot, task

from asyncinspect_logging import Inspector, install, span
from asyncinspect_logging.analysis import lifecycle
from asyncinspect_logging.analysis.lifecycle import KINDS, Flaw, check, check_payloads
from asyncinspect_logging.detect.sync import Lock
from asyncinspect_logging.handler import AsyncInspectHandler
from asyncinspect_logging.records import KEY
from asyncinspect_logging.snapshot import TaskView
from asyncinspect_logging.spans import LOGGER


def found(flaws: list[Flaw]) -> list[tuple[str, str]]:
    return [(flaw.kind, flaw.name) for flaw in flaws]


TASKS: dict[str, tuple[TaskView, ...]] = {
    "outlives_parent": (task(1, "parent", ended=2), task(2, "job", 1, 1, 3)),
    "began_after_parent": (task(1, "parent"), task(2, "job", 1, 2, 3, parent_closed=True)),
    "before_parent": (task(1, "parent", began=5, ended=9), task(2, "job", 1, 4, 6)),
    "held_at_exit": (task(1, told=((0.1, "acquire", "lock db"),)),),
    "backwards": (task(1, began=3, entered=2, ended=4),),
    "busier_than_long": (task(1, busy=2.0),),
    "after_exit": (task(1, told=((1.5, "suspend", "sleep"),)),),
}


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("streamed", [False, True])
def test_each_flaw_of_tasks_is_found_once(kind: str, streamed: bool) -> None:
    """In whatever order the tasks come, with the span first, and with what to do."""
    for tasks in itertools.permutations(TASKS[kind]):
        (flaw,) = check(TaskList(tasks) if streamed else snapshot(*tasks))
        assert (flaw.kind, flaw.name, flaw.advice) == (kind, "job", KINDS[kind])
        assert flaw.span_ids == ((id_of(2), id_of(1)) if len(tasks) == 2 else (id_of(1),))
        assert flaw.message.startswith("job ")


RIGHT = (
    task(1, "parent", ended=9),
    task(2, "child", 1, 1, 9.000_001),  # the blur of Unix times
    task(3, "live parent", ended=None),
    task(4, "live child", 3, 2, None),
    task(5, "remote child", None, -50, 80, parent_id="0123456789abcdef"),
    task(6, "locks", told=((0.1, "wait", "lock a"), (0.2, "acquire", "lock a"), (0.3, "release", "lock a"))),
    task(7, "gives up", told=((0.1, "wait", "lock a"), (0.2, "release", "lock a"))),
    task(8, "event", told=((0.1, "wait", "event"), (0.2, "acquire", "event"))),
    task(9, "holds still", ended=None, told=((0.1, "acquire", "lock b"),)),
    task(10, "log after", told=((2.0, "log", "late"),)),
)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_right_has_no_flaw(streamed: bool) -> None:
    """Children of other processes, whose clocks are others, and locks held by the living among them."""
    assert check(TaskList(RIGHT) if streamed else snapshot(*RIGHT)) == []


def test_a_lock_may_be_given_back_by_another_span() -> None:
    """By one around it, say; each giving back is of one lock, and of one taken before."""
    around = task(1, "around", ended=9, told=((5, "release", "lock a"), (0.05, "release", "lock b")))
    inner = [task(number, "inner", 1, 0, 2, told=((0.1, "acquire", "lock a"),)) for number in (2, 3)]
    other = task(4, "other", 1, 0, 2, told=((0.1, "acquire", "lock b"),))
    assert found(check(snapshot(around, *inner, other))) == [("held_at_exit", "inner"), ("held_at_exit", "other")]


def test_a_live_child_of_a_parent_that_ended_outlives_it() -> None:
    """And the message says that it goes on."""
    (flaw,) = check(snapshot(task(1, "parent", ended=2), task(2, "job", 1, 1, None)))
    assert flaw.message == "job goes on 98.000000 s after the end of its parent parent"


@pytest.mark.parametrize("seconds", [0.0, 0.004])
def test_flaws_of_a_running_program(listen: Callable[..., Inspector], seconds: float) -> None:
    """A child that outlives its parent, and a lock that is not given back; put right, none."""
    LOGGER.setLevel(5)
    inspector = listen()

    async def child() -> None:
        await asyncio.sleep(seconds)

    async def main() -> None:
        lock = Lock(name="db")
        with install():
            with span("parent"):
                running = asyncio.create_task(child())
                if not seconds:
                    await running
            with span("taker"):
                await lock.acquire()
                if not seconds:
                    lock.release()
            await running

    asyncio.run(main())
    flaws = check(inspector.snapshot())
    expected = [("outlives_parent", "child"), ("held_at_exit", "taker")] if seconds else []
    assert [(flaw.kind, flaw.name.rpartition(".")[2]) for flaw in flaws] == expected


# -- records ---------------------------------------------------------------------------------------------------------


def records(tell: Any, *told: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [tell(kind, **more) for kind, more in told]


RECORDS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "double_exit": (("enter", {}), ("exit", {}), ("exit", {})),
    "double_enter": (("enter", {}), ("enter", {}), ("exit", {})),
    "never_began": (("exit", {}),),
    "backwards": (("spawn", {}), ("enter", {"t": 5}), ("exit", {})),
    "after_exit": (("enter", {}), ("suspend", {}), ("exit", {"polls": 2}), ("resume", {})),
    "steps_without_driver": (("enter", {}), ("suspend", {}), ("resume", {}), ("exit", {})),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_each_flaw_of_records_is_found_once(kind: str, tell: Any) -> None:
    """In whatever order the lines are, and told twice too; with what to do."""
    lines = records(tell, *RECORDS[kind])
    for shuffled in itertools.permutations(lines):
        (flaw,) = check_payloads([*shuffled, *lines])
        assert (flaw.kind, flaw.name, flaw.advice) == (kind, "job", KINDS[kind])
        assert flaw.span_ids == (f"{(0x1234 << 40) + 1:016x}",)


def test_every_kind_is_tested() -> None:
    """None is left out here."""
    assert {*TASKS, *RECORDS, "left_off"} == set(KINDS)


def test_records_of_a_running_program_have_no_flaw(listen: Callable[..., Inspector]) -> None:
    """All kinds of records there are, of tasks that end in every way."""
    payloads: list[Any] = []

    class Keeping(AsyncInspectHandler):
        def emit(self, record: Any) -> None:
            payloads.append(getattr(record, KEY))

    LOGGER.setLevel(5)
    handler = Keeping(Inspector())
    LOGGER.addHandler(handler)
    listen()

    async def work(lock: Lock, fail: bool) -> None:
        async with lock:
            await asyncio.sleep(0)
        with span("inner"):
            await asyncio.sleep(30 if fail else 0.001)

    async def main() -> None:
        lock = Lock()
        with install(), span("run"):
            tasks = [asyncio.create_task(work(lock, number == 2)) for number in range(4)]
            await asyncio.sleep(0.01)
            tasks[2].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    try:
        asyncio.run(main())
    finally:
        LOGGER.removeHandler(handler)
        handler.close()
    assert {payload["kind"] for payload in payloads} >= {"spawn", "enter", "suspend", "resume", "exit", "acquire"}
    assert check_payloads(payloads) == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.lists(
        json_values
        | st.fixed_dictionaries(
            {"v": st.just(1), "kind": st.sampled_from(["spawn", "enter", "exit", "resume", "wait"]) | json_values,
             "id": st.sampled_from([id_of(1), id_of(2).upper()]) | json_values,
             **dict.fromkeys(("t", "wall", "pid", "seq"), st.integers(0, 9) | json_values),
             "name": st.text(max_size=3) | json_values,
             "outcome": st.just("completed") | json_values, "polls": st.integers(0, 3) | json_values}
        ),
        max_size=12,
    )
)  # fmt: skip
def test_any_values_are_looked_at(payloads: list[Any]) -> None:
    """What is no record is passed over, and nothing raises; the same again gives the same."""
    flaws = check_payloads(payloads)
    assert flaws == check_payloads(payloads)
    assert all(flaw.kind in KINDS and flaw.message and flaw.advice for flaw in flaws)


# -- bounds ----------------------------------------------------------------------------------------------------------


def test_flaws_are_listed_up_to_a_limit() -> None:
    """The last one says how many more there are."""
    tasks = [task(number, busy=2.0) for number in range(1, 31)]
    flaws = check(snapshot(*tasks), limit=10)
    assert found(flaws) == [("busier_than_long", "job")] * 10 + [("left_off", "")]
    assert flaws[-1].message == "20 more flaws are not listed"
    assert len(check(snapshot(*tasks))) == 30


def test_long_logs_are_looked_at_in_flat_memory(monkeypatch: pytest.MonkeyPatch, stream: Any) -> None:
    """Of tasks and of records; what is wrong is found at the beginning and at the end."""
    monkeypatch.setattr(lifecycle, "_MAX_KNOWN", 200)
    peaks = []
    for count in (1_000, 2_000):
        tell = stream()

        def lines(count: int = count, tell: Any = tell) -> Iterator[dict[str, Any]]:
            for number in range(1, count + 1):
                yield tell("enter", number)
                yield tell("exit", number)
                if number in (1, count):
                    yield tell("exit", number)

        def tasks(count: int = count) -> Iterator[TaskView]:
            for number in range(2, count):
                yield task(number, "job", 1, number, number + 1, busy=2.0 if number in (2, count - 1) else 0.0)
            yield task(1, "run", None, 0, count)

        tracemalloc.start()
        assert [flaw.kind for flaw in check_payloads(lines())] == ["double_exit"] * 2
        assert [flaw.kind for flaw in check(TaskList(tasks()))] == ["busier_than_long"] * 2
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_a_span_may_be_open_for_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch, tell: Any) -> None:
    """Whatever ends meanwhile: its beginning is remembered. Of too many open ones nothing is said that may be wrong."""
    monkeypatch.setattr(lifecycle, "_MAX_KNOWN", 50)
    short = [tell(kind, number) for number in range(2, 500) for kind in ("enter", "exit")]
    assert check_payloads([tell("enter", 1), *short, tell("exit", 1)]) == []
    opened = [tell("enter", number) for number in range(1000, 1200)]
    assert check_payloads([*opened, *(tell("exit", number) for number in range(1000, 1200))]) == []


def test_time_grows_with_the_tasks_alone() -> None:
    """Ten thousand children of one parent, and a chain as long: for ever, if it grew with their square."""
    children = [task(number, "job", 1) for number in range(2, 10_000)]
    chain = [task(number, "job", number - 1) for number in range(10_000, 20_000)]
    assert check(snapshot(task(1), *children, *chain)) == []
