"""Lifecycle records: real LogRecords for everything that works on those, and payloads to the letter of the protocol."""

from __future__ import annotations

import asyncio
import copy
import io
import json
import logging
import logging.handlers
import os
import pickle
import queue
import re
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pythonjsonlogger.json import JsonFormatter

from asyncinspect_logging import instrument, span
from asyncinspect_logging.records import KEY, LEVELS, TRACE, SpanRecord, flaw_of, payload_of

ALWAYS = {"v", "kind", "id", "t", "wall", "pid", "seq"}
TALLIES = {"duration", "polls", "busy", "scheduled", "max_poll", "wakes", "self_wakes"}
FOREIGN = ["copy", "deepcopy", "pickle", "make_log_record"]


class Keeper(logging.Handler):
    """A handler that accepts spans and keeps their records."""

    accepts_spans = True

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def payloads(self, kind: str | None = None) -> list[dict[str, Any]]:
        found = [vars(record)[KEY] for record in self.records]
        return [payload for payload in found if kind in (None, payload["kind"])]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of the test's own, handing on nothing."""
    logger = logging.getLogger("test_records")
    logger.propagate = False
    yield logger
    logger.handlers.clear()
    logger.filters.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture
def keeper(logger: logging.Logger) -> Keeper:
    keeper = Keeper()
    logger.addHandler(keeper)
    return keeper


def copied(how: str, record: logging.LogRecord) -> logging.LogRecord:
    if how == "copy":
        return copy.copy(record)
    if how == "deepcopy":
        return copy.deepcopy(record)
    if how == "pickle":
        return pickle.loads(pickle.dumps(record))  # type: ignore[no-any-return]
    return logging.makeLogRecord(vars(record))


# -- payloads, key by key --------------------------------------------------------------------------------------------


def test_enter_of_a_root(logger: logging.Logger, keeper: Keeper) -> None:
    """An enter record has what the table lists for it, and a root has no parent at all."""
    before = time.time_ns()
    with span("job", logger=logger, user=7) as s:
        pass
    payload = keeper.payloads("enter")[0]
    assert set(payload) == ALWAYS | {"name", "trace", "thread", "at", "fields"}
    assert payload["v"] == 1
    assert payload["kind"] == "enter"
    assert payload["id"] == s.id
    assert re.fullmatch("[0-9a-f]{16}", s.id)
    assert payload["trace"] == s.trace_id
    assert re.fullmatch("[0-9a-f]{32}", s.trace_id)
    assert payload["name"] == "job"
    assert payload["fields"] == {"user": 7}
    assert payload["pid"] == os.getpid()
    assert payload["thread"] == threading.get_ident()
    assert re.fullmatch(r".*test_records\.py:\d+", payload["at"])
    assert abs(payload["wall"] - before) < 10_000_000_000


def test_enter_of_a_child(logger: logging.Logger, keeper: Keeper) -> None:
    """A child names its parent and has its parent's trace."""
    with span("outer", logger=logger) as outer, span("inner", logger=logger) as inner:
        pass
    first, second = keeper.payloads("enter")
    assert "parent" not in first
    assert second["parent"] == outer.id
    assert second["trace"] == outer.trace_id == inner.trace_id


def test_enter_in_a_task_names_its_coroutine(logger: logging.Logger, keeper: Keeper) -> None:
    """`task` is the coroutine's qualified name and never Task-17."""

    async def work() -> None:
        with span("job", logger=logger):
            await asyncio.sleep(0)

    asyncio.run(work())
    assert keeper.payloads("enter")[0]["task"] == work.__qualname__


def test_a_record_says_what_was_so_when_it_was_made(logger: logging.Logger, keeper: Keeper) -> None:
    """Looked at late, as by a MemoryHandler, an enter record has the fields and the task of that moment."""

    async def work() -> None:
        with span("job", logger=logger, rows=0) as s:
            s.record(rows=3)

    asyncio.run(work())
    payload = keeper.payloads("enter")[0]
    assert payload["fields"] == {"rows": 0}
    assert payload["task"] == work.__qualname__


def test_exit_closes_the_books(logger: logging.Logger, keeper: Keeper) -> None:
    """An exit record has the outcome and all tallies, and an error only where there was one."""
    with span("job", logger=logger):
        pass
    payload = keeper.payloads("exit")[0]
    assert set(payload) == ALWAYS | TALLIES | {"name", "outcome"}
    assert payload["outcome"] == "completed"
    assert payload["duration"] == payload["t"] - keeper.payloads("enter")[0]["t"]
    assert payload["polls"] == 1
    assert all(type(payload[key]) is int for key in TALLIES)


def test_exit_with_an_error(logger: logging.Logger, keeper: Keeper) -> None:
    """A failed span's exit has the exception's type and message."""
    with pytest.raises(ValueError, match="no such user"), span("job", logger=logger):
        raise ValueError("no such user")
    payload = keeper.payloads("exit")[0]
    assert payload["outcome"] == "failed"
    assert payload["error"] == {"type": "ValueError", "message": "no such user"}


def test_exit_with_an_exception_group(logger: logging.Logger, keeper: Keeper) -> None:
    """Of an exception group the exit has the type of each leaf."""
    group = ExceptionGroup("several", [ValueError("a"), ExceptionGroup("inner", [KeyError("b"), OSError("c")])])
    with pytest.raises(ExceptionGroup), span("job", logger=logger):
        raise group
    error = keeper.payloads("exit")[0]["error"]
    assert error["leaves"] == ["ValueError", "KeyError", "OSError"]
    assert error["type"].startswith("ExceptionGroup")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(asyncio.CancelledError(), "cancelled"), (GeneratorExit(), "abandoned"), (SystemExit(), "failed")],
)
def test_outcomes(logger: logging.Logger, keeper: Keeper, error: BaseException, outcome: str) -> None:
    """The exception that leaves a span makes its outcome."""
    with pytest.raises(type(error)), span("job", logger=logger):
        raise error
    # What a finaliser may have had to say is delivered before the next record.
    with span("next", logger=logger):
        pass
    job, _ = keeper.payloads("exit")
    assert job["outcome"] == outcome


def test_record_kind(logger: logging.Logger, keeper: Keeper) -> None:
    """Fields recorded later come in a record of their own, without secrets."""
    with span("job", logger=logger) as s:
        s.record(rows=3, password="hunter2")
    payload = keeper.payloads("record")[0]
    assert set(payload) == ALWAYS | {"name", "fields"}
    assert payload["fields"]["rows"] == 3
    assert "hunter2" not in json.dumps(keeper.payloads())


def test_step_kinds(logger: logging.Logger, keeper: Keeper) -> None:
    """At level 5 each step of a driven coroutine is told, in order, with what it waits for and where."""
    logger.setLevel(TRACE)

    async def work() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)

    asyncio.run(_run(instrument(work(), name="job", logger=logger)))
    kinds = [payload["kind"] for payload in keeper.payloads() if payload["kind"] != "spawn"]
    assert kinds == ["enter", "suspend", "wake", "resume", "suspend", "wake", "resume", "exit"]
    for suspend in keeper.payloads("suspend"):
        assert set(suspend) == ALWAYS | {"on", "at"}
        assert suspend["on"] == "sleep"
        assert re.fullmatch(r".+:\d+", suspend["at"])
    for kind in ("wake", "resume"):
        assert all(set(payload) == ALWAYS for payload in keeper.payloads(kind))
    last = keeper.payloads("exit")[0]
    assert (last["polls"], last["wakes"], last["self_wakes"]) == (3, 2, 1)


async def _run(awaitable: Any) -> Any:
    return await awaitable


def test_spawn(keeper: Keeper) -> None:
    """A task of a loop with install() is told when it is made, and entered at its first step."""
    from asyncinspect_logging import install

    default = logging.getLogger("asyncinspect")
    default.addHandler(keeper)
    default.setLevel(TRACE)

    async def child() -> None:
        pass

    async def main() -> None:
        with install():
            task = asyncio.create_task(child())
            assert [payload["kind"] for payload in keeper.payloads()] == ["spawn"]
            await task

    asyncio.run(main())
    spawned, entered = keeper.payloads("spawn")[0], keeper.payloads("enter")[0]
    assert set(spawned) - {"thread", "at"} == ALWAYS | {"name", "trace", "task", "fields"}
    assert spawned["id"] == entered["id"]
    assert spawned["name"] == child.__qualname__
    assert spawned["t"] <= entered["t"]


def test_order_and_times(logger: logging.Logger, keeper: Keeper) -> None:
    """`seq` and `t` grow from record to record, and `wall` follows `t`."""
    for _ in range(3):
        with span("job", logger=logger) as s:
            s.record(n=1)
    payloads = keeper.payloads()
    assert [p["seq"] for p in payloads] == sorted({p["seq"] for p in payloads})
    assert [p["t"] for p in payloads] == sorted(p["t"] for p in payloads)
    assert len({p["wall"] - p["t"] for p in payloads}) == 1


def test_every_payload_is_without_flaw(logger: logging.Logger, keeper: Keeper) -> None:
    """What is written passes the checks of what reads it, and is plain JSON."""
    logger.setLevel(TRACE)
    asyncio.run(_run(instrument(asyncio.sleep(0), name="job", logger=logger)))
    with span("job", logger=logger, parent=None, links=["00f067aa0ba902b7"], at=None, kind="x"):
        pass
    for payload in keeper.payloads():
        assert flaw_of(payload) is None
        assert json.loads(json.dumps(payload)) == payload


def test_levels(logger: logging.Logger, keeper: Keeper) -> None:
    """Steps have level TRACE, which has a name, and the other kinds DEBUG."""
    logger.setLevel(TRACE)
    asyncio.run(_run(instrument(asyncio.sleep(0), name="job", logger=logger)))
    for record in keeper.records:
        assert record.levelno == LEVELS[vars(record)[KEY]["kind"]]
        assert record.levelname in ("DEBUG", "TRACE")


# -- a real LogRecord ------------------------------------------------------------------------------------------------


@pytest.fixture
def record(logger: logging.Logger, keeper: Keeper) -> Callable[[], logging.LogRecord]:
    """A function that gives a new enter record nobody has looked at."""

    def make() -> logging.LogRecord:
        with span("job", logger=logger, user=7):
            pass
        return next(record for record in reversed(keeper.records) if record.kind == "enter")  # type: ignore[attr-defined]

    return make


def test_looks_like_a_log_record(record: Callable[[], logging.LogRecord]) -> None:
    """All standard attributes are there whichever is asked for first, and those of an ordinary record are all."""
    standard = vars(logging.makeLogRecord({}))
    for name in standard:
        assert hasattr(record(), name), name
    fresh = record()
    assert isinstance(fresh, SpanRecord)
    assert set(standard) <= set(vars(fresh))
    assert fresh.getMessage() == "enter job"
    assert fresh.name == "test_records"
    assert fresh.pathname == __file__
    assert fresh.lineno > 0
    assert fresh.funcName == "make"
    assert abs(fresh.created - time.time()) < 10
    assert 0 <= fresh.msecs < 1000
    assert fresh.process == os.getpid()
    assert "job" in repr(fresh)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = fresh.nothing_like_it


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("%", "%(levelname)s %(message)s %(span)s %(span_id)s %(trace_id)s %(name)s"),
        ("{", "{levelname} {message} {span} {span_id} {trace_id} {name}"),
        ("$", "$levelname $message $span ${span_id} $trace_id $name"),
    ],
)
def test_formatting(record: Callable[[], logging.LogRecord], style: Any, text: str) -> None:
    """Every formatting style finds the standard attributes and the span's."""
    fresh = record()
    line = logging.Formatter(text, style=style).format(fresh)
    payload = payload_of(fresh)
    assert payload is not None
    assert line == f"DEBUG enter job job {payload['id']} {payload['trace']} test_records"


def test_exit_message(logger: logging.Logger, keeper: Keeper) -> None:
    """An exit says how it ended, and after how long."""
    with span("job", logger=logger):
        pass
    assert re.fullmatch(r"exit job completed after \d+\.\d{3} ms", keeper.records[-1].getMessage())


def test_formatting_time(record: Callable[[], logging.LogRecord]) -> None:
    """%(asctime)s is the time that the payload says."""
    fresh = record()
    line = logging.Formatter("%(asctime)s").format(fresh)
    payload = payload_of(fresh)
    assert payload is not None
    assert line.startswith(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(payload["wall"] / 1e9)))


@pytest.mark.parametrize("how", FOREIGN)
@pytest.mark.parametrize("looked_at", [False, True])
def test_copies(record: Callable[[], logging.LogRecord], how: str, looked_at: bool) -> None:
    """A copy of any kind is a plain LogRecord that says all the record does."""
    fresh = record()
    if looked_at:
        fresh.getMessage()
    other = copied(how, fresh)
    assert type(other) is logging.LogRecord
    assert vars(other) == vars(fresh)
    assert payload_of(other) == payload_of(fresh)
    again = copied(how, other)
    assert vars(again) == vars(fresh)


def test_deep_copy_shares_nothing(record: Callable[[], logging.LogRecord]) -> None:
    """Changing a deep copy's fields leaves the record alone."""
    fresh = record()
    other = copy.deepcopy(fresh)
    vars(other)[KEY]["fields"]["user"] = 8
    assert vars(fresh)[KEY]["fields"]["user"] == 7


def test_through_a_queue(logger: logging.Logger) -> None:
    """QueueHandler prepares the record, and what comes out of the queue has the payload."""
    handler = logging.handlers.QueueHandler(queue.SimpleQueue())
    handler.accepts_spans = True  # type: ignore[attr-defined]
    logger.addHandler(handler)
    with span("job", logger=logger):
        pass
    came = [handler.queue.get() for _ in range(2)]
    assert [payload["kind"] for payload in map(payload_of, came) if payload] == ["enter", "exit"]
    assert all(type(one) is logging.LogRecord for one in came)
    assert came[0].message == "enter job"
    pickle.loads(pickle.dumps(came))


def test_over_a_socket(record: Callable[[], logging.LogRecord]) -> None:
    """SocketHandler's pickle is read as logging's cookbook reads it, and gives the payload."""
    fresh = record()
    data = logging.handlers.SocketHandler("127.0.0.1", 1).makePickle(fresh)
    length = struct.unpack(">L", data[:4])[0]
    came = logging.makeLogRecord(pickle.loads(data[4 : 4 + length]))
    assert payload_of(came) == payload_of(fresh)
    assert came.getMessage() == "enter job"


def test_over_a_real_socket(logger: logging.Logger) -> None:
    """The same through a TCP server on loopback."""
    received: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    class Receive(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while header := self.rfile.read(4):
                received.put(logging.makeLogRecord(pickle.loads(self.rfile.read(struct.unpack(">L", header)[0]))))

    with socketserver.TCPServer(("127.0.0.1", 0), Receive) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        handler = logging.handlers.SocketHandler(*server.server_address)
        handler.accepts_spans = True  # type: ignore[attr-defined]
        logger.addHandler(handler)
        with span("job", logger=logger):
            pass
        handler.close()
        thread.join(10)
    payloads = [payload_of(received.get(timeout=1)) for _ in range(2)]
    assert [payload["kind"] for payload in payloads if payload] == ["enter", "exit"]


def test_json(logger: logging.Logger) -> None:
    """python-json-logger writes the payload under the one key, and the line can be read as a record again."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    with span("job", logger=logger, name="field", message="field", args=(1,), asctime=2, taskName="t") as s:
        pass
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"].split()[0] for line in lines] == ["enter", "exit"]
    payload = payload_of(lines[0])
    assert payload is not None
    assert flaw_of(payload) is None
    assert payload["name"] == "job"
    assert payload["fields"] == {"name": "field", "message": "field", "args": [1], "asctime": 2, "taskName": "t"}
    assert lines[0]["span_id"] == s.id


def test_filters_see_it(logger: logging.Logger, keeper: Keeper) -> None:
    """A logging.Filter of the logger's name lets it pass, another one does not."""
    keeper.addFilter(logging.Filter("test_records"))
    with span("job", logger=logger):
        pass
    assert len(keeper.records) == 2
    keeper.addFilter(logging.Filter("elsewhere"))
    with span("job", logger=logger):
        pass
    assert len(keeper.records) == 2


def test_caplog_sees_it(caplog: pytest.LogCaptureFixture) -> None:
    """caplog captures lifecycle records where the level allows."""
    with caplog.at_level(logging.DEBUG, logger="asyncinspect"), span("job", user=7):
        pass
    assert caplog.messages[0] == "enter job"
    assert caplog.records[0].span == "job"  # type: ignore[attr-defined]
    assert caplog.record_tuples[0] == ("asyncinspect", logging.DEBUG, "enter job")


def test_attributes_can_be_set(record: Callable[[], logging.LogRecord]) -> None:
    """Filters set attributes on records, before and after anybody has looked."""
    fresh = record()
    fresh.request_id = "r1"
    fresh.msg = "changed"
    assert fresh.getMessage() == "changed"
    assert vars(copy.copy(fresh))["request_id"] == "r1"
    assert logging.Formatter("%(request_id)s %(message)s").format(fresh) == "r1 changed"


def test_user_factory_makes_the_standard_attributes(
    record: Callable[[], logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the application's record factory adds is there too, for the formatters that expect it."""
    plain = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = plain(*args, **kwargs)
        made.host = "h1"
        return made

    logging.setLogRecordFactory(factory)
    try:
        assert logging.Formatter("%(host)s %(message)s").format(record()) == "h1 enter job"
    finally:
        logging.setLogRecordFactory(plain)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", "0x00000000000001"),
        ("id", "0000_0000_000001"),
        ("id", " 000000000000001"),
        ("id", "000000000000001\n"),
        ("id", "\u0661" * 16),
        ("id", "\uff11" * 16),
        ("id", "0" * 16),
        ("id", "1" * 15),
        ("trace", "0x" + "1" * 30),
        ("trace", "\u0661" * 32),
        ("parent", "0x00000000000001"),
        ("t", 1 << 63),
        ("wall", 1 << 63),
        ("pid", 1 << 63),
        ("seq", 1 << 63),
        ("seq", True),
    ],
)
def test_flaws(key: str, value: Any) -> None:
    """An id is hex digits and nothing else that Python reads as a number; a number is one to compute with."""
    payload = {"v": 1, "kind": "enter", "id": "00f067aa0ba902b7", "t": 5, "wall": 5, "pid": 1, "seq": 1, "name": "job"}
    payload |= {"trace": "1" * 32, "parent": "1" * 16}
    assert flaw_of(payload) is None
    assert key in (flaw_of(payload | {key: value}) or "")


@pytest.mark.parametrize("value", [(1 << 63) - 1, 1 << 63])
def test_flaws_of_an_exit(value: int) -> None:
    """The tallies have the same bound."""
    payload = {"v": 1, "kind": "exit", "id": "00f067aa0ba902b7", "t": 5, "wall": 5, "pid": 1, "seq": 1, "name": "job"}
    assert (flaw_of(payload | {"outcome": "completed", "busy": value}) is None) == (value < 1 << 63)


def test_payload_of_other_things() -> None:
    """Only what has a payload has one; a payload itself is taken as one."""
    assert payload_of(logging.makeLogRecord({"msg": "x"})) is None
    assert payload_of({"event": "x"}) is None
    assert payload_of("text") is None
    payload = {"v": 1, "kind": "enter"}
    assert payload_of(payload) is payload
    assert payload_of({KEY: payload, "event": "x"}) is payload
    assert flaw_of(payload_of({KEY: "text"}) or {}) is not None
