"""The helpers that users' own tests are written with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import structlog

from asyncinspect_logging import AsyncInspectHandler, AsyncInspectProcessor, Config, Inspector, clock, instrument, span
from asyncinspect_logging.testing import CapturedSpans, FakeClock, capture_spans

PLUGIN = "asyncinspect_logging.pytest_plugin"


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    yield
    structlog.reset_defaults()


# -- FakeClock -------------------------------------------------------------------------------------------------------


def test_clock_moves_when_told() -> None:
    """Both times stand still but for what advance adds."""
    fake = FakeClock(start=1000.0)
    mono = fake.monotonic_ns()
    assert fake.time_ns() == 1_000_000_000_000
    fake.advance(1.5)
    fake.advance(0)
    assert fake.monotonic_ns() - mono == 1_500_000_000
    assert fake.time_ns() == 1_001_500_000_000


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan")])
def test_clock_never_runs_backwards(seconds: float) -> None:
    """Neither by a negative number nor by what is none."""
    with pytest.raises(ValueError, match="time does not run backwards"):
        FakeClock().advance(seconds)


def test_clock_of_an_inspector() -> None:
    """As an inspector's clock it sets the time of the spans that the inspector hears."""
    fake = FakeClock()
    with capture_spans(clock=fake) as spans:
        with span("job"):
            fake.advance(2.5)
        fake.advance(1)
    task = spans.tasks[0]
    assert task.duration == 2.5
    assert task.age == 3.5
    assert task.started_at == 1_700_000_000.0


def test_clock_of_the_process() -> None:
    """As a context manager it is everybody's clock, and puts back what was there, also after an error and nested."""
    before = clock.monotonic_ns, clock.time_ns
    with capture_spans() as spans, contextlib.suppress(KeyError), FakeClock() as fake, span("job"):
        fake.advance(3)
        with FakeClock(start=5.0) as inner:
            assert clock.time_ns() == 5_000_000_000
            inner.advance(1)
        assert clock.monotonic_ns() == fake.monotonic_ns()
        raise KeyError
    assert spans.names["job"].durations["failed"].sum == 3.0
    assert (clock.monotonic_ns, clock.time_ns) == before


def test_clock_and_a_driver() -> None:
    """Busy and idle times are those of the clock."""

    async def work(fake: FakeClock) -> None:
        fake.advance(0.5)
        await asyncio.sleep(0)
        fake.advance(0.25)

    async def main(fake: FakeClock) -> None:
        await instrument(work(fake), name="job")

    with FakeClock() as fake, capture_spans() as spans:
        asyncio.run(main(fake))
    assert spans.tasks[0].busy == 0.75
    assert spans.tasks[0].max_poll == 0.5


# -- capture_spans ---------------------------------------------------------------------------------------------------


def test_capture() -> None:
    """It captures the spans of the block, of any logger, and nothing before or after it."""
    with span("before"):
        pass
    with capture_spans() as spans, span("job", user=7), span("other", logger=logging.getLogger("app.db")):
        logging.getLogger("app").error("inside")
    with span("after"):
        pass
    assert isinstance(spans, Inspector)
    assert spans.inspector is spans
    assert set(spans.names) == {"job", "other"}
    assert {task.name: dict(task.fields) for task in spans.tasks} == {"job": {"user": 7}, "other": {}}
    assert spans.snapshot().events["log"] == 1
    assert not any(isinstance(h, AsyncInspectHandler) and h.inspector is spans for h in logging.getLogger().handlers)


def test_capture_restores_after_an_error() -> None:
    """The loggers are as before, whatever ends the block."""
    logger, root = logging.getLogger("asyncinspect"), logging.getLogger()
    before = logger.handlers[:], root.handlers[:]
    with contextlib.suppress(KeyError), capture_spans():
        assert logger.handlers != before[0]
        raise KeyError
    assert (logger.handlers, root.handlers) == before


@pytest.mark.parametrize("how", ["disabled", "propagate", "level"])
def test_capture_whatever_the_logging_config(how: str) -> None:
    """A span logger that is disabled, closed off or set to a high level is captured all the same."""
    logger = logging.getLogger("asyncinspect")
    before = logger.disabled, logger.propagate, logger.level
    logger.disabled, logger.propagate = how == "disabled", how != "propagate"
    logger.setLevel(logging.CRITICAL)
    try:
        with capture_spans() as spans, span("job"):
            pass
        assert logger.disabled is (how == "disabled")
    finally:
        logger.disabled, logger.propagate = before[:2]
        logger.setLevel(before[2])
    spans.assert_completed("job", times=1)


def test_captures_nest() -> None:
    """Of two captures, each has the spans of its block."""
    with capture_spans() as outer:
        with span("a"):
            pass
        with capture_spans() as inner, span("b"):
            pass
    assert set(outer.names) == {"a", "b"}
    assert set(inner.names) == {"b"}


def test_capture_with_a_config() -> None:
    """By default everything is kept; a config of the test's own says what else."""
    with capture_spans() as everything, capture_spans(Config(max_tasks=2)) as two:
        for _ in range(2000):
            with span("job"):
                pass
    assert len(everything.tasks) == 2000
    assert len(two.tasks) == 2
    two.assert_completed("job", times=2000)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("level", [logging.DEBUG, logging.CRITICAL])
def test_capture_structlog(cached: bool, level: int) -> None:
    """Spans of structlog loggers are captured without our processor, cached loggers and high levels included."""

    def drop(logger: object, name: str, event: object) -> NoReturn:
        raise structlog.DropEvent

    structlog.configure(
        processors=[drop],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=cached,
    )
    log = structlog.get_logger()
    log.critical("first use")
    with capture_spans() as spans, span("job", logger=log), span("bound", logger=log.bind(x=1)):
        pass
    with span("after", logger=log):
        pass
    assert set(spans.names) == {"job", "bound"}
    spans.assert_no_open_spans()


@pytest.mark.parametrize("logs_first", [True, False])
def test_capture_with_capture_logs(logs_first: bool) -> None:
    """structlog's capture_logs can be active at once, in either order."""
    log = structlog.get_logger()
    if logs_first:
        with structlog.testing.capture_logs() as logs, capture_spans() as spans, span("job", logger=log):
            log.info("inside")
    else:
        with capture_spans() as spans, structlog.testing.capture_logs() as logs, span("job", logger=log):
            log.info("inside")
    spans.assert_completed("job", times=1)
    assert [event["event"].split()[0] for event in logs] == ["enter", "inside", "exit"]
    assert logs[0]["asyncinspect"]["name"] == "job"


def test_capture_structlog_lines() -> None:
    """With a processor for the captured spans, structlog's events are on the timelines."""
    with capture_spans() as spans:
        structlog.configure(processors=[AsyncInspectProcessor(spans), structlog.processors.JSONRenderer()])
        log = structlog.get_logger()
        with span("job", logger=log):
            log.info("inside")
    assert [event.detail for event in spans.tasks[0].events if event.kind == "log"] == ["INFO inside"]


# -- assertions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def spans() -> Iterator[CapturedSpans]:
    """Three spans that completed, one that failed, one cancelled, and one open."""
    with capture_spans() as spans:
        for _ in range(3):
            with span("fetch"):
                pass
        with pytest.raises(ConnectionError), span("fetch"):
            raise ConnectionError("refused")
        with pytest.raises(ExceptionGroup), span("group"):
            raise ExceptionGroup("two", [ValueError(), KeyError()])
        with pytest.raises(asyncio.CancelledError), span("fetch"):
            raise asyncio.CancelledError
        still_open = span("fetch")
        still_open.__enter__()
        yield spans
        still_open.__exit__(None, None, None)


def test_assertions_that_hold(spans: CapturedSpans) -> None:
    """Counts, or at least one; and errors by class, name and full name."""
    spans.assert_completed("fetch")
    spans.assert_completed("fetch", times=3)
    spans.assert_completed("nothing", times=0)
    spans.assert_failed("fetch", times=1)
    spans.assert_failed("fetch", times=1, error=ConnectionError)
    spans.assert_failed("fetch", error="ConnectionError")
    spans.assert_failed("fetch", times=0, error=OSError)
    spans.assert_failed("group", times=1, error=ExceptionGroup)
    spans.assert_cancelled("fetch", times=1)


def test_failure_shows_expected_and_seen(spans: CapturedSpans) -> None:
    """A failed assertion says what was expected, what was seen, each span of the name, and the other names."""
    with pytest.raises(AssertionError) as caught:
        spans.assert_completed("fetch", times=4)
    first, second, *rest = str(caught.value).splitlines()
    assert first == "expected: 'fetch' completed 4 times"
    assert second == "seen: 3 completed (3 completed, 1 failed, 1 cancelled, 1 open)"
    assert len([line for line in rest if line.startswith("  fetch ")]) == 6
    assert any(line.endswith("failed ConnectionError: refused") for line in rest)
    assert rest[-1] == "other names seen: 'group'"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("assert_completed('fetsch')", "expected: 'fetsch' completed at least once\nseen: no span named 'fetsch'"),
        ("assert_failed('fetch', times=2)", "expected: 'fetch' failed 2 times\nseen: 1 failed"),
        (
            "assert_failed('fetch', error=OSError)",
            "expected: 'fetch' failed with OSError at least once\nseen: 0 failed",
        ),
        ("assert_cancelled('group', times=1)", "expected: 'group' cancelled once\nseen: 0 cancelled"),
        ("assert_no_open_spans()", "expected: no open spans\nseen: 1 open\n  fetch "),
    ],
)
def test_failures(spans: CapturedSpans, call: str, text: str) -> None:
    """Each assertion fails with a message of its own."""
    with pytest.raises(AssertionError) as caught:
        eval(f"spans.{call}", {"spans": spans, "OSError": OSError})
    assert str(caught.value).startswith(text)


def test_long_lists_are_cut() -> None:
    """A message about a thousand spans shows some of them, and how many more there are."""
    with capture_spans() as spans:
        for number in range(1000):
            with span("job"), span(f"other {number}"):
                pass
    with pytest.raises(AssertionError) as caught:
        spans.assert_failed("job")
    assert "  … and 980 more" in str(caught.value)
    assert str(caught.value).endswith(" …")
    assert len(str(caught.value).splitlines()) < 30


# -- the pytest plugin -----------------------------------------------------------------------------------------------


def test_plugin_fixtures(inspector: CapturedSpans, fake_clock: FakeClock) -> None:
    """The fixtures give a capturing inspector and the process's clock."""
    with span("fetch_user"):
        fake_clock.advance(1)
    inspector.assert_completed("fetch_user", times=1)
    inspector.assert_no_open_spans()
    assert inspector.snapshot().tasks[0].duration == 1.0


def test_plugin_in_a_test_run(tmp_path: Path) -> None:
    """In a run of pytest of its own: the fixtures work, a failing assertion shows its message, nothing leaks."""
    (tmp_path / "test_theirs.py").write_text(
        textwrap.dedent(
            """
            from asyncinspect_logging import current_span, span

            def test_passes(inspector, fake_clock):
                with span("fetch_user"):
                    fake_clock.advance(2)
                inspector.assert_completed("fetch_user", times=1)
                assert inspector.snapshot().names["fetch_user"].durations["completed"].sum == 2.0

            def test_starts_empty(inspector):
                assert inspector.tasks == ()
                assert current_span() is None

            def test_fails(inspector):
                with span("fetch_user"):
                    pass
                inspector.assert_completed("fetch_user", times=3)
            """
        )
    )
    # Without the plugins that happen to be installed, which take their time.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", "."],
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "expected: 'fetch_user' completed 3 times" in done.stdout
    assert "seen: 1 completed (1 completed, 0 failed, 0 cancelled, 0 open)" in done.stdout
    # The helper's own frames are not what a user wants to see.
    assert "raise AssertionError" not in done.stdout


# -- findings and timeouts -------------------------------------------------------------------------------------------


def pytest_in(folder: Path, code: str, *arguments: str, **env: str) -> str:
    """What pytest says of a file of tests, in a process of its own."""
    (folder / "test_theirs.py").write_text("import asyncio, gc, time\n" + textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", *arguments, "."],
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", **env},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


FINDINGS = """
    async def slow():
        await asyncio.sleep(0)
        time.sleep(0.02)

    async def fine():
        await asyncio.sleep(0.001)

    def test_slow():
        asyncio.run(slow())

    def test_fine():
        asyncio.run(fine())

    def test_fails_anyway():
        asyncio.run(slow())
        assert False, "by itself"

    def test_a_loop_by_hand():
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(slow())
        finally:
            loop.close()

    async def waits():
        await asyncio.get_running_loop().create_future()

    def test_leak():
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)

        async def main():
            asyncio.create_task(waits())
            await asyncio.sleep(0)

        loop.run_until_complete(main())
        loop.close()
"""


def test_fail_on(tmp_path: Path) -> None:
    """Every test with such findings fails, with what was found, and no other."""
    out = pytest_in(
        tmp_path, FINDINGS, "--asyncinspect-fail-on=leak, long_poll", "-rA", ASYNC_INSPECT_SLOW_POLL="0.015"
    )
    assert "4 failed, 1 passed" in out, out
    assert "PASSED test_theirs.py::test_fine" in out
    assert "long_poll: slow: one step held the event loop for 0.02" in out
    assert "leaked: waits: the task was collected while it was pending" in out
    assert "by itself" in out


def test_fail_on_other_kinds(tmp_path: Path) -> None:
    """What was not asked for fails nothing."""
    out = pytest_in(tmp_path, FINDINGS, "--asyncinspect-fail-on=deadlock", ASYNC_INSPECT_SLOW_POLL="0.015")
    assert "1 failed, 4 passed" in out, out


@pytest.mark.parametrize("kinds", ["leek", "", "leak,slow"])
def test_fail_on_what_there_is_not(tmp_path: Path, kinds: str) -> None:
    """The run does not begin, and says what there is."""
    out = pytest_in(tmp_path, FINDINGS, f"--asyncinspect-fail-on={kinds}")
    assert "--asyncinspect-fail-on: " in out
    assert "write one or more of deadlock, " in out
    assert "long_poll" in out
    assert "passed" not in out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["signal", "thread"])
@pytest.mark.parametrize("seen", [True, False])
def test_timeout_says_where_tasks_are_stuck(tmp_path: Path, method: str, seen: bool) -> None:
    """With pytest-timeout, by either of its methods, and whether spans are captured or not."""
    hanging = """
        async def stuck_here():
            await asyncio.Event().wait()

        def test_hangs():
            asyncio.run(stuck_here())
    """
    options = ["-p", "pytest_timeout", "--timeout=1", f"--timeout-method={method}"]
    out = pytest_in(tmp_path, hanging, *options, *(["--asyncinspect-fail-on=deadlock"] if seen else []))
    assert "here asyncio tasks are stuck" in out, out
    report = out[out.index("here asyncio tasks are stuck") :]
    assert "stuck_here" in report
    assert ("tasks without a span" in report) is not seen
