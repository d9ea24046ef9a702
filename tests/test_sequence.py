from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncinspect_logging import sequence
from asyncinspect_logging.sequence import Seen


@given(st.lists(st.integers(0, 40)))
def test_is_a_set(numbers: list[int]) -> None:
    """It says of each number whether it was there, like a set."""
    seen, model = Seen(), set[int]()
    for number in numbers:
        assert seen.add(number) is (number not in model)
        model.add(number)
        assert all((n in seen) is (n in model) for n in range(-1, 42))


@given(st.lists(st.integers(0, 40)))
def test_runs_are_apart(numbers: list[int]) -> None:
    """No two runs touch, so that there are as few as can be."""
    seen = Seen()
    for number in numbers:
        seen.add(number)
    runs = seen.runs()
    assert {n for low, high in runs for n in range(low, high + 1)} == set(numbers)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(runs))


def test_shuffled_numbers_end_in_one_run() -> None:
    """Whatever the order, what is complete takes no room."""
    numbers = list(range(1, 20_001))
    random.Random(1).shuffle(numbers)
    seen = Seen()
    assert all(seen.add(number) for number in numbers)
    assert seen.runs() == [(1, 20_000)]
    assert not any(seen.add(number) for number in numbers)
    assert seen.__sizeof__() < 2000


def test_memory_is_bounded_when_every_second_number_is_missing() -> None:
    """Too many holes are given up from below, and what is in them counts as seen."""
    seen, first = Seen(), 1 << 61
    for number in range(first, first + 400_000, 2):
        assert seen.add(number)
    assert len(seen.runs()) <= sequence.MAX_RUNS + 1
    assert seen.__sizeof__() < 5_000_000
    assert first + 1 in seen
    assert first + 399_997 not in seen


def test_numbers_below_all_that_was_seen_stay_unseen() -> None:
    """Holes that were given up say nothing of the numbers of another process, which may begin lower."""
    seen, first = Seen(), 1 << 61
    for number in range(first, first + 4 * sequence.MAX_RUNS, 2):
        seen.add(number)
    assert 5 not in seen
    assert seen.add(5)
    assert not seen.add(5)
    assert first - 1 not in seen


@given(st.lists(st.integers(1, 60), unique=True))
def test_holes(numbers: list[int]) -> None:
    """Numbers up to the highest that are missing, also where runs were given up."""
    seen = Seen(1)
    for number in numbers:
        seen.add(number)
    assert seen.holes(1) == max(numbers, default=0) - len(numbers)


def test_holes_of_what_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are still counted, and numbers in them count as seen."""
    monkeypatch.setattr(sequence, "MAX_RUNS", 10)
    seen = Seen(1)
    for number in range(3, 300, 3):
        if number % 2:
            seen.add(number)
        else:
            seen.skip_to(number)
            assert seen.add(number)
    assert seen.holes(1) == 297 - 99
    assert not seen.add(4)
    assert len(seen.runs()) < 20
