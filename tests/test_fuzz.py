"""The short form of `make fuzz`: what reads input of others, with inputs that are wrong, the same each time."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest
from loading import load

FUZZ = Path(__file__).resolve().parent / "fuzz"
INPUTS = 150


mutation, targets = load(FUZZ / "mutation.py"), load(FUZZ / "targets.py")


@pytest.fixture(autouse=True)
def _no_findings_on_the_console():
    logger = logging.getLogger("asyncinspect.findings")
    logger.setLevel("CRITICAL")
    yield
    logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("name", sorted(targets.TARGETS))
def test_reader_takes_whatever_comes(name):
    target, corpus = targets.TARGETS[name], targets.corpus_of(name)
    assert corpus
    for text in corpus:
        target(text)
    rng = random.Random(name)
    inputs = [mutation.mutated(rng.choice(corpus), corpus, rng) for _ in range(INPUTS)]
    assert len(set(inputs)) > INPUTS // 2
    for data in inputs:
        target(data)


def test_inputs_are_near_what_is_right():
    """Most are not what was there, and many still have a record that can be read."""
    rng, corpus = random.Random(1), targets.corpus_of("record")
    inputs = [mutation.mutated(rng.choice(corpus), corpus, rng) for _ in range(INPUTS)]
    assert sum(data in corpus for data in inputs) < INPUTS // 10
    assert sum(b'"kind"' in data and b'"seq"' in data for data in inputs) > INPUTS // 2
    assert max(map(len, inputs)) <= mutation.MOST
