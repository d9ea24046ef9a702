"""The catalogue through a MeterProvider: the same numbers as on the page of Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

import otlp_receiver as otlp
from prometheus_client.parser import text_string_to_metric_families

from asyncinspect_logging import Inspector, instrument, span
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.opentelemetry import OtelExporter
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

Listen = Callable[..., Inspector]


@pytest.fixture
def receiver() -> Iterator[Any]:
    with otlp.Receiver() as receiver:
        yield receiver


async def program() -> None:
    async def failing() -> None:
        await asyncio.sleep(0)
        raise LookupError

    with span("outer"):
        await asyncio.gather(instrument(failing(), name="failing"), return_exceptions=True)
        for _ in range(3):
            with span("inner"):
                pass


def samples(metrics: Any) -> dict[Any, float]:
    """What arrived, by the names that Prometheus gives them."""
    found: dict[Any, float] = {}
    for metric in metrics:
        data = getattr(metric, metric.WhichOneof("data"))
        for point in data.data_points:
            labels = tuple(sorted(otlp.attributes_of(point).items()))
            if metric.WhichOneof("data") == "histogram":
                assert data.aggregation_temporality == 2
                found[metric.name + "_count", labels] = point.count
                found[metric.name + "_sum", labels] = point.sum
                running = 0
                for bound, count in zip([*point.explicit_bounds, float("inf")], point.bucket_counts, strict=True):
                    running += count
                    found[metric.name + "_bucket", labels, bound] = running
            else:
                if metric.WhichOneof("data") == "sum":
                    assert (data.aggregation_temporality, data.is_monotonic) == (2, True)
                total = "_total" if metric.WhichOneof("data") == "sum" else ""
                found[metric.name + total, labels] = point.as_double or point.as_int
    return found


def page(inspector: Inspector) -> dict[Any, float]:
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(PrometheusExporter(inspector).gather()):
        for sample in family.samples:
            labels = dict(sample.labels)
            bound = labels.pop("le", None)
            key = (sample.name, tuple(sorted(labels.items())))
            found[key if bound is None else (*key, float(bound))] = sample.value
    return found


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_same_as_on_the_page(listen: Listen, receiver: Any, protocol: str) -> None:
    """Each family, label and bucket, beside what the application measures."""
    inspector = listen()
    endpoint = f"http://{receiver.grpc if protocol == 'grpc' else receiver.http}"
    with OtelExporter("shop", inspector, endpoint, protocol=protocol, headers={"x-key": "1"}) as exporter:
        asyncio.run(program())
        provider = exporter.meter_provider()
        provider.get_meter("application").create_counter("orders").add(3)
        assert provider.force_flush()
        assert receiver.metric_headers[0]["x-key"] == "1"
        request = receiver.metric_requests[0]
        (resource,) = request.resource_metrics
        assert otlp.attributes_of(resource.resource)["service.name"] == "shop"
        scopes = {metrics.scope.name: metrics for metrics in resource.scope_metrics}
        assert set(scopes) == {"application", "asyncinspect_logging"}
        assert scopes["application"].metrics[0].sum.data_points[0].as_int == 3
        ours = scopes["asyncinspect_logging"].metrics
        assert {metric.unit for metric in ours} == {"1", "s", "By"}
        found, expected = samples(ours), page(inspector)
        changing = "async_inspect_memory_bytes"
        assert {key for key in found if key[0] != changing} == {key for key in expected if key[0] != changing}
        assert all(found[key] == pytest.approx(value) for key, value in expected.items() if key[0] != changing)
        assert provider.force_flush()
        again = {m.scope.name: m for m in receiver.metric_requests[1].resource_metrics[0].scope_metrics}
        points = [
            s.metrics[0].sum.data_points[0] for s in (scopes["asyncinspect_logging"], again["asyncinspect_logging"])
        ]
        assert points[0].start_time_unix_nano == points[1].start_time_unix_nano < points[1].time_unix_nano
        inspector.reset()
        provider.shutdown()
    last = {m.scope.name: m for m in receiver.metric_requests[-1].resource_metrics[0].scope_metrics}
    names = {metric.name for metric in last["asyncinspect_logging"].metrics}
    assert "async_inspect_dropped" in names


def test_without_any_other_instrument(listen: Listen, receiver: Any) -> None:
    """It is exported all the same, and when an endpoint was given for traces, at its sibling."""
    inspector = listen()
    with OtelExporter("shop", inspector, f"http://{receiver.http}/v1/traces") as exporter:
        provider = exporter.meter_provider(3600)
        with span("work"):
            pass
        provider.shutdown()
    (resource,) = receiver.metric_requests[-1].resource_metrics
    (scope,) = resource.scope_metrics
    assert samples(scope.metrics)["async_inspect_tasks_total", (("name", "work"),)] == 1


def test_an_interval_that_is_none(listen: Listen) -> None:
    """As for the tasks."""
    with (
        OtelExporter("shop", listen(), "http://127.0.0.1:9") as exporter,
        pytest.raises(ConfigError, match="interval=0"),
    ):
        exporter.meter_provider(0)
