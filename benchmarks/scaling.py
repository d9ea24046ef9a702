"""What one process gives Prometheus to keep, and what that takes there: the figures of docs/scaling.md.

    python benchmarks/scaling.py            # a page by number of names
    python benchmarks/scaling.py --server   # a real Prometheus too, some minutes

The Prometheus scrapes one process under load by several names, so that each is a target of its own with series of its
own. It needs `prometheus` on PATH.
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from asyncinspect_logging import Config, Inspector, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.handler import AsyncInspectHandler
from asyncinspect_logging.spans import LOGGER

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo"
#: Of the page that the Prometheus scrapes.
NAMES = 1000


def work(names: int, times: int = 1) -> None:
    """Spans under each name, with children, as a service has them."""
    for number in range(times * names):
        with span(f"GET /orders/{{order}}/{number % names}"):
            pass


def process(names: int) -> Inspector:
    inspector = Inspector(Config(max_names=None))
    handler = AsyncInspectHandler(inspector)
    LOGGER.addHandler(handler)
    try:
        work(names, 3)
    finally:
        LOGGER.removeHandler(handler)
    return inspector


def pages() -> None:
    print("names   samples    bytes   gzip   ms")
    measured = []
    for names in 1, 10, 100, 1000:
        inspector = process(names)
        handler = AsyncInspectHandler(inspector)
        LOGGER.addHandler(handler)
        with PrometheusExporter(inspector, update_interval=0) as exporter:
            page = exporter.gather(openmetrics=True)
            samples = sum(not line.startswith("#") for line in page.splitlines())
            compressed = len(gzip.compress(page.encode(), 1))
            times = []
            for _ in range(max(5, 500 // names)):
                work(names)  # no line of the next page is what it was on the last
                began = time.process_time()
                exporter.gather(openmetrics=True)
                times.append(time.process_time() - began)
            measured.append((names, samples, len(page.encode()), statistics.median(times)))
            LOGGER.removeHandler(handler)
            print(
                f"{names:5} {samples:9,} {len(page.encode()):9,} {compressed:7,} {statistics.median(times) * 1e3:7.2f}"
            )
    (few, few_samples, few_bytes, _), (many, many_samples, many_bytes, _) = measured[0], measured[-1]
    print(f"a name: {(many_samples - few_samples) / (many - few):.1f} series", end=", ")
    print(f"{(many_bytes - few_bytes) / (many - few):.0f} bytes")


def server(interval: int, steps: list[int], seconds: float) -> None:
    """Have a Prometheus scrape ever more targets, and print what it says of itself."""
    done = threading.Event()

    def load() -> None:
        while not done.wait(0.001):
            with span(f"GET /orders/{{order}}/{random.randrange(NAMES)}"):
                pass

    inspector = process(NAMES)
    LOGGER.addHandler(AsyncInspectHandler(inspector))
    threading.Thread(target=load, daemon=True).start()
    sys.path.insert(0, str(DEMO))
    from prometheus import Prometheus

    with (
        tempfile.TemporaryDirectory() as folder,
        PrometheusExporter(inspector, update_interval=interval / 2) as exporter,
        exporter.start_server("127.0.0.1:0") as metrics,
        Prometheus(Path(folder), interval=f"{interval}s") as prometheus,
    ):

        def own(name: str) -> float:
            """A metric of the Prometheus itself, summed up over its labels."""
            with urllib.request.urlopen(f"http://{prometheus.address}/metrics", timeout=30) as response:
                lines = response.read().decode().splitlines()
            return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))

        print(f"every {interval} s: targets   series   samples/s   resident MB   heap MB   cores   scrape s")
        targets = 0
        for wanted in [0, *steps]:
            while targets < wanted:
                prometheus.add_target(f"process-{targets}", f"127.0.0.1:{metrics.port}")
                targets += 1
            time.sleep(seconds / 2)
            before, cpu = time.monotonic(), own("process_cpu_seconds_total")
            appended = own("prometheus_tsdb_head_samples_appended_total")
            time.sleep(seconds / 2)
            took = time.monotonic() - before
            cores = (own("process_cpu_seconds_total") - cpu) / took
            rate = (own("prometheus_tsdb_head_samples_appended_total") - appended) / took
            scrape = prometheus.query("quantile(0.5, scrape_duration_seconds)")
            resident, heap = own("process_resident_memory_bytes") / 1e6, own("go_memstats_heap_inuse_bytes") / 1e6
            print(
                f"{targets:20} {own('prometheus_tsdb_head_series'):9,.0f} {rate:10,.0f} {resident:12,.0f} {heap:9,.0f}"
                f" {cores:7.2f} {scrape[0][1] if scrape else 0:8.3f}",
                flush=True,
            )
        done.set()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", action="store_true", help="run a Prometheus, too")
    parser.add_argument("--interval", type=int, default=5, help="seconds between two scrapes of a target")
    parser.add_argument("--targets", type=int, nargs="*", default=[2, 4, 8], help="how many, one step after the other")
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long at each step")
    options = parser.parse_args()
    pages()
    if options.server:
        server(options.interval, options.targets, options.seconds)
