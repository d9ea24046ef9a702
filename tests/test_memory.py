"""The memory that the inspector reports, against what the allocator says."""

from __future__ import annotations

import contextvars
import gc
import logging
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from asyncinspect_logging import Config, Inspector, current_span, opened, span

COUNT = 10_000
Listen = Callable[..., Inspector]


def grown(inspector: Inspector, component: str, work: Callable[[], Any]) -> tuple[int, int]:
    """(bytes reported, bytes allocated) that `work` added."""
    inspector.settle()
    gc.collect()
    before = inspector.snapshot(tasks=False).memory[component]
    tracemalloc.start()
    try:
        kept = work()
        inspector.settle()
        gc.collect()
        allocated = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    reported = inspector.snapshot(tasks=False).memory[component] - before
    del kept
    return reported, allocated


def test_retained_spans(listen: Listen) -> None:
    """10,000 finished tasks with three fields."""
    inspector = listen(Config(max_tasks=None))

    def work() -> None:
        for number in range(COUNT):
            with span("request", user=number + 1000, path=f"/items/{number}", method="GET"):
                pass

    reported, allocated = grown(inspector, "tasks", work)
    assert reported == pytest.approx(allocated, rel=0.15)


def test_live_spans(listen: Listen) -> None:
    """10,000 open ones."""
    inspector = listen()

    def work() -> None:
        for number in range(COUNT):
            span("request", user=number + 1000).__enter__()

    def measure() -> tuple[int, int]:
        try:
            return grown(inspector, "tasks", work)
        finally:
            opened.end_all(current_span(), "abandoned")

    # In a context of its own, since nothing here leaves the spans that it enters.
    reported, allocated = contextvars.copy_context().run(measure)
    assert reported == pytest.approx(allocated, rel=0.15)


def test_told_spans(listen: Listen, tell: Callable[..., dict[str, Any]]) -> None:
    """10,000 open ones, told by records."""
    inspector = Inspector()

    def work() -> None:
        for number in range(COUNT):
            inspector.apply(tell("enter", number, fields={"user": number + 1000}))

    reported, allocated = grown(inspector, "tasks", work)
    assert reported == pytest.approx(allocated, rel=0.15)


def test_annotations(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 log lines."""
    # So that the handlers with which pytest collects what is logged get none of it.
    monkeypatch.setattr(logging.getLogger("asyncinspect"), "propagate", False)
    inspector = listen(Config(max_events=None))
    logger = logging.getLogger("asyncinspect.app")

    def work() -> None:
        for number in range(COUNT):
            logger.warning("line number %d", number)

    with span("a"):
        reported, allocated = grown(inspector, "events", work)
    assert reported == pytest.approx(allocated, rel=0.15)


def test_names(listen: Listen) -> None:
    """1,000 span names."""
    inspector = listen(Config(max_tasks=1))

    def work() -> None:
        for number in range(1000):
            for _ in range(3):
                with span(f"name{number:06d}"):
                    pass

    reported, allocated = grown(inspector, "metadata", work)
    assert reported == pytest.approx(allocated, rel=0.15)


def test_empty() -> None:
    """An inspector that saw nothing takes little, and says so."""
    assert 0 <= sum(Inspector().snapshot().memory.values()) < 10_000
