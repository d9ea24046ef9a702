"""Wakes: the moment in which what a task waits for completes, heard on the loop's `call_soon`."""

import asyncio
import functools
import gc
import logging
import threading
import weakref

import pytest

from asyncinspect_logging import install, instrument, run
from asyncinspect_logging.testing import FakeClock
from asyncinspect_logging.wakes import driven_by_hand, hear, unhear


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=["asyncio", "uvloop"])
def factory(request):
    return pytest.importorskip("uvloop").new_event_loop if request.param == "uvloop" else asyncio.new_event_loop


@pytest.fixture
def go(factory):
    def go(main):
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main())

    return go


def view(inspector, name):
    (found,) = (task for task in inspector.snapshot().tasks if task.name == name)
    return found


async def soon():
    """Let everything run that is ready, and what that makes ready."""
    for _ in range(5):
        await asyncio.sleep(0)


async def waits_for(awaitable):
    await awaitable


def of_future(loop):
    future = loop.create_future()
    return future, lambda: future.set_result(None)


def of_error(loop):
    future = loop.create_future()

    async def wait():
        with pytest.raises(KeyError):
            await future

    return wait(), lambda: future.set_exception(KeyError())


def of_event(loop):
    event = asyncio.Event()
    return event.wait(), event.set


def of_queue(loop):
    queue = asyncio.Queue()
    return queue.get(), lambda: queue.put_nowait(1)


def of_task(loop):
    event = asyncio.Event()
    return loop.create_task(event.wait()), event.set


def of_condition(loop):
    condition = asyncio.Condition()

    async def wait():
        async with condition:
            await condition.wait()

    async def tell():
        async with condition:
            condition.notify_all()

    return wait(), lambda: loop.create_task(tell())


def of_gather(loop):
    future = loop.create_future()
    return asyncio.gather(future, asyncio.sleep(0)), lambda: future.set_result(None)


def of_shield(loop):
    future = loop.create_future()
    return asyncio.shield(future), lambda: future.set_result(None)


@pytest.mark.parametrize("what", [of_future, of_error, of_event, of_queue, of_task, of_condition, of_gather, of_shield])
@pytest.mark.parametrize("way", ["install", "instrument"])
def test_one_wait_is_one_wake(go, listen, clock, what, way):
    """Whatever a task waits for, its completion is a wake."""
    inspector = listen(clock=clock)

    async def main():
        loop = asyncio.get_running_loop()
        awaitable, complete = what(loop)
        if way == "install":
            undo = install()
            task = loop.create_task(waits_for(awaitable))
        else:
            task = loop.create_task(instrument(waits_for(awaitable)))
        await soon()
        clock.advance(1)
        complete()
        await task
        if way == "install":
            undo()

    go(main)
    found = view(inspector, "waits_for")
    assert (found.wakes, found.self_wakes, found.polls) == (1, 0, 2)
    assert found.idle == pytest.approx(1)


def test_scheduled_is_from_completion_to_step(go, listen, clock):
    """What passes between `set_result` and the step, and nothing else, is scheduled time."""
    inspector = listen(clock=clock)

    async def main():
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(instrument(waits_for(future)))
        await soon()
        clock.advance(3)
        future.set_result(None)
        clock.advance(0.05)
        await task

    go(main)
    assert view(inspector, "waits_for").scheduled == pytest.approx(0.05)


def test_timer(go, listen):
    """A sleep that is over wakes its task."""
    inspector = listen()

    async def main():
        await instrument(waits_for(asyncio.sleep(0.001)))

    go(main)
    assert view(inspector, "waits_for").wakes == 1


def test_cancel_is_a_wake(go, listen, clock):
    """Cancelling completes what the task waits for."""
    inspector = listen(clock=clock)

    async def main():
        task = asyncio.create_task(instrument(waits_for(asyncio.sleep(60))))
        await soon()
        task.cancel()
        clock.advance(0.5)
        with pytest.raises(asyncio.CancelledError):
            await task

    go(main)
    found = view(inspector, "waits_for")
    assert (found.wakes, found.scheduled, found.outcome) == (1, pytest.approx(0.5), "cancelled")


def test_woken_from_another_thread(go, listen, clock):
    """`call_soon_threadsafe` completes the future in the loop, which is the wake."""
    inspector = listen(clock=clock)

    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        task = loop.create_task(instrument(waits_for(future)))
        await soon()
        threading.Thread(target=loop.call_soon_threadsafe, args=(future.set_result, None)).start()
        await task

    go(main)
    assert view(inspector, "waits_for").wakes == 1


def test_several_waits(go, listen, clock):
    """Each wait has its own wake and its own scheduled time."""
    inspector = listen(clock=clock)

    async def several(futures):
        for future in futures:
            await future

    async def main():
        futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
        task = asyncio.create_task(instrument(several(futures), name="several"))
        for n, future in enumerate(futures):
            await soon()
            future.set_result(None)
            clock.advance(0.1 * (n + 1))
        await task

    go(main)
    found = view(inspector, "several")
    assert (found.wakes, found.polls, found.scheduled) == (3, 4, pytest.approx(0.6))


def test_tasks_that_nobody_drives_are_left_alone(go, listen):
    """Hearing the loop changes nothing for the others."""
    inspector = listen()

    async def main():
        await instrument(waits_for(asyncio.sleep(0)))
        assert await asyncio.gather(*(asyncio.sleep(0, n) for n in range(3))) == [0, 1, 2]
        done = []
        asyncio.get_running_loop().call_soon(done.append, 1)
        await asyncio.sleep(0)
        assert done == [1]

    go(main)
    assert set(inspector.snapshot().names) == {"waits_for"}


def test_future_shows_nothing_of_ours(go, listen):
    """Nothing is added to the future that is waited for, where its `repr` or its callbacks would show it."""
    listen()

    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        task = loop.create_task(instrument(waits_for(future)))
        await soon()
        assert "asyncinspect" not in repr(future)
        assert len(future._callbacks) == 1
        future.set_result(None)
        await task

    go(main)


def test_hear_and_unhear(factory):
    """Hearing twice is hearing once, and unhearing leaves the loop as it was."""
    loop = factory()
    hear(loop)
    first = vars(loop)["call_soon"]
    hear(loop)
    assert vars(loop)["call_soon"] is first
    unhear(loop)
    assert "call_soon" not in vars(loop)
    unhear(loop)
    hear(loop)
    assert "call_soon" in vars(loop)
    unhear(loop)
    loop.close()


def test_somebody_else_s_call_soon(factory, listen, clock):
    """One that was there before goes on being called; one that is put over ours stays when ours goes."""
    inspector = listen(clock=clock)
    loop = factory()
    calls = []
    theirs = type(loop).call_soon

    def before(callback, *args, context=None):
        calls.append("before")
        return theirs(loop, callback, *args, context=context)

    loop.call_soon = before
    with install(loop):
        loop.run_until_complete(waits_for(asyncio.sleep(0.001)))
        assert calls
        ours = loop.call_soon

        def after(callback, *args, context=None):
            calls.append("after")
            return ours(callback, *args, context=context)

        loop.call_soon = after
        loop.run_until_complete(waits_for(asyncio.sleep(0.001)))
    assert loop.call_soon is after
    calls.clear()
    loop.run_until_complete(asyncio.sleep(0))
    assert "after" in calls
    assert "before" in calls
    loop.close()
    assert inspector.snapshot().names["waits_for"].wakes == 2


def test_undo_restores_the_call_soon_that_was_there(factory):
    """A wrapper of the application's survives install and undo."""
    loop = factory()
    theirs = type(loop).call_soon
    loop.call_soon = before = lambda callback, *args, context=None: theirs(loop, callback, *args, context=context)
    install(loop)()
    assert loop.call_soon is before
    loop.close()


@pytest.mark.parametrize("way", ["install", "instrument", "instrument before"])
def test_undo_leaves_nobody_deaf(go, listen, clock, way):
    """Driven tasks have their wakes noted when `install` is undone, too; after the last one nothing is left."""
    inspector = listen(clock=clock)

    async def main():
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in range(3)]
        if way == "instrument before":
            tasks = [loop.create_task(instrument(waits_for(future))) for future in futures]
            await soon()
        with install():
            if way == "install":
                tasks = [loop.create_task(waits_for(future)) for future in futures]
            elif way == "instrument":
                tasks = [asyncio.Task(waits_for_instrumented(future), loop=loop) for future in futures]
            await soon()
        assert "create_task" not in vars(loop)
        for future, task in zip(futures, tasks, strict=True):
            assert "call_soon" in vars(loop)
            future.set_result(None)
            clock.advance(0.05)
            await task
        assert "call_soon" not in vars(loop)

    async def waits_for_instrumented(future):
        await instrument(waits_for(future))

    go(main)
    names = inspector.snapshot().names["waits_for"]
    assert names.wakes == 3
    assert names.scheduled_delays.sum == pytest.approx(0.15)


@pytest.mark.parametrize("again", ["install", "instrument"])
def test_hearing_goes_on_where_it_was_about_to_end(go, listen, again):
    """Somebody else needs it before the last task of an undone `install` is through."""
    inspector = listen()

    async def main():
        loop = asyncio.get_running_loop()
        first = loop.create_future()
        with install():
            task = loop.create_task(waits_for(first))
            await soon()
            hearing = vars(loop)["call_soon"]
        assert vars(loop)["call_soon"] is not hearing
        if again == "install":
            undo = install()
        else:
            await instrument(waits_for(asyncio.sleep(0.001)))
        assert vars(loop)["call_soon"] is hearing
        first.set_result(None)
        await task
        await soon()
        assert vars(loop)["call_soon"] is hearing
        if again == "install":
            await loop.create_task(waits_for(asyncio.sleep(0.001)))
            undo()
            assert "call_soon" not in vars(loop)

    go(main)
    assert inspector.snapshot().names["waits_for"].wakes == 2


def test_a_wrapper_with_all_of_our_attributes_stays(factory, listen):
    """`functools.wraps` copies what we have set on ours; theirs is not ours for that."""
    listen()
    loop = factory()
    for _ in range(2):
        undo = install(loop)
        ours = loop.call_soon
        loop.call_soon = theirs = functools.wraps(ours)(lambda *args, ours=ours, **kwargs: ours(*args, **kwargs))
        undo()
        assert loop.call_soon is theirs
        assert loop.run_until_complete(asyncio.sleep(0, 7)) == 7
    loop.close()


def test_somebody_else_s_call_soon_over_one_that_is_leaving(listen):
    """It stays, and what is below goes on handing through."""
    inspector = listen()

    async def main():
        loop = asyncio.get_running_loop()
        with install():
            task = loop.create_task(waits_for(asyncio.sleep(0.001)))
            await soon()
        below = loop.call_soon

        def over(callback, *args, context=None):
            return below(callback, *args, context=context)

        loop.call_soon = over
        await task
        await soon()
        assert loop.call_soon is over

    asyncio.run(main())
    assert inspector.snapshot().names["waits_for"].wakes == 1


def test_undo_keeps_no_task_alive(listen):
    """A task under way that the program lets go of is collected, and counts as ended."""
    listen()

    async def main():
        loop = asyncio.get_running_loop()
        with install():
            task = loop.create_task(waits_for(loop.create_future()))
            await soon()
        assert "call_soon" in vars(loop)
        collected = weakref.ref(task)
        # Nothing but its own cycle holds it now.
        task._log_destroy_pending = False
        del task
        gc.collect()
        assert collected() is None
        await soon()
        assert "call_soon" not in vars(loop)

    asyncio.run(main())


def test_loops_are_not_kept_alive(factory, listen):
    """A loop that was heard goes when the application lets go of it."""
    listen()
    loop = factory()
    with install(loop):
        loop.run_until_complete(waits_for(asyncio.sleep(0)))
    undone = weakref.ref(loop)
    loop.close()
    del loop
    gc.collect()
    assert undone() is None
    loop = factory()
    loop.call_soon = functools.partial(loop.call_soon)
    install(loop)
    loop.run_until_complete(waits_for(asyncio.sleep(0)))
    never_undone = weakref.ref(loop)
    loop.close()
    del loop
    gc.collect()
    assert never_undone() is None


def test_call_soon_on_a_closed_loop(listen):
    """It raises what it raises without us."""
    loop = asyncio.new_event_loop()
    hear(loop)
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.call_soon(print)


def test_debug_mode_still_checks_threads(listen):
    """asyncio's debug mode notices a `call_soon` from a wrong thread."""
    caught = []

    async def main():
        loop = asyncio.get_running_loop()

        def wrong():
            try:
                loop.call_soon(print)
            except RuntimeError as error:
                caught.append(str(error))

        await asyncio.to_thread(wrong)

    run(main(), debug=True)
    assert caught == ["Non-thread-safe operation invoked on an event loop other than the current one"]


def test_call_soon_with_a_context(go, listen):
    """`context=` is handed on."""
    import contextvars

    listen()
    variable = contextvars.ContextVar("variable", default=0)
    context = contextvars.Context()
    context.run(variable.set, 7)
    seen = []

    async def main():
        with install():
            asyncio.get_running_loop().call_soon(lambda: seen.append(variable.get()), context=context)
            await asyncio.sleep(0)

    go(main)
    assert seen == [7]


def test_wakes_are_told_at_trace_level(listen, clock):
    """A wake is a record where level TRACE is on, with the time of the completion."""
    records = []

    class Keep(logging.Handler):
        accepts_spans = True

        def emit(self, record):
            records.append(record.asyncinspect)

    logger = logging.getLogger("asyncinspect")
    inspector = listen(clock=clock)
    logger.addHandler(Keep())
    logger.setLevel(5)

    async def main():
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(instrument(waits_for(future)))
        await soon()
        clock.advance(1)
        woken = clock.monotonic_ns()
        future.set_result(None)
        clock.advance(0.5)
        await task
        return woken

    woken = asyncio.run(main())
    (wake,) = [record for record in records if record["kind"] == "wake"]
    (resume,) = [record for record in records if record["kind"] == "resume"]
    assert (wake["t"], resume["t"]) == (woken, woken + 500_000_000)
    assert inspector.snapshot().names["waits_for"].wakes == 1


def test_nothing_is_left_of_what_was_driven_by_hand(go, listen):
    """Ids of tasks are forgotten with the drivers that were in them."""
    listen()

    async def main():
        for _ in range(10):
            await asyncio.create_task(waits_for(instrument(waits_for(asyncio.sleep(0)))))

    go(main)
    assert driven_by_hand == {}
