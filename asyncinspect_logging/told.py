"""A span that is known from its records alone: of another process, from a queue, or out of a log.

It has the attributes of `spans.Span` and of its tally that the inspector and the views read, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .states import OUTCOMES, TaskState, next_state

__all__ = ["ToldSpan"]


class _ToldTally:
    """The tallies as the records give them. Times in ns."""

    __slots__ = ("busy", "max_poll", "polls", "scheduled", "self_wakes", "slow_polls", "slow_waits", "wakes")

    def __init__(self) -> None:
        self.polls = self.wakes = self.self_wakes = self.busy = self.scheduled = self.max_poll = 0
        self.slow_polls: dict[int, int] | None = None
        self.slow_waits: dict[int, int] | None = None


class ToldSpan:
    """State machine of one span over its payloads."""

    __slots__ = (
        "at",
        "entered_at",
        "error",
        "exited_at",
        "fields",
        "id",
        "links",
        "name",
        "number",
        "outcome",
        "parent_closed",
        "parent_id",
        "spawned_at",
        "state",
        "tally",
        "task_name",
        "thread",
        "trace_id",
        "wall_offset",
    )

    def __init__(self, number: int, name: str) -> None:
        self.number = number
        self.id = f"{number:016x}"
        self.name = name
        self.state: TaskState | None = None
        self.fields: dict[str, Any] = {}
        self.links: tuple[str, ...] = ()
        self.parent_id: str | None = None
        self.trace_id = ""
        self.parent_closed = False
        self.task_name: str | None = None
        self.thread: int | None = None
        self.at: str | None = None
        self.spawned_at = self.entered_at = self.exited_at = 0
        self.outcome: str | None = None
        self.error: Mapping[str, Any] | None = None
        self.tally = _ToldTally()
        self.wall_offset = 0

    @property
    def seen_stepping(self) -> bool:
        """Whether anybody saw the steps (see `TaskView`)."""
        return self.tally.polls > 1 or self.tally.max_poll > 0

    def apply(self, payload: Mapping[str, Any]) -> bool:
        """Take a payload without flaw in; returns False where it cannot be placed."""
        kind = payload["kind"]
        if self.state not in (None, TaskState.PENDING) and kind in ("spawn", "enter"):
            # Overtaken by a later record of the span: what it says is still news, where the span stands is not.
            if kind == "enter" and self.entered_at:
                return False
            self._introduce(payload)
            return True
        state = next_state(self.state, kind, payload.get("outcome"))
        if state is None:
            return False
        self.state = state
        if kind in ("spawn", "enter"):
            self._introduce(payload)
        elif kind == "resume":
            self.tally.polls += 1
        elif kind == "wake":
            self.tally.wakes += 1
        elif kind == "record":
            self.fields.update(payload.get("fields") or {})
        elif kind == "exit":
            self._close(payload)
        return True

    def _introduce(self, payload: Mapping[str, Any]) -> None:
        t = payload["t"]
        if payload["kind"] == "enter":
            self.entered_at = t
            self.tally.polls += 1
            self.spawned_at = self.spawned_at or t
        else:
            self.spawned_at = t
        self.wall_offset = payload["wall"] - t
        self.trace_id = payload.get("trace") or self.trace_id
        self.parent_id = payload.get("parent") or self.parent_id
        self.task_name = payload.get("task") or self.task_name
        self.thread = payload.get("thread") or self.thread
        self.at = payload.get("at") or self.at
        self.links = tuple(payload.get("links") or self.links)
        self.parent_closed = bool(payload.get("parent_closed") or self.parent_closed)
        self.fields = {**(payload.get("fields") or {}), **self.fields}

    def _close(self, payload: Mapping[str, Any]) -> None:
        """Tallies close the books: what step records said before is overruled, but never undone."""
        self.outcome = payload["outcome"]
        self.error = payload.get("error")
        t = payload["t"]
        began = self.entered_at or self.spawned_at
        duration = payload.get("duration")
        self.entered_at = began
        self.exited_at = began + (max(0, t - began) if duration is None else duration)
        tally = self.tally
        for key in ("polls", "wakes", "self_wakes", "busy", "scheduled", "max_poll"):
            setattr(tally, key, max(getattr(tally, key), payload.get(key) or 0))
        tally.slow_polls = _buckets(payload.get("slow_polls"))
        tally.slow_waits = _buckets(payload.get("slow_waits"))

    @property
    def final_state(self) -> TaskState | None:
        return None if self.outcome is None else OUTCOMES[self.outcome]


def _buckets(pairs: Any) -> dict[int, int] | None:
    try:
        return {int(bucket): int(count) for bucket, count in pairs if 0 <= bucket <= 12 and count >= 0} if pairs else None
    except (TypeError, ValueError):
        return None


