"""The heartbeat of event loops: how late a loop gets to what it is asked to do.

A loop is asked for a beat from outside, a few times a second and only while an inspector listens (see `watch`). Nothing
is put on its clock: a timer would show among its timers, keep a loop busy whose time is simulated, and go off no more
exactly than the selector's resolution. The time between the question and the answer is what any callback, and any task
that is ready, waits just then.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from _thread import get_ident
from contextvars import Context
from types import FrameType
from typing import Any, Final

from .. import clock as system_clock
from .. import process
from ..diagnostics import warn_once
from ..driven import opened_in
from ..notices import Beat
from ..routing import Audience, Clock, route_of
from ..spans import LOGGER
from ..steps import stepping

__all__ = ["HANDLE_RUN", "Heart", "collections", "hearts", "known", "meet", "rest", "start", "stop"]

_route: Final = route_of(LOGGER)
#: The code that runs a callback, on loops that are written in Python.
HANDLE_RUN: Final = asyncio.Handle._run.__code__

#: Who was told last that there are hearts: None where that is nobody, or where nobody watches them any more.
known: Audience | None = None
#: By id of the loop. A dict, because it is copied in one go whatever other threads and finalisers do meanwhile.
_hearts: Final[dict[int, Heart]] = {}


class Heart:
    """Of one event loop, which it does not keep alive. Times in ns, of the clock of who listens.

    Asked in any thread; it answers in the loop's own.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_left",
        "_loop",
        "_paused",
        "answered",
        "asked",
        "clock",
        "collected",
        "depth",
        "excused",
        "round",
        "thread",
        "users",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        key = id(loop)
        self._loop = weakref.ref(loop, lambda _, forget=_hearts.pop: forget(key, None))  # type: ignore[misc]
        # Nothing of the application's context: the answer belongs to none of its tasks.
        self._context = Context()
        #: How many `install`s want it.
        self.users = 0
        self.clock: Clock = system_clock
        #: When the answer that is due was asked for, or 0; and the how many-th it is.
        self.asked = self.round = 0
        #: When the loop answered last, and how long garbage collections had taken until then.
        self.answered = 0
        self.collected = collections.total()
        #: Until when the loop could not have answered, since the whole process stood still.
        self.excused = 0
        #: The loop's thread, as far as known; and how many frames are below those of a callback, 0 where that is not
        #: known.
        self.thread = self.depth = 0
        # Whether the loop stopped while asked; whether it belongs to the parent process.
        self._paused = self._left = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        return self._loop()

    def running(self) -> bool:
        """Whether the loop runs, in this process."""
        loop = self._loop()
        try:
            running = loop is not None and loop.is_running()
        except Exception:
            return False
        if not running:
            self._left = False
        return running and not self._left

    def due_since(self) -> int | None:
        """Since when the loop has owed an answer that it could have given, or None."""
        asked = self.asked
        if not asked:
            return None
        if not self.running():
            # Whenever it runs again, it will not have been late.
            self._paused = True
        return None if self._paused else max(asked, self.excused)

    def ask(self) -> None:
        """Ask for a beat, unless one is due already. Raises nothing."""
        if self.asked:
            self.due_since()
            return
        audience, loop = _route.audience(), self._loop()
        if audience is None or loop is None or not self.running():
            return
        self.clock = audience.clock
        self.round += 1
        self.asked = self.clock.monotonic_ns()
        try:
            loop.call_soon_threadsafe(self._answer, context=self._context)
        except Exception:
            # Closed in this moment, or made for something else than running callbacks.
            self.asked = 0

    def _answer(self) -> None:
        asked, self.asked = self.asked, 0
        paused, self._paused = self._paused, False
        try:
            if not asked or not self.users:
                return
            audience = _route.audience()
            self.thread = get_ident()
            self.depth = _frames_below(sys._getframe(1))
            self.collected = collections.total()
            self.answered = t = self.clock.monotonic_ns()
            if audience is not None and audience.clock is self.clock and not paused:
                audience.announce(Beat(max(t - asked, 0)))
            if audience is not None and audience is not known:
                meet(audience)
        except Exception as error:
            warn_once("heartbeat", type(error).__qualname__, "a heartbeat failed: %r", error)

    def excuse(self) -> None:
        """The process stood still until now."""
        self.excused = self.clock.monotonic_ns()

    def _leave(self) -> None:
        """This is the child of a fork. A loop that ran belongs to the parent, and what it is sent would get there."""
        self.asked = 0
        self._left = self.running()


def _frames_below(frame: FrameType | None) -> int:
    if frame is not None and frame.f_code is HANDLE_RUN:
        return 0  # The frames below a callback are told by this one.
    depth = 0
    while frame is not None:
        depth += 1
        frame = frame.f_back
    return depth


def start(loop: asyncio.AbstractEventLoop) -> None:
    """Give a loop a heart, which beats while the loop runs and somebody listens. Raises nothing."""
    try:
        heart = _hearts.get(id(loop))
        if heart is None:
            heart = _hearts[id(loop)] = Heart(loop)
    except TypeError:
        return  # It cannot be referred to weakly.
    heart.users += 1
    if asyncio._get_running_loop() is loop:
        heart.thread = get_ident()
    audience = _route.audience()
    if audience is not None:
        meet(audience)


def stop(loop: asyncio.AbstractEventLoop) -> None:
    """Take back one `start`."""
    heart = _hearts.get(id(loop))
    if heart is not None:
        heart.users -= 1
        if heart.users <= 0:
            _hearts.pop(id(loop), None)


def hearts() -> list[Heart]:
    """Those of all loops that are alive."""
    return list(_hearts.values())


def meet(audience: Audience) -> None:
    """Have somebody know that there are hearts."""
    global known
    known = audience
    audience.announce(Beat(None))
    audience.settle()


def rest() -> None:
    """Nobody asks the hearts any more; the next task that a loop makes tells that there are some."""
    global known
    known = None


#: Collections shorter than this are not laid to anybody, in ns.
_LONG_COLLECTION: Final = 1_000_000
_MAX_CHARGED: Final = 1000


class _Collections:
    """How long garbage collections took, and whose steps they held up. They run one at a time."""

    def __init__(self) -> None:
        self._total = self._began = 0
        # By number of a span: the step of it that was held up last, how long in that, and how long at most, in ns.
        self._charged: dict[int, tuple[int, int, int]] = {}

    def total(self) -> int:
        """Of all that were timed, in ns, the part of one that is going on included."""
        began = self._began
        return self._total + (system_clock.monotonic_ns() - began if began else 0)

    def longest_in_step(self, span: int) -> int:
        """How long they took, in ns, in that step of the span with this number in which they took longest."""
        return self._charged.get(span, (0, 0, 0))[2]

    def begin_timing(self) -> None:
        if self._time not in gc.callbacks:
            gc.callbacks.append(self._time)

    def end_timing(self) -> None:
        self._began = 0
        if self._time in gc.callbacks:
            gc.callbacks.remove(self._time)

    def _time(self, phase: str, info: Any) -> None:
        if phase == "start":
            self._began = system_clock.monotonic_ns()
        elif self._began:
            took = system_clock.monotonic_ns() - self._began
            self._began = 0
            self._total += took
            if took >= _LONG_COLLECTION:
                self._charge(took)

    def _charge(self, took: int) -> None:
        """Lay a collection to the spans in whose step it ran."""
        step = stepping.get(get_ident())
        if step is None or not step.started:
            return
        for span in opened_in(step._key):
            number = span.number
            began, so_far, longest = self._charged.pop(number, (0, 0, 0))
            so_far = took + (so_far if began == step.started else 0)
            if len(self._charged) >= _MAX_CHARGED:
                del self._charged[next(iter(self._charged))]
            self._charged[number] = (step.started, so_far, max(so_far, longest))


collections: Final = _Collections()


def _after_fork() -> None:
    collections.end_timing()
    rest()
    for heart in hearts():
        heart._leave()


process.after_fork(_after_fork)
