"""Pytest plugin for `transparency.py`: every event loop of a run gets `install(sync=True)`, and
outcomes are written down.

--install-everywhere   call `install(loop, sync=True)` on every asyncio and uvloop loop as it is made, with a
                       handler attached
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
    INSPECTOR.on_finding(FINDINGS.append)
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
