"""Quantiles are those of the definitions that they name."""

from __future__ import annotations

import math
import random
import statistics
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncinspect_logging.analysis.drawing import duration
from asyncinspect_logging.analysis.quantiles import (
    ACCURACY,
    EXACT,
    Distribution,
    MoreThan,
    histogram_quantile,
    quantile,
)
from asyncinspect_logging.catalogue import DURATION_BOUNDS
from asyncinspect_logging.snapshot import Histogram

seconds = st.floats(min_value=0, max_value=1e6)
parts = st.floats(min_value=0, max_value=1)


@given(st.lists(seconds, min_size=2, max_size=50))
def test_quantiles_are_those_of_the_standard_library(samples: list[float]) -> None:
    """Every percentile is what `statistics` says for the same definition."""
    expected = statistics.quantiles(samples, n=100, method="inclusive")
    samples.sort()
    for percent, value in enumerate(expected, 1):
        assert quantile(samples, percent / 100) == pytest.approx(value, rel=1e-9, abs=1e-12)


@given(st.lists(seconds, min_size=1, max_size=50), parts, parts)
def test_quantiles_rise_and_stay_among_the_samples(samples: list[float], one: float, other: float) -> None:
    """From the least sample to the greatest, and never down."""
    samples.sort()
    assert (quantile(samples, 0), quantile(samples, 1)) == (samples[0], samples[-1])
    low, high = sorted((one, other))
    assert samples[0] <= quantile(samples, low) <= quantile(samples, high) <= samples[-1]


def test_of_nothing_there_is_no_quantile() -> None:
    """NaN, as in PromQL, for each of them."""
    assert math.isnan(quantile([], 0.5))
    assert math.isnan(histogram_quantile(Histogram((1.0,), (0, 0), 0.0), 0.5))
    assert math.isnan(histogram_quantile(Histogram((), (3,), 0.0), 0.5))
    assert math.isnan(Distribution().quantile(0.5))


@pytest.mark.parametrize("q", [-0.01, 1.01, 99, math.nan])
def test_a_quantile_that_is_none_is_refused(q: float) -> None:
    """With what was given, and what to write instead."""
    for ask in (
        lambda: quantile([1.0], q),
        lambda: histogram_quantile(Histogram((1.0,), (1, 0), 1.0), q),
        lambda: Distribution().quantile(q),
    ):
        with pytest.raises(ValueError, match=rf"from 0 to 1, and not {q!r}: write 0.99"):
            ask()


@pytest.mark.parametrize(
    ("counts", "q", "value"),
    [
        # By hand, after the text of PromQL's manual: linear in the bucket that the rank falls into.
        ((0, 10, 0, 0), 0.5, 1.5),
        ((10, 0, 0, 0), 0.5, 0.5),
        ((1, 1, 2, 0), 0.75, 3.0),
        ((1, 1, 2, 0), 0.5, 2.0),
        ((1, 0, 0, 9), 0.99, 4.0),  # above the highest bound: that bound
        ((0, 0, 4, 0), 0.0, 2.0),
        ((0, 0, 4, 0), 1.0, 4.0),
    ],
)
def test_quantiles_of_a_histogram_are_those_of_promql(counts: tuple[int, ...], q: float, value: float) -> None:
    """Bounds 1, 2 and 4."""
    assert histogram_quantile(Histogram((1.0, 2.0, 4.0), counts, 0.0), q) == pytest.approx(value)


@given(st.lists(st.floats(min_value=0, max_value=29), min_size=1, max_size=200), parts)
def test_a_histogram_is_off_by_a_bucket_at_most(samples: list[float], q: float) -> None:
    """What it says lies in the bucket of the sample that has that rank."""
    counts = [0] * (len(DURATION_BOUNDS) + 1)
    for sample in samples:
        counts[bisect_left(DURATION_BOUNDS, sample)] += 1
    told = histogram_quantile(Histogram(DURATION_BOUNDS, tuple(counts), sum(samples)), q)
    ranked = sorted(samples)[max(0, math.ceil(q * len(samples)) - 1)]
    index = bisect_left(DURATION_BOUNDS, ranked)
    assert (DURATION_BOUNDS[index - 1] if index else 0) <= told <= DURATION_BOUNDS[index]


@given(st.lists(seconds, max_size=100), parts)
def test_a_distribution_of_few_samples_is_exact(samples: list[float], q: float) -> None:
    """The same as of the samples themselves (those below a nanosecond being 0), in whatever order they come."""
    distribution = Distribution()
    for sample in samples:
        distribution.add(sample)
    kept = sorted(sample if sample >= 1e-9 else 0.0 for sample in samples)
    assert distribution.exact
    assert distribution.count == len(samples)
    assert distribution.counts(DURATION_BOUNDS) == tuple(
        sum(bisect_left(DURATION_BOUNDS, each) == index for each in kept) for index in range(len(DURATION_BOUNDS) + 1)
    )
    if samples:
        assert distribution.quantile(q) == quantile(kept, q)


@pytest.mark.parametrize("seed", range(4))
def test_a_long_distribution_is_off_by_a_hundredth_at_most(seed: int) -> None:
    """Over eight orders of magnitude, a zero and a tail among them, in a few hundred bins."""
    chance = random.Random(seed)
    samples = [0.0] + [math.exp(chance.gauss(-5, 2.5)) for _ in range(20 * EXACT)]
    distribution = Distribution()
    for sample in samples:
        distribution.add(sample)
    samples.sort()
    assert not distribution.exact
    assert (distribution.count, distribution.min, distribution.max) == (len(samples), 0.0, samples[-1])
    assert distribution.sum == pytest.approx(sum(samples))
    for q in (0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 0.99999, 1):
        assert distribution.quantile(q) == pytest.approx(quantile(samples, q), rel=ACCURACY * (1 + 1e-9))
    assert sum(distribution.counts(DURATION_BOUNDS)) == len(samples)


@given(st.lists(seconds.map(lambda each: each if each >= 1e-9 else 0.0), min_size=1, max_size=30), parts)
def test_a_sketch_agrees_with_samples(samples: list[float], q: float) -> None:
    """Within its accuracy, between two samples that are far apart, too: of two, the median is their mean."""
    sketch = Distribution()
    sketch._samples = None
    for sample in samples:
        sketch.add(sample)
    assert sketch.quantile(q) == pytest.approx(quantile(sorted(samples), q), rel=ACCURACY * (1 + 1e-9), abs=1e-15)


def test_a_quantile_above_the_last_bound_says_so() -> None:
    """It is more than that, and no number is known."""
    long = Histogram((1.0, 10.0), (5, 0, 5), 600.0)
    told = histogram_quantile(long, 0.99)
    assert isinstance(told, MoreThan)
    assert (told, duration(told)) == (10.0, "> 10.0 s")
    assert not isinstance(histogram_quantile(long, 0.5), MoreThan)


def test_a_distribution_is_bounded_whatever_comes() -> None:
    """From every power of ten that there is, and what is no number: a fixed range of bins, and numbers come back."""
    distribution = Distribution()
    for sample in [math.nan, -1.0, math.inf, 5e-324, *(factor * 10.0**power for power in range(-320, 308)
                                                         for factor in (1, 1.3, 1.7, 2.2, 3, 5, 8))]:  # fmt: skip
        distribution.add(sample)
    assert not distribution.exact
    assert len(distribution._bins) < 2500
    assert (distribution.min, distribution.max) == (0.0, 1e12)
    assert all(math.isfinite(distribution.quantile(q / 100)) for q in range(101))
    assert distribution.histogram((1.0,)).total == distribution.count
