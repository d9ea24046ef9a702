"""The demo's other half: the service is killed, and its log tells all that Prometheus knew of it, and more.

    python examples/demo/post_mortem.py [--seconds 5]

Starts the service with a log file, the load and Prometheus; kills the service with SIGKILL in the middle of it; and
replays the log. There is a moment in the log at which every counter had the value that Prometheus scraped last: both
are printed. After that moment come the requests that nobody scraped, and those that were under way at the end,
each with where it was.

Ends with 0 if the numbers are equal, and with 1 if they are not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import prometheus
from processes import child, read_json
from prometheus_client.parser import text_string_to_metric_families

from asyncinspect_logging import Inspector
from asyncinspect_logging.analysis.replay import replay
from asyncinspect_logging.exporters.prometheus import PrometheusExporter

JOB = "shop"
#: What is compared: all that counts tasks and their steps. (Times differ in the last digits of a sum of floats.)
FAMILIES = (
    "async_inspect_tasks_total",
    "async_inspect_tasks_completed_total",
    "async_inspect_tasks_failed_total",
    "async_inspect_tasks_cancelled_total",
    "async_inspect_task_polls_total",
    "async_inspect_task_duration_seconds_count",
    "async_inspect_task_duration_seconds_bucket",
    "async_inspect_poll_count_bucket",
    "async_inspect_events_total",
)
WAKES = "async_inspect_events_total", (("type", "wake"),)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped_last(server: prometheus.Prometheus) -> Samples:
    """The value of every series at the last scrape that succeeded."""
    found: Samples = {}
    for family in FAMILIES:
        # An instant query would find nothing: a target that does not answer makes its series stale.
        for labels, value in server.query(f'last_over_time({family}{{job="{JOB}"}}[10m])'):
            kept = {key: label for key, label in labels.items() if key not in ("__name__", "instance", "job")}
            found[family, tuple(sorted(kept.items()))] = value
    return found


def page_of(inspector: Inspector) -> Samples:
    """The same series as the replayed inspector's /metrics has them."""
    found: Samples = {}
    for family in text_string_to_metric_families(PrometheusExporter(inspector).gather()):
        for sample in family.samples:
            if sample.name in FAMILIES:
                found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def records(log: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """The lifecycle records of a log, each with where its line ends; the last line may be cut short."""
    end = 0
    with log.open("rb") as lines:
        for line in lines:
            end += len(line)
            with contextlib.suppress(ValueError):
                if payload := json.loads(line).get("asyncinspect"):
                    yield end, payload


def moment_of(log: Path, scraped: Samples) -> tuple[int, int] | None:
    """Where in the log the record ends after which spans had begun, stepped and ended as often as was scraped; and how
    many were woken then and not polled yet: a live inspector counts a wake with the poll after it, a log has it by
    itself.
    """
    wanted = {kind: scraped["async_inspect_events_total", (("type", kind),)] for kind in ("spawn", "poll", "drop")}
    counted = Counter[str]()
    begun, woken = set[object](), set[object]()
    for end, payload in records(log):
        kind = payload["kind"]
        if kind in ("spawn", "enter") and payload["id"] not in begun:
            begun.add(payload["id"])
            counted["spawn"] += 1
        if kind in ("enter", "resume"):
            counted["poll"] += 1
        if kind == "exit":
            counted["drop"] += 1
        if kind == "wake":
            woken.add(payload["id"])
        elif kind in ("resume", "exit"):
            woken.discard(payload["id"])
        if all(counted[kind] == count for kind, count in wanted.items()):
            return end, len(woken)
    return None


def run(seconds: float, connections: int) -> int:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asyncinspect-demo-")))
        log = folder / "service.jsonl"
        service = stack.enter_context(child("service.py", "--until-eof", f"--log={log}"))
        ports = read_json(service, "service")
        server = stack.enter_context(prometheus.Prometheus(folder))
        server.add_target(JOB, f"127.0.0.1:{ports['metrics_port']}")
        arguments = f"--port={ports['port']}", "--seconds=600", f"--connections={connections}"
        stack.enter_context(child("load.py", *arguments))
        server.wait_for_scrape(JOB, after=time.time())
        print(f"{seconds:g} s of load over {connections} connections, then SIGKILL ...", flush=True)
        time.sleep(seconds)
        service.kill()
        service.wait()
        scraped = scraped_last(server)
        return report(log, scraped)


def report(log: Path, scraped: Samples) -> int:
    """Print both sides, and what nobody scraped; returns the exit status."""
    moment = moment_of(log, scraped)
    if moment is None:
        print("the log has no moment at which as many spans had begun, stepped and ended as Prometheus scraped")
        return 1
    place, woken = moment
    # Not replay(log, at=…): Unix time as a float does not tell two records apart that are 200 ns from each other.
    until_then = log.with_name("until-the-scrape.jsonl")
    until_then.write_bytes(log.read_bytes()[:place])
    replayed = page_of(replay(until_then))
    replayed[WAKES] -= woken
    different = {key for key in scraped.keys() | replayed.keys() if scraped.get(key, 0) != replayed.get(key, 0)}
    print(f"\n{'':55} {'scraped last':>12} {'replayed':>12}")
    for (family, labels), value in sorted(scraped.items()):
        if family.startswith("async_inspect_tasks_"):
            series = f"{family}{{{', '.join(label for _, label in labels)}}}"
            print(f"{series:55} {value:12.0f} {replayed.get((family, labels), 0):12.0f}")
    print(f"\n{len(scraped)} series compared, {len(different)} differ{': ' if different else '.'}")
    for family, labels in sorted(different):
        print(f"  {family}{dict(labels)}: {scraped.get((family, labels))} {replayed.get((family, labels))}")

    end = replay(log).snapshot()
    unseen = sum(view.spawned for view in end.names.values()) - sum(
        value for (family, _), value in scraped.items() if family == "async_inspect_tasks_total"
    )
    live = [task for task in end.tasks if task.outcome is None]
    print(f"{unseen:.0f} requests came after the last scrape. {len(live)} were under way when the process died:")
    for task in live[:20]:
        where = " > ".join(task.await_chain) or task.at
        print(f"  {task.id} {task.name} {dict(task.fields)} {task.state.value} on {task.waiting_on}, at {where}")
    if len(live) > 20:
        print(f"  and {len(live) - 20} more")
    return 1 if different else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="A service is killed under load; its log has what was scraped.")
    parser.add_argument("--seconds", type=float, default=5.0, help="from the first scrape until SIGKILL")
    parser.add_argument("--connections", type=int, default=50)
    options = parser.parse_args()
    if prometheus.find() is None:
        print("there is no `prometheus` on PATH", file=sys.stderr)
        return 2
    return run(options.seconds, options.connections)


if __name__ == "__main__":
    sys.exit(main())
