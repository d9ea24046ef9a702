"""Which records of a process have been seen: exact, in memory that has a bound."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

__all__ = ["Seen"]

#: Runs of numbers kept as such. Where there are more, a bitmap takes their place, one bit a number (16 MB); and what
#: does not fit there either is given up: the numbers in the holes count as seen.
MAX_RUNS: Final = 32_768
MAX_BITS: Final = 1 << 27
#: A bitmap grows downwards by so many bytes at least, and so not often: all that is in it is moved then.
_STEP: Final = 1 << 16


class Seen:
    """A set of whole numbers that mostly come one after the other, stored as runs of neighbours; or, with many holes,
    as a bitmap.

    `high` is the end of the run that grows just now; a caller in a hurry may extend it by one itself.
    """

    __slots__ = ("_bits", "_first", "_forgotten", "_given_up", "_highs", "_low", "_lowest", "_lows", "high")

    def __init__(self, first: int = 0) -> None:
        """`first`: the number that is expected first; others may come before it."""
        self._low = first
        self.high = first - 1
        # The other runs, in order; none of them touches another.
        self._lows: list[int] = []
        self._highs: list[int] = []
        # In place of those, where they are too many; bit 0 of byte 0 stands for the number `_first`. The current run,
        # which is above, is not in it.
        self._bits = bytearray()
        self._first = 0
        # The holes between these two were given up.
        self._lowest, self._forgotten = 0, -1
        # How many numbers were in them.
        self._given_up = 0

    @classmethod
    def of_run(cls, low: int, high: int) -> Seen:
        """The numbers from `low` to `high`."""
        seen = cls(low)
        seen.high = high
        return seen

    def only_run(self) -> tuple[int, int] | None:
        """Its run, if it has one and nothing else is to be known of it."""
        if self._lows or self._bits or self._forgotten >= 0 or self.high < self._low:
            return None
        return self._low, self.high

    def add(self, number: int) -> bool:
        """Note a number; returns False where it was there already."""
        if number == self.high + 1:
            self.high = number
            return True
        if self._low <= number <= self.high or self._lowest <= number <= self._forgotten:
            return False
        if self._bits:
            return self._add_bit(number)
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
            self._shrink()
        return True

    def skip_to(self, number: int) -> None:
        """Expect `number`, which is above all that were seen: what is between is a hole."""
        self._insert(self._low, self.high)
        self._low, self.high = number, number - 1
        if len(self._lows) > MAX_RUNS:
            self._shrink()

    def _add_bit(self, number: int) -> bool:
        if number > self.high:
            self.skip_to(number)
            self.high = number
            return True
        if not self._cover(number, number):
            self._give_up_bits()
            return self.add(number)
        place = number - self._first
        bit = 1 << (place & 7)
        if self._bits[place >> 3] & bit:
            return False
        self._bits[place >> 3] |= bit
        return True

    def _shrink(self) -> None:
        """There are too many runs."""
        lows, highs = self._lows, self._highs
        if highs[-1] - lows[0] >= MAX_BITS - 8:
            self._give_up(MAX_RUNS // 2)
            return
        self._first = lows[0] & ~7
        self._bits = bytearray((highs[-1] - self._first >> 3) + 1)
        self._fill_forgotten()
        for low, high in zip(lows, highs, strict=True):
            self._fill(low, high)
        lows.clear()
        highs.clear()

    def _cover(self, low: int, high: int) -> bool:
        """Make the bitmap reach to these numbers; False where it would get too large."""
        bits = self._bits
        above = (high - self._first >> 3) + 1 - len(bits)
        below = 0
        if low < self._first:
            below = min(max((self._first - low + 7) >> 3, _STEP, len(bits) >> 4), self._first >> 3)
        if len(bits) + max(0, above) + below > MAX_BITS >> 3:
            return False
        if above > 0:
            bits.extend(bytes(above))
        if below:
            bits[:0] = bytes(below)
            self._first -= below << 3
            self._fill_forgotten()
        return True

    def _fill(self, low: int, high: int) -> None:
        bits, low, high = self._bits, low - self._first, high - self._first
        begin, end = low >> 3, high >> 3
        first, last = 0xFF << (low & 7) & 0xFF, 0xFF >> (7 - (high & 7))
        if begin == end:
            bits[begin] |= first & last
            return
        bits[begin] |= first
        bits[end] |= last
        bits[begin + 1 : end] = b"\xff" * (end - begin - 1)

    def _fill_forgotten(self) -> None:
        """What was given up counts as seen, and its holes are counted by now."""
        low, high = max(self._lowest, self._first), min(self._forgotten, self._first + len(self._bits) * 8 - 1)
        if low <= high:
            self._fill(low, high)

    def _in_bits(self, last: int | None = None) -> tuple[int, int, int]:
        """The first and the last number in the bitmap, and how many there are between that are not in it. Those above
        `last` are left out; without any, the last is below the first.
        """
        bits = int.from_bytes(self._bits, "little")
        if last is not None:
            bits &= (1 << min(max(0, last + 1 - self._first), len(self._bits) * 8)) - 1
            if not bits:
                return self._first, self._first - 1, 0
        low, high = (bits & -bits).bit_length() - 1, bits.bit_length() - 1
        return low + self._first, high + self._first, high - low + 1 - bits.bit_count()

    def _give_up_bits(self) -> None:
        low, high, missing = self._in_bits()
        self._given_up += missing
        self._forget([(low, high)])
        self._bits = bytearray()

    def _give_up(self, runs: int) -> None:
        lows, highs = self._lows, self._highs
        self._forget(list(zip(lows[:runs], highs, strict=False)))
        del lows[:runs], highs[:runs]

    def _forget(self, runs: list[tuple[int, int]]) -> None:
        if self._forgotten >= 0:
            runs.append((self._lowest, self._forgotten))
            runs.sort()
        self._given_up += _between(runs, runs[0][0])
        self._lowest, self._forgotten = runs[0][0], max(high for _, high in runs)

    def __contains__(self, number: int) -> bool:
        if self._low <= number <= self.high or self._lowest <= number <= self._forgotten:
            return True
        if self._bits:
            place = number - self._first
            return 0 <= place < len(self._bits) * 8 and bool(self._bits[place >> 3] >> (place & 7) & 1)
        place = bisect_right(self._lows, number) - 1
        return place >= 0 and number <= self._highs[place]

    def _insert(self, low: int, high: int) -> None:
        """Put a run in its place, joined with its neighbours where it touches them."""
        if high < low:
            return
        if self._bits:
            if self._cover(low, high):
                self._fill(low, high)
                return
            self._give_up_bits()
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

    @property
    def lowest(self) -> int:
        """The lowest number that was seen; of none, the one that is expected."""
        found = [self._low, *self._lows[:1]]
        if self._bits:
            found.append(self._in_bits()[0])
        if self._forgotten >= 0:
            found.append(self._lowest)
        return min(found)

    def runs(self) -> list[tuple[int, int]]:
        """All runs (first, last), in order."""
        found = list(zip(self._lows, self._highs, strict=True))
        for place, byte in enumerate(self._bits):
            number = self._first + place * 8
            for bit in range(8):
                if byte >> bit & 1:
                    if found and found[-1][1] == number + bit - 1:
                        found[-1] = (found[-1][0], number + bit)
                    else:
                        found.append((number + bit, number + bit))
        if self.high >= self._low:
            if found and found[-1][1] == self._low - 1:
                found.append((found.pop()[0], self.high))
            else:
                found.append((self._low, self.high))
        return sorted(found)

    def holes(self, first: int, last: int | None = None) -> int:
        """How many numbers from `first` up to the highest one are missing. `last`: up to that one, which is not above
        the highest. Those that were given up count in any case: they are missing for good.
        """
        runs = list(zip(self._lows, self._highs, strict=True))
        missing = self._given_up
        if self._bits:
            low, high, between = self._in_bits(last)
            runs.append((low, high))
            missing += between
        if self.high >= self._low:
            runs.append((self._low, self.high))
        if self._forgotten >= 0:
            runs.append((self._lowest, self._forgotten))
        if last is not None:
            runs = [*(run for run in runs if run[0] <= last), (last + 1, last + 1)]
        return missing + _between(sorted(runs), first)

    def __sizeof__(self) -> int:
        # A list has 8 bytes for a number, and the number itself takes 32.
        return (
            object.__sizeof__(self) + (self._lows.__sizeof__() + self._highs.__sizeof__()) * 5 + self._bits.__sizeof__()
        )


def _between(runs: list[tuple[int, int]], first: int) -> int:
    """How many numbers from `first` up to the end of the last run are in none."""
    missing = 0
    for low, high in runs:
        missing += max(0, low - first)
        first = max(first, high + 1)
    return missing
