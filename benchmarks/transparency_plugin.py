"""Pytest plugin for `transparency.py`: every event loop of a run gets `install(sync=True)`, or every application a
middleware, and outcomes are written down.

--install-everywhere   call `install(loop, sync=True)` on every asyncio and uvloop loop as it is made, with a
                       handler attached
--middleware-everywhere   put our middleware around every application of Starlette and into every one of aiohttp, with
                       a handler attached
--outcomes FILE        write {test id: [outcome, text of the failure]} as JSON, and what an inspector of defaults
                       found meanwhile
"""

from __future__ import annotations

import asyncio
import bisect
import functools
import gc
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from asyncinspect_logging import AsyncInspectHandler, Inspector, install
from asyncinspect_logging.snapshot import Finding

INSPECTOR = Inspector()
FINDINGS: list[Finding] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--install-everywhere", action="store_true", help="install() on every event loop")
    parser.addoption("--middleware-everywhere", action="store_true", help="our middleware in every application")
    parser.addoption("--outcomes", type=Path, help="file to write the outcome of each test to")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--install-everywhere"):
        _install_everywhere()
    if config.getoption("--middleware-everywhere"):
        _middleware_everywhere()
    outcomes = config.getoption("--outcomes")
    if outcomes is not None:
        config.pluginmanager.register(_Recorder(outcomes))


def _listen() -> None:
    logger = logging.getLogger("asyncinspect")
    logger.addHandler(AsyncInspectHandler(INSPECTOR))
    INSPECTOR.on_finding(FINDINGS.append)
    # Tests that look at everything logged at DEBUG are not to see the lifecycle records, which belong there.
    logger.propagate = False


def _middleware_everywhere() -> None:
    _listen()
    try:
        from starlette.applications import Starlette
    except ImportError:
        pass
    else:
        from asyncinspect_logging.integrations.asgi import AsyncInspectMiddleware

        plain_stack = Starlette.build_middleware_stack

        def build_middleware_stack(self: Any) -> Any:
            return AsyncInspectMiddleware(plain_stack(self))

        Starlette.build_middleware_stack = build_middleware_stack  # type: ignore[method-assign]
    try:
        from aiohttp import web
    except ImportError:
        return
    from asyncinspect_logging.integrations.aiohttp import asyncinspect_middleware

    plain = web.Application.__init__

    @functools.wraps(plain)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        self.middlewares.insert(0, asyncinspect_middleware())

    web.Application.__init__ = __init__  # type: ignore[method-assign]


def _install_everywhere() -> None:
    _listen()
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
        install(self, sync=True)

    loop_class.__init__ = __init__


class _Recorder:
    """Keeps, of each test, what its three phases came to; a failure in any of them counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outcomes: dict[str, tuple[str, str]] = {}
        self._began: list[float] = []
        self._tests: list[str] = []

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began.append(time.time())
        self._tests.append(nodeid)

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
        # What is about to be collected may be found to have leaked.
        gc.collect()
        snapshot = INSPECTOR.snapshot()
        told: dict[str, Any] = {
            "outcomes": self._outcomes,
            "spans": sum(name.spawned for name in snapshot.names.values()),
            "findings": [self._told(finding) for finding in FINDINGS],
        }
        self._path.write_text(json.dumps(told, indent=1), "utf-8")

    def _told(self, finding: Finding) -> dict[str, Any]:
        """A finding with the test that ran when it came about: it is told up to a look of the watcher later."""
        began_before = bisect.bisect(self._began, finding.at)
        return {"test": self._tests[began_before - 1] if began_before else "", **finding._asdict()}
