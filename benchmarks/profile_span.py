"""Where the time of a span goes: its parts one by one, in nanoseconds and in floors.

    python benchmarks/profile_span.py

The parts are timed alone, as often as they occur in a span; what they do not add up to is the glue between them.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import platform
import time
from _thread import get_ident
from collections import deque
from collections.abc import Callable

from bench_spans import our_handler, span_loop
from bench_tasks import child
from measure import floor_loop

from asyncinspect_logging import Inspector, instrument, span
from asyncinspect_logging.routing import route_of
from asyncinspect_logging.spans import LOGGER

_LOOPS = 20_000
_ROUNDS = 7
_variable: contextvars.ContextVar[object] = contextvars.ContextVar("profile", default=None)


def best(function: Callable[[int], object]) -> float:
    """Nanoseconds for one, the best of some rounds."""
    taken = []
    for _ in range(_ROUNDS):
        started = time.process_time_ns()
        function(_LOOPS)
        taken.append(time.process_time_ns() - started)
    return min(taken) / _LOOPS


def _creating(loops: int) -> None:
    for _ in range(loops):
        span("work")


def _creating_with_fields(loops: int) -> None:
    for _ in range(loops):
        span("work", user=7, path="/items", ratio=0.5)


def _finding_the_audience(loops: int) -> None:
    audience = route_of(LOGGER).audience
    for _ in range(loops):
        audience()


def _two_clocks(loops: int) -> None:
    clock = time.monotonic_ns
    for _ in range(loops):
        clock()
        clock()


def _context_variable(loops: int) -> None:
    for _ in range(loops):
        _variable.reset(_variable.set(1))


def _owner(loops: int) -> None:
    for _ in range(loops):
        get_ident()
        asyncio._get_running_loop()


def _open_spans(loops: int) -> None:
    opened: dict[int, int] = {}
    for key in range(loops):
        opened[key] = key
        opened.get(key)
        del opened[key]


def _announcing(loops: int) -> None:
    queue: deque[int] = deque(maxlen=128)
    append = queue.append
    for number in range(loops):
        append(number)
        append(number)


def _settling(inspector: Inspector) -> float:
    """Nanoseconds that the inspector takes for a span, in batches as they come."""
    settle, batch, taken = inspector.settle, 63, []
    for _ in range(_ROUNDS):
        total = 0
        for _ in range(_LOOPS // batch):
            span_loop(batch)
            started = time.process_time_ns()
            settle()
            total += time.process_time_ns() - started
        taken.append(total)
    return min(taken) / (_LOOPS // batch * batch)


def _stepping(make: Callable[[], object]) -> Callable[[int], None]:
    def step(loops: int) -> None:
        for _ in range(loops):
            coro = make()
            try:
                coro.send(None)  # type: ignore[attr-defined]
            except StopIteration:
                pass

    return step


def main() -> None:
    print(f"{platform.python_implementation()} {platform.python_version()}")
    floor = best(floor_loop)
    with our_handler() as inspector:
        rows = {
            "the floor": floor,
            "a span": best(span_loop),
            "  creating the object": best(_creating),
            "  the same with three fields": best(_creating_with_fields),
            "  finding who hears it": best(_finding_the_audience),
            "  two looks at the clock": best(_two_clocks),
            "  setting and resetting a ContextVar": best(_context_variable),
            "  thread and running loop": best(_owner),
            "  in and out of the open spans": best(_open_spans),
            "  announcing begin and end": best(_announcing),
            "  counting, in the inspector": _settling(inspector),
        }
        gc.disable()
        rows["a span without garbage collections"] = best(span_loop)
        gc.enable()
        rows["a coroutine, stepped once"] = best(_stepping(child))
        rows["the same with a driver"] = best(_stepping(lambda: instrument(child())))
    rows["a span that nobody hears"] = best(span_loop)
    for name, taken in rows.items():
        print(f"{name:38} {taken:8.0f} ns {taken / floor:7.2f} F")


if __name__ == "__main__":
    main()
