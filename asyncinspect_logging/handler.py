"""The front end for stdlib logging."""

from __future__ import annotations

import logging
from typing import Any

from . import stamping
from .inspector import Inspector
from .records import KEY, SpanRecord
from .routing import Listener, report

__all__ = ["AsyncInspectHandler"]


class AsyncInspectHandler(logging.Handler):
    """A logging handler that feeds an inspector: lifecycle records become state transitions, and ordinary records
    inside a span become lines on its timeline.

    inspector: default `Inspector.default()`. level: of ordinary records; lifecycle records come whatever the levels.

    While a handler of this class is in use, every LogRecord carries `span`, `span_id` and `trace_id`, "" outside
    spans, for any formatter to print.
    """

    accepts_spans = True

    def __init__(self, inspector: Inspector | None = None, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        if inspector is not None and not isinstance(inspector, Inspector):
            raise TypeError(f"inspector={inspector!r} is not an Inspector; write AsyncInspectHandler(Inspector(…))")
        self.inspector = Inspector.default() if inspector is None else inspector
        self.field_policy = self.inspector.field_policy
        stamping.use(self)

    def span_listener(self) -> Listener | None:
        """Spans of this process are announced straight to the inspector, unless somebody wants to see each record
        here: a filter, or a subclass with its own `handle` or `emit`.
        """
        cls = type(self)
        if self.filters or cls.emit is not AsyncInspectHandler.emit or cls.handle is not logging.Handler.handle:
            return None
        return self.inspector.listener()

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """No lock: the inspector takes records from any thread."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if isinstance(record, SpanRecord):
                self._emit_span(record)
            elif KEY in record.__dict__:
                self.inspector.apply(record)
            else:
                self._annotate(record)
        except Exception as error:
            report(self, record, error)

    def _emit_span(self, record: SpanRecord) -> None:
        kind = record.kind
        if kind in ("spawn", "enter"):
            self.inspector.begun(record.of_span)
        elif kind == "exit":
            self.inspector.ended(record.of_span)
        else:
            self.inspector.apply(record)

    def _annotate(self, record: logging.LogRecord) -> None:
        span_id = stamping.stamp(record).get("span_id")
        if not span_id or record.name.startswith("asyncinspect.") or not stamping.first_sight(record, self.inspector):
            return
        text: Any = record.msg if not record.args and isinstance(record.msg, str) else _text(record)
        self.inspector.annotate(
            int(span_id, 16),
            f"{record.levelname} {text[: self.inspector.config.max_field_length]}",
            round(record.created * 1e9),
        )

    def close(self) -> None:
        self.inspector.settle()
        stamping.release(self)
        super().close()


def _text(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        return f"{record.msg!s}" if isinstance(record.msg, str) else f"<{type(record.msg).__qualname__}>"
