"""Ordinary log records carry the ids of the span that they were made in, and are counted once for each inspector.

They are stamped where they are made: a handler would stamp too late for the handlers before it, and in the wrong thread
behind a queue. A record factory would stamp too early: `Logger.makeRecord` raises KeyError where the application's
`extra` names an attribute that the factory has set, and `extra={"trace_id": …}` is nothing unusual.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import weakref
from _thread import get_ident
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from . import process
from .spans import Span, current_span

__all__ = [
    "KEYS",
    "Mark",
    "counted",
    "expect",
    "first_sight",
    "mark_fields",
    "mark_in",
    "mark_of",
    "release",
    "use",
    "use_for",
    "users",
]

#: What is set on records and event dicts; the application's own values stay. The last is for a mark that finds all of
#: the others taken.
KEYS: Final = ("span_id", "trace_id", "span", "_asyncinspect")

#: Lines remembered after they were pickled: a pipe takes fewer before it must be read. And of those, such as have both
#: their span and their time in common, which takes a clock that stands.
_MAX_AWAY: Final = 1024
_MAX_ALIKE: Final = 64

_users: weakref.WeakSet[Any] = weakref.WeakSet()
_lock = threading.Lock()
_stamping = False
#: What stands in for `Logger.makeRecord`, and what it stands in for.
_ours: Any = None
_wrapped: Any = None


class Mark(str):
    """One of the texts stamped on a record, which also knows who has counted the record.

    It stays the same object in shallow copies of the record (a formatter's, a queue handler's), and in an event dict
    on its way through structlog into a record: so the record is known again wherever it turns up in this process.
    Pickles are plain texts, which name no class of ours; see `_Away`.
    """

    __slots__ = ("created", "number", "seen_by")

    number: int
    #: The time of the record; None as long as there is no record.
    created: float | None
    #: References to the inspectors that have counted the record; None: nobody needs to.
    seen_by: dict[object, object] | None

    def __copy__(self) -> Mark:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Mark:
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        _away.leave(self)
        return str, (str(self),)


class _Away:
    """The marks of records that were pickled lately, to be known again where one comes back to this process: some other
    handler may have brought the same line before its inspector.

    A line is known by its span and its time. Where several have both in common, they come back in the order in which
    they left.
    """

    def __init__(self) -> None:
        # Re-entrant, since a finaliser may log at any moment.
        self._lock = threading.RLock()
        self._marks: OrderedDict[tuple[int, float], list[Mark]] = OrderedDict()

    def leave(self, mark: Mark) -> None:
        if mark.created is None:
            return
        with self._lock:
            marks = self._marks.setdefault((mark.number, mark.created), [])
            # By identity: as texts, they are all equal.
            if not any(other is mark for other in marks):
                marks.append(mark)
                del marks[:-_MAX_ALIKE]
            while len(self._marks) > _MAX_AWAY:
                self._marks.popitem(last=False)

    def back(self, number: int, record: logging.LogRecord) -> Mark | None:
        """The mark of a record that has come from anywhere, if that was here."""
        if record.process not in (None, process.pid):
            return None
        with self._lock:
            marks = self._marks.get((number, record.created))
            if not marks:
                return None
            # It may have left, and may come back, by several ways.
            marks.append(marks.pop(0))
            return marks[-1]


class _Expected(threading.local):
    """The mark of the event that structlog is about to hand to the stdlib logger of this name, in this thread."""

    mark: Mark | None = None
    logger_name = ""


class _Late(threading.local):
    """The record that was stamped late last, in this thread: the object that is its time, which its shallow copies
    share, and its mark.
    """

    created: float | None = None
    mark: Mark | None = None


_away = _Away()
_expected = _Expected()
_late = _Late()


def use(user: object) -> None:
    """Have records stamped from now on, for as long as `user` lives and does not release."""
    global _stamping
    with _lock:
        _users.add(user)
        _stamping = True
        # Somebody may have wrapped ours since, with functools.wraps or without. Stamping twice does no harm.
        if not hasattr(logging.Logger.makeRecord, "_asyncinspect"):
            _install()


def use_for(users: Iterable[object]) -> None:
    """`use`, for those that do not yet."""
    for user in users:
        if user not in _users:
            use(user)


def users() -> list[Any]:
    """Those who have records stamped: front ends, and whoever uses one, such as a queue's handler."""
    with _lock:
        return list(_users)


def _install() -> None:
    global _ours, _wrapped
    make_record = logging.Logger.makeRecord

    @functools.wraps(make_record)
    def makeRecord(self: logging.Logger, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(self, *args, **kwargs)
        if _stamping:
            _stamp_new(record)
        return record

    makeRecord._asyncinspect = True  # type: ignore[attr-defined]
    _ours, _wrapped = makeRecord, make_record
    logging.Logger.makeRecord = makeRecord  # type: ignore[method-assign]


def release(user: object) -> None:
    """Once nobody needs the stamps, give `Logger.makeRecord` its place back, unless somebody has wrapped ours since:
    then it stays, and does nothing.
    """
    global _stamping
    with _lock:
        _users.discard(user)
        if not _users:
            _stamping = False
            if logging.Logger.makeRecord is _ours:
                logging.Logger.makeRecord = _wrapped  # type: ignore[method-assign]


def _stamp_new(record: logging.LogRecord) -> None:
    attributes = record.__dict__
    mark = _expected.mark
    if mark is not None:
        _expected.mark = None
        if _expected.logger_name == record.name and _made_by_structlog():
            # Rendered by now, most likely, and nothing of the event's own keys left.
            attributes.setdefault("span_id", mark)
    mark = mark_fields(attributes, current_span())
    if mark is not None:
        mark.created = record.created
    for key in ("span", "span_id", "trace_id"):
        attributes.setdefault(key, "")


def _made_by_structlog() -> bool:
    """Whether the call that makes a record comes from structlog: the first frame outside logging and this module."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module != __name__ and module != "logging":
            return bool(module.partition(".")[0] == "structlog")
        frame = frame.f_back  # type: ignore[assignment]
    return False


def mark_fields(fields: dict[str, Any], span: Span | None) -> Mark | None:
    """Set the ids of the span, where their keys are free; returns the mark, the one that was there before us first."""
    mark = mark_in(fields)
    if span is None:
        return mark
    texts = (span.id, span.trace_id, span.name, span.id)
    for key, text in zip(KEYS, texts, strict=True):
        if mark is None and key not in fields:
            fields[key] = mark = _new_mark(text, span.number)
            if span.outcome == "unheard":
                mark.seen_by = None
        elif key != KEYS[-1]:
            fields.setdefault(key, text)
    return mark


def _new_mark(text: str, number: int) -> Mark:
    mark = Mark(text)
    mark.number = number
    mark.created = None
    mark.seen_by = {}
    return mark


def counted(span: Span) -> dict[str, Any]:
    """The fields to set for what is not to be counted as a line in the span."""
    mark = _new_mark(span.id, span.number)
    mark.seen_by = None
    return {"span": span.name, "span_id": mark, "trace_id": span.trace_id}


def mark_in(fields: Mapping[str, Any]) -> Mark | None:
    """The mark among the fields of a record or of an event, if there is one."""
    for key in KEYS:
        value = fields.get(key)
        if value.__class__ is Mark:
            return value
    return None


def mark_of(record: logging.LogRecord) -> Mark | None:
    """The mark of an ordinary record, or None where it was made outside spans.

    One that was made before anybody asked for stamps is stamped now, if this is still the thread that made it.
    """
    attributes = record.__dict__
    event = attributes.get("msg")
    mark = mark_in(event) if isinstance(event, dict) else None
    if mark is None:
        mark = mark_in(attributes)
    if mark is not None:
        return mark
    span_id = attributes.get("span_id")
    if span_id is None:
        mark = _stamp_late(record, attributes)
    elif _was_mark(span_id) and "span" in attributes and "trace_id" in attributes:
        # Stamped, and pickled since; or by `annotate`.
        number = int(span_id, 16)
        attributes["span_id"] = mark = _away.back(number, record) or _new_mark(span_id, number)
    return mark


def _stamp_late(record: logging.LogRecord, attributes: dict[str, Any]) -> Mark | None:
    span = None
    if record.thread in (None, get_ident()) and record.process in (None, process.pid):
        span = current_span()
        if span is not None and _late.created is record.created:
            # A copy of it was stamped before.
            attributes["span_id"] = _late.mark
    mark = mark_fields(attributes, span)
    if mark is not None:
        mark.created = record.created
    _late.created, _late.mark = record.created, mark
    for key in ("span", "span_id", "trace_id"):
        attributes.setdefault(key, "")
    return mark


def _was_mark(text: object) -> bool:
    return isinstance(text, str) and len(text) == 16 and text.isascii() and text.isalnum() and _is_hex(text)


def _is_hex(text: str) -> bool:
    try:
        return int(text, 16) > 0
    except ValueError:
        return False


def first_sight(mark: Mark, inspector: object) -> bool:
    """Whether the inspector is shown what bears the mark for the first time: a handler and a processor, two handlers,
    or a handler and a queue's listener in another thread may all come across it.
    """
    seen_by = mark.seen_by
    if seen_by is None:
        return False
    # One step, since two threads may ask at once.
    me = object()
    return seen_by.setdefault(weakref.ref(inspector), me) is me


def expect(logger: object, mark: Mark | None) -> None:
    """The next record that structlog makes with this logger, in this thread, is what `mark` has marked. With None,
    or a logger that makes no records: there is no such record.
    """
    if mark is not None and isinstance(logger, logging.Logger | logging.LoggerAdapter):
        _expected.mark, _expected.logger_name = mark, logger.name
    else:
        _expected.mark = None


def _in_child() -> None:
    global _lock, _away
    _lock = threading.Lock()
    _away = _Away()


process.after_fork(_in_child)
