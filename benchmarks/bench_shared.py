"""What a span costs where its count outlives a SIGKILL: as it is done, and the ways that were not taken.

    python benchmarks/bench_shared.py

Each in multiples of the floor, interleaved. `alone`: in one process. `span`: the counts of `PROMETHEUS_MULTIPROC_DIR`.
`ring`: each end as a record of eight numbers in mapped memory, for a reader to add up, without what empties the ring.
`at once`: each end is worked off in the books, and the numbers of its name are copied to mapped memory. `by hand`: two
counters, a gauge and a histogram of prometheus_client, in its multiprocess mode.
"""

from __future__ import annotations

import atexit
import logging
import mmap
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from typing import Any

_FOLDER = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
# prometheus_client reads it when it is imported.
os.environ["PROMETHEUS_MULTIPROC_DIR"] = _FOLDER

from bench_spans import _ByHand  # noqa: E402 - see above
from measure import FULL, Scale, floor_loop, interleaved, ratios  # noqa: E402 - see above

from asyncinspect_logging import AsyncInspectHandler, Inspector, span  # noqa: E402 - see above

_RECORD = struct.Struct("8q")
_CELLS = struct.Struct("60q")


def _ring(inspector: Inspector) -> None:
    told, buffer, at = inspector._told.append, mmap.mmap(-1, _RECORD.size * 4096), 0

    def announce(span: Any) -> None:
        nonlocal at
        if span.outcome is None:
            span.listed = True
        else:
            _RECORD.pack_into(
                buffer, at, span.number, 1, 0, span.exited_at - span.entered_at, span.entered_at, 1, 0, at
            )
            at = (at + _RECORD.size) % len(buffer)
        told(span)

    inspector._announce = announce


def _at_once(inspector: Inspector) -> None:
    told, buffer = inspector._told.append, mmap.mmap(-1, _CELLS.size)

    def announce(span: Any) -> None:
        told(span)
        if span.outcome is None:
            span.listed = True
            return
        inspector.settle()
        total = inspector._books.totals[span.name]
        cells = [total.spawned, total.polls, total.wakes, total.self_wakes, total.busy, total.idle, total.scheduled]
        for cell in (total.completed, total.failed, total.cancelled):
            cells += cell.counts
            cells.append(cell.sum)
        cells += [0] * (60 - len(cells))
        _CELLS.pack_into(buffer, 0, *cells)

    inspector._announce = announce


def _loop(prepare: Callable[[Inspector], object]) -> Callable[[int], None]:
    """Spans on a logger of their own, heard by one inspector."""
    inspector = Inspector()
    prepare(inspector)
    logger = logging.getLogger(f"benchmark.{prepare.__name__}.{id(inspector)}")
    logger.propagate = False
    logger.addHandler(AsyncInspectHandler(inspector))

    def loop(loops: int) -> None:
        for _ in range(loops):
            with span("work", logger=logger):
                pass

    return loop


def shared(scale: Scale) -> dict[str, float]:
    by_hand = _ByHand()

    def by_hand_loop(loops: int) -> None:
        for _ in range(loops):
            with by_hand:
                pass

    times = interleaved(
        {
            "floor": floor_loop,
            "alone": _loop(lambda inspector: None),
            "span": _loop(lambda inspector: inspector.share(_FOLDER)),
            "ring": _loop(_ring),
            "at once/4": _loop(_at_once),
            "by hand/4": by_hand_loop,
        },
        scale,
    )
    return {f"shared.{name}": ratio for name, ratio in ratios(times, "floor").items()}


if __name__ == "__main__":
    for name, ratio in shared(FULL).items():
        print(f"{name:15} {ratio:5.1f}")
