"""Drivers: what they count, what they can be put around, and that nobody notices them."""

import asyncio
import bisect
import contextlib
import contextvars
import functools
import gc
import inspect
import logging
import sys
import traceback
import types
import warnings

import pytest

from asyncinspect_logging import current_span, install, instrument, run, span
from asyncinspect_logging.driver import Driver
from asyncinspect_logging.opened import open_of
from asyncinspect_logging.spans import current
from asyncinspect_logging.states import TaskState
from asyncinspect_logging.steps import stepping
from asyncinspect_logging.testing import FakeClock
from asyncinspect_logging.wakes import driven_by_hand

LOGGER = logging.getLogger("asyncinspect")
HERE = "test_drivers.py"
eager = pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=["asyncio", "uvloop"])
def go(request):
    """Runs a coroutine function on each kind of loop."""
    factory = pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else None

    def go(main, *, installed=False):
        async def with_install():
            with install():
                return await asyncio.create_task(main())

        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(with_install() if installed else main())

    return go


@pytest.fixture(autouse=True)
def _nothing_left():
    """No test leaves anything behind in the books of the drivers."""
    yield
    left = dict(open_of), dict(driven_by_hand), [steps for steps in stepping.values() if steps.started], current.get()
    open_of.clear()
    driven_by_hand.clear()
    stepping.clear()
    current.set(None)
    assert left == ({}, {}, [], None)


class Keep(logging.Handler):
    """Keeps lifecycle payloads."""

    accepts_spans = True

    def __init__(self):
        super().__init__()
        self.payloads = []

    def emit(self, record):
        payload = getattr(record, "asyncinspect", None)
        if payload is not None:
            self.payloads.append(payload)


@pytest.fixture
def traced():
    """The payloads of all spans, with each step."""
    handler = Keep()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(5)
    return handler.payloads


def view(inspector, name):
    (found,) = (task for task in inspector.snapshot().tasks if task.name == name)
    return found


def own_frames(error):
    return [f for f in traceback.extract_tb(error.__traceback__) if "asyncinspect_logging" in f.filename]


async def collected():
    """Let the loop and the garbage collector do what they have to do."""
    await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)


# -- what is counted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["instrument", "install"])
def test_times_of_steps(go, listen, clock, way):
    """Busy, idle and scheduled time, polls, wakes and the longest poll, to the nanosecond."""
    inspector = listen(clock=clock)

    async def work(future):
        clock.advance(0.1)
        await future
        clock.advance(0.2)

    async def main():
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(instrument(work(future)) if way == "instrument" else work(future))
        await asyncio.sleep(0)
        clock.advance(1)
        future.set_result(None)
        # The loop is busy with this here, while the task could run.
        clock.advance(0.05)
        await task

    go(main, installed=way == "install")
    found = view(inspector, "test_times_of_steps.<locals>.work")
    assert (found.polls, found.wakes, found.self_wakes) == (2, 1, 0)
    assert (found.busy, found.idle, found.scheduled) == pytest.approx((0.3, 1.05, 0.05))
    assert (found.max_poll, found.duration) == pytest.approx((0.2, 1.35))
    names = inspector.snapshot().names[found.name]
    assert names.poll_durations.total == 2
    assert names.poll_durations.sum == pytest.approx(0.3)
    assert names.scheduled_delays.sum == pytest.approx(0.05)
    for histogram, value, count in (
        (names.scheduled_delays, 0.05, 1),
        (names.poll_durations, 0.1, 1),
        (names.poll_durations, 0.2, 1),
        (names.poll_counts, 2, 1),
        (names.durations["completed"], 1.35, 1),
    ):
        assert histogram.counts[bisect.bisect_left(histogram.bounds, value)] == count


def test_bare_yields_are_self_wakes(go, listen, clock):
    """`sleep(0)` wakes itself."""
    inspector = listen(clock=clock)

    async def work():
        for _ in range(3):
            await asyncio.sleep(0)

    async def main():
        await asyncio.create_task(instrument(work(), name="work"))

    go(main)
    found = view(inspector, "work")
    assert (found.polls, found.wakes, found.self_wakes) == (4, 3, 3)


def test_self_wake_is_scheduled_until_the_loop_comes_round(listen, clock):
    """What another task does between a bare yield and the next step is scheduled time."""
    inspector = listen(clock=clock)

    async def work():
        await asyncio.sleep(0)

    async def main():
        task = asyncio.create_task(instrument(work(), name="work"))
        await asyncio.sleep(0)
        clock.advance(0.25)
        await task

    asyncio.run(main())
    assert view(inspector, "work").scheduled == pytest.approx(0.25)


def test_steps_without_waiting(go, listen):
    """A coroutine that never waits has one poll and no wakes."""
    inspector = listen()

    async def work():
        return 7

    async def main():
        assert await instrument(work(), name="work") == 7

    go(main)
    found = view(inspector, "work")
    assert (found.polls, found.wakes, found.idle) == (1, 0, 0.0)


def test_spans_inside_have_their_own_part(go, listen, clock):
    """A span inside a driven coroutine suspends and resumes with it, and has the steps of its own time."""
    inspector = listen(clock=clock)

    async def work(future):
        clock.advance(0.1)
        with span("inner"):
            clock.advance(0.2)
            await future
            clock.advance(0.4)
        clock.advance(0.8)
        await asyncio.sleep(0)

    async def main():
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(instrument(work(future), name="work"))
        await asyncio.sleep(0)
        clock.advance(1)
        future.set_result(None)
        clock.advance(0.05)
        await task

    go(main)
    inner, outer = view(inspector, "inner"), view(inspector, "work")
    assert (inner.polls, inner.wakes) == (2, 1)
    assert (inner.busy, inner.idle, inner.scheduled, inner.max_poll) == pytest.approx((0.6, 1.05, 0.05, 0.4))
    assert (outer.polls, outer.wakes, outer.self_wakes) == (3, 2, 1)
    assert (outer.busy, outer.scheduled, outer.max_poll) == pytest.approx((1.5, 0.05, 1.2))
    assert inner.parent_id == outer.id


def test_state_while_it_waits(go, listen):
    """A driven span is pending until its first step, running in a step, and blocked between steps."""
    inspector = listen()
    states = []

    async def work(future):
        with span("inner"):
            states.append(view(inspector, "inner").state)
            await future

    async def main():
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(work(future), name="x")
        states.append(view(inspector, "test_state_while_it_waits.<locals>.work").state)
        await asyncio.sleep(0)
        states.append(view(inspector, "test_state_while_it_waits.<locals>.work").state)
        states.append(view(inspector, "inner").state)
        future.set_result(None)
        await task

    go(main, installed=True)
    assert states == [TaskState.PENDING, TaskState.RUNNING, TaskState.BLOCKED, TaskState.BLOCKED]


def test_live_tallies_are_in_the_snapshot(listen, clock):
    """What a task did so far counts before it ends, and once."""
    inspector = listen(clock=clock)

    async def work(future):
        clock.advance(0.1)
        await future

    async def main():
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(instrument(work(future), name="work"))
        await asyncio.sleep(0)
        for _ in range(3):
            found = inspector.snapshot().names["work"]
            assert (found.polls, found.busy, found.live) == (1, pytest.approx(0.1), 1)
        future.set_result(None)
        await task

    asyncio.run(main())
    found = inspector.snapshot().names["work"]
    assert (found.polls, found.busy, found.live) == (2, pytest.approx(0.1), 0)


def test_many_tasks_are_all_counted(go, listen):
    """Nothing is lost or counted twice with many tasks at once."""
    inspector = listen()

    async def work(n):
        with span("inner"):
            await asyncio.sleep(0)
        if n % 3 == 1:
            raise ValueError
        if n % 3 == 2:
            await asyncio.get_running_loop().create_future()

    async def main():
        tasks = [asyncio.create_task(work(n)) for n in range(300)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    go(main, installed=True)
    found = inspector.snapshot().names["test_many_tasks_are_all_counted.<locals>.work"]
    assert (found.spawned, found.completed, found.failed, found.cancelled) == (300, 100, 100, 100)
    assert inspector.snapshot().names["inner"].completed == 300


# -- records of steps ------------------------------------------------------------------------------------------------


def test_trace_records_in_order(traced):
    """At level TRACE each step is told, with what is waited for and where."""

    async def waits(future):
        await future

    async def work(future):
        await waits(future)
        await asyncio.sleep(0)

    async def main():
        future = asyncio.get_running_loop().create_future()
        with install():
            task = asyncio.create_task(work(future))
            await asyncio.sleep(0)
            future.set_result(None)
            await task

    asyncio.run(main())
    assert len({payload["id"] for payload in traced}) == 1
    assert [payload["kind"] for payload in traced] == [
        "spawn", "enter", "suspend", "wake", "resume", "suspend", "wake", "resume", "exit",
    ]  # fmt: skip
    suspends = [payload for payload in traced if payload["kind"] == "suspend"]
    assert [payload["on"] for payload in suspends] == ["future", "sleep"]
    line = waits.__code__.co_firstlineno + 1
    assert suspends[0]["at"].endswith(f"{HERE}:{line}")
    spawn = traced[0]
    assert spawn["task"] == "test_trace_records_in_order.<locals>.work"
    assert HERE in spawn["at"]  # not asyncio's own create_task
    assert [payload["seq"] for payload in traced] == sorted(payload["seq"] for payload in traced)
    assert [payload["t"] for payload in traced] == sorted(payload["t"] for payload in traced)
    exit_ = traced[-1]
    assert (exit_["polls"], exit_["wakes"], exit_["self_wakes"], exit_["outcome"]) == (3, 2, 1, "completed")


def test_trace_names_the_task_that_is_waited_for(traced):
    """A task is named by its coroutine, never "Task-17"."""

    async def child():
        await asyncio.sleep(0)

    async def work():
        await asyncio.create_task(child())

    asyncio.run(instrument(work(), name="work"))
    (suspend,) = (payload for payload in traced if payload["kind"] == "suspend")
    assert suspend["on"] == "task:test_trace_names_the_task_that_is_waited_for.<locals>.child"


def test_inner_spans_are_told_of_each_step_too(traced):
    """A step is told for each span open in it."""

    async def work():
        with span("inner"):
            await asyncio.sleep(0)

    asyncio.run(instrument(work(), name="work"))
    names = {payload["id"]: payload["name"] for payload in traced if "name" in payload}
    assert [(payload["kind"], names[payload["id"]]) for payload in traced if payload["kind"] != "spawn"] == [
        ("enter", "work"), ("enter", "inner"),
        ("suspend", "inner"), ("suspend", "work"), ("wake", "inner"), ("wake", "work"),
        ("resume", "inner"), ("resume", "work"),
        ("exit", "inner"), ("exit", "work"),
    ]  # fmt: skip


# -- what can be instrumented ----------------------------------------------------------------------------------------


class Odd:
    """Awaitable in its own way."""

    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return "odd"


class Once:
    """Has an iterator for `__await__` that is no generator."""

    def __await__(self):
        return iter([None])


@types.coroutine
def old():
    yield
    return "old"


async def plain():
    await asyncio.sleep(0)
    return "plain"


async def items():
    yield "item"


def of_future():
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, "future")
    return future


@pytest.mark.parametrize(
    ("make", "name", "result"),
    [
        (plain, "plain", "plain"),
        (lambda: asyncio.create_task(plain()), "plain", "plain"),
        (of_future, "Future", "future"),
        (Odd, "Odd", "odd"),
        (Once, "Once", None),
        (old, "old", "old"),
        (lambda: items().__anext__(), "async_generator_asend", "item"),
        (lambda: asyncio.gather(plain(), plain()), "_GatheringFuture", ["plain", "plain"]),
        (lambda: asyncio.wait_for(plain(), 1), "wait_for", "plain"),
    ],
    ids=["coroutine", "task", "future", "object", "iterator", "generator", "asyncgen", "gather", "wait_for"],
)
@pytest.mark.parametrize("way", ["await", "task"])
def test_any_awaitable(listen, make, name, result, way):
    """Its result comes through, and its span is named by what it is."""
    inspector = listen()

    async def main():
        driven = instrument(make())
        return await (driven if way == "await" else asyncio.create_task(driven))

    assert asyncio.run(main()) == result
    assert inspector.snapshot().names[name].completed == 1


@pytest.mark.parametrize("target", [7, "text", len, items, [plain]], ids=["int", "str", "len", "asyncgen", "list"])
def test_what_cannot_be_awaited(target):
    """It raises at once, and says what to write."""
    with pytest.raises(TypeError, match=r"instrument\(\) takes a coroutine function or an awaitable"):
        instrument(target)
    with pytest.raises(TypeError, match=r"@instrument is for coroutine functions; .* write @span\('name'\)"):
        instrument(name="x")(target)


def test_arguments_become_fields(listen):
    """All of a call's arguments, defaults included, but for those skipped; and `fields` on top."""
    inspector = listen()

    @instrument(name="work", skip={"secretive"}, fields={"service": "shop"})
    async def work(a, /, b, *rest, secretive, c=3, **more):
        pass

    asyncio.run(work(1, 2, 4, 5, secretive=6, password="x", z=7))
    fields = dict(view(inspector, "work").fields)
    assert fields == {"a": 1, "b": 2, "rest": [4, 5], "c": 3, "password": "[redacted]", "z": 7, "service": "shop"}


def test_skip_by_one_name(listen):
    """A name by itself is not the letters that it is made of."""
    inspector = listen()

    @instrument(name="work", skip="body")
    async def work(body, more):
        pass

    asyncio.run(work(1, 2))
    assert dict(view(inspector, "work").fields) == {"more": 2}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"skip": {"boddy"}}, r"skip='boddy': .*work has no parameter of that name; it has body, more"),
        ({"skip": 3}, r"skip=3 are no names of parameters; write @instrument\(skip={'body'}\)"),
        ({"skip": [3]}, r"skip=\[3\] are no names of parameters; write"),
        ({"name": 3}, r"name=3 is no text; write @instrument\(name='checkout'\)"),
        ({"fields": {"a"}}, r"fields={'a'} is no mapping; write @instrument\(fields={'service': 'shop'}\)"),
    ],
)
def test_options_that_cannot_be_used(options, said):
    """They are told of where the function is decorated, and not by what becomes of its calls."""

    async def work(body, more):
        pass

    with pytest.raises(TypeError, match=said):
        instrument(**options)(work)


def test_what_may_come_by_any_name_may_be_skipped(listen):
    inspector = listen()

    @instrument(name="work", skip=iter(["body"]))
    async def work(**more):
        pass

    asyncio.run(work(body=1, more=2))
    assert dict(view(inspector, "work").fields) == {"more": 2}


def test_instrumented_methods(listen):
    """Methods of all kinds can be instrumented, and neither `self` nor `cls` is a field."""
    inspector = listen()

    class Shop:
        @instrument
        async def method(self, x):
            return self

        @classmethod
        @instrument
        async def make(cls, x):
            return cls()

        @staticmethod
        @instrument
        async def static(x):
            return x

        @instrument
        @classmethod
        async def make_too(cls, x):
            return cls()

        @instrument(name="static_too")
        @staticmethod
        async def static_too(x):
            return x

    async def main():
        shop = await Shop.make(1)
        assert await shop.method(1) is shop
        assert await Shop.static(1) == await Shop.static_too(1) == 1
        assert isinstance(await Shop.make_too(1), Shop)

    asyncio.run(main())
    tasks = inspector.snapshot().tasks
    assert [dict(task.fields) for task in tasks] == [{"x": 1}] * 5
    assert tasks[0].name == "test_instrumented_methods.<locals>.Shop.make"


def test_instrumented_partial_and_callable(listen):
    """What has no qualified name of its own is named by what it stands for."""
    inspector = listen()

    class Call:
        async def __call__(self, x):
            return x

    async def main():
        assert await instrument(functools.partial(plain_of, 1))() == 1
        assert await instrument(Call().__call__)(2) == 2

    asyncio.run(main())
    assert set(inspector.snapshot().names) == {
        "plain_of",
        "test_instrumented_partial_and_callable.<locals>.Call.__call__",
    }


async def plain_of(x):
    return x


def test_wrong_call_raises_as_usual(listen):
    """A call that does not fit is the function's own TypeError, and no span."""
    inspector = listen()

    @instrument
    async def work(a):
        pass

    with pytest.raises(TypeError, match=r"work\(\) missing 1 required positional argument: 'a'"):
        asyncio.run(work())
    assert inspector.snapshot().names == {}


def test_instrumented_function_is_still_one():
    """Tools see a coroutine function with its own name and signature."""

    @instrument
    async def work(a, b=1):
        """Works."""

    assert inspect.iscoroutinefunction(work)
    assert str(inspect.signature(work)) == "(a, b=1)"
    assert (work.__name__, work.__doc__, work.__module__) == ("work", "Works.", __name__)


def test_instrument_twice_is_one_span(listen):
    """A driver is not driven again, and a driver inside a driven step leaves the books to that."""
    inspector = listen()

    async def main():
        driven = instrument(plain(), name="once")
        assert instrument(driven) is driven
        await driven

    asyncio.run(main())
    assert inspector.snapshot().names["once"].spawned == 1


def test_nested_instrumented_functions(go, listen, clock):
    """A driven coroutine that awaits another has a span for each, with the steps of each in both."""
    inspector = listen(clock=clock)

    @instrument(name="inner")
    async def inner(x):
        clock.advance(0.1)
        await asyncio.sleep(0)
        clock.advance(0.1)
        return x

    @instrument(name="outer")
    async def outer():
        clock.advance(1)
        return await inner(5)

    async def main():
        assert await outer() == 5

    go(main)
    found, around = view(inspector, "inner"), view(inspector, "outer")
    assert (found.polls, found.busy, found.parent_id) == (2, pytest.approx(0.2), around.id)
    assert dict(found.fields) == {"x": 5}
    assert (around.polls, around.busy) == (2, pytest.approx(1.2))
    assert around.task == "test_nested_instrumented_functions.<locals>.outer"


def test_unheard_driver_hands_through(go):
    """Without anybody listening a driver is as good as not there."""

    async def fails():
        await asyncio.sleep(0)
        raise ValueError("x")

    async def main():
        assert await instrument(plain()) == "plain"
        with pytest.raises(ValueError, match="x") as caught:
            await instrument(fails())
        assert own_frames(caught.value) == []
        task = asyncio.create_task(instrument(asyncio.sleep(60)))
        await asyncio.sleep(0)
        task.cancel("why")
        with pytest.raises(asyncio.CancelledError, match="why"):
            await task

    go(main)
    go(main, installed=True)


def test_own_logger_of_instrument(listen):
    """`logger=` decides who hears of it."""
    inspector = listen()
    handler = Keep()
    logger = logging.getLogger("shop")
    logger.addHandler(handler)
    try:
        asyncio.run(instrument(plain(), name="elsewhere", logger=logger))
    finally:
        logger.removeHandler(handler)
    assert inspector.snapshot().names == {}
    assert [payload["kind"] for payload in handler.payloads] == ["enter", "exit"]


# -- nobody notices --------------------------------------------------------------------------------------------------


def test_exceptions_are_unchanged(go, listen):
    """The same object, the same traceback, no context or cause of ours."""
    inspector = listen()
    error = ValueError("x")

    async def fails():
        await asyncio.sleep(0)
        raise error

    @instrument(name="function")
    async def function():
        await fails()

    async def main():
        for make in (lambda: instrument(fails(), name="object"), function, lambda: asyncio.create_task(fails())):
            error.__traceback__ = None
            with pytest.raises(ValueError, match="x") as caught:
                await make()
            assert caught.value is error
            assert own_frames(error) == []
            assert error.__context__ is None
            assert error.__cause__ is None
            frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
            assert frames[0] == "main"
            assert frames[-1] == "fails"

    go(main, installed=True)
    assert inspector.snapshot().names["object"].failed == 1


def test_exception_frames_are_not_kept(listen):
    """Nothing of a finished task's exception lives on in a cycle."""
    listen()

    class Big:
        pass

    alive = []

    async def fails():
        big = Big()
        alive.append(__import__("weakref").ref(big))
        await asyncio.sleep(0)
        raise ValueError

    async def main():
        with contextlib.suppress(ValueError):
            await asyncio.create_task(fails())

    gc.disable()
    try:
        run(main())
        assert alive[0]() is None
    finally:
        gc.enable()


def test_exception_handled_inside_stays_inside(listen):
    """`throw` and `except` inside a driven coroutine see what they would see."""
    listen()

    async def work(future):
        try:
            await future
        except KeyError as error:
            assert own_frames(error) == []
            return "handled"

    async def main():
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(instrument(work(future)))
        await asyncio.sleep(0)
        future.set_exception(KeyError("x"))
        return await task

    assert asyncio.run(main()) == "handled"


def test_cancellation_is_unchanged(go, listen):
    """Message, `cancelling()` and `uncancel()` are those of the task."""
    inspector = listen()

    async def stubborn():
        task = asyncio.current_task()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            assert error.args == ("why",)
            assert task.cancelling() == 1
            assert task.uncancel() == 0
        await asyncio.sleep(0)
        return "survived"

    async def main():
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        task.cancel("why")
        assert await task == "survived"
        task = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel("because")
        with pytest.raises(asyncio.CancelledError, match="because"):
            await task
        assert task.cancelled()

    go(main, installed=True)
    assert inspector.snapshot().names["sleep"].cancelled == 1


def test_task_looks_as_before(go, listen):
    """Names, coroutines, `repr`, `all_tasks` and `current_task` are as without a driver."""
    listen()

    async def work():
        assert asyncio.current_task() is task
        await asyncio.sleep(60)

    async def main():
        nonlocal task
        task = asyncio.create_task(work(), name="mine")
        await asyncio.sleep(0)
        coro = task.get_coro()
        assert task.get_name() == "mine"
        assert coro.__qualname__ == "test_task_looks_as_before.<locals>.work"
        assert coro.__name__ == "work"
        assert coro.cr_code is work.__code__
        assert coro.cr_frame.f_code is work.__code__
        assert not coro.cr_running
        assert asyncio.iscoroutine(coro)
        assert inspect.iscoroutine(coro)
        assert inspect.getcoroutinestate(coro) == inspect.CORO_SUSPENDED
        assert "work() running at" in repr(task) or "work()" in repr(task)
        assert "asyncinspect" not in repr(task)
        assert repr(coro).startswith("<coroutine object test_task_looks_as_before")
        assert task in asyncio.all_tasks()
        (frame,) = task.get_stack()
        assert frame.f_code is work.__code__
        other = asyncio.create_task(asyncio.sleep(0))
        assert other.get_name().startswith("Task-")
        await other
        task.cancel()
        await asyncio.wait([task])

    task = None
    go(main, installed=True)


def test_asyncio_s_own_tools(go, listen):
    """TaskGroup, timeout, wait_for, shield, gather and to_thread give what they give without drivers."""
    inspector = listen()

    async def value(x, delay=0):
        await asyncio.sleep(delay)
        return x

    async def main():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(value(x)) for x in range(3)]
        assert [task.result() for task in tasks] == [0, 1, 2]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await value(1, 60)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(value(1, 60), 0.001)
        assert await asyncio.shield(value(2)) == 2
        assert await asyncio.gather(value(3), value(4)) == [3, 4]
        assert await asyncio.to_thread(lambda: 5) == 5
        done = [await each for each in asyncio.as_completed([value(6), value(7)])]
        assert sorted(done) == [6, 7]
        assert asyncio.current_task().cancelling() == 0

    go(main, installed=True)
    assert inspector.snapshot().names["test_asyncio_s_own_tools.<locals>.main"].completed == 1


def test_debug_mode(listen):
    """asyncio's debug mode says of a driven task what it says of any other."""
    inspector = listen()

    async def main():
        task = asyncio.create_task(plain())
        assert [frame.name for frame in task._source_traceback][-2:] == ["main", "create_task"]
        assert await task == "plain"

    run(main(), debug=True)
    assert inspector.snapshot().names["plain"].completed == 1


# -- install and run -------------------------------------------------------------------------------------------------


def test_install_and_undo(go, listen):
    """Tasks made from install to undo are driven; then the loop is as it was."""
    inspector = listen()

    async def main():
        loop = asyncio.get_running_loop()
        before = dict(vars(loop))
        await asyncio.create_task(plain())
        undo = install()
        task = asyncio.create_task(plain())
        undo()
        undo()
        await asyncio.create_task(plain())
        await task
        after = vars(loop)
        assert "create_task" not in after
        assert "call_soon" not in after
        assert before.keys() == after.keys()

    go(main)
    assert inspector.snapshot().names["plain"].completed == 1


def test_nested_install_is_one(listen):
    """A second install does nothing, nor does its undo."""
    inspector = listen()

    async def main():
        with install():
            with install():
                await asyncio.create_task(plain())
            await asyncio.create_task(plain())
        await asyncio.create_task(plain())

    asyncio.run(main())
    assert inspector.snapshot().names["plain"].completed == 2


def test_install_needs_a_loop():
    """Outside a loop it says what to do."""
    with pytest.raises(RuntimeError, match=r"install\(\) needs a running event loop; .* or write install\(loop\)"):
        install()


def test_install_on_a_loop_that_does_not_run_yet(listen):
    """A loop can be given."""
    inspector = listen()
    loop = asyncio.new_event_loop()
    with install(loop):
        assert loop.run_until_complete(plain()) == "plain"
    loop.close()
    assert inspector.snapshot().names["plain"].completed == 1


def test_install_and_instrument_give_one_span(go, listen):
    """A task made of an instrumented call, or of a driver, has one span, under its own name and with its fields."""
    inspector = listen()

    @instrument(name="function")
    async def function(x):
        await asyncio.sleep(0)

    async def main():
        await asyncio.create_task(function(1))
        await asyncio.create_task(instrument(plain(), name="object", fields={"y": 2}))

    go(main, installed=True)
    counts = {name: v.completed for name, v in inspector.snapshot().names.items()}
    main_name = "test_install_and_instrument_give_one_span.<locals>.main"
    assert counts == {main_name: 1, "function": 1, "object": 1}
    assert dict(view(inspector, "function").fields) == {"x": 1}
    assert dict(view(inspector, "object").fields) == {"y": 2}
    assert view(inspector, "function").polls == view(inspector, "object").polls == 2
    assert view(inspector, "function").parent_id == view(inspector, main_name).id


@pytest.mark.parametrize("first", ["factory", "install"])
def test_task_factory_goes_on_making_the_tasks(go, listen, first):
    """A factory of the application's is called, whether it was there before or is set later."""
    inspector = listen()
    made = []

    def factory(loop, coro, **kwargs):
        made.append((coro.__qualname__, asyncio.iscoroutine(coro), sorted(kwargs)))
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def main():
        loop = asyncio.get_running_loop()
        if first == "factory":
            loop.set_task_factory(factory)
        with install():
            if first == "install":
                loop.set_task_factory(factory)
            assert loop.get_task_factory() is factory
            assert await asyncio.create_task(plain(), name="n", context=contextvars.copy_context()) == "plain"
        loop.set_task_factory(None)

    go(main)
    assert made[0][:2] == ("plain", True)
    assert "context" in made[0][2]
    assert inspector.snapshot().names["plain"].completed == 1


def test_create_task_of_what_is_no_coroutine(go, listen):
    """asyncio says so, in its own words."""
    listen()

    async def main():
        with pytest.raises(TypeError, match="a coroutine was expected, got 7"):
            asyncio.create_task(7)

    go(main, installed=True)


def test_undo_after_somebody_else_has_wrapped(listen):
    """A wrapper that was put over ours keeps working, and what is below it hands on."""
    inspector = listen()

    async def main():
        loop = asyncio.get_running_loop()
        undo = install()
        ours = loop.create_task
        loop.create_task = lambda *args, **kwargs: ours(*args, **kwargs)
        undo()
        assert await asyncio.create_task(plain()) == "plain"

    asyncio.run(main())
    assert inspector.snapshot().names == {}


def test_run(listen):
    """The main coroutine and each task have a span; results and exceptions come through."""
    inspector = listen()

    async def main():
        return await asyncio.create_task(plain())

    assert run(main()) == "plain"
    counts = {name: v.completed for name, v in inspector.snapshot().names.items() if not name.startswith("BaseEvent")}
    assert counts == {"test_run.<locals>.main": 1, "plain": 1}

    async def fails():
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run(fails())
    assert inspector.snapshot().names["test_run.<locals>.fails"].failed == 1


def test_run_inside_a_loop():
    """It says what to write there."""

    async def main():
        coro = plain()
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop; write `await main"):
            run(coro)
        coro.close()

    asyncio.run(main())


def test_run_with_another_loop(listen):
    """A loop factory is used."""
    uvloop = pytest.importorskip("uvloop")
    inspector = listen()

    async def main():
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop)

    run(main(), loop_factory=uvloop.new_event_loop)
    assert inspector.snapshot().names["test_run_with_another_loop.<locals>.main"].completed == 1


# -- ends that are no ends -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["install", "instrument", "function"])
def test_cancelled_before_the_first_step(go, listen, way):
    """The span is cancelled, and no "was never awaited" warning stays behind."""
    inspector = listen()

    async def work():
        raise AssertionError("never run")

    function = instrument(work, name="work") if way == "function" else None

    async def main():
        if way == "install":
            with install():
                task = asyncio.create_task(work())
        else:
            task = asyncio.create_task(function() if function else instrument(work()))
        task.cancel("early")
        with pytest.raises(asyncio.CancelledError, match="early"):
            await task
        del task
        await collected()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        go(main)
    assert [str(w.message) for w in caught if "never awaited" in str(w.message)] == []
    if way == "install":
        found = inspector.snapshot().names["test_cancelled_before_the_first_step.<locals>.work"]
        assert (found.spawned, found.cancelled) == (1, 1)
    assert all(v.live == 0 for v in inspector.snapshot().names.values())


def test_never_awaited_is_still_told(listen):
    """A driven coroutine that nobody awaits warns like any other, by its own name."""
    inspector = listen()
    with pytest.warns(RuntimeWarning, match="coroutine 'plain' was never awaited"):
        instrument(plain())
        gc.collect()
    assert inspector.snapshot().names == {}


def test_task_dropped_while_pending(listen):
    """A task that is collected before it ended is abandoned, with the spans inside, in whatever task that happens."""
    inspector = listen()

    async def forgotten():
        with span("inner"):
            await asyncio.get_running_loop().create_future()

    async def main():
        with install():
            task = asyncio.create_task(forgotten())
        await asyncio.sleep(0)
        # Or asyncio would log that it was destroyed.
        task._log_destroy_pending = False
        del task
        with span("unrelated") as unrelated:
            gc.collect()
            assert current_span() is unrelated
        assert current_span() is None

    asyncio.run(main())
    assert view(inspector, "inner").outcome == "abandoned"
    assert view(inspector, "test_task_dropped_while_pending.<locals>.forgotten").outcome == "abandoned"
    assert view(inspector, "unrelated").outcome == "completed"


def test_task_dropped_before_its_first_step(listen):
    """A spawned task that never ran is abandoned too."""
    inspector = listen()
    loop = asyncio.new_event_loop()
    with install(loop), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        task = loop.create_task(plain())
        assert view(inspector, "plain").state is TaskState.PENDING
        task._log_destroy_pending = False
        loop.close()
        del task, loop
        gc.collect()
    assert view(inspector, "plain").outcome == "abandoned"


def test_closed_driver(listen):
    """`close()` runs the coroutine's `finally`, and the span is abandoned."""
    inspector = listen()
    done = []

    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            done.append(True)

    async def main():
        driven = instrument(work(), name="work")
        driven.send(None)
        driven.close()
        driven.close()

    asyncio.run(main())
    assert done == [True]
    assert view(inspector, "work").outcome == "abandoned"


def test_throw_before_the_first_step(listen):
    """What is thrown in comes out, and the span failed."""
    inspector = listen()
    driven = instrument(plain(), name="work")
    with pytest.raises(KeyError) as caught:
        driven.throw(KeyError("x"))
    assert own_frames(caught.value) == []
    assert view(inspector, "work").outcome == "failed"


def test_context_shared_by_two_tasks(go, listen):
    """Two tasks in one context have their own spans, and leave no context variable behind."""
    inspector = listen()
    context = contextvars.Context()
    seen = []

    async def work(name):
        with span(name):
            await asyncio.sleep(0)
            seen.append(name)
        await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*(asyncio.create_task(work(name), context=context) for name in ("one", "two")))

    go(main, installed=True)
    assert sorted(seen) == ["one", "two"]
    assert context.get(current) is None or not context[current].is_open
    names = inspector.snapshot().names
    assert (names["one"].completed, names["two"].completed) == (1, 1)
    assert view(inspector, "one").polls == view(inspector, "two").polls == 2
    assert all(view_.live == 0 for view_ in names.values())


def test_no_context_variable_stays_behind(listen):
    """After `await instrument(…)` and after a task with its own context, the context is as before."""
    listen()
    context = contextvars.Context()

    async def main():
        await instrument(plain())
        assert current not in contextvars.copy_context() or current.get() is None
        with install():
            await asyncio.create_task(plain(), context=context)
        assert context.get(current) is None

    asyncio.run(main())


def test_tasks_and_coroutines_are_not_kept_alive(listen):
    """A finished task's coroutine and result go when the application lets go of them."""
    import weakref

    inspector = listen()

    class Result:
        pass

    async def work():
        return Result()

    async def main():
        task = asyncio.create_task(work())
        result = weakref.ref(await task)
        coro = weakref.ref(task.get_coro())
        alive = weakref.ref(task)
        del task
        await asyncio.sleep(0)
        assert (result(), coro(), alive()) == (None, None, None)

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()
    assert inspector.snapshot().names["test_tasks_and_coroutines_are_not_kept_alive.<locals>.work"].completed == 1


# -- eager tasks -----------------------------------------------------------------------------------------------------


@eager
def test_eager_task(listen, clock):
    """The first step of an eager task runs inside its parent's, which then goes on."""
    inspector = listen(clock=clock)

    async def child(future):
        clock.advance(0.1)
        with span("in child"):
            await future
        clock.advance(0.2)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        future = loop.create_future()
        task = asyncio.create_task(child(future))
        with span("in main") as inside:
            clock.advance(1)
            assert inside.task_name == "test_eager_task.<locals>.main"
            await asyncio.sleep(0)
        future.set_result(None)
        await task

    run(main())
    found = view(inspector, "test_eager_task.<locals>.child")
    assert (found.polls, found.busy) == (2, pytest.approx(0.3))
    assert view(inspector, "in child").parent_id == found.id
    inside = view(inspector, "in main")
    assert inside.parent_id == view(inspector, "test_eager_task.<locals>.main").id
    assert (inside.polls, inside.busy) == (2, pytest.approx(1))


@eager
def test_eager_task_that_ends_in_its_first_step(listen):
    """It never becomes a task of the loop, and its parent goes on as before."""
    inspector = listen()

    async def child():
        return 7

    async def fails():
        raise ValueError

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        assert await asyncio.create_task(child()) == 7
        with contextlib.suppress(ValueError):
            await asyncio.create_task(fails())
        with span("after"):
            await asyncio.sleep(0)

    run(main())
    assert view(inspector, "test_eager_task_that_ends_in_its_first_step.<locals>.child").polls == 1
    assert view(inspector, "test_eager_task_that_ends_in_its_first_step.<locals>.fails").outcome == "failed"
    assert view(inspector, "after").polls == 2


@eager
@pytest.mark.parametrize(
    ("way", "child_is"), [("install", "instrumented"), ("install", "plain span"), ("instrument", "instrumented")]
)
def test_eager_child_has_its_own_steps(listen, clock, way, child_is):
    """A span in an eager task is that task's own, however the parent is driven."""
    inspector = listen(clock=clock)

    async def body(future):
        await future

    @instrument(name="child")
    async def instrumented(future):
        await body(future)

    async def plain_span(future):
        with span("child"):
            await body(future)

    async def parent():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        future = loop.create_future()
        task = asyncio.create_task((instrumented if child_is == "instrumented" else plain_span)(future))
        for _ in range(5):
            await asyncio.sleep(0)
            clock.advance(1)
        future.set_result(None)
        await task

    if way == "install":
        run(parent())
    else:
        asyncio.run(instrument(parent(), name="parent"))
    found = view(inspector, "child")
    assert found.polls <= 2
    assert found.busy < 1


@eager
@pytest.mark.parametrize(
    ("way", "first"),
    [("instrument", True), ("instrument", False), ("install after", True), ("install before", False)],
)
def test_span_in_an_eager_task_is_not_the_makers(listen, clock, way, first):
    """A plain span in an eager task that nobody drives is that task's own, also where its first step is one of the
    driven coroutine that makes it; and what that one's steps add up to is what it had.
    """
    inspector = listen(clock=clock)
    found = {}

    async def child(future):
        with span("child") as inner:
            found["task"] = inner._key == id(asyncio.current_task())
            clock.advance(1)
            await future
            clock.advance(2)

    async def parent():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with span("inside") as inside:
            task = loop.create_task(child(future), name="a name")
            assert task.get_name() == "a name"
            assert current_span() is inside
            with span("later"):
                clock.advance(4)
            await asyncio.sleep(0)
            future.set_result(None)
            await task

    async def main():
        loop = asyncio.get_running_loop()
        if first:
            loop.set_task_factory(asyncio.eager_task_factory)
        undo = install() if way == "install before" else bool
        driven = loop.create_task(instrument(parent(), name="parent"))
        loop.set_task_factory(asyncio.eager_task_factory)
        undo()
        if way == "install after":
            await asyncio.sleep(0)
            install()()
        await driven
        await asyncio.sleep(0)
        assert ("create_task" in vars(loop)) == (way == "instrument")

    asyncio.run(main())
    assert found["task"]
    snapshot = inspector.snapshot()
    (child_view,) = (task for task in snapshot.tasks if task.name == "child")
    (inside_view,) = (task for task in snapshot.tasks if task.name == "inside")
    (later_view,) = (task for task in snapshot.tasks if task.name == "later")
    assert child_view.parent_id == later_view.parent_id == inside_view.id
    assert (child_view.polls, child_view.busy) == (2, 3.0)
    assert later_view.busy == pytest.approx(4)


def test_driver_is_small():
    """A driver is one object with slots: no dict."""
    driven = instrument(plain())
    assert isinstance(driven, Driver)
    assert not hasattr(driven.span, "__dict__")
    driven.close()


@pytest.mark.parametrize("how", ["install", "instrument", "plain"])
def test_spans_that_nobody_leaves_end_with_their_coroutine(how, listen):
    """Entered by hand, as a hook does whose counterpart is not called: abandoned, and not open for ever."""
    inspector = listen()

    async def work():
        span("outer").__enter__()
        span("left open").__enter__()

    async def main():
        with install() if how == "install" else contextlib.nullcontext():
            for _ in range(3):
                await (instrument(work(), name="work") if how == "instrument" else asyncio.create_task(work()))

    asyncio.run(main())
    counts = inspector.snapshot().names
    assert [(counts[name].spawned, counts[name].cancelled) for name in ("outer", "left open")] == [(3, 3)] * 2
    assert {task.outcome for task in inspector.snapshot().tasks if task.name == "outer"} == {"abandoned"}
    assert open_of == {}


@pytest.mark.parametrize("how", ["install", "instrument"])
def test_a_generator_that_is_closed_after_the_coroutine_that_began_it(how, listen):
    """Its span has ended with the coroutine; that it is exited then is not counted as a mistake."""
    inspector = listen()
    begun = []

    async def numbers():
        with span("numbers"):
            yield 1

    async def work():
        begun.append(numbers())
        await anext(begun[-1])

    async def main():
        with install() if how == "install" else contextlib.nullcontext():
            await (instrument(work(), name="work") if how == "instrument" else asyncio.create_task(work()))
            await begun[-1].aclose()

    asyncio.run(main())
    snapshot = inspector.snapshot()
    assert [task.outcome for task in snapshot.tasks if task.name == "numbers"] == ["abandoned"]
    assert snapshot.dropped["duplicate"] == 0
    assert open_of == {}
