"""The bytes of OTLP are those of the SDK's encoder, whatever a task holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from asyncinspect_logging.exporters.otel.limits import Limits
from asyncinspect_logging.exporters.otel.readable import readable
from asyncinspect_logging.exporters.otel.wire import Encoder, request
from asyncinspect_logging.fields import FieldPolicy
from asyncinspect_logging.finished import FinishedSpan
from asyncinspect_logging.states import OUTCOMES
from asyncinspect_logging.traceparent import SpanId, Trace

RESOURCE = Resource({"service.name": "shop", "count": 7, "list": ["a", "b"]}, "https://opentelemetry.io/schemas/1.21.0")
SCOPE = InstrumentationScope("asyncinspect_logging", "1.2")

hexes = st.integers(1, 2**128 - 1).map("{:032x}".format)
numbers = st.integers(1, 2**63 - 1)
texts = st.text(max_size=30) | st.just("x" * 300)
plain = (
    texts
    | st.sampled_from(["SERVER", "SpanKind.CLIENT"])
    | st.integers()
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.none()
    | st.binary(max_size=9)
)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=5
)
keys = texts | st.sampled_from(["task.name", "otel.kind", "otel_kind", "kind", "error.type", "http"])
outcomes = st.sampled_from([None, *OUTCOMES])
notes = st.tuples(
    st.integers(0, 2**62), st.sampled_from(["suspend", "resume", "wake", "log", "wait"]), st.text(max_size=20)
)


@st.composite
def spans(draw: st.DrawFn) -> FinishedSpan:
    """What the inspector may give."""
    outcome, parent = draw(outcomes), draw(st.just(0) | numbers)
    spawned = draw(st.integers(0, 2**62))
    started = spawned + draw(st.integers(0, 2**40))
    trace: str = draw(hexes)
    if draw(st.booleans()):
        trace = Trace(trace, draw(st.integers(0, 255)), draw(st.sampled_from(["", "vendor=a", "a=1,b=2"])))
    error = {"type": draw(texts), "message": draw(texts)} if draw(st.booleans()) else None
    if error and draw(st.booleans()):
        error |= {"leaves": ["ValueError", "KeyError"]}
    link = st.tuples(hexes, numbers).map(lambda pair: f"00-{pair[0]}-{pair[1]:016x}-01")
    link |= st.tuples(hexes, numbers).map(lambda pair: SpanId(f"{pair[1]:016x}", pair[0]))
    return FinishedSpan(
        id=draw(numbers),
        parent=parent,
        trace=trace,
        name=draw(texts),
        state="pending" if outcome is None else OUTCOMES[outcome].value,
        outcome=outcome,
        spawned=spawned,
        started=started,
        ended=0 if outcome is None else started + draw(st.integers(0, 2**50)),
        fields=FieldPolicy().apply(draw(st.dictionaries(keys, values, max_size=6))),
        polls=draw(st.integers(0, 2**40)),
        wakes=draw(st.integers(0, 300)),
        self_wakes=draw(st.integers(0, 3)),
        busy=draw(st.integers(-5, 2**40)),
        scheduled=draw(st.integers(-5, 2**40)),
        max_poll=draw(st.integers(0, 2**40)),
        stepped=draw(st.booleans()),
        task=draw(st.none() | texts),
        thread=draw(st.none() | st.integers(1, 2**62)),
        at=draw(st.none() | st.sampled_from(["/srv/app.py:41", "C:\\app.py:7", "nowhere", ":1"])),
        error=error,
        links=tuple(draw(st.lists(link | st.text(max_size=20), max_size=3))),
        parent_closed=draw(st.booleans()),
        remote=parent != 0 and draw(st.booleans()),
        notes=tuple(draw(st.lists(notes, max_size=5))),
    )


def ours(encoder: Encoder, given: list[FinishedSpan], now: int) -> ExportTraceServiceRequest:
    encoded = [encoder.span(span, now) for span in given]
    resource = dict(RESOURCE.attributes)
    return ExportTraceServiceRequest.FromString(
        request(
            {**resource, "list": list(resource["list"])}, ("asyncinspect_logging", "1.2"), encoded, RESOURCE.schema_url
        )
    )


def theirs(given: list[FinishedSpan], limits: Limits, now: int) -> ExportTraceServiceRequest:
    return encode_spans([readable(span, RESOURCE, SCOPE, limits, now) for span in given])


def by_key(found: ExportTraceServiceRequest) -> list[Any]:
    """The spans with their attributes sorted, whose order means nothing, and without the flags of the W3C, which the
    SDK's encoder leaves out. It writes a status that is not set, too, which is the same as none.
    """
    spans = list(found.resource_spans[0].scope_spans[0].spans)
    for span in spans:
        span.flags &= ~0xFF
        span.status.SetInParent()
        for link in span.links:
            link.flags &= ~0xFF
        ordered = sorted(span.attributes, key=lambda pair: pair.key)
        del span.attributes[:]
        span.attributes.extend(ordered)
    return spans


@given(st.lists(spans(), min_size=1, max_size=4), st.integers(2**61, 2**62))
def test_the_same_as_the_sdk(given: list[FinishedSpan], now: int) -> None:
    """Twice with the same encoder, which remembers what it has met."""
    encoder = Encoder()
    expected = theirs(given, Limits(), now)
    want = by_key(expected)
    for _ in range(2):
        found = ours(encoder, given, now)
        assert by_key(found) == want
        assert found.resource_spans[0].resource == expected.resource_spans[0].resource
        assert found.resource_spans[0].schema_url == expected.resource_spans[0].schema_url
        assert found.resource_spans[0].scope_spans[0].scope == expected.resource_spans[0].scope_spans[0].scope


few = st.none() | st.integers(1, 5)


@given(spans(), few, few, few, few)
def test_limits(
    span: FinishedSpan, attributes: int | None, events: int | None, links: int | None, length: int | None
) -> None:
    """What there is no room for is counted in the span."""
    limits = Limits(attributes, events, links, length)
    (found,) = by_key(ours(Encoder(limits), [span], 2**62))
    assert [found] == by_key(theirs([span], limits, 2**62))
    assert attributes is None or len(found.attributes) <= attributes
    assert events is None or len(found.events) <= events


def test_each_key_once() -> None:
    """A field that has the name of one of our attributes takes its place."""
    span = FinishedSpan(
        1, 0, "1" * 32, "work", "completed", "completed", 5, 5, 9, {"task.name": "mine", "a": 1}, 1, 0, 0, 0, 0, 0,
        False, None, 1, None, None, (), False, False, (),
    )  # fmt: skip
    (found,) = ours(Encoder(), [span], 0).resource_spans[0].scope_spans[0].spans
    assert [pair.value.string_value for pair in found.attributes if pair.key == "task.name"] == ["mine"]


def test_what_is_remembered_has_a_bound() -> None:
    """However many names and values there are."""
    encoder = Encoder()
    template = FinishedSpan(
        1, 0, "1" * 32, "work", "completed", "completed", 5, 5, 9, {}, 1, 0, 0, 0, 0, 0, False,
        None, 1, None, None, (), False, False, (),
    )  # fmt: skip
    for number in range(10_000):
        encoder.span(
            template._replace(name=f"work {number}", fields={f"key{number}": f"value{number}", f"n{number}": 1})
        )
    assert max(map(len, (encoder._identities, encoder._pairs, encoder._keys))) <= 4096
