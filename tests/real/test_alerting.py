"""From a deadlock in a program to a webhook: our detection, Prometheus with our rules, Alertmanager. And the log of
that program, tried on the same rules afterwards, gives the alerts that there were.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from asyncinspect_logging.analysis.backtest.run import Result, backtest

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

OPS = Path(__file__).resolve().parents[2] / "ops"
INTERVAL = 1  # second, of scrapes and evaluations

#: Does as it is told, a line at a time: orders that fail, many orders at once, a deadlock.
SERVICE = """
import asyncio, logging, logging.config, sys
from asyncinspect_logging import AsyncInspectHandler, Inspector, json_logging, run, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

port, log = int(sys.argv[1]), sys.argv[2]
inspector = Inspector()
logging.config.dictConfig(json_logging(log, level="TRACE"))
logging.getLogger().addHandler(AsyncInspectHandler(inspector))
logging.getLogger("asyncinspect.findings").propagate = False
orders = "well"

async def order():
    await asyncio.sleep(0.01)
    if orders == "fail":
        raise ValueError(orders)

async def patient(seconds):
    await asyncio.sleep(seconds)

async def hold(first, second, both):
    async with first:
        await both.wait()
        async with second:
            pass

async def deadlock():
    stock, till, both = asyncio.Lock(), asyncio.Lock(), asyncio.Barrier(2)
    await asyncio.gather(hold(stock, till, both), hold(till, stock, both))

async def obey(told):
    global orders
    while line := await told.readline():
        orders = line.decode().strip()
        if orders == "many":
            for _ in range(60):
                others.add(asyncio.create_task(patient(6)))
        if orders == "deadlock":
            others.add(asyncio.create_task(deadlock()))

others = set()

async def main():
    told = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    others.add(asyncio.create_task(obey(told)))
    while True:
        await asyncio.wait([asyncio.create_task(order()) for _ in range(3)])
        await asyncio.sleep(0.1)

with PrometheusExporter(inspector, update_interval=0).start_server(port) as server:
    print(server.port, flush=True)
    run(main(), sync=True)
"""

#: Such as need no five minutes.
QUICK = """
groups:
  - name: quick_recording
    rules:
      - record: quick:active
        expr: async_inspect_active_tasks
  - name: quick_alerts
    rules:
      - alert: Failing
        expr: sum by (job) (rate(async_inspect_tasks_failed_total{name="order"}[5s])) > 1
        for: 3s
        labels: {severity: "page"}
      - alert: Many
        expr: async_inspect_active_tasks > 50
        for: 2s
      - alert: ManyRecorded
        expr: quick:active > 50
      - alert: ManyForLong
        expr: async_inspect_active_tasks > 50
        for: 1m
      - alert: Blocked
        expr: 100 * async_inspect_blocked_tasks / async_inspect_active_tasks > 50 and async_inspect_active_tasks > 50
      - alert: TooMany
        expr: async_inspect_active_tasks > 5000
"""

ALERTMANAGER = """
route:
  receiver: hook
  group_by: [alertname]
  group_wait: 0s
  group_interval: 1s
receivers:
  - name: hook
    webhook_configs:
      - url: {url}
"""


class Webhook:
    """Keeps what it is sent, as long as a `with` block lasts."""

    def __enter__(self) -> Webhook:
        self.alerts: list[dict[str, Any]] = []
        self.came = threading.Condition()
        webhook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with webhook.came:
                    webhook.alerts += sent["alerts"]
                    webhook.came.notify_all()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for(self, name: str, timeout: float = 60) -> dict[str, Any]:
        """The first alert of a name that fires."""

        def found() -> dict[str, Any] | None:
            fits = (each for each in self.alerts if each["labels"]["alertname"] == name and each["status"] == "firing")
            return next(fits, None)

        with self.came:
            assert self.came.wait_for(lambda: found() is not None, timeout), [a["labels"] for a in self.alerts]
            alert = found()
        assert alert is not None
        return alert


@contextlib.contextmanager
def alertmanager(folder: Path, url: str) -> Iterator[str]:
    """Address of an Alertmanager that passes on to the webhook."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    assert program is not None
    (folder / "alertmanager.yml").write_text(ALERTMANAGER.format(url=url), "utf-8")
    log = folder / "alertmanager.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'alertmanager.yml'}",
                f"--storage.path={folder / 'alertmanager'}",
                "--web.listen-address=127.0.0.1:0",
                "--cluster.listen-address=",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield wait_until(lambda: _listens(log), "Alertmanager's port")
    finally:
        process.terminate()
        process.wait(20)


def _listens(log: Path) -> str | None:
    found = re.search(r'msg="?Listening on"? address=(127\.0\.0\.1:\d+)', log.read_text("utf-8", "replace"))
    if found is None:
        return None
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{found[1]}/-/ready", timeout=5):
        return found[1]
    return None


def wait_until(ask: Callable[[], Any], what: str, timeout: float = 60) -> Any:
    deadline = time.monotonic() + timeout
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"no {what}"
        time.sleep(0.1)


class Service:
    """A program that does as it is told, and writes a log."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, str(self.port), str(self._log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def tell(self, what: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            with self._process:
                pass
            self._process = None


Span = tuple[float, float | None]


class Seen(NamedTuple):
    """What happened: the alert that came to the webhook, when alerts were firing, the rules and the log."""

    alert: dict[str, Any]
    live: dict[str, list[Span]]
    rules: Path
    log: Path
    end: float


def _spans(moments: list[float], end: float) -> list[Span]:
    """From first to last of moments that follow each other; None: it was not over."""
    found: list[Span] = []
    for at in moments:
        if found and at - (found[-1][1] or 0) <= 1.5 * INTERVAL:
            found[-1] = (found[-1][0], at)
        else:
            found.append((at, at))
    return [(start, None if last is None or last >= end - 1.5 * INTERVAL else last + INTERVAL) for start, last in found]


@pytest.fixture(scope="module")
def seen(
    needs_prometheus: ModuleType, needs_alertmanager: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Seen]:
    """A day in the life of a service, in a minute: with failures, many tasks, a deadlock, and a restart."""
    folder = tmp_path_factory.mktemp("alerting")
    quick, log = folder / "quick.yml", folder / "service.jsonl"
    quick.write_text(QUICK, "utf-8")
    rules = folder / "rules.yml"
    rules.write_text((OPS / "alerts.yml").read_text("utf-8") + QUICK.partition("groups:\n")[2], "utf-8")
    service = Service(log)
    with Webhook() as webhook, alertmanager(folder, webhook.url) as address:
        more = f"rule_files: [{rules}]\nalerting:\n  alertmanagers: [static_configs: [targets: ['{address}']]]\n"
        with needs_prometheus.Prometheus(folder, interval=f"{INTERVAL}s", more=more) as prometheus:
            try:
                service.start()
                begin = time.time()
                prometheus.add_target("shop", f"127.0.0.1:{service.port}")
                prometheus.wait_for_scrape("shop", after=time.time() + 3)

                def is_firing(name: str) -> Callable[[], bool]:
                    return lambda: bool(prometheus.query(f'ALERTS{{alertname="{name}", alertstate="firing"}}'))

                service.tell("fail")
                wait_until(is_firing("Failing"), "alert of failing orders")
                service.tell("well")
                wait_until(lambda: not is_firing("Failing")(), "end of the failures")
                service.tell("many")
                wait_until(is_firing("Many"), "alert of many tasks")
                wait_until(lambda: not is_firing("Many")(), "end of many tasks")
                service.tell("deadlock")
                alert = webhook.wait_for("DeadlockDetected")
                # What is there for less than some scrapes, another Prometheus might not have seen.
                prometheus.wait_for_scrape("shop", after=time.time() + 3 * INTERVAL)
                service.kill()
                service.start()
                prometheus.wait_for_scrape("shop", after=time.time())
                service.tell("fail")
                wait_until(lambda: len(firing(prometheus, begin)["Failing"]) == 2, "alert after the restart")
                service.tell("well")
                wait_until(lambda: not is_firing("Failing")(), "end of the failures after the restart")
                prometheus.wait_for_scrape("shop", after=time.time() + 2)
                end = time.time()
                live = firing(prometheus, begin, end)
            finally:
                service.kill()
            yield Seen(alert, live, rules, log, end)


def firing(prometheus: Any, begin: float, end: float | None = None) -> dict[str, list[Span]]:
    """When alerts were firing, by name."""
    end = end or time.time()
    series = prometheus.query_range('ALERTS{alertstate="firing"}', begin, end, INTERVAL)
    return {labels["alertname"]: _spans(moments, end) for labels, moments in series}


@pytest.fixture(scope="module")
def tried(seen: Seen) -> Result:
    """The back-test of the log."""
    return backtest(seen.rules, seen.log, interval=INTERVAL, job="shop", end=seen.end)


def test_a_deadlock_reaches_the_webhook(seen: Seen) -> None:
    """With the labels of the rule and the target, and annotations that say where and what to do."""
    labels, annotations = seen.alert["labels"], seen.alert["annotations"]
    assert labels.pop("instance").startswith("127.0.0.1:")
    assert labels == {"alertname": "DeadlockDetected", "severity": "critical", "job": "shop"}
    assert annotations["summary"] == "Deadlock detected in async tasks"
    assert annotations["description"].startswith("1 deadlock(s) in the last five minutes in shop at 127.0.0.1:")
    assert "asyncinspect.findings" in annotations["description"]
    assert annotations["runbook_url"].endswith("alerts.md#deadlockdetected")
    assert seen.alert["generatorURL"]


def test_what_was_live(seen: Seen) -> None:
    """The alerts that were to fire did, as often as they were to; and the shipped ones that were not did not."""
    assert {name: len(spans) for name, spans in seen.live.items()} == {
        "Failing": 2,
        "Many": 1,
        "ManyRecorded": 1,
        "Blocked": 1,
        "DeadlockDetected": 1,
    }


def test_the_log_gives_the_same_alerts(seen: Seen, tried: Result) -> None:
    """As many, from the same moment to the same: a change is met by the next scrape, and that by the next evaluation,
    and neither is later than one interval.
    """
    found: dict[str, list[Span]] = {}
    for episode in tried.episodes:
        if episode.start is not None:
            found.setdefault(episode.alert, []).append((episode.start, episode.end))
    assert {name: len(spans) for name, spans in found.items()} == {
        name: len(spans) for name, spans in seen.live.items()
    }
    for name, spans in seen.live.items():
        for (start, end), (found_start, found_end) in zip(spans, found[name], strict=True):
            assert start == pytest.approx(found_start, abs=2 * INTERVAL + 0.2), name
            assert (end is None) == (found_end is None), name
            if end is not None:
                assert end == pytest.approx(found_end, abs=2 * INTERVAL + 0.2), name


def test_what_was_pending_is_told_of(tried: Result) -> None:
    """An alert whose `for` was not over; and of a rule that never held, that it did not."""
    (short,) = [episode for episode in tried.episodes if episode.alert == "ManyForLong"]
    assert short.start is None
    assert short.end is not None
    assert 4 < short.end - short.since < 20
    assert tried.alerts["ManyForLong"] == tried.alerts["TooMany"] == tried.alerts["HighTaskCount"] == 0
    assert not [episode for episode in tried.episodes if episode.alert == "TooMany"]


def test_labels_and_values(tried: Result) -> None:
    """Those of rule and series; one target, before and after the restart."""
    assert tried.instances == ("service.jsonl",)
    (deadlock,) = [episode for episode in tried.episodes if episode.alert == "DeadlockDetected"]
    assert deadlock.labels == {"severity": "critical", "job": "shop", "instance": "service.jsonl"}
    assert 1 <= deadlock.value < 1.1
    failing = [episode for episode in tried.episodes if episode.alert == "Failing" and episode.start]
    assert [episode.labels for episode in failing] == [{"job": "shop", "severity": "page"}] * 2
    assert all(episode.value > 1 for episode in failing)


def test_with_a_longer_interval_it_is_the_same(seen: Seen) -> None:
    """Within that, for what lasts longer than it."""
    found = backtest(seen.rules, seen.log, interval=4, job="shop", end=seen.end)
    # The deadlock may be gone with its process before the next scrape.
    (start,) = [episode.start for episode in found.episodes if episode.alert == "Blocked"]
    assert start is not None
    assert -2 * INTERVAL - 0.2 <= start - seen.live["Blocked"][0][0] <= 4 + 0.2
