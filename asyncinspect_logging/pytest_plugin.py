"""Fixtures for pytest; see `asyncinspect_logging.testing`."""

# Every test run of an environment with this package loads this plugin, whether it has use for it or not: what only the
# fixtures need is imported when a test asks for them.

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import CapturedSpans, FakeClock

__all__ = ["fake_clock", "inspector"]


@pytest.fixture
def inspector() -> Iterator[CapturedSpans]:
    """An inspector of the spans begun in the test, with assertions such as `assert_completed("fetch_user", times=3)`
    and `assert_no_open_spans()`.
    """
    from .testing import capture_spans

    with capture_spans() as spans:
        yield spans


@pytest.fixture
def fake_clock() -> Iterator[FakeClock]:
    """The clock of all spans in the test; it moves by `fake_clock.advance(seconds)` only."""
    from .testing import FakeClock

    with FakeClock() as clock:
        yield clock
