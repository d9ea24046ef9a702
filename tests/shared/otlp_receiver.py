"""An OTLP receiver over gRPC and HTTP that keeps what it gets. Answers other than success can be set in advance."""

from __future__ import annotations

import contextlib
import gzip
import os
import socket
import ssl
import threading
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    import pytest

_TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_METRICS = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


class Refusal(NamedTuple):
    """An answer that is no success. `status`: of HTTP; `code`: of gRPC. `after`: seconds to wait."""

    status: int = 503
    code: str = "UNAVAILABLE"
    after: float | None = None
    details: str = ""
    #: Take what was sent all the same, as a collector does whose answer gets lost.
    taken: bool = False


def value_of(value: Any) -> Any:
    """An AnyValue as plain Python."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)


def attributes_of(message: Any) -> dict[str, Any]:
    return {pair.key: value_of(pair.value) for pair in message.attributes}


def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the environment's OTEL_* away."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


class Receiver:
    """Use it in a `with`. `http` and `grpc` are its addresses, without scheme."""

    def __init__(self, credentials: Any = None, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.metric_requests: list[ExportMetricsServiceRequest] = []
        #: Of the requests with spans, and of those with metrics.
        self.headers: list[dict[str, str]] = []
        self.metric_headers: list[dict[str, str]] = []
        self.sizes: list[int] = []
        self.answers: deque[Refusal] = deque()
        self.rejected = 0
        #: Everything larger is too large.
        self.most_spans = 10**9
        self.arrived = threading.Condition()
        self._credentials, self._context = credentials, context

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((_Service(self),))
        if self._credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", self._credentials)
        self._server.start()
        self.grpc = f"127.0.0.1:{port}"
        self._http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"receiver": self}))
        if self._context is not None:
            self._http.socket = self._context.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        self.http = f"127.0.0.1:{self._http.server_port}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.stop(None).wait()
        self._http.shutdown()
        self._http.hang_up()
        self._http.server_close()
        self._thread.join()

    def empty(self) -> None:
        """Forget what came, and what was to be answered."""
        for kept in (self.requests, self.metric_requests, self.headers, self.metric_headers, self.sizes, self.answers):
            kept.clear()
        self.rejected, self.most_spans = 0, 10**9

    def take(self, body: bytes, headers: dict[str, str]) -> Refusal | None:
        request = ExportTraceServiceRequest.FromString(body)
        count = sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
        with self.arrived:
            self.headers.append(headers)
            self.sizes.append(len(body))
            if count > self.most_spans:
                return Refusal(413, "RESOURCE_EXHAUSTED", details="Received message larger than max")
            answer = self.answers.popleft() if self.answers else None
            if answer is None or answer.taken:
                self.requests.append(request)
                self.arrived.notify_all()
            return answer

    def take_metrics(self, body: bytes, headers: dict[str, str]) -> None:
        with self.arrived:
            self.metric_headers.append(headers)
            self.metric_requests.append(ExportMetricsServiceRequest.FromString(body))
            self.arrived.notify_all()

    def response(self) -> bytes:
        rejected, self.rejected = self.rejected, 0
        partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message="too old" if rejected else "")
        return bytes(ExportTraceServiceResponse(partial_success=partial).SerializeToString())

    @property
    def spans(self) -> list[Any]:
        return [
            s for r in list(self.requests) for found in r.resource_spans for sc in found.scope_spans for s in sc.spans
        ]

    @property
    def resource(self) -> dict[str, Any]:
        return attributes_of(self.requests[-1].resource_spans[0].resource)

    def counts(self) -> Counter[bytes]:
        """How often each span id came."""
        return Counter(span.span_id for span in self.spans)

    def wait_for(self, spans: int, timeout: float = 20) -> list[Any]:
        """Return once so many spans are here."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.spans) >= spans, timeout), f"{len(self.spans)} of {spans}"
        return self.spans


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # who called has gone

    def hang_up(self) -> None:
        """End the connections that clients keep open."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Service(grpc.GenericRpcHandler):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def service(self, details: Any) -> Any:
        if details.method == _METRICS:
            return grpc.unary_unary_rpc_method_handler(self._metrics)
        return grpc.unary_unary_rpc_method_handler(self._export) if details.method == _TRACES else None

    def _metrics(self, body: bytes, context: Any) -> bytes:
        self._receiver.take_metrics(body, dict(context.invocation_metadata()))
        return b""

    def _export(self, body: bytes, context: Any) -> bytes:
        refusal = self._receiver.take(body, dict(context.invocation_metadata()))
        if refusal is None:
            return self._receiver.response()
        if refusal.after is not None:
            delay = Duration(seconds=int(refusal.after), nanos=round(refusal.after % 1 * 1e9))
            detail = AnyMessage()
            detail.Pack(RetryInfo(retry_delay=delay))
            status = Status(code=14, message="later", details=[detail])
            context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(grpc.StatusCode[refusal.code], refusal.details or "not now")
        raise AssertionError


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        headers = {key.lower(): value for key, value in self.headers.items()}
        if self.path == "/v1/metrics":
            self.receiver.take_metrics(body, headers)
            self._answer(200, b"")
        elif self.path != "/v1/traces":
            self._answer(404, b"")
        else:
            refusal = self.receiver.take(body, headers)
            if refusal is None:
                self._answer(200, self.receiver.response())
            else:
                after = {} if refusal.after is None else {"Retry-After": str(refusal.after)}
                status = Status(message=refusal.details) if refusal.details else Status()
                self._answer(refusal.status, status.SerializeToString(), after)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
