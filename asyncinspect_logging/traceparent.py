"""The headers `traceparent` and `tracestate` (W3C Trace Context, level 1, sections 3.2 and 3.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["SAMPLED", "SpanId", "Trace", "format_traceparent", "parse_parent", "parse_traceparent"]

_FORM: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
#: The flag that says that the trace is recorded somewhere.
SAMPLED: Final = 1
#: The longest `tracestate` that is passed on (the recommendation asks for 512 characters), and its entries.
_MAX_STATE: Final = 4096
_MAX_ENTRIES: Final = 32
#: `key=value`, as section 3.3.1 has it.
_ENTRY: Final = re.compile(
    r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


class Trace(str):
    """The id of a trace that began elsewhere (32 hex digits), with what came along: the flags of its `traceparent`, and
    its `tracestate` ("" for none). All spans in the trace share it, so it costs them nothing.
    """

    __slots__ = ("flags", "state")

    flags: int
    state: str

    def __new__(cls, id: str, flags: int = SAMPLED, state: str = "") -> Trace:
        self = super().__new__(cls, id)
        self.flags = flags
        self.state = state
        return self


class SpanId(str):
    """The id of a span (16 hex digits) that knows its trace's id (32), or "" where that is not known."""

    __slots__ = ("trace",)

    trace: str

    def __new__(cls, id: str, trace: str = "") -> SpanId:
        self = super().__new__(cls, id)
        self.trace = trace
        return self


def format_traceparent(trace_id: str, span_id: str, flags: int = SAMPLED) -> str:
    """The header value for a child elsewhere. The sampled flag is set in traces that began here, since nothing here
    samples what is counted.
    """
    return f"00-{trace_id}-{span_id}-{flags & SAMPLED:02x}"


def parse_traceparent(header: str) -> tuple[Trace, int] | None:
    """(trace, parent span id as a number), or None where the header is not a valid one, as with capitals in it."""
    match = _FORM.fullmatch(header.strip())
    if match is None:
        return None
    version, trace, parent, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace, 16) or not int(parent, 16):
        return None
    return Trace(trace, int(flags, 16)), int(parent, 16)


def _parse_state(header: str) -> str:
    """The value of a `tracestate` header as it is to be passed on; "" where it has to be dropped."""
    if len(header) > _MAX_STATE:
        return ""
    entries = [entry for entry in map(str.strip, header.split(",")) if entry]
    keys = {entry.partition("=")[0] for entry in entries}
    if len(entries) > _MAX_ENTRIES or len(keys) < len(entries) or not all(map(_ENTRY.fullmatch, entries)):
        return ""
    return ",".join(entries)


def _texts(value: object) -> list[str]:
    """The values of a header: text, bytes, or a list of these; nothing of anything else."""
    if isinstance(value, list | tuple):
        return [text for one in value for text in ([] if isinstance(one, list | tuple) else _texts(one))]
    if isinstance(value, bytes | bytearray):
        return [value.decode("latin-1")]
    return [value] if isinstance(value, str) else []


def _pairs(headers: object) -> Iterable[tuple[object, object]]:
    """Names and values of headers of any kind. Raises TypeError for what is not that."""
    if isinstance(headers, list | tuple):
        found = headers
    else:
        items = getattr(headers, "items", None)
        if not callable(items):
            raise TypeError("neither a traceparent nor headers")
        found = items()
    for pair in found:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise TypeError("headers that are no pairs of a name and a value")
        yield pair[0], pair[1]


def parse_parent(parent: object) -> tuple[Trace, int] | None:
    """Like `parse_traceparent`, of a header value, or of headers, from which the `tracestate` comes along: a mapping, a
    list of pairs (as in an ASGI scope), or whatever else has `items()`; names in any case, str or bytes. A request that
    has more than one `traceparent` has none.

    Raises TypeError for anything else, and what the headers themselves raise.
    """
    if isinstance(parent, str | bytes | bytearray):
        return parse_traceparent(parent if isinstance(parent, str) else parent.decode("latin-1"))
    parents: list[str] = []
    states: list[str] = []
    for key, value in _pairs(parent):
        name = key.decode("latin-1") if isinstance(key, bytes) else key
        if isinstance(name, str) and len(name) <= len("traceparent"):
            name = name.lower()
            if name == "traceparent":
                parents += _texts(value)
            elif name == "tracestate":
                states += _texts(value)
    found = parse_traceparent(parents[0]) if len(parents) == 1 else None
    if found is not None:
        found[0].state = _parse_state(",".join(states))
    return found
