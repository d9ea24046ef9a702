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


@given(st.lists(st.one_of(st.integers(0, 300), st.integers(0, 20).map(lambda n: -n))))
def test_many_holes_are_a_bitmap(numbers: list[int]) -> None:
    """It says the same; negative: the run that grows is extended by so much, as a caller in a hurry does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "MAX_RUNS", 2)
        patch.setattr(sequence, "_STEP", 2)
        seen, model = Seen(1), set[int]()
        for number in numbers:
            if number < 0:
                model.update(range(seen.high + 1, seen.high + 1 - number))
                seen.high -= number
            else:
                assert seen.add(number) is (number not in model)
                model.add(number)
        assert all((n in seen) is (n in model) for n in range(-1, max(model, default=0) + 9))
        assert {n for low, high in seen.runs() for n in range(low, high + 1)} == model
        assert all(before[1] + 1 < after[0] for before, after in pairwise(seen.runs()))
        assert seen.holes(1) == max(model, default=0) - len(model - {0})


@given(st.lists(st.tuples(st.integers(1, 400), st.booleans())))
def test_what_does_not_fit_is_given_up(numbers: list[tuple[int, bool]]) -> None:
    """Never is a number new twice, and none is missing that was there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "MAX_RUNS", 2)
        patch.setattr(sequence, "MAX_BITS", 64)
        patch.setattr(sequence, "_STEP", 1)
        seen, model = Seen(1), set[int]()
        for number, skip in numbers:
            if skip and number > seen.high + 1:
                seen.skip_to(number)
            if seen.add(number):
                assert number not in model
            model.add(number)
            assert number in seen
            assert len(seen._bits) <= 8
        assert all(number in seen for number in model)
        # Those in holes that were given up and came all the same count as missing, and as nothing else.
        assert seen.holes(1) >= max(model, default=0) - len(model)


def test_half_a_million_shuffled_numbers() -> None:
    """Exact, in little memory, and in time that grows as they do."""
    numbers = list(range(1, 500_001))
    random.Random(1).shuffle(numbers)
    seen = Seen(1)
    assert all(map(seen.add, numbers))
    assert seen.holes(1) == 0
    assert seen.__sizeof__() < 1_000_000
    assert not any(map(seen.add, numbers[:1000]))


def test_memory_is_bounded_when_every_second_number_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many holes are given up, and what is in them counts as seen."""
    monkeypatch.setattr(sequence, "MAX_BITS", 300_000)
    monkeypatch.setattr(sequence, "MAX_BITS", 0)
    seen, first = Seen(), 1 << 61
    for number in range(first, first + 400_000, 2):
        assert seen.add(number)
    assert len(seen.runs()) <= sequence.MAX_RUNS + 150_001
    assert seen.__sizeof__() < 5_000_000
    assert first + 1 in seen
    assert first + 399_997 not in seen


def test_numbers_below_all_that_was_seen_stay_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes that were given up say nothing of the numbers of another process, which may begin lower."""
    monkeypatch.setattr(sequence, "MAX_BITS", 0)
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


@given(st.lists(st.integers(1, 300), unique=True, min_size=1), st.integers(0, 300), st.sampled_from([2, 1000]))
def test_holes_up_to_a_number(numbers: list[int], last: int, max_runs: int) -> None:
    """Whatever is above it, as runs and as a bitmap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "MAX_RUNS", max_runs)
        patch.setattr(sequence, "_STEP", 2)
        seen = Seen(1)
        for number in numbers:
            seen.add(number)
        last = min(last, max(numbers))
        assert (seen.lowest, seen.high) == (min(numbers), max(numbers))
        assert seen.holes(1, last) == len(set(range(1, last + 1)) - set(numbers))


def test_holes_of_what_was_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are still counted, and numbers in them count as seen."""
    monkeypatch.setattr(sequence, "MAX_RUNS", 10)
    monkeypatch.setattr(sequence, "MAX_BITS", 0)
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
