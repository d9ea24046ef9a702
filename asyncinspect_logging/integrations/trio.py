"""Every task of a trio program gets a span, with polls, busy time and wakes, through trio's Instrument API."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import trio

from ..diagnostics import warn_once
from ..driven import DrivenSpan
from ..driver import WRAPPED, Driver, drive, qualname_of, wrapped_name
from ..opened import note_root
from ..routing import delivering, route_of
from ..spans import LOGGER
from ..tracing import trace_wake

__all__ = ["Installed", "SpanInstrument", "install"]


class SpanInstrument(trio.abc.Instrument):
    """Gives every task that is spawned from now on a span, named by its coroutine, as `install` does on asyncio.

        trio.run(main, instruments=[SpanInstrument()])
        anyio.run(main, backend="trio", backend_options={"instruments": [SpanInstrument()]})

    trio tells an instrument when a task is spawned, scheduled and stepped, but not how it ends, so the task's coroutine
    gets a driver when it is spawned, which sees that and the steps; a task that is scheduled is a wake. trio's own
    tasks, and those that were there before, have none. logger: as of `span`.
    """

    def __init__(self, *, logger: Any = None) -> None:
        self._route = route_of(LOGGER if logger is None else logger)

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        try:
            self._drive(task)
        except Exception:
            # trio would take an instrument that raises off, and every later task would be without a span.
            warn_once("trio", task.name, "a task could not be driven, and runs as it is", exc_info=True)

    def _drive(self, task: trio.lowlevel.Task) -> None:
        coro: Any = task.coro
        if isinstance(coro, Driver) or coro.cr_frame.f_globals.get("__name__", "").startswith("trio._core."):
            return
        audience = self._route.audience()
        if audience is None or (audience.receivers and delivering.now):
            return
        note_root()
        name = qualname_of(coro)
        if name == WRAPPED:
            name = wrapped_name(coro)
        span = DrivenSpan.make(name, name, self._route)
        span.spawn(audience, task.context)
        task.coro = drive(coro, span)  # type: ignore[assignment]

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        coro: Any = task.coro
        if type(coro) is not Driver:
            return
        span = coro.span
        if span.entered_at and not span.woken_at and not span.started and span._audience is not None:
            span.woken_at = t = span._audience.clock.monotonic_ns()
            if span.traced:
                trace_wake(span._key, t)


class Installed:
    """What `install` returns: call it, or leave its `with` block, to undo. Tasks under way keep their spans."""

    def __init__(self, instrument: SpanInstrument) -> None:
        self._instrument: SpanInstrument | None = instrument
        trio.lowlevel.add_instrument(instrument)

    def __call__(self) -> None:
        instrument, self._instrument = self._instrument, None
        if instrument is not None:
            try:
                trio.lowlevel.remove_instrument(instrument)
            except KeyError:
                pass  # by somebody else

    def __enter__(self) -> Installed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self()


def install(*, logger: Any = None) -> Installed:
    """Add a `SpanInstrument` to the trio program that is running. Returns what undoes it. Raises RuntimeError outside
    of trio.
    """
    return Installed(SpanInstrument(logger=logger))
