"""Quantiles: of samples, of histograms, and of streams too long to be kept."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

from ..snapshot import Histogram

__all__ = ["ACCURACY", "EXACT", "Distribution", "MoreThan", "histogram_quantile", "quantile"]

#: Samples up to which a `Distribution` keeps every one, and so is exact.
EXACT: Final = 2048
#: Beyond that, a quantile is off by at most this part of itself.
ACCURACY: Final = 0.01
_GAMMA: Final = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA: Final = math.log(_GAMMA)
#: What is told apart (seconds, or counts); between them there are some 2,400 bins.
_LEAST: Final = 1e-9
_MOST: Final = 1e12


class MoreThan(float):
    """A quantile of which no more is known than that it is above this: it is in a histogram's last bucket, +Inf."""

    __slots__ = ()


def quantile(sorted_samples: Sequence[float], q: float) -> float:
    """The q-quantile (0 <= q <= 1) of samples in ascending order; NaN where there are none.

    Between two samples it is interpolated: type 7 of R. Hyndman and Y. Fan, "Sample quantiles in statistical packages"
    (1996), which is the default of numpy and R, and `statistics.quantiles(method="inclusive")`.

    Raises ValueError for any other q.
    """
    _check(q)
    if not sorted_samples:
        return math.nan
    place = (len(sorted_samples) - 1) * q
    low = math.floor(place)
    lower, part = sorted_samples[low], place - low
    if not part:
        return lower
    upper = sorted_samples[low + 1]
    # In this form equal samples give themselves; rounding may still lead past the upper one.
    return min(lower + (upper - lower) * part, upper)


def histogram_quantile(histogram: Histogram, q: float) -> float:
    """The q-quantile (0 <= q <= 1) as far as buckets tell, as PromQL's `histogram_quantile` estimates it: linear within
    a bucket, the first of which begins at 0. NaN where there are no observations, or no bounds.

    Other than in PromQL, what lies above the highest bound is `MoreThan` that bound, and empty buckets are passed over,
    so that q = 0 has a value, too.

    Raises ValueError for any other q.
    """
    _check(q)
    total = histogram.total
    if not total or not histogram.bounds:
        return math.nan
    rank = q * total
    before = 0
    for index, (bound, count) in enumerate(zip(histogram.bounds, histogram.counts, strict=False)):
        if count and before + count >= rank:
            start = histogram.bounds[index - 1] if index else min(0.0, bound)
            return start + (bound - start) * ((rank - before) / count)
        before += count
    return MoreThan(histogram.bounds[-1])


def _check(q: float) -> None:
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile is from 0 to 1, and not {q!r}: write 0.99 for p99")


class Distribution:
    """Samples, none of them negative, in bounded memory.

    The first `EXACT` are kept, and quantiles of them are exact. Beyond that they are counted in bins of growing width
    (C. Masson, J. Rim, H. Lee: "DDSketch", 2019), so that each sample is known to 1 % (`ACCURACY`) of itself, and so is
    a quantile, interpolated as `quantile` does it, however long the tail. Unlike a random choice of samples this gives
    the same again for the same input. What is below 1e-9, or is no number, counts as 0; what is above 1e12 counts as
    that.
    """

    __slots__ = ("_bins", "_samples", "_sorted", "_zeros", "count", "max", "min", "sum")

    def __init__(self) -> None:
        self._samples: list[float] | None = []
        self._sorted = True
        self._bins: dict[int, int] = {}
        self._zeros = 0
        self.count = 0
        self.sum = 0.0
        self.min = math.inf
        self.max = -math.inf

    @property
    def exact(self) -> bool:
        return self._samples is not None

    def add(self, sample: float) -> None:
        sample = min(sample, _MOST) if sample >= _LEAST else 0.0
        self.count += 1
        self.sum += sample
        if sample < self.min:
            self.min = sample
        if sample > self.max:
            self.max = sample
        samples = self._samples
        if samples is None:
            self._count(sample)
            return
        samples.append(sample)
        self._sorted = False
        if len(samples) > EXACT:
            self._samples = None
            for each in samples:
                self._count(each)

    def _count(self, sample: float) -> None:
        if sample:
            index = math.ceil(math.log(sample) / _LOG_GAMMA)
            self._bins[index] = self._bins.get(index, 0) + 1
        else:
            self._zeros += 1

    def merge(self, other: Distribution) -> None:
        """Add the samples of another one, as if each had come here."""
        if other._samples is not None:
            for sample in other._samples:
                self.add(sample)
            return
        if self._samples is not None:
            samples, self._samples = self._samples, None
            for sample in samples:
                self._count(sample)
        for index, count in other._bins.items():
            self._bins[index] = self._bins.get(index, 0) + count
        self._zeros += other._zeros
        self.count += other.count
        self.sum += other.sum
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)

    def quantile(self, q: float) -> float:
        """The q-quantile (0 <= q <= 1), NaN of no samples. Raises ValueError for any other q."""
        if self._samples is not None:
            return quantile(self._in_order(), q)
        _check(q)
        place = (self.count - 1) * q
        low = math.floor(place)
        around: list[float] = []
        before = 0
        for value, count in self._counted():
            before += count
            # Those at the two places that the quantile lies between may be in one bin.
            while len(around) < 2 and before > low + len(around):
                around.append(min(max(value, self.min), self.max))
        if low >= self.count - 2:
            around[self.count - 1 - low :] = [self.max]
        return quantile(around, place - low) if around[1:] else around[0]

    def counts(self, bounds: Sequence[float]) -> tuple[int, ...]:
        """Samples up to each of these ascending bounds and above the one before, and then those above all: the `counts`
        of a `Histogram`. Beyond `EXACT` samples, the bins of which a bound cuts through go where their middle is.
        """
        values = ((value, 1) for value in self._samples) if self._samples is not None else self._counted()
        counts = [0] * (len(bounds) + 1)
        for value, count in values:
            counts[bisect_left(bounds, value)] += count
        return tuple(counts)

    def histogram(self, bounds: Sequence[float]) -> Histogram:
        return Histogram(tuple(bounds), self.counts(bounds), self.sum)

    def _in_order(self) -> list[float]:
        assert self._samples is not None
        if not self._sorted:
            self._samples.sort()
            self._sorted = True
        return self._samples

    def _counted(self) -> Iterator[tuple[float, int]]:
        """(a value that stands for the bin, count), ascending."""
        if self._zeros:
            yield 0.0, self._zeros
        for index in sorted(self._bins):
            yield 2 * math.exp(index * _LOG_GAMMA) / (_GAMMA + 1), self._bins[index]
