"""A `threading.Lock` held across an `await`: the threads that wait for it, and what can never go on because of that."""

import asyncio
import contextlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from asyncinspect_logging import install, span
from asyncinspect_logging.detect import threads
from asyncinspect_logging.detect.threads import Threads

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 14), reason="frames are laid out differently")

#: Seconds after which a test gives up. What is found is found much sooner.
LIMIT = 10


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    uvloop = pytest.importorskip("uvloop") if request.param == "uvloop" else None

    def run(main):
        with asyncio.Runner(loop_factory=uvloop and uvloop.new_event_loop) as runner:
            runner.run(main)

    return run


class Service:
    __slots__ = ("_lock", "condition")

    def __init__(self):
        self._lock = threading.Lock()
        self.condition = threading.Condition(self._lock)


def free_when_told(inspector, lock):
    """Any thread may give back a Lock: so that the test goes on."""
    found = []

    def free(finding):
        found.append(finding)
        lock.release()

    inspector.on_deadlock(free)
    return found


@contextlib.contextmanager
def freed_by_somebody_else():
    """Whose lock was given back finds it free at the end of its `with`."""
    with contextlib.suppress(RuntimeError):
        yield


async def by_attribute(service):
    with service._lock:
        pass


async def by_call(service):
    service._lock.acquire()
    service._lock.release()


async def by_condition(service):
    with service.condition:
        pass


def taken(service):
    return service.condition


@contextlib.contextmanager
def generated(service):
    with service._lock:
        yield


@pytest.mark.parametrize("waits", [by_attribute, by_call, by_condition])
@pytest.mark.parametrize("takes", [lambda service: service._lock, taken, generated])
def test_loop_stopped_by_its_own_task(run, listen, takes, waits):
    service, inspector = Service(), listen()
    found = free_when_told(inspector, service._lock)

    async def holds():
        with freed_by_somebody_else(), span("checkout"), takes(service):
            await asyncio.sleep(0.01)

    async def refund():
        with span("refund"):
            await waits(service)

    async def main():
        install()
        task = asyncio.create_task(holds())
        await asyncio.sleep(0)
        await asyncio.create_task(refund())
        await task

    run(main())
    (finding,) = found
    assert inspector.snapshot().deadlocks == 1
    assert "task test_loop_stopped_by_its_own_task.<locals>.holds (span checkout" in finding.message
    assert ", goes on only after task test_loop_stopped_by_its_own_task.<locals>.refund; " in finding.message
    assert "(span refund" in finding.message
    assert "for thread lock '" in finding.message
    assert "(span checkout) at " in finding.message
    assert finding.message.endswith("Give a threading.Lock back before an await, or use asyncio.Lock.")
    assert len(finding.span_ids) == 2
    lines = [place.rpartition("/")[2] for place in finding.evidence]
    assert len(lines) == 2
    if waits is not by_condition:
        assert lines[0].startswith("test_threads.py:")


def test_lines_that_prove_it(run, listen):
    """Where it is waited for, and where it was taken: not where its holder is suspended."""
    service, inspector = Service(), listen()
    found = free_when_told(inspector, service._lock)
    first = sys._getframe().f_lineno

    async def holds():
        with freed_by_somebody_else(), service._lock:
            await asyncio.sleep(0.01)

    async def main():
        install()
        task = asyncio.create_task(holds())
        await asyncio.sleep(0)
        await asyncio.create_task(by_attribute(service))
        await task

    run(main())
    waited, taken_at = (int(place.rpartition(":")[2]) for place in found[0].evidence)
    assert waited == by_attribute.__code__.co_firstlineno + 1
    assert taken_at == first + 3
    assert f"suspended at {__file__}:{first + 4}, " in found[0].message


def test_work_in_a_thread_for_who_holds_it(run, listen):
    """The loop runs on; the task waits for work that waits for the task."""
    service, inspector = Service(), listen()
    found = free_when_told(inspector, service._lock)

    def work():
        with service._lock:
            pass

    async def holds():
        with freed_by_somebody_else(), service._lock:
            await asyncio.to_thread(work)

    async def main():
        install()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(thread_name_prefix="worker"))
        await asyncio.create_task(holds())

    run(main())
    (finding,) = found
    assert ", goes on only after thread worker_0; thread worker_0 waits at " in finding.message


def test_two_loops_that_stop_each_other(run, listen):
    one, two, inspector = Service(), Service(), listen()
    found = free_when_told(inspector, one._lock)
    both_hold = threading.Barrier(2)

    async def holds(service):
        with freed_by_somebody_else(), service._lock:
            await asyncio.sleep(0.01)

    async def main(mine, other):
        install()
        task = asyncio.create_task(holds(mine))
        await asyncio.sleep(0)
        both_hold.wait(LIMIT)
        await asyncio.create_task(by_attribute(other))
        await task

    thread = threading.Thread(target=lambda: asyncio.run(main(two, one)))
    thread.start()
    run(main(one, two))
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert len(found) == 1
    assert found[0].message.count("for thread lock") == 2


# -- near misses: nobody is dead ---------------------------------------------------------------------------------------


def looks_through(listen, run, main, *, at_least=4):
    """The deadlocks found while `main` runs; `main` is given what to wait for until enough looks have been."""
    inspector = listen()
    looked = 0
    enough = threading.Event()
    plain = inspector.look

    def look(**how):
        nonlocal looked
        plain(**how)
        looked += 1
        if looked >= at_least:
            enough.set()

    inspector.look = look
    run(main(enough))
    assert looked >= at_least
    return inspector.snapshot().deadlocks


def test_thread_that_holds_it_for_long(run, listen):
    service = Service()

    async def main(enough):
        install()
        holding = threading.Event()

        def holds():
            with service._lock:
                holding.set()
                enough.wait(LIMIT)

        thread = threading.Thread(target=holds)
        thread.start()
        holding.wait(LIMIT)
        await asyncio.create_task(by_attribute(service))
        thread.join()

    assert looks_through(listen, run, main) == 0


def test_thread_that_nobody_waits_for(run, listen):
    """It waits for a task that is only slow."""
    service = Service()

    def work():
        with service._lock:
            pass

    async def holds(enough):
        with service._lock:
            threading.Thread(target=work).start()
            await asyncio.to_thread(enough.wait, LIMIT)

    async def main(enough):
        install()
        await asyncio.create_task(holds(enough))

    assert looks_through(listen, run, main) == 0


def test_acquire_with_a_timeout(run, listen):
    service = Service()

    async def tries(enough):
        while not enough.is_set():
            assert not service._lock.acquire(timeout=0.15)

    async def holds(done):
        with service._lock:
            await done.wait()

    async def main(enough):
        install()
        done = asyncio.Event()
        task = asyncio.create_task(holds(done))
        await asyncio.sleep(0)
        await asyncio.create_task(tries(enough))
        done.set()
        await task

    assert looks_through(listen, run, main) == 0


def test_work_with_a_timeout(run, listen):
    service = Service()

    def work():
        with service._lock:
            pass

    async def holds(enough):
        with service._lock, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIMIT) as limit:
                work_done = asyncio.ensure_future(asyncio.to_thread(work))
                asyncio.get_running_loop().run_in_executor(None, enough.wait, LIMIT).add_done_callback(
                    lambda _: limit.reschedule(0)
                )
                await work_done

    async def main(enough):
        install()
        await asyncio.create_task(holds(enough))

    assert looks_through(listen, run, main) == 0


def test_idle_threads_are_not_looked_into(monkeypatch):
    """Of one that waits to be told of something, and of one that is on its way, nothing is asked."""
    asked = []
    monkeypatch.setattr(threads, "_operand", lambda *at: asked.append(at) or ())
    told = threading.Event()
    thread = threading.Thread(target=told.wait)
    thread.start()
    looking = Threads()
    try:
        for _ in range(3):
            assert looking.look(list) == []
    finally:
        told.set()
        thread.join()
    mine = [code for code, _ in asked if code in (threading.Condition.wait.__code__, threading.Event.wait.__code__)]
    assert mine == []
