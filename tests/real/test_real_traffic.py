"""The main job on real input: a web service under HTTP load, scraped by a real Prometheus, exact to the last."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.real

VARIANTS = {"driven": ("instrument", "asyncio"), "plain": ("span", "asyncio"), "uvloop": ("span", "uvloop")}
OUTCOMES = ("completed", "failed", "cancelled")
ROUTES = {"GET /items/{id}", "GET /reports/{id}", "POST /orders"}
ACCEPT = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5"

DURATIONS = "0.001 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 2.5 5.0 10.0 30.0 +Inf"
STEPS = "1e-05 0.0001 0.001 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 5.0 +Inf"
POLLS = "1.0 2.0 5.0 10.0 25.0 50.0 100.0 250.0 500.0 1000.0 2500.0 5000.0 +Inf"
LAGS = "0.0001 0.001 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1.0 5.0 +Inf"
STATES = "blocked cancelled completed failed pending running"

#: Every family that a page has: type, and for the labels with a fixed set of values, that set.
FAMILIES: dict[str, tuple[str, dict[str, str]]] = {
    "async_inspect_tasks": ("counter", {}),
    "async_inspect_tasks_completed": ("counter", {}),
    "async_inspect_tasks_failed": ("counter", {}),
    "async_inspect_tasks_cancelled": ("counter", {}),
    "async_inspect_tasks_by_state": ("gauge", {"state": STATES}),
    "async_inspect_active_tasks": ("gauge", {}),
    "async_inspect_blocked_tasks": ("gauge", {}),
    "async_inspect_task_duration_seconds": ("histogram", {"state": "cancelled completed failed", "le": DURATIONS}),
    "async_inspect_task_polls": ("counter", {}),
    "async_inspect_poll_count": ("histogram", {"le": POLLS}),
    "async_inspect_poll_duration_seconds": ("histogram", {"le": STEPS}),
    "async_inspect_scheduled_seconds": ("histogram", {"le": STEPS}),
    "async_inspect_task_busy_seconds": ("counter", {}),
    "async_inspect_task_idle_seconds": ("counter", {}),
    "async_inspect_events": ("counter", {"type": "drop log poll spawn wake"}),
    "async_inspect_deadlocks": ("counter", {}),
    "async_inspect_deadlocks_detected": ("unknown", {}),
    "async_inspect_lints": ("counter", {}),
    "async_inspect_event_loop_lag_seconds": ("histogram", {"le": LAGS}),
    "async_inspect_dropped": ("counter", {"reason": "duplicate gap malformed max_events max_names max_tasks"}),
    "async_inspect_memory_bytes": ("gauge", {"component": "events metadata tasks"}),
    "async_inspect_build_info": ("gauge", {}),
}
SUFFIX = {"counter": "_total", "histogram": "_bucket"}


class Traffic(NamedTuple):
    """A service after its load: the Prometheus that saw it, and what the load generator says it did."""

    server: Any
    job: str
    metrics: str
    routes: dict[str, dict[str, int]]

    def by_name(self, metric: str) -> dict[str, float]:
        samples = self.server.query(f'sum by (name) ({metric}{{job="{self.job}"}})')
        return {labels["name"]: value for labels, value in samples}

    def value(self, promql: str) -> float:
        """Value of a query, in which $ stands for this job's matcher."""
        value: float = self.server.value(promql.replace("$", f'job="{self.job}"'))
        return value

    def total(self, outcome: str) -> int:
        return sum(route.get(outcome, 0) for route in self.routes.values())


def start(stack: contextlib.ExitStack, script: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start one of the demo's scripts, to be ended with the stack."""
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    )
    stack.callback(process.kill)
    return process


def answer(process: subprocess.Popen[str]) -> Any:
    """The line of JSON that a script prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"{process.args!r} ended with status {process.wait()} and no answer"
    return json.loads(line)


def read(address: str, **headers: str) -> tuple[str, str]:
    """Body and content type of a page."""
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as response:
        return response.read().decode(), response.headers["Content-Type"]


def until_quiet(metrics: str) -> None:
    deadline = time.monotonic() + 30
    while not re.search(r"^async_inspect_active_tasks 0(\.0)?$", read(metrics)[0], re.MULTILINE):
        assert time.monotonic() < deadline, "tasks are still active after the end of the load"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def all_traffic(prometheus_server: Any, demo_folder: Path) -> Iterator[dict[str, Traffic]]:
    """Each variant of the service, under load at the same time, then idle, and scraped once more after that."""
    with contextlib.ExitStack() as stack:
        services, loads = {}, {}
        for job, (style, loop) in VARIANTS.items():
            arguments = f"--style={style}", f"--loop={loop}", "--until-eof"
            services[job] = start(stack, demo_folder / "service.py", *arguments)
        ports = {job: answer(service) for job, service in services.items()}
        metrics = {job: f"http://127.0.0.1:{ports[job]['metrics_port']}/metrics" for job in VARIANTS}
        for job in VARIANTS:
            prometheus_server.add_target(job, f"127.0.0.1:{ports[job]['metrics_port']}")
        for job in VARIANTS:  # so that it is scraped under load, too
            prometheus_server.wait_for_scrape(job, after=0)
        for job in VARIANTS:
            arguments = f"--port={ports[job]['port']}", "--seconds=4", "--connections=20"
            loads[job] = start(stack, demo_folder / "load.py", *arguments)
        routes = {job: answer(load)["routes"] for job, load in loads.items()}
        for job in VARIANTS:
            until_quiet(metrics[job])
        quiet_since = time.time()
        for job in VARIANTS:
            prometheus_server.wait_for_scrape(job, after=quiet_since)
        yield {job: Traffic(prometheus_server, job, metrics[job], routes[job]) for job in VARIANTS}


@pytest.fixture(params=VARIANTS)
def traffic(request: pytest.FixtureRequest, all_traffic: dict[str, Traffic]) -> Traffic:
    return all_traffic[request.param]


def test_every_request_is_counted_once(traffic: Traffic) -> None:
    """sum(async_inspect_tasks_total) is the number of requests sent, and each outcome's counter its share."""
    assert traffic.total("sent") > 500
    assert traffic.value("sum(async_inspect_tasks_total{$})") == traffic.total("sent")
    for outcome in OUTCOMES:
        assert traffic.total(outcome) > 10
        assert traffic.value(f"sum(async_inspect_tasks_{outcome}_total{{$}})") == traffic.total(outcome)


def test_every_route_is_counted_by_its_name(traffic: Traffic) -> None:
    """The same holds route by route, and no other name appears."""
    assert set(traffic.routes) == ROUTES
    assert traffic.by_name("async_inspect_tasks_total") == {
        name: route["sent"] for name, route in traffic.routes.items()
    }
    for outcome in OUTCOMES:
        seen = traffic.by_name(f"async_inspect_tasks_{outcome}_total")
        assert {name: seen.get(name, 0) for name in ROUTES} == {
            name: route.get(outcome, 0) for name, route in traffic.routes.items()
        }


def test_histograms_count_what_the_counters_count(traffic: Traffic) -> None:
    """Each finished task is in the duration histogram once, under its state, and in the poll histogram once."""
    for outcome in OUTCOMES:
        promql = f'sum(async_inspect_task_duration_seconds_count{{$,state="{outcome}"}})'
        assert traffic.value(promql) == traffic.total(outcome)
    assert traffic.value("sum(async_inspect_poll_count_count{$})") == traffic.total("sent")
    # An order that completes sleeps twice for 2 ms or more, and nothing here takes 30 s.
    durations = 'async_inspect_task_duration_seconds_bucket{$,name="POST /orders",state="completed",le="%s"}'
    assert traffic.value(durations % "0.001") == 0
    assert traffic.value(durations % "30.0") == traffic.routes["POST /orders"]["completed"]


def test_events_are_counted(traffic: Traffic) -> None:
    """A spawn and a drop for each request, and a log event for each order that the service logs."""
    assert traffic.value('async_inspect_events_total{$,type="spawn"}') == traffic.total("sent")
    assert traffic.value('async_inspect_events_total{$,type="drop"}') == traffic.total("sent")
    assert traffic.value('async_inspect_events_total{$,type="log"}') == traffic.routes["POST /orders"]["completed"]
    assert traffic.value('async_inspect_events_total{$,type="poll"}') >= traffic.total("sent")


def test_nothing_is_lost_but_what_retention_lets_go(traffic: Traffic) -> None:
    """No record was malformed, repeated or out of place."""
    lost = traffic.value('sum(async_inspect_dropped_total{$,reason=~"malformed|duplicate|gap|max_names"})')
    assert lost == 0


def test_live_tasks_are_seen_under_load_and_gone_after_it(traffic: Traffic) -> None:
    """Scrapes during the load show active and blocked tasks; the last one shows none."""
    assert 0 < traffic.value("max_over_time(async_inspect_active_tasks{$}[2m])") <= 20
    assert 0 < traffic.value("max_over_time(async_inspect_blocked_tasks{$}[2m])") <= 20
    assert traffic.value("async_inspect_active_tasks{$}") == 0
    assert traffic.value("async_inspect_blocked_tasks{$}") == 0


def test_a_driver_sees_the_steps(all_traffic: dict[str, Traffic]) -> None:
    """An order awaits the database twice, which makes three steps, or once and fails; most of its time is idle."""
    traffic = all_traffic["driven"]
    orders = traffic.routes["POST /orders"]
    steps = 3 * orders["completed"] + 2 * orders["failed"]  # and one more where the body is still on its way
    matcher = '{$,name="POST /orders"}'
    assert steps <= traffic.value(f"async_inspect_task_polls_total{matcher}") <= steps + orders["sent"]
    assert traffic.value(f"async_inspect_poll_duration_seconds_count{matcher}") >= steps
    assert traffic.value(f"async_inspect_scheduled_seconds_count{matcher}") >= steps - orders["sent"]
    busy = traffic.value(f"async_inspect_task_busy_seconds_total{matcher}")
    assert 0 < busy < traffic.value(f"async_inspect_task_idle_seconds_total{matcher}")
    both = traffic.value(f"sum(async_inspect_task_duration_seconds_sum{matcher})")
    assert busy + traffic.value(f"async_inspect_task_idle_seconds_total{matcher}") == pytest.approx(both, rel=0.01)


def test_the_target_is_up(traffic: Traffic) -> None:
    """Every scrape succeeded, in the format that Prometheus asks for first."""
    target = traffic.server.targets()[traffic.job]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert traffic.value("min_over_time(up{$}[2m])") == 1
    page, content_type = read(traffic.metrics, Accept=ACCEPT)
    assert content_type.startswith("application/openmetrics-text")
    assert page.endswith("# EOF\n")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_the_catalogue_is_there(all_traffic: dict[str, Traffic], family: str) -> None:
    """Prometheus knows the family by its type, holds series of it, and its fixed label values are all there."""
    traffic = all_traffic["driven"]
    kind, labels = FAMILIES[family]
    known = traffic.server.metadata(traffic.job)
    assert family in known
    assert known[family]["type"] == kind
    assert known[family]["help"]
    metric = family + SUFFIX.get(kind, "")
    samples = traffic.server.query(f'{metric}{{job="{traffic.job}"}}')
    # A lint is labelled by the task it was found in, so there is no series before there is a finding.
    assert samples or family == "async_inspect_lints"
    for label, values in labels.items():
        assert {sample[label] for sample, _ in samples} == set(values.split())


def test_there_is_no_family_outside_the_catalogue(all_traffic: dict[str, Traffic]) -> None:
    """What is exposed is what is documented."""
    traffic = all_traffic["driven"]
    ours = {name for name in traffic.server.metadata(traffic.job) if name.startswith("async_inspect_")}
    assert ours == set(FAMILIES)


def test_promtool_reads_the_page(all_traffic: dict[str, Traffic], promtool: str) -> None:
    """The text format 0.0.4 passes Prometheus's own checker."""
    page, _ = read(all_traffic["driven"].metrics, Accept="text/plain;version=0.0.4")
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("needs_prometheus")
def test_the_demo_ends_by_itself(demo_folder: Path) -> None:
    """`make demo SECONDS=3`: the table's rows say yes, the service and Prometheus are gone, the status is 0."""
    command = [sys.executable, str(demo_folder), "--seconds", "3"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line[:17].strip(): line for line in done.stdout.splitlines() if line.endswith((" yes", " NO"))}
    assert set(rows) == ROUTES | {"all"}
    assert all(line.endswith(" yes") for line in rows.values())
    assert all(len(re.findall(r"\d\.\dms", line)) == 2 for name, line in rows.items() if name != "all")
    sent = int(rows["all"][17:].split()[0])
    assert re.search(rf"^{sent} requests in [0-9.]+ s; the numbers are equal\.$", done.stdout, re.MULTILINE)
    for port in re.findall(r"http://127\.0\.0\.1:(\d+)", done.stdout):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_stays_up_until_it_is_told_to_end(demo_folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Without Prometheus it reads /metrics itself; /metrics stays up until the signal; then it ends in silence."""
    with subprocess.Popen(
        [sys.executable, str(demo_folder), "--seconds=0.5", "--stay"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": str(tmp_path)},
    ) as demo:
        try:
            assert demo.stdout is not None
            for line in demo.stdout:
                if found := re.search(r"(http://\S+/metrics) stays up until Ctrl-C", line):
                    break
            else:
                pytest.fail(f"the demo ended before its time: {demo.communicate()[1]}")
            assert "async_inspect_tasks_total" in read(found[1])[0]
            demo.send_signal(number)
            assert demo.communicate(timeout=20) == ("", "")
        finally:
            demo.kill()
    assert demo.returncode == 0
    with pytest.raises(urllib.error.URLError):
        read(found[1])
