"""Who waits for what, as far as an inspector was told, and which of that is a deadlock.

Of this process the primitives themselves say who holds them, at the moment one looks; of others, records do. A waiting
task's record lists the holders, so that nothing needs to be remembered of what nobody waits for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any, Final

from ..diagnostics import warn_once
from ..notices import Waiting
from ..snapshot import Finding
from ..telling import Telling
from .awaited import awaited_by, is_blocked, tasks_awaiting_tasks
from .deadlocks import cores_of, dead_among
from .findings import LOGGER
from .held import HELD, Hold, Owner, Resource, Wait
from .owners import innermost_span, owner_of
from .tasks import all_tasks
from .threads import Stopped, Threads, suspended_at, work_awaited
from .timers import cancelled_with, reached_by_timers
from .wording import Core, Tied, finding_of

__all__ = ["Waits"]

#: A look that took up to so many ns is repeated as often as somebody asks; after a longer one there is a rest, so that
#: looks take at most 3 % of one core: the other detectors take one or two, and all of them are to take at most 5.
_SHORT: Final = 1_000_000
_REST: Final = 33

#: ("task", number of its owner) or ("resource", id).
_Node = tuple[str, int]
_Dead = dict[_Node, list[list[_Node]]]
_Key = frozenset[tuple[Any, ...]]


class Waits:
    """Those of one inspector. `live`: the numbers of the spans that are live."""

    def __init__(self, live: Container[int]) -> None:
        self.live = live
        #: Whether the tasks and threads of this process are looked at, too.
        self.first_hand = True
        self.by_owner: dict[int, Wait] = {}
        #: The waits for each resource, by its id, by number of the owner.
        self.waiting_for: dict[int, dict[int, Wait]] = {}
        #: Whether waits of this process are announced here: then their records say nothing new.
        self.at_first_hand = False
        #: Deadlocks that are no more, and that nobody was told of yet.
        self.dissolved: deque[Finding] = deque()
        self._told_resources: dict[int, Resource] = {}
        self._told_owners: dict[int, Owner] = {}
        self._roots_seen: set[int] = set()
        self._suspected: set[_Key] = set()
        self._found: dict[_Key, Finding] = {}
        self._resting_until = 0
        # During a look: owners met, those whose wait a timer ends, and futures that have no task behind them.
        self._owners: dict[int, Owner] = {}
        self._timed: set[int] = set()
        self._plain: set[int] = set()
        # Threads that wait for what a task holds: by number of the owner, and who stops which event loop, by its id.
        self._threads = Threads()
        self._stopped: dict[int, Stopped] = {}
        self._stops: dict[int, Owner] = {}

    # -- what is told ------------------------------------------------------------------------------------------------

    def note(self, notice: Waiting) -> None:
        """A task of this process begins to wait, or is through."""
        self.at_first_hand = True
        if notice.over:
            self._end(notice.wait)
        else:
            self._begin(notice.wait)

    def _begin(self, wait: Wait) -> None:
        before = self.by_owner.get(wait.owner.number)
        if before is not None:
            self._end(before)
        self.by_owner[wait.owner.number] = wait
        self.waiting_for.setdefault(wait.resource.id, {})[wait.owner.number] = wait

    def _end(self, wait: Wait) -> None:
        number, id = wait.owner.number, wait.resource.id
        if self.by_owner.get(number) is not wait:
            return
        del self.by_owner[number]
        waiting = self.waiting_for[id]
        del waiting[number]
        if not waiting:
            del self.waiting_for[id]
            if self._told_resources.pop(id, None) is not None and not self._told_resources:
                self._told_owners.clear()
                self._roots_seen.clear()

    def tell(self, telling: Telling, span: str) -> None:
        """The same out of a record of a span of the name `span`. What does not say of which task and which resource it
        is, says nothing here.
        """
        said = telling.said
        told = said.get("resource")
        if told is None or not told[2] or "owner" not in said:
            return
        kind, name, id = told
        if telling.kind != "wait" and id not in self._told_resources:
            return  # nobody waits for it
        owner = self._owner_told(said)
        if telling.kind == "wait":
            resource = Resource(kind, name, id)
            resource.paired = True
            resource.open = said.get("open", False)
            for held in said.get("holders", ()):
                holder = self._owner_told(held)
                hold = Hold(
                    holder, held["t"], held.get("at", ""), span=held.get("id", 0), span_name=held.get("name", "")
                )
                resource.holders[holder.number] = hold._replace(permits=held.get("count", 1))
            given_up = self.by_owner.get(owner.number)
            if given_up is not None:
                # The record of its end is missing. It ends first, for with it the resource may be forgotten.
                self._end(given_up)
            known = self._told_resources.setdefault(id, resource)
            # What the latest wait says of a resource holds for those before it too.
            known.holders, known.open = resource.holders, resource.open
            at = said.get("at", "")
            self._begin(Wait(owner, known, telling.t, at, telling.number, span, "timeout" in said))
            return
        wait = self.by_owner.get(owner.number)
        if wait is not None and wait.resource.id == id:
            self._end(wait)
        elif telling.kind == "release":
            self._give_back(self._told_resources[id], owner)
        if telling.kind == "acquire" and kind in HELD and id in self._told_resources:
            holders = self._told_resources[id].holders
            before = holders.get(owner.number)
            if before is not None and kind == "semaphore":
                holders[owner.number] = before._replace(permits=before.permits + 1)
            else:
                at = said.get("at", "")
                holders[owner.number] = Hold(owner, telling.t, at, span=telling.number, span_name=span)

    @staticmethod
    def _give_back(resource: Resource, owner: Owner) -> None:
        hold = resource.holders.get(owner.number)
        if hold is None:
            resource.open = True
        elif hold.permits > 1:
            resource.holders[owner.number] = hold._replace(permits=hold.permits - 1)
        else:
            del resource.holders[owner.number]

    def _owner_told(self, said: dict[str, Any]) -> Owner:
        number = said["owner"]
        owner = self._told_owners.get(number)
        if owner is None:
            owner = self._told_owners[number] = Owner(number, said.get("task", "task"), None, said.get("root", 0))
        owner.over = owner.over or said.get("over", False)
        if owner.root in self.live:
            self._roots_seen.add(owner.root)
        return owner

    def take_over(self, before: Waits) -> None:
        """Go on in place of others, with what they know of this process."""
        self.first_hand, self.at_first_hand = before.first_hand, before.at_first_hand
        self._threads, self._resting_until = before._threads, before._resting_until
        for wait in before.by_owner.values():
            if wait.owner.task is not None:
                self._begin(wait)

    def carry_over(self, live: Container[int]) -> None:
        """Go on with new books, in which nothing was found yet."""
        self.live = live
        self._suspected.clear()
        self._found.clear()
        self.dissolved.clear()

    # -- looking -----------------------------------------------------------------------------------------------------

    def look(self, now: Callable[[], int], *, sparing: bool) -> tuple[list[Finding], list[Finding]]:
        """Deadlocks that are there for the second time in a row, and those found before that are no more.

        now: gives Unix time in ns. sparing: leave it out if the last look took long and is not long ago.
        """
        started = time.perf_counter_ns()
        if sparing and started < self._resting_until:
            return [], []
        self._drop_the_gone()
        try:
            self._look_at_threads()
            cores = self._cores() if self.live else {}
        finally:
            self._owners.clear()
            self._timed.clear()
            self._plain.clear()
        fresh, gone = self._compare(cores, now)
        took = time.perf_counter_ns() - started
        self._resting_until = 0 if took < _SHORT else started + _REST * took
        return fresh, gone

    def _look_at_threads(self) -> None:
        stopped = self._threads.look(all_tasks) if self.live and self.first_hand else []
        self._stopped = {each.owner.number: each for each in stopped}
        self._stops = {id(each.loop): each.owner for each in stopped if each.loop is not None}

    def _drop_the_gone(self) -> None:
        """Waits whose end nobody told: the task was collected, its loop is closed, or its span is over."""
        for wait in list(self.by_owner.values()):
            if wait.owner.task is None:
                if wait.span not in self.live:
                    self._end(wait)
            else:
                task = wait.owner.task()
                if task is None or task.done():
                    self._end(wait)

    def _dead(self) -> _Dead:
        """What can never go on, with what it waits for."""
        starts: list[_Node] = [("resource", id) for id in self.waiting_for]
        starts += [("task", number) for number in self._stopped]
        if self.live and self.first_hand:
            starts += [self._node_of(task) for task in tasks_awaiting_tasks()]
        dead = dead_among(starts, self._needs_of)
        if dead:
            self._timed = self._ended_by_timers(dead)
            if self._timed:
                dead = dead_among(starts, self._needs_of)
        return dead

    def _cores(self) -> dict[_Key, Core]:
        dead = self._dead()
        stuck = len(self._tasks_in(dead))
        found = (self._core_of(part, dead, stuck) for part in cores_of(dead))
        return {core.key: core for core in found if core is not None}

    def _node_of(self, task: Any) -> _Node:
        return self._node(owner_of(task))

    def _node(self, owner: Owner) -> _Node:
        self._owners[owner.number] = owner
        return "task", owner.number

    def _stopped_by(self, task: Any) -> Owner | None:
        """Who stops the event loop of a task that is not at work itself, or the thread that it has work for."""
        if task is None or not self._stopped:
            return None
        if self._stops:
            found = self._stops.get(id(task.get_loop()))
            if found is not None:
                return found
        work = id(work_awaited(task))
        return next((each.owner for each in self._stopped.values() if work in each.futures), None)

    def _needs_of(self, node: _Node) -> Sequence[Sequence[_Node]] | None:
        kind, number = node
        if kind == "resource":
            return self._needs_of_resource(next(iter(self.waiting_for[number].values())).resource)
        if number in self._timed:
            return None
        if number in self._stopped:
            return self._needs_of_resource(self._stopped[number].wait.resource)
        wait = self.by_owner.get(number)
        owner = self._owner_of(number)
        task = None if owner.task is None else owner.task()
        stopped_by = self._stopped_by(task)
        if stopped_by is not None:
            return [[self._node(stopped_by)]]
        if wait is not None:
            if wait.timed or (task is not None and not is_blocked(task)):
                return None
            return [[("resource", wait.resource.id)]]
        needs = None if task is None else awaited_by(task, self._plain)
        return needs and [[self._node_of(each) for each in those] for those in needs]

    def _needs_of_resource(self, resource: Resource) -> Sequence[Sequence[_Node]] | None:
        freers = resource.freers()
        if freers is None:
            return None
        nodes: list[_Node] = []
        for hold in freers:
            if not self._is_over(hold.owner):
                nodes.append(self._node(hold.owner))
            elif resource.kind not in HELD:
                return None  # whoever takes its place may do it
        return [nodes]

    def _is_over(self, owner: Owner) -> bool:
        """Whether a task has come to its end."""
        if owner.task is None:
            return owner.over or (owner.root in self._roots_seen and owner.root not in self.live)
        task = owner.task()
        return task is None or bool(task.done())

    def _ended_by_timers(self, dead: _Dead) -> set[int]:
        """Of the dead, those that a timer will cancel or wake after all, and those whose loop does not run any more."""
        by_loop: dict[Any, dict[int, set[int]]] = {}
        found: set[int] = set()
        for kind, number in dead:
            numbers = [number] if kind == "task" else list(self.waiting_for[number])
            for each in numbers:
                owner = self._owner_of(each)
                task = None if owner.task is None else owner.task()
                if task is None or id(task.get_loop()) in self._stops:
                    continue  # no timer of that loop will go off
                if task.get_loop().is_closed():
                    found.add(each)
                    continue
                touched = by_loop.setdefault(task.get_loop(), {})
                for thing in (*cancelled_with(task), getattr(task, "_fut_waiter", None)):
                    if thing is not None:
                        touched.setdefault(id(thing), set()).add(each)
        for loop, touched in by_loop.items():
            for reached in reached_by_timers(loop, set(touched)):
                found |= touched[reached]
        return found

    def stuck(self) -> list[Owner]:
        """All tasks that wait, at this moment, for what will not come."""
        try:
            dead = self._dead()
            return [self._owner_of(number) for number in self._tasks_in(dead)]
        finally:
            self._owners.clear()
            self._timed.clear()
            self._plain.clear()

    def _tasks_in(self, dead: _Dead) -> set[int]:
        """The tasks among the dead, and those that wait for a dead resource and hold none themselves."""
        tasks = {number for kind, number in dead if kind == "task"}
        for kind, number in dead:
            if kind == "resource":
                tasks.update(each for each in self.waiting_for[number] if each not in self._timed)
        return tasks

    def _owner_of(self, number: int) -> Owner:
        if number in self._stopped:
            return self._stopped[number].owner
        wait = self.by_owner.get(number)
        return self._owners[number] if wait is None else wait.owner

    def _core_of(self, part: list[_Node], dead: _Dead, stuck: int) -> Core | None:
        """The core that a strongly connected part is; None where nobody waits in it."""
        tied: list[Tied] = []
        for kind, number in part:
            if kind == "task":
                owner = self._owner_of(number)
                stopped_by = self._stopped_by(None if owner.task is None else owner.task())
                if number in self._stopped:
                    tied.append(self._tied(owner, self._stopped[number].wait, []))
                    continue
                if stopped_by is not None:
                    tied.append(self._tied(owner, None, [stopped_by], suspended_at(owner.task and owner.task())))
                    continue
                wait = self.by_owner.get(number)
                awaited = [] if wait else [self._owners[each] for those in dead[kind, number] for _, each in those]
                tied.append(self._tied(owner, wait, awaited))
        if not tied:
            # A resource that nobody is left to give back: shown by the one who has waited longest.
            (_, id), *_ = part
            waits = [wait for wait in self.waiting_for[id].values() if wait.owner.number not in self._timed]
            if not waits:
                return None
            first = min(waits, key=lambda wait: (wait.since, wait.owner.number))
            tied.append(self._tied(first.owner, first, []))
        elif len(part) == 1 and not dead[part[0]][0]:
            return None
        tied.sort(key=lambda each: (each.since, each.owner.number))
        if not any(each.span in self.live for each in tied):
            return None
        return Core(tuple(tied), max(0, stuck - len(tied)))

    def _tied(self, owner: Owner, wait: Wait | None, awaited: list[Owner], suspended_at: str = "") -> Tied:
        if wait is not None:
            return Tied(owner, wait, [], wait.span, wait.span_name)
        task = None if owner.task is None else owner.task()
        return Tied(owner, None, awaited, *((0, "") if task is None else innermost_span(task)), suspended_at)

    def _compare(self, cores: dict[_Key, Core], now: Callable[[], int]) -> tuple[list[Finding], list[Finding]]:
        """With those of the last look, and with those that were told of."""
        fresh: list[Finding] = []
        still: dict[_Key, Finding] = {}
        for key, core in cores.items():
            before = next((found for found in self._found if found & key), None)
            if before is not None:
                # Perhaps with somebody more in it, or fewer: it is the same one.
                still[key] = self._found.pop(before)
            elif key in self._suspected:
                still[key] = finding_of(core, now() / 1e9)
                fresh.append(still[key])
        gone = list(self._found.values())
        self._found = still
        self._suspected = set(cores)
        return fresh, gone


def tell_dissolved(finding: Finding) -> None:
    """Log that a deadlock is no more. Raises nothing."""
    try:
        LOGGER.info("no longer: %s", finding.message)
    except Exception as error:
        warn_once("finding not logged", type(error).__qualname__, "a finding could not be logged: %r", error)
