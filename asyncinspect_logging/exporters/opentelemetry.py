"""OpenTelemetry: tasks as spans, over OTLP to a collector or whatever else understands that."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..diagnostics import warn_once
from ..errors import ConfigError, MissingExtraError
from ..process import after_fork, at_exit
from ..stacktraces import keep as keep_stacktraces
from ..unheard import Unheard

try:
    from opentelemetry import context as otel_context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from .otel import settings
    from .otel.delivery import Delivery
    from .otel.readable import readable
    from .otel.sampling import sampler as sampler_of
    from .otel.senders import Answer, SdkSender, sender_of
    from .otel.wire import Encoder, request
except ImportError as error:
    if (error.name or "").partition(".")[0] not in ("opentelemetry", "grpc", "requests", "google"):
        raise
    raise MissingExtraError("exporting to OpenTelemetry", "opentelemetry") from error

from .families import version_of_package

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.sampling import Sampler

    from ..finished import Finished, FinishedSpan

__all__ = ["OtelExporter", "create_otlp_exporter"]

_SCOPE: Final = "asyncinspect_logging"
#: Seconds at most between two looks at whether there is a batch to send.
_TICK: Final = 0.25
#: Seconds that shutting down may take, unless somebody says otherwise.
_PATIENCE: Final = 5.0
#: What keeps OpenTelemetry's instrumentation of HTTP clients from making spans of our requests.
_SUPPRESSED: Final = tuple(
    getattr(otel_context, name)
    for name in ("_SUPPRESS_INSTRUMENTATION_KEY", "_SUPPRESS_HTTP_INSTRUMENTATION_KEY")
    if hasattr(otel_context, name)
)


class Source(Protocol):
    """What is exported: an `Inspector`."""

    def finished(self, limit: int = ...) -> Finished: ...


class OtelExporter:
    """Exports the tasks of an inspector to OpenTelemetry, from the moment it is made: each task that finishes becomes a
    span, and is sent until the collector has taken it.

    Nothing is sent before `export_tasks()` or `start_continuous_export()` is called. The application's threads pay an
    append for each task; encoding and sending is done by whoever calls, or by the exporter's own thread. Tasks that
    wait have a bound (`queue_size`), and what finds no room is counted in `dropped`. At the interpreter's exit, and in
    `shutdown`, what waits is sent.

    service_name: the resource attribute `service.name`.
    inspector: whose tasks; None is `Inspector.default()`.
    endpoint: of the collector, such as "http://localhost:4317". `https` is TLS. For HTTP, `/v1/traces` is added to an
        address without it.
    protocol: "grpc" or "http/protobuf". Default: HTTP for an endpoint with port 4318 or a path, else gRPC.
    headers: to send along, as a mapping or as "name=value,name=value".
    interval: seconds between the exports of `start_continuous_export()`; a full batch does not wait for it.
    batch_size, queue_size: tasks in one request, and tasks that may wait.
    sampler: a sampler of the SDK, or the part of the traces that is exported (from 0 to 1, and the caller's decision
        for a trace that came from elsewhere). Metrics are never sampled. `traceparent()` says "sampled" all the same.
    resource_attributes, service_version: more about the service.
    insecure: True for gRPC without TLS to an endpoint that names no scheme.
    certificate, client_key, client_certificate: paths of PEM files, for TLS.
    compression: "gzip" or "none". timeout: seconds for one request.
    events: False leaves out the timeline: polls, wakes, what it was blocked on, log lines.
    stacktraces: True adds `exception.stacktrace` to the event of an exception: the innermost frames, and source lines.
    span_exporter: a SpanExporter of the SDK that is given the spans instead, with what is said on how to reach a
        collector left to it. What it does not take it is given again, without end.
    bridge: True makes spans of ours and spans of OpenTelemetry parents of each other; see `bridge`.

    Where an argument is None, the OTEL_* variables of the specification are asked, and then their defaults hold. Raises
    ConfigError for what cannot be used, MissingExtraError where OpenTelemetry is not installed.
    """

    def __init__(
        self,
        service_name: str | None = None,
        inspector: Source | None = None,
        endpoint: str | None = None,
        *,
        protocol: str | None = None,
        headers: Mapping[str, str] | str | None = None,
        interval: float | None = None,
        batch_size: int | None = None,
        queue_size: int | None = None,
        sampler: Sampler | float | None = None,
        resource_attributes: Mapping[str, Any] | None = None,
        service_version: str | None = None,
        insecure: bool | None = None,
        certificate: str | os.PathLike[str] | None = None,
        client_key: str | os.PathLike[str] | None = None,
        client_certificate: str | os.PathLike[str] | None = None,
        compression: str | None = None,
        timeout: float | None = None,
        events: bool = True,
        stacktraces: bool = False,
        span_exporter: SpanExporter | None = None,
        bridge: bool = False,
    ) -> None:
        self.resource = _resource(service_name, service_version, resource_attributes)
        self._batching = settings.batching(interval, batch_size, queue_size)
        self._limits = settings.span_limits()
        self._decide = sampler_of(sampler)
        self._events = events
        how: dict[str, Any] = {
            "endpoint": endpoint,
            "protocol": protocol,
            "headers": headers,
            "timeout": timeout,
            "compression": compression,
            "insecure": insecure,
            "certificate": certificate,
            "client_key": client_key,
            "client_certificate": client_certificate,
        }
        wire = settings.wire("traces", **how)
        self._how = how
        self._inspector: Any = inspector
        self._scope = InstrumentationScope(_SCOPE, version_of_package())
        if span_exporter is None:
            self.endpoint = wire.url.partition("?")[0]
            self._new_sender: Any = lambda: sender_of(wire)
        elif callable(getattr(span_exporter, "export", None)):
            self.endpoint = type(span_exporter).__qualname__
            self._new_sender = lambda: SdkSender(span_exporter)
        else:
            raise ConfigError(
                f"span_exporter={span_exporter!r} has no export(); give a SpanExporter of opentelemetry.sdk"
            )
        self._to_sdk = span_exporter is not None
        self._encoder = Encoder(self._limits, events=events)
        self._sender = self._new_sender()
        self._abandoned: list[Any] = []
        self._delivery = Delivery(self._take, self._send, self._batching.batch, wire.timeout, self.endpoint)
        self._timeout = wire.timeout
        self._left = self._unfit = 0
        #: Tasks that the sampler left out.
        self.unsampled = 0
        self._thread: _Thread | None = None
        self._closed = False
        self.disabled = settings.is_disabled()
        self._finished: Finished | None = None
        if inspector is not None and not callable(getattr(inspector, "finished", None)):
            raise ConfigError(f"inspector={inspector!r} is no Inspector; an address is given as endpoint=")
        source: Any = _default_inspector() if inspector is None else inspector
        self._unheard = Unheard(f"there was no span to be exported to {self.endpoint}", [source])
        if not self.disabled:
            self._finished = source.finished(self._batching.queue)
        self._undo: list[Callable[[], None]] = []
        if not self.disabled:
            self._undo += [_bridge()] if bridge else []
            self._undo += [keep_stacktraces()] if stacktraces else []
        after_fork(self._in_child)
        at_exit(self._at_exit)

    # -- what became of the tasks ------------------------------------------------------------------------------------

    @property
    def exported(self) -> int:
        """Tasks that were delivered."""
        return self._delivery.delivered

    @property
    def dropped(self) -> int:
        """Tasks that were not and will not be: the sum of `drops`."""
        return sum(self.drops.values())

    @property
    def drops(self) -> dict[str, int]:
        """Dropped tasks by reason: "queue_full", "refused" (by the collector), "shutdown" (left then), or "unfit" (they
        could not be encoded, or the sampler raised).
        """
        return {
            "queue_full": self._finished.dropped if self._finished is not None else 0,
            "refused": self._delivery.refused,
            "shutdown": self._left,
            "unfit": self._unfit,
        }

    @property
    def waiting(self) -> int:
        """Tasks that are still to be delivered."""
        return len(self._delivery) + (len(self._finished) if self._finished is not None else 0)

    # -- exporting ---------------------------------------------------------------------------------------------------

    def export_tasks(self, *, pending: bool = False) -> int:
        """Send what has finished until now, in the caller's thread, and return how many tasks were delivered. With
        `pending`, also those that go on, as spans that end now and have `task.state` pending, running or blocked; their
        spans proper follow when they finish.

        If the collector cannot be reached, the tasks wait for the next call. Raises nothing.
        """
        if self._finished is None or self._closed:
            return 0
        delivered = Context().run(self._deliver)
        return delivered + (Context().run(self._export_pending) if pending else 0)

    def start_continuous_export(self, seconds: float | None = None) -> None:
        """Export every `seconds` (default: `interval`), and whenever a batch is full, in a daemon thread, until
        `shutdown`. Calling it again changes the interval. In the child of a fork it goes on.

        Raises ConfigError unless `seconds` is a finite number above 0.
        """
        interval = self._batching.interval if seconds is None else settings.batching(seconds).interval
        if self._closed:
            message = "the exporter to %s was shut down and exports nothing more; make a new one"
            warn_once("otlp closed", self.endpoint, message, self.endpoint)
        elif self._thread is not None:
            self._thread.interval = interval
        elif not self.disabled:
            self._thread = _Thread(self, interval)

    def flush(self, timeout: float = _PATIENCE) -> bool:
        """Deliver what has finished until now, trying again for `timeout` seconds; returns whether all is delivered,
        which it is not where some is still waiting, or was dropped meanwhile (see `drops`).

        Raises ConfigError where `timeout` is no number.
        """
        timeout = settings.patience(timeout)
        if self._finished is None or self._closed:
            return True
        dropped = sum(self.drops.values())
        Context().run(self._deliver, self._delivery.now() + timeout)
        return self.waiting == 0 and sum(self.drops.values()) == dropped

    def shutdown(self, timeout: float = _PATIENCE) -> bool:
        """Deliver what is left, for `timeout` seconds at most, and stop; returns whether all was delivered, of
        everything that finished since the exporter was made. What was not is in `drops`. May be repeated.

        Raises ConfigError where `timeout` is no number.
        """
        timeout = settings.patience(timeout)
        if self._closed:
            return not any(self.drops.values())
        until = self._delivery.now() + timeout
        for undo in self._undo:
            undo()
        if self._thread is not None:
            self._thread.stop(timeout)
            self._thread = None
        self.flush(max(0.0, until - self._delivery.now()))
        self._closed = True
        if self._finished is not None:
            self._finished.take_spans(0)
            self._left = self.waiting
            if self._left:
                message = "%s has not taken %d tasks until the exporter was shut down; they are dropped"
                warn_once("otlp shutdown", self.endpoint, message, self.endpoint, self._left)
            self._delivery.give_up()
            self._finished.close()
        try:
            self._sender.close()
        except Exception as error:
            warn_once("otlp shutdown", "close", "the connection to %s could not be closed: %r", self.endpoint, error)
        return not any(self.drops.values())

    def __enter__(self) -> OtelExporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.shutdown()

    def meter_provider(self, interval: float = 60.0, exporter: MetricExporter | None = None) -> MeterProvider:
        """A MeterProvider of the SDK that exports the metrics of the inspector, the same as on /metrics, every
        `interval` seconds, and with them what is measured with its meters. They go where the tasks go, or to
        `exporter`. It is the caller's to shut down.

        Raises ConfigError unless `interval` is a finite number above 0.
        """
        from .otel.metrics import metric_exporter, provider_of

        seconds = settings.batching(interval).interval
        if exporter is None:
            how = dict(self._how)
            endpoint = how["endpoint"]
            if isinstance(endpoint, str) and endpoint.rstrip("/").endswith("/v1/traces"):
                how["endpoint"] = endpoint.rstrip("/").removesuffix("/v1/traces")
                how["protocol"] = how["protocol"] or "http/protobuf"
            exporter = metric_exporter(settings.wire("metrics", **how))
        return provider_of(exporter, self._inspector, self.resource, seconds)

    # -- on the way --------------------------------------------------------------------------------------------------

    def _deliver(self, until: float | None = None, stop: threading.Event | None = None) -> int:
        delivered = self._delivery.run(until, stop)
        drops = self.drops
        lost = drops["queue_full"]
        if lost:
            message = "tasks finish faster than %s takes them: %d found no room and are dropped, further ones are only "
            message += "counted in drops; export more often, or make queue_size (%d) larger"
            warn_once("otlp queue full", self.endpoint, message, self.endpoint, lost, self._batching.queue)
        if not (self.exported or self.waiting or self.unsampled or any(drops.values())):
            self._unheard.tell()
        return delivered

    def _take(self, count: int) -> list[Any]:
        """Tasks ready to be sent: as bytes, or as spans of the SDK."""
        assert self._finished is not None
        while True:
            spans = self._finished.take_spans(count)
            if not spans:
                return []
            ready = self._encode(spans, 0)
            if ready:
                return ready

    def _encode(self, spans: Sequence[FinishedSpan], now: int) -> list[Any]:
        decide, encode = self._decide, self._readable if self._to_sdk else self._encoder.span
        ready: list[Any] = []
        for span in spans:
            try:
                if decide is None or decide(span):
                    ready.append(encode(span, now))
                else:
                    self.unsampled += 1
            except Exception as error:
                # A sampler's, or a task out of an edited log.
                self._unfit += 1
                message = "task %r cannot be exported and is dropped; further ones are only counted: %r"
                warn_once("otlp unfit", type(error).__qualname__, message, span.name, error, exc_info=True)
        return ready

    def _readable(self, span: FinishedSpan, now: int = 0) -> ReadableSpan:
        return readable(span, self.resource, self._scope, self._limits, now, timeline=self._events)

    def _send(self, items: Sequence[Any], timeout: float) -> Answer:
        # Whoever instruments the HTTP client need not see this.
        context = otel_context.Context()
        for key in _SUPPRESSED:
            context = otel_context.set_value(key, True, context)
        token = otel_context.attach(context)
        try:
            if self._to_sdk:
                given: Answer = self._sender.send_spans(items)
                return given
            scope = (self._scope.name, self._scope.version or "")
            body = request(self.resource.attributes, scope, items, self.resource.schema_url)
            answer: Answer = self._sender.send(body, timeout)
            return answer
        finally:
            otel_context.detach(token)

    def _export_pending(self) -> int:
        assert self._finished is not None
        live, now = self._finished.live_spans()
        size = self._batching.batch
        batches = iter([self._encode(live[at : at + size], now) for at in range(0, len(live), size)])
        # Of those that are not taken, nothing is kept: the next call has newer ones.
        return Delivery(lambda _: next(batches, []), self._send, size, self._timeout, self.endpoint).run()

    # -- the process's life ------------------------------------------------------------------------------------------

    def _in_child(self) -> None:
        """In the child of a fork: what waits is the parent's, and so are its connections, which are left alone."""
        self._abandoned.append(self._sender)
        if self._closed:
            return
        if not self._to_sdk:
            self._sender = self._new_sender()
        self._delivery.begin()
        self._delivery.delivered = self._delivery.refused = self._left = self._unfit = self.unsampled = 0
        if self._thread is not None:
            self._thread = _Thread(self, self._thread.interval)

    def _at_exit(self) -> None:
        if not self._closed:
            self.shutdown(_PATIENCE)


class _Thread:
    """Exports every `interval` seconds, and whenever a batch is full."""

    def __init__(self, exporter: OtelExporter, interval: float) -> None:
        self.interval = interval
        self._exporter = exporter
        self._stop = threading.Event()
        self._thread = threading.Thread(target=Context().run, args=(self._run,), name="asyncinspect-otlp", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread, waiting so long at most for a request that is under way."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(max(0.0, timeout))

    def _run(self) -> None:
        exporter = self._exporter
        delivery, finished, batch = exporter._delivery, exporter._finished, exporter._batching.batch
        assert finished is not None
        last = delivery.now()
        # The interval may be another one any time.
        while not self._stop.wait(min(_TICK, max(0.0, last + self.interval - delivery.now()))):
            now = delivery.now()
            if now < last + self.interval and len(finished) < batch:
                continue
            try:
                exporter._deliver(stop=self._stop)
            except Exception as error:
                warn_once(
                    "otlp thread", type(error).__qualname__, "tasks could not be exported: %r", error, exc_info=True
                )
            if now >= last + self.interval:
                last = now


def create_otlp_exporter(service_name: str, endpoint: str, **options: Any) -> OtelExporter:
    """An `OtelExporter` that sends to `endpoint`, such as "http://localhost:4317". `options`: its other arguments."""
    return OtelExporter(service_name, endpoint=endpoint, **options)


def _default_inspector() -> Source:
    from ..inspector import Inspector

    return Inspector.default()


def _bridge() -> Any:
    from ..bridge import bridge

    return bridge()


def _resource(name: str | None, version: str | None, more: Mapping[str, Any] | None) -> Resource:
    """What the arguments say goes before what the environment says."""
    for option, value in (("service_name", name), ("service_version", version)):
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise ConfigError(f'{option}={value!r} is not a text; write for example {option}="1.0"')
    if more is not None and not isinstance(more, Mapping):
        raise ConfigError(f"resource_attributes={more!r} is not a mapping; write for example {{'host.name': 'a'}}")
    attributes = dict(more or {})
    if name is not None:
        attributes["service.name"] = name
    if version is not None:
        attributes["service.version"] = version
    return Resource.create(attributes)
