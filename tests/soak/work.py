"""What the soak's application does, and its own count of that: spans of every outcome, from threads and event loops."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence

from asyncinspect_logging import install, instrument, span

__all__ = ["OUTCOMES", "Tally", "Worker", "in_loop", "in_thread"]

OUTCOMES = ("completed", "failed", "cancelled")
#: Below the span logger, where the inspector's handler is; its records go to a file as well.
FILED = logging.getLogger("asyncinspect.soak")
#: Tasks under `install()` are named by their coroutine.
INSTALLED = "installed_job"
#: Spans that are all driven, of which nothing but a step is busy, and the rest idle.
STEPPED = "stepped"
#: Polls of a span around one `await`: since Python 3.12 they are seen without a driver, though not who wakes the task.
BARE = 2 if sys.version_info >= (3, 12) else 0
#: Spans between two looks at whether to go on, and those that one event loop lives for.
ROUND, A_LOOP = 200, 2_000


class Tally:
    """What one thread began, by name and outcome."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = [*names, INSTALLED, STEPPED]
        self.counts = {outcome: [0] * len(self.names) for outcome in OUTCOMES}
        #: By name, spans whose steps are seen, their polls and wakes. Of each other span, the body is one poll.
        self.stepped, self.polls, self.wakes = ([0] * len(self.names) for _ in range(3))
        #: Spans that are over, and log lines that were written inside spans.
        self.total = self.lines = 0

    def add(self, index: int, outcome: str, polls: int = 0, wakes: int = 0) -> None:
        """`polls`, `wakes`: of a span whose steps are seen."""
        self.counts[outcome][index] += 1
        self.total += 1
        if polls:
            self.stepped[index] += 1
            self.polls[index] += polls
            self.wakes[index] += wakes

    def merge(self, other: Tally) -> None:
        for outcome, counts in other.counts.items():
            self.counts[outcome] = [a + b for a, b in zip(self.counts[outcome], counts, strict=True)]
        for name in ("stepped", "polls", "wakes"):
            setattr(self, name, [a + b for a, b in zip(getattr(self, name), getattr(other, name), strict=True)])
        self.total += other.total
        self.lines += other.lines

    def by_name(self) -> dict[str, tuple[int, int, int]]:
        """Completed, failed and cancelled of each name that was used."""
        found = zip(self.names, zip(*(self.counts[outcome] for outcome in OUTCOMES), strict=True), strict=True)
        return {name: (counts[0], counts[1], counts[2]) for name, counts in found if any(counts)}

    def polls_by_name(self) -> dict[str, tuple[int, int, int]]:
        """Polls, those that are seen as such, and wakes of each name that was used."""
        found = {}
        for at, (name, counts) in enumerate(zip(self.names, zip(*self.counts.values(), strict=True), strict=True)):
            if any(counts):
                polls = self.polls[at]
                found[name] = (sum(counts) - self.stepped[at] + polls, polls, self.wakes[at])
        return found


class Refused(Exception):
    """What the application raises, and expects."""


class RefusedBadly(Refused):
    """It does not even say why."""

    def __str__(self) -> str:
        raise ZeroDivisionError("in __str__")


class Hostile:
    """A field's value that cannot be shown, compared or asked for anything."""

    def _raise(self, *_: object) -> bool:
        raise ZeroDivisionError("in the application's value")

    __repr__ = __str__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __format__ = _raise  # type: ignore[assignment]

    @property
    def __class__(self) -> type:
        raise ZeroDivisionError("in __class__")


class Worker:
    """Names taken in turn, beginning with a name of its own, and kinds of work in the order of the seed."""

    def __init__(self, tally: Tally, names: int, seed: str) -> None:
        self.tally, self._names = tally, names
        self.rng = random.Random(seed)
        self._at = self.rng.randrange(names)

    def next(self) -> tuple[int, str]:
        self._at = at = (self._at + 1) % self._names
        return at, self.tally.names[at]


# -- in a thread -----------------------------------------------------------------------------------------------------


def plain(worker: Worker) -> None:
    at, name = worker.next()
    with span(name):
        pass
    worker.tally.add(at, "completed")


def with_fields(worker: Worker) -> None:
    at, name = worker.next()
    with span(name, user=at, path="/a/b", tags=["x", "y"]) as inner:
        inner.record(rows=at)
    worker.tally.add(at, "completed")


def nested(worker: Worker) -> None:
    at, name = worker.next()
    inner_at, inner = worker.next()
    with span(name), span(inner):
        pass
    worker.tally.add(at, "completed")
    worker.tally.add(inner_at, "completed")


def failed(worker: Worker) -> None:
    at, name = worker.next()
    try:
        with span(name):
            raise Refused("no")
    except Refused:
        worker.tally.add(at, "failed")


def failed_badly(worker: Worker) -> None:
    at, name = worker.next()
    try:
        with span(name, why=Hostile()):
            raise RefusedBadly
    except RefusedBadly:
        worker.tally.add(at, "failed")


def hostile(worker: Worker) -> None:
    at, name = worker.next()
    with span(name, a=Hostile(), b=[Hostile()], c={"d": Hostile()}) as inner:
        inner.record(e=Hostile())
    worker.tally.add(at, "completed")


def decorated(worker: Worker) -> None:
    at, name = worker.next()
    assert span(name)(max)(1, 2) == 2
    worker.tally.add(at, "completed")


def broken_off(worker: Worker) -> None:
    at, name = worker.next()

    def items() -> Iterator[int]:
        with span(name):
            yield 1
            yield 2

    for _ in items():
        break
    worker.tally.add(at, "cancelled")


def filed(worker: Worker) -> None:
    at, name = worker.next()
    with span(name, logger=FILED, path="/x" * 40):
        FILED.warning("a line of the log, %d", at)
    worker.tally.lines += 1
    worker.tally.add(at, "completed")


SYNC: tuple[tuple[Callable[[Worker], None], int], ...] = (
    (plain, 60),
    (with_fields, 10),
    (nested, 10),
    (failed, 6),
    (failed_badly, 1),
    (hostile, 3),
    (decorated, 3),
    (broken_off, 2),
    (filed, 2),
)


def in_thread(worker: Worker, go_on: Callable[[], bool]) -> None:
    """Work until `go_on`, which is asked between two rounds, says no."""
    kinds, weights = zip(*SYNC, strict=True)
    while go_on():
        until = worker.tally.total + ROUND
        for work in worker.rng.choices(kinds, weights, k=ROUND):
            work(worker)
            if worker.tally.total >= until:
                break


# -- in an event loop ------------------------------------------------------------------------------------------------


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def one_step() -> None:
    await asyncio.sleep(0)


async def refuse() -> None:
    await asyncio.sleep(0)
    raise Refused("no")


async def installed_job() -> None:
    await asyncio.sleep(0)


async def a_span(worker: Worker) -> None:
    at, name = worker.next()
    async with span(name, user=at):
        await asyncio.sleep(0)
    worker.tally.add(at, "completed", BARE)


async def driven(worker: Worker) -> None:
    at, name = worker.next()
    await instrument(one_step(), name=name)
    worker.tally.add(at, "completed", 2, 1)
    await instrument(one_step(), name=STEPPED)
    worker.tally.add(len(worker.tally.names) - 1, "completed", 2, 1)


async def cancelled(worker: Worker) -> None:
    at, name = worker.next()
    task = asyncio.create_task(instrument(forever(), name=name))
    await asyncio.sleep(0)
    await _cancel(task)
    worker.tally.add(at, "cancelled", 2, 1)


async def cancelled_before_its_first_step(worker: Worker) -> None:
    at, name = worker.next()
    await _cancel(asyncio.create_task(instrument(forever(), name=name)))
    worker.tally.add(at, "cancelled", 1, 0)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return
    raise AssertionError("the task was not cancelled")


async def timed_out(worker: Worker) -> None:
    at, name = worker.next()
    inner_at, inner = worker.next()
    try:
        with span(name):
            async with asyncio.timeout(0):
                with span(inner, value=Hostile()):
                    await forever()
    except TimeoutError:
        worker.tally.add(at, "failed", BARE)
        worker.tally.add(inner_at, "cancelled", BARE)


async def group(worker: Worker) -> None:
    at, name = worker.next()
    failing_at, failing = worker.next()
    other_at, other = worker.next()
    try:
        with span(name):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(instrument(refuse(), name=failing))
                tasks.create_task(instrument(forever(), name=other))
    except* Refused:
        worker.tally.add(at, "failed", BARE)
        worker.tally.add(failing_at, "failed", 2, 1)
        worker.tally.add(other_at, "cancelled", 2, 1)


async def at_once(worker: Worker) -> None:
    given = [worker.next() for _ in range(10)]
    tasks = [asyncio.create_task(instrument(one_step(), name=name)) for _, name in given]
    await asyncio.gather(*tasks)
    for at, _ in given:
        worker.tally.add(at, "completed", 2, 1)


async def in_a_pool(worker: Worker) -> None:
    await asyncio.to_thread(plain, worker)


async def filed_step(worker: Worker) -> None:
    at, name = worker.next()
    await instrument(one_step(), name=name, logger=FILED)
    worker.tally.add(at, "completed", 2, 1)


async def synchronous(worker: Worker) -> None:
    for work in (plain, nested, failed, with_fields):
        work(worker)


async def installed(worker: Worker) -> None:
    """Only under `install()`."""
    await asyncio.create_task(installed_job())
    worker.tally.add(len(worker.tally.names) - 2, "completed", 2, 1)
    await _cancel(asyncio.create_task(installed_job()))
    worker.tally.add(len(worker.tally.names) - 2, "cancelled", 1, 0)


ASYNC: tuple[tuple[Callable[[Worker], Awaitable[None]], int], ...] = (
    (a_span, 20),
    (driven, 15),
    (cancelled, 6),
    (cancelled_before_its_first_step, 3),
    (timed_out, 3),
    (group, 3),
    (at_once, 5),
    (in_a_pool, 1),
    (filed_step, 1),
    (synchronous, 10),
)


async def _rounds(worker: Worker, go_on: Callable[[], bool], under_install: bool) -> bool:
    """Work for as long as a loop lives; returns whether to go on."""
    kinds, weights = zip(*(*ASYNC, *([(installed, 5)] if under_install else [])), strict=True)
    end = worker.tally.total + A_LOOP
    while worker.tally.total < end:
        if not go_on():
            return False
        until = worker.tally.total + ROUND
        while worker.tally.total < until:
            for work in worker.rng.choices(kinds, weights, k=10):
                await work(worker)
    return True


def in_loop(worker: Worker, go_on: Callable[[], bool]) -> None:
    """Work in one event loop after the other, every other one of them under `install()`."""

    async def main(under_install: bool) -> bool:
        if not under_install:
            return await _rounds(worker, go_on, False)
        with install():
            return await _rounds(worker, go_on, True)

    under_install = False
    while asyncio.run(main(under_install)):
        under_install = not under_install
