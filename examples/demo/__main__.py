"""The demo: a web service, its load, a real Prometheus, and whether they agree.

    python examples/demo [--seconds 5] [--stay]

Starts the service and Prometheus, runs the load, waits until everything the load did has been scraped, and prints what
the load generator knows beside what Prometheus answers. Without --seconds it then leaves everything up until Ctrl-C.
Ends with 0 if the numbers are equal and with 1 if they are not. Where Prometheus is not installed, the numbers are
read off the service's own /metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import prometheus
from processes import child, read_json
from prometheus_client.parser import text_string_to_metric_families

JOB = "shop"
#: What the load generator calls an outcome, and the counter it must be equal to.
COUNTERS = {
    "sent": "async_inspect_tasks_total",
    "completed": "async_inspect_tasks_completed_total",
    "failed": "async_inspect_tasks_failed_total",
    "cancelled": "async_inspect_tasks_cancelled_total",
}
QUANTILES = {"p50": 0.5, "p99": 0.99}

Table = dict[str, dict[str, float]]  # route -> column -> value


class Signals:
    """Makes the first SIGINT, SIGTERM or SIGHUP a KeyboardInterrupt, and lets none of them disturb what comes then."""

    def __init__(self) -> None:
        self.came = self.holding = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.came = not self.came, True
        if first and not self.holding:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put them off while a child is being started, else it could be left behind unknown."""
        self.holding = True
        yield
        self.holding = False
        if self.came:
            raise KeyboardInterrupt


def read_page(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as response:
        page: str = response.read().decode()
        return page


def wait_until_quiet(address: str, timeout: float = 30.0) -> None:
    """Return once no task is active. The load has ended by then, but the service may still be hearing of it."""
    deadline = time.monotonic() + timeout
    while not re.search(r"^async_inspect_active_tasks 0(\.0)?$", read_page(address), re.MULTILINE):
        if time.monotonic() > deadline:
            raise SystemExit(f"tasks are still active {timeout:g} s after the end of the load: see {address}")
        time.sleep(0.05)


def ask_prometheus(server: prometheus.Prometheus) -> tuple[Table, dict[str, float]]:
    """The counters and quantiles by route, and the counters summed over everything."""
    queries = {column: f"sum by (name) ({counter})" for column, counter in COUNTERS.items()}
    for column, quantile in QUANTILES.items():
        buckets = 'sum by (le, name) (async_inspect_task_duration_seconds_bucket{state="completed"})'
        queries[column] = f"histogram_quantile({quantile}, {buckets})"
    table: Table = {}
    for column, promql in queries.items():
        for labels, value in server.query(promql):
            if not math.isnan(value):  # the quantile of a route that nothing completed
                table.setdefault(labels["name"], {})[column] = value
    return table, {column: server.value(f"sum({counter})") for column, counter in COUNTERS.items()}


def read_counters(address: str) -> tuple[Table, dict[str, float]]:
    """The same, without quantiles, from the page itself."""
    column_of = {counter: column for column, counter in COUNTERS.items()}
    table: Table = {}
    totals = dict.fromkeys(COUNTERS, 0.0)
    for family in text_string_to_metric_families(read_page(address)):
        for sample in family.samples:
            if column := column_of.get(sample.name):
                table.setdefault(sample.labels["name"], {})[column] = sample.value
                totals[column] += sample.value
    return table, totals


def show(sent: Table, seen: Table, totals: dict[str, float], witness: str) -> bool:
    """Print both sides of each route and of everything; returns whether all of it is equal."""
    summed = {column: sum(row.get(column, 0) for row in sent.values()) for column in COUNTERS}
    lines = [(route, sent.get(route, {}), seen.get(route, {})) for route in sorted({*sent, *seen})]
    lines.append(("all", summed, totals))
    width = max(len(route) for route, _, _ in lines)
    ours, theirs = "the load generator", witness
    print(f"\n{'':{width}}  {ours:-^34}   {theirs:-^52}")
    print(
        f"{'route':{width}}  {'sent':>7} {'200':>8} {'500':>8} {'cut off':>8}   "
        f"{'tasks':>7} {'completed':>9} {'failed':>7} {'cancelled':>9} {'p50':>8} {'p99':>8}  equal"
    )
    all_equal = True
    for route, left, right in lines:
        equal = all(left.get(column, 0) == right.get(column, 0) for column in COUNTERS)
        all_equal = all_equal and equal
        a, b = ([int(row.get(column, 0)) for column in COUNTERS] for row in (left, right))
        quantiles = (f"{right[column] * 1000:.1f}ms" if column in right else "" for column in QUANTILES)
        print(
            f"{route:{width}}  {a[0]:7} {a[1]:8} {a[2]:8} {a[3]:8}   {b[0]:7} {b[1]:9} {b[2]:7} {b[3]:9} "
            + " ".join(f"{text:>8}" for text in quantiles)
            + f"  {'yes' if equal else 'NO'}"
        )
    print(flush=True)
    return all_equal


def run(options: argparse.Namespace, signals: Signals, stack: contextlib.ExitStack) -> int:
    seconds = 10.0 if options.seconds is None else options.seconds
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asyncinspect-demo-")))
    with signals.held():
        service = stack.enter_context(child("service.py", "--until-eof"))
    ports = read_json(service, "service")
    site, metrics = (f"http://127.0.0.1:{ports[key]}" for key in ("port", "metrics_port"))
    metrics += "/metrics"
    server: prometheus.Prometheus | None = None
    if prometheus.find():
        with signals.held():
            server = stack.enter_context(prometheus.Prometheus(folder))
        server.add_target(JOB, f"127.0.0.1:{ports['metrics_port']}")
    print(f"service on {site}, metrics on {metrics}")
    print(f"Prometheus on http://{server.address}" if server else "no Prometheus installed: reading /metrics itself")
    print(f"{seconds:g} s of load over {options.connections} connections ...", flush=True)

    arguments = f"--port={ports['port']}", f"--seconds={seconds}", f"--connections={options.connections}"
    with contextlib.ExitStack() as until_answered:
        with signals.held():
            load = until_answered.enter_context(child("load.py", *arguments))
        answer = read_json(load, "load generator")
    sent: Table = answer["routes"]  # type: ignore[assignment]
    wait_until_quiet(metrics)
    if server:
        server.wait_for_scrape(JOB, after=time.time())
        equal = show(sent, *ask_prometheus(server), witness="Prometheus")
    else:
        equal = show(sent, *read_counters(metrics), witness="/metrics")
    total = int(sum(row["sent"] for row in sent.values()))
    print(f"{total} requests in {answer['seconds']} s; the numbers are {'equal' if equal else 'NOT equal'}.")

    if options.stay or options.seconds is None:
        also = f", and Prometheus on http://{server.address}" if server else ""
        # From the print on: whoever reads it may press Ctrl-C before the next statement is reached.
        with contextlib.suppress(KeyboardInterrupt):
            print(f"\n{metrics} stays up until Ctrl-C{also}.", flush=True)
            raise SystemExit(f"the service ended with status {service.wait()}")
    return 0 if equal else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="A web service under load, and what Prometheus says of it.")
    parser.add_argument("--seconds", type=float, help="length of the load, after which the demo ends by itself")
    parser.add_argument("--stay", action="store_true", help="do not end after the load even so")
    parser.add_argument("--connections", type=int, default=50)
    options = parser.parse_args()
    signals = Signals()
    try:
        with contextlib.ExitStack() as stack:
            return run(options, signals, stack)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
