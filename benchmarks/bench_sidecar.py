"""What it costs a sidecar to catch up with a log: against the replay of the same file, by turns, in one run."""

from __future__ import annotations

import logging
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench_replay import write_log
from measure import Scale, per_record, ratios

from asyncinspect_logging.analysis.replay import Replay
from asyncinspect_logging.sidecar import Sidecar

__all__ = ["sidecar"]


def _follow(path: Path) -> None:
    following = Sidecar(path, local=False)
    while following.step():
        pass
    following.inspector.snapshot()
    following._close()


def sidecar(scale: Scale) -> dict[str, float]:
    """Ratio to a replay, and records a second, of a log at level DEBUG."""
    candidates: dict[str, Callable[[Path], object]] = {
        "replay": lambda path: Replay(path).run().snapshot(),
        "sidecar": _follow,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        write_log(path, scale.loops, logging.DEBUG)
        times = per_record(candidates, path, scale)
    return {
        "sidecar.follow": ratios(times, "replay")["sidecar"],
        "sidecar.records_a_second": 1 / statistics.median(times["sidecar"]),
    }
