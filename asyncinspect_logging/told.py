"""A span that is known from its records alone: of another process, from a queue, or out of a log.

It has the attributes of `spans.Span` and of its tally that the inspector and the views read, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .states import TaskState, next_state
from .telling import Telling

__all__ = ["ToldSpan"]

#: Kinds that say where the span stands from now on.
_MOVING: Final = frozenset({"spawn", "enter", "suspend", "resume"})
#: What a span's first records say of it, and the slot it goes to.
_INTRODUCED: Final = {
    "trace": "trace_id",
    "parent": "parent_id",
    "task": "task_name",
    "thread": "thread",
    "at": "at",
    "links": "links",
    "parent_closed": "parent_closed",
}
_TALLIES: Final = ("polls", "wakes", "self_wakes", "busy", "scheduled", "max_poll")


class ToldSpan:
    """State machine of one span over its records, in whatever order they come.

    It is its own tally: while the span is live, of the steps that were told one by one; after its exit, of what the
    exit says, which closes the books. Times in ns, the slow steps and waits packed (see `steps.slow`).
    """

    __slots__ = (
        "__weakref__",
        "_enter_told",
        "_field_seqs",
        "_newest",
        "_spawn_told",
        "_timed",
        "at",
        "busy",
        "entered_at",
        "error",
        "exited_at",
        "fields",
        "links",
        "max_poll",
        "name",
        "number",
        "on",
        "outcome",
        "parent_closed",
        "parent_id",
        "polls",
        "scheduled",
        "self_wakes",
        "slow_polls",
        "slow_waits",
        "spawned_at",
        "state",
        "suspended_at",
        "task_name",
        "thread",
        "trace_id",
        "wakes",
        "wall_offset",
    )

    def __init__(self, number: int, name: str) -> None:
        self.number = number
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
        self.polls = self.wakes = self.self_wakes = self.busy = self.scheduled = self.max_poll = 0
        self.slow_polls = self.slow_waits = 0
        self.wall_offset = 0
        #: What it waits for, by its last suspend, and when that was (Unix time in ns).
        self.on: str | None = None
        self.suspended_at = 0
        self._spawn_told = self._enter_told = False
        # Whether the exit had something to say of how long single steps were, be it that none of them was slow.
        self._timed = False
        # Seq of the newest record, which is the one that says where the span stands (the exit, once that is there); and
        # that of each field.
        self._newest = -1
        self._field_seqs: dict[str, int] = {}

    @property
    def id(self) -> str:
        return f"{self.number:016x}"

    @property
    def trace(self) -> str:
        return self.trace_id

    @property
    def tally(self) -> ToldSpan:
        return self

    @property
    def stepped(self) -> bool:
        """Whether anybody saw the steps: a span without a driver has one poll and no time in it."""
        return self.polls > 1 or self.max_poll > 0 or self._timed

    @property
    def is_entered(self) -> bool:
        """Whether its enter was told."""
        return self._enter_told

    @property
    def last_seq(self) -> int:
        """Of the exit, once it is over."""
        return self._newest

    def apply(self, telling: Telling) -> bool:
        """Take a record in; returns False where it cannot be placed."""
        kind = telling.kind
        if self.outcome is not None:
            return self._apply_late(telling)
        if kind == "exit":
            state = next_state(self.state, kind, telling.said["outcome"])
            if state is None:
                return False
            self.state = state
            self._close(telling)
            return True
        introduces = kind == "enter" or kind == "spawn"
        if introduces and (self._enter_told if kind == "enter" else self._spawn_told):
            return False
        # A record that was overtaken by a newer one is counted, but does not say where the span stands.
        if not introduces or telling.seq > self._newest:
            state = next_state(self.state, kind)
            if state is None:
                return False
            if telling.seq > self._newest and kind in _MOVING:
                self.state, self._newest = state, telling.seq
                if kind == "suspend":
                    self.on, self.suspended_at = telling.said.get("on"), telling.wall
        if introduces:
            self._introduce(telling)
            self.polls += kind == "enter"
        elif kind == "resume":
            self.polls += 1
        elif kind == "wake":
            self.wakes += 1
        elif kind == "record":
            self._merge(telling)
        return True

    def catch_up(self, polls: int, wakes: int, last: Telling | None) -> None:
        """Take in steps that came after the enter and in order: how many polls and wakes there were, and the last
        suspend or resume.
        """
        self.polls += polls
        self.wakes += wakes
        if last is not None:
            state = next_state(self.state, last.kind)
            assert state is not None
            self.state, self._newest = state, last.seq
            if last.kind == "suspend":
                self.on, self.suspended_at = last.said.get("on"), last.wall

    def _apply_late(self, telling: Telling) -> bool:
        """The span is over already. What an overtaken step counted is in the exit; the rest is still news."""
        kind = telling.kind
        if kind == "exit" or (kind == "enter" and self._enter_told) or (kind == "spawn" and self._spawn_told):
            return False
        if kind == "enter":
            self.exited_at += telling.t - self.entered_at
        if kind == "enter" or kind == "spawn":
            self._introduce(telling)
        elif kind == "record":
            self._merge(telling)
        return True

    def _introduce(self, telling: Telling) -> None:
        t, said = telling.t, telling.said
        if telling.kind == "enter":
            self._enter_told = True
            self.entered_at = t
            if not self._spawn_told:
                self.spawned_at = t
        else:
            self._spawn_told = True
            self.spawned_at = t
        # A spawn that was overtaken by its enter knows less than that: not yet the thread, for one.
        overtaken = telling.kind == "spawn" and self._enter_told
        if not overtaken:
            self.wall_offset = telling.wall - t
        for key, slot in _INTRODUCED.items():
            if key in said and not (overtaken and getattr(self, slot)):
                setattr(self, slot, said[key])
        self._merge(telling)

    def _merge(self, telling: Telling) -> None:
        """Of two records that set a field, the later one counts, whichever comes first."""
        seq, seqs = telling.seq, self._field_seqs
        for key, value in telling.said.get("fields", {}).items():
            if seq > seqs.get(key, -1):
                self.fields[key] = value
                seqs[key] = seq

    def _close(self, telling: Telling) -> None:
        """Tallies close the books: what step records said before is overruled, but never undone."""
        said = telling.said
        self.outcome, self._newest = said["outcome"], telling.seq
        self.error = said.get("error")
        began = self.entered_at = self.entered_at or self.spawned_at
        self.exited_at = began + said.get("duration", max(0, telling.t - began))
        for key in _TALLIES:
            value = said.get(key, 0)
            if value > getattr(self, key):
                setattr(self, key, value)
        self._timed = "slow_polls" in said
        self.slow_polls = said.get("slow_polls", 0)
        self.slow_waits = said.get("slow_waits", 0)
