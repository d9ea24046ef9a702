"""The label values and bucket bounds of the metric catalogue, shared by the inspector and every exporter."""

from __future__ import annotations

from typing import Final

__all__ = [
    "DROP_REASONS",
    "DURATION_BOUNDS",
    "EVENT_TYPES",
    "LAG_BOUNDS",
    "LINTS",
    "MEMORY_COMPONENTS",
    "OTHER",
    "POLL_COUNT_BOUNDS",
    "STEP_BOUNDS",
]

#: Name under which spans count once `Config.max_names` names are known.
OTHER: Final = "_other_"

EVENT_TYPES: Final = ("spawn", "poll", "wake", "drop", "log")
DROP_REASONS: Final = ("max_tasks", "max_events", "max_names", "malformed", "duplicate", "gap")
MEMORY_COMPONENTS: Final = ("tasks", "events", "metadata")
LINTS: Final = ("self_wakes", "never_yielded", "lost_waker", "long_poll", "leaked", "never_awaited")

# Seconds, except POLL_COUNT_BOUNDS.
DURATION_BOUNDS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STEP_BOUNDS: Final = (0.00001, 0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
LAG_BOUNDS: Final = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
POLL_COUNT_BOUNDS: Final = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000)
