"""A handler that remembers what it was told."""

from __future__ import annotations

import logging

__all__ = ["Keep"]


class Keep(logging.Handler):
    """Keeps lifecycle records, as "kind name"."""

    accepts_spans = True

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        payload = getattr(record, "asyncinspect", None)
        if payload is not None:
            self.told.append(f"{payload['kind']} {payload.get('name')}")
