"""The lints: each finds what it is for, live and from a log, once a task, and nothing in programs that are right."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from itertools import permutations
from typing import Any

import pytest

from asyncinspect_logging import Config, Inspector, install, instrument, run, span
from asyncinspect_logging import inspector as inspector_module
from asyncinspect_logging.catalogue import LINTS
from asyncinspect_logging.detect import lints
from asyncinspect_logging.testing import CapturedSpans, FakeClock, capture_spans

Main = Callable[[CapturedSpans, FakeClock], Coroutine[Any, Any, Any]]


@pytest.fixture(autouse=True)
def _nobody_is_told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What is left over by a test goes with it."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _nobody_else_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No watcher, for which a test's clock would jump."""
    monkeypatch.setattr(inspector_module, "watch", lambda inspector: None)


def found(inspector: Inspector) -> list[tuple[str, str]]:
    """The lints among the findings: kind and name."""
    findings = inspector.snapshot(tasks=False).findings
    return [(finding.kind, finding.name) for finding in findings if finding.kind in LINTS]


#: For programs that themselves let time pass, in steps that are not what is looked at.
AT_LEISURE = Config(slow_poll=1e6)


def play(main: Main, config: Config = AT_LEISURE) -> CapturedSpans:
    """Run a driven program whose time stands still but for what it advances."""
    with FakeClock() as fake, capture_spans(config) as spans:
        run(main(spans, fake))
    return spans


def look_twice(spans: CapturedSpans, fake: FakeClock, seconds: float = 10) -> list[tuple[str, str]]:
    """Look, look again after some time, and return what was found."""
    spans.look()
    fake.advance(seconds)
    spans.look()
    return found(spans)


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def replayed(main: Main, level: int) -> CapturedSpans:
    """What an inspector finds in the log that a driven program writes at a level."""
    payloads: list[Any] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            payloads.append(record.__dict__.get("asyncinspect"))

    logger = logging.getLogger("asyncinspect")
    logger.setLevel(level)
    logger.addHandler(Keep())
    live = play(main, Config())
    # Of another process, by its looks: what this one has heard at first hand it does not take from a log.
    told = CapturedSpans()
    for payload in payloads:
        if payload is not None:
            told.apply(dict(payload))
    assert {name: view.finished for name, view in told.names.items()} == {
        name: view.finished for name, view in live.names.items()
    }
    return told


# -- long_poll -------------------------------------------------------------------------------------------------------


async def slow(spans: CapturedSpans, fake: FakeClock) -> None:
    async def job(seconds: float) -> None:
        await asyncio.sleep(0)
        fake.advance(seconds)

    await asyncio.gather(*(asyncio.create_task(job(seconds)) for seconds in (0.099, 0.1, 0.25)))


def test_long_poll() -> None:
    """A step from slow_poll on is charged to its span, and to its name in the metrics; a shorter one is not."""
    spans = play(slow, Config())
    findings = [finding for finding in spans.snapshot().findings if finding.kind in LINTS]
    assert [finding.kind for finding in findings] == ["long_poll"] * 2
    name = findings[0].name
    assert name.endswith("job")
    assert spans.snapshot().lints == {("long_poll", name): 2}
    assert "held the event loop for 0.25 s (slow_poll is 0.1 s)" in findings[1].message
    by_id = {task.id: task for task in spans.tasks}
    assert [by_id[finding.span_ids[0]].max_poll for finding in findings] == [0.1, 0.25]
    assert findings[1].at == pytest.approx(1_700_000_000.449)


def test_long_poll_of_a_live_task_is_told_once() -> None:
    """While it is going on, and neither again after a longer one nor at the end."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        async def job() -> None:
            for seconds in (0.2, 0.3, 0.4):
                fake.advance(seconds)
                await asyncio.sleep(0)

        task = asyncio.create_task(job())
        await turns(1)
        assert [kind for kind, _ in found(spans)] == ["long_poll"]
        await task

    spans = play(main, Config())
    assert [kind for kind, _ in found(spans)] == ["long_poll"]
    assert sum(spans.snapshot().lints.values()) == 1


def test_what_began_and_ended_between_two_looks_is_told_once() -> None:
    """Its beginning, what its tally had, and its end are worked off in one go."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        async def job() -> None:
            await asyncio.sleep(0)
            spans.snapshot(tasks=False)  # it is among the live ones
            fake.advance(1)
            await asyncio.sleep(0)
            fake.advance(1)

        await asyncio.create_task(job())

    assert [kind for kind, _ in found(play(main, Config()))] == ["long_poll"]


def test_each_span_in_a_step_has_its_part() -> None:
    """A plain span is charged with what of the step it was open in."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        with span("short"):
            fake.advance(0.06)
        with span("long"):
            fake.advance(0.2)
            await asyncio.sleep(0)

    assert sorted((kind, name.rpartition(".")[2]) for kind, name in found(play(main, Config()))) == [
        ("long_poll", "long"),
        ("long_poll", "main"),
    ]


def test_names_beyond_the_limit() -> None:
    """Lints of them count together, like everything else."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        for number in range(5):
            with span(f"job {number}"):
                fake.advance(0.2)
                await asyncio.sleep(0)

    spans = play(main, Config(max_names=2))
    counts = spans.snapshot().lints
    assert len(counts) <= 3
    assert counts["long_poll", "_other_"] >= 3
    assert {name for _, name in found(spans)} >= {"job 3", "job 4"}


# -- never_yielded ---------------------------------------------------------------------------------------------------


async def hogs(spans: CapturedSpans, fake: FakeClock) -> None:
    async def hog() -> None:
        fake.advance(1.5)

    async def polite() -> None:
        fake.advance(1.5)
        await asyncio.sleep(0)

    async def quick() -> None:
        fake.advance(0.9)

    await asyncio.gather(*(asyncio.create_task(job()) for job in (hog, polite, quick)))


def test_never_yielded() -> None:
    """One long step is all there was of it. What lets go of the loop is not told, nor what is quick about it."""
    spans = play(hogs, Config(slow_poll=5))
    assert [(kind, name.rpartition(".")[2]) for kind, name in found(spans)] == [("never_yielded", "hog")]
    assert "ran for 1.5 s and never let go" in spans.snapshot().findings[0].message


# -- self_wakes ------------------------------------------------------------------------------------------------------


async def spinning(spans: CapturedSpans, fake: FakeClock) -> None:
    async def spin(own: int, others: int) -> None:
        for _ in range(own):
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        for _ in range(others):
            future = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future

    for name, own, others in (("spins", 100, 99), ("waits", 100, 100), ("yields", 99, 0)):
        await asyncio.create_task(instrument(spin(own, others), name=name))


def test_self_wakes() -> None:
    """More than half of its wakes, and enough of them."""
    spans = play(spinning)
    assert found(spans) == [("self_wakes", "spins")]
    assert "100 of its 199 wakes" in spans.snapshot().findings[0].message


def test_self_wakes_of_a_live_task() -> None:
    """Told while it spins, and once."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        async def spin() -> None:
            await turns(300)

        task = asyncio.create_task(instrument(spin(), name="spins"))
        await asyncio.create_task(turns(150))
        assert ("self_wakes", "spins") in found(spans)
        await task

    spans = play(main)
    assert spans.snapshot().lints["self_wakes", "spins"] == 1


# -- never_awaited ---------------------------------------------------------------------------------------------------


async def _job() -> None:
    await asyncio.sleep(0)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_coroutine_that_nobody_awaits() -> None:
    """What `instrument` makes of a coroutine and somebody drops is told; there is no span of it."""
    with capture_spans() as spans:
        driver = instrument(_job(), name="job")
        assert found(spans) == []
        del driver
        (finding,) = spans.snapshot().findings
    assert (finding.kind, finding.name, finding.span_ids) == ("never_awaited", "job", ())
    assert spans.snapshot().lints == {("never_awaited", "job"): 1}
    assert spans.tasks == ()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_names_of_coroutines_that_nobody_awaits() -> None:
    """They are limited, too."""
    with capture_spans(Config(max_names=2)) as spans:
        for name in ("a", "b", "c", "a", "d"):
            made = instrument(_job(), name=name)
            del made
        assert spans.snapshot().lints == {
            ("never_awaited", "a"): 2,
            ("never_awaited", "b"): 1,
            ("never_awaited", "_other_"): 2,
        }


def test_a_coroutine_that_is_closed_on_purpose() -> None:
    """Or awaited, or cancelled before it began, or no coroutine at all: none of it is told."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        instrument(_job(), name="closed").close()
        await instrument(_job(), name="awaited")
        task = asyncio.create_task(_job())
        await cancelled(task)
        future = asyncio.get_running_loop().create_future()
        unused = instrument(future, name="future")
        del unused
        future.cancel()

    assert found(play(main)) == []


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def unbegun(spans: CapturedSpans) -> None:
    """A task that its loop never gets to."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    with install(loop):
        loop.create_task(_job())
    loop._ready.clear()  # type: ignore[attr-defined]
    loop.close()
    gc.collect()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_task_that_is_dropped_before_its_first_step() -> None:
    """Is told, and counts as cancelled."""
    with capture_spans() as spans:
        unbegun(spans)
    assert found(spans) == [("never_awaited", "_job")]
    assert spans.names["_job"].cancelled == 1


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("level", [logging.DEBUG, 5])
def test_the_same_from_a_log(level: int) -> None:
    """By the records of begin and end alone."""
    payloads = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            payloads.append(dict(record.__dict__["asyncinspect"]))

    logger = logging.getLogger("asyncinspect")
    logger.setLevel(level)
    logger.addHandler(Keep())
    with capture_spans() as spans:
        unbegun(spans)
        # What finalisers have to say comes with the next record, or when somebody looks.
        spans.look()
    told = Inspector()
    for payload in payloads:
        told.apply(payload)
    assert found(told) == found(spans) == [("never_awaited", "_job")]
    (finding,) = told.snapshot().findings
    exited = payloads[-1]
    assert finding.evidence == (f"{exited['pid']}:{exited['seq']}",)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("thread", "lint"), [(7, "leaked"), (0, "never_awaited")])
def test_whatever_comes_first(
    order: tuple[int, ...], at_once: bool, thread: int, lint: str, stream: Callable[..., Any]
) -> None:
    """Whether a task that was collected had begun is told by its enter, which may come after its exit."""
    tell = stream()
    told = [tell("spawn", thread=0), tell("enter", thread=thread), tell("exit", outcome="abandoned", polls=1)]
    inspector = Inspector()
    for index in order:
        inspector.apply(told[index])
        if not at_once:
            inspector.snapshot()
    (finding,) = inspector.snapshot().findings
    assert (finding.kind, finding.evidence) == (lint, (f"{told[2]['pid']}:{told[2]['seq']}",))


# -- from a log ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [logging.DEBUG, 5])
@pytest.mark.parametrize(
    ("main", "kinds"),
    [
        (slow, {"long_poll": 2}),
        (hogs, {"long_poll": 3, "never_yielded": 1}),
        (spinning, {"self_wakes": 1}),
    ],
)
def test_tallies_from_a_log(main: Main, kinds: dict[str, int], level: int) -> None:
    """A log of begins and ends, or of every step, gives the same findings as the program did."""
    told = replayed(main, level).snapshot()
    counts: dict[str, int] = {}
    for (lint, _), count in told.lints.items():
        counts[lint] = counts.get(lint, 0) + count
    assert counts == kinds
    assert all(finding.evidence for finding in told.findings)
    assert all(told.find(finding.span_ids[0]) for finding in told.findings)


# -- leaked ----------------------------------------------------------------------------------------------------------


async def _waits(on: list[asyncio.Future[None]]) -> None:
    future = asyncio.get_running_loop().create_future()
    on.append(future)
    await future


async def orphan(on: list[asyncio.Future[None]]) -> None:
    """The parent of a task that it does not keep."""
    asyncio.create_task(_waits(on))
    await asyncio.sleep(0)


def test_leaked() -> None:
    """Parent over, nobody refers to it: told after a while, once, and no longer kept when it is through."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        on: list[asyncio.Future[None]] = []
        await asyncio.create_task(orphan(on))
        spans.look()
        fake.advance(4.9)
        spans.look()
        assert found(spans) == []
        fake.advance(0.2)
        spans.look()
        assert found(spans) == [("leaked", "_waits")]
        look_twice(spans, fake)
        assert spans.snapshot().lints == {("leaked", "_waits"): 1}
        assert "for 5.1 s nobody has referred to the task" in spans.snapshot().findings[0].message
        on[0].set_result(None)
        await turns()
        assert spans.names["_waits"].completed == 1

    play(main)


def test_leaked_with_a_plain_span() -> None:
    """Without drivers, too, where there are spans in parent and child."""

    async def child(on: list[asyncio.Future[None]]) -> None:
        with span("child"):
            await _waits(on)

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        on: list[asyncio.Future[None]] = []
        with span("parent"):
            asyncio.create_task(child(on))
            await turns()
        assert look_twice(spans, fake) == [("leaked", "child")]
        on[0].set_result(None)
        await turns()

    with FakeClock() as fake, capture_spans() as spans:
        asyncio.run(main(spans, fake))


def test_one_look_is_not_enough() -> None:
    """However long ago: what is told was so at two looks."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        on: list[asyncio.Future[None]] = []
        await asyncio.create_task(orphan(on))
        fake.advance(100)
        spans.look()
        assert found(spans) == []
        on[0].set_result(None)
        await turns()

    play(main)


def test_a_scrape_looks_at_no_task() -> None:
    """It costs the same however many there are."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        on: list[asyncio.Future[None]] = []
        await asyncio.create_task(orphan(on))
        for _ in range(3):
            assert spans.snapshot(tasks=False).findings == ()
            fake.advance(10)
        assert look_twice(spans, fake) == [("leaked", "_waits")]
        on[0].set_result(None)
        await turns()

    play(main)


def test_all_tasks_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look glances at a few, and the next one at others."""
    monkeypatch.setattr(lints, "_GLANCES", 3)

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        on: list[asyncio.Future[None]] = []
        for _ in range(10):
            await asyncio.create_task(orphan(on))
        for _ in range(20):
            spans.look()
            fake.advance(1)
        assert spans.snapshot().lints == {("leaked", "_waits"): 10}
        for future in on:
            future.set_result(None)
        await turns()

    play(main)


@pytest.mark.parametrize(
    "how", ["kept", "discard", "parent lives", "awaited", "gather", "group", "shield", "callback", "ready"]
)
def test_no_leak(how: str) -> None:
    """A task that somebody keeps, awaits, or is told of, and one whose parent is not through, is none."""
    background: set[asyncio.Task[Any]] = set()
    on: list[asyncio.Future[None]] = []

    async def parent() -> None:
        task = asyncio.create_task(_waits(on))
        if how == "kept":
            background.add(task)
        elif how == "discard":
            background.add(task)
            task.add_done_callback(background.discard)
        elif how == "parent lives":
            del task
            await asyncio.get_running_loop().create_future()
        elif how == "callback":
            task.add_done_callback(lambda task: None)
        elif how in ("awaited", "gather", "group", "shield"):
            background.add(asyncio.create_task(waiter(task)))
        elif how == "ready":
            await asyncio.sleep(0)
            on.pop().set_result(None)

    async def waiter(task: asyncio.Task[None]) -> None:
        tasks = [task]
        del task
        if how == "gather":
            await asyncio.gather(tasks.pop())
        elif how == "shield":
            await asyncio.shield(tasks.pop())
        elif how == "group":
            tasks.clear()
            async with asyncio.TaskGroup() as group:
                group.create_task(_waits(on))
        else:
            await tasks.pop()

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        running = asyncio.create_task(parent())
        if how == "ready":
            await running
        else:
            await turns(5)
        leaks = [name for kind, name in look_twice(spans, fake) if kind == "leaked"]
        # The child that the group took the place of is a leak.
        assert leaks == (["_waits"] if how == "group" else [])
        for future in on:
            future.set_result(None)
        await cancelled(running)

    play(main)


def test_a_leak_that_is_none_any_more_is_taken_back() -> None:
    """Somebody took hold of the task after all: the counter stays, the finding does not."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        on: list[asyncio.Future[None]] = []
        await asyncio.create_task(orphan(on))
        assert look_twice(spans, fake) == [("leaked", "_waits")]
        (task,) = asyncio.all_tasks() - {asyncio.current_task()}
        spans.look()
        assert found(spans) == [("leaked", "_waits")]
        spans.look()
        assert found(spans) == []
        assert spans.snapshot().lints == {("leaked", "_waits"): 1}
        await cancelled(task)
        # And it stays at one.
        del task

    play(main)


def collected(spans: CapturedSpans) -> None:
    """A task that is collected while it waits."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)

    async def main() -> None:
        asyncio.create_task(_waits([]))
        await turns()

    with install(loop):
        loop.run_until_complete(main())
        gc.collect()
        loop.close()


def test_a_task_that_is_collected() -> None:
    """While it was pending: told when it goes."""
    with FakeClock(), capture_spans() as spans:
        collected(spans)
    assert found(spans) == [("leaked", "_waits")]
    assert "was collected while it was pending" in spans.snapshot().findings[0].message
    assert spans.names["_waits"].cancelled == 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_task_that_could_not_be_made(begun: bool) -> None:
    """Its coroutine is closed by whoever got the exception: no task was dropped, nor collected."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        def refuse(loop: Any, coro: Any, **_: Any) -> Any:
            if begun:
                coro.send(None)
            raise RuntimeError("no more tasks")

        loop = asyncio.get_running_loop()
        loop.set_task_factory(refuse)
        coro = _waits([])
        with pytest.raises(RuntimeError, match="no more tasks"):
            asyncio.create_task(coro)
        loop.set_task_factory(None)
        coro.close()
        gc.collect()

    spans = play(main)
    assert found(spans) == []
    assert spans.names["_waits"].cancelled == 1


def test_generators_that_break_off_are_no_leak() -> None:
    """An async generator that is not read to its end is closed; so is a coroutine that is driven by hand."""

    async def numbers() -> Any:
        with span("numbers"):
            for number in range(3):
                yield number
                await asyncio.sleep(0)

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        async for _ in numbers():
            break
        await asyncio.get_running_loop().shutdown_asyncgens()
        driver = instrument(_job(), name="by hand")
        driver.send(None)
        driver.close()

    spans = play(main)
    assert found(spans) == []
    assert spans.names["by hand"].cancelled == 1


# -- lost_waker ------------------------------------------------------------------------------------------------------


async def _lost() -> None:
    future = asyncio.get_running_loop().create_future()
    await future


async def _deeply_lost() -> None:
    async def gen() -> Any:
        await _lost()
        yield

    async for _ in gen():
        pass


async def _nameless() -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("job", [_lost, _deeply_lost, _nameless])
@pytest.mark.parametrize("nested", [False, True])
def test_lost_waker(job: Callable[[], Coroutine[Any, Any, None]], nested: bool) -> None:
    """Nobody but the task has the future: told after a while, once, with the place."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        async def outer() -> None:
            await (instrument(job(), name="inner") if nested else job())

        task = asyncio.create_task(instrument(outer(), name="job"))
        await turns()
        spans.look()
        fake.advance(4.9)
        spans.look()
        assert found(spans) == []
        fake.advance(0.2)
        spans.look()
        assert found(spans) == [("lost_waker", "job")]
        look_twice(spans, fake)
        assert spans.snapshot().lints == {("lost_waker", "job"): 1}
        message = spans.snapshot().findings[0].message
        assert "for 5.1 s it has waited at" in message
        assert f"test_lints.py:{_line(job if job is _nameless else _lost)} " in message
        await cancelled(task)

    play(main)


def _line(job: Callable[..., Any]) -> int:
    code = job.__code__
    return max(line for *_, line in code.co_lines() if line is not None)


def test_lost_waker_with_a_plain_span() -> None:
    """Nobody drives the task."""

    async def job() -> None:
        with span("job"):
            await _lost()

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        task = asyncio.create_task(job())
        await turns()
        assert look_twice(spans, fake) == [("lost_waker", "job")]
        await cancelled(task)

    with FakeClock() as fake, capture_spans() as spans:
        asyncio.run(main(spans, fake))


def test_a_new_future_is_a_new_wait() -> None:
    """Two short waits are not one long one."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        loop = asyncio.get_running_loop()
        hold: list[asyncio.Future[None]] = []

        async def job() -> None:
            for _ in range(2):
                future = loop.create_future()
                hold.append(future)
                with contextlib.suppress(asyncio.CancelledError):
                    await future
                del future

        task = asyncio.create_task(job())
        told = []
        for _ in range(2):
            await turns()
            hold.clear()
            told += look_twice(spans, fake, 3)
            task.cancel()
        await task
        assert told == []

    play(main)


async def _sleep() -> None:
    await asyncio.sleep(3600)


async def _lock() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    await lock.acquire()


async def _event() -> None:
    await asyncio.Event().wait()


async def _queue() -> None:
    await asyncio.Queue().get()


async def _condition() -> None:
    condition = asyncio.Condition()
    async with condition:
        await condition.wait()


async def _gather() -> None:
    await asyncio.gather(_sleep(), _event())


async def _wait() -> None:
    await asyncio.wait([asyncio.create_task(_sleep())])


async def _group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_sleep())


async def _shield() -> None:
    task = asyncio.create_task(_sleep())
    await asyncio.shield(task)


async def _timeout() -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3600):
            await _lost()


async def _wait_for() -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_lost(), 3600)


async def _stream() -> None:
    reader = asyncio.StreamReader()
    await reader.read(1)


async def _task() -> None:
    await asyncio.create_task(_sleep())


_WAITERS: deque[Any] = deque()


async def _registered() -> None:
    future = asyncio.get_running_loop().create_future()
    _WAITERS.append(future)
    await future


_WEAK: weakref.WeakSet[Any] = weakref.WeakSet()


async def _weakly() -> None:
    future = asyncio.get_running_loop().create_future()
    _WEAK.add(future)
    await future


async def _signal() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(3600, future.cancel)
    await future


@pytest.mark.parametrize(
    "job",
    [
        *(_sleep, _lock, _event, _queue, _condition, _gather, _wait, _group, _shield, _timeout, _wait_for, _stream),
        *(_task, _registered, _weakly, _signal),
    ],
)
def test_no_lost_waker(job: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Somebody else has the future, or may, or the wait ends by itself."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        task = asyncio.create_task(job())
        await turns(5)
        assert look_twice(spans, fake) == []
        await cancelled(task)
        await turns()

    assert found(play(main)) == []
    _WAITERS.clear()


def test_no_lost_waker_in_an_executor() -> None:
    """The thread has the future, until it is done with it."""
    import threading

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        release = threading.Event()
        task = asyncio.create_task(asyncio.to_thread(release.wait))
        await turns()
        told = look_twice(spans, fake)
        release.set()
        await task
        assert told == []

    assert found(play(main)) == []


def test_main_may_wait_for_ever() -> None:
    """As servers do: `await asyncio.Future()`, until the signal comes."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        assert task is not None

        def interrupt() -> None:
            assert look_twice(spans, fake) == []
            task.cancel()

        loop.call_soon(interrupt)
        await asyncio.Future()

    with pytest.raises(asyncio.CancelledError):
        play(main)


# -- altogether ------------------------------------------------------------------------------------------------------


def test_a_lint_can_be_turned_off() -> None:
    """None in the config means that it is never told."""
    off = Config(never_yielded=None, many_self_wakes=None, leaked_after=None, lost_waker_after=None, slow_poll=100)

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        on: list[asyncio.Future[None]] = []
        await hogs(spans, fake)
        await spinning(spans, fake)
        await asyncio.create_task(orphan(on))
        task = asyncio.create_task(_lost())
        await turns()
        assert look_twice(spans, fake) == []
        on[0].set_result(None)
        await cancelled(task)

    assert found(play(main, off)) == []


def test_a_program_that_is_right() -> None:
    """Nothing is found in one with cancellation, groups, shields, generators, queues and background tasks."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        background = set()
        queue: asyncio.Queue[int] = asyncio.Queue()

        async def worker() -> None:
            while True:
                await queue.get()
                await asyncio.sleep(0)
                queue.task_done()

        async def failing() -> None:
            await asyncio.sleep(0)
            raise ValueError

        workers = [asyncio.create_task(worker()) for _ in range(3)]
        background.add(asyncio.create_task(_sleep()))
        for number in range(200):
            queue.put_nowait(number)
        with contextlib.suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(failing())
                group.create_task(_sleep())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(queue.join())), 30)
        assert look_twice(spans, fake) == []
        await cancelled(*workers, *background)

    assert found(play(main)) == []


def test_nothing_grows_with_the_tasks_that_ever_lived() -> None:
    """What is remembered of findings is let go of with the tasks."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        async def job() -> None:
            fake.advance(0.2)
            await asyncio.sleep(0)
            spans.snapshot(tasks=False)

        async def lost() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await _lost()

        for _ in range(300):
            await asyncio.create_task(job())
            task = asyncio.create_task(lost())
            await turns()
            look_twice(spans, fake)
            task.cancel()
            await task

    spans = play(main, Config(never_yielded=None))
    kept = spans._lints
    assert spans.snapshot().lints["long_poll", spans.snapshot().findings[0].name] >= 300
    assert max(len(kept._told), len(kept._suspected), len(kept._standing)) <= 200


def test_a_reset_tells_nothing_twice() -> None:
    """What a live task was told of before is known afterwards."""

    async def main(spans: CapturedSpans, fake: FakeClock) -> None:
        async def job() -> None:
            for _ in range(4):
                fake.advance(0.2)
                await asyncio.sleep(0)

        task = asyncio.create_task(job())
        await turns(2)
        assert len(found(spans)) == 1
        spans.reset()
        assert found(spans) == []
        await task

    assert found(play(main, Config())) == []


def test_the_kinds_are_those_of_the_catalogue() -> None:
    """Under which they count."""
    own = {lints.LEAKED, lints.LONG_POLL, lints.LOST_WAKER, lints.NEVER_AWAITED, lints.NEVER_YIELDED, lints.SELF_WAKES}
    assert own == set(LINTS)
