"""The `traceparent` header (W3C Trace Context, level 1, section 3.2): version-traceid-parentid-flags, in hex."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

__all__ = ["format_traceparent", "parse_parent", "parse_traceparent"]

_FORM: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)


def format_traceparent(trace_id: str, span_id: str) -> str:
    """The header value for a child elsewhere; the sampled flag is set, since nothing here samples what is counted."""
    return f"00-{trace_id}-{span_id}-01"


def parse_traceparent(header: str) -> tuple[str, int] | None:
    """(trace id in 32 hex digits, parent span id as a number), or None where the header is not a valid one."""
    match = _FORM.fullmatch(header.strip().lower())
    if match is None:
        return None
    version, trace, parent, _flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace, 16) or not int(parent, 16):
        return None
    return trace, int(parent, 16)


def parse_parent(parent: str | bytes | Mapping[object, object]) -> tuple[str, int] | None:
    """Like `parse_traceparent`, of a header value or of a mapping of headers, with names in any case, str or bytes."""
    if isinstance(parent, Mapping):
        for key, value in parent.items():
            name = key.decode("latin-1") if isinstance(key, bytes) else key
            if isinstance(name, str) and name.lower() == "traceparent":
                if isinstance(value, list | tuple) and len(value) == 1:
                    value = value[0]
                return parse_parent(value) if isinstance(value, str | bytes) else None
        return None
    return parse_traceparent(parent.decode("latin-1") if isinstance(parent, bytes) else parent)
