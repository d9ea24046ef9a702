"""Polls of plain spans, seen through sys.monitoring."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, frames, instrument, span
from asyncinspect_logging.snapshot import TaskView
from asyncinspect_logging.spans import LOGGER
from asyncinspect_logging.testing import FakeClock

pytestmark = pytest.mark.skipif(not frames.AVAILABLE, reason="sys.monitoring came with 3.12")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def inspector(clock: FakeClock) -> Iterator[Inspector]:
    inspector = Inspector(Config.debug(), clock=clock)
    handler = AsyncInspectHandler(inspector)
    LOGGER.addHandler(handler)
    yield inspector
    LOGGER.removeHandler(handler)
    handler.close()
    assert frames.held == {}


def view(inspector: Inspector, name: str) -> TaskView:
    (found,) = [task for task in inspector.snapshot().tasks if task.name == name]
    return found


@pytest.mark.parametrize("how", ["with", "async with", "stack", "decorator"])
def test_each_step_is_counted(inspector: Inspector, clock: FakeClock, how: str) -> None:
    """And what it took; between the steps, in other code, is idle time."""

    async def deeper(times: int) -> None:
        for _ in range(times):
            clock.advance(1)
            await asyncio.sleep(0)
            clock.advance(2)

    async def main() -> None:
        if how == "with":
            with span("job"):
                await deeper(3)
        elif how == "async with":
            async with span("job"):
                await deeper(3)
        elif how == "stack":
            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(span("job"))
                await deeper(3)
        else:
            await span("job")(deeper)(3)

    async def beside() -> None:
        for _ in range(3):
            clock.advance(10)
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(main(), beside())

    asyncio.run(both())
    job = view(inspector, "job")
    assert (job.polls, job.busy, job.idle, job.max_poll, job.duration) == (4, 9.0, 30.0, 3.0, 39.0)
    names = inspector.snapshot().names["job"]
    assert (names.polls, names.busy, names.idle) == (4, 9.0, 30.0)
    assert names.poll_counts.total == names.finished == 1
    assert names.poll_durations.total == 4


def test_nested_spans_of_one_frame(inspector: Inspector, clock: FakeClock) -> None:
    """Each has the steps in which it was open, and its part of the first and the last of them."""

    async def main() -> None:
        with span("outer"):
            clock.advance(1)
            await asyncio.sleep(0)
            clock.advance(1)
            with span("inner"):
                clock.advance(1)
                await asyncio.sleep(0)
                clock.advance(1)
            clock.advance(1)
            await asyncio.sleep(0)

    asyncio.run(main())
    outer, inner = view(inspector, "outer"), view(inspector, "inner")
    assert (outer.polls, outer.busy) == (4, 5.0)
    assert (inner.polls, inner.busy) == (2, 2.0)


def test_spans_that_never_wait_have_one_poll(inspector: Inspector) -> None:
    """In coroutines and in functions, and no tally."""

    def function() -> None:
        with span("function"):
            pass

    async def main() -> None:
        with span("job") as job:
            function()
        assert job.tally is None
        await asyncio.sleep(0)

    asyncio.run(main())
    assert view(inspector, "job").polls == view(inspector, "function").polls == 1
    assert inspector.snapshot().names["job"].polls == 1


def test_recursion_and_many_tasks(inspector: Inspector, clock: FakeClock) -> None:
    """Spans of one code object, in frames of their own."""

    async def dive(depth: int) -> None:
        with span(f"depth {depth}"):
            if depth:
                await dive(depth - 1)
            await asyncio.sleep(0)
            clock.advance(1)

    async def main() -> None:
        await asyncio.gather(*(dive(3) for _ in range(50)))

    asyncio.run(main())
    names = inspector.snapshot().names
    for depth in range(4):
        assert names[f"depth {depth}"].polls == 50 * (depth + 2)
        assert names[f"depth {depth}"].live == 0


def test_live_span_is_read(inspector: Inspector, clock: FakeClock) -> None:
    """While it is open, in whatever order begin, steps and looks come."""
    seen: list[tuple[int, int]] = []

    def look() -> None:
        seen.append((inspector.snapshot().names["job"].polls, view(inspector, "job").polls))

    async def main() -> None:
        with span("job"):
            look()
            await asyncio.sleep(0)
            look()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            look()

    async def late() -> None:
        with span("job"):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            look()

    asyncio.run(main())
    assert seen == [(1, 1), (2, 2), (4, 4)]
    assert inspector.snapshot().names["job"].polls == 4
    inspector.reset()
    seen.clear()
    with contextlib.suppress(ValueError):
        asyncio.run(late())
    assert seen == [(3, 3)]
    assert inspector.snapshot().names["job"].polls == 3
    assert inspector._books.folded == {}


def test_exception_thrown_in(inspector: Inspector, clock: FakeClock) -> None:
    """No event tells of it: the step is counted, with no time in it."""

    async def main() -> None:
        with span("job"):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                clock.advance(5)
            await asyncio.sleep(0)
            clock.advance(1)

    async def killed() -> None:
        with span("killed"):
            await asyncio.sleep(60)

    async def both() -> None:
        for coroutine in main(), killed():
            task = asyncio.ensure_future(coroutine)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(both())
    job, gone = view(inspector, "job"), view(inspector, "killed")
    assert (job.polls, job.busy) == (3, 1.0)
    assert (gone.polls, gone.outcome) == (2, "cancelled")


def test_driven_coroutines_are_not_monitored(inspector: Inspector, clock: FakeClock) -> None:
    """Their driver sees the steps already; each is counted once."""

    async def main() -> None:
        with span("inner"):
            clock.advance(1)
            await asyncio.sleep(0)

    asyncio.run(instrument(main(), name="outer"))  # type: ignore[arg-type]
    assert (view(inspector, "inner").polls, view(inspector, "outer").polls) == (2, 2)


def test_abandoned(inspector: Inspector) -> None:
    """A coroutine that is closed or collected leaves nothing behind."""

    async def main() -> None:
        with span("job"):
            await asyncio.Event().wait()

    async def around() -> None:
        task = asyncio.ensure_future(main())
        await asyncio.sleep(0)
        coroutine = task.get_coro()
        assert coroutine is not None
        coroutine.close()
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(around())
    gc.collect()
    assert view(inspector, "job").outcome == "abandoned"


def test_frames_and_code_are_not_kept_alive(inspector: Inspector) -> None:
    """Nor what is in them."""

    class Thing:
        alive = 0

        def __init__(self) -> None:
            Thing.alive += 1

        def __del__(self) -> None:
            Thing.alive -= 1

    def make() -> Callable[[], Any]:
        names: dict[str, Any] = {"span": span, "asyncio": asyncio, "Thing": Thing}
        exec("async def main():\n with span('job'):\n  thing = Thing()\n  await asyncio.sleep(0)\n", names)
        return names.pop("main")  # type: ignore[no-any-return]

    gc.collect()
    before = len(frames._codes)
    assert len(frames.holders) == before
    for _ in range(20):
        asyncio.run(make()())
    gc.collect()
    assert Thing.alive == 0
    assert len(frames._codes) == len(frames.holders) == before


def test_code_without_spans_is_let_alone(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while, and until the next span in it."""
    monkeypatch.setattr(frames, "_MISSES", 10)

    async def main(steps: int, first: int) -> None:
        if first:
            with span("job"):
                await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)

    asyncio.run(main(1, 1))
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    assert monitoring.get_local_events(frames._tool, main.__code__) != 0
    asyncio.run(main(20, 0))
    assert monitoring.get_local_events(frames._tool, main.__code__) == 0
    asyncio.run(main(0, 1))
    assert [task.polls for task in inspector.snapshot().tasks] == [2, 2]


def test_no_tool_is_free(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; spans have one poll, as where there is no sys.monitoring."""
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    monkeypatch.setattr(monitoring, "get_tool", lambda tool: "somebody")
    monkeypatch.setattr(frames, "_tool", None)
    monkeypatch.setattr(frames, "_off", False)
    monkeypatch.setattr(frames, "_codes", {})
    frames.holders.clear()

    async def main() -> None:
        for _ in range(2):
            with span("job"):
                await asyncio.sleep(0)

    asyncio.run(main())
    assert [task.polls for task in inspector.snapshot().tasks] == [1, 1]
    assert caplog.text.count("no id is free") == 1
