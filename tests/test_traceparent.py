from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncinspect_logging import span
from asyncinspect_logging.traceparent import format_traceparent, parse_parent, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{SPAN}-01"
FOUND = (TRACE, int(SPAN, 16))


def test_round_trip() -> None:
    """What is formatted is understood."""
    assert parse_traceparent(format_traceparent(TRACE, SPAN)) == FOUND


@pytest.mark.parametrize("header", [HEADER.upper(), f" {HEADER}\n", f"cc-{TRACE}-{SPAN}-01-what-the-future-brings"])
def test_accepts(header: str) -> None:
    """Capitals, white space around, and later versions with more in them."""
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
    ],
)
def test_reads_headers(parent: Any) -> None:
    """As a text, as bytes, and among headers of either kind."""
    assert parse_parent(parent) == FOUND


@pytest.mark.parametrize(
    "parent", [{}, {"traceparent": 7}, {1: HEADER}, {"traceparent": [HEADER, HEADER]}, b"\xff\xfe"]
)
def test_headers_without_a_usable_parent(parent: Any) -> None:
    """Nothing is guessed."""
    assert parse_parent(parent) is None


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
