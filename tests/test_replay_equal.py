"""Live equals replay: random programs, seen live and read back from their log, come to the same."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from pythonjsonlogger.json import JsonFormatter

from asyncinspect_logging import (
    AsyncInspectHandler,
    AsyncInspectProcessor,
    Config,
    Inspector,
    annotate,
    install,
    process,
    span,
)
from asyncinspect_logging.analysis.replay import LogTasks, Replay
from asyncinspect_logging.records import TRACE
from asyncinspect_logging.snapshot import Snapshot, TaskView
from asyncinspect_logging.testing import FakeClock

#: Nothing is left out for want of room, and no watcher looks on: what it finds, it logs when it comes to that.
CONFIG = Config(max_tasks=None, max_events=None, slow_poll=1e6, never_yielded=None, leaked_after=None)
app = logging.getLogger("test_replay_equal")

# -- programs --------------------------------------------------------------------------------------------------------

NAMES = ("fetch", "store", "wait", 'a "quoted"\nname', "naïve 💡")
Op = tuple[Any, ...]
values = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64) + 1, (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(-9, 9) | st.text(max_size=2), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(-9, 9), max_size=2)
)
fields = st.dictionaries(st.sampled_from(["user", "path", "password", "größe"]), values, max_size=2)
leaves: st.SearchStrategy[Op] = st.one_of(
    st.just(("turn",)),
    st.tuples(st.just("advance"), st.sampled_from([1e-6, 2e-5, 0.003, 0.2, 20.0])),
    st.tuples(st.just("log"), st.text(max_size=5), st.sampled_from([logging.INFO, logging.ERROR])),
    st.tuples(st.just("annotate"), st.text(max_size=5)),
    st.tuples(st.just("record"), fields),
    st.just(("fail",)),
)


def _inner(ops: st.SearchStrategy[Op]) -> st.SearchStrategy[Op]:
    body = st.lists(ops, max_size=4)
    return st.one_of(
        st.tuples(st.just("span"), st.sampled_from(NAMES), fields, body),
        st.tuples(st.just("task"), body),
        st.tuples(st.just("cancelled"), st.integers(0, 2), body),
        st.tuples(st.just("generator"), st.sampled_from(NAMES), body),
    )


programs = st.lists(st.recursive(leaves, _inner, max_leaves=12), min_size=1, max_size=5)


class Program:
    """Runs it. `begin`: makes a span; `log`: writes a line."""

    def __init__(self, clock: FakeClock, begin: Callable[..., Any], log: Callable[[int, str], None]) -> None:
        self.clock, self.begin, self.log = clock, begin, log

    async def main(self, ops: list[Op]) -> None:
        with install():
            await asyncio.gather(asyncio.create_task(self.body(ops)), return_exceptions=True)

    async def body(self, ops: list[Op]) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            for op in ops:
                await self.step(op, tasks)
        finally:
            await asyncio.gather(*tasks, return_exceptions=True)

    async def step(self, op: Op, tasks: list[asyncio.Task[None]]) -> None:
        match op:
            case ("turn",):
                await asyncio.sleep(0)
            case ("advance", seconds):
                self.clock.advance(seconds)
            case ("log", text, level):
                self.log(level, text)
            case ("annotate", text):
                annotate(text)
            case ("record", more):
                inner = self.current()
                if inner is not None:
                    inner.record(**more)
            case ("fail",):
                raise LookupError("on purpose \udc80 💡")
            case ("span", name, more, body):
                with contextlib.suppress(LookupError), self.begin(name, **more):
                    await self.body(body)
            case ("task", body):
                tasks.append(asyncio.create_task(self.body(body)))
            case ("cancelled", turns, body):
                tasks.append(asyncio.create_task(self.body([*body, *[("turn",)] * 9])))
                for _ in range(turns):
                    await asyncio.sleep(0)
                tasks[-1].cancel()
            case ("generator", name, body):

                async def numbers() -> Any:
                    with self.begin(name):
                        yield 1
                        yield 2

                made = numbers()
                async for _ in made:
                    await self.body(body)
                    break
                await made.aclose()

    @staticmethod
    def current() -> Any:
        from asyncinspect_logging import current_span

        return current_span()


# -- the ways into a log ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stdlib(level: int, clock: FakeClock) -> Iterator[tuple[Inspector, io.StringIO, Callable[..., Any], Any]]:
    """The JSON formatter, on the root."""
    live, text = Inspector(CONFIG), io.StringIO()
    file, handler = logging.StreamHandler(text), AsyncInspectHandler(live)
    file.setFormatter(JsonFormatter("%(levelname)s %(name)s %(message)s %(created)f"))
    logger, root = logging.getLogger("asyncinspect"), logging.getLogger()
    before = logger.level, root.level
    logger.setLevel(level)
    root.setLevel(logging.DEBUG)
    for each in (file, handler):
        root.addHandler(each)
    try:
        yield live, text, span, app.log
    finally:
        for each in (file, handler):
            root.removeHandler(each)
            each.close()
        logger.setLevel(before[0])
        root.setLevel(before[1])


@contextlib.contextmanager
def through_structlog(level: int, clock: FakeClock) -> Iterator[tuple[Inspector, io.StringIO, Callable[..., Any], Any]]:
    """structlog's renderer, without stdlib logging, for spans that tell through structlog; tasks go by the default."""
    live, text = Inspector(CONFIG), io.StringIO()

    def stamp(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        event["timestamp"] = clock.time_ns()
        return event

    log = structlog.wrap_logger(
        structlog.PrintLogger(text),
        processors=[
            AsyncInspectProcessor(live, pass_lifecycle=True),
            structlog.processors.add_log_level,
            stamp,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level if level != TRACE else logging.NOTSET),
    )
    logger = logging.getLogger("asyncinspect")
    file, handler = logging.StreamHandler(text), AsyncInspectHandler(live)
    file.setFormatter(JsonFormatter("%(levelname)s %(name)s %(message)s %(created)f"))
    before = logger.level
    logger.setLevel(level)
    for each in (file, handler):
        logger.addHandler(each)
    try:
        yield live, text, functools.partial(span, logger=log), log.log
    finally:
        for each in (file, handler):
            logger.removeHandler(each)
            each.close()
        logger.setLevel(before)


WAYS = {"stdlib": stdlib, "structlog": through_structlog}


def run(way: str, level: int, program: list[Op]) -> tuple[Snapshot, bytes]:
    """The live snapshot after the program, and its log: that of a process of its own, by the numbers in it."""
    process._begin()
    with FakeClock() as clock, WAYS[way](level, clock) as (live, text, begin, log):
        asyncio.run(Program(clock, begin, log).main(program))
        return live.snapshot(), text.getvalue().encode("utf-8", "surrogatepass")


def replayed(tmp_path_factory: pytest.TempPathFactory, log: bytes) -> tuple[Replay, Path]:
    path = tmp_path_factory.mktemp("logs") / "app.log"
    path.write_bytes(log)
    replay = Replay(path, strict=True)
    replay.run()
    return replay, path


# -- what is compared ------------------------------------------------------------------------------------------------

#: Of a snapshot, what no log can say: how much memory it takes, how late the live loop was, when somebody looked, and
#: what a look at this process's tasks finds.
NOT_IN_A_LOG = ("taken_at", "memory", "loop_lag", "findings", "deadlocks", "lints", "tasks")
#: Of a task: how long ago it began at the time of looking; and of one that is open, what a look finds.
NOT_OF_A_TASK = ("age", "await_chain", "awaiting", "events")
#: Besides, without the records of steps: that a task was made before it began.
NOT_AT_DEBUG = ("started_at",)


def assert_same(live: Snapshot, again: Snapshot, level: int) -> None:
    for field in Snapshot._fields:
        if field not in NOT_IN_A_LOG:
            assert getattr(again, field) == getattr(live, field), field
    of_live, of_log = ({task.id: task for task in snapshot.tasks} for snapshot in (live, again))
    assert of_live.keys() == of_log.keys()
    for id, task in of_live.items():
        assert_same_task(task, of_log[id], level)


def assert_same_task(task: TaskView, other: TaskView, level: int) -> None:
    left_out = NOT_OF_A_TASK if level == TRACE else NOT_OF_A_TASK + NOT_AT_DEBUG
    for field in TaskView._fields:
        if field not in left_out:
            assert getattr(other, field) == getattr(task, field), field
    if level == TRACE:
        assert other.events == task.events
    else:
        assert other.events[1:] == task.events[1:]
        assert other.events[0].kind == task.events[0].kind == "spawn"


@pytest.mark.parametrize("level", [logging.DEBUG, TRACE], ids=["DEBUG", "TRACE"])
@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=15)
@given(program=programs)
def test_live_equals_replay(tmp_path_factory: pytest.TempPathFactory, way: str, level: int, program: list[Op]) -> None:
    """All counters, histograms, states, events, dropped; and every task with its fields, outcome, tallies, timeline."""
    live, log = run(way, level, program)
    replay, path = replayed(tmp_path_factory, log)
    assert replay.report.missing == replay.report.broken == 0
    again = replay.inspector.snapshot()
    assert_same(live, again, level)
    stream = LogTasks(path)
    tasks = {task.id: task for task in stream}
    assert {id: task._replace(age=0) for id, task in tasks.items()} == {
        task.id: task._replace(age=0) for task in again.tasks
    }
    rest = stream.rest()
    assert (rest.names, rest.events, rest.dropped, rest.states) == (
        again.names,
        again.events,
        again.dropped,
        again.states,
    )


@settings(max_examples=15)
@given(first=programs, second=programs, data=st.data())
def test_processes_files_order_and_repeats(
    tmp_path_factory: pytest.TempPathFactory, first: list[Op], second: list[Op], data: st.DataObject
) -> None:
    """Lines of two programs, shuffled, some of them twice, in any of three files, come to what they do in order."""
    lines = [line for program in (first, second) for line in run("stdlib", TRACE, program)[1].splitlines()]
    # Of two processes with the same pid, as after a restart in a container: the ids tell them apart.
    own = [line for line in lines if b'"asyncinspect": {' in line]
    where = tmp_path_factory.mktemp("logs")
    (where / "whole").write_bytes(b"\n".join(lines))
    whole = Replay(where / "whole", strict=True).run().snapshot()
    again = data.draw(st.lists(st.sampled_from(own), max_size=5)) if own else []
    shuffled = data.draw(st.permutations([*lines, *again]))
    cuts = sorted(data.draw(st.tuples(*[st.integers(0, len(shuffled))] * 2)))
    parts = shuffled[: cuts[0]], shuffled[cuts[0] : cuts[1]], shuffled[cuts[1] :]
    for number, part in enumerate(parts):
        (where / f"app.log.{number}").write_bytes(b"".join(line + b"\n" for line in part))
    merged = Replay(where / "app.log*", strict=True)
    snapshot = merged.run().snapshot()
    assert merged.report.missing == 0
    assert merged.report.records == len(own) + len(again)
    assert snapshot.dropped["duplicate"] == len(again)
    for field in ("names", "states", "events", "taken_at"):
        assert getattr(snapshot, field) == getattr(whole, field), field
    of_whole, of_merged = ({task.id: task for task in taken.tasks} for taken in (whole, snapshot))
    assert of_whole.keys() == of_merged.keys()
    for id, task in of_whole.items():
        assert of_merged[id]._replace(events=()) == task._replace(events=())
        assert sorted(of_merged[id].events) == sorted(task.events)


@settings(max_examples=15)
@given(program=programs, data=st.data())
def test_holes_are_counted(tmp_path_factory: pytest.TempPathFactory, program: list[Op], data: st.DataObject) -> None:
    """Records that are missing, but for the last ones, which nothing comes after, are counted by their numbers."""
    _, log = run("stdlib", TRACE, program)
    lines = [line for line in log.splitlines() if b'"asyncinspect": {' in line]
    kept = data.draw(st.lists(st.booleans(), min_size=len(lines), max_size=len(lines)))
    left = [line for line, keep in zip(lines, kept, strict=True) if keep]
    replay, _ = replayed(tmp_path_factory, b"\n".join(left))
    seqs = [json.loads(line)["asyncinspect"]["seq"] for line in left]
    missing = max(seqs, default=0) - len(seqs)
    assert replay.report.missing == missing
    assert replay.inspector.snapshot().dropped["gap"] >= missing
