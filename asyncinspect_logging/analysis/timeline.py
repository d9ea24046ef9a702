"""What is read off a task for analysis: when it was, who waited in it for what and how long, and what it held."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from ..snapshot import Snapshot, TaskView
from ..streams import TaskStream

__all__ = [
    "HELD",
    "Hold",
    "Met",
    "Resource",
    "Source",
    "Times",
    "Uses",
    "Wait",
    "children_first",
    "resource_of",
    "rest_of",
    "tasks_awaited",
    "tasks_of",
    "times_of",
    "uses_of",
]


Source: TypeAlias = Snapshot | TaskStream


def tasks_of(source: Source) -> Iterable[TaskView]:
    """Its tasks: a snapshot's so that each comes after those begun in it, a stream's as they come.

    Raises TypeError for anything else.
    """
    if isinstance(source, Snapshot):
        return children_first(source.tasks)
    if not isinstance(source, TaskStream):
        raise TypeError(f"nothing to analyse in a {type(source).__name__}; give a Snapshot or a stream of tasks")
    return source


def rest_of(source: Source) -> Snapshot:
    """What there is besides tasks, once these have been gone through."""
    return source if isinstance(source, Snapshot) else source.rest()


def children_first(tasks: Iterable[TaskView]) -> list[TaskView]:
    """Tasks in an order in which each comes after all that were begun in it, and else as they were. Where parents go
    round in circles, as an edited log may have it, one of them comes too early.
    """
    by_id = {task.id: task for task in tasks}
    parents_first: list[TaskView] = []
    placed: set[str] = set()
    for task in reversed(by_id.values()):
        chain: list[TaskView] = []
        ahead: TaskView | None = task
        while ahead is not None and ahead.id not in placed:
            placed.add(ahead.id)
            chain.append(ahead)
            ahead = by_id.get(ahead.parent_id or "")
        parents_first += chain[::-1]
    return parents_first[::-1]


class Times(NamedTuple):
    """Unix times in seconds. `ended` is the moment of looking where the task is not over."""

    spawned: float
    began: float
    ended: float
    over: bool


def times_of(task: TaskView) -> Times:
    """When a task was spawned, began to run, and ended."""
    began = task.started_at
    for event in task.events:
        if event.kind == "enter":
            began = event.at
            break
    if task.duration is not None:
        return Times(task.started_at, began, began + task.duration, True)
    return Times(task.started_at, began, max(began, task.started_at + task.age), False)


# -- resources -------------------------------------------------------------------------------------------------------

#: Kinds that are held, and given back by who holds them.
HELD: Final = frozenset({"lock", "semaphore", "thread lock"})
_KINDS: Final = (
    "queue get",
    "queue put",
    "queue join",
    "thread lock",
    "semaphore",
    "condition",
    "barrier",
    "event",
    "lock",
)
_MAX_MET: Final = 100_000
#: At the end of an entry: the id of the resource, and the spans that held it or that serve it.
_TAIL: Final = re.compile(r" #([0-9a-f]{16})(?: held by ([0-9a-f]{16}(?:,[0-9a-f]{16})*))?\Z")
#: What a suspend, or a live task, says: `lock:NAME`, `queue:NAME get`.
_ON: Final = re.compile(
    r"(?s)(lock|semaphore|condition|event|barrier|queue):(.*?)( get| put| join)?(?: held by .*?)?"
    r"(?:, timeout in [0-9.]+ s)?\Z"
)


class Resource(NamedTuple):
    """A synchronisation primitive. `kind` is "lock", "semaphore", "queue get", …; `name` is empty where it has none,
    `id` (16 hex digits) where it is not known.
    """

    kind: str
    name: str
    id: str

    def __str__(self) -> str:
        if self.name:
            return f"{self.kind} {self.name}"
        return f"{self.kind} {self.id[-6:]}" if self.id else self.kind

    @property
    def whole(self) -> Resource:
        """The queue of which this is the getting, putting or joining; of other kinds the same again."""
        if not self.kind.startswith("queue "):
            return self
        # Each of the three has an id of its own, so that only the name says that they are of one queue.
        return Resource("queue", self.name, "" if self.name else self.id)


def resource_of(detail: str) -> tuple[Resource, tuple[str, ...]]:
    """The resource that the entry of a `wait`, `acquire` or `release` names, and the ids of the spans that held it."""
    found = _TAIL.search(detail)
    id, holders = "", ()
    if found is not None:
        detail, id = detail[: found.start()], found[1]
        holders = tuple(found[2].split(",")) if found[2] else ()
    for kind in _KINDS:
        if detail == kind:
            return Resource(kind, "", id), holders
        if detail.startswith((f"{kind} ", f"{kind}:")):
            return Resource(kind, detail[len(kind) + 1 :], id), holders
    return Resource(detail, "", id), holders


def _resource_on(text: str) -> Resource | None:
    """That which a suspend waits for, or None where it is something else (a sleep, a task, a socket)."""
    found = _ON.match(text)
    if found is None:
        return None
    kind = found[1] + (found[3] or "") if found[1] == "queue" else found[1]
    name = found[2] + (found[3] or "") if found[1] != "queue" else found[2]
    return Resource(kind, name, "")


class Wait(NamedTuple):
    """A wait for a resource from `at` (Unix time), `seconds` long. `got`: whether that was then acquired; None where
    the wait goes on, or nobody said. `holders`: ids of the spans that held it, or that served those who wait.
    """

    resource: Resource
    at: float
    seconds: float
    got: bool | None
    holders: tuple[str, ...]


class Hold(NamedTuple):
    """A resource held from `at` (Unix time), `seconds` long; `released`: whether the task gave it back."""

    resource: Resource
    at: float
    seconds: float
    released: bool


class Met:
    """Suspensions that were met. All spans that are open in a coroutine tell of each, with the same time, and the
    innermost one, which ends first, is the one that it is counted for. The latest 100,000 are remembered.
    """

    __slots__ = ("_met",)

    def __init__(self) -> None:
        self._met: OrderedDict[tuple[float, str], None] = OrderedDict()

    def first(self, at: float, on: str) -> bool:
        """Whether this is met for the first time."""
        if (at, on) in self._met:
            return False
        self._met[at, on] = None
        if len(self._met) > _MAX_MET:
            self._met.popitem(last=False)
        return True


class Uses(NamedTuple):
    """`acquired`: what was got that is not held, such as an item of a queue. `returned`: when it gave back what it had
    not taken itself.
    """

    waits: tuple[Wait, ...]
    holds: tuple[Hold, ...]
    acquired: tuple[Resource, ...]
    returned: tuple[tuple[Resource, float], ...]


NOTHING: Final = Uses((), (), (), ())
#: Entries of a timeline that say something of resources.
_USING: Final = frozenset({"suspend", "wait", "acquire", "release"})


def uses_of(task: TaskView, times: Times, met: Met) -> Uses:
    """What a task did with resources, by its timeline; of a live task that waits, by what it waits for now, too. `met`:
    what was seen in tasks that came before.
    """
    if task.waiting_on is None and _USING.isdisjoint([event.kind for event in task.events]):
        return NOTHING
    waits: list[Wait] = []
    holds: list[Hold] = []
    acquired: list[Resource] = []
    returned: list[tuple[Resource, float]] = []
    waiting: dict[Resource, tuple[float, tuple[str, ...]]] = {}
    held: dict[Resource, list[float]] = {}
    suspended: list[Wait] = []
    asleep: tuple[Resource, float] | None = None
    reports = False
    for at, kind, detail in task.events:
        if kind == "suspend":
            on = _resource_on(detail)
            asleep = None if on is None or not met.first(at, detail) else (on, at)
        elif kind == "resume" and asleep is not None:
            suspended.append(Wait(asleep[0], asleep[1], max(0.0, at - asleep[1]), None, ()))
            asleep = None
        if kind not in ("wait", "acquire", "release"):
            continue
        reports = True
        resource, holders = resource_of(detail)
        if kind == "wait":
            waiting[resource] = at, holders
            continue
        since = waiting.pop(resource, None)
        if since is not None:
            waits.append(Wait(resource, since[0], max(0.0, at - since[0]), kind == "acquire", since[1]))
        if kind == "acquire" and resource.kind in HELD:
            held.setdefault(resource, []).append(at)
        elif kind == "acquire":
            acquired.append(resource)
        elif since is None and held.get(resource):
            began = held[resource].pop()
            holds.append(Hold(resource, began, max(0.0, at - began), True))
        elif since is None:
            returned.append((resource, at))
    end = times.ended
    waits += [Wait(each, at, max(0.0, end - at), None, who) for each, (at, who) in waiting.items()]
    holds += [Hold(each, at, max(0.0, end - at), False) for each, since in held.items() for at in since]
    if not reports:
        waits = suspended
        if asleep is not None:
            waits.append(Wait(asleep[0], asleep[1], max(0.0, end - asleep[1]), None, ()))
    if task.waiting_on and task.waiting_since is not None and met.first(task.waiting_since, task.waiting_on):
        now = _resource_on(task.waiting_on)
        if now is not None and not waiting and (asleep is None or reports):
            waits.append(Wait(now, task.waiting_since, max(0.0, end - task.waiting_since), None, ()))
    if not (waits or holds or acquired or returned):
        return NOTHING
    return Uses(tuple(waits), tuple(holds), tuple(acquired), tuple(returned))


def tasks_awaited(task: TaskView, met: Met) -> list[tuple[str, float, float]]:
    """The waits for other tasks that are over, by the timeline: (name of the other one, from, to), in Unix time.
    `met`: what was seen in tasks that came before.
    """
    found = []
    awaited: tuple[str, float] | None = None
    for at, kind, detail in task.events:
        if kind == "suspend":
            awaited = None
            if detail.startswith("task:") and met.first(at, detail):
                awaited = detail.removeprefix("task:"), at
        elif kind == "resume" and awaited is not None:
            found.append((*awaited, max(at, awaited[1])))
            awaited = None
    return found
