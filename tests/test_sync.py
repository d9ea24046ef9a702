"""Primitives that report: they do what asyncio's do, leave nothing behind, and say who waits and who holds."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import inspect
import logging
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
import pytest

from asyncinspect_logging import Config, Inspector, install, run, span
from asyncinspect_logging.detect import methods, owners, primitives, sync

CLASSES = ["Lock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "Barrier", "Queue"]
PATCHED = [getattr(asyncio, name) for name in CLASSES]


@pytest.fixture(autouse=True)
def _no_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tests look."""
    monkeypatch.setattr("asyncinspect_logging.inspector.watch", lambda inspector: None)


@pytest.fixture
def inspector(listen: Callable[..., Inspector]) -> Inspector:
    return listen(Config.debug())


@pytest.fixture
def installed() -> Iterator[None]:
    undo = sync.install_sync()
    yield
    undo()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def looked_at(inspector: Inspector) -> tuple[str, ...]:
    """The messages of the deadlocks, after two looks."""
    inspector.look()
    inspector.look()
    return tuple(found.message for found in inspector.snapshot(tasks=False).findings if found.kind == "deadlock")


async def over(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# -- the same as asyncio's -------------------------------------------------------------------------------------------

SUITE = """
import asyncio, logging, sys, unittest
from asyncinspect_logging import AsyncInspectHandler, Config, Inspector
from asyncinspect_logging.detect import owners, sync
logging.getLogger("asyncinspect").addHandler(AsyncInspectHandler(Inspector(Config.debug())))
if sys.argv[1] == "install":
    sync.install_sync()
else:
    for name in sync.__all__:
        if name[0].isupper():
            setattr(asyncio, name, getattr(sync, name))
from test.test_asyncio import test_locks, test_queues
load = unittest.defaultTestLoader.loadTestsFromModule
found = unittest.TextTestRunner().run(unittest.TestSuite([load(test_locks), load(test_queues)]))
sys.exit(not (found.wasSuccessful() and found.testsRun > 100))
"""


@pytest.mark.skipif(not importlib.util.find_spec("test.test_asyncio"), reason="Python came without its own tests")
@pytest.mark.parametrize("how", ["install", "drop-in"])
def test_they_pass_the_tests_of_asyncio(how: str) -> None:
    """All of CPython's own tests of locks and queues, which cover fairness, cancellation, errors and `repr`."""
    done = subprocess.run([sys.executable, "-c", SUITE, how], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", CLASSES)
def test_methods_look_like_asyncio_s(name: str, installed: None) -> None:
    """Names, signatures, documentation, and whether they are coroutine functions."""
    ours, original = getattr(sync, name), getattr(asyncio, name)
    for method in ("acquire", "release", "wait", "notify", "set", "get", "put", "join", "get_nowait", "put_nowait"):
        if method in vars(ours):
            found, plain = getattr(ours, method), inspect.unwrap(getattr(original, method))
            assert inspect.signature(found) == inspect.signature(plain)
            assert found.__qualname__ == plain.__qualname__
            assert found.__doc__ == plain.__doc__
            assert inspect.iscoroutinefunction(found) == inspect.iscoroutinefunction(plain)
            assert inspect.iscoroutinefunction(getattr(original, method)) == inspect.iscoroutinefunction(plain)


def test_undo_takes_it_back_exactly() -> None:
    """Also with several installs, of which the last one counts, in whatever order they are undone."""
    before = [dict(vars(cls)) for cls in PATCHED]
    first, second = sync.install_sync(), sync.install_sync()
    assert [dict(vars(cls)) for cls in PATCHED] != before
    first()
    first()
    assert "__wrapped__" in vars(asyncio.Lock.acquire)
    second()
    assert [dict(vars(cls)) for cls in PATCHED] == before


def test_undo_leaves_what_somebody_has_put_over_it() -> None:
    """Theirs stays, and what it calls does no more than hand on."""
    original = asyncio.Lock.acquire
    undo = sync.install_sync()
    ours = asyncio.Lock.acquire

    async def theirs(self: Any) -> Any:
        return await ours(self)

    async def main() -> None:
        async with (lock := asyncio.Lock()):
            assert sync.holders_of(lock) == []

    asyncio.Lock.acquire = theirs  # type: ignore[method-assign]
    try:
        undo()
        assert asyncio.Lock.acquire is theirs
        asyncio.run(main())
    finally:
        asyncio.Lock.acquire = original  # type: ignore[method-assign]


def test_run_and_install_take_sync(inspector: Inspector) -> None:
    """`install` until its undo, `run` while it runs."""
    plain = asyncio.Lock.acquire

    async def main() -> None:
        assert asyncio.Lock.acquire is not plain
        lock = asyncio.Lock()
        async with lock:
            assert sync.holders_of(lock) == [main.__qualname__]

    run(main(), sync=True)
    assert asyncio.Lock.acquire is plain

    async def again() -> None:
        with install():
            assert asyncio.Lock.acquire is plain
        with install(sync=True):
            assert asyncio.Lock.acquire is not plain
        assert asyncio.Lock.acquire is plain

    asyncio.run(again())


def frames_of_ours(error: BaseException) -> list[traceback.FrameSummary]:
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if frame.filename in (methods.__file__, primitives.__file__, sync.__file__)]


def test_no_frame_of_ours_in_a_traceback(installed: None) -> None:
    """Where an exception passes, it does not show."""

    async def main() -> None:
        queue: asyncio.Queue[int] = asyncio.Queue()
        for wrong in (asyncio.Lock().release, queue.get_nowait, queue.task_done):
            with pytest.raises((RuntimeError, asyncio.QueueEmpty, ValueError)) as error:
                wrong()
            assert not frames_of_ours(error.value)
        lock = asyncio.Lock()
        await lock.acquire()
        with pytest.raises(TimeoutError) as late:
            async with asyncio.timeout(0):
                await lock.acquire()
        assert late.value.__cause__ is not None
        assert not frames_of_ours(late.value.__cause__)

    asyncio.run(main())


def test_no_primitive_and_no_task_is_kept(inspector: Inspector, installed: None) -> None:
    """They go as soon as the application lets them go, and with them what was known of them."""

    async def main() -> list[weakref.ref[Any]]:
        lock, event = asyncio.Lock(), asyncio.Event()

        async def hold() -> None:
            async with lock:
                await event.wait()

        tasks = [asyncio.create_task(hold()) for _ in range(3)]
        await settle()
        inspector.look()
        event.set()
        await asyncio.gather(*tasks)
        inspector.look()
        return [weakref.ref(lock), weakref.ref(event), *map(weakref.ref, tasks)]

    known = len(primitives.known_primitives)
    references = asyncio.run(main())
    gc.collect()
    assert [reference() for reference in references] == [None] * 5
    assert len(primitives.known_primitives) <= known
    assert not inspector._books.waits.by_owner
    assert not inspector._books.waits.waiting_for


def test_a_failure_of_ours_does_not_reach_the_application(
    inspector: Inspector, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock works on."""

    def broken(*args: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(primitives, "_place", broken)
    monkeypatch.setattr(owners, "owner_of", broken)

    async def main() -> int:
        lock, queue, passed = asyncio.Lock(), asyncio.Queue[int](1), 0

        async def use() -> None:
            nonlocal passed
            async with lock:
                await queue.put(1)
                await asyncio.sleep(0)
                passed += await queue.get()

        await asyncio.gather(use(), use(), use())
        return passed

    assert asyncio.run(main()) == 3


# -- what they say ---------------------------------------------------------------------------------------------------


class _Payloads(logging.Handler):
    """The wait, acquire and release records, as (kind, what of, by task)."""

    def __init__(self) -> None:
        super().__init__(5)
        self.payloads: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        payload = record.__dict__.get("asyncinspect", {})
        if payload.get("kind") in ("wait", "acquire", "release"):
            self.payloads.append(payload)

    @property
    def said(self) -> list[str]:
        return [f"{one['kind']} {one['resource']['kind']}" for one in self.payloads]


@pytest.fixture
def payloads() -> Iterator[_Payloads]:
    logger, handler = logging.getLogger("asyncinspect"), _Payloads()
    logger.setLevel(5)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


async def two(first: Coroutine[Any, Any, Any], second: Callable[[], Any]) -> None:
    """One task in a span, and what is done when it stands still."""

    async def inside() -> None:
        with span("first"):
            await first

    task = asyncio.create_task(inside())
    await settle()
    done = second()
    if inspect.isawaitable(done):
        await done
    await task


def test_records_of_each_primitive(payloads: _Payloads) -> None:
    """A wait only where there is one; what ends it; and nothing of the primitives that another is made of."""

    async def main() -> None:
        lock = sync.Lock(name="db")
        async with lock:
            pass
        await lock.acquire()
        await two(lock.acquire(), lock.release)
        assert payloads.said == ["wait lock", "acquire lock"]
        wait = payloads.payloads[0]
        assert wait["resource"] == {"kind": "lock", "name": "db", "id": wait["resource"]["id"]}
        assert [held["task"] for held in wait["holders"]] == [main.__qualname__]
        payloads.payloads.clear()

        event, queue, barrier = sync.Event(), sync.Queue[int](1), sync.Barrier(2)
        condition = sync.Condition(name="ready")
        await two(event.wait(), event.set)
        await two(event.wait(), lambda: None)
        await two(queue.get(), lambda: queue.put_nowait(1))
        await two(queue.join(), queue.task_done)
        queue.put_nowait(1)
        await two(queue.put(2), queue.get)
        await two(barrier.wait(), barrier.wait)

        async def notified() -> None:
            async with condition:
                await condition.wait()

        async def notify() -> None:
            async with condition:
                condition.notify()

        await two(notified(), notify)
        assert payloads.said == [
            *("wait event", "acquire event"),
            *("wait queue get", "acquire queue get"),
            *("wait queue join", "acquire queue join"),
            *("wait queue put", "acquire queue put"),
            *("wait barrier", "acquire barrier"),
            *("acquire lock", "wait condition", "release lock", "acquire lock", "acquire condition", "release lock"),
        ]

    asyncio.run(main())


def test_a_wait_that_is_given_up(payloads: _Payloads) -> None:
    """It ends with a release."""

    async def main() -> None:
        lock = sync.Lock()
        await lock.acquire()

        async def wait() -> None:
            with span("wait"):
                await lock.acquire()

        task = asyncio.create_task(wait())
        await settle()
        await over([task])
        assert payloads.said == ["wait lock", "release lock"]
        assert sync.holders_of(lock) == [main.__qualname__]

    asyncio.run(main())


def test_names_and_holders() -> None:
    """Of those of each kind, by the names of spans, and of tasks where there is none."""

    async def main() -> None:
        permits, plain = sync.BoundedSemaphore(2, name="pool"), asyncio.Lock()
        assert (sync.name_of(permits), sync.name_of(plain)) == ("pool", None)
        assert sync.holders_of(plain) == []
        assert sync.holders_of(object()) == []
        async with permits:
            assert sync.holders_of(permits) == [main.__qualname__]
            async with permits:
                assert sync.holders_of(permits) == [main.__qualname__]
            assert sync.holders_of(permits) == [main.__qualname__]
        assert sync.holders_of(permits) == []
        for make in (sync.PriorityQueue, sync.LifoQueue):
            queue = make(name="jobs")  # type: ignore[var-annotated]
            for item in (2, 1, 3):
                await queue.put(item)
            assert sync.name_of(queue) == "jobs"
            assert await queue.get() == (1 if make is sync.PriorityQueue else 3)

    asyncio.run(main())


# -- what they cost --------------------------------------------------------------------------------------------------


def test_a_free_lock_makes_no_objects_and_finds_no_line(
    inspector: Inspector, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who took it, where and when is worked out when somebody asks; where it is, is then right all the same."""

    async def main() -> None:
        patched, drop_in = asyncio.Lock(), sync.Lock()
        for lock in (patched, drop_in):
            for _ in range(2):
                if _:
                    monkeypatch.setattr(primitives, "_place", None)
                    monkeypatch.setattr(methods, "note_taken", None)
                    monkeypatch.setattr(methods, "note_given_back", None)
                    monkeypatch.setattr(methods, "_followed", None)
                with span("holder"):
                    async with lock:
                        line = inspect.currentframe().f_lineno - 1  # type: ignore[union-attr]
                        (hold,) = primitives.known_primitives[id(lock)].resources["lock"].holders.values()
                        assert str(hold.at) == f"{__file__}:{line}"
                        assert sync.holders_of(lock) == ["holder"]
                assert sync.holders_of(lock) == []
                await lock.acquire()
                lock.release()
            monkeypatch.undo()

    asyncio.run(main())


def test_a_free_lock_costs_little_more_than_asyncio_s() -> None:
    """A few times as much, where it was nine times: the bound is wide, for a machine that does other things too."""

    async def used(lock: asyncio.Lock) -> int:
        began = time.perf_counter_ns()
        for _ in range(500):
            async with lock:
                pass
        return time.perf_counter_ns() - began

    async def main() -> None:
        times = [(await used(asyncio.Lock()), await used(sync.Lock())) for _ in range(20)]
        plain, ours = (min(column) for column in zip(*times, strict=True))
        assert ours < 5 * plain

    asyncio.run(main())


def test_methods_of_the_application_are_called(installed: None) -> None:
    """In a subclass, on one lock alone, or over ours: `async with` goes by them."""
    calls: list[str] = []

    class Counted(asyncio.Lock):
        async def acquire(self) -> Any:
            calls.append("acquire")
            return await super().acquire()

        def release(self) -> None:
            calls.append("release")
            super().release()

    async def main() -> None:
        own, lock = Counted(), asyncio.Lock()
        for _ in range(3):
            async with own:
                assert sync.holders_of(own) == [main.__qualname__]
            async with lock:
                pass
        assert calls == ["acquire", "release"] * 3
        acquire = lock.acquire

        async def counted() -> Any:
            calls.append("mine")
            return await acquire()

        lock.acquire = counted  # type: ignore[method-assign]
        async with lock:
            assert sync.holders_of(lock) == [main.__qualname__]
        assert calls[-1] == "mine"

    asyncio.run(main())


def test_a_lock_given_back_by_another_task_or_by_none(installed: None) -> None:
    """Also when the first is gone: then whose it is, is not known any more."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for free in (lambda lock: lock.release(), lambda lock: loop.call_soon(lock.release)):
            lock = asyncio.Lock()
            for _ in range(2):
                await lock.acquire()
                lock.release()
            await asyncio.create_task(take(lock))
            gc.collect()
            free(lock)
            await settle()
            assert not lock.locked()
            resource = primitives.known_primitives[id(lock)].resources["lock"]
            assert resource.open
            assert resource.freers() is None

    async def take(lock: asyncio.Lock) -> None:
        await asyncio.sleep(0)
        await lock.acquire()

    asyncio.run(main())


# -- what was there before -------------------------------------------------------------------------------------------


async def both(name: str, first: Any, second: Any) -> None:
    with span(name):
        async with first:
            await asyncio.sleep(0)
            async with second:
                pass


def test_primitives_from_before_the_install(inspector: Inspector) -> None:
    """They report as well; of one that was held already, nothing is known until it is given back."""

    async def main() -> None:
        a, b = asyncio.Lock(), asyncio.Lock()
        await a.acquire()
        with install(sync=True):
            tasks = [asyncio.create_task(both("one", b, a))]
            await settle()
            tasks.append(asyncio.create_task(both("two", a, b)))
            await settle()
            assert looked_at(inspector) == ()
            a.release()
            await asyncio.gather(*tasks)
            again = [asyncio.create_task(both("one", a, b)), asyncio.create_task(both("two", b, a))]
            await settle()
            assert len(looked_at(inspector)) == 1
            await over(again)

    asyncio.run(main())


def test_conditions_from_before_the_install(inspector: Inspector) -> None:
    """They have the methods of their lock on themselves, as those were then."""

    async def main() -> None:
        a, b = asyncio.Condition(), asyncio.Condition()
        with install(sync=True):
            tasks = [asyncio.create_task(both("one", a, b)), asyncio.create_task(both("two", b, a))]
            await settle()
            assert len(looked_at(inspector)) == 1
            await over(tasks)
        async with a, b:
            pass

    asyncio.run(main())


def test_semaphores_from_before_the_install(inspector: Inspector) -> None:
    """They are known from the beginning if there was but one task then. If not, only a bounded one says how many
    permits were out.
    """

    async def found(permits: list[Any]) -> int:
        with install(sync=True):
            tasks = [asyncio.create_task(both(f"t{index}", one, one)) for index, one in enumerate(permits)]
            await settle()
            messages = looked_at(inspector)
            await over(tasks)
        return len(messages)

    async def main(others: int) -> int:
        tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(others)]
        try:
            return await found([asyncio.Semaphore(1), asyncio.BoundedSemaphore(1)])
        finally:
            await over(tasks)

    assert asyncio.run(main(0)) == 2
    assert asyncio.run(main(1)) == 1


# -- other libraries -------------------------------------------------------------------------------------------------


def test_anyio_on_asyncio(inspector: Inspector) -> None:
    """Its locks and semaphores, and what its own `acquire` calls counts once."""

    async def main() -> None:
        with install(sync=True):
            a, b = anyio.Lock(), anyio.Semaphore(1)
            tasks = [asyncio.create_task(both("one", a, b)), asyncio.create_task(both("two", b, a))]
            await settle()
            (message,) = looked_at(inspector)
            assert "for semaphore" in message
            assert "for lock" in message
            assert sync.holders_of(a) == ["one"]
            await over(tasks)
            assert sync.holders_of(a) == sync.holders_of(b) == []
            a.acquire_nowait()
            assert sync.holders_of(a) == [main.__qualname__]
            with pytest.raises(anyio.WouldBlock):
                anyio.Semaphore(0).acquire_nowait()
            a.release()
            assert looked_at(inspector) == ()

    asyncio.run(main())


def test_uvloop(inspector: Inspector) -> None:
    """A deadlock is one there too, and a wait with a timeout none."""
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async def careful(a: Any, b: Any) -> None:
            async with asyncio.timeout(60):
                await both("careful", a, b)

        with install(sync=True):
            a, b = asyncio.Lock(), asyncio.Lock()
            tasks = [asyncio.create_task(both("one", a, b)), asyncio.create_task(careful(b, a))]
            await settle()
            assert looked_at(inspector) == ()
            await over(tasks)
            tasks = [asyncio.create_task(both("one", a, b)), asyncio.create_task(both("two", b, a))]
            await settle()
            assert len(looked_at(inspector)) == 1
            await over(tasks)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
