"""`span` and `instrument` under anyio, on both of its backends, and under trio alone."""

import logging

import anyio
import pytest
import trio

from asyncinspect_logging import current_span, instrument, span
from asyncinspect_logging.opened import open_of
from asyncinspect_logging.states import TaskState
from asyncinspect_logging.testing import FakeClock

LOGGER = logging.getLogger("asyncinspect")
pytestmark = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture(autouse=True)
def _nothing_left():
    """Every span that was begun has left the books of the open ones."""
    yield
    assert open_of == {}


def view(inspector, name):
    (found,) = (task for task in inspector.snapshot().tasks if task.name == name)
    return found


def test_nesting(backend, listen):
    """A span is current in its own task, and parent of the spans of tasks begun in it."""
    inspector = listen()
    parents = {}

    async def child(name):
        with span(name) as inner:
            await anyio.lowlevel.checkpoint()
            assert current_span() is inner
            parents[name] = inner.parent_id

    async def main():
        with span("main") as outer:
            async with anyio.create_task_group() as group:
                group.start_soon(child, "one")
                group.start_soon(child, "two")
            assert current_span() is outer
            assert parents == {"one": outer.id, "two": outer.id}
        assert current_span() is None

    anyio.run(main, backend=backend)
    assert {name: v.completed for name, v in inspector.snapshot().names.items()} == {"main": 1, "one": 1, "two": 1}


def test_states(backend, listen):
    """A span of a task that waits is blocked; that of the task that looks is running."""
    inspector = listen()

    async def waits():
        with span("waits"):
            await anyio.sleep_forever()

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(waits)
            group.start_soon(instrument(name="driven")(anyio.sleep_forever))
            await anyio.wait_all_tasks_blocked()
            assert view(inspector, "waits").state is TaskState.BLOCKED
            assert view(inspector, "driven").state is TaskState.BLOCKED
            group.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    assert view(inspector, "waits").outcome == view(inspector, "driven").outcome == "cancelled"


def test_task_names(backend, listen):
    """A span's task is named by its coroutine."""
    inspector = listen()

    async def work():
        with span("plain"):
            assert view(inspector, "plain").task == "test_task_names.<locals>.work"

    anyio.run(work, backend=backend)


def test_instrument(backend, listen):
    """Each step is counted, and results and arguments are as without."""
    inspector = listen(clock=FakeClock())

    @instrument(name="work")
    async def work(x):
        with span("inner"):
            await anyio.lowlevel.checkpoint()
        return x

    async def main():
        assert await work(7) == 7
        assert await instrument(work.__wrapped__(8), name="coroutine") == 8

    anyio.run(main, backend=backend)
    found = view(inspector, "work")
    assert dict(found.fields) == {"x": 7}
    assert found.outcome == "completed"
    assert found.polls >= 2
    inner = [task for task in inspector.snapshot().tasks if task.name == "inner"]
    assert [task.polls for task in inner] == [found.polls, view(inspector, "coroutine").polls]
    assert inner[0].parent_id == found.id


def test_busy_time(backend, listen):
    """Time in steps is busy, time between them is idle."""
    clock = FakeClock()
    inspector = listen(clock=clock)

    async def work(event):
        clock.advance(0.1)
        await event.wait()
        clock.advance(0.2)

    async def main():
        event = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(instrument(name="work")(work), event)
            await anyio.wait_all_tasks_blocked()
            clock.advance(1)
            event.set()

    anyio.run(main, backend=backend)
    found = view(inspector, "work")
    assert (found.busy, found.idle, found.max_poll) == pytest.approx((0.3, 1.0, 0.2))


def test_exceptions_and_groups(backend, listen):
    """The failing child failed, its sibling was cancelled, and the parent failed with the leaf's type."""
    inspector = listen()

    async def fails():
        with span("fails"):
            raise ValueError("x")

    @instrument(name="sibling")
    async def sibling():
        await anyio.sleep_forever()

    async def main():
        with span("parent"):
            async with anyio.create_task_group() as group:
                group.start_soon(sibling)
                group.start_soon(fails)

    with pytest.raises(ExceptionGroup):
        anyio.run(main, backend=backend)
    assert view(inspector, "fails").outcome == "failed"
    assert view(inspector, "sibling").outcome == "cancelled"
    assert view(inspector, "parent").error["type"] == "ExceptionGroup(ValueError)"


def test_timeouts(backend, listen):
    """`fail_after`: cancelled inside, TimeoutError outside; `move_on_after` leaves the outer span completed."""
    inspector = listen()

    async def main():
        with pytest.raises(TimeoutError), span("outer"), anyio.fail_after(0.001), span("inner"):
            await anyio.sleep_forever()
        with span("outer2"), anyio.move_on_after(0.001), span("inner2"):
            await instrument(anyio.sleep_forever(), name="driven")

    anyio.run(main, backend=backend)
    outcomes = {task.name: task.outcome for task in inspector.snapshot().tasks}
    assert outcomes == {
        "outer": "failed",
        "inner": "cancelled",
        "outer2": "completed",
        "inner2": "cancelled",
        "driven": "cancelled",
    }


def test_threads(backend, listen):
    """A worker thread has the span as parent, and may call back into the loop."""
    inspector = listen()

    async def back():
        with span("back") as inner:
            return inner.parent_id

    def work(outer_id):
        with span("thread") as inner:
            assert inner.parent_id == outer_id
            assert anyio.from_thread.run(back) == inner.id

    async def main():
        with span("main") as outer:
            await anyio.to_thread.run_sync(work, outer.id)

    anyio.run(main, backend=backend)
    assert inspector.snapshot().states["completed"] == 3


def test_async_generators(backend, listen):
    """An async generator that is broken off ends its span, and the caller's is current again."""
    inspector = listen()

    async def numbers():
        with span("numbers"):
            for n in range(10):
                await anyio.lowlevel.checkpoint()
                yield n

    async def main():
        with span("main") as outer:
            generator = numbers()
            async for n in generator:
                if n == 2:
                    break
            await generator.aclose()
            assert current_span() is outer
            with span("after") as after:
                assert after.parent_id == outer.id

    anyio.run(main, backend=backend)
    assert view(inspector, "numbers").outcome == "abandoned"
    assert view(inspector, "after").outcome == "completed"


def test_trio_alone(backend, listen):
    """trio's own nurseries, instruments and cancellation."""
    if backend == "asyncio":
        pytest.skip("trio only")
    inspector = listen()

    async def child():
        with span("child"):
            await trio.sleep_forever()

    async def main():
        with trio.move_on_after(0.001):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                nursery.start_soon(instrument(child))
        async with span("async with"):
            await trio.lowlevel.checkpoint()

    trio.run(main)
    counts = inspector.snapshot().names
    assert counts["child"].cancelled == 2
    assert counts["test_trio_alone.<locals>.child"].cancelled == 1
    assert counts["async with"].completed == 1
