"""Every task of trio, and of anyio on both backends, without a change to the program."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from asyncinspect_logging import Inspector, current_span, instrument, span
from asyncinspect_logging import install as install_on_loop
from asyncinspect_logging.integrations import anyio as anyio_integration
from asyncinspect_logging.integrations.trio import SpanInstrument, install
from asyncinspect_logging.opened import open_of
from asyncinspect_logging.states import TaskState
from asyncinspect_logging.testing import FakeClock


@pytest.fixture(autouse=True)
def _nothing_left() -> Any:
    before = set(open_of)
    yield
    assert set(open_of) <= before


def view(inspector: Inspector, name: str) -> Any:
    (found,) = [task for task in inspector.snapshot().tasks if task.name.rpartition(".")[2] == name]
    return found


def test_outcomes_parents_and_states(listen: Any) -> None:
    """Completed, failed and cancelled tasks, children of the span that they were started in; blocked ones while they
    wait, with what is awaited.
    """
    inspector = listen()

    async def works() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    async def fails() -> None:
        raise LookupError("mine")

    async def waits() -> None:
        await trio.sleep_forever()

    async def main() -> None:
        try:
            async with trio.open_nursery() as nursery:
                with span("outer") as outer:
                    nursery.start_soon(waits)
                    nursery.start_soon(works)
                    await trio.testing.wait_all_tasks_blocked()
                    waiting = view(inspector, "waits")
                    assert (waiting.state, waiting.parent_id) == (TaskState.BLOCKED, outer.id)
                nursery.start_soon(fails)
        except* LookupError:
            pass

    trio.run(main, instruments=[SpanInstrument()])
    outcomes = {name.rpartition(".")[2]: view(inspector, name.rpartition(".")[2]).outcome for name in
                inspector.snapshot().names}  # fmt: skip
    assert outcomes == {
        "main": "completed",
        "outer": "completed",
        "waits": "cancelled",
        "works": "completed",
        "fails": "failed",
    }
    assert view(inspector, "fails").error == {"type": "LookupError", "message": "mine"}
    assert view(inspector, "works").parent_id == view(inspector, "outer").id


def test_polls_busy_time_and_wakes(listen: Any) -> None:
    """Each step of a task, the time in it, the wake before it and the wait in between."""
    clock = FakeClock()
    inspector = listen(clock=clock)

    async def work(event: trio.Event) -> None:
        clock.advance(0.1)
        await event.wait()
        clock.advance(0.2)

    async def main() -> None:
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, event)
            await trio.testing.wait_all_tasks_blocked()
            clock.advance(1)
            event.set()
            clock.advance(0.5)

    trio.run(main, instruments=[SpanInstrument()])
    found = view(inspector, "work")
    assert (found.polls, found.wakes) == (2, 1)
    assert (found.busy, found.idle, found.scheduled) == pytest.approx((0.3, 1.5, 0.5))


def test_results_and_exceptions_are_as_without(listen: Any) -> None:
    """What main returns and raises, its traceback, names of tasks, and stacks of waiting ones."""
    listen()

    def frames(error: BaseException) -> list[str]:
        found, tb = [], error.__traceback__
        while tb is not None:
            found.append(tb.tb_frame.f_code.co_name)
            tb = tb.tb_next
        return found

    async def inner() -> None:
        raise KeyError("x")

    async def main() -> Any:
        task = trio.lowlevel.current_task()
        stack = [frame.f_code.co_name for frame, _ in task.iter_await_frames()]
        assert stack[0] == "main"
        try:
            await inner()
        except KeyError as error:
            return task.name, frames(error)

    async def fails() -> None:
        await inner()

    told = []
    for instruments in ([], [SpanInstrument()]):
        result = trio.run(main, instruments=instruments)
        with pytest.raises(KeyError) as raised:
            trio.run(fails, instruments=instruments)
        told.append((result, [name for name in frames(raised.value) if name in ("fails", "inner", "_drive", "drive")]))
    assert told[0] == told[1]


@pytest.mark.parametrize("driven", ["SpanInstrument", "instrument"])
@pytest.mark.parametrize("thread", [False, True], ids=["", "from a thread"])
def test_where_tasks_are(thread: bool, driven: str, listen: Any) -> None:
    """The frames that a task waits in, what for, and in a nursery for whom: in the program itself, and for a thread
    that looks into it, such as that of a server of /metrics.
    """
    inspector = listen()
    drive = instrument if driven == "instrument" else lambda function: function

    @drive
    async def waits(lock: trio.Lock) -> None:
        async with lock:
            await trio.sleep_forever()

    @drive
    async def parent(lock: trio.Lock) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits, lock)
            nursery.start_soon(receives)

    @drive
    async def receives() -> None:
        await trio.open_memory_channel[int](0)[1].receive()

    async def main() -> None:
        lock = trio.Lock()
        lock.acquire_nowait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(parent, lock)
            await trio.testing.wait_all_tasks_blocked()

            def look() -> dict[str, Any]:
                return {task.name.rpartition(".")[2]: task for task in inspector.snapshot().tasks}

            found.update(await trio.to_thread.run_sync(look) if thread else look())
            nursery.cancel_scope.cancel()

    found: dict[str, Any] = {}
    trio.run(main, instruments=[SpanInstrument()] if driven == "SpanInstrument" else [])
    chain = found["waits"].await_chain
    assert re.fullmatch(r".*test_integrations_trio\.py:\d+ .*\.waits", chain[0])
    assert re.fullmatch(r"trio/_sync\.py:\d+ _LockImpl\.acquire", chain[2])
    assert found["waits"].waiting_on.startswith("lock")
    assert found["receives"].waiting_on == "channel receive"
    assert found["parent"].waiting_on == "nursery, 2 tasks left"
    if driven == "SpanInstrument":
        assert set(found["parent"].awaiting) == {found[name].id for name in ("waits", "receives")}


def test_cancelled_before_it_begins_and_nursery_start(listen: Any) -> None:
    """A task in a scope that is cancelled already, one that says when it has started, and one that fails before."""
    inspector = listen()

    async def never() -> None:
        await trio.sleep_forever()

    async def serves(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started(7)
        await trio.sleep_forever()

    async def fails(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        raise LookupError

    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(never)
        async with trio.open_nursery() as nursery:
            assert await nursery.start(serves) == 7
            with pytest.raises(LookupError):
                await nursery.start(fails)
            nursery.cancel_scope.cancel()

    trio.run(main, instruments=[SpanInstrument()])
    told = {view.name.rpartition(".")[2]: view.outcome for view in inspector.snapshot().tasks}
    assert told == {"main": "completed", "never": "cancelled", "serves": "cancelled", "fails": "failed"}


def test_taken_off_while_tasks_go_on(listen: Any) -> None:
    """Spans that were begun end as ever; two instruments make one span a task."""
    inspector = listen()
    first = SpanInstrument()

    async def waits() -> None:
        await trio.sleep_forever()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(first)
            nursery.cancel_scope.cancel()

    trio.run(main, instruments=[first, SpanInstrument()])
    assert {name: (view.spawned, view.finished) for name, view in inspector.snapshot().names.items()} == {
        main.__qualname__: (1, 1),
        waits.__qualname__: (1, 1),
    }
    assert view(inspector, "waits").outcome == "cancelled"


def test_guest_of_asyncio(listen: Any) -> None:
    """In guest mode the two loops share a thread: tasks of both have spans, with their own parents and steps."""
    inspector = listen()

    async def child() -> None:
        await trio.lowlevel.checkpoint()

    async def guest() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    async def neighbour() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def host() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        with install_on_loop(), span("host"):
            trio.lowlevel.start_guest_run(
                guest,
                run_sync_soon_threadsafe=loop.call_soon_threadsafe,
                done_callback=done.set_result,
                host_uses_signal_set_wakeup_fd=True,
                instruments=[SpanInstrument()],
            )
            await asyncio.create_task(neighbour())
            (await done).unwrap()

    asyncio.run(host())
    ids = {name: view(inspector, name).id for name in ("host", "guest")}
    assert view(inspector, "child").parent_id == ids["guest"]
    assert view(inspector, "guest").parent_id == view(inspector, "neighbour").parent_id == ids["host"]
    assert [view(inspector, name).polls for name in ("child", "neighbour")] == [2, 4]


def test_install_in_a_running_program(listen: Any) -> None:
    """From then on until undone; the tasks of before, and trio's own, have no span."""
    inspector = listen()

    async def child() -> None:
        assert current_span() is not None

    async def unseen() -> None:
        assert current_span() is None

    async def main() -> None:
        with install() as undo:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
            undo()
            undo()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(unseen)
        assert current_span() is None

    trio.run(main)
    assert [name.rpartition(".")[2] for name in inspector.snapshot().names] == ["child"]
    with pytest.raises(RuntimeError):
        install()


def test_a_handler_that_raises_does_not_take_it_off(listen: Any) -> None:
    """What goes wrong in the instrument is told, and the program and the instrument go on."""
    inspector = listen()
    spoiled = SpanInstrument()
    drive, calls = spoiled._drive, []

    def once(task: Any) -> None:
        calls.append(task)
        if len(calls) == 1:
            raise RuntimeError("spoiled")
        drive(task)

    spoiled._drive = once  # type: ignore[method-assign]
    logging.getLogger("asyncinspect.internal").setLevel("CRITICAL")
    try:

        async def child() -> None: ...

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)

        trio.run(main, instruments=[spoiled])
    finally:
        logging.getLogger("asyncinspect.internal").setLevel("NOTSET")
    assert "child" in {name.rpartition(".")[2] for name in inspector.snapshot().names}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio_on_both_backends(backend: str, listen: Any) -> None:
    """One `install` for both: each task of a group has a span, with its outcome and polls."""
    inspector = listen()

    async def waits() -> None:
        await anyio.sleep_forever()

    async def works() -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        with anyio_integration.install():
            async with anyio.create_task_group() as group:
                group.start_soon(waits)
                group.start_soon(works)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()

    anyio.run(main, backend=backend)
    found = {view.name.rpartition(".")[2]: view for view in inspector.snapshot().tasks}
    assert found["waits"].outcome == "cancelled"
    assert found["works"].outcome == "completed"
    assert found["works"].polls >= 4


def test_anyio_without_a_loop() -> None:
    """Says where it is to be called."""
    with pytest.raises(RuntimeError, match=r"install\(\) needs a running event loop"):
        anyio_integration.install()
