"""Secrets do not leave the process over OTLP: neither with spans, nor with metrics, nor as arguments of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

import otlp_receiver as otlp

from asyncinspect_logging import Inspector, annotate, instrument, span
from asyncinspect_logging.exporters.opentelemetry import OtelExporter
from asyncinspect_logging.integrations.queues import job

Listen = Callable[..., Inspector]
SECRET = "hunter2-XYZZY9"
SHOWN = "[redacted]"


@job(name="charge")
async def charge(ctx: Any, user: int, password: str, url: str, *more: Any, **options: Any) -> None:
    await asyncio.sleep(0)
    raise ConnectionError(f"refused password={SECRET}")


@job(name="refund")
def refund(user: int, card: dict[str, Any], note: str = "") -> None:
    annotate(f"trying with token={SECRET}")


async def program() -> None:
    with span(f"GET /pay?token={SECRET}", api_key=SECRET, url=f"postgres://app:{SECRET}@db/shop", user=7):
        with pytest.raises(ConnectionError):
            await charge({}, 7, SECRET, f"https://app:{SECRET}@pay/", f"token={SECRET}", access_token=SECRET)
        refund(7, {"number": 1, "secret": SECRET}, note=f"Authorization: Bearer {SECRET}")
        await instrument(asyncio.sleep(0), name=f"fetch https://app:{SECRET}@db")


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_no_secret_is_sent(listen: Listen, protocol: str) -> None:
    """In names, which are labels of metrics; in fields and arguments, messages of exceptions and log lines."""
    with otlp.Receiver() as receiver:
        endpoint = f"http://{receiver.grpc if protocol == 'grpc' else receiver.http}"
        with OtelExporter("shop", listen(), endpoint, protocol=protocol, stacktraces=True) as exporter:
            provider = exporter.meter_provider(3600)
            asyncio.run(program())
            assert exporter.export_tasks(pending=True) == 4
            provider.shutdown()
        found = {one.name: otlp.attributes_of(one) for one in receiver.spans}
        (sent,) = receiver.metric_requests
        points = [
            point
            for resource in sent.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in getattr(metric, metric.WhichOneof("data")).data_points
        ]
        labels = {otlp.attributes_of(point).get("name") for point in points}
        wire = b"".join(request.SerializeToString() for request in (*receiver.requests, sent))
    assert SECRET.encode() not in wire
    assert b"hunter2" not in wire
    assert b"refused password=[redacted]" in wire
    assert b"trying with token=[redacted]" in wire
    names = {f"GET /pay?token={SHOWN}", "charge", "refund", f"fetch https://{SHOWN}@db"}
    assert found.keys() == names
    assert names <= labels, "they are told, without what is secret"
    request, charged, refunded = found[f"GET /pay?token={SHOWN}"], found["charge"], found["refund"]
    assert (request["api_key"], request["url"], request["user"]) == (SHOWN, f"postgres://{SHOWN}@db/shop", 7)
    assert (charged["password"], charged["url"], charged["user"]) == (SHOWN, f"https://{SHOWN}@pay/", 7)
    assert (refunded["card.number"], refunded["card.secret"]) == (1, SHOWN)
    assert refunded["note"] == f"Authorization: {SHOWN}"
