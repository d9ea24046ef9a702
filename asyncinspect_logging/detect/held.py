"""Who holds what, and who waits for it: the plain objects that both sides of the deadlock detection share.

On the application's side (`sync`) they are kept up to date as primitives are used; of another process, or out of a
log, the inspector's side (`waits`) makes them from records.
"""

from __future__ import annotations

import itertools
import secrets
from types import CodeType
from typing import Any, Final, NamedTuple

from .. import process

__all__ = ["HELD", "THREAD_LOCK", "Hold", "LockResource", "Owner", "Place", "Resource", "Wait", "evidence_id", "new_id"]

#: Of `threading`: who waits for it stops a thread.
THREAD_LOCK: Final = "thread lock"

#: Kinds that are held, and given back by who holds them. The others are waited for until some task does something.
HELD: Final = frozenset({"lock", "semaphore", THREAD_LOCK})

_ids = itertools.count(secrets.randbits(62) + 1)


def new_id() -> int:
    """A number for an owner or a resource, unlike any other, in this process and others."""
    return next(_ids)


class Place(NamedTuple):
    """Where a task was in its program: at which instruction of a code object. The line is found when somebody asks."""

    code: CodeType
    instruction: int

    def __str__(self) -> str:
        found = (line for start, end, line in self.code.co_lines() if start <= self.instruction < end)
        return f"{self.code.co_filename}:{next(found, None) or self.code.co_firstlineno}"


class Owner:
    """One task. `name`: qualified name of its coroutine. `task`: calls to the task while there is one; None for a task
    that is known from records. `root`: number of the span that lasts as long as the task, or 0. `is_task`: False where
    it stands for a thread that is at no task.
    """

    __slots__ = ("for_others", "is_task", "name", "number", "over", "root", "task")

    def __init__(self, number: int, name: str, task: Any = None, root: int = 0, *, is_task: bool = True) -> None:
        self.is_task = is_task
        self.number = number
        self.name = name
        self.task = task
        self.root = root
        #: Whether a record has said that it is over.
        self.over = False
        #: Whether what it acquires is for another task.
        self.for_others = False


class Hold(NamedTuple):
    """What an owner has of a resource since `t` (ns), so many `permits`, taken in the span `span` (number, or 0).
    `scoped`: by an `async with`, so that the same task will give it back.
    """

    owner: Owner
    t: int
    #: Where it was taken: a text, or the code object of a `Place` with the instruction.
    taken: CodeType | str
    instruction: int = 0
    span: int = 0
    span_name: str = ""
    scoped: bool = False
    permits: int = 1

    @property
    def at(self) -> Place | str:
        return self.taken if isinstance(self.taken, str) else Place(self.taken, self.instruction)


class Resource:
    """A synchronisation primitive. `kind` is "lock", "semaphore", "queue get", …

    `holders`: by number of their owners; of a kind that is not held, those who have done before what a waiter needs
    somebody to do. `open`: somebody who is not among them may free it too, as far as is known. `unknown`: holds that
    were taken before anybody looked, or by whom nobody can tell.
    """

    __slots__ = ("heard", "holders", "id", "kind", "name", "open", "paired", "settled", "unknown")

    def __init__(self, kind: str, name: str | None = None, id: int = 0) -> None:
        self.kind = kind
        self.name = name
        self.id = id or new_id()
        self.holders: dict[int, Hold] = {}
        self.open = False
        self.unknown = 0
        #: Whether it was ever given back by who had taken it.
        self.paired = False
        #: Who was last asked to look into its waits, and when (ns).
        self.heard: Any = None
        self.settled = 0

    def freers(self) -> list[Hold] | None:
        """Those of whom one must act for a waiter to go on; None where that is not known."""
        holds = list(self.holders.values())
        if self.open or self.unknown or not holds:
            return None
        # A semaphore may serve as a signal, which one task gives and another takes. It counts as held where it must
        # come back, or always has.
        if self.kind == "semaphore" and not self.paired and not all(hold.scoped for hold in holds):
            return None
        return holds

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}" if self.name else f"{self.kind} {self.id & 0xFFFF:04x}"


class LockResource(Resource):
    """A lock of this process: of the one that has it no more is kept than what makes a `Hold`, which is made when
    somebody asks.
    """

    __slots__ = ("_made", "code", "taken", "told")

    def __init__(self, kind: str, name: str | None = None) -> None:
        #: The values of a `Hold`, or None.
        self.taken: tuple[Any, ...] | None = None
        #: The code that took it last: the application's, and not what it came by.
        self.code: CodeType | None = None
        #: Whether a record said that it was taken, so that one has to say that it is given back.
        self.told = False
        self._made: tuple[Any, dict[int, Hold]] = (None, {})
        super().__init__(kind, name)

    @property
    def holders(self) -> dict[int, Hold]:
        taken = self.taken
        made = self._made
        if made[0] is not taken:
            # In one piece, since the watcher's thread may ask while the lock changes hands.
            made = self._made = (taken, {} if taken is None else {taken[0].number: Hold(*taken)})
        return made[1]

    @holders.setter
    def holders(self, holders: dict[int, Hold]) -> None:
        assert not holders


class Wait:
    """An owner waits for a resource since `since` (monotonic ns), `at` a line, in the span `span` (number, or 0)."""

    __slots__ = ("at", "owner", "resource", "since", "span", "span_name", "timed")

    def __init__(
        self,
        owner: Owner,
        resource: Resource,
        since: int,
        at: Place | str,
        span: int = 0,
        span_name: str = "",
        timed: bool = False,
    ) -> None:
        self.owner = owner
        self.resource = resource
        self.since = since
        self.at = at
        self.span = span
        self.span_name = span_name
        #: Whether it is known to end by a timeout; of a task of this process that is found out when it matters.
        self.timed = timed


def evidence_id(span: int, kind: str, t: int) -> str:
    """How a finding names a record: its span's id, its kind, and its `t`."""
    return f"{process.span_id(span)}:{kind}:{t}"


@process.after_fork
def _begin_anew() -> None:
    global _ids
    _ids = itertools.count(secrets.randbits(62) + 1)
