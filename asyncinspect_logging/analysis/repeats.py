"""How far several runs of one program lie from several of another, and how sure that is.

A run shows how much its own durations scatter, and not how much the next run of the same program will differ. Where
there are several on both sides, that needs no guess: each has one level (a quantile, as a logarithm), and these are
compared by Student's t (R. A. Fisher, "Statistical Methods for Research Workers", 1925). How fast the machine was in
each run is told by the other names, and taken out where that fits (analysis of covariance, the same book).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Final

__all__ = ["FEWEST_RUNS", "Repeats"]

#: Runs on each side.
FEWEST_RUNS: Final = 3
#: A machine that is slower is slower for all, or for what waits not at all, and not by more than that.
_SLOPES: Final = (0.0, 1.5)
#: What the speed of the machine must leave of the variance to be taken out.
_WORTH: Final = 0.7
#: No difference of levels is known better than that, as a standard deviation of the logarithm in one run.
_RESOLUTION: Final = 0.005


class Repeats:
    """What the levels of runs before and after tell of the ratio after / before. `speeds`: how slow the machine was in
    each of them, as a logarithm; none where nobody knows.
    """

    #: There are always runs enough; see `bootstrap.Evidence`.
    enough = True

    def __init__(
        self,
        before: Sequence[float],
        after: Sequence[float],
        speeds: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        n, m = len(before), len(after)
        self._shift = fmean(after) - fmean(before)
        self._freedom = n + m - 2
        plain = _scatter(before) + _scatter(after)
        variance, spread = plain / self._freedom, 1 / n + 1 / m
        #: Whether the speed of the machine was taken out.
        self.at_equal_speed = False
        if speeds is not None and self._freedom > 2:
            own = _scatter(speeds[0]) + _scatter(speeds[1])
            if own > 0:
                slope = (_together(before, speeds[0]) + _together(after, speeds[1])) / own
                slope = min(max(slope, _SLOPES[0]), _SLOPES[1])
                left = _scatter(_without(before, speeds[0], slope)) + _scatter(_without(after, speeds[1], slope))
                if left / (self._freedom - 1) < _WORTH * variance:
                    faster = fmean(speeds[1]) - fmean(speeds[0])
                    self._shift -= slope * faster
                    self._freedom -= 1
                    variance, spread = left / self._freedom, spread + faster**2 / own
                    self.at_equal_speed = True
        self._error = math.sqrt(max(variance, _RESOLUTION**2) * spread)
        self.value = math.exp(self._shift)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Bounds of the ratio."""
        reach = _student_quantile(confidence, self._freedom) * self._error
        return math.exp(self._shift - reach), math.exp(self._shift + reach)

    def chance(self, threshold: float, *, above: bool = True) -> float:
        """How likely it is that the ratio is not above (not below) `threshold`."""
        t = (self._shift - math.log(threshold)) / self._error * (1 if above else -1)
        tail = (1 - _student(abs(t), self._freedom)) / 2
        return tail if t > 0 else 1 - tail


def _scatter(values: Sequence[float]) -> float:
    """Sum of the squared differences from the mean."""
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values)


def _together(values: Sequence[float], others: Sequence[float]) -> float:
    mean, other_mean = fmean(values), fmean(others)
    return sum((value - mean) * (other - other_mean) for value, other in zip(values, others, strict=True))


def _without(values: Sequence[float], speeds: Sequence[float], slope: float) -> list[float]:
    return [value - slope * speed for value, speed in zip(values, speeds, strict=True)]


def _student(t: float, freedom: int) -> float:
    """The probability that Student's t is between -t and t: the finite series for whole degrees of freedom (Abramowitz
    and Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    term = total = 1.0 if freedom % 2 == 0 else math.cos(angle)
    if freedom == 1:
        return 2 * angle / math.pi
    for k in range(2 + freedom % 2, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return sine * total if freedom % 2 == 0 else 2 / math.pi * (angle + sine * total)


def _student_quantile(confidence: float, freedom: int) -> float:
    """The t within which it is with that probability, by bisection."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, freedom) < confidence else (low, middle)
    return high
