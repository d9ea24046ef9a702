"""Lints, after those of tokio-console: tasks that are alive and well as far as anybody counts, and wrong all the same.

Four of them are read off what a span's steps add up to (`symptoms`), and so are found in a log as they are live. Two
need a look at the tasks themselves (`Lints.look`): whether anybody still refers to one. Only what the reference counts
prove is told, so that what cannot be proved is passed over.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Final

from .. import clock as system_clock
from .. import process
from ..catalogue import OTHER
from ..driven import DrivenSpan
from ..driver import Driver, _drive, qualname_of
from ..notices import Forgotten
from ..snapshot import Finding
from ..spans import Span
from ..stacks import frame_of
from ..told import ToldSpan
from .loop import collections
from .tasks import all_tasks, task_references
from .waits import outermost_span_of

if TYPE_CHECKING:
    from ..books import Books, Suspect
    from ..config import Config
    from ..sequence import Seen

__all__ = [
    "LEAKED",
    "LONG_POLL",
    "LOST_WAKER",
    "NEVER_AWAITED",
    "NEVER_YIELDED",
    "SELF_WAKES",
    "Lints",
    "judge_told",
    "symptoms",
    "without_span",
]

LEAKED: Final = "leaked"
LONG_POLL: Final = "long_poll"
LOST_WAKER: Final = "lost_waker"
NEVER_AWAITED: Final = "never_awaited"
NEVER_YIELDED: Final = "never_yielded"
SELF_WAKES: Final = "self_wakes"

#: Tasks glanced at in one look, which takes some 15 microseconds each; all have their turn.
_GLANCES: Final = 50
#: Links followed along what awaits what.
_LINKS: Final = 1000
#: Whether the count of an object's references says how many there are: without a GIL it does not.
_COUNTED: Final = getattr(sys, "_is_gil_enabled", lambda: True)()


def symptoms(span: Span | ToldSpan, config: Config) -> Iterator[tuple[str, str]]:
    """What is wrong with a span, by its tally and its outcome: lint and message of each.

    The span may be live or over, known at first hand or told.
    """
    tally, outcome, name = span.tally, span.outcome, span.name[:200]
    if outcome == "abandoned":
        if span.thread == 0:
            if span.__class__ is DrivenSpan and not span.own_task:
                return  # whoever was to make the task was told so by an exception
            if isinstance(span, ToldSpan) and not span.is_entered:
                return  # in which thread it began is yet to come
            yield (
                NEVER_AWAITED,
                f"{name}: the task was dropped before its first step; keep the event loop running until its tasks are "
                "done, or cancel them",
            )
        elif _is_a_task(span):
            yield (
                LEAKED,
                f"{name}: the task was collected while it was pending, after {_age(span):.3g} s: nobody referred to "
                "it; keep what create_task() returns, or use a TaskGroup",
            )
    if tally is None:
        return
    longest = tally.max_poll / 1e9
    if longest >= config.slow_poll:
        # A log does not say what was collected when.
        collecting = min(collections.longest_in_step(span.number) / 1e9, longest) if isinstance(span, Span) else 0
        if collecting * 2 > longest:
            cause = f", garbage collection {collecting:.3g} s of it: gc.freeze() what is there for good"
        else:
            cause = "; hand blocking calls to asyncio.to_thread(), and long computations to a process"
        yield (
            LONG_POLL,
            f"{name}: one step held the event loop for {longest:.3g} s (slow_poll is {config.slow_poll:g} s){cause}",
        )
    limit = config.never_yielded
    if limit is not None and outcome is not None and tally.polls == 1 and longest >= limit:
        yield (
            NEVER_YIELDED,
            f"{name}: ran for {longest:.3g} s and never let go of the event loop (never_yielded is {limit:g} s); await "
            "something in between, or use asyncio.to_thread()",
        )
    many = config.many_self_wakes
    if many is not None and tally.self_wakes >= many and tally.self_wakes * 2 > tally.wakes:
        yield (
            SELF_WAKES,
            f"{name}: {tally.self_wakes} of its {tally.wakes} wakes were its own (many_self_wakes is {many}); instead "
            "of asking again and again with sleep(0), await what it waits for",
        )


def judge_told(books: Books, span: ToldSpan, pid: int, before: Container[str] = ()) -> set[str]:
    """Count what is wrong with a told span of the process `pid` that is over, but for the lints that it had `before`;
    returns those that it has. To be asked at its end and after each record that comes late, and not when a batch has
    been read: so it does not matter where batches are cut.
    """
    found = dict(symptoms(span, books.config))
    if not found:
        return set()
    label, at = books.total_of(span.name, again=True).name, (span.exited_at + span.wall_offset) / 1e9
    for lint, message in found.items():
        if lint not in before:
            evidence = (f"{pid}:{span.last_seq}",)
            books.findings.add(Finding(lint, span.name, (span.id,), message, evidence, at), label)
    return set(found)


def _is_a_task(span: Span | ToldSpan) -> bool:
    """Whether it is of all that a task runs, and not of a part that may be closed by hand or break off."""
    if isinstance(span, ToldSpan):
        # A log says that a task was made before it began only with the records of steps.
        return span.entered_at > span.spawned_at
    return span.__class__ is DrivenSpan and span.own_task


def _age(span: Span | ToldSpan) -> float:
    return (span.exited_at - span.spawned_at) / 1e9


class _Suspicion:
    """What looked wrong: at which look first, since when (ns), a mark of what it was, and whether it did not look so
    the last time.
    """

    __slots__ = ("look", "mark", "missed", "since")

    def __init__(self, look: int, since: int, mark: int) -> None:
        self.look, self.since, self.mark = look, since, mark
        self.missed = False


class Lints:
    """Those of one inspector, across its books. Only ever used under the inspector's lock.

    `announced`: numbers of all spans that were known at first hand.
    """

    def __init__(self, config: Config, clock: Any, announced: Seen) -> None:
        self._config = config
        self._clock = clock
        self._announced = announced
        # Lints that a live span was told of, by its number.
        self._told: dict[int, set[str]] = {}
        self._purge_at = 100
        # The tasks still to be glanced at before all have had their turn.
        self._round: Iterator[Callable[[], Any]] = iter(())
        self._looks = 0
        # What looked wrong, by span and lint; and what is standing of what was told.
        self._suspected: dict[tuple[int, str], _Suspicion] = {}
        self._standing: dict[tuple[int, str], Finding] = {}
        self._after = {
            LEAKED: None if config.leaked_after is None else round(config.leaked_after * 1e9),
            LOST_WAKER: None if config.lost_waker_after is None else round(config.lost_waker_after * 1e9),
        }

    # -- what the tallies say ----------------------------------------------------------------------------------------

    def judge(self, books: Books, suspects: Iterable[Suspect]) -> None:
        """Have a closer look at spans of this process that the books hold to be suspicious."""
        config, over = self._config, []
        for span in suspects:
            if isinstance(span, Forgotten):
                self._tell_of_forgotten(books, span.name)
                continue
            for lint, message in symptoms(span, config):
                self._tell(books, span, lint, message)
            if span.number not in books.live:
                over.append(span.number)
        # A span that was suspicious before its end, too, is there twice.
        for number in over:
            self._told.pop(number, None)

    def _tell_of_forgotten(self, books: Books, name: str) -> None:
        # There never was a span, and so there is nothing to be counted under the name but this.
        message = f"{name[:200]}: the coroutine was made and dropped, and nobody awaited it; await it, or close() it"
        at = self._clock.monotonic_ns() + system_clock.wall_ns(0, self._clock)
        limit, counted = self._config.max_names, books.findings.lints
        has_room = limit is None or len(counted) < limit or (NEVER_AWAITED, name) in counted
        label = name if name in books.totals or has_room else OTHER
        books.findings.add(Finding(NEVER_AWAITED, name, (), message, (), at / 1e9), label)

    def _tell(self, books: Books, span: Span, lint: str, message: str) -> Finding:
        """Add a finding, unless the span has one of this lint already."""
        at = self._clock.monotonic_ns() if span.outcome is None else span.exited_at
        at += system_clock.wall_ns(0, self._clock)
        finding = Finding(lint, span.name, (process.span_id(span.number),), message, (), at / 1e9)
        told = self._told.get(span.number)
        if told is None:
            if len(self._told) >= self._purge_at:
                self._purge(books)
            told = self._told[span.number] = set()
        if lint not in told:
            told.add(lint)
            books.findings.add(finding, books.total_of(span.name, again=True).name)
        return finding

    def _purge(self, books: Books) -> None:
        """Forget the spans that are over."""
        live = books.live
        self._told = {number: lints for number, lints in self._told.items() if number in live}
        self._suspected = {key: seen for key, seen in self._suspected.items() if key[0] in live}
        self._standing = {key: finding for key, finding in self._standing.items() if key[0] in live}
        self._purge_at = max(100, 2 * len(self._told), 2 * len(self._suspected))

    # -- what a look at the tasks says -------------------------------------------------------------------------------

    def look(self, books: Books) -> None:
        """Glance at some of the tasks that are live, at others the next time."""
        if not _COUNTED or not (self._after[LEAKED] or self._after[LOST_WAKER]):
            return
        if not books.live:
            self._suspected.clear()
            return
        self._looks += 1
        now = self._clock.monotonic_ns()
        references = list(islice(self._round, _GLANCES))
        if len(references) < _GLANCES:
            self._round = iter(task_references())
            if not references:
                references = list(islice(self._round, _GLANCES))
        for reference in references:
            self._glance(books, reference, now)
        if len(self._suspected) >= self._purge_at:
            self._purge(books)

    def _glance(self, books: Books, reference: Callable[[], Any], now: int) -> None:
        # What refers to the task, and to what it waits for, is counted here, where it is known which of that is ours.
        task = reference()
        span = None if task is None else outermost_span_of(task)
        if task is None or span is None or span.number not in books.live:
            return
        waits_for = _waits_for(task)
        parent = span.parent_number
        leaked = (
            waits_for is not None
            and parent != 0
            and parent in self._announced
            and parent not in books.live
            and not _callbacks(task)
            # The one is that by which it is to be woken.
            and _count(task) - _ALONE == 1
        )
        lost = False
        if waits_for is not None and not isinstance(waits_for, asyncio.Task):
            own, named = _own_references(task, waits_for)
            # And the one by which the task itself knows.
            lost = (
                _count(waits_for) - _ALONE == own + 1
                and not weakref.getweakrefcount(waits_for)
                and (named or not _is_run_until_complete(task))
                and not _is_limited(task)
                and task._fut_waiter is waits_for
                and not waits_for.done()
            )
        mark = id(waits_for)
        coro = task.get_coro()
        # Only from here on may somebody else hold it for us.
        del task
        self._suspect(books, span, LEAKED, leaked, 0, coro, now)
        self._suspect(books, span, LOST_WAKER, lost, mark, coro, now)

    def _suspect(self, books: Books, span: Span, lint: str, suspicious: bool, mark: int, coro: Any, now: int) -> None:
        """Told is what has been so for long enough, and at two looks at least. What is no longer so, at two looks in a
        row, is taken back: once may be somebody who holds the task just to have a look at it, as is done here.
        """
        after = self._after[lint]
        key = (span.number, lint)
        known = self._suspected.get(key)
        if after is None or (known is None and not suspicious):
            return
        if not suspicious:
            assert known is not None
            if known.missed:
                del self._suspected[key]
                standing = self._standing.pop(key, None)
                if standing is not None:
                    books.findings.withdraw(standing)
            known.missed = True
        elif known is None or known.mark != mark:
            self._suspected[key] = _Suspicion(self._looks, now, mark)
        else:
            known.missed = False
            seconds = (now - known.since) / 1e9
            confirmed = known.look != self._looks and now - known.since >= after
            if confirmed and lint not in self._told.get(span.number, ()):
                self._standing[key] = self._tell(books, span, lint, _MESSAGES[lint](span, coro, seconds))


def _leaked_message(span: Span, coro: Any, seconds: float) -> str:
    return (
        f"{span.name[:200]}: its parent {process.span_id(span.parent_number)} is over, and for {seconds:.3g} s nobody "
        "has referred to the task or awaited it: Python may collect it at any time; keep what create_task() returns, "
        "or use a TaskGroup"
    )


def _lost_waker_message(span: Span, coro: Any, seconds: float) -> str:
    at = _where(coro)
    return (
        f"{span.name[:200]}: for {seconds:.3g} s it has waited{'' if at is None else f' at {at}'} for a future that "
        "nobody else refers to, and so nobody can complete; keep the future where its result is set, or wait for ever "
        "on purpose with asyncio.Event().wait()"
    )


_MESSAGES: Final = {LEAKED: _leaked_message, LOST_WAKER: _lost_waker_message}


def without_span(at_most: int) -> list[tuple[str, str]]:
    """Tasks under way that nobody sees: qualified name of the coroutine, and `file:line function` where it waits."""
    found: list[tuple[str, str]] = []
    for task in all_tasks():
        if not task.done() and outermost_span_of(task) is None and len(found) < at_most:
            found.append((qualname_of(task), _where(task.get_coro()) or "?"))
    return found


# -- tasks and what they wait for --------------------------------------------------------------------------------------


def _waits_for(task: Any) -> Any:
    """The future that a task waits for, or None."""
    future = None if task.done() else getattr(task, "_fut_waiter", None)
    return future if isinstance(future, asyncio.Future) and not future.done() else None


def _callbacks(future: Any) -> list[Any]:
    """What is called when it is done."""
    return [callback for callback, _ in getattr(future, "_callbacks", None) or ()]


def _chain(coro: Any) -> Iterator[Any]:
    """A coroutine and what it awaits, down to the innermost."""
    for _ in range(_LINKS):
        if coro is None:
            return
        yield coro
        below = None
        if type(coro) is Driver:
            # The generator keeps what was yielded to it.
            yield coro._gen
            below = coro._inner
        else:
            for attribute in ("cr_await", "gi_yieldfrom", "ag_await"):
                if below is None:
                    below = getattr(coro, attribute, None)
            if below is None and (type(coro).__name__ in _SILENT or _is_of_a_driver(coro)):
                below = next((held for held in gc.get_referents(coro) if isinstance(held, _RUNS)), None)
        coro = below


_RUNS: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)
#: What a coroutine may await without saying itself what it is that it steps.
_SILENT: Final = {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow", "anext_awaitable"}


def _own_references(task: Any, future: Any) -> tuple[int, bool]:
    """How often the coroutine of a task, suspended as it is, refers to a future; and whether by a variable."""
    count, named = 0, False
    for link in _chain(task.get_coro()):
        here = sum(held is future for held in gc.get_referents(link))
        count += here
        named = named or (here > 0 and isinstance(link, _RUNS) and not _is_of_a_driver(link))
    return count, named


def _is_of_a_driver(link: Any) -> bool:
    return getattr(link, "gi_code", None) is _DRIVING


_DRIVING: Final = _drive.__code__


def _is_run_until_complete(task: Any) -> bool:
    """Whether it is what the loop runs for: to wait for ever for a nameless future is how a server's `main` does."""
    return any(getattr(callback, "__name__", "") == "_run_until_complete_cb" for callback in _callbacks(task))


def _is_limited(task: Any) -> bool:
    """Whether a task, or one that awaits it, stands in a timeout: it is waiting then, and not lost."""
    for _ in range(20):
        for link in _chain(task.get_coro()):
            for held in gc.get_referents(link):
                # The stack of a frame in a `with` block has the bound `__exit__` of what is entered, or that itself.
                name = type(getattr(held, "__self__", held)).__name__
                if name in ("Timeout", "CancelScope", "timeout"):
                    return True
        above = None
        for callback in _callbacks(task):
            if getattr(getattr(callback, "func", None), "__name__", "") == "_release_waiter":
                return True  # `wait_for` before Python 3.12
            owner = getattr(callback, "__self__", None)
            above = owner if isinstance(owner, asyncio.Task) else above
        if above is None:
            return False
        task = above
    return True


def _where(coro: Any) -> str | None:
    """`file:line function` where a suspended coroutine waits."""
    found = None
    for link in _chain(coro):
        frames = (frame_of(link, attribute) for attribute in ("cr_frame", "gi_frame", "ag_frame"))
        frame = next((frame for frame in frames if frame is not None), None)
        if frame is not None and frame.f_code is not _DRIVING:
            found = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
    return found


def _count(held: object) -> int:
    return sys.getrefcount(held)


def _count_alone() -> int:
    """What `_count` says of an object that nobody has but the caller, in one variable."""
    alone = object()
    return _count(alone)


_ALONE: Final = _count_alone()
