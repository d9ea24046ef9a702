"""Requests to a collector, one at a time, each with an answer that says whether it is worth asking again.

They go over grpcio and requests, as the SDK's OTLP exporters do, but not through those: they try again on their own,
block for it, and say of a failure neither whether it is final nor for how long the collector wants to be left alone;
and they take spans of the SDK only, which is where most of the time would go (see `wire`).
"""

from __future__ import annotations

import gzip
import re
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from .settings import Wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc
    import requests

__all__ = ["ACCEPTED", "Answer", "GrpcSender", "HttpSender", "Sender", "sender_of"]

_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
#: Bytes of an answer that are read.
_MOST: Final = 1 << 16
#: OTLP specification, "Failures": what may succeed later.
_LATER_CODES: Final = frozenset(
    {"CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
)
_LATER_STATUSES: Final = frozenset({408, 429, 502, 503, 504})
_TOO_LARGE: Final = 413
#: The same over gRPC, which has no code for it: as the libraries in C, Go, Java, .NET and Rust say it.
_TOO_LARGE_CODES: Final = frozenset({"RESOURCE_EXHAUSTED", "OUT_OF_RANGE"})
_TOO_LARGE_TEXT: Final = re.compile(r"\bmessage\b.{0,30}(larger than max|too large|exceeds)", re.IGNORECASE)


class Answer(NamedTuple):
    """What became of a request. `accepted`: but for `rejected` spans, of which the collector will never take any.
    Else it may be sent again if `retry`, not before `after` seconds if that is said; or in parts if `too_large`.
    """

    accepted: bool
    why: str = ""
    retry: bool = False
    after: float | None = None
    too_large: bool = False
    rejected: int = 0


ACCEPTED: Final = Answer(True)


class Sender(Protocol):
    def send(self, body: bytes, timeout: float) -> Answer:
        """Send an ExportTraceServiceRequest, waiting `timeout` seconds at most. Raises nothing."""

    def close(self) -> None: ...


def _accepted(response: ExportTraceServiceResponse) -> Answer:
    partial = response.partial_success
    return Answer(True, partial.error_message, rejected=max(0, partial.rejected_spans))


def sender_of(wire: Wire) -> Sender:
    return GrpcSender(wire) if wire.protocol == "grpc" else HttpSender(wire)


class GrpcSender:
    def __init__(self, wire: Wire) -> None:
        # Here, and not in the thread that exports: see `HttpSender`.
        import grpc  # noqa: F401 whether it is there

        self._wire = wire
        self._channel: grpc.Channel | None = None
        self._call: Any = None

    def _connect(self) -> Any:
        import grpc

        wire = self._wire
        compression = grpc.Compression.Gzip if wire.compression == "gzip" else grpc.Compression.NoCompression
        if wire.insecure:
            self._channel = grpc.insecure_channel(wire.url, compression=compression)
        else:
            files = (wire.certificate, wire.client_key, wire.client_certificate)
            credentials = grpc.ssl_channel_credentials(*(None if file is None else _read(file) for file in files))
            self._channel = grpc.secure_channel(wire.url, credentials, compression=compression)
        # The request is bytes already.
        return self._channel.unary_unary(_METHOD, None, ExportTraceServiceResponse.FromString)

    def send(self, body: bytes, timeout: float) -> Answer:
        import grpc

        try:
            if self._call is None:
                self._call = self._connect()
            return _accepted(self._call(body, timeout=timeout, metadata=self._wire.headers))
        except grpc.RpcError as error:
            code = error.code().name
            details = str(error.details() or "")
            if code == "UNAVAILABLE":
                # A channel that has lost its peer waits by itself, and for longer and longer, before it looks again.
                self.close()
            if code in _TOO_LARGE_CODES and _TOO_LARGE_TEXT.search(details):
                return Answer(False, f"{code}: {details}"[:500], too_large=True)
            return Answer(False, f"{code}: {details}"[:500], code in _LATER_CODES, _retry_delay(error))
        except Exception as error:
            self.close()
            return Answer(False, repr(error)[:500], retry=True)

    def close(self) -> None:
        channel, self._channel, self._call = self._channel, None, None
        if channel is not None:
            channel.close()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _retry_delay(error: Any) -> float | None:
    """Seconds that a `google.rpc.RetryInfo` among the details asks for."""
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    try:
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                for detail in Status.FromString(value).details:
                    info = RetryInfo()
                    if detail.Unpack(info):
                        return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    except Exception:
        pass  # whatever a collector, or what stands before it, has put there
    return None


class HttpSender:
    def __init__(self, wire: Wire) -> None:
        # Not in the thread that exports: two that import it at once may see half of it, since its modules import each
        # other; and in a child that is forked meanwhile it could never be imported.
        import requests  # noqa: F401 whether it is there

        self._wire = wire
        # What follows it may be a secret.
        self._address, _, self._query = wire.url.partition("?")
        self._session: requests.Session | None = None

    def _connect(self) -> requests.Session:
        import requests

        wire, session = self._wire, requests.Session()
        session.headers["User-Agent"] = "asyncinspect-logging"
        session.headers.update(dict(wire.headers))
        session.headers["Content-Type"] = "application/x-protobuf"
        if wire.compression == "gzip":
            session.headers["Content-Encoding"] = "gzip"
        if wire.certificate is not None:
            session.verify = wire.certificate
        if wire.client_certificate is not None:
            key = wire.client_key
            session.cert = wire.client_certificate if key is None else (wire.client_certificate, key)
        return session

    def send(self, body: bytes, timeout: float) -> Answer:
        import requests

        if self._session is None:
            self._session = self._connect()
        if self._wire.compression == "gzip":
            body = gzip.compress(body, 1, mtime=0)
        try:
            # A session's own `verify` gives way to an environment variable; what is passed does not.
            with self._session.post(
                self._wire.url,
                data=body,
                timeout=timeout,
                allow_redirects=False,
                stream=True,
                verify=self._wire.certificate,
            ) as response:
                content = response.raw.read(_MOST, decode_content=True)
                status, reason = response.status_code, response.reason
                after = _retry_after(response.headers.get("Retry-After"))
        except Exception as error:
            if not isinstance(error, requests.RequestException):
                self.close()
            why = repr(error).replace(self._query, "…") if self._query else repr(error)
            return Answer(False, why[:500], retry=True)
        if 200 <= status < 300:
            try:
                return _accepted(ExportTraceServiceResponse.FromString(content))
            except Exception:
                return ACCEPTED  # an answer in another form, such as JSON
        why = f"HTTP {status} {reason} from {self._address}{_message(content)}"
        return Answer(False, why[:500], status in _LATER_STATUSES, after, status == _TOO_LARGE)

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


def _message(content: bytes) -> str:
    """What the `Status` says that OTLP has in the body of a refusal; nothing, if there is something else in it."""
    from google.rpc.status_pb2 import Status

    try:
        message = str(Status.FromString(content).message)
    except Exception:
        return ""
    return f": {message}" if message.isprintable() and message else ""


def _retry_after(header: str | None) -> float | None:
    """Seconds from now (RFC 9110, section 10.2.3: a number, or a date)."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


class SdkSender:
    """Gives spans of the SDK to one of its exporters."""

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter

    def send_spans(self, spans: Sequence[Any]) -> Answer:
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            return Answer(False, repr(error)[:500], retry=True)
        if getattr(result, "name", "") == "SUCCESS":
            return ACCEPTED
        return Answer(False, f"{type(self._exporter).__qualname__} says {result}", retry=True)

    def close(self) -> None:
        self._exporter.shutdown()
