"""The front end for stdlib logging."""

from __future__ import annotations

import logging
from typing import Any

from . import stamping
from .diagnostics import log
from .inspector import Inspector
from .records import KEY, SpanRecord
from .routing import Listener, report

__all__ = ["AsyncInspectHandler"]


class NoLock:
    """What `logging.Handler` takes for a lock. (Since Python 3.13 it does not take None.)"""

    def acquire(self) -> None:
        pass

    def release(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *args: object) -> None:
        pass


class AsyncInspectHandler(logging.Handler):
    """A logging handler that feeds an inspector: lifecycle records become state transitions, and ordinary records
    inside a span become lines on its timeline.

    inspector: default `Inspector.default()`. level: of ordinary records; lifecycle records come whatever the levels.

    While a handler of this class is in use, every LogRecord carries `span`, `span_id` and `trace_id`, "" outside
    spans, for any formatter to print.
    """

    accepts_spans = True

    def __init__(self, inspector: Inspector | None = None, level: int | str = logging.NOTSET) -> None:
        if inspector is not None and not isinstance(inspector, Inspector):
            raise TypeError(f"inspector={inspector!r} is not an Inspector; write AsyncInspectHandler(Inspector(…))")
        # Whatever may fail comes first: logging lists all handlers, half-made ones too, to close them at exit.
        self.inspector = Inspector.default() if inspector is None else inspector
        super().__init__(level)
        self.field_policy = self.inspector.field_policy
        self.inspector.is_fed = True
        #: Whether it was ever seen on a logger; one that was not is behind a queue.
        self.was_on_logger = False
        self._stamps = True
        stamping.use(self)

    def span_listener(self) -> Listener | None:
        """Spans of this process are announced straight to the inspector, unless somebody wants to see each record
        here: a filter, or a subclass with its own `handle` or `emit`.
        """
        self.was_on_logger = True
        cls = type(self)
        if self.filters or cls.emit is not AsyncInspectHandler.emit or cls.handle is not logging.Handler.handle:
            return None
        return self.inspector.listener()

    def createLock(self) -> None:
        """No lock: the inspector takes records from any thread."""
        self.lock = NoLock()  # type: ignore[assignment]

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if isinstance(record, SpanRecord):
                self._emit_span(record)
            elif KEY in record.__dict__:
                self.inspector.apply(record)
            else:
                self._emit_ordinary(record)
        except Exception as error:
            report(self, record, error)

    def _emit_span(self, record: SpanRecord) -> None:
        if record.kind in ("spawn", "enter", "exit"):
            self.inspector.announce(record.of_span)
        else:
            self.inspector.apply(record)

    def _emit_ordinary(self, record: logging.LogRecord) -> None:
        # What a structlog chain hands to ProcessorFormatter: the event dict is the message.
        event: Any = record.msg if isinstance(record.msg, dict) else {}
        if KEY in event:
            self.inspector.apply(event)
            return
        if not self._stamps:
            # Closed, and yet on some logger: dictConfig closes every handler there is, and takes off those of the
            # loggers that it configures.
            self._stamps = True
            stamping.use(self)
        mark = stamping.mark_of(record)
        if mark is None or record.name == log.name or not stamping.first_sight(mark, self.inspector):
            return
        text = event.get("event", "") if event else text_of_record(record)
        self.inspector.annotate(
            mark.number,
            f"{record.levelname} {str(text)[: self.inspector.config.max_field_length]}",
            round(record.created * 1e9),
        )

    def close(self) -> None:
        self.inspector.settle()
        self._stamps = False
        stamping.release(self)
        # Routes look again at who hears when a level is set. Whoever closes handlers is most likely disabling loggers
        # too (dictConfig), and that alone shows nowhere.
        root = logging.getLogger()
        root.setLevel(root.level)
        super().close()


def text_of_record(record: logging.LogRecord) -> str:
    """Its message, with the arguments in it where that can be done."""
    if not record.args and isinstance(record.msg, str):
        return record.msg
    try:
        return record.getMessage()
    except Exception:
        return f"{record.msg!s}" if isinstance(record.msg, str) else f"<{type(record.msg).__qualname__}>"
