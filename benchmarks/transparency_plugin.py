"""Pytest plugin for `transparency.py`: every event loop of a run gets `install()`, and outcomes are written down.

--install-everywhere   call `install(loop)` on every asyncio and uvloop loop as it is made, with a handler attached
--outcomes FILE        write {test id: [outcome, text of the failure]} as JSON
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from asyncinspect_logging import AsyncInspectHandler, Inspector, install

INSPECTOR = Inspector()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--install-everywhere", action="store_true", help="install() on every event loop")
    parser.addoption("--outcomes", type=Path, help="file to write the outcome of each test to")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--install-everywhere"):
        _install_everywhere()
    outcomes = config.getoption("--outcomes")
    if outcomes is not None:
        config.pluginmanager.register(_Recorder(outcomes))


def _install_everywhere() -> None:
    logger = logging.getLogger("asyncinspect")
    logger.addHandler(AsyncInspectHandler(INSPECTOR))
    # Tests that look at everything logged at DEBUG are not to see the lifecycle records, which belong there.
    logger.propagate = False
    _wrap_init(asyncio.BaseEventLoop)
    try:
        import uvloop
    except ImportError:
        return
    _wrap_init(uvloop.Loop)


def _wrap_init(loop_class: Any) -> None:
    plain = loop_class.__init__

    @functools.wraps(plain)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        install(self)

    loop_class.__init__ = __init__


class _Recorder:
    """Keeps, of each test, what its three phases came to; a failure in any of them counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome: str = report.outcome
        if outcome == "failed" and report.when != "call":
            outcome = "error"
        elif hasattr(report, "wasxfail"):
            outcome = "xpassed" if report.passed else "xfailed"
        if report.when == "call" or outcome != "passed":
            before = self._outcomes.get(report.nodeid)
            if before is None or before[0] == "passed":
                self._outcomes[report.nodeid] = (outcome, report.longreprtext[-2000:] if report.failed else "")

    def pytest_sessionfinish(self) -> None:
        told: dict[str, Any] = {"outcomes": self._outcomes}
        snapshot = INSPECTOR.snapshot()
        told["spans"] = sum(name.spawned for name in snapshot.names.values())
        self._path.write_text(json.dumps(told, indent=1), "utf-8")
