"""Our spans and OpenTelemetry's as parents of each other.

OpenTelemetry keeps what is current in a context, we in a variable, and whichever was entered last is the parent of what
comes next. Nothing is done when a span of ours is entered: OpenTelemetry is given a runtime context (its own way of
having the current context kept somewhere else) that looks at our variable when it is asked, and only then makes a span
of its kind of ours. What is attached is marked with our span that was current then, which tells the inner one from the
outer.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any, Final

from .errors import MissingExtraError
from .spans import Span, current, outside
from .traceparent import SAMPLED, Trace

try:
    from opentelemetry import context as otel
    from opentelemetry import trace
    from opentelemetry.context.context import Context, _RuntimeContext
    from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext
except ImportError as error:
    raise MissingExtraError("the bridge to OpenTelemetry", "opentelemetry") from error

__all__ = ["RuntimeContext", "bridge"]

#: Under which a context has our span that was current when it was attached.
_WITHIN: Final = otel.create_key("asyncinspect-span")


class RuntimeContext(_RuntimeContext):
    """The contexts of `below`, with our span current in them where that is the inner one."""

    def __init__(self, below: Any = None) -> None:
        self.below = ContextVarsRuntimeContext() if below is None else below

    def attach(self, context: Context) -> Any:
        inside = current.get()
        if context.get(_WITHIN) is not inside:
            context = Context({**context, _WITHIN: inside})
        return self.below.attach(context)

    def get_current(self) -> Context:
        attached: Context = self.below.get_current()
        inside = _inner(current.get(), attached)
        if inside is None:
            return attached
        return trace.set_span_in_context(_as_theirs(inside), Context({**attached, _WITHIN: inside}))

    def detach(self, token: Any) -> None:
        self.below.detach(token)

    def attached_in(self, context: contextvars.Context | None) -> Context:
        """What is attached in `context`; None: here."""
        variable = getattr(self.below, "_current_context", None)
        if context is None or not isinstance(variable, contextvars.ContextVar):
            here: Context = self.below.get_current()
            return here
        attached: Context = context.get(variable, Context())
        return attached


def _open(span: Span | None) -> Span | None:
    """The innermost open span from here outwards."""
    while span is not None and not span.is_open:
        span = span._below if span.number else None
    return span


def _inner(around: Span | None, attached: Context) -> Span | None:
    """The innermost open span of ours, if it was entered inside of what is attached; `around` is the one that is
    current, or was left so though it is over.
    """
    within: Span | None = attached.get(_WITHIN)  # type: ignore[assignment] # under a key of ours
    if around is None or within is around:
        return None
    inside = _open(around)
    while within is not None and within is not inside:
        within = within._below if within.number else None
    return inside if within is None else None


def _as_theirs(span: Span) -> trace.Span:
    trace_id = int(span.trace_id, 16)
    came = span.trace if isinstance(span.trace, Trace) else None
    flags = trace.TraceFlags(SAMPLED if came is None else came.flags & SAMPLED)
    state = trace.TraceState.from_header([came.state]) if came is not None and came.state else None
    return trace.NonRecordingSpan(trace.SpanContext(trace_id, int(span.id, 16), False, flags, state))


def _parent(around: Span | None, context: contextvars.Context | None) -> tuple[Trace, int] | None:
    """OpenTelemetry's span that is current, if that is the inner one."""
    runtime: Any = otel._RUNTIME_CONTEXT
    if not isinstance(runtime, RuntimeContext):
        return None
    attached = runtime.attached_in(context)
    if _inner(around, attached) is not None:
        return None
    found = trace.get_current_span(attached).get_span_context()
    if not found.is_valid or (around is not None and around.number == found.span_id):
        return None
    state = ",".join(f"{key}={value}" for key, value in found.trace_state.items())
    return Trace(f"{found.trace_id:032x}", int(found.trace_flags), state), found.span_id


_users = 0


def bridge() -> Callable[[], None]:
    """From now on an OpenTelemetry span that is current is the parent of a span of ours, and a span of ours that is
    current the parent of OpenTelemetry's, across tasks and threads wherever contexts go. Returns what takes that back.

    It holds for the whole process, and may be called more than once.
    """
    global _users
    _users += 1
    if not isinstance(otel._RUNTIME_CONTEXT, RuntimeContext):
        # There is no public way to set it but an environment variable, which is read when OpenTelemetry is imported.
        otel._RUNTIME_CONTEXT = RuntimeContext(otel._RUNTIME_CONTEXT)
    outside.parent = _parent
    undone = False

    def undo() -> None:
        global _users
        nonlocal undone
        if undone:
            return
        undone = True
        _users -= 1
        if not _users:
            outside.parent = None
            runtime: Any = otel._RUNTIME_CONTEXT
            if isinstance(runtime, RuntimeContext):
                otel._RUNTIME_CONTEXT = runtime.below

    return undo
