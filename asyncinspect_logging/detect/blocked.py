"""Event loops that do not come back: noticed while it lasts, from the watcher's thread.

A loop is blocked when it has owed a beat (see `loop`) for `Config.slow_poll` seconds. One that waits in its selector
answers at once, and one that was stopped owes nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from inspect import CO_COROUTINE
from itertools import takewhile
from types import FrameType
from typing import Any, Final, NamedTuple

from .. import process
from ..books import QUIET, Books
from ..driven import opened_in
from ..driver import qualname_of
from ..routing import DEFAULT_POLICY, Clock
from ..snapshot import Finding
from ..spans import Span
from ..stacks import is_ours, stack_of
from ..steps import stepping
from .findings import tell
from .loop import HANDLE_RUN, Heart, collections, hearts

__all__ = ["BLOCKED", "Watchdog"]

BLOCKED: Final = "blocked_loop"
#: Seconds from a beat to the next, at most as often as that.
_BEAT: Final = 0.1
#: Frames told, the innermost.
_MOST_FRAMES: Final = 20
#: Of garbage collection, in ns.
_WORTH_TELLING: Final = 1_000_000
_DEBUGGERS: Final = ("bdb", "pydevd")


class _Blockage(NamedTuple):
    """`round`: of the beat that is due. `since`: in ns. `collected`: how long garbage collections had taken until the
    last beat, in ns.
    """

    round: int
    since: int
    collected: int
    doing: _Doing
    finding: Finding


class _Doing(NamedTuple):
    """What a loop is at. `began`: its step, in ns, or 0 where that is not known."""

    coro: str
    task: str
    began: int
    spans: list[Span]


class Watchdog:
    """Of one inspector. `limit`: seconds from which a loop is blocked."""

    def __init__(self, limit: float, clock: Clock) -> None:
        self._limit = round(limit * 1e9)
        # A little less than that, since the looks are not exactly as far apart as they should be.
        self._pause = round(min(limit, _BEAT) * 0.9e9)
        self._clock: Any = clock
        self._blocked: dict[Heart, _Blockage] = {}
        self._over: deque[Finding] = deque()

    def look(self, books: Books) -> None:
        """Enter loops that are blocked, and those that are not any more. Under the inspector's lock."""
        if books.quiet_looks >= QUIET and not self._blocked:
            return
        for heart in dict.fromkeys([*self._blocked, *hearts()]):
            number, since = heart.round, heart.due_since()
            blockage = self._blocked.get(heart)
            if blockage is not None and (since is None or number != blockage.round):
                self._end(books, heart, blockage)
                blockage = None
            if since is None:
                continue
            # It beats again when it comes back, and until then there is something to be watched.
            books.quiet_looks = 0
            if blockage is None and heart.clock.monotonic_ns() - (_step_began(heart) or since) >= self._limit:
                self._begin(books, heart, number, since)

    def speak(self) -> None:
        """Tell of what is over, and ask the loops for their next beat. Without the lock."""
        while self._over:
            try:
                finding = self._over.popleft()
            except IndexError:  # another thread is at it too
                break
            tell(finding, [])
        for heart in hearts():
            now = heart.clock.monotonic_ns()
            step = _step_began(heart)
            if now - heart.answered >= self._pause or (step and now - step >= self._limit // 2):
                heart.ask()

    def pause(self) -> float:
        """Seconds until it may be worth looking again: when a loop that is late by then would be blocked."""
        shortest = self._limit
        for heart in hearts():
            began = _step_began(heart) or heart.due_since()
            if began is not None and heart not in self._blocked:
                shortest = min(shortest, max(began + self._limit - heart.clock.monotonic_ns(), 0))
        return shortest / 1e9

    def late(self) -> float:
        """Seconds for which the latest of the loops has not come back by now; 0 where all do."""
        owed = [(heart.clock.monotonic_ns(), heart.due_since()) for heart in hearts()]
        return max((now - since for now, since in owed if since is not None), default=0) / 1e9

    def _begin(self, books: Books, heart: Heart, number: int, since: int) -> None:
        doing = _doing(heart)
        stack = _stack(heart)
        if stack is None or heart.round != number or not heart.asked:
            return
        since = min(_step_began(heart) or since, since)
        now = heart.clock.monotonic_ns()
        about = _describe(doing, now - doing.began, collections.total() - heart.collected, stack)
        finding = Finding(
            BLOCKED,
            doing.spans[0].name if doing.spans else doing.coro,
            tuple(process.span_id(span.number) for span in doing.spans),
            f"the event loop has not come back for {_seconds(now - since)}: {about}",
            tuple(stack),
            self._clock.time_ns() / 1e9,
        )
        self._blocked[heart] = _Blockage(number, since, heart.collected, doing, finding)
        books.findings.add(finding)

    def _end(self, books: Books, heart: Heart, blockage: _Blockage) -> None:
        del self._blocked[heart]
        told, kept = blockage.finding, books.findings.kept
        # One that was stopped or closed did not say when it came back.
        end = heart.answered if heart.answered > blockage.since else heart.clock.monotonic_ns()
        about = _describe(blockage.doing, 0, heart.collected - blockage.collected, told.evidence)
        over = told._replace(
            message=f"the event loop did not come back for {_seconds(end - blockage.since)} in all: {about}"
        )
        if told in kept:
            kept[kept.index(told)] = over
        self._over.append(over)


def _step_began(heart: Heart) -> int:
    """When the step began that the loop has been at since its last beat, in ns; 0 where that is not known."""
    step = stepping.get(_thread(heart))
    began = 0 if step is None else step.started
    return max(began, heart.excused) if began and began >= heart.answered else 0


def _doing(heart: Heart) -> _Doing:
    """What the loop is at, seen from another thread."""
    loop, ident = heart.loop, _thread(heart)
    try:
        task: Any = None if loop is None else asyncio.current_task(loop)
    except Exception:
        task = None
    coro, name = ("", "") if task is None else (qualname_of(task), DEFAULT_POLICY.hide(task.get_name()))
    step = stepping.get(ident)
    if step is not None and step.started:
        return _Doing(coro or step.coro_name, name, step.started, list(opened_in(step._key)))
    if task is not None:
        return _Doing(coro, name, 0, list(opened_in(id(task))))
    # A callback. What was open in the thread before it began is around the loop.
    return _Doing("", "", 0, [span for span in opened_in(-ident) if span.entered_at > heart.answered])


def _thread(heart: Heart) -> int:
    """Id of the thread that the loop runs in, or 0."""
    loop: Any = heart.loop
    ident = getattr(loop, "_thread_id", None)
    if isinstance(ident, int) and not isinstance(ident, bool):
        return ident
    if heart.thread:
        return heart.thread
    # It was blocked before its first beat: see who steps its task.
    try:
        span = getattr(asyncio.current_task(loop).get_coro(), "span", None)  # type: ignore[union-attr]
    except Exception:
        return 0
    return next((ident for ident, step in list(stepping.items()) if step is span), 0)


def _stack(heart: Heart) -> list[str] | None:
    """The frames of the loop's callback, innermost last, without ours: "file:line function". None if it waits in its
    selector, or is held by a debugger: then it is not blocked.
    """
    all_frames = stack_of(_thread(heart))
    if any(frame.f_globals.get("__name__") in _DEBUGGERS for frame in all_frames):
        return None
    frames = list(takewhile(lambda frame: frame.f_code is not HANDLE_RUN, all_frames))
    if frames and len(frames) == len(all_frames):
        if frames[0].f_globals.get("__name__") == "selectors" and _runs_a_loop(frames[1:2]):
            return None
        if 0 < heart.depth <= len(frames):
            del frames[len(frames) - heart.depth :]
        elif not heart.depth:
            # Not known before its first beat; what is below a task is below its coroutine.
            outermost = max((i for i, f in enumerate(frames) if f.f_code.co_flags & CO_COROUTINE), default=len(frames))
            del frames[outermost + 1 :]
    told = [frame for frame in frames if not is_ours(frame)]
    return [
        f"{frame.f_code.co_filename}:{frame.f_lineno or 0} {frame.f_code.co_qualname}"
        for frame in reversed(told[:_MOST_FRAMES])
    ]


def _runs_a_loop(frames: Sequence[FrameType]) -> bool:
    run_once = asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined] # private
    return any(frame.f_code is run_once for frame in frames)


def _describe(doing: _Doing, step: int, collected: int, stack: Sequence[str]) -> str:
    """What the loop was at; `step`, `collected`: how long its step and garbage collections took, in ns."""
    parts = [f"task {doing.coro} ({doing.task})" if doing.coro else "a callback"]
    if doing.spans:
        parts.append(f"span {doing.spans[0].name} {process.span_id(doing.spans[0].number)}")
    if doing.began and step:
        parts.append(f"in this step for {_seconds(step)}")
    if collected >= _WORTH_TELLING:
        parts.append(f"garbage collection for {_seconds(collected)}")
    if stack:
        parts.append("at " + " > ".join(stack))
    return ", ".join(parts)


def _seconds(ns: int) -> str:
    return f"{max(ns, 0) / 1e9:.3f} s"
