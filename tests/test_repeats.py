"""Several runs compared with several: the runs are what counts, and not the spans in them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from asyncinspect_logging import Config, Inspector, Snapshot
from asyncinspect_logging.analysis.compare import compare
from asyncinspect_logging.analysis.repeats import Repeats, _student, _student_quantile

MS = 1_000_000
NAMES = ("step", "a", "b", "c", "d")


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 63.657), (2, 9.925), (3, 5.841), (4, 4.604), (5, 4.032), (8, 3.355), (9, 3.25), (30, 2.75)]
)
def test_students_t_is_that_of_the_tables(freedom: int, t: float) -> None:
    assert _student_quantile(0.99, freedom) == pytest.approx(t, abs=0.001)
    assert _student(t, freedom) == pytest.approx(0.99, abs=0.0001)
    assert _student(0, freedom) == 0


def test_a_slower_machine_is_taken_out() -> None:
    """Levels that follow the speed of the machine exactly differ by what is left."""
    speeds = [0.0, 0.3, 0.1, 0.2], [0.5, 0.1, 0.4, 0.2]
    before, after = speeds[0], [speed + 0.2 for speed in speeds[1]]
    plain, corrected = Repeats(before, after), Repeats(before, after, speeds)
    assert corrected.at_equal_speed
    assert not plain.at_equal_speed
    assert corrected.value == pytest.approx(1.2214, abs=0.0001)
    assert corrected.chance(1.1) < 0.001 < 0.02 < plain.chance(1.1)
    low, high = corrected.interval(0.99)
    assert 1.1 < low < corrected.value < high < 1.35


class Runs:
    """Logs of processes, told to one inspector as if they had been read together."""

    def __init__(self, stream: Callable[..., Any], source: random.Random) -> None:
        self._stream, self._source = stream, source
        self._inspector = Inspector(Config(max_tasks=100_000))
        self._numbers = itertools.count(1)
        self._t = 10**12

    def run(self, slower: float = 1.0, workers: int = 1, machine: float | None = None) -> None:
        """One run, of which all processes are there at the same time, on a machine that is as slow as it is."""
        factor = self._source.lognormvariate(0, 0.2) if machine is None else machine
        began, ended = self._t, self._t
        for _ in range(workers):
            tell = self._stream(base=(next(self._numbers) * 1000 + self._source.randrange(1000)) << 32)
            self._t = began
            for number in range(1, 61):
                name = NAMES[number % len(NAMES)]
                ms = self._source.lognormvariate(0, 0.1) * factor * (slower if name == "step" else 1)
                self._inspector.apply(tell("enter", number, t=self._t, wall=self._t, name=name))
                self._t += round(ms * MS)
                end = {"t": self._t, "wall": self._t, "name": name, "duration": round(ms * MS), "outcome": "completed"}
                self._inspector.apply(tell("exit", number, **end))
            ended = max(ended, self._t)
        self._t = ended + MS

    def snapshot(self) -> Snapshot:
        return self._inspector.snapshot()


@pytest.fixture
def runs(stream: Callable[..., Any]) -> Callable[[int], Runs]:
    return lambda seed: Runs(stream, random.Random(seed))


def test_same_runs_pass_and_a_slower_step_is_found(runs: Callable[[int], Runs]) -> None:
    """Each run on a machine that is 20 % faster or slower than in the one before, and five of them on each side."""
    false, found, tries = 0, 0, 25
    for seed in range(tries):
        sides = [runs(3 * seed + number) for number in range(3)]
        for _ in range(5):
            for side, slower in zip(sides, (1, 1, 1.2), strict=True):
                side.run(slower)
        before, same, slower_one = (side.snapshot() for side in sides)
        false += bool(compare(before, same).failures(["p50 > 1x"]))
        found += {verdict.name for verdict in compare(before, slower_one).failures(["p50 > 1x"])} == {"step"}
    assert false <= 1
    assert found >= tries - 2


def test_workers_of_one_server_are_one_run(runs: Callable[[int], Runs]) -> None:
    """They are slow together, so that four of them prove no more than one does."""
    before, after = runs(1), runs(2)
    before.run(workers=4, machine=1.0)
    after.run(workers=4, machine=1.3)
    assert not compare(before.snapshot(), after.snapshot()).failures(["p50 > 1.1x"])
