"""Each example runs to its end by itself, with warnings as errors, and prints what it promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from asyncinspect_logging.catalogue import LINTS

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *arguments: str) -> str:
    """What the example prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


#: Tested where what they need is tested.
ELSEWHERE = {"datadog_agent": "test_statsd.py", "ecosystem_integration": "test_ecosystem.py"}


def test_every_example_is_tested() -> None:
    """None is left out here, but for those that another file has."""
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested | ELSEWHERE.keys()
    for name, file in ELSEWHERE.items():
        assert f'"{name}.py"' in (Path(__file__).parent / file).read_text("utf-8")


def test_quickstart() -> None:
    """Ten tasks, one of which failed."""
    assert len((EXAMPLES / "quickstart.py").read_text().splitlines()) <= 25
    lines = run("quickstart").splitlines()
    assert 'async_inspect_tasks_total{name="fetch_user"} 10.0' in lines
    assert 'async_inspect_tasks_completed_total{name="fetch_user"} 9.0' in lines
    assert 'async_inspect_tasks_failed_total{name="fetch_user"} 1.0' in lines


def test_structlog_service() -> None:
    """JSON lines with the ids of their span, and the same lines on the tasks' timelines."""
    out = run("structlog_service").splitlines()
    events = [json.loads(line) for line in out if line.startswith("{")]
    assert [event["event"] for event in events].count("paid") == 3
    assert all(event["span"] == "checkout" and len(event["span_id"]) == 16 for event in events)
    assert "checkout {'order': 4, 'declined': True} completed ['WARNING declined']" in out
    assert out[-2:] == ["checkout: 5 completed, 0 failed", "charge_card: 3 completed, 2 failed"]


def test_fastapi_service() -> None:
    """Ten requests of which one is not found and one fails, on the service's own /metrics; /health is not counted."""
    pytest.importorskip("fastapi")
    out = run("fastapi_service")
    assert "statuses: [200, 200, 200, 200, 200, 200, 200, 200, 200, 404, 500]" in out
    assert 'async_inspect_tasks_total{name="GET /users/{user_id}"} 10.0' in out
    assert 'async_inspect_tasks_failed_total{name="GET /users/{user_id}"} 1.0' in out
    assert 'async_inspect_tasks_total{name="query"} 10.0' in out
    assert "health" not in out
    assert "metrics" not in out
    assert re.search(r"WARNING no user 8 \[GET /users/\{user_id\} [0-9a-f]{16}\]", out)


def test_production_ready() -> None:
    """Every request is counted, on /metrics and again from the log, though details of few are kept."""
    pytest.importorskip("fastapi")
    out = run("production_ready")
    assert 'async_inspect_tasks_completed_total{name="GET /orders/{order}"} 200.0' in out
    assert 'async_inspect_tasks_completed_total{name="query"} 200.0' in out
    assert "health" not in out
    assert "rebuilt from the log: 200 requests" in out
    kept, counted = map(int, re.search(r"details kept of (\d+) tasks, counted (\d+)", out).groups())  # type: ignore[union-attr]
    assert kept < counted / 2


def test_performance_analysis() -> None:
    """The second version waits less for connections, and spends less time on the loop."""
    out = run("performance_analysis")
    assert "semaphore connections" in out
    rows = re.findall(r"p99 (\d+) ms, on the loop (\d+) ms, waited for connections (\d+) ms", out)
    before, after = (tuple(map(int, row)) for row in rows)
    assert all(second < first for first, second in zip(before, after, strict=True))


def test_relationship_graph() -> None:
    """The lock that two tasks share is on the critical path; and the graph in three more forms."""
    out = run("relationship_graph")
    assert "shared: lock cache" in out
    assert "critical path: page > load_orders > page > render > page\n" in out
    assert run("relationship_graph", "--mermaid").startswith("flowchart LR\n")
    names = {"page", "load_user", "load_orders", "render", "lock cache"}
    dot = run("relationship_graph", "--dot")
    assert set(re.findall(r'^  n\d \[label="(.*?)\\n', dot, re.MULTILINE)) == names
    found = json.loads(run("relationship_graph", "--json"))
    named = {node["id"]: node["name"] for node in found["nodes"]}
    assert set(named.values()) == names
    assert Counter((named[edge["source"]], edge["kind"], named[edge["target"]]) for edge in found["edges"]) == Counter(
        [
            ("page", "spawned", "load_user"),
            ("page", "spawned", "load_orders"),
            ("page", "spawned", "render"),
            ("page", "awaited", "render"),
            ("load_user", "held", "lock cache"),
            ("load_orders", "held", "lock cache"),
            ("load_orders", "waited", "lock cache"),
        ]
    )


def test_aiohttp_worker() -> None:
    """Every task of the loop by its coroutine's name, with how it ended."""
    pytest.importorskip("aiohttp")
    out = run("aiohttp_worker")
    assert "9 pages, 3 missing, 180000 times 'page'" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:]}
    assert rows["fetch"][:3] == ["9", "3", "0"]
    assert rows["parse"][:3] == ["0", "0", "1"]
    assert rows["work"][:3] == ["1", "0", "0"]


def test_queue_logging() -> None:
    """The console's lines and the inspector's tasks, both from behind the queue, have the same ids."""
    out = run("queue_logging").splitlines()
    printed = dict(re.fullmatch(r"INFO (job \d) is done \[job ([0-9a-f]{16})\]", line).groups() for line in out[:5])  # type: ignore[union-attr,misc]
    assert out[5] == "5 completed, 5 log lines in them"
    for number, line in enumerate(out[6:]):
        assert line == f"{printed[f'job {number}']} {{'number': {number}}} ['INFO job {number} is done']"
    assert len(out) == 11


def test_multiple_inspectors() -> None:
    """Each inspector counts its own, and the page of both adds up."""
    out = run("multiple_inspectors")
    requests, jobs, both = re.split(r"^\w.*:\n", out, flags=re.MULTILINE)[1:]
    total = 'async_inspect_tasks_total{{name="{}"}} {}.0'.format
    assert total("request", 20) in requests
    assert "job" not in requests
    assert total("job", 200) in jobs
    assert "details kept: 5" in jobs
    for line in (total("request", 20), total("load", 20), total("job", 200)):
        assert line in both


def test_findings() -> None:
    """Every kind of finding there is, once; and with the same program put right none."""
    kinds = re.findall(r"^(\w+): ", run("findings"), re.MULTILINE)
    assert sorted(kinds) == sorted([*LINTS, "blocked_loop", "deadlock", "findings"])
    assert run("findings", "--clean") == "findings: 0\n"


def test_export_trace(tmp_path: Path) -> None:
    """Four files, one of which reads back, and the stacks of the flame graph."""
    out = run("export_trace", str(tmp_path)).splitlines()
    assert out[0] == "snapshot.json reads back equal: True"
    assert out[1:5] == ["flame.json", "snapshot.json", "tasks.csv", "trace.json"]
    assert {"  main", "  main;fetch", "  main;fetch;query", "  main;fetch;parse"} <= set(out)
    assert all(json.loads((tmp_path / name).read_text("utf-8")) for name in out[1:5] if name.endswith(".json"))


def test_analyse_log() -> None:
    """Where the time went, who waited for what, the critical path, and the one flaw; or the graph alone."""
    pytest.importorskip("orjson")
    out = run("analyse_log")
    assert re.search(r"^  lock connection  .*, 3\n    waited: query 3 x ", out, re.MULTILINE)
    assert re.search(r"^critical path: \d+ ms$", out, re.MULTILINE)
    assert re.findall(r"^(\w+): refresh ended ", out, re.MULTILINE) == ["outlives_parent"]
    assert run("analyse_log", "--mermaid").startswith("flowchart LR\n")


def test_otlp_jaeger() -> None:
    """One trace: the caller, five checkouts, and a card charged in each, one of them with an error."""
    pytest.importorskip("opentelemetry.sdk")
    lines = run("otlp_jaeger").splitlines()
    assert lines[-1] == "11 spans exported, 0 dropped"
    assert [line.split()[:2] for line in lines].count(["charge_card", "ERROR"]) == 1
    assert [line.split()[0] for line in lines].count("checkout") == 5
    assert len({line.partition("trace_id=")[2][:34] for line in lines if "trace_id=" in line}) == 1


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_otlp_jaeger_with_an_address(protocol: str) -> None:
    """What Jaeger would get: the same tree, with times, and what happened in between."""
    pytest.importorskip("opentelemetry.sdk")
    from otlp_receiver import Receiver, attributes_of
    from vendors import flaws_of

    with Receiver() as jaeger:
        # Which of the two a port speaks is told by a path, where it is not one of the usual ports.
        address = f"http://{jaeger.grpc}" if protocol == "grpc" else f"http://{jaeger.http}/v1/traces"
        assert run("otlp_jaeger", address) == "11 spans exported, 0 dropped\n"
    spans = {span.span_id: span for span in jaeger.spans}
    assert len(jaeger.spans) == len(spans) == 11
    assert [flaw for request in jaeger.requests for flaw in flaws_of(request)] == []
    assert jaeger.resource["service.name"] == "shop"
    assert len({span.trace_id for span in spans.values()}) == 1
    (root,) = [span for span in spans.values() if not span.parent_span_id]
    assert root.name == "load generator"
    cards = [span for span in spans.values() if span.name == "charge_card"]
    for card in cards:
        checkout = spans[card.parent_span_id]
        assert (checkout.name, checkout.parent_span_id) == ("checkout", root.span_id)
        assert checkout.start_time_unix_nano <= card.start_time_unix_nano <= card.end_time_unix_nano
        assert card.end_time_unix_nano - card.start_time_unix_nano >= 9_000_000
        events = {event.name for event in card.events}
        assert {"poll", "wake"} <= events
        assert ("exception" in events) == (card.status.code == 2) == (attributes_of(checkout)["order"] == 3)
    assert sum(card.status.code == 2 for card in cards) == 1
