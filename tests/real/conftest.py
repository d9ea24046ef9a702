"""Fixtures for the tests that need a real Prometheus."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
from loading import load

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"


def _missing(what: str) -> NoReturn:
    """Skip for want of a component, except in CI, which has to have it."""
    if os.environ.get("CI", "").lower() in {"true", "1"}:
        pytest.fail(f"{what}, and CI accepts no skip for it")
    pytest.skip(what)


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """Where the demo's scripts are."""
    return DEMO


@pytest.fixture(scope="session")
def needs_prometheus() -> ModuleType:
    """The demo's module that runs Prometheus; skips where Prometheus is not installed."""
    module = load(DEMO / "prometheus.py")
    if module.find() is None:
        _missing("Prometheus is not installed (there is no `prometheus` on PATH)")
    return module


@pytest.fixture(scope="session")
def promtool() -> str:
    """Path of Prometheus's own checker; skips where it is not installed."""
    return shutil.which("promtool") or _missing("promtool is not installed")


@pytest.fixture(scope="session")
def needs_alertmanager() -> None:
    """Skips where Alertmanager is not installed."""
    if not (shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")):
        _missing("Alertmanager is not installed")


@pytest.fixture(scope="session")
def needs_attackers() -> None:
    """Skips where wrk or slowhttptest is not installed."""
    for program in ("wrk", "slowhttptest"):
        if shutil.which(program) is None:
            _missing(f"{program} is not installed")


@pytest.fixture(scope="session")
def prometheus_server(needs_prometheus: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Prometheus that scrapes each second: add_target(job, address), wait_for_scrape(job, after=…), query(promql),
    value(promql), targets(), metadata(job). One for the whole session; every test gives its targets a job of its own.
    """
    with needs_prometheus.Prometheus(tmp_path_factory.mktemp("prometheus")) as server:
        yield server
