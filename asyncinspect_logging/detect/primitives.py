"""What is known of each primitive that reports: who waits for it, who holds it, who frees those who wait.

The methods in front of asyncio's (`methods`) note here what the current task does, and those who hear of its spans are
told. Nothing here raises, and nothing keeps a primitive alive.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from typing import Any, Final, NamedTuple

from .. import clock, process
from ..diagnostics import warn_once
from ..notices import Waiting
from ..routing import DEFAULT_POLICY, Audience, route_of
from ..spans import LOGGER, Span, current, current_span
from .held import HELD, Hold, LockResource, Owner, Place, Resource, Wait
from .owners import current_owner
from .saying import owner_said, resource_said, wait_said
from .timers import has_timeout

__all__ = [
    "Known",
    "Report",
    "begin_wait",
    "end_wait",
    "in_front",
    "installed",
    "know",
    "known_primitives",
    "note_failure",
    "note_freed",
    "note_given_back",
    "note_taken",
    "reporting_locks",
    "resource_of",
]

_route: Final = route_of(LOGGER)
#: Through these modules a call comes here from the place where the application waits.
_PASSED: Final = frozenset(
    {
        f"{__package__}.methods",
        "asyncio.locks",
        "asyncio.queues",
        "asyncio.tasks",
        "contextlib",
        "anyio._backends._asyncio",
        "anyio._core._synchronization",
    }
)
#: Those remembered who have set an event, put into a queue, and so on. Where there are more, anybody may.
_MAX_FREERS: Final = 32
#: An inspector is asked to look into what was announced at most once in so many ns for each primitive: that has it
#: watch, and then it looks by itself.
_OFTEN: Final = 100_000_000

_frame: Final = sys._getframe


class Known:
    """What is known of a primitive. `ref` leads to it."""

    __slots__ = ("complete", "name", "ours", "ref", "resources")

    def __init__(self, ref: weakref.ref[Any], name: str | None, complete: bool, ours: bool) -> None:
        self.ref = ref
        self.name = name
        #: Whether it was seen from its beginning.
        self.complete = complete
        #: Whether it is of a drop-in class, whose methods report.
        self.ours = ours
        self.resources: dict[str, Resource] = {}


known_primitives: Final[dict[int, Known]] = {}
#: The locks that were used while they reported, by id: asyncio's own, and those of the drop-in class.
reporting_locks: Final[tuple[dict[int, LockResource], dict[int, LockResource]]] = ({}, {})
#: The methods that report, by class of asyncio's and name: those over asyncio's own, and those of the drop-in classes.
in_front: Final[tuple[dict[tuple[type, str], Any], dict[tuple[type, str], Any]]] = ({}, {})


class _Installed:
    """Of asyncio's own classes: how many installs are in force that have them report. `fresh`: whether there was but
    one task when the first began, so that nobody had taken anything before.
    """

    __slots__ = ("count", "fresh")

    def __init__(self) -> None:
        self.count = 0
        self.fresh = False


installed: Final = _Installed()


def know(primitive: Any, name: str | None = None, complete: bool = False, ours: bool = False) -> Known:
    key = id(primitive)

    # The dicts' methods, and not ours, since it runs when the primitive is gone, in the middle of anything.
    def forget(
        gone: object, forget_it: Any = known_primitives.pop, forget_lock: Any = reporting_locks[ours].pop
    ) -> None:
        forget_it(key, None)
        forget_lock(key, None)

    if name is not None:
        name = DEFAULT_POLICY.name(str(name))
    known = known_primitives[key] = Known(weakref.ref(primitive, forget), name, complete, ours)
    return known


def resource_of(primitive: Any, kind: str) -> Resource:
    """What is waited for of a primitive: of most there is one such thing, of a queue there are three."""
    known = known_primitives.get(id(primitive)) or know(primitive)
    found = known.resources.get(kind)
    if found is None:
        made: Resource = LockResource(kind, known.name) if kind == "lock" else Resource(kind, known.name)
        found = known.resources[kind] = made
        if known.complete:
            pass
        elif kind == "lock":
            found.unknown = int(primitive.locked())
        elif kind == "semaphore" and not installed.fresh:
            bound = getattr(primitive, "_bound_value", None)
            # Of how many a plain one had at first, nothing can be found out any more.
            found.unknown = bound - primitive._value if bound is not None else sys.maxsize
    if isinstance(found, LockResource) and _is_plain(primitive, known.ours):
        reporting_locks[known.ours][id(primitive)] = found
    return found


def _is_plain(lock: Any, ours: bool) -> bool:
    """Whether a lock is taken and given back by our methods, and by nobody's own."""
    methods = in_front[ours]
    return all(
        getattr(getattr(lock, name), "__func__", None) is methods.get((asyncio.Lock, name))
        for name in ("acquire", "release", "__aenter__", "__aexit__")
    )


def _place(frame: Any) -> tuple[Place, bool]:
    """Where the application is that called what runs in `frame`, and whether it came by an `async with`."""
    outermost, scoped = frame, False
    while frame is not None and frame.f_globals.get("__name__") in _PASSED:
        outermost = frame
        scoped = scoped or frame.f_code.co_name == "__aenter__"
        frame = frame.f_back
    frame = frame or outermost
    return Place(frame.f_code, frame.f_lasti), scoped


# -- what is told ----------------------------------------------------------------------------------------------------


class Report(NamedTuple):
    """A wait, and those who were told of it, by way of `span` if there was one."""

    wait: Wait
    audience: Audience
    span: Span | None


def _heard_span() -> Span | None:
    """The current span, if anybody hears of it."""
    span = current.get()
    if span is not None and (span.outcome is not None or not span.number):
        span = current_span()
    return span if span is not None and span.number > 0 and span._audience is not None else None


def begin_wait(resource: Resource) -> Report | None:
    """The current task is about to wait. Raises nothing."""
    try:
        span = _heard_span()
        audience = _route.audience() if span is None else span._audience
        owner = current_owner()
        if audience is None or owner is None:
            return None
        t = audience.clock.monotonic_ns()
        place, _ = _place(sys._getframe(1))
        number, name = (0, "") if span is None else (span.number, span.name)
        wait = Wait(owner, resource, t, place, number, name)
        audience.announce(Waiting(wait, False))
        if span is not None and audience.steps:
            wait.timed = has_timeout(owner.task())
            span._emit(audience, "wait", wait_said(wait), t)
        if resource.heard is not audience or t - resource.settled > _OFTEN:
            resource.heard, resource.settled = audience, t
            audience.settle()
        return Report(wait, audience, span)
    except Exception as error:
        note_failure(error)
        return None


def end_wait(report: Report, got: bool) -> None:
    """It waits no longer, and has `got` what it waited for, or not. Raises nothing."""
    try:
        wait, audience, span = report
        audience.announce(Waiting(wait, True))
        if span is not None and audience.steps and not (got and wait.resource.kind in HELD):
            _emit(span, audience, "acquire" if got else "release", wait.owner, wait.resource, wait.at)
    except Exception as error:
        note_failure(error)


def note_taken(resource: Resource) -> None:
    """The current task has got it: called by the method that took it. Raises nothing.

    No more is done than to note who, when and where. What that says is worked out when somebody waits.
    """
    try:
        owner = current_owner()
        if owner is None or owner.for_others:
            resource.unknown += 1
            return
        (code, instruction), scoped = _place(_frame(1))
        span, number, name, steps = current.get(), 0, "", None
        if span is not None:
            span = span if span.outcome is None and span._audience is not None else _heard_span()
        if span is None:
            t = clock.monotonic_ns()
        else:
            audience: Any = span._audience
            number, name, steps = span.number, span.name, audience.steps
            t = audience.clock.monotonic_ns()
        if isinstance(resource, LockResource):
            resource.taken = (owner, t, code, instruction, number, name, scoped)
            resource.code, resource.told = code, bool(steps)
        else:
            hold = resource.holders.get(owner.number)
            if hold is None:
                hold = Hold(owner, t, code, instruction, number, name, scoped)
            else:
                hold = hold._replace(permits=hold.permits + 1, scoped=hold.scoped and scoped)
            resource.holders[owner.number] = hold
        if steps:
            assert span is not None
            _emit(span, audience, "acquire", owner, resource, Place(code, instruction), t)
    except Exception as error:
        note_failure(error)


def note_given_back(resource: Resource) -> None:
    """One hold was given back. Raises nothing."""
    try:
        owner = current_owner()
        hold = None if owner is None else resource.holders.get(owner.number)
        if hold is not None:
            resource.paired = True
            if isinstance(resource, LockResource):
                resource.taken = None
            elif hold.permits > 1:
                resource.holders[hold.owner.number] = hold._replace(permits=hold.permits - 1)
            else:
                del resource.holders[hold.owner.number]
        elif resource.unknown:
            resource.unknown -= 1
        else:
            # One gives back what another took, and so whose turn that is cannot be told by who has it.
            resource.open = True
            if isinstance(resource, LockResource):
                resource.taken = None
        if owner is None or current.get() is None:
            return
        span = _heard_span()
        audience = None if span is None else span._audience
        if span is not None and audience is not None and audience.steps:
            _emit(span, audience, "release", owner, resource)
    except Exception as error:
        note_failure(error)


def note_freed(resource: Resource) -> None:
    """The current task did what one that waits for this needs somebody to do. Raises nothing."""
    try:
        owner = current_owner()
        holders = resource.holders
        if resource.open or (owner is not None and owner.number in holders):
            return
        if owner is None or len(holders) >= _MAX_FREERS:
            resource.open = True
            holders.clear()
            return
        place, _ = _place(sys._getframe(1))
        span = _heard_span()
        number, name = (0, "") if span is None else (span.number, span.name)
        holders[owner.number] = Hold(owner, clock.monotonic_ns(), *place, number, name)
    except Exception as error:
        note_failure(error)


def note_failure(error: Exception) -> None:
    warn_once("sync", type(error).__qualname__, "a synchronisation primitive could not be followed: %r", error)


def _emit(
    span: Span, audience: Audience, kind: str, owner: Owner, resource: Resource, at: object = None, t: int = 0
) -> None:
    more = {"resource": resource_said(resource), **owner_said(owner)}
    if at is not None:
        more["at"] = str(at)
    span._emit(audience, kind, more, t)


@process.after_fork
def _after_fork() -> None:
    """The parent's tasks do not go on here."""
    known_primitives.clear()
    for locks in reporting_locks:
        locks.clear()
