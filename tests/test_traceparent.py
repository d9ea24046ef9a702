from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from email.message import Message
from typing import Any

import httpx
import multidict
import pytest
import starlette.datastructures
from hypothesis import given
from hypothesis import strategies as st

from asyncinspect_logging import Inspector, span
from asyncinspect_logging.traceparent import format_traceparent, parse_parent, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{SPAN}-01"
FOUND = (TRACE, int(SPAN, 16))


def _message(name: str, value: str) -> Message:
    """Headers as `http.server` has them."""
    message = Message()
    message[name] = value
    return message


def test_round_trip() -> None:
    """What is formatted is understood."""
    assert parse_traceparent(format_traceparent(TRACE, SPAN)) == FOUND


@pytest.mark.parametrize("header", [HEADER, f" {HEADER}\n", f"cc-{TRACE}-{SPAN}-01-What-the-future-brings"])
def test_accepts(header: str) -> None:
    """White space around, and later versions with more in them."""
    assert parse_traceparent(header) == FOUND


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[:-1]}\u0661-{SPAN}-01",
        # Its digits are lowercase ones ("HEXDIGLC", section 3.2.2).
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"CC-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0A",
        HEADER * 1000,
    ],
)
def test_refuses(header: str) -> None:
    """What the recommendation calls invalid."""
    assert parse_traceparent(header) is None


@pytest.mark.parametrize(
    "parent",
    [
        HEADER,
        HEADER.encode(),
        {"Traceparent": HEADER},
        {b"traceparent": HEADER.encode()},
        {"other": "x", "TRACEPARENT": [HEADER]},
        [(b"host", b"a"), (b"traceparent", HEADER.encode())],
        (("TraceParent", HEADER),),
        starlette.datastructures.Headers({"TraceParent": HEADER}),
        httpx.Headers({"TraceParent": HEADER}),
        multidict.CIMultiDict({"TraceParent": HEADER}),
        _message("TraceParent", HEADER),
    ],
    ids=lambda parent: type(parent).__qualname__,
)
def test_reads_headers(parent: Any, listen: Callable[..., Inspector]) -> None:
    """As a text, as bytes, and among headers as every framework has them."""
    listen()
    assert parse_parent(parent) == FOUND
    with span("request", parent=parent) as request:
        assert request.parent_id == SPAN


@pytest.mark.parametrize(
    "parent",
    [
        {},
        {"traceparent": 7},
        {1: HEADER},
        {"traceparent": [HEADER, HEADER]},
        [("traceparent", HEADER), ("Traceparent", HEADER)],
        b"\xff\xfe",
    ],
)
def test_headers_without_a_usable_parent(parent: Any) -> None:
    """Nothing is guessed."""
    assert parse_parent(parent) is None


class _Broken(dict[str, str]):
    def items(self) -> Any:
        raise RuntimeError("no headers for you")


@pytest.mark.parametrize("parent", [7, object(), iter([("traceparent", HEADER)]), [1], [("a",)], _Broken()])
def test_what_is_no_parent(parent: Any, listen: Callable[..., Inspector], caplog: pytest.LogCaptureFixture) -> None:
    """The span begins a trace, is counted like any other, and the log says what to give."""
    inspector = listen()
    with span(f"bad parent {id(parent)}", parent=parent) as one:
        assert one.parent_id is None
    assert inspector.snapshot().names[one.name].completed == 1
    (told,) = [record.getMessage() for record in caplog.records if one.name in record.getMessage()]
    assert "give a span, a traceparent, or the headers of a request" in told


def test_several_states_are_one() -> None:
    """As the recommendation has it (section 3.3.1.1)."""
    found = parse_parent([("traceparent", HEADER), ("tracestate", "a=1"), ("tracestate", "b=2")])
    assert found is not None
    assert found[0].state == "a=1,b=2"


def test_headers_are_let_go_of(listen: Callable[..., Inspector]) -> None:
    """A finished span that waits to be exported does not hold the request's headers."""

    class Headers(dict[str, str]):
        pass

    inspector = listen()
    headers = Headers(traceparent=HEADER)
    gone = weakref.ref(headers)
    finished = inspector.finished()
    with span("request", parent=headers) as request:
        del headers
        gc.collect()
        assert gone() is None
    (found,) = finished.take_spans()
    assert (found.remote, f"{found.parent:016x}", request.parent_id) == (True, SPAN, SPAN)


@given(st.text() | st.binary())
def test_never_raises(parent: Any) -> None:
    """Whatever a client sends."""
    parse_parent(parent)


def test_flags_and_state_come_along() -> None:
    """They belong to the trace, and so to every span of it."""
    found = parse_parent({"TraceState": "vendor=abc , other@tenant=1", "traceparent": f"00-{TRACE}-{SPAN}-00"})
    assert found == FOUND
    assert found is not None
    assert (found[0].flags, found[0].state) == (0, "vendor=abc,other@tenant=1")
    headers = {"traceparent": HEADER[:-1] + "0", b"tracestate": b"vendor=abc"}
    with span("request", parent=headers) as outer, span("query") as inner:
        assert inner.traceparent() == f"00-{TRACE}-{inner.id}-00"
        assert inner.tracestate() == outer.tracestate() == "vendor=abc"
    assert type(outer.trace_id) is str
    with span("root") as root:
        assert root.tracestate() == ""
        assert root.traceparent().endswith("-01")


@pytest.mark.parametrize("state", ["a=1,a=2", "A=1", "a", "a=b=c", "a=1," * 33 + "b=1", "a=" + "x" * 5000, "a=\x00", 7])
def test_a_state_that_is_none(state: Any) -> None:
    """Is dropped, and the parent stays."""
    found = parse_parent({"traceparent": HEADER, "tracestate": state})
    assert found is not None
    assert found[0].state == ""


def test_trace_ids_are_spread() -> None:
    """Samplers by ratio compare the last 8 bytes with a threshold: of any run of traces, it keeps that part."""
    ids = []
    for _ in range(1000):
        with span("root", parent=None) as root:
            ids.append(int(root.trace_id[16:], 16))
    for part in (0.05, 0.25, 0.5):
        assert sum(low < part * 2**64 for low in ids) == pytest.approx(part * 1000, abs=20)
    assert len(set(ids)) == 1000
