"""The processor for structlog, and spans whose logger is one of structlog's."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import io
import json
import logging
import logging.handlers
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from asyncinspect_logging import (
    AsyncInspectHandler,
    AsyncInspectProcessor,
    Config,
    Inspector,
    annotate,
    instrument,
    span,
)
from asyncinspect_logging.diagnostics import troubles
from asyncinspect_logging.errors import MissingExtraError
from asyncinspect_logging.records import KEY, TRACE, flaw_of, payload_of
from asyncinspect_logging.structlog_route import Told

DEBUG, INFO = logging.DEBUG, logging.INFO


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    """structlog, and the loggers of these tests, as they were."""
    before = logging.getLoggerClass()
    yield
    structlog.reset_defaults()
    logging.setLoggerClass(before)
    for name in ("app", "tests", __name__):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.filters.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


@pytest.fixture
def inspector() -> Inspector:
    return Inspector(Config.debug())


class Collect:
    """A processor that keeps a copy of each event and passes it on."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, logger: Any, method_name: str, event: Any) -> Any:
        self.events.append(dict(event))
        return event

    @property
    def texts(self) -> list[str]:
        return [event["event"].split(" after")[0] for event in self.events]


def drop(logger: Any, method_name: str, event: Any) -> Any:
    raise structlog.DropEvent


def use(*processors: Any, level: int = DEBUG, **more: Any) -> Any:
    """Configure a native chain of these processors and return a logger."""
    structlog.configure(processors=list(processors), wrapper_class=structlog.make_filtering_bound_logger(level), **more)
    return structlog.get_logger()


def use_stdlib(*processors: Any, **more: Any) -> Any:
    """Configure a chain that ends in the stdlib logger "app" and return a logger."""
    structlog.configure(
        processors=list(processors),
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        **more,
    )
    return structlog.get_logger("app")


def counts(inspector: Inspector) -> tuple[int, int, int]:
    snapshot = inspector.snapshot()
    names = snapshot.names.values()
    return sum(n.spawned for n in names), sum(n.finished for n in names), sum(snapshot.dropped.values())


def logs_of(inspector: Inspector) -> list[str]:
    return [event.detail for task in inspector.snapshot().tasks for event in task.events if event.kind == "log"]


# -- events in the chain ---------------------------------------------------------------------------------------------


def test_ids_and_annotations(inspector: Inspector) -> None:
    """Events inside a span get its ids and are lines on its timeline; those outside are left as they are."""
    end = Collect()
    log = use(AsyncInspectProcessor(inspector), end, drop, level=INFO)
    log.info("outside")
    with span("job", logger=log) as s:
        log.info("inside", rows=3)
        log.debug("not this")
    assert end.events == [
        {"event": "outside"},
        {"event": "inside", "rows": 3, "span": "job", "span_id": s.id, "trace_id": s.trace_id},
    ]
    assert logs_of(inspector) == ["INFO inside"]


@pytest.mark.parametrize("key", ["span", "span_id", "trace_id"])
def test_own_keys_stay(inspector: Inspector, key: str) -> None:
    """The application's own key is not overwritten, and the line is counted all the same."""
    end = Collect()
    log = use(AsyncInspectProcessor(inspector), AsyncInspectProcessor(inspector), end, drop)
    with span("job", logger=log):
        log.info("inside", **{key: "mine"})
    assert end.events[0][key] == "mine"
    assert logs_of(inspector) == ["INFO inside"]


def test_event_texts(inspector: Inspector) -> None:
    """What is no text is named, and positional arguments are filled in."""
    log = use_stdlib(AsyncInspectProcessor(inspector), drop)
    with span("job", logger=log):
        log.info("%d of %d", 1, 2)
        log.info("%(a)s", {"a": 5})
        log.info("%d of", "x")
        log.info(object())
        log.warning()
        log.critical("went wrong")
    assert logs_of(inspector) == [
        "INFO 1 of 2",
        "INFO 5",
        "INFO %d of",
        "INFO <object>",
        "WARNING ",
        "CRITICAL went wrong",
    ]


def test_lifecycle_events_from_elsewhere(inspector: Inspector) -> None:
    """A lifecycle event that was written by another process feeds the inspector and ends there."""
    end = Collect()
    log = use(AsyncInspectProcessor(inspector), end, drop)
    payload = {"v": 1, "id": "00f067aa0ba902b7", "t": 5, "wall": 5, "pid": 1, "seq": 1, "name": "job", "kind": "enter"}
    log.info("enter job", asyncinspect=payload)
    log.info("malformed", asyncinspect={"v": 1, "kind": "enter"})
    log.info("mine", asyncinspect="just a text")
    assert end.texts == ["mine"]
    snapshot = inspector.snapshot()
    assert snapshot.names["job"].spawned == 1
    assert snapshot.dropped["malformed"] == 1


def test_pass_lifecycle(inspector: Inspector) -> None:
    """Told to, it passes lifecycle events on."""
    end = Collect()
    log = use(AsyncInspectProcessor(inspector, pass_lifecycle=True), end, drop)
    payload = {"v": 1, "id": "00f067aa0ba902b7", "t": 5, "wall": 5, "pid": 1, "seq": 1, "name": "job", "kind": "enter"}
    log.info("enter job", asyncinspect=payload)
    assert end.texts == ["enter job"]
    assert inspector.snapshot().names["job"].spawned == 1


def test_never_raises(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure inside leaves the event as it was, and is counted."""
    end = Collect()
    log = use(AsyncInspectProcessor(inspector), end, drop)

    def broken(*args: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(inspector, "annotate", broken)
    before = troubles["processor"]
    with span("job", logger=log):
        log.info("inside")
    assert end.texts == ["inside"]
    assert troubles["processor"] == before + 1


def test_wrong_inspector_is_refused() -> None:
    """What is no inspector is named in the error, with what to write instead."""
    with pytest.raises(TypeError, match=r"inspector='x' is not an Inspector; write AsyncInspectProcessor\(Inspector"):
        AsyncInspectProcessor("x")  # type: ignore[arg-type]


def test_default_inspector(monkeypatch: pytest.MonkeyPatch, inspector: Inspector) -> None:
    """Without arguments it feeds the default inspector."""
    monkeypatch.setattr(Inspector, "_default", inspector)
    log = use(AsyncInspectProcessor(), drop)
    with span("job", logger=log):
        pass
    assert counts(inspector) == (1, 1, 0)


def test_two_processors_of_one_inspector_count_once(inspector: Inspector) -> None:
    """Twice in one chain is once."""
    log = use(AsyncInspectProcessor(inspector, True), Collect(), AsyncInspectProcessor(inspector, True), drop)
    with span("job", logger=log):
        log.info("inside")
        annotate("note")
    assert counts(inspector) == (1, 1, 0)
    assert logs_of(inspector) == ["INFO inside", "DEBUG note"]


def test_two_inspectors_in_one_chain(inspector: Inspector) -> None:
    """Two inspectors each get everything, though the first processor drops lifecycle events."""
    other = Inspector()
    log = use(AsyncInspectProcessor(inspector), Collect(), AsyncInspectProcessor(other), drop)
    with span("job", logger=log):
        log.info("inside")
    for each in (inspector, other):
        assert counts(each) == (1, 1, 0)
        assert logs_of(each) == ["INFO inside"]


# -- spans with a structlog logger -----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [DEBUG, INFO, logging.CRITICAL])
@pytest.mark.parametrize("position", [0, 1])
def test_spans_are_heard_whatever_the_level(inspector: Inspector, level: int, position: int) -> None:
    """The filtering bound logger drops debug before any processor runs, and the inspector hears spans all the same."""
    chain: list[Any] = [Collect(), drop]
    chain.insert(position, AsyncInspectProcessor(inspector))
    log = use(*chain, level=level)
    with span("job", logger=log, user=7), pytest.raises(ValueError, match="no"), span("inner", logger=log.bind(x=1)):
        raise ValueError("no")
    assert counts(inspector) == (2, 2, 0)
    outer, inner = sorted(inspector.snapshot().tasks, key=lambda task: task.name != "job")
    assert inner.parent_id == outer.id
    assert outer.fields == {"user": 7}
    assert inner.outcome == "failed"


def test_lifecycle_events_in_the_chain(inspector: Inspector) -> None:
    """A processor before ours sees what a stdlib handler would: the same text, level debug, and the payload."""
    seen = Collect()
    end = Collect()
    log = use(seen, AsyncInspectProcessor(inspector), end, drop).bind(request="r1")
    with span("job", logger=log, user=7) as s:
        s.record(rows=3)
    assert seen.texts == ["enter job", "record job", "exit job completed"]
    assert end.events == []
    for event in seen.events:
        payload = payload_of(event)
        assert payload is not None
        assert flaw_of(payload) is None
        assert payload["id"] == s.id
        assert set(event) == {"event", "request", KEY}
    assert json.loads(json.dumps(seen.events[0]))[KEY]["fields"] == {"user": 7}
    assert counts(inspector) == (1, 1, 0)


def test_events_before_ours_follow_the_level(inspector: Inspector) -> None:
    """At level INFO no other processor sees lifecycle events, passed on or not."""
    seen, end = Collect(), Collect()
    log = use(seen, AsyncInspectProcessor(inspector, pass_lifecycle=True), end, drop, level=INFO)
    with span("job", logger=log) as s:
        s.record(rows=3)
    assert seen.events == end.events == []
    assert counts(inspector) == (1, 1, 0)


def test_passed_events_reach_the_end_of_the_chain(inspector: Inspector) -> None:
    """At DEBUG, and told to pass, enter and exit are printed."""
    out = io.StringIO()
    log = use(
        AsyncInspectProcessor(inspector, pass_lifecycle=True),
        structlog.processors.add_log_level,
        structlog.processors.JSONRenderer(),
        logger_factory=structlog.PrintLoggerFactory(out),
    )
    with span("job", logger=log):
        pass
    enter, leave = [json.loads(line) for line in out.getvalue().splitlines()]
    assert enter["event"] == "enter job"
    assert enter["level"] == "debug"
    assert leave["asyncinspect"]["outcome"] == "completed"
    assert counts(inspector) == (1, 1, 0)
    # What was printed gives the same numbers to another inspector.
    other = Inspector()
    other.apply(enter)
    other.apply(leave)
    assert counts(other) == (1, 1, 0)


@pytest.mark.parametrize("level", [DEBUG, INFO])
def test_without_a_processor_that_accepts_spans(level: int) -> None:
    """Then the usual rules hold: events at DEBUG, none at INFO."""
    seen = Collect()
    log = use(seen, drop, level=level)
    with span("job", logger=log) as s:
        assert s.is_open
    assert seen.texts == (["enter job", "exit job completed"] if level == DEBUG else [])


@pytest.mark.parametrize("level", [DEBUG, INFO])
def test_other_processor_that_accepts_spans(level: int) -> None:
    """A processor of somebody else's with accepts_spans = True gets each lifecycle event once, whatever the level."""

    class Other(Collect):
        accepts_spans = True

        def __call__(self, logger: Any, method_name: str, event: Any) -> Any:
            super().__call__(logger, method_name, event)
            if KEY in event:
                raise structlog.DropEvent
            return event

    other = Other()
    log = use(other, drop, level=level).bind(request="r1")
    with span("job", logger=log):
        annotate("note", x=1)
    assert other.texts == ["enter job", "note", "exit job completed"]
    assert all(event["request"] == "r1" for event in other.events)
    assert other.events[1]["x"] == 1


def test_subclass_with_its_own_call(inspector: Inspector) -> None:
    """A subclass that overrides __call__ sees each event, and its inspector counts as before."""
    seen: list[str] = []

    class Own(AsyncInspectProcessor):
        def __call__(self, logger: Any, method_name: str, event: Any) -> Any:
            seen.append(event["event"].split(" after")[0])
            return super().__call__(logger, method_name, event)

    log = use(Own(inspector), drop, level=INFO)
    with span("job", logger=log):
        pass
    assert seen == ["enter job", "exit job completed"]
    assert inspector.snapshot().names["job"].completed == 1


def test_level_changed_inside_a_span(inspector: Inspector) -> None:
    """A new configuration inside a span changes nothing for that span."""
    seen = Collect()
    log = use(seen, AsyncInspectProcessor(inspector), drop)
    with span("told", logger=log):
        use(seen, AsyncInspectProcessor(inspector), drop, level=INFO)
        with span("quiet", logger=log):
            use(seen, AsyncInspectProcessor(inspector), drop)
    assert seen.texts == ["enter told", "exit told completed"]
    assert counts(inspector) == (2, 2, 0)


def test_processors_changed_between_spans(inspector: Inspector) -> None:
    """A chain that is changed in place, or configured anew, counts for the next span."""
    chain: list[Any] = [drop]
    structlog.configure(processors=chain)
    log = structlog.get_logger()
    with span("unheard", logger=log):
        pass
    chain.insert(0, AsyncInspectProcessor(inspector))
    with span("job", logger=log):
        pass
    assert counts(inspector) == (1, 1, 0)
    structlog.configure(processors=[drop])
    with span("unheard", logger=log):
        pass
    assert counts(inspector) == (1, 1, 0)


@pytest.mark.parametrize("cached", [True, False])
def test_lazy_and_cached_loggers(inspector: Inspector, cached: bool) -> None:
    """Lazy proxies, bound ones, and those that are cached on first use all work."""
    log = use(AsyncInspectProcessor(inspector), drop, cache_logger_on_first_use=cached)
    for logger in (log, log.bind(x=1), log.new(), structlog.get_logger(y=2), structlog.wrap_logger(None)):
        with span("job", logger=logger):
            pass
    assert counts(inspector) == (5, 5, 0)
    assert ("bind" in vars(log)) is cached


def test_generic_bound_logger(inspector: Inspector) -> None:
    """structlog's generic bound logger takes any attribute for a log method; asking it for levels must log nothing."""
    seen = Collect()
    structlog.configure(processors=[seen, AsyncInspectProcessor(inspector), drop], wrapper_class=structlog.BoundLogger)
    with span("job", logger=structlog.get_logger()):
        pass
    assert seen.texts == ["enter job", "exit job completed"]
    assert counts(inspector) == (1, 1, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_async_bound_logger(inspector: Inspector) -> None:
    """The deprecated AsyncBoundLogger hands its spans to the same chain."""

    async def main() -> None:
        log = structlog.stdlib.AsyncBoundLogger(logging.getLogger("app"), [AsyncInspectProcessor(inspector), drop], {})
        structlog.configure(processors=[AsyncInspectProcessor(inspector), drop], wrapper_class=type(log))
        for logger in (log, structlog.wrap_logger(logging.getLogger("app"))):
            with span("job", logger=logger):
                pass

    asyncio.run(main())
    assert counts(inspector) == (2, 2, 0)


def test_print_logger_writes_to_the_stdout_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    """A logger made for every event must not be kept: what it prints to is that of its time."""
    log = use(structlog.processors.KeyValueRenderer())
    with span("job", logger=log):
        pass
    assert "enter job" in capsys.readouterr().out
    out = io.StringIO()
    with contextlib.redirect_stdout(out), span("job", logger=log):
        pass
    assert "enter job" in out.getvalue()
    assert capsys.readouterr().out == ""


def test_processor_that_raises(inspector: Inspector, capsys: pytest.CaptureFixture[str]) -> None:
    """A failing processor is told of once and does not reach the code in the span."""

    def broken(logger: Any, method_name: str, event: Any) -> Any:
        raise LookupError("in a processor")

    log = use(broken, AsyncInspectProcessor(inspector), drop)
    for _ in range(3):
        with span("job", logger=log):
            pass
    assert counts(inspector) == (3, 3, 0)
    assert capsys.readouterr().err.count("LookupError: in a processor") <= 1


def test_not_a_logger(inspector: Inspector) -> None:
    """What is no logger is told of once, and the default logger is used."""
    handler = AsyncInspectHandler(inspector)
    logging.getLogger("asyncinspect").addHandler(handler)
    for wrong in ([], 5, object()):
        with span("job", logger=wrong):
            pass
    logging.getLogger("asyncinspect").removeHandler(handler)
    handler.close()
    assert counts(inspector) == (3, 3, 0)


def test_logger_that_fails_to_bind(inspector: Inspector) -> None:
    """A structlog logger that cannot be made leaves the span to the default logger."""
    handler = AsyncInspectHandler(inspector)
    logging.getLogger("asyncinspect").addHandler(handler)

    def factory(*args: Any) -> Any:
        raise RuntimeError("no logger today")

    log = use(drop, logger_factory=factory)
    with span("job", logger=log):
        pass
    logging.getLogger("asyncinspect").removeHandler(handler)
    handler.close()
    assert counts(inspector) == (1, 1, 0)


def test_annotate(inspector: Inspector) -> None:
    """A line put by annotate is an event like any other where the level allows, and on the timeline in any case."""
    end = Collect()
    log = use(AsyncInspectProcessor(inspector), end, drop)
    with span("job", logger=log) as s:
        annotate("note", rows=3, password="hunter2")
    assert end.events[0]["event"] == "note"
    assert end.events[0]["rows"] == 3
    assert end.events[0]["span_id"] == s.id
    assert "hunter2" not in str(end.events)
    log = use(AsyncInspectProcessor(inspector), end, drop, level=INFO)
    with span("job", logger=log):
        annotate("quiet")
    assert end.texts == ["note"]
    assert logs_of(inspector) == ["DEBUG note", "DEBUG quiet"]


def test_capture_logs(inspector: Inspector) -> None:
    """capture_logs takes our processor out: spans from before go on being heard, those inside show in its list."""
    log = use(AsyncInspectProcessor(inspector), drop)
    with span("job", logger=log), structlog.testing.capture_logs() as captured:
        log.info("inside")
        with span("other", logger=log):
            pass
    assert [event["event"].split(" after")[0] for event in captured] == [
        "inside",
        "enter other",
        "exit other completed",
    ]
    assert counts(inspector) == (1, 1, 0)
    with span("job", logger=log):
        pass
    assert counts(inspector) == (2, 2, 0)


def test_driven_coroutine(inspector: Inspector) -> None:
    """Under a driver the tallies reach the inspector, without an event for each step."""
    seen = Collect()
    log = use(seen, AsyncInspectProcessor(inspector), drop)
    asyncio.run(_run(instrument(asyncio.sleep(0), name="job", logger=log)))
    assert seen.texts == ["enter job", "exit job completed"]
    assert inspector.snapshot().names["job"].polls == 2


async def _run(awaitable: Any) -> Any:
    return await awaitable


# -- structlog on top of stdlib logging ------------------------------------------------------------------------------


def stdlib_handler(form: logging.Formatter, name: str = "app") -> io.StringIO:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(form)
    logging.getLogger(name).addHandler(handler)
    return out


def json_formatter(*foreign_pre_chain: Any) -> logging.Formatter:
    """For records of stdlib logging, and events of structlog that were wrapped for it."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=foreign_pre_chain,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    )


Renders: dict[str, Callable[[], list[Any]]] = {
    "text": lambda: [structlog.processors.KeyValueRenderer()],
    "json": lambda: [structlog.processors.JSONRenderer()],
    "log_kwargs": lambda: [structlog.stdlib.render_to_log_kwargs],
    "wrapped": lambda: [structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
}


@pytest.mark.parametrize("render", Renders)
@pytest.mark.parametrize("queued", [False, True])
def test_chain_and_handler_count_once(inspector: Inspector, render: str, queued: bool) -> None:
    """An event counted in the chain is not counted again by a handler behind the stdlib logger, in whatever form, or
    thread, it gets there.
    """
    log = use_stdlib(AsyncInspectProcessor(inspector), *Renders[render]())
    app = logging.getLogger("app")
    app.setLevel(INFO)
    app.propagate = False
    ours = AsyncInspectHandler(inspector)
    handler: logging.Handler = logging.handlers.QueueHandler(queue.SimpleQueue()) if queued else ours
    app.addHandler(handler)
    with span("job", logger=log):
        log.info("one")
        app.info("by itself")
        log.info("two")
    if queued:
        listener = logging.handlers.QueueListener(handler.queue, ours)  # type: ignore[attr-defined]
        listener.start()
        listener.stop()
    ours.close()
    assert counts(inspector) == (1, 1, 0)
    assert sorted(logs_of(inspector)) == ["INFO by itself", "INFO one", "INFO two"]


def test_event_dropped_after_ours(inspector: Inspector) -> None:
    """A line counted in the chain and dropped later does not hide a record that the same logger makes by itself."""

    def drop_some(logger: Any, method_name: str, event: Any) -> Any:
        if "drop" in event["event"]:
            raise structlog.DropEvent
        return event

    log = use_stdlib(AsyncInspectProcessor(inspector), drop_some, structlog.processors.KeyValueRenderer())
    app = logging.getLogger("app")
    app.setLevel(INFO)
    app.propagate = False
    handler = AsyncInspectHandler(inspector)
    app.addHandler(handler)
    with span("job", logger=log):
        log.info("dropped")
        app.info("by itself")
        log.debug("below the level")
        app.info("again")
    handler.close()
    assert logs_of(inspector) == ["INFO dropped", "INFO by itself", "DEBUG below the level", "INFO again"]


@pytest.mark.parametrize("handler_first", [True, False])
@pytest.mark.parametrize("source", ["stdlib", "structlog"])
def test_formatter_and_handler_count_once(inspector: Inspector, handler_first: bool, source: str) -> None:
    """A record that passes a processor in ProcessorFormatter and our handler counts once, whichever comes first."""
    processor = AsyncInspectProcessor(inspector)
    out = io.StringIO()
    console = logging.StreamHandler(out)
    console.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[processor],
            processors=[
                processor,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    log = use_stdlib(structlog.stdlib.ProcessorFormatter.wrap_for_formatter)
    app = logging.getLogger("app")
    app.setLevel(INFO)
    ours = AsyncInspectHandler(inspector)
    for handler in (ours, console) if handler_first else (console, ours):
        app.addHandler(handler)
    with span("job", logger=app) as s:
        (app if source == "stdlib" else log).info("inside")
    ours.close()
    line = json.loads(out.getvalue())
    assert line["event"] == "inside"
    assert (line["span"], line["span_id"], line["trace_id"]) == ("job", s.id, s.trace_id)
    assert counts(inspector) == (1, 1, 0)
    assert logs_of(inspector) == ["INFO inside"]


def test_formatter_alone(inspector: Inspector, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone in a foreign_pre_chain the processor feeds the inspector as far as the level allows; it drops nothing,
    since there that would be an error.
    """
    out = stdlib_handler(json_formatter(AsyncInspectProcessor(inspector)))
    app = logging.getLogger("app")
    app.setLevel(DEBUG)
    with span("job", logger=app) as s:
        app.info("inside", extra={"rows": 3})
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"].split()[0] for line in lines] == ["enter", "inside", "exit"]
    assert all(line["span_id"] == s.id for line in lines)
    assert counts(inspector) == (1, 1, 0)
    assert logs_of(inspector) == ["INFO inside"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("handler_first", [True, False])
def test_formatter_beside_a_handler_drops_nothing(inspector: Inspector, handler_first: bool) -> None:
    """On a console that shows lifecycle records, the processor in a foreign_pre_chain comes across spans that a handler
    has heard of. Nothing is lost by that, and so nothing counts as dropped.
    """
    out = stdlib_handler(json_formatter(AsyncInspectProcessor(inspector)))
    app = logging.getLogger("app")
    app.setLevel(DEBUG)
    app.handlers.insert(0 if handler_first else 1, AsyncInspectHandler(inspector))

    async def work() -> None:
        with span("inner", logger=app) as s:
            s.record(rows=3)
            await asyncio.sleep(0)

    asyncio.run(instrument(work(), name="outer", logger=app))
    shown = [json.loads(line)["event"].split()[0] for line in out.getvalue().splitlines()]
    assert (shown.count("enter"), shown.count("exit")) == (2, 2)
    assert counts(inspector) == (2, 2, 0)
    events = inspector.snapshot().events
    assert (events["spawn"], events["drop"]) == (2, 2)


def test_extra_adder_shows_only_the_ids(inspector: Inspector) -> None:
    """ExtraAdder copies every attribute that is not a standard one: nothing of ours but the three ids may be there."""
    out = stdlib_handler(json_formatter(structlog.stdlib.ExtraAdder(), AsyncInspectProcessor(inspector)))
    app = logging.getLogger("app")
    app.setLevel(INFO)
    with span("job", logger=app) as s:
        app.info("inside", extra={"rows": 3})
    expected = {"event": "inside", "rows": 3, "span": "job", "span_id": s.id, "trace_id": s.trace_id}
    assert json.loads(out.getvalue()) == expected


@pytest.mark.parametrize("level", [DEBUG, INFO])
@pytest.mark.parametrize("in_chain", [True, False])
def test_spans_over_stdlib(inspector: Inspector, level: int, in_chain: bool) -> None:
    """Around a stdlib logger, its handlers hear of the span like those of `span(logger=…)` with that logger would, and
    ordinary ones get what the chain makes of the event.
    """
    chain: list[Any] = [
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_logger_name,
        *([AsyncInspectProcessor(inspector, pass_lifecycle=True)] if in_chain else []),
        structlog.processors.JSONRenderer(),
    ]
    log = use_stdlib(*chain)
    out = stdlib_handler(logging.Formatter("%(name)s %(levelname)s %(span)s %(filename)s %(message)s"))
    app = logging.getLogger("app")
    app.setLevel(level)
    app.propagate = False
    handler = AsyncInspectHandler(inspector)
    app.addHandler(handler)
    with span("job", logger=log):
        pass
    handler.close()
    assert counts(inspector) == (1, 1, 0)
    assert logs_of(inspector) == []
    lines = out.getvalue().splitlines()
    assert len(lines) == (2 if level == DEBUG else 0)
    for line in lines:
        start, _, text = line.partition("{")
        assert start == "app DEBUG job test_processor.py "
        assert json.loads("{" + text)["logger"] == "app"


def test_stdlib_level_changed_inside_a_span(inspector: Inspector) -> None:
    """One decision a span: raising the stdlib level inside does not swallow the exit."""
    log = use_stdlib(structlog.stdlib.filter_by_level, structlog.processors.KeyValueRenderer(key_order=["event"]))
    out = stdlib_handler(logging.Formatter("%(message)s"))
    app = logging.getLogger("app")
    app.propagate = False
    app.setLevel(DEBUG)
    with span("told", logger=log):
        app.setLevel(INFO)
        with span("quiet", logger=log):
            app.setLevel(DEBUG)
        app.setLevel(INFO)
    assert [line.split()[:2] for line in out.getvalue().splitlines()] == [
        ["event='enter", "told'"],
        ["event='exit", "told"],
    ]


def test_stdlib_handlers_filters_and_levels(inspector: Inspector) -> None:
    """Ordinary handlers keep their level and filter, asked once a span, and one that fails stops nobody."""
    log = use_stdlib(structlog.stdlib.render_to_log_kwargs)
    out = stdlib_handler(logging.Formatter("%(message)s"))
    app = logging.getLogger("app")
    app.propagate = False
    app.setLevel(DEBUG)
    info = logging.StreamHandler(io.StringIO())
    info.setLevel(INFO)
    asked: list[str] = []
    refusing = logging.StreamHandler(io.StringIO())

    def refuse(record: logging.LogRecord) -> bool:
        asked.append(record.getMessage())
        return False

    refusing.addFilter(refuse)

    class Failing(logging.Handler):
        told = 0

        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("full")

        def handleError(self, record: logging.LogRecord) -> None:
            Failing.told += 1

    for handler in (info, refusing, Failing()):
        app.addHandler(handler)
    for name in ("job", "again"):
        with span(name, logger=log):
            pass
    assert info.stream.getvalue() == refusing.stream.getvalue() == ""
    assert asked == ["enter job", "enter again"]
    assert Failing.told == 1
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["enter", "exit"] * 2


def test_steps_follow_the_stdlib_level(inspector: Inspector) -> None:
    """Steps go through the chain only where a stdlib level lets TRACE through: structlog has no such level."""
    log = use_stdlib(structlog.stdlib.render_to_log_kwargs)
    out = stdlib_handler(logging.Formatter("%(levelname)s %(message)s"))
    app = logging.getLogger("app")
    app.propagate = False
    app.setLevel(TRACE)
    asyncio.run(_run(instrument(asyncio.sleep(0), name="job", logger=log)))
    lines = [line for line in out.getvalue().splitlines() if "spawn" not in line]
    assert [line.split()[0] for line in lines] == ["DEBUG", "TRACE", "TRACE", "TRACE", "DEBUG"]


def test_unnamed_logger_is_named_by_the_module_of_the_span(inspector: Inspector) -> None:
    """structlog names a stdlib logger by the module that logs: for a span that is where the span is."""
    use_stdlib(structlog.stdlib.add_logger_name, structlog.stdlib.render_to_log_kwargs)
    out = stdlib_handler(logging.Formatter("%(name)s"), __name__)
    logger = logging.getLogger(__name__)
    logger.setLevel(DEBUG)
    with span("job", logger=structlog.get_logger()):
        pass
    assert out.getvalue().splitlines() == [__name__] * 2


def test_filter_of_the_wrapped_logger(inspector: Inspector) -> None:
    """A filter on the stdlib logger has its say about what its handlers hear."""
    log = use_stdlib(structlog.stdlib.render_to_log_kwargs)
    app = logging.getLogger("app")
    app.addFilter(lambda record: "other" not in record.getMessage())
    handler = AsyncInspectHandler(inspector)
    app.addHandler(handler)
    with span("job", logger=log), span("other", logger=log):
        pass
    handler.close()
    assert set(inspector.snapshot().names) == {"job"}
    assert counts(inspector) == (1, 1, 0)


def test_forwarded_payload_in_a_wrapped_event(inspector: Inspector) -> None:
    """A payload that the application forwards through wrap_for_formatter reaches our handler."""
    log = use_stdlib(structlog.stdlib.ProcessorFormatter.wrap_for_formatter)
    handler = AsyncInspectHandler(inspector)
    logging.getLogger("app").addHandler(handler)
    logging.getLogger("app").propagate = False
    payload = {"v": 1, "id": "00f067aa0ba902b7", "t": 5, "wall": 5, "pid": 1, "seq": 1, "name": "job", "kind": "enter"}
    log.error("enter job", asyncinspect=payload)
    handler.close()
    assert inspector.snapshot().names["job"].spawned == 1


@pytest.mark.parametrize("handler_first", [True, False])
def test_unstamped_record_counts_once(inspector: Inspector, handler_first: bool) -> None:
    """Also a record that nobody stamped when it was made is known again by handler and formatter."""
    out = stdlib_handler(json_formatter(AsyncInspectProcessor(inspector)))
    app = logging.getLogger("app")
    app.propagate = False
    app.handlers.insert(0 if handler_first else 1, AsyncInspectHandler(inspector))
    with span("job", logger=app):
        app.handle(logging.LogRecord("app", logging.ERROR, "", 0, "by hand", (), None))
    assert json.loads(out.getvalue())["span"] == "job"
    assert logs_of(inspector) == ["ERROR by hand"]


def test_logger_adapter(inspector: Inspector) -> None:
    """A LoggerAdapter stands for its logger, by itself and inside structlog."""
    app = logging.getLogger("app")
    handler = AsyncInspectHandler(inspector)
    app.addHandler(handler)
    adapter = logging.LoggerAdapter(app, {})
    with span("job", logger=adapter):
        pass
    structlog.configure(processors=[structlog.stdlib.render_to_log_kwargs])
    with span("job", logger=structlog.wrap_logger(adapter)):
        pass
    app.removeHandler(handler)
    handler.close()
    assert counts(inspector) == (2, 2, 0)


# -- the rest --------------------------------------------------------------------------------------------------------


def test_told_payload_is_plain_when_it_leaves(inspector: Inspector) -> None:
    """The payload in an event copies and pickles as a plain dict."""
    seen = Collect()
    log = use(seen, AsyncInspectProcessor(inspector), drop)
    with span("job", logger=log):
        pass
    payload = seen.events[0][KEY]
    assert isinstance(payload, Told)
    for other in (copy.copy(payload), copy.deepcopy(payload), pickle.loads(pickle.dumps(payload))):
        assert type(other) is dict
        assert other == payload


def test_loggers_are_not_kept() -> None:
    """A logger for each request leaves nothing behind."""
    from asyncinspect_logging import structlog_route

    inspector = Inspector(Config(max_tasks=1))
    use(AsyncInspectProcessor(inspector), drop)
    before = len(structlog_route._made)
    for number in range(1000):
        with (
            span("job", logger=structlog.get_logger(number=number)),
            span("job", logger=structlog.get_logger().bind(x=1)),
        ):
            pass
    assert inspector.snapshot().names["job"].completed == 2000
    assert len(structlog_route._made) <= before + 2
    assert len(structlog_route._plans) <= 256


def test_missing_extra() -> None:
    """Without structlog the error names the pip command, and everything else works."""
    code = (
        "import sys; sys.modules['structlog'] = None\n"
        "from asyncinspect_logging import *\n"
        "import asyncinspect_logging\n"
        "with span('job'): pass\n"
        "asyncinspect_logging.AsyncInspectProcessor\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{MissingExtraError.__module__}.MissingExtraError: AsyncInspectProcessor needs an extra")
    assert "pip install 'asyncinspect-logging[structlog]'" in last


def test_package_lists_the_processor() -> None:
    """It shows among the package's names, and what is no name says so."""
    import asyncinspect_logging

    assert "AsyncInspectProcessor" in dir(asyncinspect_logging)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = asyncinspect_logging.Nothing
