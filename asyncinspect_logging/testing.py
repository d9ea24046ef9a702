"""Helpers for tests of applications that use spans: time that stands still, and assertions on what the spans did.

    def test_checkout() -> None:
        with capture_spans() as spans:
            asyncio.run(checkout())
        spans.assert_completed("charge_card", times=1)
        spans.assert_no_open_spans()

With pytest, the fixtures `inspector` (such an object) and `fake_clock` do the same.

structlog: spans with `logger=` a structlog logger are captured too, cached loggers (`cache_logger_on_first_use`)
included, whatever the levels, and with or without an AsyncInspectProcessor in the chain. Ordinary structlog events
become lines on the timelines where they end in stdlib logging, or where `AsyncInspectProcessor(spans)` is in the chain.
`structlog.testing.capture_logs` takes all processors out of the chain for the while; it and `capture_spans` can be
active at once, in either order, and then its list also has the lifecycle events of structlog loggers, under the key
"asyncinspect", as far as their level lets debug through.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Final

from . import clock as system_clock
from .catalogue import LINTS
from .config import Config
from .detect.blocked import BLOCKED
from .detect.findings import DEADLOCK
from .detect.lints import without_span
from .drivers import install
from .handler import AsyncInspectHandler
from .inspector import Inspector
from .snapshot import NameView, TaskView
from .spans import LOGGER
from .structlog_route import add_tap, remove_tap

__all__ = ["CapturedSpans", "FakeClock", "capture_spans", "drive_all_loops", "finding_kinds", "where_stuck"]

_SHOWN: Final = 20
#: Those that are under way, outermost first.
_captures: Final[list[CapturedSpans]] = []


class FakeClock:
    """A clock that moves when told to.

    Give it to an inspector, `Inspector(clock=clock)`: then it also sets the time of the spans that this inspector's
    handler hears. Or use it as a context manager: then it is the clock of all spans and inspectors of the process.

    start: Unix time in seconds. It has nothing to do with the time that log records bear.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._wall = round(start * 1e9)
        # Like a real one, it does not count from zero, which here would mean "not set" in places.
        self._now = 1_000_000_000_000
        self._replaced: list[tuple[Any, Any]] = []

    def monotonic_ns(self) -> int:
        """Monotonic time in ns."""
        return self._now

    def time_ns(self) -> int:
        """Unix time in ns."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let time pass. Raises ValueError if `seconds` is negative: neither clock ever runs backwards here."""
        if not seconds >= 0:
            raise ValueError(f"advance({seconds!r}): time does not run backwards; write a number of seconds from 0 up")
        passed = round(seconds * 1e9)
        self._now += passed
        self._wall += passed

    def __enter__(self) -> FakeClock:
        self._replaced.append((system_clock.monotonic_ns, system_clock.time_ns))
        _set_clock(self.monotonic_ns, self.time_ns)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        _set_clock(*self._replaced.pop())


def _set_clock(monotonic_ns: Any, time_ns: Any) -> None:
    # Not by assignment: that would not type-check, and this is what freezegun does too.
    vars(system_clock).update(monotonic_ns=monotonic_ns, time_ns=time_ns)


class CapturedSpans(Inspector):
    """An inspector that keeps everything, with assertions. The messages of those show what was expected and what was
    seen instead.
    """

    def __init__(self, config: Config | None = None, *, clock: Any = None) -> None:
        super().__init__(Config.debug() if config is None else config, clock=clock)

    @property
    def inspector(self) -> Inspector:
        """This object."""
        return self

    @property
    def tasks(self) -> tuple[TaskView, ...]:
        """All spans as of now: the open ones, then the finished ones."""
        return self.snapshot().tasks

    @property
    def names(self) -> Mapping[str, NameView]:
        """What was counted, by span name, as of now."""
        return self.snapshot().names

    def assert_completed(self, name: str, *, times: int | None = None) -> None:
        """Assert that spans of this name completed: so many `times`, or at least once. Raises AssertionError."""
        __tracebackhide__ = True
        self._assert(name, "completed", times)

    def assert_failed(
        self, name: str, *, times: int | None = None, error: str | type[BaseException] | None = None
    ) -> None:
        """Assert that an exception left spans of this name: so many `times`, or at least once. With `error`, only those
        of this type count: a class (its subclasses do not), or its name with or without the module.
        """
        __tracebackhide__ = True
        self._assert(name, "failed", times, error)

    def assert_cancelled(self, name: str, *, times: int | None = None) -> None:
        """Assert that spans of this name were cancelled, so many `times`, or at least once. Closed generators and
        collected tasks count as cancelled, as in the metrics.
        """
        __tracebackhide__ = True
        self._assert(name, "cancelled", times)

    def assert_no_open_spans(self) -> None:
        """Assert that every span begun has ended. Raises AssertionError."""
        __tracebackhide__ = True
        tasks = self.tasks
        still_open = [task for task in tasks if task.outcome is None]
        if still_open:
            raise AssertionError(f"expected: no open spans\nseen: {len(still_open)} open\n{_listed(still_open)}")

    def _assert(self, name: str, state: str, times: int | None, error: str | type[BaseException] | None = None) -> None:
        __tracebackhide__ = True
        # From the counters, since details may be sampled or limited; those of errors are in the details only.
        snapshot = self.snapshot()
        view = snapshot.names.get(name)
        count: int = 0 if view is None else getattr(view, state)
        if error is not None:
            wanted = (
                {error} if isinstance(error, str) else {error.__qualname__, f"{error.__module__}.{error.__qualname__}"}
            )
            count = sum(
                bool(wanted & _names_of(task.error))
                for task in snapshot.tasks
                if task.name == name and task.state == state
            )
        if count == times or (times is None and count):
            return
        often = "at least once" if times is None else "once" if times == 1 else f"{times} times"
        kind = "" if error is None else f" with {error if isinstance(error, str) else error.__qualname__}"
        lines = [f"expected: {name!r} {state}{kind} {often}"]
        if view is None:
            lines.append(f"seen: no span named {name!r}")
        else:
            finished = f"{view.completed} completed, {view.failed} failed, {view.cancelled} cancelled"
            lines.append(f"seen: {count} {state}{kind}" + f" ({finished}, {view.live} open)")
            lines.append(_listed([task for task in snapshot.tasks if task.name == name]))
        others = [other for other in snapshot.names if other != name]
        if others:
            lines.append(
                f"other names seen: {', '.join(map(repr, others[:_SHOWN]))}{' …' if len(others) > _SHOWN else ''}"
            )
        raise AssertionError("\n".join(line for line in lines if line))


def _names_of(error: Mapping[str, Any] | None) -> set[str]:
    kind = str((error or {}).get("type", "")).partition("(")[0]
    return {kind, kind.rpartition(".")[2]}


def _listed(tasks: list[TaskView]) -> str:
    lines = []
    for task in tasks[:_SHOWN]:
        line = f"  {task.name} {task.id} {task.outcome or task.state.value}"
        if task.error is not None:
            line += f" {task.error['type']}: {task.error['message']}"
        if task.at is not None:
            line += f" at {task.at}"
        lines.append(line)
    if len(tasks) > _SHOWN:
        lines.append(f"  … and {len(tasks) - _SHOWN} more")
    return "\n".join(lines)


@contextlib.contextmanager
def capture_spans(config: Config | None = None, *, clock: Any = None) -> Iterator[CapturedSpans]:
    """Capture the spans begun in the `with` block, of any logger. Whoever hears of them otherwise still does.

    config: default `Config.debug()`, which keeps everything. clock: see `Inspector`.
    """
    spans = CapturedSpans(config, clock=clock)
    handler = AsyncInspectHandler(spans)
    # The root sees the loggers that hand on their records; and "asyncinspect" may have been told not to.
    loggers = (logging.getLogger(), LOGGER)
    disabled = LOGGER.disabled
    _captures.append(spans)
    try:
        # dictConfig may have disabled it.
        LOGGER.disabled = False
        for logger in loggers:
            logger.addHandler(handler)
        add_tap(handler)
        yield spans
    finally:
        _captures.remove(spans)
        remove_tap(handler)
        for logger in loggers:
            logger.removeHandler(handler)
        LOGGER.disabled = disabled
        handler.close()


def finding_kinds(text: str) -> frozenset[str]:
    """The kinds of findings that a list with commas names; "leak" is short for "leaked".

    Raises ValueError for one that there is not.
    """
    kinds = ["leaked" if kind == "leak" else kind for part in text.split(",") if (kind := part.strip())]
    valid = (DEADLOCK, BLOCKED, *LINTS)
    unknown = [kind for kind in kinds if kind not in valid]
    if unknown or not kinds:
        wrong = ", ".join(map(repr, unknown)) if unknown else repr(text)
        raise ValueError(f"{wrong}: no kind of finding; write one or more of {', '.join(valid)} (or leak), with commas")
    return frozenset(kinds)


@contextlib.contextmanager
def drive_all_loops(*, sync: bool = False) -> Iterator[None]:
    """Have every asyncio loop that makes a task, or is run by a Runner, drive its tasks; `sync`: as of `install`."""
    undos: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, object] = weakref.WeakKeyDictionary()
    before, run = asyncio.BaseEventLoop.create_task, asyncio.Runner.run

    def drive(loop: asyncio.AbstractEventLoop) -> None:
        if loop not in undos:
            undos[loop] = None
            undos[loop] = install(loop, sync=sync)

    def create_task(self: Any, coro: Any, **kwargs: Any) -> Any:
        if self not in undos:
            drive(self)
            return self.create_task(coro, **kwargs)
        return before(self, coro, **kwargs)

    def run_driven(self: Any, coro: Any, **kwargs: Any) -> Any:
        # Loops that are not written in Python are reached by this alone.
        drive(self.get_loop())
        return run(self, coro, **kwargs)

    patches: list[tuple[Any, str, Any, Any]] = [
        (asyncio.BaseEventLoop, "create_task", create_task, before),
        (asyncio.Runner, "run", run_driven, run),
    ]
    for owner, name, ours, _ in patches:
        setattr(owner, name, ours)
    try:
        yield
    finally:
        for owner, name, _, theirs in patches:
            setattr(owner, name, theirs)
        for undo in list(undos.values()):
            if callable(undo):
                undo()


def where_stuck() -> str:
    """Where every live task is stuck: those with spans, as far as a `capture_spans` is under way, and the others.

    The text is empty where there is none.
    """
    parts: list[str] = []
    if _captures:
        snapshot = _captures[0].snapshot()
        live = [task for task in snapshot.tasks if task.outcome is None]
        for task in live:
            parts.append(f"{task.name} {task.id} {task.state.value}, {task.age:.3g} s old")
            if task.waiting_on is not None:
                parts.append(f"  waits for {task.waiting_on}")
            parts += [f"  at {frame}" for frame in task.await_chain]
        findings = [finding for finding in snapshot.findings if set(finding.span_ids) & {task.id for task in live}]
        parts += [f"{finding.kind}: {finding.message}" for finding in findings]
    others = without_span(_SHOWN)
    if others:
        parts += ["tasks without a span:", *(f"  {name} waits at {where}" for name, where in others)]
    return "\n".join(parts)
