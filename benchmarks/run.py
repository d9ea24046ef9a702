"""`make bench`: measure this interpreter, and write the table of all that were measured.

    python benchmarks/run.py                                the table of this interpreter, on stdout
    python benchmarks/run.py --out benchmarks/RESULTS.md    keep the figures in results-<version>.json next to it, and
                                                            write the table of all such files
    --json FILE     the figures as JSON
    --only a,b      these groups (see GROUPS)
    --quick         tiny counts, to try it out

Each group runs in a process of its own, with the floor measured next to it, since some peers replace parts of asyncio.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measure import FULL, QUICK

#: Group to module and function. A group of a peer that is not installed is left out.
GROUPS = {
    "spans": "bench_spans.spans",
    "unheard": "bench_spans.unheard",
    "shared": "bench_shared.shared",
    "structlog": "bench_spans.structlog_chain",
    "tasks": "bench_tasks.tasks",
    "steps": "bench_tasks.steps",
    "gc": "bench_tasks.collections",
    "memory": "bench_memory.memory",
    "replay": "bench_replay.replay",
    "sidecar": "bench_sidecar.sidecar",
    "pages": "bench_pages.pages",
    "live": "bench_pages.live_tasks",
    "deadlocks": "bench_detect.deadlocks",
    "export": "bench_export.export",
    "export tables": "bench_export.tables",
    "export pictures": "bench_export.pictures",
    "export otel": "bench_export_otel.export_otel",
    "export otel logfire": "bench_export_otel.export_otel_logfire",
    "export otel keeps up": "bench_export_otel.keeps_up",
    "compare": "bench_compare.comparisons",
    "found": "bench_found.ours",
    "found debug": "bench_found.debug",
    "found aiomonitor": "bench_found.aiomonitor",
    "asgi": "bench_asgi.middlewares",
    "otel": "bench_peers.otel",
    "otel api": "bench_peers.otel_api",
    "logfire": "bench_peers.logfire",
    "eliot": "bench_peers.eliot",
    "ddtrace": "bench_peers.ddtrace",
    "sentry": "bench_peers.sentry",
    "aiomonitor": "bench_peers.aiomonitor",
}
#: What may be missing: then the group is left out, and the report says so.
_OPTIONAL = {
    "structlog",
    "opentelemetry",
    "logfire",
    "eliot",
    "ddtrace",
    "sentry_sdk",
    "aiomonitor",
    "starlette",
    "starlette_exporter",
    "prometheus_fastapi_instrumentator",
}
_TIME_LIMIT = 480


def measure_group(group: str, quick: bool) -> dict[str, Any]:
    """The figures of one group, measured in this process."""
    module, _, function = GROUPS[group].partition(".")
    try:
        measured = getattr(importlib.import_module(module), function)(QUICK if quick else FULL)
    except ImportError as error:
        if (error.name or "").partition(".")[0] in _OPTIONAL:
            return {"missing": str(error)}
        raise
    return {"figures": measured}


def in_own_process(group: str, quick: bool) -> dict[str, Any]:
    """The figures of one group, measured in a process of its own."""
    command = [sys.executable, __file__, "--group", group, *(["--quick"] if quick else [])]
    # No peer is to look for a service of its own, or for settings of this machine's user.
    environment = {
        **os.environ,
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        "LOGFIRE_IGNORE_NO_CONFIG": "1",
        "OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE": "child",
    }
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return {"missing": f"took longer than {_TIME_LIMIT} s"}
    last = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not last.startswith("{"):
        return {"missing": (done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}")[:200]}
    found: dict[str, Any] = json.loads(last)
    return found


def measure_all(groups: list[str], quick: bool) -> dict[str, Any]:
    """The figures of all groups, with what is to be known of the interpreter and the machine."""
    figures: dict[str, float] = {}
    missing: dict[str, str] = {}
    started = time.perf_counter()
    for group in groups:
        found = in_own_process(group, quick)
        figures.update(found.get("figures", {}))
        if "missing" in found:
            missing[group] = found["missing"]
        state = f"left out: {found['missing']}" if "missing" in found else "done"
        print(f"bench: {platform.python_version()} {group}: {state}", file=sys.stderr, flush=True)
    return {
        "python": platform.python_version(),
        "build": f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}",
        "machine": f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}",
        "seconds": round(time.perf_counter() - started),
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "missing": missing,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the library and its peers side by side.")
    parser.add_argument("--quick", action="store_true", help="tiny counts: shows that it works, and no more")
    parser.add_argument("--only", default="", help="groups to measure, by comma")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--out", type=Path, help="keep the figures, and write the table of all kept ones here")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.group:
        print(json.dumps(measure_group(options.group, options.quick)))
        return

    import report

    groups = [group.strip() for group in options.only.split(",") if group.strip()] or list(GROUPS)
    unknown = [group for group in groups if group not in GROUPS]
    if unknown:
        parser.error(f"unknown groups: {', '.join(unknown)}; there are: {', '.join(GROUPS)}")
    measured = measure_all(groups, options.quick)
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    kept = [measured]
    if options.out:
        version = ".".join(measured["python"].split(".")[:2])
        keep = options.out.parent / f"results-{version}.json"
        if options.only and keep.exists():
            # A part measured again takes its place among the rest.
            before = json.loads(keep.read_text("utf-8"))
            measured["figures"] = {**before["figures"], **measured["figures"]}
            measured["missing"] = {g: why for g, why in before["missing"].items() if g not in groups} | measured[
                "missing"
            ]
        keep.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
        kept = report.kept_in(options.out.parent, "results")
        options.out.write_text(report.markdown(kept, report.kept_in(options.out.parent, "soak")), "utf-8")
    print(report.markdown(kept))


if __name__ == "__main__":
    main()
