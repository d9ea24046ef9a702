"""The handler for stdlib logging, in each place of a logging config where it can stand."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import json
import logging
import logging.config
import logging.handlers
import multiprocessing
import pickle
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pythonjsonlogger.json import JsonFormatter

from asyncinspect_logging import (
    AsyncInspectHandler,
    Config,
    Inspector,
    annotate,
    current_span,
    instrument,
    span,
    stamping,
)
from asyncinspect_logging.diagnostics import troubles
from asyncinspect_logging.records import KEY, TRACE, SpanRecord

LINE = "%(levelname)s %(message)s span=%(span)s span_id=%(span_id)s trace_id=%(trace_id)s"


@pytest.fixture(autouse=True)
def _whole_config() -> Iterator[None]:
    """Undo what dictConfig does to the loggers of a test, and the record factory."""
    factory, make_record = logging.getLogRecordFactory(), logging.Logger.makeRecord
    existing = [x for x in logging.Logger.manager.loggerDict.values() if isinstance(x, logging.Logger)]
    disabled = [logger for logger in existing if logger.disabled]
    yield
    for logger in existing:
        logger.disabled = logger in disabled
    for name in ("asyncinspect", "app", "app.db", None):
        logger = logging.getLogger(name)
        logger.handlers[:] = [h for h in logger.handlers if not isinstance(h, AsyncInspectHandler)]
        logger.disabled = False
        logger.propagate = True
        if name is not None:
            logger.setLevel(logging.NOTSET)
            logger.handlers.clear()
            logger.filters.clear()
    logging.setLogRecordFactory(factory)
    logging.Logger.makeRecord = make_record  # type: ignore[method-assign]


@pytest.fixture
def inspector() -> Inspector:
    """An inspector that nobody feeds yet."""
    return Inspector(Config.debug())


@pytest.fixture
def attach() -> Iterator[Callable[..., logging.Handler]]:
    """A function that puts a handler on a logger until the test ends."""
    attached: list[tuple[logging.Logger, logging.Handler]] = []

    def attach(handler: logging.Handler, name: str | None = None) -> logging.Handler:
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        attached.append((logger, handler))
        return handler

    yield attach
    for logger, handler in attached:
        logger.removeHandler(handler)
        handler.close()


Attach = Callable[..., logging.Handler]


def text_handler(form: str = LINE, level: int = logging.NOTSET) -> tuple[logging.Handler, io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(form))
    handler.setLevel(level)
    return handler, stream


def logs_of(inspector: Inspector, name: str = "job") -> list[str]:
    tasks = [task for task in inspector.snapshot().tasks if task.name == name]
    return [event.detail for task in tasks for event in task.events if event.kind == "log"]


def counts(inspector: Inspector) -> tuple[int, int, int]:
    """Spans begun and ended, and whatever was dropped."""
    snapshot = inspector.snapshot()
    names = snapshot.names.values()
    return sum(n.spawned for n in names), sum(n.finished for n in names), sum(snapshot.dropped.values())


# -- ways to be configured -------------------------------------------------------------------------------------------


def test_dict_config_without_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by class alone it feeds the default inspector, whatever the levels."""
    default = Inspector()
    monkeypatch.setattr(Inspector, "_default", default)
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"spans": {"class": "asyncinspect_logging.AsyncInspectHandler"}},
            "loggers": {"asyncinspect": {"handlers": ["spans"], "level": "ERROR"}},
        }
    )
    with span("job"):
        pass
    assert counts(default) == (1, 1, 0)


def test_dict_config_with_a_factory_and_arguments(inspector: Inspector) -> None:
    """By a `()` factory it takes an inspector and a level."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"spans": {"()": AsyncInspectHandler, "inspector": inspector, "level": "WARNING"}},
            "loggers": {"asyncinspect": {"handlers": ["spans"]}, "app": {"handlers": ["spans"], "level": "DEBUG"}},
        }
    )
    app = logging.getLogger("app")
    with span("job"):
        app.info("quiet")
        app.warning("loud")
    assert counts(inspector) == (1, 1, 0)
    assert logs_of(inspector) == ["WARNING loud"]


def test_basic_config(inspector: Inspector) -> None:
    """basicConfig takes it in its list of handlers."""
    root = logging.getLogger()
    before, root.handlers[:] = root.handlers[:], []
    handler = AsyncInspectHandler(inspector)
    try:
        logging.basicConfig(handlers=[handler], level=logging.INFO)
        assert root.handlers == [handler]
        with span("job"):
            logging.getLogger("app").info("hello %s", "world")
    finally:
        root.handlers[:] = before
        handler.close()
    assert counts(inspector) == (1, 1, 0)
    assert logs_of(inspector) == ["INFO hello world"]


def test_wrong_inspector_is_refused() -> None:
    """What is no inspector is named in the error, with what to write instead."""
    with pytest.raises(TypeError, match=r"inspector=5 is not an Inspector; write AsyncInspectHandler\(Inspector"):
        AsyncInspectHandler(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("named", [True, False])
def test_dict_config_that_disables_existing_loggers(
    monkeypatch: pytest.MonkeyPatch, inspector: Inspector, named: bool
) -> None:
    """A second config that names the handler keeps spans heard; one that does not stops them, without any noise."""
    monkeypatch.setattr(Inspector, "_default", inspector)
    config: dict[str, Any] = {
        "version": 1,
        "handlers": {"spans": {"class": "asyncinspect_logging.AsyncInspectHandler"}},
        "loggers": {"asyncinspect": {"handlers": ["spans"]}},
    }
    logging.config.dictConfig(config)
    with span("job"):
        pass
    assert counts(inspector)[0] == 1
    open_across = span("across")
    open_across.__enter__()
    logging.config.dictConfig(config if named else {"version": 1})
    open_across.__exit__(None, None, None)
    with span("job"):
        logging.getLogger("app").error("something")
    begun, ended, dropped = counts(inspector)
    assert begun == ended == (3 if named else 2)
    assert dropped == 0


def test_disabled_logger_with_the_handler_at_the_root(inspector: Inspector, attach: Attach) -> None:
    """disable_existing_loggers disables the logger "asyncinspect" if the new config does not name it, and the handler
    at the root of that config goes on hearing spans all the same.
    """
    attach(AsyncInspectHandler(inspector))
    logging.getLogger("asyncinspect").disabled = True
    with span("job"):
        pass
    assert counts(inspector) == (1, 1, 0)


def test_closed_handler_that_stays_on_its_logger(inspector: Inspector) -> None:
    """dictConfig closes all handlers and leaves those of loggers that it does not name: they go on working."""
    handler = AsyncInspectHandler(inspector)
    app = logging.getLogger("app")
    app.addHandler(handler)
    app.setLevel(logging.INFO)
    handler.close()
    with span("job", logger=app):
        app.info("one")
        app.info("two")
    app.removeHandler(handler)
    handler.close()
    assert counts(inspector) == (1, 1, 0)
    assert logs_of(inspector) == ["INFO one", "INFO two"]


# -- levels ----------------------------------------------------------------------------------------------------------


def test_console_stays_quiet_at_info(inspector: Inspector, attach: Attach) -> None:
    """At level INFO the inspector sees every span and an ordinary handler none."""
    console, stream = text_handler()
    attach(console, "asyncinspect")
    attach(AsyncInspectHandler(inspector), "asyncinspect")
    logging.getLogger("asyncinspect").setLevel(logging.INFO)
    with span("job"):
        pass
    assert stream.getvalue() == ""
    assert counts(inspector) == (1, 1, 0)


def test_debug_puts_enter_and_exit_into_the_log(inspector: Inspector, attach: Attach) -> None:
    """At DEBUG ordinary handlers get enter and exit; those of a higher level do not."""
    console, stream = text_handler("%(levelname)s %(message)s")
    errors, error_stream = text_handler(level=logging.ERROR)
    for handler in (console, errors, AsyncInspectHandler(inspector)):
        attach(handler, "asyncinspect")
    logging.getLogger("asyncinspect").setLevel("DEBUG")
    asyncio.run(_run(instrument(asyncio.sleep(0), name="job")))
    first, second = stream.getvalue().splitlines()
    assert first == "DEBUG enter job"
    assert second.startswith("DEBUG exit job completed")
    assert error_stream.getvalue() == ""


def test_level_5_puts_each_step_into_the_log(inspector: Inspector, attach: Attach) -> None:
    """At level 5 ordinary handlers get the steps too, unless their own level is higher."""
    steps, stream = text_handler("%(levelname)s %(message)s")
    debug, debug_stream = text_handler("%(message)s", level=logging.DEBUG)
    for handler in (steps, debug, AsyncInspectHandler(inspector)):
        attach(handler, "asyncinspect")
    logging.getLogger("asyncinspect").setLevel(TRACE)
    asyncio.run(_run(instrument(asyncio.sleep(0), name="job")))
    kinds = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert [kind for kind in kinds if kind != "spawn"] == ["enter", "suspend", "wake", "resume", "exit"]
    assert [line.split()[0] for line in debug_stream.getvalue().splitlines()] == ["enter", "exit"]
    assert counts(inspector) == (1, 1, 0)


@pytest.mark.parametrize("before", [False, True], ids=["then", "before"])
def test_level_5_puts_each_step_on_the_timeline(
    inspector: Inspector, attach: Attach, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """Also where nobody but the inspector listens: the handlers of a test run would be further listeners."""
    monkeypatch.setattr(logging.getLogger("asyncinspect"), "propagate", False)
    if before:
        logging.getLogger("asyncinspect").setLevel(TRACE)
    attach(AsyncInspectHandler(inspector), "asyncinspect")
    logging.getLogger("asyncinspect").setLevel(TRACE)
    asyncio.run(_run(instrument(asyncio.sleep(0), name="job")))
    (task,) = inspector.snapshot().tasks
    assert [event.kind for event in task.events] == ["spawn", "enter", "suspend", "wake", "resume", "exit"]
    assert counts(inspector) == (1, 1, 0)


async def _run(awaitable: Any) -> Any:
    return await awaitable


def test_unheard_span_has_no_lines(inspector: Inspector, attach: Attach) -> None:
    """A line in a span that nobody hears is stamped with its ids, and counted nowhere."""
    console, stream = text_handler("%(span)s")
    for handler in (AsyncInspectHandler(inspector), console):
        attach(handler, "app")
    with span("job"):
        logging.getLogger("app").error("x")
    assert stream.getvalue() == "job\n"
    assert inspector.snapshot().events["log"] == 0


@pytest.mark.parametrize("before", [logging.DEBUG, logging.INFO])
def test_level_changed_inside_a_span(inspector: Inspector, attach: Attach, before: int) -> None:
    """Whether a span is told is decided when it begins: none is ever told by half."""
    console, stream = text_handler("%(message)s")
    attach(console, "asyncinspect")
    attach(AsyncInspectHandler(inspector), "asyncinspect")
    logger = logging.getLogger("asyncinspect")
    logger.setLevel(before)
    with span("job"):
        logger.setLevel(logging.INFO if before == logging.DEBUG else logging.DEBUG)
    assert len(stream.getvalue().splitlines()) == (2 if before == logging.DEBUG else 0)
    assert counts(inspector) == (1, 1, 0)


def test_handler_added_inside_a_span(inspector: Inspector, attach: Attach) -> None:
    """A handler hears the spans that begin while it is there, to their end, and no part of others."""
    with span("before"):
        handler = attach(AsyncInspectHandler(inspector), "asyncinspect")
        inside = span("job")
        inside.__enter__()
        logging.getLogger("asyncinspect").removeHandler(handler)
        inside.__exit__(None, None, None)
    assert set(inspector.snapshot().names) == {"job"}
    assert counts(inspector) == (1, 1, 0)


# -- filters and faults ----------------------------------------------------------------------------------------------


class Decide(logging.Filter):
    """Lets the spans of some names pass, and notes what it was asked."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        self.asked: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        self.asked.append(record.getMessage())
        return record.span in self.names  # type: ignore[attr-defined]


def test_filter_decides_once_a_span(inspector: Inspector, attach: Attach) -> None:
    """A filter on the handler is asked at enter, and its answer holds until exit."""
    handler = attach(AsyncInspectHandler(inspector), "asyncinspect")
    decide = Decide("job")
    handler.addFilter(decide)
    with span("job"), span("other"):
        pass
    assert decide.asked == ["enter job", "enter other"]
    assert set(inspector.snapshot().names) == {"job"}
    assert counts(inspector) == (1, 1, 0)
    handler.removeFilter(decide)
    with span("other"):
        pass
    assert set(inspector.snapshot().names) == {"job", "other"}


def test_filter_changed_inside_a_span(inspector: Inspector, attach: Attach) -> None:
    """A filter added or removed inside a span changes nothing for that span."""
    handler = attach(AsyncInspectHandler(inspector), "asyncinspect")
    none = Decide()
    with span("job"):
        handler.addFilter(none)
    with span("other"):
        handler.removeFilter(none)
    assert set(inspector.snapshot().names) == {"job"}
    assert counts(inspector) == (1, 1, 0)


def test_filter_that_raises(inspector: Inspector, attach: Attach, capsys: pytest.CaptureFixture[str]) -> None:
    """It is reported once, counted each time, and nothing of it reaches the application."""

    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise LookupError("in the filter")

    class OwnHandler(AsyncInspectHandler):
        pass

    handler = attach(OwnHandler(inspector), "asyncinspect")
    handler.addFilter(Broken())
    for _ in range(3):
        with span("job"):
            pass
    assert capsys.readouterr().err.count("LookupError: in the filter") == 1
    kind = next(kind for kind in troubles if "OwnHandler" in kind)
    assert troubles[kind] >= 3


def test_handler_that_raises(inspector: Inspector, attach: Attach, capsys: pytest.CaptureFixture[str]) -> None:
    """Another handler that accepts spans and fails is reported to its own handleError, and the rest go on."""

    class Failing(logging.Handler):
        accepts_spans = True
        told = 0

        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("disk full")

        def handleError(self, record: logging.LogRecord) -> None:
            self.told += 1

    failing = Failing()
    attach(failing, "asyncinspect")
    attach(AsyncInspectHandler(inspector), "asyncinspect")
    for _ in range(3):
        with span("job"):
            pass
    assert failing.told == 1
    assert counts(inspector) == (3, 3, 0)
    assert capsys.readouterr().err == ""


def test_error_of_ours_goes_to_handle_error(
    inspector: Inspector, attach: Attach, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure inside the handler ends there."""
    failed: list[logging.LogRecord] = []

    class Odd(AsyncInspectHandler):
        def handleError(self, record: logging.LogRecord) -> None:
            failed.append(record)

    def broken(*args: Any) -> None:
        raise RuntimeError("broken")

    attach(Odd(inspector))
    monkeypatch.setattr(inspector, "annotate", broken)
    with span("job"):
        logging.getLogger("app").error("x")
    assert len(failed) == 1


def test_logging_and_spans_inside_emit(inspector: Inspector, attach: Attach) -> None:
    """A handler that logs, and opens spans, while it is given a record does not go round in circles."""
    app = logging.getLogger("app")

    class Chatty(logging.Handler):
        accepts_spans = True

        def emit(self, record: logging.LogRecord) -> None:
            app.warning("about %s", record.getMessage())
            with span("inner"):
                pass

    attach(Chatty(), "asyncinspect")
    attach(AsyncInspectHandler(inspector))
    with span("job"):
        pass
    assert set(inspector.snapshot().names) == {"job"}
    assert counts(inspector) == (1, 1, 0)


def test_third_party_handler_gets_records(attach: Attach) -> None:
    """Any handler with accepts_spans = True gets a SpanRecord for each lifecycle event, whatever the levels."""

    class Other(logging.Handler):
        accepts_spans = True

        def __init__(self) -> None:
            super().__init__(logging.CRITICAL)
            self.kinds: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            assert isinstance(record, SpanRecord)
            self.kinds.append(record.kind)

    other = Other()
    attach(other, "asyncinspect")
    logging.getLogger("asyncinspect").setLevel(logging.CRITICAL)
    with span("job") as s:
        s.record(x=1)
    assert other.kinds == ["enter", "record", "exit"]


def test_subclass_with_its_own_emit_sees_records(inspector: Inspector, attach: Attach) -> None:
    """A subclass that overrides emit is asked for each record, and still feeds its inspector."""
    seen = []

    class Own(AsyncInspectHandler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage().split()[0])
            super().emit(record)

    attach(Own(inspector), "asyncinspect")
    with span("job") as s:
        s.record(x=1)
    assert seen == ["enter", "record", "exit"]
    assert counts(inspector) == (1, 1, 0)
    assert inspector.snapshot().tasks[0].fields == {"x": 1}


# -- ordinary records ------------------------------------------------------------------------------------------------


def test_annotations(inspector: Inspector, attach: Attach) -> None:
    """Ordinary records inside a span are on its timeline, with their level, and outside of spans on none."""
    attach(AsyncInspectHandler(inspector), "app")
    app = logging.getLogger("app")
    app.setLevel(logging.INFO)
    # Or pytest's handlers would complain of the wrong arguments.
    app.propagate = False
    app.info("outside")
    with span("job", logger=app):
        app.info("got %d rows", 3)
        app.debug("not even made")
        app.error("wrong %d arguments", "x", "y")
        app.warning({"not": "a text"})
        annotate("a note")
    logs = logs_of(inspector)
    assert logs[0] == "INFO got 3 rows"
    assert logs[1] == "ERROR wrong %d arguments"
    assert logs[2].startswith("WARNING")
    assert logs[3] == "DEBUG a note"
    assert inspector.snapshot().events["log"] == 4


def test_long_line_is_cut(attach: Attach) -> None:
    """A line is cut to max_field_length."""
    inspector = Inspector(Config(max_field_length=10))
    attach(AsyncInspectHandler(inspector))
    with span("job"):
        logging.getLogger("app").error("x" * 1000)
    assert logs_of(inspector) == ["ERROR " + "x" * 10]


@pytest.mark.parametrize("ours_first", [True, False])
def test_stamps_for_any_formatter(inspector: Inspector, attach: Attach, ours_first: bool) -> None:
    """Formatters of other handlers print the span's ids whatever the order of handlers, and "" outside spans."""
    console, stream = text_handler()
    ours = AsyncInspectHandler(inspector)
    for handler in (ours, console) if ours_first else (console, ours):
        attach(handler)
    app = logging.getLogger("app")
    app.error("outside")
    with span("job") as s:
        app.error("inside")
    outside, inside = stream.getvalue().splitlines()
    assert outside == "ERROR outside span= span_id= trace_id="
    assert inside == f"ERROR inside span=job span_id={s.id} trace_id={s.trace_id}"


@pytest.mark.parametrize("key", ["span", "span_id", "trace_id"])
def test_extra_of_the_same_name(inspector: Inspector, attach: Attach, key: str) -> None:
    """An `extra` with a key of ours neither raises nor is overwritten, and the line still finds its span."""
    console, stream = text_handler(f"%({key})s")
    attach(console)
    attach(AsyncInspectHandler(inspector))
    app = logging.getLogger("app")
    app.error("outside", extra={key: "mine"})
    with span("job"):
        app.error("inside", extra={key: "mine"})
    assert stream.getvalue().splitlines() == ["mine", "mine"]
    assert logs_of(inspector) == ["ERROR inside"]


def test_extra_with_all_the_names(inspector: Inspector, attach: Attach) -> None:
    """The same with all of our keys at once, and two handlers on the way."""
    attach(AsyncInspectHandler(inspector))
    attach(AsyncInspectHandler(inspector), "app")
    with span("job"):
        logging.getLogger("app").error("inside", extra={"span": 1, "span_id": "abc", "trace_id": None})
    assert logs_of(inspector) == ["ERROR inside"]


def test_two_handlers_of_one_inspector_count_once(inspector: Inspector, attach: Attach) -> None:
    """Neither a span nor a line is counted twice when two handlers feed the same inspector."""
    attach(AsyncInspectHandler(inspector))
    attach(AsyncInspectHandler(inspector), "app")
    app = logging.getLogger("app")
    with span("job", logger=app):
        app.error("inside")
        annotate("note")
    assert counts(inspector) == (1, 1, 0)
    assert logs_of(inspector) == ["ERROR inside", "DEBUG note"]


def test_two_inspectors_each_count(inspector: Inspector, attach: Attach) -> None:
    """Handlers of two inspectors both get everything."""
    other = Inspector()
    attach(AsyncInspectHandler(inspector))
    attach(AsyncInspectHandler(other))
    with span("job"):
        logging.getLogger("app").error("inside")
    for each in (inspector, other):
        assert counts(each) == (1, 1, 0)
        assert logs_of(each) == ["ERROR inside"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_record_factory_of_the_application(inspector: Inspector, attach: Attach, when: str) -> None:
    """A record factory set before or after our handler works, and so do the stamps."""
    plain = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = plain(*args, **kwargs)
        made.host = "h1"
        return made

    if when == "before":
        logging.setLogRecordFactory(factory)
    console, stream = text_handler("%(host)s %(span)s")
    attach(console)
    attach(AsyncInspectHandler(inspector))
    if when == "after":
        logging.setLogRecordFactory(factory)
    with span("job"):
        logging.getLogger("app").error("x")
    assert stream.getvalue() == "h1 job\n"
    assert logging.getLogRecordFactory() is factory


def test_stamping_stops_with_the_last_handler(inspector: Inspector) -> None:
    """Closing the last handler leaves logging as it was, also where somebody has wrapped what we had put in."""
    # Handlers of other tests, not collected yet.
    for user in list(stamping._users):
        stamping.release(user)
    plain = logging.Logger.makeRecord
    first, second = AsyncInspectHandler(inspector), AsyncInspectHandler(inspector)
    assert logging.Logger.makeRecord is not plain
    first.close()
    assert logging.Logger.makeRecord is not plain
    second.close()
    assert logging.Logger.makeRecord is plain

    third = AsyncInspectHandler(inspector)
    ours: Any = logging.Logger.makeRecord

    def theirs(self: logging.Logger, *args: Any, **kwargs: Any) -> logging.LogRecord:
        return ours(self, *args, **kwargs)  # type: ignore[no-any-return]

    logging.Logger.makeRecord = theirs  # type: ignore[method-assign]
    third.close()
    assert logging.Logger.makeRecord is theirs
    with span("job"):
        record = logging.getLogger("app").makeRecord("app", 20, "", 0, "x", (), None)
    assert "span_id" not in vars(record)
    fourth = AsyncInspectHandler(inspector)
    with span("job"):
        record = logging.getLogger("app").makeRecord("app", 20, "", 0, "x", (), None)
    assert vars(record)["span"] == "job"
    fourth.close()


def test_logger_class_with_its_own_make_record(inspector: Inspector, attach: Attach) -> None:
    """A logger class that makes records by itself is stamped as late as at our handler, which is better than never."""

    class Own(logging.Logger):
        def makeRecord(self, name: str, level: int, *args: Any, **kwargs: Any) -> logging.LogRecord:
            return logging.LogRecord(name, level, "", 0, "by itself", (), None)

    logger = Own("own")
    console, stream = text_handler("%(span)s")
    logger.addHandler(attach(AsyncInspectHandler(inspector)))
    logger.addHandler(console)
    with span("job"):
        logger.error("x")
    assert stream.getvalue() == "job\n"
    assert logs_of(inspector) == ["ERROR by itself"]


def test_records_of_other_threads_are_not_ours(inspector: Inspector, attach: Attach) -> None:
    """A record that was made elsewhere and is handled inside a span is no line of that span."""
    attach(AsyncInspectHandler(inspector))
    made: list[logging.LogRecord] = []
    thread = threading.Thread(target=lambda: made.append(logging.LogRecord("app", 40, "", 0, "elsewhere", (), None)))
    thread.start()
    thread.join()
    with span("job"):
        logging.getLogger("app").handle(made[0])
        logging.getLogger("app").handle(
            logging.makeLogRecord({"msg": "of another process", "process": 1, "levelno": 40})
        )
    assert logs_of(inspector) == []


@pytest.mark.parametrize("theirs", ["not 16 digits", "zzzzzzzzzzzzzzzz", "0000000000000000", 5, None])
def test_ids_that_are_not_ours(inspector: Inspector, attach: Attach, theirs: Any) -> None:
    """A record that came with ids of somebody else's is no line in any span of ours."""
    attach(AsyncInspectHandler(inspector), "app")
    made = logging.makeLogRecord({"name": "app", "levelno": 40, "span": "x", "span_id": theirs, "trace_id": "y"})
    made.process = 1
    logging.getLogger("app").handle(made)
    assert inspector.snapshot().events["log"] == 0


def test_our_own_logger_is_no_annotation(inspector: Inspector, attach: Attach) -> None:
    """What the library says of its own troubles is not put on anybody's timeline."""
    attach(AsyncInspectHandler(inspector))
    with span("job"):
        logging.getLogger("asyncinspect.internal").warning("trouble")
    assert logs_of(inspector) == []


# -- queues ----------------------------------------------------------------------------------------------------------


def drain(handler: logging.handlers.QueueHandler, target: logging.Handler) -> None:
    """Handle, in another thread, everything that is in the handler's queue."""
    listener = logging.handlers.QueueListener(handler.queue, target)
    listener.start()
    listener.stop()


@pytest.mark.parametrize("make_queue", [queue.SimpleQueue, queue.Queue])
def test_behind_a_queue(inspector: Inspector, attach: Attach, make_queue: Any) -> None:
    """Everything was stamped where it was made, and comes out of the queue as it would have without one."""
    handler = logging.handlers.QueueHandler(make_queue())
    handler.accepts_spans = True  # type: ignore[attr-defined]
    ours = AsyncInspectHandler(inspector)
    attach(handler)
    with span("job", user=7) as s:
        logging.getLogger("app").error("inside")
        s.record(rows=3)
    drain(handler, ours)
    ours.close()
    assert counts(inspector) == (1, 1, 0)
    assert logs_of(inspector) == ["ERROR inside"]
    task = inspector.snapshot().tasks[0]
    assert (task.id, task.trace_id, task.outcome) == (s.id, s.trace_id, "completed")
    assert task.fields == {"user": 7, "rows": 3}
    assert task.thread == threading.get_ident()


def test_behind_a_queue_and_direct(inspector: Inspector, attach: Attach) -> None:
    """A line that reaches the inspector directly and through a queue counts once."""
    handler = logging.handlers.QueueHandler(queue.SimpleQueue())
    ours = AsyncInspectHandler(inspector)
    attach(handler)
    attach(ours)
    with span("job"):
        logging.getLogger("app").error("inside")
    drain(handler, ours)
    assert counts(inspector) == (1, 1, 0)
    assert logs_of(inspector) == ["ERROR inside"]


class Pickling(logging.handlers.QueueHandler):
    """A handler with a queue of pickles, such as multiprocessing has."""

    def __init__(self) -> None:
        self.pickles: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        super().__init__(self.pickles)

    def enqueue(self, record: logging.LogRecord) -> None:
        self.pickles.put(pickle.dumps(record))

    def drain(self, target: logging.Handler) -> None:
        while not self.pickles.empty():
            target.handle(pickle.loads(self.pickles.get()))


@pytest.mark.parametrize("handler_first", [True, False])
@pytest.mark.parametrize("times", [None, [5.0] * 3, [5.0, 6.0, 5.0]])
def test_behind_a_pickling_queue_and_direct(
    inspector: Inspector, attach: Attach, handler_first: bool, times: list[float] | None
) -> None:
    """A line counts once, too, where what comes out of the queue is a pickle; and lines alike count each, also those
    that only the queue has brought.
    """
    handler, elsewhere = Pickling(), Pickling()
    ours = AsyncInspectHandler(inspector, level=logging.ERROR)
    for one in (ours, handler, elsewhere) if handler_first else (handler, elsewhere, ours):
        attach(one)
    logger = logging.getLogger("app")
    logger.setLevel(logging.INFO)
    plain, clock = logging.getLogRecordFactory(), iter(times or ())

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = plain(*args, **kwargs)
        made.created = next(clock, made.created)
        return made

    logging.setLogRecordFactory(factory)
    with span("job"):
        for level in (logging.ERROR, logging.INFO, logging.ERROR):
            logger.log(level, "inside")
    behind = AsyncInspectHandler(inspector)
    handler.drain(behind)
    elsewhere.drain(behind)
    assert counts(inspector) == (1, 1, 0)
    assert sorted(logs_of(inspector)) == ["ERROR inside", "ERROR inside", "INFO inside"]
    behind.close()


def test_pickles_of_another_process_are_lines_of_their_own(inspector: Inspector, attach: Attach) -> None:
    """A forked worker that logs inside its parent's span, at the same moment, has said something else."""
    handler = Pickling()
    attach(handler)
    ours = attach(AsyncInspectHandler(inspector))
    with span("job"):
        logging.getLogger("app").error("inside")
    record = pickle.loads(handler.pickles.get())
    record.process += 1
    ours.handle(record)
    assert logs_of(inspector) == ["ERROR inside"] * 2


def test_marks_of_pickled_lines_are_bounded(attach: Attach) -> None:
    """Lines that are sent away for ever, as over a socket, keep no inspector alive, and not much memory."""
    attach(Pickling())
    ours = AsyncInspectHandler(Inspector())
    inspector = weakref.ref(ours.inspector)
    logger = logging.getLogger("app")
    logger.addHandler(ours)
    with span("job"):
        for _ in range(stamping._MAX_AWAY + 10):
            logger.error("inside")
    assert len(stamping._away._marks) <= stamping._MAX_AWAY
    assert max(map(len, stamping._away._marks.values())) <= stamping._MAX_ALIKE
    logger.removeHandler(ours)
    ours.close()
    del ours
    # Routes look again at who hears, and let go of who has heard.
    with span("job"):
        pass
    gc.collect()
    assert inspector() is None


def test_behind_a_queue_between_processes(inspector: Inspector, attach: Attach) -> None:
    """A multiprocessing queue pickles the records, which changes nothing."""
    pipe = multiprocessing.get_context("spawn").SimpleQueue()

    class ToPipe(logging.handlers.QueueHandler):
        accepts_spans = True

        def enqueue(self, record: logging.LogRecord) -> None:
            pipe.put(record)

    attach(ToPipe(queue.SimpleQueue()))

    @span("job", user=7)
    def work() -> None:
        logging.getLogger("app").error("inside", extra={"rows": 3})
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        work()
    ours = AsyncInspectHandler(inspector)
    while not pipe.empty():
        record = pipe.get()
        assert type(record) is logging.LogRecord
        ours.handle(record)
    ours.close()
    pipe.close()
    assert counts(inspector) == (1, 1, 0)
    assert logs_of(inspector) == ["ERROR inside"]
    assert inspector.snapshot().tasks[0].error == {"type": "ValueError", "message": "no"}


def test_queue_handler_without_the_mark_follows_the_levels(inspector: Inspector, attach: Attach) -> None:
    """A queue handler that nobody said accepts spans is an ordinary handler."""
    handler = logging.handlers.QueueHandler(queue.SimpleQueue())
    attach(handler, "asyncinspect")
    logger = logging.getLogger("asyncinspect")
    logger.setLevel(logging.INFO)
    with span("quiet"):
        pass
    logger.setLevel(logging.DEBUG)
    with span("job"):
        pass
    ours = AsyncInspectHandler(inspector)
    drain(handler, ours)
    ours.close()
    assert set(inspector.snapshot().names) == {"job"}
    assert counts(inspector) == (1, 1, 0)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="dictConfig makes queue listeners since Python 3.12")
@pytest.mark.parametrize("all_accept", [True, False])
def test_dict_config_queue_listener(inspector: Inspector, all_accept: bool) -> None:
    """A queue handler of dictConfig's accepts spans when every handler behind its listener does."""
    behind = ["spans"] if all_accept else ["spans", "null"]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "spans": {"()": AsyncInspectHandler, "inspector": inspector},
                "null": {"class": "logging.NullHandler"},
                "queue": {"class": "logging.handlers.QueueHandler", "handlers": behind, "respect_handler_level": True},
            },
            "loggers": {"asyncinspect": {"handlers": ["queue"], "level": "INFO"}},
        }
    )
    handler: Any = logging.getLogger("asyncinspect").handlers[0]
    handler.listener.start()
    with span("job"):
        pass
    handler.listener.stop()
    assert counts(inspector) == ((1, 1, 0) if all_accept else (0, 0, 0))


# -- other formats ---------------------------------------------------------------------------------------------------


def test_json_lines_carry_the_ids(inspector: Inspector, attach: Attach) -> None:
    """python-json-logger prints the stamps of ordinary records as texts, and nothing else of ours."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("%(message)s"))
    attach(handler)
    attach(AsyncInspectHandler(inspector))
    with span("job") as s:
        logging.getLogger("app").error("inside", extra={"rows": 3})
    line = json.loads(stream.getvalue())
    assert line == {"message": "inside", "rows": 3, "span": "job", "span_id": s.id, "trace_id": s.trace_id}


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record))])
def test_stamped_records_can_be_copied(inspector: Inspector, attach: Attach, how: Any) -> None:
    """A stamped record copies and pickles, and its ids stay equal texts."""
    attach(AsyncInspectHandler(inspector))
    with span("job") as s:
        record = logging.getLogger("app").makeRecord("app", 20, "", 0, "x", (), None)
    other = how(record)
    assert other.span_id == s.id
    assert vars(other) == vars(record)


def test_pickled_ids_need_no_library(inspector: Inspector, attach: Attach) -> None:
    """A pickled record names no class of ours: a log server without this package can read it."""
    attach(AsyncInspectHandler(inspector))
    with span("job"):
        record = logging.getLogger("app").makeRecord("app", 20, "", 0, "x", (), None)
    assert b"asyncinspect_logging" not in pickle.dumps(record)


@pytest.mark.parametrize("name", ["name", "message", "args", "asctime", "taskName", "msg", "levelname", "exc_info"])
def test_reserved_names_as_fields(inspector: Inspector, attach: Attach, name: str) -> None:
    """A span's field may have the name of a log record's attribute."""
    console, stream = text_handler("%(message)s")
    attach(console, "asyncinspect")
    attach(AsyncInspectHandler(inspector), "asyncinspect")
    logging.getLogger("asyncinspect").setLevel(logging.DEBUG)
    with span("job", **{name: "mine"}) as s:
        s.record(**{name: "changed"})
        annotate("line", **{name: "mine"})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "enter job"
    assert lines[2] == "line"
    assert inspector.snapshot().tasks[0].fields == {name: "changed"}


def test_caplog_and_ours(inspector: Inspector, attach: Attach, caplog: pytest.LogCaptureFixture) -> None:
    """caplog goes on capturing ordinary records, stamped."""
    attach(AsyncInspectHandler(inspector))
    with span("job") as s:
        logging.getLogger("app").error("inside")
    assert caplog.records[-1].span_id == s.id  # type: ignore[attr-defined]
    assert current_span() is None


def test_lifecycle_records_from_elsewhere(inspector: Inspector) -> None:
    """A lifecycle record that was written somewhere else is taken from a LogRecord's attribute."""
    payload = {"v": 1, "id": "00f067aa0ba902b7", "t": 5, "wall": 5, "pid": 1, "seq": 1, "name": "job"}
    handler = AsyncInspectHandler(inspector)
    handler.handle(logging.makeLogRecord({KEY: payload | {"kind": "enter"}}))
    handler.handle(logging.makeLogRecord({KEY: payload | {"kind": "exit", "seq": 2, "t": 9, "outcome": "failed"}}))
    handler.handle(logging.makeLogRecord({KEY: payload | {"kind": "exit", "seq": 2, "t": 9, "outcome": "failed"}}))
    handler.handle(logging.makeLogRecord({KEY: "nonsense"}))
    handler.close()
    snapshot = inspector.snapshot()
    assert snapshot.names["job"].failed == 1
    assert snapshot.dropped["duplicate"] == 1
    assert snapshot.dropped["malformed"] == 1
