"""A real Prometheus keeps the exemplars that it scrapes, and gives them to who asks for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from asyncinspect_logging import Inspector, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

pytestmark = pytest.mark.real


def test_query_exemplars(listen: Callable[..., Inspector], prometheus_server: Any) -> None:
    """From the histogram of durations to the trace."""
    exporter = PrometheusExporter(listen(), exemplars=True)
    with span("checkout") as ours:
        time.sleep(0.002)
    with exporter.start_server("127.0.0.1:0") as server:
        prometheus_server.add_target("exemplars", f"127.0.0.1:{server.port}")
        prometheus_server.wait_for_scrape("exemplars", after=time.time())
        now = time.time()
        series = prometheus_server._api(
            "query_exemplars",
            query='async_inspect_task_duration_seconds_bucket{job="exemplars"}',
            start=str(now - 600),
            end=str(now + 60),
        )
    exporter.close()
    found = [(one["seriesLabels"]["name"], e) for one in series for e in one["exemplars"]]
    assert [(name, e["labels"]) for name, e in found] == [("checkout", {"trace_id": ours.trace_id, "span_id": ours.id})]
    assert float(found[0][1]["value"]) == pytest.approx((ours.exited_at - ours.entered_at) / 1e9)
