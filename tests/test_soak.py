"""The short form of `make soak`: the same faults, and fewer spans; and that it notices what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOAK = Path(__file__).resolve().parent / "soak"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is looked at is in /proc"),
]


def soak(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SOAK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


def test_everything_goes_wrong_and_every_count_is_right(tmp_path: Path) -> None:
    kept = tmp_path / "soak.json"
    done = soak("--spans", 80_000, "--names", 100, "--json", kept)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout.endswith("passed\n")
    figures: dict[str, Any] = json.loads(kept.read_text())["figures"]
    assert figures["spans"] >= 80_000
    assert figures["completed"] + figures["failed"] + figures["cancelled"] == figures["spans"]
    assert figures["kept"] + figures["dropped"] == figures["spans"]
    for fault in ("failed", "cancelled", "scrapes", "forks", "reloads", "log_errors", "otlp_dropped", "statsd_errors"):
        assert figures[fault] > 0, fault
    # Nearly all that it had room for was read before it went.
    assert figures["log_lines_read"] > 100 or figures["disk"] == "/dev/full"
    assert json.loads(kept.read_text())["troubles"] == []
    assert figures["troubles"] == figures["threads_left"] == figures["descriptors_left"] == 0


def test_soak_notices() -> None:
    """Each thing that is broken on purpose is named, and the status says so."""
    broken = "miscount,polls,histogram,busy,drops,stderr,thread,descriptor,page,child"
    done = soak("--spans", 20_000, "--names", 40, "--threads", 1, "--loops", 1, "--inject", broken)
    assert done.returncode == 1, done.stdout
    for said in (
        "at the end: 1 names have other counts (completed, failed, cancelled): soak.0",
        "polls: 2 names have other counts (polls, those seen, wakes): soak.0",
        "polls: 2 counts contradict each other: ",
        "1000 tasks kept and",
        "on stderr: a traceback",
        "threads are left: ",
        "left behind",
        "file descriptors are left: ",
        "the page: prometheus_client cannot read it",
        "in a child: 1 names have other counts",
    ):
        assert said in done.stderr, said


def test_soak_notices_a_leak() -> None:
    done = soak("--spans", 40_000, "--names", 40, "--threads", 1, "--loops", 1, "--inject", "leak")
    assert done.returncode == 1
    assert "memory is not flat" in done.stderr


def test_soak_notices_an_exception() -> None:
    done = soak("--spans", 2_000, "--names", 20, "--threads", 1, "--loops", 1, "--inject", "exception")
    assert done.returncode == 1
    assert "worker 0 ended: Traceback" in done.stderr
    assert "ZeroDivisionError: out of a span" in done.stderr


def test_options_that_make_no_sense() -> None:
    assert soak("--spans", 0).returncode == 2
    assert "--inject takes some of miscount, polls" in soak("--inject", "nonsense").stderr
