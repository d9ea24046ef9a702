"""What a task can be, and which record takes it from one state to the next.

The table is data and `next_state` is a pure function over it, so that the live path, the replay of a log and the
property tests share one definition (contract: the record protocol, version 1).
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["FINAL", "LIVE", "OUTCOMES", "TRANSITIONS", "TaskState", "next_state"]


class TaskState(enum.StrEnum):
    """State of a task; the value is the `state` label in the metrics."""

    PENDING = "pending"
    RUNNING = "running"
    BLOCKED = "blocked"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


LIVE: Final = (TaskState.PENDING, TaskState.RUNNING, TaskState.BLOCKED)
FINAL: Final = (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)

#: Outcome of an exit record -> the final state it counts under.
OUTCOMES: Final[dict[str, TaskState]] = {
    "completed": TaskState.COMPLETED,
    "failed": TaskState.FAILED,
    "cancelled": TaskState.CANCELLED,
    "abandoned": TaskState.CANCELLED,
    "interrupted": TaskState.CANCELLED,
}

_P, _R, _B = LIVE

#: (state, kind) -> state. `None` is a span not heard of yet. A pair that is missing cannot be placed, and the record
#: is counted as dropped. "exit" is not listed: it leads from every live state to the state of its outcome.
TRANSITIONS: Final[dict[tuple[TaskState | None, str], TaskState]] = {
    (None, "spawn"): _P,
    (None, "enter"): _R,
    (_P, "enter"): _R,
    (_R, "suspend"): _B,
    # Step records may overtake each other between two files; a live span accepts each of them from every live state.
    (_P, "suspend"): _B,
    (_B, "suspend"): _B,
    (_P, "wake"): _P,
    (_R, "wake"): _R,
    (_B, "wake"): _B,
    (_P, "resume"): _R,
    (_R, "resume"): _R,
    (_B, "resume"): _R,
    **{(s, kind): s for s in LIVE for kind in ("record", "wait", "acquire", "release")},
}


def next_state(state: TaskState | None, kind: str, outcome: str | None = None) -> TaskState | None:
    """The state after a record of `kind`, or None where the record cannot be placed in `state`.

    `outcome` is read for an exit only, and is one of `OUTCOMES`.
    """
    if kind == "exit":
        return OUTCOMES.get(outcome or "") if state in LIVE else None
    return TRANSITIONS.get((state, kind))
