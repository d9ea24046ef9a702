"""Exemplars lead from a bucket to the trace of the last task in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
from prometheus_client.samples import Exemplar

from asyncinspect_logging import Config, Inspector, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.testing import FakeClock

Listen = Callable[..., Inspector]
DURATION = "async_inspect_task_duration_seconds"


def exemplars_of(page: str, family: str = DURATION) -> dict[tuple[str, str], Exemplar]:
    """By name and upper bound; every exemplar lies within its bucket."""
    found: dict[tuple[str, str], Exemplar] = {}
    for metric in parse(page):
        if metric.name != family:
            continue
        below = 0.0
        for sample in metric.samples:
            if sample.name.endswith("_bucket"):
                bound = float(sample.labels["le"])
                below = 0.0 if bound < below else below
                if sample.exemplar is not None:
                    assert below <= sample.exemplar.value <= bound
                    found[sample.labels["name"], sample.labels["le"]] = sample.exemplar
                below = bound
    return found


def test_the_last_task_of_each_bucket(listen: Listen) -> None:
    """With its ids, value and time."""
    clock = FakeClock()
    exporter = PrometheusExporter(listen(clock=clock), exemplars=True)
    spans = {}
    for seconds in (0.003, 0.004, 0.2, 40.0):
        with span("work") as spans[seconds]:
            clock.advance(seconds)
    found = exemplars_of(exporter.gather(openmetrics=True))
    assert {bound: (e.labels["span_id"], e.labels["trace_id"]) for (_, bound), e in found.items()} == {
        "0.005": (spans[0.004].id, spans[0.004].trace_id),
        "0.25": (spans[0.2].id, spans[0.2].trace_id),
        "+Inf": (spans[40.0].id, spans[40.0].trace_id),
    }
    assert found["work", "0.25"].value == 0.2
    assert float(found["work", "+Inf"].timestamp or 0) == pytest.approx(clock.time_ns() / 1e9)
    assert exemplars_of(exporter.gather(openmetrics=True), "async_inspect_poll_count").keys() == {("work", "1.0")}


def test_traces_that_nobody_records_are_no_example(listen: Listen) -> None:
    """The caller says so in the flags of its traceparent; a link to such a trace would lead nowhere."""
    exporter = PrometheusExporter(listen(), exemplars=True)
    for flags in ("01", "00"):
        with span("work", parent=f"00-{'1' * 31}{flags[1]}-{'2' * 16}-{flags}"):
            pass
    (found,) = exemplars_of(exporter.gather(openmetrics=True)).values()
    assert found.labels["trace_id"] == "1" * 32


def test_a_rare_bucket_keeps_its_example(listen: Listen) -> None:
    """Though the inspector keeps the task no longer."""
    clock = FakeClock()
    exporter = PrometheusExporter(listen(Config(max_tasks=2), clock=clock), exemplars=True)
    with span("slow") as slow:
        clock.advance(3.0)
    exporter.gather()
    for _ in range(10):
        with span("slow"):
            clock.advance(0.002)
    found = exemplars_of(exporter.gather(openmetrics=True))
    assert found["slow", "5.0"].labels["span_id"] == slow.id
    assert set(found) == {("slow", "0.005"), ("slow", "5.0")}


def test_of_several_inspectors_and_other_bounds(listen: Listen) -> None:
    """Each exemplar is in the bucket where its task is counted."""
    clock = FakeClock()
    exporter = PrometheusExporter.multi([listen(clock=clock), Inspector()], exemplars=True, duration_buckets=(0.1, 0.3))
    with span('a "name"\n'):
        clock.advance(0.2)
    assert set(exemplars_of(exporter.gather(openmetrics=True))) == {('a "name"\n', "0.3")}


def test_only_where_they_are_asked_for(listen: Listen) -> None:
    """Not in text 0.0.4, which has no such thing; and not unless the option says so."""
    inspector = listen()
    with span("work"):
        pass
    plain = PrometheusExporter(inspector)
    assert " # {" not in plain.gather(openmetrics=True)
    exporter = PrometheusExporter(inspector, exemplars=True)
    assert exporter.gather() == plain.gather()
    assert " # {" in exporter.gather(openmetrics=True)


def test_the_same_from_the_registry(listen: Listen) -> None:
    """What prometheus_client writes for our metric objects is what we write."""
    from prometheus_client.openmetrics.exposition import generate_latest

    clock = FakeClock()
    exporter = PrometheusExporter(listen(clock=clock), exemplars=True, memory_metrics=False)
    with span("work"):
        clock.advance(0.2)
    assert exemplars_of(generate_latest(exporter.registry).decode()) == exemplars_of(exporter.gather(openmetrics=True))
    assert generate_latest(exporter.registry).decode() == exporter.gather(openmetrics=True)
