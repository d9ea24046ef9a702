"""Deadlocks: known programs that have one, as many that look like it and have none, and random ones against a model.

Nothing here sleeps for luck: the loop is stepped until nothing moves any more, and the inspector looks by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import re
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, install, span
from asyncinspect_logging.detect import sync
from asyncinspect_logging.detect.awaited import tasks_awaiting_tasks
from asyncinspect_logging.detect.deadlocks import cores_of, dead_among
from asyncinspect_logging.snapshot import Finding

Program = Coroutine[Any, Any, Any]


@pytest.fixture(autouse=True)
def _no_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tests look."""
    monkeypatch.setattr("asyncinspect_logging.inspector.watch", lambda inspector: None)


@pytest.fixture
def inspector(listen: Callable[..., Inspector]) -> Inspector:
    return listen(Config.debug())


async def settle(steps: int = 30) -> None:
    """Let everything that can move do so."""
    for _ in range(steps):
        await asyncio.sleep(0)


async def end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()


def deadlocks_of(inspector: Inspector) -> tuple[Finding, ...]:
    """Those that are there; the program may have other faults."""
    return tuple(found for found in inspector.snapshot(tasks=False).findings if found.kind == "deadlock")


class Seen(list[Finding]):
    """The deadlocks of a program, and the texts of those that were there no more when its tasks had ended."""

    dissolved: int

    @property
    def names(self) -> set[str]:
        """Of the spans in them."""
        return {name for finding in self for name in re.findall(r"\(span (\S+) [0-9a-f]{16}\)", finding.message)}


def run(inspector: Inspector, make: Callable[[], list[Program]], *, looks: int = 2) -> Seen:
    """The deadlocks found in a program of several tasks under `install(sync=True)`, looked at once it stands still."""
    seen = Seen()

    async def main() -> None:
        with install(sync=True):
            tasks = [asyncio.create_task(program) for program in make()]
            await settle()
            for _ in range(looks):
                inspector.look()
            seen.extend(deadlocks_of(inspector))
            await end(tasks)
            inspector.look()
            seen.dissolved = len(seen) - len(deadlocks_of(inspector))

    asyncio.run(main())
    return seen


async def both(name: str, first: Any, second: Any) -> None:
    """Take the one, then the other."""
    with span(name):
        async with first:
            await asyncio.sleep(0)
            async with second:
                pass


# -- known deadlocks -------------------------------------------------------------------------------------------------


def opposite() -> list[Program]:
    a, b = asyncio.Lock(), asyncio.Lock()
    return [both("one", a, b), both("two", b, a)]


def test_two_locks_in_opposite_order(inspector: Inspector) -> None:
    """One deadlock, with both spans, both locks, four records as evidence, where each waits and took, and advice."""
    (found,) = seen = run(inspector, opposite)
    assert found.kind == "deadlock"
    assert len(found.span_ids) == 2
    assert seen.names == {"one", "two"}
    assert [part.split(":")[1] for part in found.evidence] == ["wait", "acquire", "wait", "acquire"]
    took, waits = both.__code__.co_firstlineno + 3, both.__code__.co_firstlineno + 5
    assert found.message.count(f"waits at {__file__}:{waits} for lock") == 2
    assert found.message.count(f"at {__file__}:{took}") == 2
    assert "same order" in found.message
    assert inspector.snapshot(tasks=False).deadlocks == 1
    assert seen.dissolved == 1


def test_drop_in_classes_need_no_install(inspector: Inspector) -> None:
    """By their names, and without any patch of asyncio."""

    async def main() -> tuple[Finding, ...]:
        a, b = sync.Lock(name="a"), sync.Lock(name="b")
        tasks = [asyncio.create_task(both("one", a, b)), asyncio.create_task(both("two", b, a))]
        await settle()
        inspector.look()
        inspector.look()
        found = deadlocks_of(inspector)
        assert sync.holders_of(a) == ["one"]
        await end(tasks)
        assert sync.holders_of(a) == []
        return found

    (found,) = asyncio.run(main())
    assert "for lock 'a', taken by task both (span one)" in found.message
    assert "for lock 'b'" in found.message


def test_it_is_confirmed_before_it_is_told(inspector: Inspector) -> None:
    """Nothing after one look; one callback, one ERROR record and one count, however often one looks again."""
    heard: list[Finding] = []
    inspector.on_deadlock(heard.append)

    async def main() -> None:
        with install(sync=True):
            tasks = [asyncio.create_task(program) for program in opposite()]
            await settle()
            inspector.look()
            assert heard == []
            for _ in range(5):
                inspector.look()
            assert len(heard) == 1
            await end(tasks)

    asyncio.run(main())
    assert inspector.snapshot().deadlocks == 1


def test_a_deadlock_that_dissolves_is_untold(inspector: Inspector, caplog: pytest.LogCaptureFixture) -> None:
    """It leaves the findings, and one INFO line says so; the counter stays."""
    with caplog.at_level(logging.INFO, "asyncinspect.findings"):
        seen = run(inspector, opposite)
    assert seen.dissolved == 1
    told = [record for record in caplog.records if "deadlock: " in record.getMessage()]
    assert [record.levelname for record in told] == ["ERROR", "INFO"]
    assert told[1].getMessage() == "no longer: " + seen[0].message
    assert inspector.snapshot().deadlocks == 1


def test_after_a_reset_it_is_found_again(inspector: Inspector) -> None:
    """Nothing is remembered as told, and who waits still does."""

    async def main() -> None:
        with install(sync=True):
            tasks = [asyncio.create_task(program) for program in opposite()]
            await settle()
            inspector.look()
            inspector.look()
            inspector.reset()
            inspector.look()
            inspector.look()
            assert inspector.snapshot(tasks=False).deadlocks == 1
            await end(tasks)

    asyncio.run(main())


def test_three_way_ring(inspector: Inspector) -> None:
    """One deadlock of three."""

    def ring() -> list[Program]:
        locks = [asyncio.Lock() for _ in range(3)]
        return [both(f"r{i}", locks[i], locks[(i + 1) % 3]) for i in range(3)]

    (_,) = seen = run(inspector, ring)
    assert seen.names == {"r0", "r1", "r2"}


def philosophers(seats: int) -> Callable[[], list[Program]]:
    async def eat(name: str, room: Any, left: Any, right: Any) -> None:
        async with room:
            await both(name, left, right)

    def make() -> list[Program]:
        forks, room = [asyncio.Lock() for _ in range(5)], asyncio.Semaphore(seats)
        return [eat(f"p{i}", room, forks[i], forks[(i + 1) % 5]) for i in range(5)]

    return make


def test_dining_philosophers(inspector: Inspector) -> None:
    """With five seats they starve; with four, one of them always eats."""
    (_,) = seen = run(inspector, philosophers(5))
    assert seen.names == {f"p{i}" for i in range(5)}
    assert run(inspector, philosophers(4)) == []


def test_semaphore_whose_holders_all_want_more(inspector: Inspector) -> None:
    """Two permits, two tasks that have one each and want a second."""

    def greedy() -> list[Program]:
        permits = asyncio.Semaphore(2)
        return [both("one", permits, permits), both("two", permits, permits)]

    (_,) = seen = run(inspector, greedy)
    assert seen.names == {"one", "two"}


def test_lock_taken_twice_by_one_task(inspector: Inspector) -> None:
    """asyncio's lock is not re-entrant."""

    def twice() -> list[Program]:
        lock = asyncio.Lock()
        return [both("again", lock, lock)]

    (found,) = run(inspector, twice)
    assert "cannot take it twice" in found.message
    assert len(found.span_ids) == 1


def awaiting(how: Callable[[Any], Any]) -> Callable[[], list[Program]]:
    """Two tasks, each of which waits for the other one, as `how` makes it."""

    def make() -> list[Program]:
        tasks: list[Any] = []

        async def wait_for_other(index: int) -> None:
            with span(f"w{index}"):
                tasks.append(asyncio.current_task())
                await asyncio.sleep(0)
                await how(tasks[1 - index])

        return [wait_for_other(0), wait_for_other(1)]

    return make


@pytest.mark.parametrize(
    "how",
    [asyncio.shield, lambda task: asyncio.shield(asyncio.gather(task))],
    ids=["shield", "gather"],
)
def test_two_tasks_await_each_other(inspector: Inspector, how: Callable[[Any], Any]) -> None:
    """No primitive is involved, and still it is found."""
    (found,) = seen = run(inspector, awaiting(how))
    assert seen.names == {"w0", "w1"}
    assert "not await the other" in found.message


async def in_wait(task: Any) -> None:
    await asyncio.wait([task])


@pytest.mark.parametrize("sync_too", [False, True])
def test_two_tasks_wait_for_each_other_by_wait(inspector: Inspector, sync_too: bool) -> None:
    """Nothing but `asyncio.wait` is in it, whose future is like any other."""

    async def main() -> None:
        with install(sync=sync_too):
            tasks = [asyncio.create_task(program) for program in awaiting(in_wait)()]
            await settle()
            inspector.look()
            inspector.look()
            (found,) = deadlocks_of(inspector)
            assert found.message.count("waits for task awaiting") == 2
            await end(tasks)

    asyncio.run(main())


def test_a_child_waits_for_its_group(inspector: Inspector) -> None:
    """The parent waits for the child in a TaskGroup, and the child for the parent."""

    async def parent() -> None:
        with span("parent"):
            await in_group(child(asyncio.current_task()))

    async def child(above: Any) -> None:
        with span("child"):
            await in_wait(above)

    (_,) = seen = run(inspector, lambda: [parent()])
    assert seen.names == {"parent", "child"}


def test_groups_in_groups_are_not_looked_at(inspector: Inspector) -> None:
    """A tree of tasks is no circle, however deep, and nothing is to be found from there."""

    async def grow(depth: int) -> None:
        if depth == 0:
            await asyncio.Event().wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(grow(depth - 1))
            group.create_task(in_wait(group.create_task(grow(depth - 1))))

    async def main() -> None:
        tasks = [asyncio.create_task(grow(3))]
        await settle()
        assert tasks_awaiting_tasks() == []
        await end(tasks)

    asyncio.run(main())


def test_two_tasks_await_each_other_plainly(inspector: Inspector) -> None:
    """The loop is dropped as it is: to cancel either task, asyncio would go round in circles."""

    async def main() -> None:
        with install():
            tasks = [asyncio.create_task(program) for program in awaiting(lambda task: task)()]
            await settle()
            inspector.look()
            inspector.look()
            (found,) = deadlocks_of(inspector)
            assert found.message.count("waits for task awaiting") == 2
            for task in tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    gc.collect()
    inspector.look()
    assert deadlocks_of(inspector) == ()


async def holding(name: str, lock: Any, wait: Callable[[], Any]) -> None:
    """Wait for something while holding a lock."""
    with span(name):
        async with lock:
            await wait()


async def in_group(program: Program) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(program)


@pytest.mark.parametrize(
    "wait",
    [lambda program: asyncio.gather(program, asyncio.sleep(0)), in_group, asyncio.create_task],
    ids=["gather", "TaskGroup", "task"],
)
def test_lock_held_while_awaiting_a_task_that_wants_it(inspector: Inspector, wait: Callable[[Any], Any]) -> None:
    """The child waits for the lock, and the parent for the child."""

    async def parent() -> None:
        lock = asyncio.Lock()
        await holding("parent", lock, lambda: wait(holding("child", lock, lambda: asyncio.sleep(0))))

    (found,) = seen = run(inspector, lambda: [parent()])
    assert seen.names == {"parent", "child"}
    assert "Do not await a task while holding" in found.message


def test_full_queue_between_two_workers(inspector: Inspector) -> None:
    """Each puts for the other into a queue that is full, and so neither comes to take."""

    async def work(mine: Any, theirs: Any) -> None:
        for i in range(10):
            await theirs.put(i)
            await theirs.put(i)
            await mine.get()

    def workers() -> list[Program]:
        a, b = asyncio.Queue[int](2), asyncio.Queue[int](2)
        return [work(a, b), work(b, a)]

    (found,) = run(inspector, workers)
    assert "for queue put" in found.message
    assert "which has been served by task" in found.message
    assert "queue room" in found.message


def test_lock_held_by_a_finished_task(inspector: Inspector) -> None:
    """It was never given back."""

    async def take(lock: asyncio.Lock) -> None:
        await lock.acquire()

    async def want(lock: asyncio.Lock) -> None:
        await asyncio.sleep(0)
        async with lock:
            pass

    def forgotten() -> list[Program]:
        lock = asyncio.Lock()
        return [take(lock), want(lock), want(lock)]

    (found,) = run(inspector, forgotten)
    assert "has ended without giving it back" in found.message
    assert "1 more wait because of that" in found.message


def test_who_waits_behind_is_counted(inspector: Inspector) -> None:
    """Not part of the cycle, but stuck because of it."""

    def queue_up() -> list[Program]:
        a, b, c = asyncio.Lock(), asyncio.Lock(), asyncio.Lock()
        return [both("one", a, b), both("two", b, a), both("three", c, a), both("four", a, c)]

    (found,) = seen = run(inspector, queue_up)
    assert seen.names == {"one", "two"}
    assert "2 more wait because of that" in found.message


def test_two_deadlocks_are_two(inspector: Inspector) -> None:
    """They have nothing to do with each other."""
    assert len(run(inspector, lambda: opposite() + opposite())) == 2


# -- near misses -----------------------------------------------------------------------------------------------------


def test_a_wait_with_a_timeout_is_no_deadlock(inspector: Inspector) -> None:
    """Whichever way the timeout is set."""

    async def timeout(a: Any, b: Any) -> None:
        async with asyncio.timeout(60):
            await both("timeout", a, b)

    async def wait_for(a: Any, b: Any) -> None:
        await asyncio.wait_for(both("wait_for", a, b), 60)

    async def wait(a: Any, b: Any) -> None:
        with span("outer"):
            async with a:
                await asyncio.sleep(0)
                task = asyncio.create_task(both("wait", b, a))
                await asyncio.wait([task], timeout=60)
                task.cancel()

    async def by_hand(a: Any, b: Any) -> None:
        task = asyncio.current_task()
        timer = asyncio.get_running_loop().call_later(60, lambda: task.cancel())  # type: ignore[union-attr]
        try:
            await both("by hand", a, b)
        finally:
            timer.cancel()

    async def anyio_scope(a: Any, b: Any) -> None:
        import anyio

        with anyio.move_on_after(60):
            await both("scope", a, b)

    for careful in (timeout, wait_for, wait, by_hand, anyio_scope):

        def make(careful: Any = careful) -> list[Program]:
            a, b = asyncio.Lock(), asyncio.Lock()
            return [both("plain", a, b), careful(b, a)]

        assert run(inspector, make) == [], careful.__name__
    assert len(run(inspector, opposite)) == 1


def test_a_timeout_that_has_been_left_counts_no_more(inspector: Inspector) -> None:
    """It was around something else."""

    async def before(a: Any, b: Any) -> None:
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        await both("late", a, b)

    def make() -> list[Program]:
        a, b = asyncio.Lock(), asyncio.Lock()
        return [before(b, a), both("plain", a, b)]

    assert len(run(inspector, make)) == 1


async def _plainly(program: Program) -> None:
    await program


async def _in_task(program: Program) -> None:
    await asyncio.create_task(program)


async def _gathered(program: Program) -> None:
    await asyncio.gather(program)


async def _shielded(program: Program) -> None:
    await asyncio.shield(program)


@pytest.mark.parametrize("limit", ["timeout", "wait_for"])
@pytest.mark.parametrize("inside", [_plainly, _in_task, _gathered, in_group, _shielded])
def test_a_timeout_around_a_task_that_is_awaited(inspector: Inspector, inside: Any, limit: str) -> None:
    """It takes along what is awaited, in whatever task that runs; a shield keeps it from that."""

    async def both_at(gate: asyncio.Event, first: Any, second: Any) -> None:
        async with first:
            await gate.wait()
            async with second:
                pass

    async def limited(job: Program) -> None:
        program = inside(job)
        if limit == "wait_for":
            await asyncio.wait_for(program, 60)
        else:
            async with asyncio.timeout(60):
                await program

    async def main() -> None:
        with install(sync=True):
            a, b, gate = asyncio.Lock(), asyncio.Lock(), asyncio.Event()
            tasks = [asyncio.create_task(both_at(gate, a, b)), asyncio.create_task(limited(both_at(gate, b, a)))]
            await settle()
            assert a.locked()
            assert b.locked()
            gate.set()
            await settle()
            assert not any(task.done() for task in tasks)
            inspector.look()
            inspector.look()
            seen.extend(deadlocks_of(inspector))
            await end([*asyncio.all_tasks() - {asyncio.current_task()}])

    seen = Seen()
    asyncio.run(main())
    assert len(seen) == (inside is _shielded)


def test_try_lock(inspector: Inspector) -> None:
    """Who only takes the second if it is free, waits for nothing."""

    async def polite(a: Any, b: Any) -> None:
        async with a:
            while b.locked():  # noqa: ASYNC110 - what is tested
                await asyncio.sleep(0)
            async with b:
                pass

    def make() -> list[Program]:
        a, b = asyncio.Lock(), asyncio.Lock()
        return [both("one", a, b), polite(b, a)]

    assert run(inspector, make) == []


def test_slow_holder(inspector: Inspector) -> None:
    """One holds the lock for long, and many wait: that is slow, and no deadlock. Nor is a future of somebody else."""

    def make() -> list[Program]:
        lock, never = asyncio.Lock(), asyncio.get_running_loop().create_future()
        slow = holding("slow", lock, lambda: asyncio.sleep(60))
        other, foreign = asyncio.Lock(), holding("foreign", asyncio.Lock(), lambda: never)
        return [slow, foreign] + [both(f"r{i}", lock, other) for i in range(10)]

    assert run(inspector, make) == []


def test_many_readers(inspector: Inspector) -> None:
    """Of several who have a permit, one that goes on is enough."""

    def make() -> list[Program]:
        permits, lock = asyncio.Semaphore(3), asyncio.Lock()
        readers = [both(f"r{i}", permits, lock) for i in range(5)]
        return [holding("reader", permits, lambda: asyncio.sleep(60)), *readers, both("writer", lock, permits)]

    assert run(inspector, make) == []


def test_cancelled_waiter(inspector: Inspector) -> None:
    """Who was cancelled waits no more."""

    async def main() -> None:
        with install(sync=True):
            tasks = [asyncio.create_task(program) for program in opposite()]
            await settle()
            inspector.look()
            tasks[1].cancel()
            inspector.look()
            await settle()
            inspector.look()
            inspector.look()
            assert tasks[0].done()
            await end(tasks)

    asyncio.run(main())
    assert inspector.snapshot().deadlocks == 0


def test_lock_handed_on(inspector: Inspector) -> None:
    """From one to the next, and the wait of the third is a wait for the second."""

    async def main() -> None:
        with install(sync=True):
            lock, gates = asyncio.Lock(), [asyncio.Event() for _ in range(3)]
            tasks = [asyncio.create_task(holding(f"h{i}", lock, gate.wait)) for i, gate in enumerate(gates)]
            for gate in gates:
                await settle()
                inspector.look()
                inspector.look()
                gate.set()
            await asyncio.wait(tasks)

    asyncio.run(main())
    assert inspector.snapshot().deadlocks == 0


def test_lock_that_another_task_gives_back(inspector: Inspector) -> None:
    """Once that has been seen, who holds it says nothing."""

    async def take(lock: asyncio.Lock) -> None:
        await lock.acquire()

    async def main() -> None:
        with install(sync=True):
            lock = asyncio.Lock()
            await asyncio.create_task(take(lock))
            lock.release()
            await asyncio.create_task(take(lock))
            task = asyncio.create_task(take(lock))
            await settle()
            inspector.look()
            inspector.look()
            await end([task])

    asyncio.run(main())
    assert inspector.snapshot().deadlocks == 0


def test_acquire_in_a_task_of_its_own(inspector: Inspector) -> None:
    """The task that acquires is over, but it did so for somebody else."""

    async def main() -> None:
        with install(sync=True):
            lock = asyncio.Lock()
            await asyncio.wait_for(lock.acquire(), 60)
            lock.release()
            await asyncio.create_task(lock.acquire())
            task = asyncio.create_task(both("late", lock, asyncio.Lock()))
            await settle()
            inspector.look()
            inspector.look()
            assert deadlocks_of(inspector) == ()
            lock.release()
            await task

    asyncio.run(main())


def test_semaphore_as_a_signal(inspector: Inspector) -> None:
    """One task takes, another gives: the first permit was not taken to be given back."""

    async def main() -> None:
        with install(sync=True):
            ready = asyncio.Semaphore(1)

            async def consume() -> None:
                for _ in range(3):
                    await ready.acquire()

            task = asyncio.create_task(consume())
            for _ in range(2):
                await settle()
                inspector.look()
                inspector.look()
                ready.release()
            await task

    asyncio.run(main())
    assert inspector.snapshot().deadlocks == 0


def test_queue_that_nobody_has_served_yet(inspector: Inspector) -> None:
    """Nothing can be said of who will: a new task may come, or one that has ended may have been the first of many."""

    async def fetch(queue: Any) -> None:
        await queue.get()

    async def fill(queue: Any) -> None:
        queue.put_nowait(1)

    def make() -> list[Program]:
        queue = asyncio.Queue[int]()
        return [fill(queue), fetch(queue), fetch(queue), fetch(queue)]

    assert run(inspector, make) == []


def test_event_barrier_and_condition_alone(inspector: Inspector) -> None:
    """Who waits for these waits for whoever will come."""

    async def wait(primitive: Any) -> None:
        await primitive.wait()

    async def under(condition: Any) -> None:
        async with condition:
            await condition.wait()

    def make() -> list[Program]:
        return [wait(asyncio.Event()), wait(asyncio.Barrier(2)), under(asyncio.Condition())]

    assert run(inspector, make) == []


def test_event_whose_only_setter_waits(inspector: Inspector) -> None:
    """The one task that has ever set it waits for a lock of the one that waits for it."""

    async def main() -> None:
        with install(sync=True):
            event, lock = asyncio.Event(), asyncio.Lock()

            async def serve() -> None:
                with span("serve"):
                    event.set()
                    await asyncio.sleep(0)
                    await asyncio.sleep(0)
                    event.clear()
                    await holding("serving", lock, lambda: asyncio.sleep(0))
                    event.set()

            tasks = [asyncio.create_task(serve()), asyncio.create_task(holding("wait", lock, gate(event)))]
            await settle()
            inspector.look()
            inspector.look()
            (found,) = deadlocks_of(inspector)
            assert "for event" in found.message
            await end(tasks)

    def gate(event: asyncio.Event) -> Callable[[], Any]:
        async def again() -> None:
            await event.wait()
            while event.is_set():  # noqa: ASYNC110 - it waits for nothing
                await asyncio.sleep(0)
            await event.wait()

        return again

    asyncio.run(main())


# -- out of a log ----------------------------------------------------------------------------------------------------


class _Lines(logging.Handler):
    """Keeps what a file at level TRACE would have: each lifecycle record as a line of JSON."""

    def __init__(self) -> None:
        super().__init__(5)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "asyncinspect" in record.__dict__:
            self.lines.append(json.dumps(record.__dict__["asyncinspect"]))


@pytest.fixture
def lines(inspector: Inspector) -> Iterator[_Lines]:
    logger, handler = logging.getLogger("asyncinspect"), _Lines()
    logger.setLevel(5)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def replayed(lines: list[str], number: int | None = None) -> tuple[Finding, ...]:
    """The deadlocks that another inspector finds in the records up to there."""
    other = Inspector(Config.debug())
    for line in lines[:number]:
        other.apply(json.loads(line))
    other.look()
    other.look()
    return deadlocks_of(other)


@pytest.mark.parametrize("make", [opposite, philosophers(5)], ids=["opposite", "philosophers"])
def test_a_log_shows_the_same_deadlock(inspector: Inspector, lines: _Lines, make: Callable[[], list[Program]]) -> None:
    """The same spans, the same words, the same evidence; and all of the evidence is in the log. In the whole log, where
    the tasks were cancelled in the end, there is none.
    """
    (found,) = run(inspector, make)
    records = [json.loads(line) for line in lines.lines]
    stuck = max(index for index, record in enumerate(records) if record["kind"] == "wait") + 1
    (again,) = replayed(lines.lines, stuck)
    assert again._replace(at=0) == found._replace(at=0)
    assert set(found.evidence) <= {f"{record['id']}:{record['kind']}:{record['t']}" for record in records}
    assert replayed(lines.lines) == ()
    assert json.loads(lines.lines[stuck - 1])["holders"][0]["task"]


def test_a_log_shows_a_lock_held_by_a_finished_task(inspector: Inspector, lines: _Lines) -> None:
    """Also where it ended only after the other one began to wait."""

    async def take(lock: asyncio.Lock) -> None:
        await lock.acquire()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def want(lock: asyncio.Lock) -> None:
        async with lock:
            pass

    def make() -> list[Program]:
        lock = asyncio.Lock()
        return [take(lock), want(lock)]

    (found,) = run(inspector, make)
    stuck = max(index for index, line in enumerate(lines.lines) if json.loads(line)["kind"] == "exit")
    ends = [index for index, line in enumerate(lines.lines) if json.loads(line)["kind"] == "exit"]
    assert stuck in ends
    (again,) = replayed(lines.lines, ends[0] + 1)
    assert again._replace(at=0) == found._replace(at=0)


def test_a_log_knows_of_timeouts(inspector: Inspector, lines: _Lines) -> None:
    """The record of a wait says that it has one."""

    async def careful(a: Any, b: Any) -> None:
        async with asyncio.timeout(60):
            await both("careful", a, b)

    def make() -> list[Program]:
        a, b = asyncio.Lock(), asyncio.Lock()
        return [both("plain", a, b), careful(b, a)]

    assert run(inspector, make) == []
    records = [json.loads(line) for line in lines.lines]
    waits = [index for index, record in enumerate(records) if record["kind"] == "wait"]
    assert [records[index].get("timeout") for index in waits] == [None, True]
    assert replayed(lines.lines, waits[-1] + 1) == ()


def test_odd_records_do_no_harm(inspector: Inspector, tell: Any) -> None:
    """Whatever is in a wait record, it is taken or left, and the rest goes on."""
    inspector.apply(tell("enter"))
    whole = {"kind": "lock", "id": "00000000000000aa"}
    odd: list[dict[str, Any]] = [
        {},
        {"resource": "lock"},
        {"resource": 3},
        {"resource": {"kind": "lock"}},
        {"resource": whole},
        {"resource": whole, "owner": "xyz"},
        {"resource": whole, "owner": "00000000000000bb", "holders": 3},
        {"resource": whole, "owner": "00000000000000bb", "holders": [3]},
        {"resource": whole, "owner": "00000000000000bb", "holders": [{"owner": "00000000000000bb"}]},
        {"resource": whole, "owner": "00000000000000bb", "holders": [{"owner": "0000000000000000", "t": 1}]},
    ]
    for more in odd:
        for kind in ("wait", "acquire", "release"):
            inspector.apply(tell(kind, **more))
    inspector.look()
    inspector.look()
    assert inspector.snapshot().dropped["malformed"] == 0
    assert deadlocks_of(inspector) == ()
    own = [{"owner": "00000000000000bb", "t": 1}]
    inspector.apply(tell("wait", resource=whole, owner="00000000000000bb", holders=own))
    inspector.look()
    inspector.look()
    assert len(deadlocks_of(inspector)) == 1


# -- random programs against a model ---------------------------------------------------------------------------------

Nest = list[Any]
nests = st.recursive(
    st.just([]),
    lambda inner: st.lists(st.tuples(st.integers(0, 3), inner), max_size=2),
    max_leaves=4,
)
steps = st.lists(st.tuples(st.sampled_from("+-~"), st.integers(0, 2)), max_size=7)


async def nested(program: Nest, resources: list[Any]) -> None:
    """Take what the program says, each for as long as what is nested in it lasts."""
    for index, inner in program:
        async with resources[index]:
            await asyncio.sleep(0)
            await nested(inner, resources)
        await asyncio.sleep(0)


async def flat(program: list[tuple[str, int]], locks: list[asyncio.Lock], tidy: bool) -> None:
    """Take and give back locks in any order; a `tidy` one gives back in the end what it still has."""
    mine: list[asyncio.Lock] = []
    for what, index in program:
        lock = locks[index]
        if what == "+":
            await lock.acquire()
            mine.append(lock)
        elif what == "-" and lock in mine:
            lock.release()
            mine.remove(lock)
        await asyncio.sleep(0)
    for lock in mine if tidy else ():
        lock.release()


def stuck_and_found(inspector: Inspector, make: Callable[[], list[Program]]) -> tuple[set[str], set[str], int]:
    """Names of the tasks that never end, of those that are found to be stuck, and how many deadlocks are told."""
    result: tuple[set[str], set[str], int] = set(), set(), 0

    async def main() -> None:
        nonlocal result
        with install(sync=True):
            before = inspector.snapshot(tasks=False).deadlocks
            tasks = [asyncio.create_task(program, name=f"t{i}") for i, program in enumerate(make())]
            for steps in range(60):
                await asyncio.sleep(0)
                if steps % 7 == 0:
                    inspector.look()
                    inspector.look()
            told = inspector.snapshot(tasks=False).deadlocks - before
            stuck = {task.get_name() for task in tasks if not task.done()}
            found = {owner.task().get_name() for owner in inspector._books.waits.stuck()}
            result = stuck, found, told
            if stuck:
                await end([task for task in tasks if not task.done()])
            inspector.look()

    asyncio.run(main())
    return result


@given(st.lists(nests, min_size=1, max_size=4))
def test_random_programs_of_locks_and_semaphores(programs: list[Nest]) -> None:
    """Found to be stuck are exactly those that never end; a deadlock is told exactly if there are any."""
    with heard() as inspector:

        def make() -> list[Program]:
            resources = [asyncio.Lock(), asyncio.Lock(), asyncio.Semaphore(2), asyncio.BoundedSemaphore(1)]
            return [nested(program, resources) for program in programs]

        stuck, found, told = stuck_and_found(inspector, make)
        assert found == stuck
        assert bool(told) == bool(stuck)


@given(st.lists(st.tuples(steps, st.booleans()), min_size=1, max_size=4))
def test_random_programs_of_locks_in_any_order(programs: list[tuple[list[tuple[str, int]], bool]]) -> None:
    """The same for locks taken and given back in any order, or never given back."""
    with heard() as inspector:

        def make() -> list[Program]:
            locks = [asyncio.Lock() for _ in range(3)]
            return [flat(program, locks, tidy) for program, tidy in programs]

        stuck, found, told = stuck_and_found(inspector, make)
        assert found == stuck
        assert bool(told) == bool(stuck)


@contextlib.contextmanager
def heard() -> Iterator[Inspector]:
    """An inspector that hears of all spans: Hypothesis runs many programs in one test."""
    logger, inspector = logging.getLogger("asyncinspect"), Inspector(Config.debug())
    handler = AsyncInspectHandler(inspector)
    logger.addHandler(handler)
    try:
        yield inspector
    finally:
        logger.removeHandler(handler)
        handler.close()


@given(st.dictionaries(st.integers(0, 7), st.lists(st.lists(st.integers(0, 7), max_size=3), max_size=3), max_size=8))
def test_the_fixpoint_is_what_its_definition_says(needs: dict[int, list[list[int]]]) -> None:
    """Against the plain one: go over all of them until nobody more comes alive. What is left waits only for the dead,
    and each of the dead waits, in the end, for a core.
    """
    alive = {node for node in range(8) if not needs.get(node)}
    while True:
        more = {node for node, wanted in needs.items() if all(set(those) & alive for those in wanted)} - alive
        if not more:
            break
        alive |= more
    dead = dead_among(range(8), needs.get)
    assert set(dead) == set(range(8)) - alive
    cores = cores_of(dead)
    assert bool(cores) == bool(dead)
    assert len({node for core in cores for node in core}) == sum(map(len, cores))
    reached = {node for core in cores for node in core}
    for _ in dead:
        reached |= {node for node, wanted in dead.items() if any(set(those) & reached for those in wanted)}
    assert reached == set(dead)


# -- cost and speed --------------------------------------------------------------------------------------------------


def test_a_look_costs_nothing_while_nobody_waits(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is not even built; and where it is and took long, the watcher rests before it builds it again."""
    built: list[int] = []
    real = inspector._books.waits._cores
    monkeypatch.setattr(inspector._books.waits, "_cores", lambda: (built.append(1), real())[1])
    inspector.look()
    assert not built

    async def main() -> None:
        with install(sync=True):
            tasks = [asyncio.create_task(program) for program in opposite()]
            await settle()
            inspector.look(sparing=True)
            assert len(built) == 1
            inspector._books.waits._resting_until = time.perf_counter_ns() + 10**12
            inspector.look(sparing=True)
            assert len(built) == 1
            inspector.look()
            assert len(built) == 2
            await end(tasks)

    asyncio.run(main())


def test_looks_rest_in_proportion(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlocks take three hundredths of a core at most, whatever a look takes; and of the tasks that the lints glance
    at, some 15 microseconds each, there are no more than fifty a look: together that leaves room below five.
    """
    glanced: list[Any] = []
    monkeypatch.setattr(inspector._lints, "_glance", lambda books, reference, now: glanced.append(reference))

    async def main() -> None:
        with install(sync=True):
            tasks = [asyncio.create_task(asyncio.sleep(60)) for _ in range(200)]
            tasks += [asyncio.create_task(program) for program in opposite()]
            await settle()
            inspector.look()
            assert len(glanced) <= 50
            clock, waits = iter([10**9, 10**9 + 20_000_000]), inspector._books.waits
            with monkeypatch.context() as patch:
                patch.setattr("asyncinspect_logging.detect.waiting.time.perf_counter_ns", lambda: next(clock))
                waits.look(lambda: 0, sparing=False)
            assert waits._resting_until - 10**9 >= 20_000_000 / 0.0304
            await end(tasks)

    asyncio.run(main())


def test_a_scrape_does_not_look(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs the same however many tasks there are; what the watcher has found is in it."""
    looks: list[int] = []
    real = inspector._books.waits.look
    monkeypatch.setattr(
        inspector._books.waits, "look", lambda now, sparing: (looks.append(1), real(now, sparing=sparing))[1]
    )

    async def main() -> None:
        with install(sync=True):
            tasks = [asyncio.create_task(program) for program in opposite()]
            await settle()
            for _ in range(3):
                assert inspector.snapshot(tasks=False).deadlocks == 0
            assert not looks
            inspector.snapshot()
            inspector.snapshot()
            assert inspector.snapshot(tasks=False).deadlocks == 1
            assert len(looks) == 2
            await end(tasks)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["install", "drop-in"])
def test_scrapes_alone_have_what_the_watcher_finds(
    how: str, inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks by hand: it is counted, and gone again when it is over."""
    monkeypatch.undo()

    async def scrape_until(there: int) -> None:
        for _ in range(600):
            snapshot = inspector.snapshot(tasks=False)
            if snapshot.deadlocks == 1 and sum(found.kind == "deadlock" for found in snapshot.findings) == there:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(snapshot)

    async def main() -> None:
        with install(sync=True) if how == "install" else contextlib.nullcontext():
            lock = asyncio.Lock if how == "install" else sync.Lock
            a, b = lock(), lock()
            tasks = [asyncio.create_task(both("one", a, b)), asyncio.create_task(both("two", b, a))]
            await scrape_until(there=1)
            await end(tasks)
            await scrape_until(there=0)

    asyncio.run(main())


def test_the_watcher_finds_it(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anybody looking by hand, and within a second or so."""
    monkeypatch.undo()

    async def main() -> None:
        found: asyncio.Future[Finding] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        inspector.on_deadlock(lambda finding: loop.call_soon_threadsafe(found.set_result, finding))
        with install(sync=True):
            tasks = [asyncio.create_task(program) for program in opposite()]
            async with asyncio.timeout(30):
                assert (await found).kind == "deadlock"
            await end(tasks)

    asyncio.run(main())


def test_a_wait_told_twice(stream):
    """The record that ended the first of two waits is missing: what is told of the resource afterwards still counts."""
    tell, inspector = stream(), Inspector()
    inspector.first_hand = False

    def one(number):
        return {"owner": f"{100 + number:016x}", "root": f"{tell.base + number:016x}", "task": "t", "at": "a.py:1"}

    lock = {"kind": "lock", "name": "L", "id": f"{500:016x}"}
    held = [{**one(2), "id": f"{tell.base + 2:016x}", "name": "job", "t": 5}]
    for payload in (
        tell("enter", 1),
        tell("enter", 2),
        tell("wait", 1, resource=lock, holders=held, **one(1)),
        tell("wait", 1, resource=lock, holders=held, **one(1)),
        tell("release", 2, resource=lock, **one(2)),
        tell("acquire", 1, resource=lock, **one(1)),
        tell("wait", 2, resource=lock, holders=[{**held[0], **one(1), "id": f"{tell.base + 1:016x}"}], **one(2)),
    ):
        inspector.apply(payload)
    inspector.look()
    assert inspector.snapshot().deadlocks == 0
