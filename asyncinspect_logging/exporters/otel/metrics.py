"""The catalogue of metrics through OpenTelemetry's SDK, exact: cumulative sums, gauges and histograms of a snapshot.

Instruments of the SDK would have to be told of every observation, in the application's thread, and could not be given a
histogram that is counted already; so a snapshot is put beside what the SDK has collected, right before it is exported.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    PeriodicExportingMetricReader,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from ...diagnostics import warn_once
from ...snapshot import Snapshot
from ..combine import printable
from ..families import FAMILIES, Family, version_of_package
from ..pages import Source
from .settings import Wire

__all__ = ["CatalogueMetrics", "metric_exporter", "metrics_of", "provider_of"]

_SCOPE: Final = "asyncinspect_logging"
#: Units as UCUM writes them.
_UNITS: Final = {"seconds": "s", "bytes": "By"}


def metrics_of(snapshot: Snapshot, began: int, now: int) -> list[Metric]:
    """Every family of the catalogue that has values. `began`, `now`: since when counts go, and when they were read
    (Unix time in ns).
    """
    snapshot = printable(snapshot)
    found = []
    for family in FAMILIES:
        rows = list(family.rows(snapshot))
        if rows:
            data = _data(family, rows, began, now)
            found.append(Metric(family.name, family.help, _UNITS.get(family.unit, "1"), data))
    return found


def _data(family: Family, rows: list[tuple[tuple[str, ...], Any]], began: int, now: int) -> Sum | Gauge | Histogram:
    cumulative = AggregationTemporality.CUMULATIVE
    if family.type == "histogram":
        # What is smallest and largest is not kept, and may be left out.
        unknown: Any = None
        points = [
            HistogramDataPoint(
                dict(zip(family.labels, labels, strict=True)),
                began,
                now,
                value.total,
                value.sum,
                value.counts,
                value.bounds,
                unknown,
                unknown,
            )
            for labels, value in rows
        ]
        return Histogram(points, cumulative)
    numbers = [
        NumberDataPoint(dict(zip(family.labels, labels, strict=True)), began, now, value) for labels, value in rows
    ]
    return Sum(numbers, cumulative, True) if family.type == "counter" else Gauge(numbers)


class CatalogueMetrics(MetricExporter):
    """A MetricExporter that exports what it is given to `exporter`, with the catalogue of `inspector` added.

        reader = PeriodicExportingMetricReader(CatalogueMetrics(OTLPMetricExporter(), inspector))

    The SDK exports nothing while nobody has made an instrument: `watch` makes one. The temporality is cumulative.
    """

    def __init__(self, exporter: MetricExporter, inspector: Source | None = None) -> None:
        super().__init__(exporter._preferred_temporality, exporter._preferred_aggregation)
        if inspector is None:
            from ...inspector import Inspector

            inspector = Inspector.default()
        self._exporter, self._inspector = exporter, inspector
        self._began = time.time_ns()
        self._tasks = 0

    def watch(self, provider: Any) -> None:
        """Have `provider` collect, and so export, though nobody else may have made an instrument."""
        # What it says is left out: the catalogue has that.
        provider.get_meter(_SCOPE).create_observable_gauge("async_inspect_active_tasks", [lambda _: [Observation(0)]])

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **more: Any) -> MetricExportResult:
        try:
            metrics_data = self._with_catalogue(metrics_data)
        except Exception as error:
            warn_once("otlp metrics", type(error).__qualname__, "the metrics could not be collected: %r", error)
        return self._exporter.export(metrics_data, timeout_millis, **more)

    def _with_catalogue(self, given: MetricsData) -> MetricsData:
        now = time.time_ns()
        snapshot = self._inspector.snapshot(tasks=False)
        tasks = sum(view.spawned for view in snapshot.names.values())
        if tasks < self._tasks:
            # The inspector was reset: counts that begin again say so by when they began.
            self._began = now
        self._tasks = tasks
        scope = InstrumentationScope(_SCOPE, version_of_package())
        ours = ScopeMetrics(scope, metrics_of(snapshot, self._began, now), "")
        resources: Sequence[ResourceMetrics] = given.resource_metrics or [ResourceMetrics(Resource.create(), [], "")]
        first = resources[0]
        others = [metrics for metrics in first.scope_metrics if metrics.scope.name != _SCOPE]
        return MetricsData([ResourceMetrics(first.resource, [*others, ours], first.schema_url), *resources[1:]])

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **more: Any) -> None:
        self._exporter.shutdown(timeout_millis, **more)


def metric_exporter(wire: Wire) -> MetricExporter:
    """The SDK's OTLP exporter of metrics, for `wire`."""
    if wire.protocol == "grpc":
        import grpc
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

        files = (wire.certificate, wire.client_key, wire.client_certificate)
        pems = [None if file is None else Path(file).read_bytes() for file in files]
        return OTLPMetricExporter(
            endpoint=wire.url,
            insecure=wire.insecure,
            credentials=None if wire.insecure else grpc.ssl_channel_credentials(*pems),
            headers=wire.headers,
            timeout=wire.timeout,
            compression=grpc.Compression.Gzip if wire.compression == "gzip" else grpc.Compression.NoCompression,
        )
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

    return HttpExporter(
        endpoint=wire.url,
        certificate_file=wire.certificate,
        client_key_file=wire.client_key,
        client_certificate_file=wire.client_certificate,
        headers=dict(wire.headers),
        timeout=wire.timeout,
        compression=Compression.Gzip if wire.compression == "gzip" else Compression.NoCompression,
    )


def provider_of(
    exporter: MetricExporter, inspector: Source | None, resource: Resource, interval: float
) -> MeterProvider:
    """A MeterProvider that exports the catalogue, and whatever its meters measure, every `interval` seconds."""
    catalogue = CatalogueMetrics(exporter, inspector)
    reader = PeriodicExportingMetricReader(catalogue, export_interval_millis=interval * 1e3)
    provider = MeterProvider([reader], resource)
    catalogue.watch(provider)
    return provider
