"""The dashboard on a real Prometheus that scrapes two processes of a real service: every panel has data, and the right
data; and it is drawn, with Grafana's own components in a real browser.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import drawing
import pytest
from grafana import ALL, Asked, ask, chosen, filled, queries
from jsonschema import Draft7Validator
from rule_changes import changes

from asyncinspect_logging.exporters.families import FAMILIES
from asyncinspect_logging.ops.dashboard import dashboard

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
SHOP = ROOT / "tests" / "shared" / "shop.py"
#: Seconds of traffic. The picture in the docs is of four minutes, with 240.
BUSY = float(os.environ.get("ASYNC_INSPECT_DASHBOARD_SECONDS", "15"))
DASHBOARD = dashboard()
SHOWN = {"datasource": "Prometheus", "job": "All", "instance": "All", "name": "All"}
QUERIES = list(queries(DASHBOARD))

Totals = dict[str, Any]
Values = dict[tuple[str, ...], float]


def missing(what: str) -> NoReturn:
    if os.environ.get("CI", "").lower() in {"true", "1"}:
        pytest.fail(f"{what}, and CI accepts no skip for it")
    pytest.skip(what)


class Shop:
    """A process of the service."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.port = int(process.stdout.readline())

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answer(self) -> Totals:
        assert self.process.stdout is not None
        found: Totals = json.loads(self.process.stdout.readline())
        return found


class Seen(NamedTuple):
    """Prometheus, the totals of the processes before and after the traffic, and from when to when that was."""

    address: str
    before: list[Totals]
    after: list[Totals]
    ports: list[int]
    busy_until: float
    start: float
    end: float

    @property
    def span(self) -> float:
        return self.end - self.start

    def values(self, asked: Asked, at: float | None = None, **variables: str) -> Values:
        """What a query gives at the end, by its labels, those of the panel's legend."""
        promql = filled(asked.target["expr"], ALL | variables, span=self.span, rate=self.span)
        found = ask(self.address, promql, self.end if at is None else at)
        return {
            tuple(value for label, value in sorted(one["metric"].items()) if label != "__name__"): float(
                one["value"][1]
            )
            for one in found
        }


@pytest.fixture(scope="module")
def seen(needs_prometheus: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Nothing happens at the first scrapes and the last, so that all of the traffic is between two of them."""
    with ExitStack() as stack:
        server = stack.enter_context(needs_prometheus.Prometheus(tmp_path_factory.mktemp("prometheus")))
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(SHOP)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )
            for _ in range(2)
        ]
        for process in processes:
            stack.callback(process.kill)
        shops = [Shop(process) for process in processes]
        for number, shop in enumerate(shops):
            server.add_target(f"shop-{number}", f"127.0.0.1:{shop.port}")

        def together(*commands: str, given: Sequence[str] = ("", "")) -> list[list[Totals]]:
            for shop, one in zip(shops, given, strict=True):
                for command in commands:
                    shop.tell(command.replace("%s", one))
            return [[shop.answer() for shop in shops] for _ in commands]

        def scraped(after: float) -> None:
            for number in range(len(shops)):
                server.wait_for_scrape(f"shop-{number}", after=after)

        scraped(0)
        (before,) = together("snapshot")
        scraped(time.time())
        start = time.time() - 1
        # The loop of the second is held for longer.
        together(f"busy {BUSY / 2} %s", "deadlock", f"busy {BUSY / 2} %s", given=("0.12", "0.3"))
        busy_until = time.time()
        # One task holds each loop, so that a scrape sees it.
        together("hold 60")
        (after,) = together("snapshot")
        scraped(time.time())
        end = time.time()
        yield Seen(server.address, before, after, [shop.port for shop in shops], busy_until, start, end)


# -- what the panels are to show, from the totals of the processes --------------------------------------------------


def increase(seen: Seen, of: Callable[[Totals], Mapping[Any, float]]) -> dict[Any, float]:
    """By how much a total has grown, all processes together."""
    grown: dict[Any, float] = {}
    for sign, totals in ((-1, seen.before), (1, seen.after)):
        for one in totals:
            for key, value in of(one).items():
                grown[key] = grown.get(key, 0.0) + sign * value
    return grown


def sums(seen: Seen, of: Callable[[Totals], Mapping[Any, float]]) -> dict[Any, float]:
    found: dict[Any, float] = {}
    for one in seen.after:
        for key, value in of(one).items():
            found[key] = found.get(key, 0.0) + value
    return found


def by_name(field: str) -> Callable[[Totals], dict[str, float]]:
    return lambda totals: {name: view[field] for name, view in totals["names"].items()}


def in_all(field: str) -> Callable[[Totals], dict[str, float]]:
    return lambda totals: {"": sum(view[field] for view in totals["names"].values())}


def whole(field: str) -> Callable[[Totals], dict[str, float]]:
    return lambda totals: totals[field]  # type: ignore[no-any-return]


def lints(totals: Totals) -> dict[tuple[str, str], float]:
    return {(lint, name): count for lint, name, count in totals["lints"]}


def buckets(one: Mapping[str, Any], key: str = "") -> dict[Any, float]:
    """Of a histogram: observations in each bucket, by its upper bound."""
    return {(key, bound): count for bound, count in zip([*one["bounds"], math.inf], one["counts"], strict=True)}


def durations(totals: Totals) -> dict[Any, float]:
    """Of tasks that completed or failed, by name and bucket."""
    found: dict[Any, float] = {}
    for name, view in totals["names"].items():
        for state in {"completed", "failed"} & set(view["durations"]):
            for key, count in buckets(view["durations"][state], name).items():
                found[key] = found.get(key, 0.0) + count
    return found


def of_names(field: str) -> Callable[[Totals], dict[Any, float]]:
    def get(totals: Totals) -> dict[Any, float]:
        return {
            key: count for name, view in totals["names"].items() for key, count in buckets(view[field], name).items()
        }

    return get


def quantile(counts: Mapping[Any, float], q: float, name: str | None = None) -> float:
    """As Prometheus has it: straight lines between the bounds, and never above the largest."""
    found: dict[float, float] = {}
    for (key, bound), count in counts.items():
        if name is None or key == name:
            found[bound] = found.get(bound, 0.0) + count
    total = sum(found.values())
    rank, below, lower = q * total, 0.0, 0.0
    for bound in sorted(found):
        if below + found[bound] >= rank and found[bound]:
            return lower if bound == math.inf else lower + (bound - lower) * (rank - below) / found[bound]
        below += found[bound]
        lower = bound if bound != math.inf else lower
    return math.nan


def positive(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value > 0}


def per_second(seen: Seen, of: Callable[[Totals], Mapping[Any, float]]) -> dict[Any, float]:
    return {key: value / seen.span for key, value in increase(seen, of).items()}


OUTCOMES = ("completed", "failed", "cancelled")


def ended(seen: Seen) -> dict[str, float]:
    return {outcome: increase(seen, in_all(outcome))[""] for outcome in OUTCOMES}


def loop_lag(totals: Totals) -> dict[Any, float]:
    return buckets(totals["loop_lag"])


def lag_of_each(seen: Seen, q: float) -> list[float]:
    return [
        quantile({key: count - loop_lag(before)[key] for key, count in loop_lag(after).items()}, q)
        for before, after in zip(seen.before, seen.after, strict=True)
    ]


def long_polls(totals: Totals) -> dict[str, float]:
    return {
        name: sum(count for (_, bound), count in buckets(view["poll_durations"]).items() if bound > 0.1)
        for name, view in totals["names"].items()
    }


def blocked_by_name(seen: Seen) -> dict[str, float]:
    queued = per_second(seen, lambda one: {name: v["scheduled_delays"]["sum"] for name, v in one["names"].items()})
    ran = per_second(seen, by_name("busy"))
    return {name: live - ran[name] - queued[name] for name, live in sums(seen, by_name("live")).items()}


def poll_counts(seen: Seen) -> dict[str, float]:
    """Cumulative, as it is asked for; Grafana takes the difference."""
    found: dict[float, float] = {}
    for (_, bound), count in increase(seen, of_names("poll_counts")).items():
        found[bound] = found.get(bound, 0.0) + count
    below = 0.0
    cumulative = {}
    for bound in sorted(found):
        below += found[bound]
        cumulative["+Inf" if bound == math.inf else f"{bound:.1f}"] = below
    return cumulative


def mean_durations(seen: Seen) -> dict[str, float]:
    def both(totals: Totals) -> dict[Any, float]:
        found: dict[Any, float] = {}
        for name, view in totals["names"].items():
            for state in {"completed", "failed"} & set(view["durations"]):
                one = view["durations"][state]
                for key, value in (("sum", one["sum"]), ("count", sum(one["counts"]))):
                    found[name, key] = found.get((name, key), 0.0) + value
        return found

    grown = increase(seen, both)
    return {
        name: grown[name, "sum"] / grown[name, "count"] for name, key in grown if key == "count" and grown[name, key]
    }


def counts_of(seen: Seen) -> dict[str, float]:
    found: dict[str, float] = {}
    for (name, _), count in increase(seen, durations).items():
        found[name] = found.get(name, 0.0) + count
    return {name: count for name, count in found.items() if count}


def quantiles(seen: Seen, q: float) -> dict[str, float]:
    grown = increase(seen, durations)
    return {name: quantile(grown, min(q, 1.0), name) for name in counts_of(seen)}


#: What a query gives, from the totals; exactly so, or within some per cent, since `rate()` guesses what was between the
#: ends of the range and the scrapes next to them.
EXACT: dict[str, Callable[[Seen], Mapping[Any, float]]] = {
    "Processes A": lambda seen: {"": len(seen.after)},
    "Total tasks A": lambda seen: sums(seen, in_all("spawned")),
    "Active tasks A": lambda seen: sums(seen, in_all("live")),
    "Deadlock count A": lambda seen: {"": sum(one["deadlocks"] for one in seen.after)},
    "Findings A": lambda seen: {"": sum(sums(seen, lints).values())},
    "Running tasks A": lambda seen: {"": sums(seen, whole("states"))["running"]},
    "Running tasks B": lambda seen: {"": sums(seen, whole("states"))["pending"]},
    "Blocked tasks A": lambda seen: {"": sums(seen, whole("states"))["blocked"]},
    "Blocked tasks B": lambda seen: sums(seen, in_all("live")),
    "Live tasks by state A": lambda seen: {
        state: sums(seen, whole("states"))[state] for state in ("pending", "running", "blocked")
    },
    "Live tasks by name A": lambda seen: positive(sums(seen, by_name("live"))),
    "Findings over time A": lambda seen: by_lint(seen),
    "Findings over time B": lambda seen: {"": sum(one["deadlocks"] for one in seen.after)},
    "Findings by name A": lambda seen: sums(seen, lints),
}
CLOSE: dict[str, Callable[[Seen], Mapping[Any, float]]] = {
    "Task creation rate A": lambda seen: per_second(seen, in_all("spawned")),
    "Failed tasks A": lambda seen: {"": ended(seen)["failed"] / sum(ended(seen).values())},
    "Slowest tasks C": mean_durations,
    "Slowest tasks D": counts_of,
    "Poll count distribution A": poll_counts,
    "Completed and failed A": lambda seen: {"": ended(seen)["completed"] / seen.span},
    "Completed and failed B": lambda seen: {"": ended(seen)["failed"] / seen.span},
    "Completed and failed C": lambda seen: {"": ended(seen)["cancelled"] / seen.span},
    "Blocked tasks by name A": lambda seen: positive(blocked_by_name(seen)),
    "Failed tasks by name A": lambda seen: positive(per_second(seen, by_name("failed"))),
    "Event rate by type A": lambda seen: per_second(seen, whole("events")),
    "Polls per wake A": lambda seen: {
        "": increase(seen, whole("events"))["poll"] / increase(seen, whole("events"))["wake"]
    },
    "Spawn rate A": lambda seen: {"": per_second(seen, whole("events"))["spawn"]},
    "Spawn rate B": lambda seen: {"": per_second(seen, whole("events"))["drop"]},
    "Long polls A": lambda seen: positive({name: 60 * v for name, v in per_second(seen, long_polls).items()}),
    "Loop time by name A": lambda seen: positive(per_second(seen, by_name("busy"))),
    "Drops A": lambda seen: {reason: 60 * v for reason, v in per_second(seen, whole("dropped")).items()},
    "Memory of the inspector A": lambda seen: sums(seen, whole("memory")),
}
#: Quantiles, with all of them shifted: where few are at the place, the one beside may be the one.
QUANTILES: dict[str, Callable[[Seen, float], Mapping[Any, float]]] = {
    "Loop lag A": lambda seen, d: {"": max(lag_of_each(seen, 0.99 + d / 3))},
    "Task duration A": lambda seen, d: {"": quantile(increase(seen, durations), 0.5 + d)},
    "Task duration B": lambda seen, d: {"": quantile(increase(seen, durations), 0.95 + d)},
    "Task duration C": lambda seen, d: {"": quantile(increase(seen, durations), 0.99 + d)},
    "Slowest tasks A": lambda seen, d: quantiles(seen, 0.99 + d),
    "Slowest tasks B": lambda seen, d: quantiles(seen, 0.5 + d),
    "Loop lag and queueing A": lambda seen, d: {
        f"127.0.0.1:{port}": lag for port, lag in zip(seen.ports, lag_of_each(seen, 0.99 + d / 3), strict=True)
    },
    "Loop lag and queueing B": lambda seen, d: {"": quantile(increase(seen, loop_lag), 0.5 + d)},
    "Loop lag and queueing C": lambda seen, d: {"": quantile(increase(seen, of_names("scheduled_delays")), 0.95 + d)},
}


#: Metrics that stand for each other in this traffic: nearly all tasks complete, as many fail as are cancelled, and
#: workers wait for their turn about as long as they run.
SAME = {
    "Blocked tasks by name A: scheduled_seconds -> poll_duration_seconds",
    "Task creation rate A: tasks_total -> tasks_completed_total",
    "Failed tasks A: tasks_completed_total -> tasks_total",
    "Failed tasks A: tasks_failed_total -> tasks_cancelled_total",
    "Failed tasks A: tasks_cancelled_total -> tasks_failed_total",
    "Failed tasks A: tasks_failed_total -> task_busy_seconds_total",
    "Failed tasks A: tasks_failed_total -> task_idle_seconds_total",
    "Failed tasks A: tasks_cancelled_total -> task_busy_seconds_total",
    "Failed tasks A: tasks_cancelled_total -> task_idle_seconds_total",
    "Completed and failed A: tasks_completed_total -> tasks_total",
    "Loop lag and queueing C: scheduled_seconds -> poll_duration_seconds",
}


def by_lint(seen: Seen) -> dict[str, float]:
    found: dict[str, float] = {}
    for (lint, _), count in sums(seen, lints).items():
        found[lint] = found.get(lint, 0.0) + count
    return found


def labelled(values: Mapping[Any, float]) -> Values:
    """With the values of labels as keys, in the order of the labels' names."""
    return {key if isinstance(key, tuple) else (key,) if key else (): value for key, value in values.items()}


def test_the_service_has_something_of_everything(seen: Seen) -> None:
    """Live, blocked, failed and cancelled tasks, findings of several kinds, a deadlock, long polls, and drops."""
    grown = increase(seen, whole("dropped"))
    assert min(ended(seen).values()) > 10
    assert sums(seen, whole("states"))["blocked"] > 5
    assert sums(seen, whole("states"))["running"] == 2
    assert {"long_poll", "self_wakes"} <= set(by_lint(seen))
    assert [one["deadlocks"] for one in seen.after] == [1, 1]
    assert min(grown[reason] for reason in ("max_tasks", "max_events", "max_names")) > 0
    assert sum(long_polls(one)["report"] for one in seen.after) > 1


def test_every_query_is_checked() -> None:
    """By its panel's title and its letter."""
    assert sorted([*EXACT, *CLOSE, *QUANTILES]) == sorted(asked.key for asked in QUERIES)


@pytest.mark.parametrize("asked", QUERIES, ids=lambda asked: asked.key)
def test_a_panel_shows_what_there_is(seen: Seen, asked: Asked) -> None:
    """Every query has data, and it is that of the processes' own snapshots."""
    found = seen.values(asked)
    assert found
    fits(seen, asked, found)


def fits(seen: Seen, asked: Asked, found: Values) -> None:
    """Fail if that is not what the query is to give."""
    assert not any(math.isnan(value) for value in found.values())
    if asked.key in EXACT:
        assert found == labelled(EXACT[asked.key](seen))
    elif asked.key in QUANTILES:
        low, high = (labelled(QUANTILES[asked.key](seen, shift)) for shift in (-0.03, 0.01))
        assert found.keys() == high.keys()
        for key in found.keys() - few(seen):
            assert 0.85 * low[key] - 0.001 <= found[key] <= 1.15 * high[key] + 0.001, key
    else:
        expected = {key: value for key, value in labelled(CLOSE[asked.key](seen)).items() if key in found or value}
        if "topk(10" in asked.target["expr"]:
            # Of the last of them and the next, either may be there.
            assert len(found) == min(10, len(expected))
            rest = [expected[key] for key in expected.keys() - found.keys() - new(seen)]
            assert min(found.values()) > 0.8 * max(rest, default=0)
        else:
            assert found.keys() == expected.keys()
        # Of four tasks, what `increase()` adds for the ends of the range is much on a busy machine.
        uncertain = new(seen) | (few(seen) if asked.key == "Slowest tasks D" else set())
        for key in found.keys() - uncertain:
            # What is taken off the blocked tasks is a small part of them.
            within = 0.08 if asked.key.startswith("Blocked") else 0.15
            assert found[key] == pytest.approx(expected[key], rel=within, abs=1e-3), key


#: Of each type and with the same labels: what may be asked for in place of a metric.
ALIKE = {
    family.sample.removeprefix("async_inspect_"): [
        other.sample.removeprefix("async_inspect_")
        for other in FAMILIES
        if other is not family and (other.type, other.labels) == (family.type, family.labels)
    ]
    for family in FAMILIES
}


def changed(promql: str) -> Iterator[tuple[str, str]]:
    """The query with another metric, operator of arithmetic or label to add up by, one at a time, and what that is."""
    for change in changes(promql):
        # Each process has a job of its own.
        same = "job, instance" in change.was and change.now in ("by (le, job)", "by (le, instance)")
        if (change.was in "+-*/" or change.was.startswith("by ")) and not same:
            yield f"{change.was} -> {change.now}", change.expr
    for found in re.finditer(r"async_inspect_(\w+?)(_bucket|_sum|_count)?(?=\{)", promql):
        for other in ALIKE[found[1]]:
            made = f"{promql[: found.start()]}async_inspect_{other}{found[2] or ''}{promql[found.end() :]}"
            yield f"{found[1]} -> {other}", made


def test_a_changed_query_is_found(seen: Seen) -> None:
    """It gives something else than what there is."""
    passed = set()
    for asked in QUERIES:
        for what, promql in changed(asked.target["expr"]):
            wrong = Asked(asked.panel, {**asked.target, "expr": promql})
            with contextlib.suppress(AssertionError, KeyError, urllib.error.HTTPError):
                fits(seen, wrong, seen.values(wrong))
                passed.add(f"{asked.key}: {what}")
    assert passed <= SAME, sorted(passed - SAME)


def test_where_nothing_was_counted_there_is_a_zero(seen: Seen) -> None:
    """In the panels that are to say so."""
    zeros = {asked.key for asked in QUERIES if seen.values(asked, job="nobody") == {(): 0}}
    assert zeros == {"Processes A", "Total tasks A", "Deadlock count A", "Findings A"}


def few(seen: Seen) -> set[tuple[str, ...]]:
    """Names with few tasks."""
    return {(name,) for name in sums(seen, by_name("spawned")) if counts_of(seen).get(name, 0) < 20}


def new(seen: Seen) -> set[tuple[str, ...]]:
    """Names that appear in the time range: their first tasks are there before their first scrape."""
    return {(name,) for one in seen.after for name in one["names"] if any(name not in b["names"] for b in seen.before)}


def test_the_filters(seen: Seen) -> None:
    """Of one name with braces, of two, and of one process: what those have, and no more."""
    total = next(asked for asked in QUERIES if asked.key == "Total tasks A")
    spawned = sums(seen, by_name("spawned"))
    for names in (["GET /users/{id}"], ["GET /users/{id}", "POST /orders"]):
        assert seen.values(total, name=chosen(names)) == {(): sum(spawned[name] for name in names)}
    for number, port in enumerate(seen.ports):
        one = {(): in_all("spawned")(seen.after[number])[""]}
        assert seen.values(total, instance=chosen([f"127.0.0.1:{port}"])) == one
        assert seen.values(total, job=chosen([f"shop-{number}"])) == one
    live = next(asked for asked in QUERIES if asked.key == "Live tasks by name A")
    assert seen.values(live, name="transfer") == {("transfer",): 4}


def test_tasks_that_are_stuck_are_blocked(seen: Seen) -> None:
    """The four of the deadlocks, in one wait since; of which the seconds that are counted as idle know nothing yet."""
    blocked = next(asked for asked in QUERIES if asked.key == "Blocked tasks by name A")
    assert seen.values(blocked, name="transfer") == {("transfer",): pytest.approx(4, abs=0.01)}
    idle = 'sum(rate(async_inspect_task_idle_seconds_total{name="transfer"}[$__range]))'
    assert float(ask(seen.address, filled(idle, span=seen.span, rate=seen.span), seen.end)[0]["value"][1]) < 0.1


def test_the_variables_offer_what_there_is(seen: Seen) -> None:
    """Jobs, instances and names."""
    offered = {}
    for variable in DASHBOARD["templating"]["list"][1:]:
        found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
        assert found
        promql = filled(f"group by ({found[2]}) ({found[1]})", span=seen.span, rate=seen.span)
        offered[variable["name"]] = {one["metric"][found[2]] for one in ask(seen.address, promql, seen.end)}
    assert offered == {
        "job": {"shop-0", "shop-1"},
        "instance": {f"127.0.0.1:{port}" for port in seen.ports},
        "name": set(seen.after[0]["names"]) | set(seen.after[1]["names"]),
    }


@pytest.fixture(scope="module")
def grafana_schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if reason := drawing.missing(browser=False):
        missing(reason)
    return drawing.schema(tmp_path_factory.mktemp("schema"))


def wrong(schema: dict[str, Any], part: Sequence[str], instance: Any) -> list[str]:
    """What Grafana's schema has against a part of the dashboard."""
    of = schema["definitions"]["Checked"]
    for key in part:
        of = of["properties"][key]
    validator = Draft7Validator({**of, "definitions": schema["definitions"]})
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(instance)]


def test_it_is_valid_by_grafanas_own_schema(grafana_schema: dict[str, Any]) -> None:
    """The dashboard, and the options of each panel by those of its plugin, with nothing that Grafana does not know."""
    for made in (DASHBOARD, dashboard(title="Shop", uid="u", datasource="p", job="j", name_label="task_name")):
        assert wrong(grafana_schema, ["dashboard"], made) == []
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert wrong(grafana_schema, ["options", panel["type"]], panel["options"]) == []
            custom = panel["fieldConfig"]["defaults"].get("custom")
            assert custom is None or wrong(grafana_schema, ["custom", panel["type"]], custom) == []


def test_the_schema_finds_what_is_wrong(grafana_schema: dict[str, Any]) -> None:
    """A misspelt key, a type and a word that is not one of an enumeration."""
    for path, value in (("titel", "x"), ("uid", 7), ("graphTooltip", 5)):
        assert wrong(grafana_schema, ["dashboard"], DASHBOARD | {path: value})
    options = next(panel["options"] for panel in DASHBOARD["panels"] if panel["type"] == "stat")
    assert wrong(grafana_schema, ["options", "stat"], options | {"graphMode": "volume"})


def test_it_is_drawn(seen: Seen, tmp_path: Path) -> None:
    """Grafana's own components make a picture of it, without an error, and every panel shows what was answered."""
    if reason := drawing.missing():
        missing(reason)
    drawn = drawing.draw(DASHBOARD, seen.address, seen.start, seen.busy_until, tmp_path, SHOWN)
    picture = os.environ.get("ASYNC_INSPECT_DASHBOARD_PICTURE")
    if picture:
        Path(picture).write_bytes(drawn.png)
    assert drawn.errors == []
    for panel in DASHBOARD["panels"]:
        text = drawn.texts[panel["title"]]
        assert panel["title"] in text
        assert "No data" not in text
        if panel["type"] == "timeseries":
            # Axes, lines, and the legend of what has one name only.
            assert drawn.inked[panel["title"]] > 500
            plain = [target["legendFormat"] for target in panel["targets"] if "{{" not in target["legendFormat"]]
            assert all(legend in text for legend in plain)
    for name in sums(seen, by_name("spawned")).keys() - {"hold", "transfer", "subscription", "service", "worker"}:
        assert name in drawn.texts["Slowest tasks"]
    assert "long_poll\nreport" in drawn.texts["Findings by name"]
    assert drawn.texts["Deadlock count"].split()[-1] == "2"
    assert drawn.texts["Processes"].split()[-1] == "2"
    assert "blocked" in drawn.texts["Live tasks by state"]
    assert "POST /orders" in drawn.texts["Failed tasks by name"]
    assert len(drawn.png) < 1_000_000
