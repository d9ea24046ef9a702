"""Small asyncio programs, each with one fault or with none, for `bench_found.py`.

Those without a fault look like those that have one: the same locks, in the same order for all; the same long wait, with
a timeout. None knows of any tool, except that `made` may be told of a coroutine. Each lasts a second or two at most if
it ever ends, and can be cancelled at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NamedTuple

__all__ = ["CORRECT", "FAULTS", "FAULTY", "Program", "wrapper"]

#: Seconds of a wait that is long, several times the thresholds that tools are given, and of one that is short.
LONG = 1.0
SHORT = 0.02
#: Seconds of a step that is too long.
TOO_LONG = 0.4

FAULTS = (
    "deadlock",
    "blocked loop",
    "long poll",
    "never yielded",
    "self wakes",
    "lost waker",
    "leaked",
    "never awaited",
)


class Program(NamedTuple):
    """`fault`: one of FAULTS, or "" for a program that is right."""

    name: str
    fault: str
    main: Callable[[], Coroutine[Any, Any, object]]


FAULTY: list[Program] = []
CORRECT: list[Program] = []
#: What a tool that wants coroutines to be handed to it does with them.
wrapper: list[Callable[[Any], Any]] = []

_Main = Callable[[], Coroutine[Any, Any, object]]


def faulty(fault: str) -> Callable[[_Main], _Main]:
    def keep(main: _Main) -> _Main:
        FAULTY.append(Program(_title(main), fault, main))
        return main

    return keep


def correct(main: _Main) -> _Main:
    CORRECT.append(Program(_title(main), "", main))
    return main


def _title(main: _Main) -> str:
    return main.__name__.strip("_").replace("_", " ")


def made(coroutine: Any) -> Any:
    """A coroutine, handed to the tool if it has a use for it."""
    return wrapper[0](coroutine) if wrapper else coroutine


async def both(first: Any, second: Any, pause: float = SHORT) -> None:
    """Take the one, then the other."""
    async with first:
        await asyncio.sleep(pause)
        async with second:
            await asyncio.sleep(pause)


async def holding(lock: Any, job: Callable[[], Coroutine[Any, Any, object]]) -> None:
    async with lock:
        await job()


async def sleep_long() -> None:
    await asyncio.sleep(LONG)


def locks(count: int) -> list[asyncio.Lock]:
    return [asyncio.Lock() for _ in range(count)]


# -- deadlocks ---------------------------------------------------------------------------------------------------------


@faulty("deadlock")
async def two_locks_in_opposite_order() -> None:
    a, b = locks(2)
    await asyncio.gather(both(a, b), both(b, a))


@faulty("deadlock")
async def three_way_ring() -> None:
    ring = locks(3)
    await asyncio.gather(*(both(ring[i], ring[(i + 1) % 3]) for i in range(3)))


async def dine(seats: int) -> None:
    forks, room = locks(5), asyncio.Semaphore(seats)

    async def eat(seat: int) -> None:
        async with room:
            await both(forks[seat], forks[(seat + 1) % 5])

    await asyncio.gather(*(eat(seat) for seat in range(5)))


@faulty("deadlock")
async def dining_philosophers_with_five_seats() -> None:
    await dine(5)


async def await_each_other(how: Callable[[Any], Any]) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def wait_for_other(index: int) -> None:
        await asyncio.sleep(0)
        await how(tasks[1 - index])

    tasks += [asyncio.create_task(wait_for_other(index)) for index in range(2)]
    await asyncio.wait(tasks)


@faulty("deadlock")
async def two_tasks_that_await_each_other() -> None:
    # Through a shield: plain awaits in a circle cannot be cancelled, and the program is to end.
    await await_each_other(asyncio.shield)


@faulty("deadlock")
async def two_tasks_that_gather_each_other() -> None:
    await await_each_other(lambda task: asyncio.shield(asyncio.gather(task)))


@faulty("deadlock")
async def full_queues_between_two_workers() -> None:
    async def work(mine: asyncio.Queue[int], theirs: asyncio.Queue[int]) -> None:
        for number in range(10):
            await theirs.put(number)
            await theirs.put(number)
            await mine.get()

    a, b = asyncio.Queue[int](2), asyncio.Queue[int](2)
    await asyncio.gather(work(a, b), work(b, a))


@faulty("deadlock")
async def lock_held_by_a_finished_task() -> None:
    lock = asyncio.Lock()

    async def take() -> None:
        await lock.acquire()

    await asyncio.create_task(take())
    await asyncio.create_task(holding(lock, sleep_long))


@faulty("deadlock")
async def thread_lock_held_across_an_await() -> None:
    lock = threading.Lock()

    async def take() -> None:
        with contextlib.suppress(RuntimeError), lock:
            await asyncio.sleep(0)

    async def want() -> None:
        with lock:
            pass

    # Nothing else would let the program end.
    threading.Timer(2 * LONG, lock.release).start()
    await asyncio.gather(take(), want())


@faulty("deadlock")
async def semaphore_whose_holders_want_more() -> None:
    permits = asyncio.Semaphore(2)
    await asyncio.gather(both(permits, permits), both(permits, permits))


@faulty("deadlock")
async def lock_taken_twice_by_one_task() -> None:
    lock = asyncio.Lock()
    await both(lock, lock)


@faulty("deadlock")
async def group_that_wants_the_lock_of_its_parent() -> None:
    lock = asyncio.Lock()
    async with lock, asyncio.TaskGroup() as group:
        group.create_task(holding(lock, sleep_long))


@faulty("deadlock")
async def gather_under_a_lock_that_is_wanted() -> None:
    lock = asyncio.Lock()
    async with lock:
        await asyncio.gather(holding(lock, sleep_long), asyncio.sleep(0))


@faulty("deadlock")
async def lock_and_semaphore_in_opposite_order() -> None:
    lock, permit = asyncio.Lock(), asyncio.Semaphore(1)
    await asyncio.gather(both(lock, permit), both(permit, lock))


@faulty("deadlock")
async def transfers_between_accounts() -> None:
    accounts = locks(6)
    transfers = [(0, 1), (1, 2), (3, 4), (2, 5), (5, 1), (4, 0)]
    await asyncio.gather(*(both(accounts[source], accounts[target]) for source, target in transfers))


@faulty("deadlock")
async def worker_that_joins_its_own_queue() -> None:
    jobs: asyncio.Queue[int] = asyncio.Queue()

    async def work() -> None:
        await jobs.get()
        jobs.task_done()
        await jobs.get()
        await jobs.join()
        jobs.task_done()

    for number in range(2):
        jobs.put_nowait(number)
    await asyncio.create_task(work())


@faulty("deadlock")
async def two_events_each_set_after_the_other() -> None:
    a, b = asyncio.Event(), asyncio.Event()

    async def after(awaited: asyncio.Event, then: asyncio.Event) -> None:
        await awaited.wait()
        then.set()

    await asyncio.gather(after(a, b), after(b, a))


@correct
async def opposite_order_with_a_timeout() -> None:
    async def careful(first: Any, second: Any) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONG):
                await both(first, second)

    a, b = locks(2)
    await asyncio.gather(both(a, b), careful(b, a))


@correct
async def opposite_order_with_wait_for() -> None:
    async def careful(first: Any, second: Any) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(both(first, second), LONG)

    a, b = locks(2)
    await asyncio.gather(both(a, b), careful(b, a))


@correct
async def opposite_order_with_wait_and_cancel() -> None:
    a, b = locks(2)
    tasks = [asyncio.create_task(both(a, b)), asyncio.create_task(both(b, a))]
    await asyncio.sleep(5 * SHORT)
    tasks[0].cancel()
    await asyncio.wait(tasks)


@correct
async def opposite_order_at_different_times() -> None:
    a, b = locks(2)
    await asyncio.create_task(both(a, b))
    await asyncio.create_task(both(b, a))


@correct
async def the_same_order_for_all() -> None:
    a, b = locks(2)
    await asyncio.gather(*(both(a, b) for _ in range(10)))


@correct
async def second_lock_only_if_it_is_free() -> None:
    async def polite(first: asyncio.Lock, second: asyncio.Lock) -> None:
        async with first:
            await asyncio.sleep(SHORT)
            if not second.locked():
                async with second:
                    await asyncio.sleep(SHORT)

    a, b = locks(2)
    await asyncio.gather(both(a, b), polite(b, a))


@correct
async def dining_philosophers_with_four_seats() -> None:
    await dine(4)


@correct
async def slow_holder() -> None:
    lock = asyncio.Lock()
    await asyncio.gather(holding(lock, sleep_long), *(both(lock, asyncio.Lock(), 0.001) for _ in range(10)))


@correct
async def many_readers_and_a_writer() -> None:
    permits = asyncio.Semaphore(3)

    async def write() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(permits)

    readers = [holding(permits, lambda: asyncio.sleep(LONG / 4)) for _ in range(9)]
    await asyncio.gather(*readers, write())


@correct
async def lock_handed_on() -> None:
    lock = asyncio.Lock()
    await asyncio.gather(*(holding(lock, lambda: asyncio.sleep(LONG / 5)) for _ in range(5)))


@correct
async def lock_given_back_by_another_task() -> None:
    lock = asyncio.Lock()

    async def begin() -> None:
        await lock.acquire()

    async def finish() -> None:
        await asyncio.sleep(LONG)
        lock.release()

    await asyncio.create_task(begin())
    await asyncio.gather(finish(), holding(lock, lambda: asyncio.sleep(0)))


@correct
async def acquired_through_wait_for() -> None:
    lock = asyncio.Lock()
    await asyncio.wait_for(lock.acquire(), LONG)
    waiting = asyncio.create_task(holding(lock, lambda: asyncio.sleep(0)))
    await asyncio.sleep(LONG)
    lock.release()
    await waiting


@correct
async def cancelled_waiters() -> None:
    lock = asyncio.Lock()
    async with lock:
        waiting = [asyncio.create_task(both(lock, lock)) for _ in range(5)]
        await asyncio.sleep(SHORT)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        await sleep_long()


@correct
async def queue_consumer_that_waits_long() -> None:
    jobs: asyncio.Queue[int] = asyncio.Queue()

    async def consume() -> None:
        while True:
            await jobs.get()
            jobs.task_done()

    consumer = asyncio.create_task(consume())
    for number in range(3):
        await jobs.put(number)
        await asyncio.sleep(LONG / 3)
    await jobs.join()
    consumer.cancel()


@correct
async def full_queue_with_a_slow_consumer() -> None:
    jobs: asyncio.Queue[int] = asyncio.Queue(1)

    async def consume() -> None:
        for _ in range(4):
            await asyncio.sleep(LONG / 4)
            await jobs.get()

    async def produce() -> None:
        for number in range(4):
            await jobs.put(number)

    await asyncio.gather(consume(), produce())


@correct
async def event_that_is_set_late() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(LONG, event.set)
    await asyncio.gather(*(event.wait() for _ in range(5)))


@correct
async def condition_with_a_late_notifier() -> None:
    condition = asyncio.Condition()

    async def wait() -> None:
        async with condition:
            await condition.wait()

    async def notify() -> None:
        await asyncio.sleep(LONG)
        async with condition:
            condition.notify_all()

    await asyncio.gather(wait(), wait(), notify())


@correct
async def gather_and_group_of_slow_tasks() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(sleep_long())
        await asyncio.gather(sleep_long(), sleep_long())


@correct
async def shielded_work_under_a_lock() -> None:
    lock = asyncio.Lock()
    inner = asyncio.create_task(sleep_long())
    outer = asyncio.create_task(holding(lock, lambda: _shielded(inner)))
    await asyncio.sleep(SHORT)
    outer.cancel()
    await asyncio.wait([outer])
    await inner


async def _shielded(task: asyncio.Task[None]) -> None:
    await asyncio.shield(task)


# -- the event loop ----------------------------------------------------------------------------------------------------


@faulty("blocked loop")
async def callback_that_sleeps() -> None:
    asyncio.get_running_loop().call_later(SHORT, time.sleep, TOO_LONG)
    await asyncio.sleep(5 * SHORT)


@faulty("blocked loop")
async def reader_that_sleeps() -> None:
    loop = asyncio.get_running_loop()
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)

        def read() -> None:
            here.recv(10)
            time.sleep(TOO_LONG)

        loop.add_reader(here, read)
        await asyncio.sleep(SHORT)
        there.send(b"x")
        await asyncio.sleep(5 * SHORT)
        loop.remove_reader(here)


def compute(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(100))


@faulty("long poll")
async def blocking_sleep() -> None:
    await asyncio.sleep(SHORT)
    time.sleep(TOO_LONG)  # noqa: ASYNC251 - on purpose
    await asyncio.sleep(SHORT)


@faulty("long poll")
async def long_computation() -> None:
    await asyncio.sleep(SHORT)
    compute(TOO_LONG)
    await asyncio.sleep(SHORT)


@faulty("long poll")
async def blocking_subprocess() -> None:
    await asyncio.sleep(SHORT)
    subprocess.run([sys.executable, "-Sc", f"import time; time.sleep({TOO_LONG})"], check=True)  # noqa: ASYNC221 - on purpose
    await asyncio.sleep(SHORT)


@faulty("never yielded")
async def task_that_only_computes() -> None:
    async def job() -> None:
        compute(TOO_LONG)

    await asyncio.create_task(job())


@faulty("never yielded")
async def coroutine_without_an_await() -> None:
    async def job() -> None:
        for _ in range(4):
            time.sleep(TOO_LONG / 4)  # noqa: ASYNC251 - on purpose

    await asyncio.gather(job(), asyncio.sleep(SHORT))


@correct
async def blocking_sleep_in_a_thread() -> None:
    await asyncio.to_thread(time.sleep, TOO_LONG)


@correct
async def thread_lock_of_a_slow_thread() -> None:
    lock = threading.Lock()

    def work() -> None:
        with lock:
            time.sleep(TOO_LONG)

    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(3)))


@correct
async def many_threads() -> None:
    await asyncio.gather(*(asyncio.to_thread(time.sleep, TOO_LONG) for _ in range(4)))


@correct
async def computation_in_slices() -> None:
    for _ in range(20):
        compute(SHORT)
        await asyncio.sleep(0)


@correct
async def asynchronous_subprocess() -> None:
    arguments = (sys.executable, "-Sc", f"import time; time.sleep({TOO_LONG})")
    process = await asyncio.create_subprocess_exec(*arguments)
    await process.wait()


# -- wakes -------------------------------------------------------------------------------------------------------------


@faulty("self wakes")
async def spinning_on_a_flag() -> None:
    flag = asyncio.Event()
    asyncio.get_running_loop().call_later(TOO_LONG, flag.set)
    while not flag.is_set():  # noqa: ASYNC110 - on purpose
        await asyncio.sleep(0)


@faulty("self wakes")
async def spinning_on_a_queue() -> None:
    jobs: asyncio.Queue[int] = asyncio.Queue()
    asyncio.get_running_loop().call_later(TOO_LONG, jobs.put_nowait, 1)
    while True:
        try:
            jobs.get_nowait()
            return
        except asyncio.QueueEmpty:
            await asyncio.sleep(0)


@correct
async def asking_now_and_then() -> None:
    flag = asyncio.Event()
    asyncio.get_running_loop().call_later(LONG, flag.set)
    while not flag.is_set():  # noqa: ASYNC110 - on purpose
        await asyncio.sleep(SHORT)


@correct
async def letting_others_run_now_and_then() -> None:
    jobs: asyncio.Queue[int] = asyncio.Queue(1)

    async def consume() -> None:
        for number in range(800):
            await jobs.get()
            if number % 4 == 0:
                await asyncio.sleep(0)

    async def produce() -> None:
        for number in range(800):
            await jobs.put(number)

    await asyncio.gather(consume(), produce())


# -- futures -----------------------------------------------------------------------------------------------------------

_pending: dict[str, asyncio.Future[None]] = {}


async def answer(key: str) -> None:
    """Wait for whoever completes the future of a key."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    _pending[key] = future
    try:
        await future
    finally:
        _pending.pop(key, None)


@faulty("lost waker")
async def future_that_nobody_else_knows() -> None:
    async def ask() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await future

    await asyncio.create_task(ask())


@faulty("lost waker")
async def future_replaced_by_a_later_one() -> None:
    first = asyncio.create_task(answer("the same"))
    second = asyncio.create_task(answer("the same"))
    await asyncio.sleep(SHORT)
    _pending["the same"].set_result(None)
    await asyncio.wait([first, second])


@faulty("lost waker")
async def lost_inside_an_async_generator() -> None:
    async def rows() -> AsyncIterator[None]:
        yield None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await future

    async def read() -> None:
        async for _ in rows():
            pass

    await asyncio.create_task(read())


@faulty("lost waker")
async def lost_in_an_object_of_the_task() -> None:
    class Request:
        def __init__(self) -> None:
            self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ask() -> None:
        request = Request()
        await request.answer

    await asyncio.create_task(ask())


@correct
async def future_completed_by_another_task() -> None:
    waiting = asyncio.create_task(answer("answered"))
    await asyncio.sleep(LONG)
    _pending["answered"].set_result(None)
    await waiting


@correct
async def future_completed_by_a_timer() -> None:
    async def ask() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(LONG, future.set_result, None)
        await future

    await asyncio.create_task(ask())


@correct
async def future_completed_by_a_thread() -> None:
    async def ask() -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        threading.Timer(LONG, loop.call_soon_threadsafe, (future.set_result, None)).start()
        await asyncio.shield(future)

    await asyncio.create_task(ask())


@correct
async def future_with_a_timeout() -> None:
    async def ask() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONG):
                await asyncio.get_running_loop().create_future()

    await asyncio.create_task(ask())


@correct
async def waiting_for_ever_on_purpose() -> None:
    waiting = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(LONG)
    waiting.cancel()


@correct
async def stream_that_is_silent() -> None:
    here, there = socket.socketpair()
    with there:
        reader, writer = await asyncio.open_connection(sock=here)
        reading = asyncio.create_task(reader.read(10))
        await asyncio.sleep(LONG)
        there.send(b"x")
        await reading
        writer.close()


# -- tasks that are left behind ----------------------------------------------------------------------------------------

_background: set[asyncio.Task[Any]] = set()


async def in_a_request(handle: Callable[[], object]) -> None:
    """Let a task that is soon over do something, and wait."""

    async def request() -> None:
        handle()

    await asyncio.create_task(request())
    await asyncio.sleep(LONG)


@faulty("leaked")
async def sleeper_that_nobody_keeps() -> None:
    await in_a_request(lambda: asyncio.create_task(asyncio.sleep(2 * LONG)))


@faulty("leaked")
async def consumer_that_nobody_keeps() -> None:
    jobs: asyncio.Queue[int] = asyncio.Queue()
    await in_a_request(lambda: asyncio.create_task(jobs.get()))
    jobs.put_nowait(1)


@faulty("leaked")
async def task_that_is_collected() -> None:
    async def lost() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await future

    asyncio.create_task(lost())  # noqa: RUF006 - on purpose
    await asyncio.sleep(SHORT)
    gc.collect()
    await asyncio.sleep(SHORT)


@faulty("leaked")
async def sleeper_with_a_timeout_that_nobody_keeps() -> None:
    async def refresh() -> None:
        async with asyncio.timeout(3 * LONG):
            await asyncio.sleep(2 * LONG)

    await in_a_request(lambda: asyncio.create_task(refresh()))


@correct
async def background_tasks_that_are_kept() -> None:
    def begin() -> None:
        task = asyncio.create_task(asyncio.sleep(LONG))
        _background.add(task)
        task.add_done_callback(_background.discard)

    await in_a_request(begin)


@correct
async def task_that_is_soon_over() -> None:
    await in_a_request(lambda: asyncio.create_task(asyncio.sleep(SHORT)))


@correct
async def child_awaited_by_another_task() -> None:
    left: list[asyncio.Task[None]] = []

    async def collect() -> None:
        await asyncio.sleep(SHORT)
        await left.pop()

    collecting = asyncio.create_task(collect())
    await in_a_request(lambda: left.append(asyncio.create_task(asyncio.sleep(LONG))))
    await collecting


@correct
async def task_with_a_callback() -> None:
    done: list[object] = []
    await in_a_request(lambda: asyncio.create_task(asyncio.sleep(LONG)).add_done_callback(done.append))


@correct
async def task_cancelled_before_it_began() -> None:
    task = asyncio.create_task(asyncio.sleep(LONG))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


# -- coroutines --------------------------------------------------------------------------------------------------------


@faulty("never awaited")
async def plain_coroutine_that_is_dropped() -> None:
    sleep_long()  # type: ignore[unused-coroutine]
    await asyncio.sleep(SHORT)


@faulty("never awaited")
async def coroutine_that_is_handed_on_and_dropped() -> None:
    coroutine = made(sleep_long())
    await asyncio.sleep(SHORT)
    del coroutine


@correct
async def coroutine_that_is_closed() -> None:
    coroutine = made(sleep_long())
    await asyncio.sleep(SHORT)
    coroutine.close()


@correct
async def generator_that_is_broken_off() -> None:
    async def numbers() -> AsyncIterator[int]:
        for number in range(10):
            await asyncio.sleep(0)
            yield number

    async for number in numbers():
        if number == 3:
            break
    await asyncio.sleep(SHORT)
