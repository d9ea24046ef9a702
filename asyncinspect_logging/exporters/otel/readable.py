"""Tasks as the SDK's own spans, for its samplers, and for whatever takes spans of the SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, TraceState
from opentelemetry.trace.status import Status, StatusCode

from . import meaning
from .limits import Limits, limited, limited_events

if TYPE_CHECKING:
    from ...finished import FinishedSpan

__all__ = ["KINDS", "readable", "trace_state"]

KINDS = {name: SpanKind[name.upper()] for name in meaning.KINDS}


def trace_state(span: FinishedSpan) -> TraceState:
    return TraceState.from_header([getattr(span.trace, "state", "")])


def readable(
    span: FinishedSpan,
    resource: Resource,
    scope: InstrumentationScope,
    limits: Limits,
    now: int = 0,
    *,
    timeline: bool = True,
) -> ReadableSpan:
    """The task as a span that is over. `now`: Unix time in ns, the end of one that has none."""
    trace, flags, state = int(span.trace, 16), TraceFlags(getattr(span.trace, "flags", 1)), trace_state(span)
    kept, dropped = limited(meaning.all_attributes(span, now), limits)
    events, dropped_events = limited_events(meaning.events(span, timeline=timeline), limits)
    links = meaning.links(span)
    message = meaning.status(span)
    return ReadableSpan(
        span.name,
        context=SpanContext(trace, span.id, False, flags, state),
        parent=SpanContext(trace, span.parent, span.remote, flags, state) if span.parent else None,
        resource=resource,
        instrumentation_scope=scope,
        attributes=_attributes(kept, dropped),
        events=_list([Event(name, BoundedAttributes(None, values), at) for at, name, values in events], dropped_events),
        links=_list(
            [Link(SpanContext(int(link.trace, 16), link.id, False, TraceFlags(1))) for link in links[: limits.links]],
            0 if limits.links is None else max(0, len(links) - limits.links),
        ),
        kind=KINDS[meaning.kind(span)],
        status=Status(StatusCode.UNSET) if message is None else Status(StatusCode.ERROR, message),
        start_time=span.started,
        end_time=span.ended or now,
    )


def _attributes(values: dict[str, Any], dropped: int) -> BoundedAttributes:
    found = BoundedAttributes(None, values)
    found.dropped = dropped
    return found


def _list(values: list[Any], dropped: int) -> Any:
    found: Any = BoundedList.from_seq(max(1, len(values)), values)
    found.dropped = dropped
    return found
