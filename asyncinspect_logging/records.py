"""The record protocol, version 1: lifecycle records as `logging.LogRecord`s and as plain mappings.

A lifecycle record says what happened to a span. All it says sits under the one key `asyncinspect`.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from . import clock, process
from .states import OUTCOMES

if TYPE_CHECKING:
    from .spans import Span

__all__ = [
    "KEY",
    "LEVELS",
    "STEP_KINDS",
    "TRACE",
    "VERSION",
    "SpanRecord",
    "flaw_of",
    "is_id",
    "is_whole",
    "payload_of",
]

VERSION: Final = 1
#: The one key of a record, an event dict or a JSON line under which everything of ours is.
KEY: Final = "asyncinspect"
#: Level below DEBUG, for what happens at each step of a coroutine.
TRACE: Final = 5

if logging.getLevelName(TRACE) == f"Level {TRACE}":
    logging.addLevelName(TRACE, "TRACE")

LEVELS: Final[dict[str, int]] = {
    "spawn": TRACE,
    "enter": logging.DEBUG,
    "suspend": TRACE,
    "wake": TRACE,
    "resume": TRACE,
    "record": logging.DEBUG,
    "exit": logging.DEBUG,
    "wait": TRACE,
    "acquire": TRACE,
    "release": TRACE,
}
#: Kinds that carry no name.
STEP_KINDS: Final = frozenset({"suspend", "wake", "resume", "wait", "acquire", "release"})

# The real instance dictionary of a record, behind the property below.
_dict_of = logging.LogRecord.__dict__["__dict__"].__get__


class SpanRecord(logging.LogRecord):
    """A lifecycle record of a span in this process: a `logging.LogRecord` whose attributes are worked out when
    somebody first asks for one.

    `kind` is one of `LEVELS`, `t` the monotonic time in ns, and `more` what the
    kind has beyond the span itself. Copies and pickles are plain `LogRecord`s with everything filled in, so that they
    mean the same in another thread, process or release.
    """

    # The protocol wants every ordinary handler to be able to look, and ours not to have to pay for it: filling the
    # attributes as `Logger.makeRecord` does costs ten times what the rest of the record does.
    __slots__ = ("kind", "logger_name", "more", "of_fields", "of_span", "of_task", "seq", "t")

    def __init__(
        self,
        span: Span,
        kind: str,
        t: int,
        logger_name: str,
        more: Mapping[str, Any] | None = None,
        *,
        numbered: bool = True,
    ) -> None:
        """`numbered`: whether anybody gets the record; one that only filters are asked about leaves no hole in the
        numbers of the others.
        """
        self.of_span = span
        self.kind = kind
        self.t = t
        self.seq = process.new_seq() if numbered else 0
        self.logger_name = logger_name
        self.more = more
        if kind == "enter" or kind == "spawn":
            # What will have changed, or be gone, by the time that somebody looks at a record that was kept.
            self.of_fields, self.of_task = span.fields, span.task_name

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        attributes: dict[str, Any] = _dict_of(self)
        if KEY not in attributes:
            self._fill(attributes)
        return attributes

    def __getattr__(self, name: str) -> Any:
        # Reached only for what is not there (yet).
        attributes: dict[str, Any] = _dict_of(self)
        if KEY not in attributes and not (name.startswith("__") and name.endswith("__")):
            self._fill(attributes)
            if name in attributes:
                return attributes[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _fill(self, attributes: dict[str, Any]) -> None:
        payload = payload_of_span(self)
        wall = payload["wall"]
        span = self.of_span
        where = span.code
        path, line, function = (where.co_filename, span.line, where.co_name) if where else ("", 0, None)
        # The application's own record factory makes the standard attributes, and whatever else its formatters expect.
        base = logging.getLogRecordFactory()(
            self.logger_name, LEVELS[self.kind], path, line, _message(payload), (), None, function
        )
        filled = vars(base)
        filled["created"] = wall / 1e9
        filled["msecs"] = wall // 1_000_000 % 1000 + 0.0
        filled["relativeCreated"] = (wall / 1e9 - _start_time) * 1000
        filled["span"] = span.name
        filled["span_id"] = payload["id"]
        filled["trace_id"] = span.trace_id
        filled[KEY] = payload
        for name, value in filled.items():
            attributes.setdefault(name, value)

    def __copy__(self) -> logging.LogRecord:
        plain = logging.LogRecord.__new__(logging.LogRecord)
        plain.__dict__.update(self.__dict__)
        return plain

    def __deepcopy__(self, memo: dict[int, Any]) -> logging.LogRecord:
        return copy.deepcopy(self.__copy__(), memo)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return logging.makeLogRecord, (dict(self.__dict__),)

    def __repr__(self) -> str:
        return f"<SpanRecord: {self.kind} {self.of_span.name}>"


_start_time: float = getattr(logging, "_startTime", 0.0)
if _start_time > 1e12:  # ns since 3.13
    _start_time /= 1e9


def payload_of_span(record: SpanRecord) -> dict[str, Any]:
    """What the record says, as the protocol spells it."""
    span, kind, t = record.of_span, record.kind, record.t
    payload: dict[str, Any] = {
        "v": VERSION,
        "kind": kind,
        "id": span.id,
        "t": t,
        "wall": clock.wall_ns(t, span.clock),
        "pid": process.pid,
        "seq": record.seq,
    }
    if kind not in STEP_KINDS:
        payload["name"] = span.name
    if kind in ("spawn", "enter"):
        payload["trace"] = span.trace_id
        if span.parent_id is not None:
            payload["parent"] = span.parent_id
        if span.links:
            payload["links"] = list(map(str, span.links))
        if span.parent_closed:
            payload["parent_closed"] = True
        if record.of_task is not None:
            payload["task"] = record.of_task
        payload["thread"] = span.thread
        at = span.at
        if at is not None:
            payload["at"] = at
        payload["fields"] = dict(record.of_fields)
    elif kind == "exit":
        payload.update(span.tallies())
        if span.tally is not None and payload["polls"] == 1 and not payload["max_poll"]:
            # Its only step took no time by its clock: all other tallies are those of a span whose steps nobody saw.
            payload.setdefault("slow_polls", [])
    if record.more:
        payload.update(record.more)
    return payload


def _message(payload: Mapping[str, Any]) -> str:
    kind = payload["kind"]
    if kind == "exit":
        return f"exit {payload['name']} {payload['outcome']} after {payload['duration'] / 1e6:.3f} ms"
    return f"{kind} {payload.get('name', payload['id'])}"


def payload_of(record: object) -> Mapping[str, Any] | None:
    """The lifecycle payload of a LogRecord, an event dict or a JSON line already parsed; None where it has none.

    A mapping that is itself a payload (it has "kind" and "v") is taken as one.
    """
    if isinstance(record, logging.LogRecord):
        payload = record.__dict__.get(KEY)
    elif isinstance(record, Mapping):
        payload = record.get(KEY)
        if payload is None and "kind" in record and "v" in record:
            payload = record
    else:
        return None
    return payload if payload is None or isinstance(payload, Mapping) else {"flaw": payload}


#: Ids of so many digits, not all of them 0. Not by int(), which also takes "0x1f" and the digits of other scripts.
_IDS: Final = {digits: re.compile(rf"(?!0*\Z)[0-9a-fA-F]{{{digits}}}") for digits in (16, 32)}


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number that fits 63 bits, as times in ns, ids of processes and tallies do: more could
    not be computed with.
    """
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _hex(value: object, digits: int) -> bool:
    return isinstance(value, str) and _IDS[digits].fullmatch(value) is not None


def is_id(value: object) -> TypeGuard[str]:
    """Whether a value is 16 hex digits, not all of them 0."""
    return _hex(value, 16)


def flaw_of(payload: Mapping[str, Any]) -> str | None:
    """What is wrong with a payload, or None: the checks of protocol version 1. Never raises."""
    version, kind = payload.get("v"), payload.get("kind")
    if version != VERSION:
        return f"v={version!r} is not a version this reader knows"
    if not isinstance(kind, str) or kind not in LEVELS:
        return f"kind={kind!r} is not a kind of the protocol"
    if not _hex(payload.get("id"), 16):
        return f"id={payload.get('id')!r} is not 16 hex digits"
    for key in ("t", "wall", "pid", "seq"):
        if not is_whole(payload.get(key)):
            return f"{key}={payload.get(key)!r} is not a whole number of at most 63 bits"
    if kind in STEP_KINDS:
        return None
    if not isinstance(payload.get("name"), str):
        return f"name={payload.get('name')!r} is not a text"
    if kind == "exit":
        outcome = payload.get("outcome")
        if not isinstance(outcome, str) or outcome not in OUTCOMES:
            return f"outcome={outcome!r} is not an outcome"
        for key in ("duration", "polls", "busy", "scheduled", "max_poll", "wakes", "self_wakes"):
            if key in payload and not is_whole(payload[key]):
                return f"{key}={payload[key]!r} is not a whole number of at most 63 bits"
        return None
    if "fields" in payload and not isinstance(payload["fields"], Mapping):
        return f"fields={type(payload['fields']).__name__} is not a mapping"
    if kind != "record":
        if "trace" in payload and not _hex(payload["trace"], 32):
            return f"trace={payload['trace']!r} is not 32 hex digits"
        if "parent" in payload and payload["parent"] is not None and not _hex(payload["parent"], 16):
            return f"parent={payload['parent']!r} is not 16 hex digits"
    return None
