"""The records of single steps (level TRACE) of a driven coroutine, one for each span in it that is heard so closely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .driven import opened_in

__all__ = ["trace_resume", "trace_suspend", "trace_wake"]


def _emit(key: int, kind: str, t: int, more: Mapping[str, Any] | None = None) -> None:
    for span in opened_in(key):
        audience = span._audience
        if audience is not None and audience.steps:
            span._emit(audience, kind, more, t)


def trace_suspend(key: int, awaited: object, inner: Any, t: int) -> None:
    # Here, because it knows the driver, which knows this module.
    from .detect.stuck import on_and_at

    on, at = on_and_at(inner, awaited)
    more: dict[str, Any] = {"on": on}
    if at is not None:
        more["at"] = at
    _emit(key, "suspend", t, more)
    if awaited is None:
        _emit(key, "wake", t)


def trace_wake(key: int, t: int) -> None:
    _emit(key, "wake", t)


def trace_resume(key: int, t: int) -> None:
    _emit(key, "resume", t)
