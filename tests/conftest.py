"""What the tests share: bounded, repeatable examples, a logging set-up that each test leaves as it found it, and
streams of lifecycle records.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector

if os.environ.get("PYTEST_XDIST_WORKER") and os.environ.get("COVERAGE_OF_WORKERS"):
    # `make test` measures the process that starts the workers; each of them measures itself, from here on.
    import coverage

    _coverage = coverage.Coverage(data_suffix=True)
    _coverage.start()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish() -> None:
        _coverage.stop()
        _coverage.save()


settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


class SetClock:
    """A clock that stands still until it is set. Times in ns."""

    def __init__(self, t: int = 1_000_000_000, wall: int = 1_700_000_000_000_000_000) -> None:
        self.t = t
        self.offset = wall - t

    def monotonic_ns(self) -> int:
        return self.t

    def time_ns(self) -> int:
        return self.t + self.offset


class Stream:
    """Makes the payloads of one process, numbering them."""

    def __init__(self, pid: int = 100, base: int = 0x1234 << 40) -> None:
        self.pid = pid
        self.base = base
        self.seq = 0
        self.t = 1_000_000_000

    def __call__(self, kind: str, number: int = 1, **more: Any) -> dict[str, Any]:
        self.seq += 1
        self.t += 1_000_000
        payload: dict[str, Any] = {
            "v": 1,
            "kind": kind,
            "id": f"{self.base + number:016x}",
            "t": self.t,
            "wall": self.t + 1_700_000_000_000_000_000,
            "pid": self.pid,
            "seq": self.seq,
        }
        if kind in ("spawn", "enter", "record", "exit"):
            payload["name"] = "job"
        if kind in ("spawn", "enter"):
            payload |= {"trace": f"{self.base + number:032x}", "thread": 1, "fields": {}}
        if kind == "exit":
            payload |= {"outcome": "completed", "duration": 2_000_000, "polls": 1, "busy": 0, "scheduled": 0}
            payload |= {"max_poll": 0, "wakes": 0, "self_wakes": 0}
        return payload | more


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def tell() -> Stream:
    return Stream()


@pytest.fixture
def stream() -> Callable[..., Stream]:
    return Stream


@pytest.fixture
def listen() -> Iterator[Callable[..., Inspector]]:
    """A function that makes an inspector and puts its handler on the span logger until the test ends."""
    logger = logging.getLogger("asyncinspect")
    handlers: list[logging.Handler] = []

    def listen(config: Config | None = None, *, clock: Any = None, handler: type = AsyncInspectHandler) -> Inspector:
        inspector = Inspector(config, clock=clock)
        handlers.append(handler(inspector))
        logger.addHandler(handlers[-1])
        return inspector

    yield listen
    for handler in handlers:
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    logger, root = logging.getLogger("asyncinspect"), logging.getLogger()
    before = logger.level, logger.handlers[:], logger.filters[:], root.level, root.handlers[:]
    yield
    logger.setLevel(before[0])
    logger.handlers[:], logger.filters[:] = before[1], before[2]
    root.setLevel(before[3])
    root.handlers[:] = before[4]
