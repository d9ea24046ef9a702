"""Stand-ins for those who take OTLP over the internet: they answer as the real ones do, and check what they are given.

Honeycomb: https://docs.honeycomb.io/send-data/opentelemetry/ and its library for OTLP, honeycombio/husky.
Datadog: https://docs.datadoghq.com/opentelemetry/setup/otlp_ingest/traces/.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from otlp_receiver import Receiver, Refusal, attributes_of

__all__ = ["DatadogIntake", "Honeycomb", "flaws_of"]

_CLASSIC = re.compile(r"[0-9a-f]{32}")
_TYPES = ("application/protobuf", "application/x-protobuf")


def flaws_of(request: ExportTraceServiceRequest) -> list[str]:
    """What a request lacks of that which OTLP asks for, and every backend needs to show a trace."""
    flaws = []
    seen: Counter[bytes] = Counter()
    for resource in request.resource_spans:
        if not attributes_of(resource.resource).get("service.name"):
            flaws.append("no service.name")
        for scope in resource.scope_spans:
            if not scope.scope.name:
                flaws.append("no name of the scope")
            for span in scope.spans:
                seen[span.span_id] += 1
                right = {
                    "trace_id": len(span.trace_id) == 16 and any(span.trace_id),
                    "span_id": len(span.span_id) == 8 and any(span.span_id),
                    "parent_span_id": len(span.parent_span_id) in (0, 8),
                    "name": bool(span.name),
                    "kind": 1 <= span.kind <= 5,
                    "times": 0 < span.start_time_unix_nano <= span.end_time_unix_nano,
                    "events": all(event.name and event.time_unix_nano for event in span.events),
                    "attributes": all(pair.key and pair.value.WhichOneof("value") for pair in span.attributes),
                }
                flaws += [f"{what} of {span.name!r}" for what, holds in right.items() if not holds]
    return flaws + [f"{id.hex()} came {count} times" for id, count in seen.items() if count > 1]


class _Vendor(Receiver):
    """`key`: the one that is known. `flaws`: of all that was taken."""

    def __init__(self, key: str, **options: Any) -> None:
        super().__init__(**options)
        self.key = key
        self.flaws: list[str] = []
        self.refusals: list[Refusal] = []

    def refusal(self, headers: dict[str, str], grpc: bool) -> Refusal | None:
        raise NotImplementedError

    def take(self, body: bytes, headers: dict[str, str]) -> Refusal | None:
        # Over gRPC the content type is the library's, and not among the metadata.
        refusal = self.refusal(headers, grpc="content-length" not in headers)
        if refusal is None:
            try:
                self.flaws += flaws_of(ExportTraceServiceRequest.FromString(body))
            except DecodeError:
                refusal = Refusal(400, "INTERNAL", details="failed to parse OTLP request body")
        if refusal is None:
            return super().take(body, headers)
        with self.arrived:
            self.refusals.append(refusal)
            self.arrived.notify_all()
        return refusal


class Honeycomb(_Vendor):
    """Takes gRPC and HTTP. Without the header, with a key that it does not know, and with one of Honeycomb Classic but
    no dataset, it answers 401, or UNAUTHENTICATED.
    """

    def refusal(self, headers: dict[str, str], grpc: bool) -> Refusal | None:
        if not grpc and headers.get("content-type") not in _TYPES:
            return Refusal(415, "UNIMPLEMENTED", details="unsupported content-type")
        key = headers.get("x-honeycomb-team")
        if not key:
            return Refusal(401, "UNAUTHENTICATED", details="missing 'x-honeycomb-team' header")
        if key != self.key:
            return Refusal(401, "UNAUTHENTICATED", details="unknown API key - check your credentials")
        if _CLASSIC.fullmatch(key) and not headers.get("x-honeycomb-dataset"):
            return Refusal(401, "UNAUTHENTICATED", details="missing 'x-honeycomb-dataset' header")
        return None


class DatadogIntake(_Vendor):
    """Takes protobuf over HTTP alone, and answers 403 to a key that it does not know."""

    def refusal(self, headers: dict[str, str], grpc: bool) -> Refusal | None:
        if grpc:
            return Refusal(404, "UNIMPLEMENTED", details="gRPC is not supported")
        if headers.get("content-type") != "application/x-protobuf":
            return Refusal(415, details="unsupported content-type")
        if headers.get("dd-api-key") != self.key:
            return Refusal(403, details="API key is missing or not known at this site")
        return None
