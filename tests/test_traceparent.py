from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
