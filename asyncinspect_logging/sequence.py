"""Which records of a process have been seen: exact, in memory that does not grow with their number."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

__all__ = ["Seen"]

#: Runs of numbers kept. With more holes than that the lowest are given up: the numbers in them count as seen.
MAX_RUNS: Final = 32_768


class Seen:
    """A set of numbers that mostly come one after the other, stored as runs of neighbours.

    `high` is the end of the run that grows just now; a caller in a hurry may extend it by one itself.
    """

    __slots__ = ("_forgotten", "_given_up", "_highs", "_low", "_lowest", "_lows", "high")

    def __init__(self, first: int = 0) -> None:
        """`first`: the number that is expected first; others may come before it."""
        self._low = first
        self.high = first - 1
        # The other runs, in order; none of them touches another.
        self._lows: list[int] = []
        self._highs: list[int] = []
        # The holes between these two were given up.
        self._lowest, self._forgotten = 0, -1
        # How many numbers were in them.
        self._given_up = 0

    def add(self, number: int) -> bool:
        """Note a number; returns False where it was there already."""
        if number == self.high + 1:
            self.high = number
            return True
        if self._low <= number <= self.high or self._lowest <= number <= self._forgotten:
            return False
        # The current run takes its place among the others, and the number opens the next.
        lows, highs = self._lows, self._highs
        self._insert(self._low, self.high)
        place = bisect_right(lows, number) - 1
        if place >= 0 and number <= highs[place]:
            self._low, self.high = lows.pop(), highs.pop()
            return False
        self._insert(number, number)
        # The highest run is the one that most likely grows next.
        self._low, self.high = lows.pop(), highs.pop()
        if len(lows) > MAX_RUNS:
            self._give_up(MAX_RUNS // 2)
        return True

    def skip_to(self, number: int) -> None:
        """Expect `number`, which is above all that were seen: what is between is a hole."""
        self._insert(self._low, self.high)
        self._low, self.high = number, number - 1
        if len(self._lows) > MAX_RUNS:
            self._give_up(MAX_RUNS // 2)

    def _give_up(self, runs: int) -> None:
        lows, highs = self._lows, self._highs
        before = self._forgotten if self._forgotten >= 0 else highs[0]
        for low, high in zip(lows[:runs], highs, strict=False):
            self._given_up += max(0, low - before - 1)
            before = max(before, high)
        if self._forgotten < 0 or lows[0] < self._lowest:
            self._lowest = lows[0]
        self._forgotten = max(self._forgotten, highs[runs - 1])
        del lows[:runs], highs[:runs]

    def __contains__(self, number: int) -> bool:
        if self._low <= number <= self.high or self._lowest <= number <= self._forgotten:
            return True
        place = bisect_right(self._lows, number) - 1
        return place >= 0 and number <= self._highs[place]

    def _insert(self, low: int, high: int) -> None:
        """Put a run in its place, joined with its neighbours where it touches them."""
        if high < low:
            return
        lows, highs = self._lows, self._highs
        place = bisect_right(lows, low)
        if place and highs[place - 1] == low - 1:
            place -= 1
            highs[place] = high
        else:
            lows.insert(place, low)
            highs.insert(place, high)
        if place + 1 < len(lows) and lows[place + 1] == highs[place] + 1:
            highs[place] = highs.pop(place + 1)
            del lows[place + 1]

    def runs(self) -> list[tuple[int, int]]:
        """All runs (first, last), in order."""
        found = list(zip(self._lows, self._highs, strict=True))
        if self.high >= self._low:
            found.append((self._low, self.high))
        return sorted(found)

    def holes(self, first: int) -> int:
        """How many numbers from `first` up to the highest one are missing."""
        runs = self.runs()
        if self._forgotten >= 0:
            runs = sorted([*runs, (self._lowest, self._forgotten)])
        missing = self._given_up
        for low, high in runs:
            missing += max(0, low - first)
            first = max(first, high + 1)
        return missing

    def __sizeof__(self) -> int:
        # A list has 8 bytes for a number, and the number itself takes 32.
        return object.__sizeof__(self) + (self._lows.__sizeof__() + self._highs.__sizeof__()) * 5
