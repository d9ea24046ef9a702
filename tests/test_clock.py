from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from freezegun import freeze_time

from asyncinspect_logging import Inspector, clock, errors, run, span


def test_wall_time_is_one_anchor_plus_monotonic_time() -> None:
    """It runs as the monotonic clock runs."""
    assert clock.wall_ns(5_000) - clock.wall_ns(2_000) == 3_000
    assert abs(clock.wall_ns(time.monotonic_ns()) - time.time_ns()) < 5_000_000_000


def test_wall_time_of_a_given_clock(clock: Any) -> None:
    """The clock that a time is from says what it means."""
    from asyncinspect_logging.clock import wall_ns

    assert wall_ns(clock.monotonic_ns() + 7, clock) == clock.time_ns() + 7


def test_freezegun_moves_the_library(listen: Callable[..., Inspector]) -> None:
    """Durations and wall times are those that the test sets."""
    inspector = listen()
    with freeze_time("2030-01-01 00:00:00") as frozen:
        with span("frozen"):
            frozen.tick(2.5)
        snapshot = inspector.snapshot()
    (task,) = snapshot.tasks
    assert task.duration == pytest.approx(2.5)
    assert snapshot.taken_at == pytest.approx(1893456002.5)
    assert task.started_at == pytest.approx(1893456000.0)


def test_a_given_clock_sets_the_time(listen: Callable[..., Inspector], clock: Any) -> None:
    """That of the spans, and that of the snapshot."""
    inspector = listen(clock=clock)
    with span("set"):
        clock.t += 3_000_000_000
    snapshot = inspector.snapshot()
    assert snapshot.tasks[0].duration == 3.0
    assert snapshot.taken_at == clock.time_ns() / 1e9
    assert snapshot.names["set"].durations["completed"].sum == 3.0


def test_a_clock_that_goes_backwards(listen: Callable[..., Inspector], clock: Any) -> None:
    """No duration, age or histogram gets below zero."""
    inspector = listen(clock=clock)
    with span("back"):
        clock.t -= 500_000_000
        (live,) = inspector.snapshot().tasks
        assert live.age == 0
        assert live.idle >= 0
    snapshot = inspector.snapshot()
    assert snapshot.tasks[0].duration == 0
    assert snapshot.names["back"].durations["completed"].sum == 0


def test_a_clock_that_goes_backwards_in_a_driven_task(listen: Callable[..., Inspector], clock: Any) -> None:
    """No time of a step gets below zero, and no counter falls."""
    inspector = listen(clock=clock)
    seen = []

    async def main() -> None:
        for seconds in (1, -5, 2, -1):
            clock.t += seconds * 1_000_000_000
            await asyncio.sleep(0)
            clock.t += seconds * 1_000_000_000
            seen.append(inspector.snapshot().names[main.__qualname__])

    run(main())
    snapshot = inspector.snapshot()
    seen.append(snapshot.names[main.__qualname__])
    times = [(view.busy, view.idle, view.scheduled) for view in seen]
    assert min(min(each) for each in times) >= 0
    assert all(a <= b for before, after in pairwise(times) for a, b in zip(before, after, strict=True))
    task = next(task for task in snapshot.tasks if task.name == main.__qualname__)
    assert min(task.age, task.busy, task.idle, task.scheduled, task.max_poll, task.duration or 0) >= 0


def test_what_is_no_clock_is_refused() -> None:
    """Right away, and not when the first span begins."""
    with pytest.raises(errors.ConfigError, match="monotonic_ns"):
        Inspector(clock=object())
