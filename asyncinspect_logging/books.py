"""The inspector's books: what is counted, what is live and what is retained.

Spans of this process (`announced`) and records (`placing`) are entered here, always under the inspector's lock, and
the snapshot (`summary`) is read from here.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from .catalogue import DROP_REASONS, DURATION_BOUNDS, OTHER
from .config import Config
from .detect.findings import Findings
from .detect.waiting import Waits
from .notices import Forgotten
from .retention import Retention
from .spans import Span
from .states import LIVE
from .told import ToldSpan
from .totals import Folded, NameTotals, Tallied, nanoseconds

if TYPE_CHECKING:
    from .finished import Finished

__all__ = ["QUIET", "Books", "Suspect"]

#: What the lints are to look at. (A told span is looked at when it ends: `detect.lints.judge_told`.)
Suspect = Span | Forgotten

#: Looks in a row at which there was nothing to watch, after which it is not worth looking.
QUIET: Final = 20


class Books:
    """`config`: the limits. `bounds`: of the histograms of durations, in seconds."""

    def __init__(self, config: Config, bounds: tuple[float, ...] = DURATION_BOUNDS) -> None:
        self.config = config
        self._policy = config.field_policy()
        self.live: dict[int, Span | ToldSpan] = {}
        # Live told spans by state; the states of the others are found when somebody asks.
        self.told_states = dict.fromkeys(LIVE, 0)
        # Of live spans with a tally, what was counted of it already.
        self.folded: dict[int, Folded] = {}
        self.totals: dict[str, NameTotals] = {}
        self.dropped = dict.fromkeys(DROP_REASONS, 0)
        self.retention = Retention(config)
        # Who is given each task that is over.
        self.readers: list[Finished] = []
        self.findings = Findings()
        self.waits = Waits(self.live)
        # Looks of the detectors since somebody told of what is to be watched: a beating loop, or a task that waits.
        self.quiet_looks = QUIET
        # Spans for the lints to look at: those with a step (ns) or so many wakes of their own as these.
        self.suspects: deque[Suspect] = deque()
        self.long_step = round(min(config.slow_poll, config.never_yielded or config.slow_poll) * 1e9)
        self.many_wakes = config.many_self_wakes or 1 << 62
        self.logs = 0
        self.bounds = bounds
        self.bounds_ns = nanoseconds(bounds)

    def is_suspicious(self, tally: Tallied) -> bool:
        """Whether the lints are to look at the span of this tally. (`Announced.take` has it written out, and asks no
        function for each span.)
        """
        return tally.max_poll >= self.long_step or tally.self_wakes >= self.many_wakes

    def total_of(self, name: str, *, again: bool = False) -> NameTotals:
        """The totals of a name; those of all names beyond the limit if there is no room for it. `again`: this was
        asked for the same span before, and so is not to be counted as dropped once more.
        """
        total = self.totals.get(name)
        if total is not None:
            return total
        shown = self._policy.hide(name)
        if shown != name:
            return self.total_of(shown, again=again)
        limit = self.config.max_names
        if limit is not None and len(self.totals) - (OTHER in self.totals) >= limit and name != OTHER:
            if not again:
                self.dropped["max_names"] += 1
            return self.total_of(OTHER)
        total = self.totals[name] = NameTotals(name, len(self.bounds))
        return total

    def add_bounds(self, bounds: tuple[float, ...]) -> None:
        """Count durations at these bounds (seconds) too, from now on."""
        merged = tuple(sorted({*self.bounds, *bounds}))
        if merged == self.bounds:
            return
        positions = [merged.index(bound) for bound in self.bounds] + [len(merged)]
        for total in self.totals.values():
            total.rebucket(positions, len(merged))
        self.bounds, self.bounds_ns = merged, nanoseconds(merged)
