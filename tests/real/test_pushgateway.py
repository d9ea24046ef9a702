"""A real Pushgateway has exactly what was pushed, by job and grouping key, and nothing of a job that succeeded."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from asyncinspect_logging import Inspector, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.exporters.push import PushJob, delete, push

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    program = shutil.which("prometheus-pushgateway")
    if program is None:
        if os.environ.get("CI", "").lower() in {"true", "1"}:
            pytest.fail("Pushgateway is not installed, and CI accepts no skip for it")
        pytest.skip("Pushgateway is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program, f"--web.listen-address={address}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 20
            while True:
                try:
                    urllib.request.urlopen(f"http://{address}/-/ready").close()
                    break
                except OSError as error:
                    if isinstance(error, urllib.error.HTTPError):
                        error.close()
                    assert time.monotonic() < end
                    time.sleep(0.05)
            yield address
        finally:
            process.terminate()
            process.wait(10)


def by_key(metrics: Iterable[Metric], **more: str) -> dict[Any, float]:
    """Our samples by name and labels. The gateway spells bounds its own way."""
    found = {}
    for sample in (sample for metric in metrics for sample in metric.samples):
        if sample.name.startswith("async_inspect_"):
            labels: dict[str, Any] = {**more, **sample.labels}
            if "le" in labels:
                labels["le"] = float(labels["le"])
            found[sample.name, *sorted(labels.items())] = sample.value
    return found


def has(gateway: str, job: str) -> dict[Any, float]:
    """What it has under a job."""
    with urllib.request.urlopen(f"http://{gateway}/metrics") as answer:
        found = by_key(text_string_to_metric_families(answer.read().decode()))
    return {
        (key[0], *(pair for pair in key[1:] if pair[0] != "job")): value
        for key, value in found.items()
        if ("job", job) in key
    }


def samples(exporter: PrometheusExporter, instance: str = "") -> dict[Any, float]:
    return by_key(exporter.registry.collect(), instance=instance)


def some_work() -> None:
    for number in range(7):
        try:
            with span('load "x"\n'):
                if number == 3:
                    raise LookupError
        except LookupError:
            pass


def test_the_exact_page(gateway: str, listen: Callable[..., Inspector]) -> None:
    """Every sample is there, once, also after a second push; another grouping key is a group of its own."""
    with PrometheusExporter(listen(), memory_metrics=False) as exporter:
        for _ in range(2):
            some_work()
            push(gateway, "import", exporter=exporter, grouping_key={"instance": "a/b"})
        assert has(gateway, "import") == samples(exporter, instance="a/b")
        push(gateway, "import", exporter=exporter, grouping_key={"instance": "c"})
        assert has(gateway, "import") == samples(exporter, instance="a/b") | samples(exporter, instance="c")
        delete(gateway, "import", grouping_key={"instance": "a/b"})
        assert has(gateway, "import") == samples(exporter, instance="c")
        delete(gateway, "import", grouping_key={"instance": "c"})
        assert not has(gateway, "import")


def test_a_job(gateway: str, listen: Callable[..., Inspector]) -> None:
    """Pushed while it goes on; one that fails stays, and one that succeeds is deleted if that is wanted."""
    with PrometheusExporter(listen(), memory_metrics=False) as exporter:
        job = PushJob(gateway, "nightly", exporter=exporter, delete_on_success=True)
        with suppress(LookupError), job:
            some_work()
            raise LookupError
        assert has(gateway, "nightly") == samples(exporter)
        with PushJob(gateway, "nightly", exporter=exporter, interval=0.05, delete_on_success=True) as job:
            some_work()
            end = time.monotonic() + 10
            while not any(key[0].endswith("tasks_total") and n == 14 for key, n in has(gateway, "nightly").items()):
                assert time.monotonic() < end
                time.sleep(0.05)
        assert not has(gateway, "nightly")
        assert job.errors == 0


def test_a_gateway_refuses(gateway: str, listen: Callable[..., Inspector]) -> None:
    """`push` says so."""
    with PrometheusExporter(listen()) as exporter, pytest.raises(urllib.error.HTTPError) as caught:
        push(f"{gateway}/nowhere", "import", exporter=exporter)
    caught.value.close()
