"""The span of a driven coroutine: it keeps the books of the steps, for itself and for the spans open in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import Context
from typing import Any, Final

from . import process
from .notices import Forgotten
from .opened import open_of, pending
from .records import SpanRecord
from .routing import DEFAULT_POLICY, Audience, Route, delivering
from .spans import INHERIT, Span, _clean_names, current, outside
from .steps import FIRST_BOUND, Tally, end_part, slow, stepping

__all__ = ["DrivenSpan", "opened_in", "resume_all", "suspend_all"]

_NO_FIELDS: Final[dict[str, Any]] = {}
_new = object.__new__


class DrivenSpan(Span):
    """The outermost span of a driven coroutine, its tally, and the state of the stepping: one object for all three.

    Each object more that lives as long as a task makes the garbage collector run more often, and setting up a second
    one takes as long as a step.
    """

    __slots__ = (
        "busy",
        "context_is_own",
        "coro_name",
        "folded",
        "max_poll",
        "own_task",
        "part_from",
        "polls",
        "scheduled",
        "self_wakes",
        "slow_polls",
        "slow_waits",
        "started",
        "traced",
        "wakes",
        "woken_at",
    )

    # The tally; see `steps.Tally`.
    polls: int
    wakes: int
    self_wakes: int
    busy: int
    scheduled: int
    max_poll: int
    slow_polls: int
    slow_waits: int
    part_from: int
    folded: bool
    #: Qualified name of the coroutine.
    coro_name: str
    #: Start of the step going on, in ns, or 0 between steps.
    started: int
    #: When the future that it waits for completed, in ns, or 0.
    woken_at: int
    #: Whether the records of single steps are wanted for some span in it.
    traced: bool
    #: Whether it is what a task was made of; and whether nobody else has that task's context.
    own_task: bool
    context_is_own: bool

    # The same for all of them, and so not worth a slot: an owner of its own, which nothing is open below.
    links = ()
    _parent = INHERIT
    _owner = None
    _below = None
    _frame = 0

    @property
    def tally(self) -> Any:  # type: ignore[override]
        return self

    @property
    def steps(self) -> Any:  # type: ignore[override]
        return self

    @staticmethod
    def make(
        name: str, coro_name: str, route: Route, fields: dict[str, Any] = _NO_FIELDS, kind: Any = None
    ) -> DrivenSpan:
        """A span that is not announced yet. kind: the class, if not this one."""
        span: DrivenSpan = _new(kind or DrivenSpan)
        if name not in _clean_names:
            name = DEFAULT_POLICY.name(name)
        span.name = name
        span.coro_name = coro_name
        span.fields = fields
        span.outcome = span._token = span._audience = None
        span._route = route
        span.polls = 1
        span.number = span.wakes = span.self_wakes = span.busy = span.scheduled = span.max_poll = 0
        span.slow_polls = span.slow_waits = 0
        span.started = span.woken_at = span.entered_at = span.thread = 0
        span.folded = True
        span.traced = span.own_task = span.context_is_own = span.listed = False
        span._key = id(span)
        return span

    def spawn(self, audience: Audience, context: Context | None) -> None:
        """Announce the span of a task that is being made, before its first step. Its parent is the span that is
        current in the task's `context` (None: in a copy of this one).
        """
        self._audience = audience
        self.own_task = True
        self.context_is_own = context is None
        self._spawned_at = audience.clock.monotonic_ns()
        self.number = number = process.new_number()
        around = current.get() if context is None else context.get(current)
        if self._parent is not INHERIT or outside.parent is not None:
            self._find_parent(around, context)
        elif around is None:
            self.parent_number = 0
            self.trace = number
        elif around.outcome is None:
            self.parent_number = around.number
            self.trace = around.trace
        else:
            self._find_parent(around)
        if self.fields:
            self.fields = audience.policy.apply(self.fields)
        pending[number] = self
        audience.announce(self)
        if not number % 61:
            # Tasks may be made by the thousand before the first one ends.
            audience.settle()
        if audience.receivers:
            self._introduce(audience, "spawn")

    def start(self, ident: int) -> Audience | None:
        """The first step begins, in the thread `ident` (0: none, see `drop`); returns who hears of the span."""
        if self.number:
            pending.pop(self.number, None)
            audience = self._audience
            if audience is None:
                return None
            t = audience.clock.monotonic_ns()
            if t < self._spawned_at:
                t = self._spawned_at
        else:
            audience = self._route.audience()
            if audience is None or (audience.receivers and delivering.now):
                return None
            # Nobody spawned it: spawned and entered in one.
            self.spawn(audience, None)
            audience = self._audience or audience
            del pending[self.number]
            self.own_task = self.context_is_own = False
            t = self._spawned_at
        self.thread = ident
        self.entered_at = self.part_from = self.started = t
        open_of[self._key] = self
        stepping[ident] = self
        if audience.receivers:
            if self.code is None:
                self._introduce(audience)
            else:
                record = SpanRecord(self, "enter", t, audience.logger_name)
                if ident:
                    audience.receive(record)
                else:
                    audience.receive_later(record)
        token = current.set(self)
        if not self.context_is_own:
            # A context that only this task has need not be put in order again, and so one token less is kept.
            self._token = token
        return audience

    def finish(self, error: BaseException | None) -> None:
        """The coroutine is through: with an exception, or with a result."""
        audience = self._audience
        if audience is None or self.outcome is not None:
            return
        try:
            t = audience.clock.monotonic_ns()
            part = t - self.part_from
            if part > 0:
                self.busy += part
                if part > self.max_poll:
                    self.max_poll = part
                if part > FIRST_BOUND:
                    self.slow_polls += slow(part)
            if error is None and open_of.get(self._key) is self and not audience.receivers:
                # What `_end` comes to for nearly every task.
                self.exited_at = t if t > self.entered_at else self.entered_at
                del open_of[self._key]
                self.outcome = "completed"
                if self.listed:
                    audience.announce(self)
                if not self.number % 61:
                    audience.settle()
            else:
                self.part_from = t
                self._end(audience, t, error)
        except BaseException as trouble:
            # Interrupted here, or in `start`, or out of stack: see `Span.__exit__`.
            if self.outcome is None:
                pending.pop(self.number, None)
                if not self.entered_at:
                    self.entered_at = self.part_from = self._spawned_at
                self.exited_at = self.part_from
                self._unlink()
                if open_of.get(self._key) is self:
                    del open_of[self._key]
                self.error = {"type": type(error).__qualname__, "message": ""}
                self.outcome = "failed" if error is not None else "completed"
                if self.listed:
                    audience.announce(self)
            if not isinstance(trouble, Exception):
                raise
        finally:
            if self._token is not None:
                self._leave()

    def drop(self, closed: bool) -> None:
        """The coroutine was dropped before its first step, or else `closed`, which somebody did on purpose."""
        # In the middle of whatever is going on in this thread, whose context must be as before afterwards.
        self.context_is_own = False
        if self.number and self.start(0) is not None:
            self.finish(GeneratorExit())
        elif not self.number and not closed:
            audience = self._route.audience()
            if audience is not None:
                audience.announce(Forgotten(self.name))
        stepping.pop(0, None)


def opened_in(key: int) -> Iterator[Span]:
    """The open spans of an owner, innermost first."""
    span = open_of.get(key)
    while span is not None:
        yield span
        span = span._below


def suspend_all(key: int, t: int) -> None:
    """A step ends at `t` (ns) in which several spans are open: each has its part of it."""
    for span in opened_in(key):
        tally = span.tally
        if tally is not None:
            end_part(tally, t)
            if tally.folded and span._audience is not None:
                tally.folded = False
                span._audience.announce(span)


def resume_all(key: int, t: int, woken: int, self_woken: bool) -> None:
    """A step begins at `t`, after a wake at `woken` (ns, 0 where there was none), in which several spans are open."""
    for span in opened_in(key):
        tally: Tally | None = span.tally
        if tally is None:
            continue
        tally.polls += 1
        tally.part_from = t
        if woken:
            tally.wakes += 1
            tally.self_wakes += self_woken
            tally.scheduled += t - woken
            if t - woken > FIRST_BOUND:
                tally.slow_waits += slow(t - woken)
