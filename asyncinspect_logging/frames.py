"""The steps of a frame that holds a plain span, seen through sys.monitoring (PEP 669; Python 3.12 and later).

A plain `with span()` in a task that nobody drives cannot see when the coroutine around it waits. The interpreter can:
it calls back where a frame yields and where it goes on, for those code objects alone in which a span was entered. No
time is taken from any other code.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final

from . import process
from .diagnostics import warn_once
from .steps import Tally, end_part

if TYPE_CHECKING:
    from .spans import Span

__all__ = ["AVAILABLE", "FrameTally", "held", "hold", "holders", "let_go", "passed_through"]

#: Whether this Python can.
AVAILABLE: Final = sys.version_info >= (3, 12)

_COROUTINE: Final = 0x80  # inspect.CO_COROUTINE
#: Calls back for a code object that found no span, after which it is let alone until the next span in it.
_MISSES: Final = 1000


class FrameTally(Tally):
    """The tally of a plain span, made when its frame yields for the first time: most spans never do.

    It stands in for the stepping of a driver too.
    """

    __slots__ = ("coro_name", "counted", "started", "traced")

    def __init__(self, span: Span) -> None:
        super().__init__(span.entered_at)
        #: Start of the step going on, in ns, or 0 between steps.
        self.started = span.entered_at
        self.coro_name = span.task_name
        self.traced = False
        #: Whether the inspector counts the span among those whose steps are seen.
        self.counted = False


#: Code of coroutines that enter spans for the one that awaits them.
passed_through: Final = {id(contextlib.AsyncExitStack.enter_async_context.__code__)}
#: Innermost open span by id of the frame that holds it.
held: dict[int, Span] = {}
#: By id of a code object: 0 if its frames cannot wait; else it is monitored, and this is 1 and the number of calls back
#: that found no span.
holders: dict[int, int] = {}
_codes: dict[int, weakref.ref[CodeType]] = {}
_tool: int | None = None
_off = False


def hold(span: Span, frame: FrameType) -> int:
    """A span was entered in `frame`. Returns the id that it is held under; 0 where the frame cannot wait, or is not
    to be seen.
    """
    code = frame.f_code
    while id(code) in passed_through:
        # `async with`: it is the frame around that holds the span.
        if frame.f_back is None:
            return 0
        frame = frame.f_back
        code = frame.f_code
    if not holders.get(id(code)) and not _monitor(code):
        return 0
    key = id(frame)
    held[key] = span
    return key


def let_go(span: Span) -> None:
    """The span is over."""
    key = span._frame
    if held.get(key) is span:
        below = span._below
        while below is not None and (below._frame != key or below.outcome is not None):
            below = below._below
        if below is None:
            del held[key]
        else:
            held[key] = below


def _monitor(code: CodeType) -> bool:
    """Have the interpreter call back for a code object; returns whether it does."""
    global _tool, _off
    key = id(code)
    if key not in _codes:
        _codes[key] = weakref.ref(code, lambda gone: (_codes.pop(key, None), holders.pop(key, None)))
    holders[key] = 0
    if _off or not code.co_flags & _COROUTINE:
        return False
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    events = monitoring.events
    try:
        if _tool is None:
            _tool = _take_tool(monitoring)
            if _tool is None:
                _off = True
                warn_once("no tool", "", "no id is free in sys.monitoring: the polls of plain spans are not counted")
                return False
            monitoring.register_callback(_tool, events.PY_YIELD, _yielded)
            monitoring.register_callback(_tool, events.PY_RESUME, _resumed)
        monitoring.set_local_events(_tool, code, events.PY_YIELD | events.PY_RESUME)
    except Exception as error:
        _off = True
        warn_once("no monitoring", "", "sys.monitoring failed, the polls of plain spans are not counted: %r", error)
        return False
    holders[key] = 1
    return True


def _take_tool(monitoring: Any) -> int | None:
    """An id that no debugger, coverage or profiler has, and that is not set aside for one."""
    tool: int
    for tool in (3, 4, *range(6)):
        if monitoring.get_tool(tool) is None:
            monitoring.use_tool_id(tool, "asyncinspect")
            return tool
    return None


def _yielded(code: CodeType, offset: int, value: object) -> None:
    try:
        key = id(sys._getframe(1))
        span = held.get(key)
        if span is None:
            _missed(code)
            return
        t = 0
        while span is not None and span._frame == key:
            audience = span._audience
            if audience is not None and span.outcome is None:
                t = t or audience.clock.monotonic_ns()
                tally: Any = span.tally
                if tally is None:
                    tally = FrameTally(span)
                    span.steps = tally
                    span.tally = tally
                if tally.started:
                    end_part(tally, t)
                    tally.started = 0
                else:
                    # An exception was thrown in meanwhile, for which there is no call back: a step of unknown length.
                    tally.polls += 1
                    tally.part_from = t
                if tally.folded:
                    tally.folded = False
                    audience.announce(span)
            span = span._below
    except Exception as error:
        warn_once("frame", type(error).__qualname__, "a step of a plain span was not counted: %r", error)


def _resumed(code: CodeType, offset: int) -> None:
    try:
        key = id(sys._getframe(1))
        span = held.get(key)
        t = 0
        while span is not None and span._frame == key:
            tally: Any = span.tally
            audience = span._audience
            if tally is not None and audience is not None and not tally.started:
                t = t or audience.clock.monotonic_ns()
                tally.polls += 1
                tally.part_from = tally.started = t
            span = span._below
    except Exception as error:
        warn_once("frame", type(error).__qualname__, "a step of a plain span was not counted: %r", error)


def _missed(code: CodeType) -> None:
    """No span is open in this frame; after some time of that, and with none open in any other, there are no more calls
    back for its code.
    """
    key = id(code)
    misses = holders.get(key, 0) + 1
    if misses <= _MISSES or held:
        holders[key] = misses
    else:
        holders.pop(key, None)
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        monitoring.set_local_events(_tool, code, 0)


process.after_fork(lambda: held.clear())
