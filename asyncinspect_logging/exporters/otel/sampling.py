"""Which tasks are exported: the SDK's samplers, asked when a task is over."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from ...errors import ConfigError
from ...traceparent import SAMPLED, Trace
from . import meaning
from .readable import KINDS, trace_state

if TYPE_CHECKING:
    from ...finished import FinishedSpan

__all__ = ["Decide", "sampler"]

#: Whether a task is exported.
Decide = Callable[["FinishedSpan"], bool]

_ALWAYS: Final = {"always_on": sampling.ALWAYS_ON, "always_off": sampling.ALWAYS_OFF}
_NAMES: Final = (*_ALWAYS, "traceidratio", *(f"parentbased_{name}" for name in (*_ALWAYS, "traceidratio")))


def sampler(given: sampling.Sampler | float | None) -> Decide | None:
    """`given`: a sampler of the SDK, or the part of the traces to keep, or None for what OTEL_TRACES_SAMPLER says. None
    is returned where every task is to be kept.

    Raises ConfigError for anything else.
    """
    if given is None:
        given = _from_environment()
    if given is sampling.DEFAULT_ON:
        return _as_the_caller_says
    if isinstance(given, int | float) and not isinstance(given, bool):
        given = sampling.ParentBasedTraceIdRatio(_ratio("sampler", given))
    if not isinstance(given, sampling.Sampler):
        raise ConfigError(f"sampler={given!r} is no sampler of opentelemetry.sdk.trace.sampling; write for example 0.1")
    return None if given is sampling.ALWAYS_ON else _decide(given)


def _ratio(name: str, value: Any) -> float:
    try:
        ratio = float(value)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ConfigError(f"{name}={value!r} is not a part of all traces; write a number from 0 to 1 such as 0.1")
    return ratio


def _from_environment() -> sampling.Sampler:
    name = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() or "parentbased_always_on"
    if name not in _NAMES:
        raise ConfigError(f"OTEL_TRACES_SAMPLER={name!r} is not known; write one of {', '.join(_NAMES)}")
    parent_based, root = name.startswith("parentbased_"), name.removeprefix("parentbased_")
    chosen: sampling.Sampler | None = _ALWAYS.get(root)
    if chosen is None:
        argument = os.environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1.0"
        chosen = sampling.TraceIdRatioBased(_ratio("OTEL_TRACES_SAMPLER_ARG", argument))
    if parent_based:
        return sampling.DEFAULT_ON if chosen is sampling.ALWAYS_ON else sampling.ParentBased(chosen)
    return chosen


def _as_the_caller_says(span: FinishedSpan) -> bool:
    """What `DEFAULT_ON` comes to: asking the SDK would take longer than exporting the task."""
    trace = span.trace
    return trace.__class__ is not Trace or not span.parent or bool(trace.flags & SAMPLED)


def _decide(chosen: sampling.Sampler) -> Decide:
    def decide(span: FinishedSpan) -> bool:
        # Of a trace that came from elsewhere, every task has the caller's decision to go by. In one that began here,
        # each is asked for like its root: no decision was made when that began.
        context = None
        trace = int(span.trace, 16)
        if isinstance(span.trace, Trace) and span.parent:
            parent = SpanContext(trace, span.parent, True, TraceFlags(span.trace.flags), trace_state(span))
            context = set_span_in_context(NonRecordingSpan(parent))
        links = [Link(SpanContext(int(link.trace, 16), link.id, False)) for link in meaning.links(span)]
        attributes = meaning.all_attributes(span, span.ended)
        kind = KINDS[meaning.kind(span)]
        answer = chosen.should_sample(context, trace, span.name, kind, attributes, links)
        return answer.decision is sampling.Decision.RECORD_AND_SAMPLE

    return decide
