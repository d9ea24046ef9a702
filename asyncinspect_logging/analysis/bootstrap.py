"""How far a quantile of one run lies from that of another, and how sure that is.

Two runs of the same program differ by more than independent samples would: the machine is slower for a while, and so
durations that follow each other are alike. How much that matters is measured inside each run. docs/compare.md has the
reasons for what is done here.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median, variance
from typing import Final, NamedTuple

from .quantiles import quantile

__all__ = ["ENOUGH", "Evidence", "Pair", "Sample", "at_equal_speed", "moderate", "stolen"]

#: Samples that each quarter of a run must have on either side of a quantile before anything is said of it.
ENOUGH: Final = 5
#: Stretches of time into which a run is divided to see how it drifts.
_SLICES: Final = (4,)
#: By so much, as a standard deviation of the logarithm, processes of one program differ for reasons that stay the same
#: while they run, such as where their memory happens to lie: T. Mytkowicz et al., "Producing wrong data without doing
#: anything obviously wrong!" (2009).
PROCESS: Final = 0.02
#: Random draws for an interval.
DRAWS: Final = 1000

#: Names by which the speed of the machine is told, at least and at most: of fewer than three, one that has itself
#: become slower would make the others look faster. Cells of time in which it is told, and the part of a name's drift
#: that may be left by the correction if the name is to follow the machine.
_FEWEST: Final = 3
_MOST: Final = 8
_CELLS: Final = 256
_LESS: Final = 0.7
#: A difference of speed (a logarithm) so great that it cannot be noise of the names that tell it.
_OTHER_SPEED: Final = 0.2
#: How much a name's own drift counts against what is usual: four slices of two runs tell it.
_OWN_DRIFT: Final = 0.4


class Sample(NamedTuple):
    """Durations of one name in one run, in the order of time: when each had its middle (Unix time in seconds), and the
    natural logarithm of its length.
    """

    times: Sequence[float]
    logs: Sequence[float]

    @classmethod
    def of(cls, spans: Iterable[tuple[float, float]]) -> Sample:
        """From (start, duration), both in seconds. No time at all counts as 1 ns."""
        found = sorted((start + duration / 2, math.log(max(duration, 1e-9))) for start, duration in spans)
        return cls(array("d", [at for at, _ in found]), array("d", [log for _, log in found]))


class Pair(NamedTuple):
    """One name before and after."""

    before: Sample
    after: Sample


def _slices(logs: Sequence[float], count: int) -> list[Sequence[float]]:
    n = len(logs)
    return [logs[n * index // count : n * (index + 1) // count] for index in range(count)]


def _wandering(pair: Pair) -> float:
    """Variance of the medians of slices, of both runs."""
    return sum(variance([median(part) for part in _slices(sample.logs, max(_SLICES))]) for sample in pair)


def _shift(pair: Pair) -> float:
    return median(pair.after.logs) - median(pair.before.logs)


class _Speed:
    """How slow a run was by one name, in cells of time: logarithms, around what is usual for the name."""

    def __init__(self, sample: Sample, usual: float, begin: float, width: float) -> None:
        cells: list[list[float]] = [[] for _ in range(_CELLS)]
        for at, log in zip(sample.times, sample.logs, strict=True):
            cells[min(_CELLS - 1, max(0, int((at - begin) / width)))].append(log - usual)
        self.cells = _filled([median(cell) if cell else None for cell in cells])


def _filled(cells: Sequence[float | None]) -> list[float]:
    """Every cell has a value: an empty one that of the nearest before it, or else after it."""
    filled: list[float] = []
    last = next(cell for cell in cells if cell is not None)
    for cell in cells:
        last = last if cell is None else cell
        filled.append(last)
    return filled


def at_equal_speed(pairs: Mapping[str, Pair], related: Mapping[str, set[str]]) -> dict[str, tuple[list[Pair], bool]]:
    """The pairs as they would be had the machine been equally fast all the time, and whether that is known.

    The speed at a moment is told by other names: the median of how much longer than usual they took then. `related`:
    names that contain, or are contained in, a name, which tell nothing if there are others. This is an analysis of
    covariance with a given slope: 1, for a machine that is slower is slower for all, or 1/2 where that fits the runs
    better, since what the other names tell is itself only partly the machine.

    Where that takes away much of a name's drift inside the runs, the name follows the machine, and the corrected pair
    is the only one given. Otherwise nobody knows: then the pair as it is comes first, and the corrected one second, if
    there are names enough to make one.
    """
    enough = {name: pair for name, pair in pairs.items() if min(len(each.logs) for each in pair) >= 4 * max(_SLICES)}
    busiest = sorted(enough, key=lambda name: -min(len(each.logs) for each in enough[name]))
    spans = [
        (min(pair[side].times[0] for pair in enough.values()), max(pair[side].times[-1] for pair in enough.values()))
        for side in (0, 1)
        if enough
    ]
    frames = [(begin, max((end - begin) / _CELLS, 1e-9)) for begin, end in spans]
    speeds: dict[str, list[list[float]]] = {}

    def speed_by(name: str) -> list[list[float]]:
        if name not in speeds:
            pair = enough[name]
            usual = (median(pair.before.logs) + median(pair.after.logs)) / 2
            speeds[name] = [_Speed(sample, usual, *frame).cells for sample, frame in zip(pair, frames, strict=True)]
        return speeds[name]

    given: dict[str, tuple[list[Pair], bool]] = {}
    for name, pair in pairs.items():
        given[name] = [pair], False
        if name not in enough:
            continue
        others = [other for other in busiest if other != name and other not in related.get(name, ())][:_MOST]
        alone = len(others) < _FEWEST
        if alone:
            others = [other for other in busiest if other != name][:_MOST]
            if len(others) < _FEWEST:
                continue
        plain = _wandering(pair)
        helping = [speed for speed in map(speed_by, others) if _wandering(_corrected(pair, speed, frames, 1)) < plain]
        if len(helping) < _FEWEST:
            helping = [speed_by(other) for other in others]
        speed = [[median(cell) for cell in zip(*(each[side] for each in helping), strict=True)] for side in (0, 1)]
        half, full = (_corrected(pair, speed, frames, part) for part in (0.5, 1))
        other_speed = abs(_shift(pair) - _shift(full)) >= _OTHER_SPEED
        left = {1: _wandering(full), 0.5: _wandering(half)}
        best = full if other_speed or left[1] < left[0.5] else half
        if min(left.values()) <= _LESS * plain and not alone:
            given[name] = [best], True
        else:
            given[name] = [pair, full if other_speed else half], False
    return given


def _corrected(
    pair: Pair, speed: Sequence[Sequence[float]], frames: Sequence[tuple[float, float]], part: float
) -> Pair:
    samples = []
    for sample, cells, (begin, width) in zip(pair, speed, frames, strict=True):
        logs = [
            log - part * cells[min(_CELLS - 1, max(0, int((at - begin) / width)))]
            for at, log in zip(sample.times, sample.logs, strict=True)
        ]
        samples.append(Sample(sample.times, logs))
    return Pair(*samples)


def drift(sample: Sample, q: float, chance: float) -> float:
    """The variance of the q-quantile (a logarithm) of a run that comes of its drift in time, beyond `chance`, which is
    the variance had its samples been independent.

    Half the mean square of the difference between neighbouring slices is their Allan variance. The noise of a machine
    is mostly of the kind for which that is the same for long slices as for short ones (1/f noise: D. W. Allan,
    "Statistics of atomic frequency standards", 1966), and so it is taken for that of whole runs.
    """
    found = []
    for count in _SLICES:
        parts = _slices(sample.logs, count)
        if len(sample.logs) // count * min(q, 1 - q) >= ENOUGH:
            levels = [quantile(sorted(part), q) for part in parts]
            steps = [(later - earlier) ** 2 / 2 for earlier, later in pairwise(levels)]
            found.append(max(0.0, fmean(steps) - chance * count))
    return fmean(found)


class Evidence:
    """What two runs tell of the ratio of a quantile, after / before.

    pairs: see `at_equal_speed`; where there are two, a ratio must be shown by both. `value` is the ratio in the first
    of them. `enough`: whether there are samples enough to say more, without which nothing but `value` may be asked for.
    """

    def __init__(self, pairs: Sequence[Pair], q: float, seed: str) -> None:
        self._pairs, self._q, self._seed = pairs, q, seed
        self._sorted = [[array("d", sorted(sample.logs)) for sample in pair] for pair in pairs]
        self._differences: list[list[float]] = []
        #: The variance that comes of drift, of both runs, in each way.
        self.drifts: list[float] = []
        #: The variance between runs that a run does not show; see `moderate`.
        self.unseen = 0.0
        before, after = self._sorted[0]
        self.value = math.exp(quantile(after, q) - quantile(before, q))
        least = min(len(sample.logs) for sample in pairs[0])
        self.enough = least // min(_SLICES) * min(q, 1 - q) >= ENOUGH

        if self.enough:
            for way, pair in enumerate(pairs):
                source = _source(f"{seed}/{way}")
                drawn = [_draws(logs, q, source, DRAWS) for logs in self._sorted[way]]
                self._differences.append([b - a for a, b in zip(*drawn, strict=True)])
                self.drifts.append(
                    sum(drift(sample, q, variance(levels)) for sample, levels in zip(pair, drawn, strict=True))
                )

    def _spread(self, way: int) -> float:
        return math.sqrt(self.drifts[way] + 2 * PROCESS**2 + self.unseen)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Bounds of the ratio; where there are two ways to look at it, the wider ones."""
        tail, bounds = (1 - confidence) / 2, []
        for way, differences in enumerate(self._differences):
            noise, spread = _source(f"{self._seed}/{way}/noise").gauss, self._spread(way)
            drawn = sorted(difference + noise(0, spread) for difference in differences)
            bounds += [quantile(drawn, tail), quantile(drawn, 1 - tail)]
        return math.exp(min(bounds)), math.exp(max(bounds))

    def chance(self, threshold: float, *, above: bool = True) -> float:
        """How likely it is that the ratio is not above (not below) `threshold`."""
        level, sign = math.log(threshold), 1 if above else -1
        return max(
            fmean(_normal(sign * (level - difference) / self._spread(way)) for difference in differences)
            for way, differences in enumerate(self._differences)
        )


def stolen(pairs: Iterable[Pair]) -> float:
    """How much of the time of a process others had, as a logarithm, in the run where that was more.

    The median of a short piece of work hardly shows that it is interrupted now and then, while the mean does. So it is
    by how much the mean exceeds the median, in the median of all names.
    """
    sides: tuple[list[float], list[float]] = ([], [])
    for pair in pairs:
        for sample, found in zip(pair, sides, strict=True):
            if len(sample.logs) >= ENOUGH:
                middle = median(sample.logs)
                # Bounded, so that no single one of them counts for everything.
                found.append(math.log(fmean(math.exp(min(log - middle, 5.0)) for log in sample.logs)))
    return max((median(found) for found in sides if found), default=0.0)


def moderate(found: Mapping[str, tuple[Evidence, bool]], q: float, taken: float) -> None:
    """Put into the evidence of each name what only all of them together tell. The flag says that a name follows the
    machine's speed; `taken` is what `stolen` gave.

    Four slices of a run tell little of its drift: it is mixed with what is usual among names that follow the machine
    (G. K. Smyth, "Linear models and empirical Bayes methods for assessing differential expression", 2004). And where
    others took time of the process, it depends on them how long it waits, and how long the longest of its steps are;
    one run does not show by how much.
    """
    following = sorted(evidence.drifts[0] for evidence, follows in found.values() if follows)
    for evidence, follows in found.values():
        if follows and len(following) >= _FEWEST:
            usual = quantile(following, 0.5)
            evidence.drifts = [_OWN_DRIFT * own + (1 - _OWN_DRIFT) * usual for own in evidence.drifts]
        if not follows or q > 0.5:
            evidence.unseen = max(0.0, taken) ** 2


def _source(seed: str) -> random.Random:
    # The name of a span is in it, which may have what UTF-8 has not.
    return random.Random(seed.encode("utf-8", "surrogatepass"))


def _normal(x: float) -> float:
    """The part of a normal distribution below x. Worked out for each draw rather than drawn itself, it makes small
    chances exact.
    """
    return math.erfc(-x / math.sqrt(2)) / 2


def _draws(logs: Sequence[float], q: float, source: random.Random, count: int) -> list[float]:
    """What the q-quantile of sorted samples could have been.

    That is its bootstrap distribution, and needs no resampling: of n uniform ranks the k-th smallest is distributed as
    Beta(k, n - k + 1) (H. A. David, H. N. Nagaraja, "Order Statistics", 2003, section 2.1).
    """
    n = len(logs)
    a, b = q * (n + 1), (1 - q) * (n + 1)
    beta = source.betavariate
    return [logs[min(n - 1, int(beta(a, b) * n))] for _ in range(count)]
