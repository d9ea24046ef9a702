"""The table of RESULTS.md: goals, figures of each interpreter, and the peers'; and what the last soak gave.

python benchmarks/report.py    # write RESULTS.md anew, of the figures that are kept beside it
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["ROWS", "Row", "kept_in", "markdown", "verdict"]


class Row(NamedTuple):
    """A line of the table. `figure`: its key; `unit`: F, ×, %, B, µs or ms; `goal`: at most this, on these versions."""

    what: str
    figure: str
    unit: str
    goal: float | None = None
    peers: tuple[tuple[str, str], ...] = ()
    versions: tuple[str, ...] = ()


ROWS = (
    Row(
        "span enter and exit, handler attached, all metrics counted",
        "span",
        "F",
        4,
        (
            ("the same metrics by hand with prometheus_client", "by hand"),
            ("OpenTelemetry SDK", "otel"),
            ("logfire", "logfire"),
            ("eliot", "eliot"),
            ("ddtrace", "ddtrace"),
            ("Sentry, a span in a transaction", "sentry"),
            ("Sentry, a transaction", "sentry transaction"),
            ("one `logger.info(…, extra=…)`", "log"),
            ("two of them", "two logs"),
        ),
    ),
    Row("the same in an asyncio task", "span.task", "F", 4),
    Row("the same inside another span", "span.nested", "F"),
    Row("the same inside a driven coroutine", "span.driven", "F"),
    Row("the same against one `logger.info(…, extra=…)`", "span.log", "×", 1, versions=("3.11",)),
    Row("the same with three fields", "span.fields", "F", 5),
    Row(
        "span in a process that shares its counts with others, exact at a SIGKILL",
        "shared.span",
        "F",
        None,
        (("the same metrics by hand with prometheus_client in its multiprocess mode", "shared.by hand"),),
    ),
    Row("span when nobody listens", "span.unheard", "F", 1.6, (("OpenTelemetry API without SDK", "otel api"),)),
    Row(
        "span through a structlog chain, above the same chain with a processor that drops",
        "structlog",
        "F",
        5,
        (("the whole of it", "structlog.whole"), ("the chain that drops", "structlog.dropping")),
    ),
    Row("the same with our processor as the first of the chain, in all", "structlog.first", "F"),
    Row(
        "a request under the ASGI middleware, against one to the bare Starlette application",
        "asgi",
        "×",
        None,
        (
            ("where nobody listens", "asgi.unheard"),
            ("OpenTelemetry's ASGI middleware, SDK", "asgi.otel"),
            ("starlette-exporter", "asgi.starlette-exporter"),
            ("prometheus-fastapi-instrumentator", "asgi.instrumentator"),
        ),
    ),
    Row(
        "a task under `install()`, all metrics, against a bare `create_task`",
        "task",
        "×",
        1.6,
        (
            ("hand-written factory with a span and counters", "task.by hand"),
            ("the least that counts the same, without a guard (least.py)", "task.least"),
            ("OpenTelemetry asyncio", "task.otel"),
            ("aiomonitor", "task.aiomonitor"),
            ("ddtrace", "task.ddtrace"),
            ("ddtrace, in a trace", "task.ddtrace in a trace"),
            ("Sentry", "task.sentry"),
            ("Sentry, in a transaction", "task.sentry in a transaction"),
            ("asyncio debug mode", "task.debug"),
        ),
    ),
    Row(
        "the same, all tasks made before the first one runs",
        "task.together",
        "×",
        peers=(("the least that counts the same", "together.least"),),
    ),
    Row(
        "a step under a driver, against a bare `await asyncio.sleep(0)`, on asyncio",
        "asyncio.step",
        "×",
        1.3,
        (("hand-written timed generator", "asyncio.generator"), ("timed wrapper object", "asyncio.object")),
    ),
    Row(
        "the same on uvloop",
        "uvloop.step",
        "×",
        peers=(("hand-written timed generator", "uvloop.generator"), ("timed wrapper object", "uvloop.object")),
    ),
    Row("a step of an undriven coroutine that holds a plain span, on asyncio", "asyncio.held", "×"),
    Row("rendering a page of 1,000 names, all families, against `generate_latest`", "page", "×", 0.1),
    Row("that page", "page.ours_ms", "ms", peers=(("`generate_latest`", "page.latest_ms"),)),
    Row("the scrape with 100,000 live spans against the one with 10", "scrape.plain", "×", 1.2),
    Row("the same with 100,000 driven tasks", "scrape.driven", "×", 1.2),
    Row("a look for deadlocks with 10,000 tasks that wait for 1,000 locks", "deadlocks.look_ms", "ms"),
    Row("what all detectors take of one core while these wait", "deadlocks.core", "%", 5),
    Row("a free `asyncio.Lock` that reports, against one that does not", "deadlocks.lock", "×"),
    Row("the same, a `detect.sync.Lock`", "deadlocks.drop_in", "×"),
    Row("an `async with` of that `asyncio.Lock`", "deadlocks.lock_us", "µs"),
    Row("8,000 tasks to a JSON file, against a bare loop of `json.dumps` over the same dicts", "export.json", "×"),
    Row("the same to CSV", "export.csv", "×"),
    Row("the same to a Chrome trace", "export.trace", "×"),
    Row("the same to a flame graph", "export.flame", "×"),
    Row("reading that JSON file to a snapshot", "export.read", "×"),
    Row("memory that a million tasks to JSON take more than 40,000", "export.json.more_mb", "MB", 1),
    Row("the same to CSV", "export.csv.more_mb", "MB", 1),
    Row("the same to a Chrome trace", "export.trace.more_mb", "MB", 5),
    Row("the same to a flame graph", "export.flame.more_mb", "MB", 5),
    Row(
        "a record of a log at level DEBUG read back, against a bare loop of `orjson.loads` over the same lines",
        "replay.debug",
        "×",
        3,
    ),
    Row("the same at level TRACE", "replay.trace", "×", 3),
    Row("that record at level DEBUG", "replay.debug_us", "µs", 4, (("the bare loop", "replay.debug.bare_us"),)),
    Row("that record at level TRACE", "replay.trace_us", "µs", 4, (("the bare loop", "replay.trace.bare_us"),)),
    Row("two runs of the same program, `p50 > 1x`: called slower", "compare.1.p50.false", "%", 1),
    Row("a run with a step 20 % slower beside one without, `p50 > 1x`: not found", "compare.1.p50.missed", "%", 5),
    Row("four runs a side, `p1 > 1x`: called slower", "compare.4.p1.false", "%", 1),
    Row("four runs a side, `p1 > 1x`: not found", "compare.4.p1.missed", "%", 5),
    Row("eight runs a side, `p50 > 1x`: called slower", "compare.8.p50.false", "%", 1),
    Row("eight runs a side, `p50 > 1x`: not found", "compare.8.p50.missed", "%", 5),
    Row("a sidecar catching up with such a log, against the replay of the same file", "sidecar.follow", "×", 2),
    Row("the same read as a stream of tasks, at level DEBUG", "replay.debug.tasks", "×"),
    Row("the same at level TRACE", "replay.trace.tasks", "×"),
    Row("`stats` of a log at level DEBUG, against the replay of the same file", "replay.debug.stats", "×"),
    Row("that, for a record", "replay.debug.stats_us", "µs"),
    Row("`check` of that log, against its replay", "replay.debug.check", "×"),
    Row("that, for a record", "replay.debug.check_us", "µs"),
    Row(
        "memory per live span (tracemalloc, 10,000 open)",
        "memory",
        "B",
        800,
        (
            ("a bare span object", "memory.bare"),
            ("eliot", "memory.eliot"),
            ("ddtrace", "memory.ddtrace"),
            ("OpenTelemetry", "memory.otel"),
            ("logfire", "memory.logfire"),
        ),
    ),
    Row("the same with three fields", "memory.fields", "B"),
    Row("a span on the thread that makes it while an exporter passes on all, against one without", "otlp.append", "×"),
    Row(
        "a span with three fields on that thread",
        "otlp.thread.ours",
        "µs",
        None,
        (("OpenTelemetry BatchSpanProcessor", "otlp.thread.otel"), ("logfire", "otlp.thread.logfire")),
    ),
    Row(
        "the same until it is delivered over OTLP/HTTP, all threads",
        "otlp.process.ours",
        "µs",
        50,
        (("OpenTelemetry BatchSpanProcessor", "otlp.process.otel"), ("logfire", "otlp.process.logfire")),
    ),
    Row(
        "cores that take 20,000 spans a second, made and delivered",
        "otlp.keeps_up.core",
        "",
        1,
    ),
    Row("how far what is delivered meanwhile is behind these", "otlp.keeps_up.behind", "%", 2),
    Row(
        "delivered a second",
        "otlp.keeps_up.delivered",
        "",
        peers=(("made", "otlp.keeps_up.made"), ("dropped", "otlp.keeps_up.dropped")),
    ),
    Row(
        "memory per driven task, beyond a bare task's", "memory.task", "B", peers=(("a bare task", "memory.task_bare"),)
    ),
    Row("memory of a name, of 10,000", "memory.name", "B"),
    Row("that, and of what is kept of the page when it was served", "memory.name_served", "B"),
    Row(
        "young garbage collections per 1,000 tasks under `install()`, against a bare run's",
        "gc",
        "×",
        2,
        (("OpenTelemetry", "gc.otel"), ("logfire", "gc.logfire")),
    ),
)


def _version(measured: Mapping[str, Any]) -> str:
    return ".".join(measured["python"].split(".")[:2])


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    digits = 0 if unit == "B" or value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def verdict(row: Row, runs: Sequence[Mapping[str, Any]]) -> str:
    """ "met", "missed", "missed on 3.13"; "" without a goal, "not measured" without a figure."""
    if row.goal is None:
        return ""
    held = [run for run in runs if not row.versions or _version(run) in row.versions]
    figures = {_version(run): run["figures"][row.figure] for run in held if row.figure in run["figures"]}
    if not figures:
        return "not measured"
    missed = [version for version, figure in figures.items() if figure > row.goal]
    if not missed:
        return "met"
    return "**missed**" if len(missed) == len(figures) else f"**missed** on {', '.join(missed)}"


def _peers(row: Row, runs: Sequence[Mapping[str, Any]]) -> str:
    told = []
    for name, figure in row.peers:
        values = [run["figures"].get(figure) for run in runs]
        if any(value is not None for value in values):
            told.append(f"{name} {' / '.join(_shown(value, row.unit) for value in values)}")
    return "; ".join(told)


def _goal(row: Row) -> str:
    if row.goal is None:
        return ""
    if row.figure == "span.log":
        return f"< 1 × on {row.versions[0]}"
    return f"≤ {row.goal:g} {row.unit}"


#: Tools whose findings are counted: the part of a figure's key, and what it stands for.
_FINDERS = (("ours", "this library"), ("debug", "asyncio debug mode"), ("aiomonitor", "aiomonitor"))


def _of_found(run: Mapping[str, Any], tool: str) -> dict[str, dict[str, float]]:
    """The figures `found/<tool>/<fault>/<program>` of a run: by fault, 1 or 0 for each program."""
    found: dict[str, dict[str, float]] = {}
    for key, value in run["figures"].items():
        if key.startswith(f"found/{tool}/"):
            _, _, fault, program = key.split("/", 3)
            found.setdefault(fault, {})[program] = value
    return found


def _score(found: Mapping[str, Mapping[str, float]]) -> tuple[int, int, int, int]:
    """Programs with a fault, those of them that were found, false alarms, programs without a fault."""
    faults = [programs for fault, programs in found.items() if fault not in ("correct", "astray")]
    right = found.get("correct", {})
    alarms = sum(right.values()) + sum(found.get("astray", {}).values())
    return sum(map(len, faults)), int(sum(sum(each.values()) for each in faults)), int(alarms), len(right)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def _findings(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The section on what is found, if that was measured."""
    measured = {tool: [_of_found(run, tool) for run in runs] for tool, _ in _FINDERS}
    measured = {tool: each for tool, each in measured.items() if any(each)}
    if not measured:
        return
    first = next(found for each in measured.values() for found in each if found)
    versions = " / ".join(_version(run) for run in runs)
    scores = {tool: [_score(found) for found in each] for tool, each in measured.items()}
    faults, _, _, right = _score(first)

    def line(what: str, count: object, cell: Any) -> str:
        cells = (" / ".join(cell(tool, index) for index in range(len(runs))) for tool in measured)
        return f"| {what} | {count} | {' | '.join(cells)} |"

    def found_of(fault: str) -> Any:
        def cell(tool: str, index: int) -> str:
            found = measured[tool][index]
            return f"{sum(found[fault].values()):.0f}" if fault in found else "–"

        return cell

    yield from (
        "",
        "## Findings: recall and precision",
        "",
        "Small programs, each in an event loop of its own: some with a fault, and some that look like them and have",
        "none (found_programs.py). Found is a fault that the tool named of its own accord; precision is the part of",
        f"all alarms that were right. Figures are those of {versions}. Thresholds were lowered to 0.1 to 0.3 s.",
        "",
        f"| fault | programs | {' | '.join(name for tool, name in _FINDERS if tool in measured)} |",
        f"| --- | ---: | {' | '.join('---:' for _ in measured)} |",
    )
    for fault, programs in first.items():
        if fault not in ("correct", "astray"):
            yield line(fault, len(programs), found_of(fault))
    yield line("**recall**", faults, lambda tool, i: _percent(scores[tool][i][1], scores[tool][i][0]))
    yield line("false alarms", right, lambda tool, i: str(scores[tool][i][2]) if scores[tool][i][0] else "–")
    yield line(
        "**precision**", "", lambda tool, i: _percent(scores[tool][i][1], scores[tool][i][1] + scores[tool][i][2])
    )
    yield ""
    yield from _by_name(measured.get("ours", []), [_version(run) for run in runs])
    yield from (
        "- aiomonitor shows the tasks and their stacks to who asks, and judges nothing. A deadlock can be read off",
        "  them; that is not counted as found.",
        "- `python -m asyncio ps` and `pstree` need Python 3.14 and were not run. They show tasks and what awaits",
        "  what; of these faults `pstree` names one, tasks that await each other.",
    )


def _by_name(ours: Sequence[Mapping[str, Mapping[str, float]]], versions: Sequence[str]) -> Iterator[str]:
    """What this library did not find, and where it raised a false alarm, with the versions where that was so."""
    missed: dict[str, list[str]] = {}
    false: dict[str, list[str]] = {}
    for version, found in zip(versions, ours, strict=False):
        for fault, programs in found.items():
            wrong, kept = (1.0, false) if fault in ("correct", "astray") else (0.0, missed)
            for program, value in programs.items():
                if value == wrong:
                    kept.setdefault(program, []).append(version)
    for what, kept in (("Not found by this library", missed), ("Its false alarms", false)):
        told = "; ".join(f"{program} ({', '.join(where)})" for program, where in kept.items())
        yield f"- {what}: {told or 'none'}."


def _soak(soaks: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The section on the soaks, if there were any; each tells of itself what it wrote down."""
    if not soaks:
        return
    yield from (
        "",
        "## Soak",
        "",
        "Written by `make soak`: threads and event loops begin spans of every outcome while /metrics is scraped, the",
        "process forks, logging is set up anew, tasks are cancelled, fields cannot be shown, the disk under the log is",
        "full, and collectors are dead (tests/soak). A trouble is an error in the application, a counter that is not",
        "exact, a page that is not valid, memory that has grown, or a thread or file descriptor that is left.",
    )
    for soak in soaks:
        yield from ("", f"{soak['build']}; {soak['machine']}; {soak['at']}:", "", "| what | figure |", "| --- | --- |")
        yield from (f"| {what} | {value} |" for what, value in soak["table"])
        if soak.get("troubles"):
            yield from (
                "",
                "What went wrong:",
                "",
                *(f"    {line}" for line in "\n".join(soak["troubles"]).split("\n")),
            )


def kept_in(folder: Path, what: str) -> list[dict[str, Any]]:
    """The figures of all interpreters that are kept in a folder, of `what`: "results" or "soak"."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(f"{what}-*.json"))]


def markdown(runs: Sequence[Mapping[str, Any]], soaks: Sequence[Mapping[str, Any]] = ()) -> str:
    """The whole of RESULTS.md for the runs, and the soaks, of one or more interpreters."""
    runs = sorted(runs, key=lambda run: [int(part) for part in _version(run).split(".")])
    versions = [_version(run) for run in runs]
    lines = [
        "# Benchmark results",
        "",
        "Written by `make bench`. F, the floor, is a class-based context manager that sets and resets a",
        "ContextVar and reads the clock twice. Every figure is the median, over interleaved rounds in one process,",
        "of the ratio to the floor (or to what the line names) in the same round, in processor time, with the",
        "garbage collector on. The peers' figures stand in the order of the columns.",
        "",
        *(f"- {run['build']}; {run['machine']}" for run in runs),
        "",
        f"| what | goal | {' | '.join(versions)} | | peers ({' / '.join(versions)}) |",
        f"| --- | --- | {' | '.join('---' for _ in versions)} | --- | --- |",
    ]
    for row in ROWS:
        figures = [_shown(run["figures"].get(row.figure), row.unit) for run in runs]
        if any(figure != "–" for figure in figures) or row.goal is not None:
            lines.append(
                f"| {row.what} | {_goal(row)} | {' | '.join(figures)} | {verdict(row, runs)} | {_peers(row, runs)} |"
            )
    lines += _findings(runs)
    left_out = sorted({f"{group} ({_version(run)}): {why}" for run in runs for group, why in run["missing"].items()})
    if left_out:
        lines += ["", "Left out:", "", *(f"- {line}" for line in left_out)]
    lines += _soak(soaks)
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    (here / "RESULTS.md").write_text(markdown(kept_in(here, "results"), kept_in(here, "soak")), "utf-8")
