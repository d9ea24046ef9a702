"""`install()` changes nothing that asyncio programs can see of themselves.

Each scenario is a coroutine function that returns what it saw. It is run in a new event loop as it is, and again under
`install()` with a handler attached; results, exceptions with their tracebacks, warnings and what the loop reported have
to be equal. `make transparency` does the same with the test suites of other packages.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import inspect
import io
import logging
import re
import sys
import traceback
import warnings
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from asyncinspect_logging import AsyncInspectHandler, Inspector, install

uvloop = pytest.importorskip("uvloop")

Scenario = Callable[[], Coroutine[Any, Any, Any]]
SCENARIOS: list[Scenario] = []
left_open: list[Any] = []
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def scenario(function: Scenario) -> Scenario:
    SCENARIOS.append(function)
    return function


# -- what the scenarios are made of ----------------------------------------------------------------------------------


async def value(of: Any = 7) -> Any:
    return of


async def later(of: Any = 7, steps: int = 2) -> Any:
    for _ in range(steps):
        await asyncio.sleep(0)
    return of


async def failing(steps: int = 1) -> None:
    await asyncio.sleep(0)
    for _ in range(steps):
        await asyncio.sleep(0)
    raise ValueError("no such thing")


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


async def outer(coro: Awaitable[Any]) -> Any:
    return await coro


def text(error: BaseException | None) -> str:
    return "" if error is None else "".join(traceback.format_exception(error))


def seen(error: BaseException) -> tuple[str, str, str]:
    return type(error).__name__, repr(error.args), text(error)


async def what_it_raises(awaitable: Awaitable[Any]) -> tuple[str, str, str]:
    try:
        await awaitable
    except BaseException as error:
        return seen(error)
    return "nothing", "", ""


async def turn() -> None:
    """Let everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


# -- results and exceptions ------------------------------------------------------------------------------------------


@scenario
async def result_of_a_task() -> Any:
    task = asyncio.create_task(later([1, 2]))
    return await task, task.done(), task.result(), task.cancelled(), task.exception()


@scenario
async def result_without_a_step() -> Any:
    return (
        await asyncio.create_task(value(None)),
        await asyncio.create_task(value(())),
        await asyncio.create_task(value()),
    )


@scenario
async def result_that_is_an_exception() -> Any:
    return repr(await asyncio.create_task(value(StopIteration(3)))), repr(
        await asyncio.create_task(later(KeyError("k")))
    )


@scenario
async def exception_of_a_task() -> Any:
    task = asyncio.create_task(failing())
    raised = await what_it_raises(task)
    return raised, seen(task.exception() or ValueError("none")), await what_it_raises(task)


@scenario
async def exception_before_the_first_wait() -> Any:
    async def at_once() -> None:
        raise LookupError("at once")

    return await what_it_raises(asyncio.create_task(at_once()))


@scenario
async def exception_through_several_coroutines() -> Any:
    return await what_it_raises(asyncio.create_task(outer(outer(failing()))))


@scenario
async def exception_with_cause_and_context() -> Any:
    async def chained() -> None:
        try:
            await failing()
        except ValueError as error:
            raise RuntimeError("worse") from error

    async def in_handling() -> None:
        try:
            await failing()
        except ValueError:
            await asyncio.sleep(0)
            raise KeyError("key")  # noqa: B904 - the context is what is looked at

    return await what_it_raises(asyncio.create_task(chained())), await what_it_raises(
        asyncio.create_task(in_handling())
    )


@scenario
async def exception_handled_while_waiting() -> Any:
    async def handles() -> Any:
        try:
            raise ValueError("handled")
        except ValueError:
            await asyncio.sleep(0)
            during = text(sys.exception())
        return during, sys.exception()

    return await asyncio.create_task(handles())


@scenario
async def stop_iteration_becomes_runtime_error() -> Any:
    async def stops() -> None:
        await asyncio.sleep(0)
        raise StopIteration(5)

    return await what_it_raises(asyncio.create_task(stops()))


@scenario
async def stop_async_iteration() -> Any:
    async def stops() -> None:
        raise StopAsyncIteration(5)

    return await what_it_raises(asyncio.create_task(stops()))


@scenario
async def exception_of_a_future() -> Any:
    future = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(outer(future))
    await turn()
    future.set_exception(OSError(5, "input/output error"))
    return await what_it_raises(task)


@scenario
async def exception_nobody_asks_for() -> Any:
    task = asyncio.create_task(failing())
    await turn()
    del task
    gc.collect()


@scenario
async def bad_awaitable() -> Any:
    class Odd:
        def __await__(self) -> Generator[Any, Any, None]:
            yield "neither a future nor None"

    class Unsubscribed:
        def __await__(self) -> Generator[Any, Any, None]:
            yield asyncio.get_running_loop().create_future()

    async def odd() -> None:
        await Odd()

    async def unsubscribed() -> None:
        await Unsubscribed()

    return await what_it_raises(asyncio.create_task(odd())), await what_it_raises(asyncio.create_task(unsubscribed()))


@scenario
async def task_that_awaits_itself() -> Any:
    task: asyncio.Task[Any]

    async def itself() -> Any:
        return await task

    task = asyncio.create_task(itself())
    return await what_it_raises(task)


@scenario
async def not_a_coroutine() -> Any:
    return [
        await what_it_raises(_making(bad)) for bad in (7, asyncio.sleep, asyncio.get_running_loop().create_future())
    ]


async def _making(bad: Any) -> Any:
    return await asyncio.create_task(bad)


@scenario
async def exits() -> Any:
    async def leave() -> None:
        await asyncio.sleep(0)
        raise SystemExit(3)

    await asyncio.create_task(leave())


@scenario
async def exits_at_once() -> Any:
    async def leave() -> None:
        raise SystemExit("at once")

    await asyncio.create_task(leave())


@scenario
async def interrupts() -> Any:
    async def interrupt() -> None:
        await asyncio.sleep(0)
        raise KeyboardInterrupt

    try:
        await asyncio.create_task(interrupt())
    finally:
        await asyncio.sleep(0)


# -- cancellation ----------------------------------------------------------------------------------------------------


@scenario
async def cancelled_while_waiting() -> Any:
    task = asyncio.create_task(outer(for_ever()))
    await turn()
    accepted = task.cancel("enough"), task.cancelling()
    return accepted, await what_it_raises(task), task.cancelled(), task.cancelling(), task.cancel()


@scenario
async def cancelled_before_the_first_step() -> Any:
    ran = []

    async def never() -> None:
        ran.append(1)

    task = asyncio.create_task(never())
    task.cancel("too early")
    raised = await what_it_raises(task)
    del task
    gc.collect()
    return raised, ran


@scenario
async def cancelled_in_a_bare_yield() -> Any:
    task = asyncio.create_task(later(steps=100))
    await asyncio.sleep(0)
    task.cancel("between")
    return await what_it_raises(task)


@scenario
async def cancellation_refused() -> Any:
    async def stubborn() -> Any:
        try:
            await for_ever()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            assert task is not None
            return error.args, task.cancelling(), task.uncancel(), await later()

    task = asyncio.create_task(stubborn())
    await turn()
    task.cancel("please")
    return await task, task.cancelled(), task.cancelling()


@scenario
async def cancelled_twice() -> Any:
    log = []

    async def slow_to_go() -> None:
        for _ in range(2):
            try:
                await for_ever()
            except asyncio.CancelledError as error:
                log.append(error.args)
        raise asyncio.CancelledError("own")

    task = asyncio.create_task(slow_to_go())
    for message in ("first", "second"):
        await turn()
        task.cancel(message)
    return await what_it_raises(task), log


@scenario
async def cancelled_itself() -> Any:
    async def itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel("by myself")
        await asyncio.sleep(0)

    return await what_it_raises(asyncio.create_task(itself()))


@scenario
async def exception_while_cancelled() -> Any:
    async def breaks() -> None:
        try:
            await for_ever()
        finally:
            raise OSError("in finally")

    task = asyncio.create_task(breaks())
    await turn()
    task.cancel()
    return await what_it_raises(task)


@scenario
async def cancelled_through_the_awaited_future() -> Any:
    future = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(outer(future))
    await turn()
    future.cancel("the future")
    return await what_it_raises(task), task.cancelled()


# -- structures ------------------------------------------------------------------------------------------------------


@scenario
async def task_group() -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(later(n), name=f"child {n}") for n in range(3)]
    return [task.result() for task in tasks], [task.get_name() for task in tasks]


@scenario
async def task_group_with_a_failure() -> Any:
    siblings = []

    async def sibling() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError as error:
            siblings.append(error.args)
            raise

    async def group_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(sibling())
            group.create_task(failing(3))
            group.create_task(sibling())

    return await what_it_raises(group_of_them()), siblings


@scenario
async def exception_groups() -> Any:
    async def several() -> None:
        await asyncio.sleep(0)
        raise ExceptionGroup("several", [ValueError(1), ExceptionGroup("inner", [KeyError(2)])])

    handled = []
    try:
        await asyncio.create_task(several())
    except* KeyError as group:
        handled.append(repr(group))
    except* ValueError as group:
        handled.append(repr(group))
    return handled


@scenario
async def timeouts() -> Any:
    async def within() -> None:
        async with asyncio.timeout(0.001):
            await for_ever()

    expired = await what_it_raises(asyncio.create_task(within()))
    async with asyncio.timeout(30) as not_reached:
        found = await later()
    return expired, found, not_reached.expired()


@scenario
async def wait_for() -> Any:
    return (
        await asyncio.wait_for(later(), 30),
        await what_it_raises(asyncio.wait_for(for_ever(), 0.001)),
        await what_it_raises(asyncio.wait_for(failing(), 30)),
        await what_it_raises(asyncio.wait_for(for_ever(), 0)),
    )


@scenario
async def shield() -> Any:
    inside = asyncio.create_task(later(steps=8))
    outside = asyncio.create_task(outer(asyncio.shield(inside)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    outside.cancel()
    return await what_it_raises(outside), inside.cancelled(), await inside


@scenario
async def gather() -> Any:
    return (
        await asyncio.gather(later(1), value(2), later(3, steps=5)),
        [repr(found) for found in await asyncio.gather(later(1), failing(), return_exceptions=True)],
        await what_it_raises(asyncio.gather(later(1), failing())),
    )


@scenario
async def wait_and_as_completed() -> Any:
    tasks = [asyncio.create_task(later(n, steps=n)) for n in range(4)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    first = sorted(task.result() for task in done), len(pending)
    order = [await found for found in asyncio.as_completed([later(n, steps=4 - n) for n in range(4)])]
    await asyncio.wait(tasks)
    return first, order


@scenario
async def queues_locks_and_events() -> Any:
    queue: asyncio.Queue[int] = asyncio.Queue(1)
    lock, log = asyncio.Lock(), []

    async def produce() -> None:
        for n in range(3):
            await queue.put(n)
            log.append(f"put {n}")

    async def consume(name: str) -> None:
        async with lock:
            for _ in range(3 if name == "a" else 0):
                log.append(f"{name} got {await queue.get()}")

    await asyncio.gather(consume("a"), consume("b"), produce())
    return log


@scenario
async def order_of_steps() -> Any:
    log: list[tuple[str, int]] = []

    async def walk(name: str, steps: int) -> None:
        for step in range(steps):
            log.append((name, step))
            await asyncio.sleep(0)

    loop = asyncio.get_running_loop()
    loop.call_soon(log.append, ("callback", 0))
    tasks = [asyncio.create_task(walk(name, 3)) for name in "abc"]
    loop.call_soon(log.append, ("callback", 1))
    tasks[0].add_done_callback(lambda task: log.append(("done", 0)))
    await asyncio.gather(*tasks)
    return log


# -- what a task says of itself --------------------------------------------------------------------------------------


@scenario
async def names() -> Any:
    task, other = asyncio.create_task(later(), name="my name"), asyncio.create_task(later())
    found = task.get_name(), bool(re.fullmatch(r"Task-\d+", other.get_name()))
    task.set_name(17)
    await asyncio.gather(task, other)
    return found, task.get_name()


@scenario
async def coroutine_of_a_task() -> Any:
    async def local() -> None:
        await asyncio.sleep(0)

    task = asyncio.create_task(local())
    coro: Any = task.get_coro()
    before = _of(coro)
    await asyncio.sleep(0)
    between = _of(coro)
    await task
    return before, between, _of(coro), type(task).__name__, type(task).__module__


def _of(coro: Any) -> Any:
    # An eager task that is through has let go of its coroutine.
    return coro and (
        coro.__name__,
        coro.__qualname__,
        coro.cr_code.co_name,
        coro.cr_running,
        coro.cr_frame and coro.cr_frame.f_lineno,
        repr(coro),
        type(coro.cr_await).__name__,
        asyncio.iscoroutine(coro),
        inspect.isawaitable(coro),
        inspect.iscoroutine(coro),
        inspect.getcoroutinestate(coro),
        isinstance(coro, Coroutine),
    )


@scenario
async def repr_of_tasks() -> Any:
    future = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(outer(future), name="shown")
    waiter = asyncio.create_task(outer(task), name="waiter")
    found = [repr(task), repr(waiter)]
    await turn()
    found += [repr(task), repr(waiter), repr(future)]
    task.cancel()
    found.append(repr(task))
    await asyncio.wait([waiter])
    return [*found, repr(task), repr(waiter), repr(future)]


@scenario
async def repr_after_a_failure() -> Any:
    task = asyncio.create_task(failing())
    await asyncio.wait([task])
    return repr(task), repr(task.exception())


@scenario
async def stacks() -> Any:
    task = asyncio.create_task(outer(outer(for_ever())))
    await turn()
    printed = io.StringIO()
    task.print_stack(file=printed)
    found = [(frame.f_code.co_name, frame.f_lineno) for frame in task.get_stack()]
    task.cancel()
    await asyncio.wait([task])
    failed = asyncio.create_task(outer(failing()))
    await asyncio.wait([failed])
    failed.print_stack(file=printed)
    return found, printed.getvalue(), [frame.f_code.co_name for frame in failed.get_stack()], text(failed.exception())


@scenario
async def stack_of_the_running_task() -> Any:
    async def looks() -> Any:
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        # Between these and the loop's there is the frame of the driver: see `without_stack`.
        return [frame.f_code.co_name for frame in task.get_stack() if frame.f_code.co_filename == __file__][-1:]

    return await asyncio.create_task(looks())


@scenario
async def all_tasks_and_the_current_one() -> Any:
    async def looks() -> Any:
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        return task is asyncio.current_task(), task in asyncio.all_tasks(), len(asyncio.all_tasks()), task.get_name()

    return await asyncio.create_task(looks(), name="looks"), len(asyncio.all_tasks())


@scenario
async def callbacks_of_a_task() -> Any:
    log = []
    task = asyncio.create_task(later())

    def done(finished: asyncio.Task[Any]) -> None:
        log.append((finished is task, finished.result()))

    task.add_done_callback(done)
    await task
    await asyncio.sleep(0)
    return log


@scenario
async def waiter_and_callbacks_of_a_future() -> Any:
    future = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(outer(future))
    await turn()
    waited = task._fut_waiter is future, len(future._callbacks or ())  # type: ignore[attr-defined]
    future.set_result(1)
    return waited, await task


# -- context variables -----------------------------------------------------------------------------------------------


@scenario
async def context_variables() -> Any:
    async def sets() -> Any:
        before = variable.get()
        variable.set("by the task")
        await asyncio.sleep(0)
        return before, variable.get()

    variable.set("by the parent")
    return await asyncio.create_task(sets()), variable.get()


@scenario
async def context_given() -> Any:
    async def sets() -> Any:
        before = variable.get()
        variable.set("by the task")
        await asyncio.sleep(0)
        return before

    context = contextvars.copy_context()
    context.run(variable.set, "given")
    before = dict(context.items())
    found = await asyncio.create_task(sets(), context=context), context.get(variable), variable.get()
    context.run(variable.set, "given")
    return found, dict(context.items()) == before


@scenario
async def context_shared_by_two_tasks() -> Any:
    async def sets(text: str) -> Any:
        before = variable.get()
        variable.set(text)
        await turn()
        return before, variable.get()

    context = contextvars.copy_context()
    tasks = [asyncio.create_task(sets(text), context=context) for text in "ab"]
    return await asyncio.gather(*tasks), context.get(variable)


@scenario
async def context_of_callbacks_and_threads() -> Any:
    async def sets() -> Any:
        variable.set("in the task")
        found: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: found.append(variable.get()))
        loop.call_later(0, lambda: found.append(variable.get()))
        await asyncio.sleep(0.002)
        return found, await asyncio.to_thread(variable.get), await loop.run_in_executor(None, variable.get)

    return await asyncio.create_task(sets())


# -- async generators and iterators ----------------------------------------------------------------------------------


@scenario
async def async_generators() -> Any:
    log = []

    async def count() -> AsyncGenerator[int, None]:
        try:
            for n in range(5):
                await asyncio.sleep(0)
                yield n
        finally:
            await asyncio.sleep(0)
            log.append("closed")

    async def takes_some() -> Any:
        found = []
        async for n in count():
            found.append(n)
            if n == 2:
                break
        return found

    found = await asyncio.create_task(takes_some())
    gc.collect()
    await turn()
    async with contextlib.aclosing(count()) as numbers:
        first = await anext(numbers)
        raised = await what_it_raises(numbers.athrow(KeyError("thrown")))
    return found, first, raised, log


@scenario
async def async_generator_left_to_the_loop() -> Any:
    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            left_open.clear()

    numbers = endless()
    left_open.append(numbers)
    await anext(numbers)
    return await asyncio.create_task(outer(anext(numbers)))


# -- factories, debug mode, lifetime ---------------------------------------------------------------------------------


@scenario
async def factory_set_later() -> Any:
    made = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> Any:
        made.append((coro.__qualname__, sorted(key for key in kwargs if kwargs[key] is not None and key != "name")))
        return asyncio.Task(coro, loop=loop, **kwargs)

    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(factory)
    try:
        found = await asyncio.create_task(later(), name="made"), loop.get_task_factory() is factory
        await asyncio.create_task(value(), context=contextvars.copy_context())
    finally:
        loop.set_task_factory(before)
    return found, made, before is None


@scenario
async def factory_that_makes_python_tasks() -> Any:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    make: Any = asyncio.tasks._PyTask  # type: ignore[attr-defined]
    loop.set_task_factory(lambda loop, coro, **kwargs: make(coro, loop=loop, **kwargs))
    try:
        cancelled = asyncio.create_task(for_ever())
        early = asyncio.create_task(later())
        early.cancel("early")
        waiting = asyncio.create_task(outer(later()))
        failed = asyncio.create_task(failing())
        await turn()
        found = repr(cancelled)
        cancelled.cancel("message")
        raised = [await what_it_raises(task) for task in (cancelled, early, failed)]
        return found, raised, await waiting, type(waiting).__name__
    finally:
        loop.set_task_factory(before)


@scenario
async def debug_mode() -> Any:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    task = asyncio.create_task(failing())
    await asyncio.wait([task])
    source = task._source_traceback  # type: ignore[attr-defined]
    return (
        text(task.exception()),
        [(frame.name, frame.lineno) for frame in source][-2:],
        re.sub(r"created at \S+", "created at …", repr(task)),
        loop.get_debug(),
    )


@scenario
async def never_awaited() -> Any:
    coro = value()
    del coro
    gc.collect()


@scenario
async def pending_task_dropped() -> Any:
    async def waits() -> None:
        await loop.create_future()

    loop = asyncio.get_running_loop()
    task = asyncio.create_task(waits())
    await turn()
    del task
    gc.collect()


@scenario
async def nothing_is_kept_alive() -> Any:
    class Thing:
        pass

    async def holds(thing: Thing) -> None:
        await asyncio.sleep(0)

    thing = Thing()
    reference, task = weakref.ref(thing), asyncio.create_task(holds(thing))
    task_reference = weakref.ref(task)
    del thing
    await task
    through = reference() is None
    del task
    gc.collect()
    return through, task_reference() is None


@scenario
async def awaited_future_is_let_go() -> Any:
    async def waits() -> Any:
        future = asyncio.get_running_loop().create_future()
        reference = weakref.ref(future)
        asyncio.get_running_loop().call_soon(future.set_exception, OSError("gone"))
        try:
            await future
        except OSError:
            pass
        del future
        return reference() is None

    return await asyncio.create_task(waits())


@scenario
async def exception_thrown_in_is_let_go() -> Any:
    async def handles() -> Any:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, OSError("gone"))
        try:
            await future
        except OSError as error:
            kept = [error]
        del future
        return sorted(str(type(found)) for found in gc.get_referrers(kept[0]) if found is not kept)

    return await asyncio.create_task(handles())


@scenario
async def failure_is_let_go() -> Any:
    gc.collect()
    gc.disable()
    try:
        task = asyncio.create_task(failing())
        await asyncio.wait([task])
        error = task.exception()
        assert error is not None
        # An exception cannot be referenced weakly; what its frames hold can.
        held = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        code = [frame.f_code.co_name for frame in held]
        referrers = len([found for found in gc.get_referrers(error) if found is not sys._getframe()])
        return code, referrers
    finally:
        gc.enable()


@scenario
async def closed_by_hand() -> Any:
    log = []

    async def tidy() -> None:
        try:
            await for_ever()
        except GeneratorExit:
            log.append("closed")
            raise

    task = asyncio.create_task(tidy())
    await turn()
    coro: Any = task.get_coro()
    coro.close()
    found = log.copy(), inspect.getcoroutinestate(coro)
    task.cancel()
    # What is left of the task fails one way or the other, which is nobody's to rely on.
    await what_it_raises(task)
    return found


@scenario
async def run_coroutine_threadsafe() -> Any:
    loop = asyncio.get_running_loop()

    def from_a_thread() -> Any:
        found = asyncio.run_coroutine_threadsafe(later("there"), loop).result(10)
        try:
            asyncio.run_coroutine_threadsafe(failing(), loop).result(10)
        except ValueError as error:
            return found, error.args

    return await asyncio.to_thread(from_a_thread)


@scenario
async def generator_based_awaitables() -> Any:
    class Waits:
        def __await__(self) -> Generator[Any, Any, str]:
            yield
            yield from asyncio.sleep(0).__await__()
            return "waited"

    async def waits() -> Any:
        return await Waits()

    return await asyncio.create_task(waits()), await asyncio.ensure_future(Waits())


@scenario
async def streams_over_a_socket() -> Any:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    return answer


# -- running them ----------------------------------------------------------------------------------------------------


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


def loop_with_factory() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    # A name is made as create_task does, which 3.13.0 leaves to the factory.
    loop.set_task_factory(lambda loop, coro, **kwargs: asyncio.Task(coro, loop=loop, **kwargs))
    return loop


def debugging_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    return loop


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "debug": debugging_loop,
    "factory": loop_with_factory,
    "uvloop": uvloop.new_event_loop,
}
if sys.version_info >= (3, 12):
    LOOPS["eager"] = eager_loop

_VARYING = re.compile(r"0x[0-9a-f]+|Task-\d+|(?<=took )[\d.]+")


def steady(found: Any) -> Any:
    """The same without addresses and running numbers."""
    if isinstance(found, str):
        return _VARYING.sub("…", found)
    if isinstance(found, tuple | list):
        return [steady(part) for part in found]
    return found


def without_stack(warning: str) -> str:
    """A driver is on the stack while its coroutine runs. Whoever prints the stack of all calls under way, as asyncio's
    debug mode does for where a coroutine was made, sees it there; tracebacks, which begin where they are caught, and
    the stacks of waiting tasks do not show it. Of such a stack the last call is kept.
    """
    head, created, stack = warning.partition("Coroutine created at")
    return head + created + "\n".join(stack.splitlines()[-2:])


def outcome(
    function: Scenario, new_event_loop: Callable[[], asyncio.AbstractEventLoop], *, installed: bool
) -> dict[str, Any]:
    """What the scenario returned or raised, and everything that was said meanwhile."""
    reported: list[Any] = []
    unraisable: list[str] = []

    def report(loop: asyncio.AbstractEventLoop, told: dict[str, Any]) -> None:
        reported.append(
            [told.get("message"), text(told.get("exception")), repr(told.get("task") or told.get("future"))]
        )

    before, sys.unraisablehook = sys.unraisablehook, lambda told: unraisable.append(repr(told.exc_value))
    found: Any = None
    raised = ""
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                with asyncio.Runner(loop_factory=new_event_loop) as runner:
                    loop = runner.get_loop()
                    loop.set_exception_handler(report)
                    if installed:
                        install(loop)
                    found = runner.run(function())
            except BaseException as error:
                raised = text(error)
            gc.collect()
    finally:
        sys.unraisablehook = before
    said = sorted(without_stack(str(warning.message)) for warning in warned)
    return {
        "found": steady(found),
        "raised": steady(raised),
        "reported": steady(reported),
        "warned": steady(said),
        "unraisable": steady(unraisable),
    }


@pytest.fixture(scope="module", autouse=True)
def nothing_else_to_collect() -> Generator[None]:
    """The scenarios call the garbage collector a lot: all that was there before is none of its business."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.fixture
def heard() -> Generator[Inspector]:
    """An inspector that hears of all spans; nobody else does."""
    inspector, logger = Inspector(), logging.getLogger("asyncinspect")
    handler = AsyncInspectHandler(inspector)
    logger.addHandler(handler)
    try:
        yield inspector
    finally:
        logger.removeHandler(handler)
        handler.close()


@pytest.mark.parametrize("loop_name", LOOPS)
@pytest.mark.parametrize("function", SCENARIOS, ids=lambda function: function.__name__)
def test_same_outcome(function: Scenario, loop_name: str, heard: Inspector, caplog: pytest.LogCaptureFixture) -> None:
    """A scenario comes to the same with and without install(), and leaves no span open."""
    # What a loop logs of slow callbacks depends on the machine.
    caplog.set_level(logging.ERROR, "asyncio")
    # One line for both: the stacks that are compared begin here.
    plain, installed = (outcome(function, LOOPS[loop_name], installed=installed) for installed in (False, True))
    names = heard.snapshot().names
    assert installed == plain
    assert function.__name__ in names
    assert {name: view.live for name, view in names.items() if view.live} == {}


def test_undone_leaves_the_loop_as_it_was(heard: Inspector) -> None:
    """After undo the loop has nothing of ours, and is freed by reference counting alone."""
    for new_event_loop in LOOPS.values():
        loop = new_event_loop()
        attributes = set(vars(loop))
        undo = install(loop)
        undo()
        assert set(vars(loop)) == attributes
        loop.close()


@pytest.mark.parametrize("loop_name", ["asyncio", "uvloop"])
def test_loop_is_freed_when_closed(loop_name: str, heard: Inspector) -> None:
    """A closed loop under install() is freed as a plain one is, without the garbage collector."""

    def is_freed(installed: bool) -> bool:
        loop = LOOPS[loop_name]()
        if installed:
            install(loop)
        loop.run_until_complete(loop.create_task(later()))
        loop.close()
        reference = weakref.ref(loop)
        del loop
        return reference() is None

    gc.collect()
    gc.disable()
    try:
        assert is_freed(installed=True) == is_freed(installed=False)
    finally:
        gc.enable()


def test_scenarios_differ_from_each_other() -> None:
    """The comparison can see a difference: results, exceptions and warnings all show."""
    loop = asyncio.new_event_loop
    assert outcome(value, loop, installed=False)["found"] == 7
    assert "no such thing" in outcome(failing, loop, installed=False)["raised"]
    assert "never awaited" in outcome(never_awaited, loop, installed=False)["warned"][0]
    assert outcome(functools.partial(value, "Task-3 at 0x7f"), loop, installed=False)["found"] == "… at …"
