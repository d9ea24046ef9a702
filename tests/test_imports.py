"""The modules know only what stands to the left of them on the way from a span to a page."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import asyncinspect_logging

PACKAGE = Path(asyncinspect_logging.__file__).parent
#: The inspector's side: what spans, routes and drivers must never know of.
BEHIND = {
    "inspector",
    "announced",
    "placing",
    "books",
    "summary",
    "retention",
    "totals",
    "views",
    "told",
    "telling",
    "checkpoint",
    "config",
}
FRONT = {
    "spans",
    "driven",
    "driver",
    "drivers",
    "wakes",
    "tracing",
    "steps",
    "opened",
    "routing",
    "records",
    "decorate",
    "eager",
    "in_front",
    "detect/loop",
    "detect/sync",
    "detect/methods",
    "detect/primitives",
    "detect/held",
    "detect/owners",
    "detect/saying",
    "detect/timers",
    "detect/awaited",
    "detect/deadlocks",
}
#: What an exporter may take from outside its own package.
FOR_EXPORTERS = {
    "bridge",
    "catalogue",
    "clock",
    "config",
    "diagnostics",
    "errors",
    "histograms",
    "inspector",
    "nesting",
    "process",
    "snapshot",
    "stacks",
    "stacktraces",
    "traceparent",
}
FOR_EXPORTERS |= {"states", "streams"}
#: And, of the application's logging, whether it brings spans, and why none.
FOR_EXPORTERS |= {"feeding", "unheard"}
#: And what counts the spans of a process in a file that exporters of other processes read.
SHARED = {"multiprocess", "totals"}

FOR_ANALYSIS = {"analysis", "catalogue", "histograms", "nesting", "records", "snapshot", "streams"}


def imported_by(path: Path) -> set[str]:
    """Top modules of the package that a module imports when it runs, not those that only its annotations need."""
    package = ["asyncinspect_logging", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(without_typing(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parts = [*base, *(node.module or "").split(".")] if node.module else base
            if parts[:1] == ["asyncinspect_logging"]:
                found.update([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            found.update(
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("asyncinspect_logging.")
            )
    return found


def without_typing(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return tree


@pytest.mark.parametrize("module", sorted(FRONT))
def test_spans_know_nothing_of_the_inspector(module: str) -> None:
    """What makes records does not know who reads them."""
    assert not imported_by(PACKAGE / f"{module}.py") & (BEHIND | {"handler", "processor", "exporters", "snapshot"})


@pytest.mark.parametrize("module", sorted(BEHIND | {"snapshot", "memory", "sequence"}))
def test_inspector_knows_nothing_of_front_ends_and_exporters(module: str) -> None:
    """Handlers feed it and exporters read it, and it knows of neither."""
    assert not imported_by(PACKAGE / f"{module}.py") & {"handler", "processor", "stamping", "exporters", "testing"}


@pytest.mark.parametrize("module", ["chains", "waits", "stuck", "tasks"])
def test_what_looks_at_tasks_knows_nothing_of_the_inspector(module: str) -> None:
    """The records of single steps use it, too."""
    assert not imported_by(PACKAGE / "detect" / f"{module}.py") & (BEHIND | {"snapshot", "exporters"})


def test_the_tree_reads_snapshots() -> None:
    """And nothing else."""
    assert imported_by(PACKAGE / "detect" / "tree.py") <= {"snapshot", "states", "fields"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "exporters").rglob("*.py")), ids=lambda path: path.stem)
def test_exporters_read_snapshots(path: Path) -> None:
    """And nothing of what the inspector is made of."""
    shared = {"shared"} if path.stem in SHARED else set()
    assert imported_by(path) <= FOR_EXPORTERS | {"exporters"} | shared


@pytest.mark.parametrize(
    "module",
    ["critical", "drawing", "graph", "graph_text", "lifecycle", "profile", "profile_text", "quantiles",
     "relations", "timeline"],
)  # fmt: skip
def test_analysis_reads_snapshots(module: str) -> None:
    """And, of records, what makes one well-formed."""
    assert imported_by(PACKAGE / "analysis" / f"{module}.py") <= FOR_ANALYSIS


@pytest.mark.parametrize("path", sorted((PACKAGE / "ops").glob("*.py")), ids=lambda path: path.stem)
def test_ops_knows_names_of_metrics(path: Path) -> None:
    """And nothing of who counts them."""
    assert imported_by(path) <= {"catalogue", "errors", "exporters", "ops"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "analysis" / "backtest").glob("*.py")), ids=lambda path: path.stem)
def test_the_back_test_reads_logs(path: Path) -> None:
    """What makes samples of them alone knows how an inspector is fed, as replay does."""
    replays = {"exporters", "histograms", "placing", "snapshot", "summary"} if path.stem == "samples" else set()
    assert imported_by(path) <= {"analysis", "errors", "records"} | replays


@pytest.mark.parametrize("module", ["histograms", "nesting", "streams"])
def test_what_exporters_and_analysis_share_reads_snapshots(module: str) -> None:
    """And nothing else."""
    assert imported_by(PACKAGE / f"{module}.py") <= {"catalogue", "snapshot"}


@pytest.mark.parametrize(
    "module", ["states", "catalogue", "errors", "snapshot", "sequence", "traceparent", "fields", "redaction"]
)
def test_foundations_stand_alone(module: str) -> None:
    """They import nothing but each other."""
    allowed = {"redaction"} if module == "fields" else {"states", "catalogue", "errors"}
    assert imported_by(PACKAGE / f"{module}.py") <= allowed


@pytest.mark.parametrize("module", ["asgi", "aiohttp", "serving", "routes", "queues", "trio", "anyio"])
def test_integrations_make_spans(module: str) -> None:
    """And know nothing of who counts them; /metrics in an application is an exporter's."""
    assert not imported_by(PACKAGE / "integrations" / f"{module}.py") & (BEHIND | {"snapshot", "exporters", "handler"})


def test_integrations_import_no_framework() -> None:
    """But those that are named after what they are for."""
    code = (
        "import sys\n"
        "from asyncinspect_logging.integrations import anyio, asgi, console, queues\n"
        "frameworks = {'aiohttp', 'aiomonitor', 'anyio', 'arq', 'celery', 'click', 'fastapi', 'litestar', 'rich'}\n"
        "frameworks |= {'starlette', 'trio', 'uvicorn', 'prometheus_client'}\n"
        "heavy = frameworks & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_import_starts_nothing_and_needs_no_extra() -> None:
    """No thread, no handler, no logging configured, and none of the optional packages."""
    code = (
        "import sys, threading, logging, asyncinspect_logging\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert not logging.getLogger().handlers and not logging.getLogger('asyncinspect').handlers\n"
        "extras = {'structlog', 'opentelemetry', 'statsd', 'rich', 'click', 'prometheus_client', 'trio'}\n"
        "extras |= {'pythonjsonlogger', 'orjson', 'msgspec', 'zstandard'}\n"
        "extras |= {'aiohttp', 'aiomonitor', 'anyio', 'celery', 'fastapi', 'litestar', 'starlette'}\n"
        "heavy = extras & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
