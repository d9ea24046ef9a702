"""Fixtures and options for pytest; see `asyncinspect_logging.testing`."""

# Every test run of an environment with this package loads this plugin, whether it has use for it or not: what only the
# fixtures and options need is imported when a test asks for them.

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .snapshot import Finding
    from .testing import CapturedSpans, FakeClock

__all__ = ["fake_clock", "inspector"]


@pytest.fixture
def inspector() -> Iterator[CapturedSpans]:
    """An inspector of the spans begun in the test, with assertions such as `assert_completed("fetch_user", times=3)`
    and `assert_no_open_spans()`.
    """
    from .testing import capture_spans

    with capture_spans() as spans:
        yield spans


@pytest.fixture
def fake_clock() -> Iterator[FakeClock]:
    """The clock of all spans in the test; it moves by `fake_clock.advance(seconds)` only."""
    from .testing import FakeClock

    with FakeClock() as clock:
        yield clock


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("asyncinspect").addoption(
        "--asyncinspect-fail-on",
        metavar="KINDS",
        help="fail tests in which asyncio tasks do what they should not: kinds of findings, with commas, such as "
        "leak,deadlock,long_poll",
    )


def pytest_configure(config: pytest.Config) -> None:
    text = config.getoption("asyncinspect_fail_on")
    if text is not None:
        from .testing import finding_kinds

        try:
            kinds = finding_kinds(text)
        except ValueError as error:
            raise pytest.UsageError(f"--asyncinspect-fail-on: {error}") from None
        config.pluginmanager.register(_FailOn(kinds), "asyncinspect_fail_on")
    timeout: Any = sys.modules.get("pytest_timeout")
    for name in ("timeout_sigalrm", "timeout_timer"):
        theirs = getattr(timeout, name, None)
        if theirs is not None:
            setattr(timeout, name, _reporting(theirs, timeout))
            config.add_cleanup(functools.partial(setattr, timeout, name, theirs))


class _FailOn:
    """Fails each test in whose run there were findings of these kinds."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self._kinds = kinds
        self._spans: CapturedSpans | None = None
        self._told: set[Finding] = set()

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        from .config import Config
        from .testing import capture_spans, drive_all_loops

        with capture_spans(Config.from_env()) as self._spans, drive_all_loops(sync="deadlock" in self._kinds):
            yield
        self._spans = None
        self._told.clear()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[None]:
        outcome: Any = yield
        report = outcome.get_result()
        found = self._found()
        if not found:
            return
        text = "\n".join(f"{finding.kind}: {finding.message}" for finding in found)
        if report.passed:
            report.outcome, report.longrepr = "failed", f"findings of asyncinspect_logging:\n{text}"
        else:
            report.sections.append(("asyncinspect findings", text))

    def _found(self) -> list[Finding]:
        """What this phase of the test is to be failed for."""
        if self._spans is None:
            return []
        if self._kinds & {"leaked", "never_awaited"}:
            # Tasks and coroutines that are in a cycle go now, and not in some other test.
            gc.collect()
        self._spans.look()
        findings = self._spans.snapshot().findings
        found = [finding for finding in findings if finding.kind in self._kinds and finding not in self._told]
        self._told.update(found)
        return found


def _reporting(theirs: Callable[..., Any], timeout: Any) -> Callable[..., Any]:
    """In the place of what pytest-timeout calls when time is up: first say where every task is stuck."""

    @functools.wraps(theirs)
    def ours(item: pytest.Item, settings: Any) -> Any:
        __tracebackhide__ = True
        if settings.disable_debugger_detection or not timeout.is_debugging():
            try:
                _report(item, ends_process=theirs.__name__ == "timeout_timer")
            except Exception as error:
                item.add_report_section("call", "asyncinspect", f"no report of where tasks are stuck: {error!r}")
        return theirs(item, settings)

    return ours


def _report(item: pytest.Item, *, ends_process: bool) -> None:
    from .testing import where_stuck

    text = where_stuck()
    if not text:
        return
    if not ends_process:
        item.add_report_section("call", "where asyncio tasks are stuck", text)
        return
    capture: Any = item.config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(item)
    terminal = item.config.get_terminal_writer()
    terminal.sep("~", title="Where asyncio tasks are stuck")
    terminal.line(text)
