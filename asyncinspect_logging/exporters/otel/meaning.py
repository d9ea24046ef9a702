"""A task in OpenTelemetry's terms: its kind, status, attributes, events and links.

Names follow the semantic conventions 1.43 where they have one: `code.file.path`, `code.line.number`, `thread.id`,
`error.type`, `exception.*`. What they have none for is under `task.`, in ms where it is a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ...traceparent import parse_traceparent

if TYPE_CHECKING:
    from ...finished import FinishedSpan

__all__ = ["KINDS", "KIND_FIELDS", "OWN", "Link", "all_attributes", "events", "kind", "links", "plain", "status"]

#: A span kind and its number in OTLP.
KINDS: Final = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}
#: Fields that say which kind a span is of, the first of them that does. `kind` may be the application's own, and is an
#: attribute all the same.
KIND_FIELDS: Final = ("otel.kind", "otel_kind", "kind")
#: Attributes that are ours; a field of such a name takes their place.
OWN: Final = frozenset(
    {f"task.{name}" for name in (
        "name", "state", "outcome", "coroutine", "parent_closed", "poll_count", "duration_ms", "pending_ms",
        "wake_count", "self_wake_count", "busy_ms", "idle_ms", "scheduled_ms", "max_poll_ms",
    )}
    | {"error.type", "thread.id", "code.file.path", "code.line.number"}
)  # fmt: skip
_MS: Final = 1e6
_INT64: Final = range(-(1 << 63), 1 << 63)
#: Entries of the timeline by what they are called on a span. Those of synchronisation keep their names.
_EVENTS: Final = {"resume": "poll", "suspend": "blocked"}
_SPAN_ID: Final = re.compile("[0-9a-fA-F]{16}")


class Link(NamedTuple):
    """Another span: trace id in hex, span id as a number."""

    trace: str
    id: int


def kind(span: FinishedSpan) -> str:
    """What one of the `KIND_FIELDS` says; else "server" where a request brought the parent along."""
    for field in KIND_FIELDS:
        said = _kind_of(span.fields.get(field))
        if said is not None:
            return said
    return "server" if span.remote else "internal"


def _kind_of(value: object) -> str | None:
    """The kind that a field's value is, also one of the SDK's `SpanKind`."""
    said = value.lower().removeprefix("spankind.") if isinstance(value, str) else ""
    return said if said in KINDS else None


def identity(span: FinishedSpan) -> dict[str, Any]:
    """The attributes that many tasks have in common."""
    found: dict[str, Any] = {"task.name": span.name, "task.state": span.state}
    if span.outcome is not None and span.outcome != span.state:
        found["task.outcome"] = span.outcome
    if span.task is not None:
        found["task.coroutine"] = span.task
    if span.parent_closed:
        found["task.parent_closed"] = True
    if span.outcome == "failed" and span.error:
        found["error.type"] = str(span.error.get("type", "_OTHER"))
    if span.thread is not None:
        found["thread.id"] = span.thread
    if span.at is not None:
        path, _, line = span.at.rpartition(":")
        if path and line.isdecimal():
            found["code.file.path"] = path
            found["code.line.number"] = int(line)
    return found


def figures(span: FinishedSpan, now: int) -> dict[str, Any]:
    """The attributes that are counts and times. `now` (Unix time in ns) is the end of one that has none."""
    duration = (span.ended or now) - span.started
    found: dict[str, Any] = {"task.poll_count": span.polls, "task.duration_ms": duration / _MS}
    if span.started != span.spawned:
        found["task.pending_ms"] = (span.started - span.spawned) / _MS
    if span.stepped:
        found["task.wake_count"] = span.wakes
        found["task.self_wake_count"] = span.self_wakes
        found["task.busy_ms"] = max(0, span.busy) / _MS
        found["task.idle_ms"] = max(0, duration - max(0, span.busy)) / _MS
        found["task.scheduled_ms"] = max(0, span.scheduled) / _MS
        found["task.max_poll_ms"] = span.max_poll / _MS
    return found


def all_attributes(span: FinishedSpan, now: int) -> dict[str, Any]:
    """Ours, and then the span's own fields."""
    return {**identity(span), **figures(span, now), **fields(span)}


def fields(span: FinishedSpan) -> dict[str, Any]:
    """The span's own fields. A mapping becomes one attribute an entry, named by the path to it, so that
    `http={"request": {"method": "GET"}}` is the attribute `http.request.method`.
    """
    found: dict[str, Any] = {}
    for key, value in span.fields.items():
        if key == "kind" or key not in KIND_FIELDS or _kind_of(value) is None:
            _flatten(key, value, found)
    return found


def _flatten(key: str, value: Any, into: dict[str, Any]) -> None:
    # As deep as `fields.FieldPolicy` lets them be.
    if isinstance(value, Mapping):
        for inner, item in value.items():
            _flatten(f"{key}.{inner}", item, into)
    elif value is not None:
        into[key or "_"] = plain(value)


def plain(value: Any) -> Any:
    """A value that an attribute may have: text, a truth value, a number, or a list of one type of these."""
    cls = type(value)
    if cls in (str, bool, float):
        return value
    if cls is int:
        return value if value in _INT64 else str(value)
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value if item is not None]
        if len({type(item) for item in items}) > 1 or any(isinstance(item, list) for item in items):
            items = [item if type(item) is str else repr(item) for item in items]
        return items
    if isinstance(value, Mapping):
        return repr({key: plain(item) for key, item in value.items()})
    return str(value)


def status(span: FinishedSpan) -> str | None:
    """The message of a task that failed; None of any other: being cancelled is no error."""
    if span.outcome != "failed":
        return None
    error = span.error or {}
    return str(error.get("message") or error.get("type") or "")


def exception(span: FinishedSpan) -> dict[str, Any] | None:
    """The attributes of the event that tells of the exception which ended a task."""
    error = span.error
    if span.outcome != "failed" or not error:
        return None
    found: dict[str, Any] = {
        "exception.type": str(error.get("type", "")),
        "exception.message": str(error.get("message", "")),
    }
    if "stacktrace" in error:
        found["exception.stacktrace"] = str(error["stacktrace"])
    if "leaves" in error:
        found["exception.leaves"] = plain(error["leaves"])
    return found


def events(span: FinishedSpan, *, timeline: bool = True) -> list[tuple[int, str, dict[str, Any]]]:
    """The timeline, oldest first: Unix time in ns, name, attributes. Last the exception, if one ended the task."""
    found: list[tuple[int, str, dict[str, Any]]] = []
    for at, kind, detail in span.notes if timeline else ():
        if kind == "log":
            level, _, message = detail.partition(" ")
            found.append((at, "log", {"log.severity": level, "log.message": message}))
        elif kind == "suspend":
            found.append((at, "blocked", {"task.waiting_on": detail} if detail else {}))
        else:
            found.append((at, _EVENTS.get(kind, kind), {"task.resource": detail} if detail else {}))
    if any(event[1] == "blocked" for event in found):
        # The first step begins with the task, and has no record of its own.
        found.append((span.started, "poll", {}))
    found.sort(key=_at)
    error = exception(span)
    if error is not None:
        found.append((span.ended, "exception", error))
    return found


def _at(event: tuple[int, str, dict[str, Any]]) -> int:
    return event[0]


def links(span: FinishedSpan) -> list[Link]:
    """The spans that it names. Where only a span id is known, it is taken for one of the same trace."""
    found = []
    for link in span.links:
        parsed = parse_traceparent(link)
        if parsed is not None:
            found.append(Link(str(parsed[0]), parsed[1]))
        elif _SPAN_ID.fullmatch(link) and int(link, 16):
            found.append(Link(getattr(link, "trace", "") or str(span.trace), int(link, 16)))
    return found
