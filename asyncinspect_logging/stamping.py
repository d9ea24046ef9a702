"""Ordinary log records carry the ids of the span that they were made in.

They are stamped where they are made, by the record factory that logging provides for it: a handler would stamp too
late for the handlers before it, and in the wrong thread behind a queue.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any

from .spans import current_span

__all__ = ["expect", "first_sight", "release", "stamp", "use"]

_users: weakref.WeakSet[logging.Handler] = weakref.WeakSet()
_lock = threading.Lock()
_before: Callable[..., logging.LogRecord] = logging.LogRecord


class _Last(threading.local):
    """What this thread has counted last: the record, by its address and time, and the inspectors that counted it;
    and the name of the logger to which a structlog chain is about to hand an event that was counted already.
    """

    record: tuple[int, float] | None = None
    inspectors: tuple[int, ...] = ()
    expected: str | None = None
    expected_by: tuple[int, ...] = ()


_last = _Last()


def use(handler: logging.Handler) -> None:
    """Have records stamped from now on, until the last user releases."""
    global _before
    with _lock:
        _users.add(handler)
        factory = logging.getLogRecordFactory()
        if factory is not _make:
            _before = factory
            logging.setLogRecordFactory(_make)


def release(handler: logging.Handler) -> None:
    """Give the factory that was there before its place back once nobody needs ours, unless another one came since."""
    with _lock:
        _users.discard(handler)
        if not _users and logging.getLogRecordFactory() is _make:
            logging.setLogRecordFactory(_before)


def _make(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _before(*args, **kwargs)
    stamp(record)
    if _last.expected is not None:
        if _last.expected == record.name:
            _last.record, _last.inspectors = (id(record), record.created), _last.expected_by
        _last.expected = None
    return record


def stamp(record: logging.LogRecord) -> dict[str, Any]:
    """Set `span`, `span_id` and `trace_id`, if they are not there yet; returns the record's attributes."""
    attributes = record.__dict__
    if "span_id" not in attributes:
        span = current_span()
        if span is None:
            attributes["span"] = attributes["span_id"] = attributes["trace_id"] = ""
        else:
            attributes["span"], attributes["span_id"], attributes["trace_id"] = span.name, span.id, span.trace_id
    return attributes


def first_sight(record: logging.LogRecord, inspector: object) -> bool:
    """Whether this thread shows the record to the inspector for the first time: a handler and a processor, or two
    handlers, may both come across it.
    """
    key = (id(record), record.created)
    if _last.record != key:
        _last.record, _last.inspectors = key, ()
    if id(inspector) in _last.inspectors:
        return False
    _last.inspectors += (id(inspector),)
    return True


def expect(logger_name: str, inspector: object) -> None:
    """The event that this thread hands to the stdlib logger next was counted already."""
    if _last.expected != logger_name:
        _last.expected, _last.expected_by = logger_name, ()
    _last.expected_by += (id(inspector),)
