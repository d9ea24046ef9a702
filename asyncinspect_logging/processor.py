"""The front end for structlog."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from . import clock, stamping
from .diagnostics import warn_once
from .errors import MissingExtraError
from .inspector import Inspector
from .records import KEY
from .routing import Listener
from .spans import current_span
from .structlog_route import Told

try:
    from structlog import DropEvent
except ImportError:
    raise MissingExtraError("AsyncInspectProcessor", "structlog") from None

__all__ = ["AsyncInspectProcessor"]


class AsyncInspectProcessor:
    """A structlog processor that feeds an inspector: lifecycle events become state transitions, and other events
    inside a span get `span`, `span_id` and `trace_id` (their own values stay) and become lines on its timeline.

    inspector: default `Inspector.default()`.
    pass_lifecycle: whether lifecycle events go on to the processors after this one. By default they end here; in a
        `ProcessorFormatter`, where ending an event is an error, they go on in any case.

    Put it first in the chain: then spans with `logger=` a logger of this chain cost least, since nothing before it
    wants to see them. It raises nothing but structlog's DropEvent.

    While `structlog.testing.capture_logs` is active, this processor is off like every other one, and spans begun then
    are not heard; give `capture_logs` one to use (`processors=`), or use `asyncinspect_logging.testing.capture_spans`.
    """

    accepts_spans = True

    def __init__(self, inspector: Inspector | None = None, pass_lifecycle: bool = False) -> None:
        if inspector is not None and not isinstance(inspector, Inspector):
            raise TypeError(f"inspector={inspector!r} is not an Inspector; write AsyncInspectProcessor(Inspector(…))")
        self.inspector = Inspector.default() if inspector is None else inspector
        self.pass_lifecycle = pass_lifecycle
        self.field_policy = self.inspector.field_policy
        self.inspector.is_fed = True
        stamping.use(self)

    def span_listener(self) -> Listener | None:
        """Spans of a logger with this processor in its chain are announced straight to the inspector, unless a subclass
        with its own `__call__` wants to see each event.
        """
        return self.inspector.listener() if type(self).__call__ is AsyncInspectProcessor.__call__ else None

    def __call__(self, logger: Any, method_name: str, event_dict: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        try:
            passes = self._take(logger, method_name, event_dict)
        except Exception:
            warn_once("processor", type(self).__qualname__, "a structlog event could not be inspected", exc_info=True)
            passes = True
        if not passes:
            raise DropEvent
        return event_dict

    def _take(self, logger: Any, method_name: str, event: MutableMapping[str, Any]) -> bool:
        """Take the event in; returns whether it goes on."""
        record = event.get("_record")
        if not isinstance(record, logging.LogRecord):
            record = None
        payload = event.get(KEY)
        if payload is None and record is not None:
            payload = record.__dict__.get(KEY)
        if payload is not None and isinstance(payload, Mapping) and "kind" in payload and "v" in payload:
            if not isinstance(payload, Told) or self.inspector.listener() not in payload.listeners:
                self.inspector.apply(payload)
            if record is not None:
                _copy_ids(record, event)
            return self.pass_lifecycle or record is not None
        if record is None:
            mark = stamping.mark_fields(event, current_span())  # type: ignore[arg-type] # a dict, says structlog
            stamping.expect(logger, mark)
        else:
            # From structlog, perhaps marked in its own chain; else from logging.
            mark = stamping.mark_in(event) or stamping.mark_of(record)
            _copy_ids(record, event)
        if mark is not None and stamping.first_sight(mark, self.inspector):
            wall = clock.time_ns() if record is None else round(record.created * 1e9)
            text = _text(event)[: self.inspector.config.max_field_length]
            self.inspector.annotate(mark.number, f"{method_name.upper()} {text}", wall)
        return True


def _copy_ids(record: logging.LogRecord, event: MutableMapping[str, Any]) -> None:
    for key in stamping.KEYS[:3]:
        value = record.__dict__.get(key)
        if value:
            event.setdefault(key, value)


def _text(event: Mapping[str, Any]) -> str:
    text, args = event.get("event", ""), event.get("positional_args")
    if not isinstance(text, str):
        return f"<{type(text).__qualname__}>"
    if args:
        try:
            return text % (args[0] if len(args) == 1 and isinstance(args[0], Mapping) and args[0] else args)
        except Exception:
            return text
    return text
