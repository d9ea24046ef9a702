"""Logs of every version of the protocol give the snapshot that they gave when they were written."""

from __future__ import annotations

from pathlib import Path

import pytest
from loading import load

from asyncinspect_logging.analysis.replay import Replay
from asyncinspect_logging.exporters.json_file import JsonExporter
from asyncinspect_logging.records import VERSION

GOLDEN = Path(__file__).parent / "golden"


make = load(GOLDEN / "make.py")


@pytest.mark.parametrize("log", make.logs(), ids=lambda path: path.name)
def test_golden(log: Path) -> None:
    """Every field of the snapshot, and of every task."""
    found, expected = make.snapshot_of(log), JsonExporter.read(log.with_name(log.name + make.SUFFIX))
    for field in found._fields:
        assert getattr(found, field) == getattr(expected, field), field


def test_there_is_one_of_each_version() -> None:
    """And of each kind."""
    names = {path.name for path in make.logs()}
    for version in range(1, VERSION + 1):
        assert {f"v{version}-debug.jsonl", f"v{version}-trace.jsonl.gz", f"v{version}-mixed.jsonl"} <= names


def test_the_mixed_one_has_it_all() -> None:
    """Open spans, broken lines, lines of others, missing ones."""
    replay = Replay(GOLDEN / "v1-mixed.jsonl")
    snapshot, report = replay.run().snapshot(), replay.report
    assert report.broken
    assert report.foreign
    assert report.missing
    assert report.annotations
    assert snapshot.dropped["duplicate"]
    assert {"blocked", "completed", "failed", "cancelled"} <= {
        state for state, count in snapshot.states.items() if count
    }
