"""A linter of lifecycles: what in snapshots and in logs cannot be right, or is left undone.

`check` looks at tasks, `check_payloads` at the records of a log, which show more: whether a span ended twice, for one.
Both keep no more of a long log than a bounded number of spans, and give the same flaws in the same order again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from ..records import STEP_KINDS, flaw_of
from ..snapshot import TaskView
from .timeline import HELD, Met, Source, Times, tasks_of, times_of, uses_of

__all__ = ["KINDS", "MAX_FLAWS", "Flaw", "Records", "check", "check_payloads"]

#: Flaws that are listed, unless told otherwise.
MAX_FLAWS: Final = 1000
#: Spans of which something is remembered, for what else is told of them or of those begun in them.
_MAX_KNOWN: Final = 100_000
#: Locks that were not given back, for which somebody else's giving back is waited for.
_MAX_HELD: Final = 10_000
#: Two times closer than this (seconds) may be told in either order: Unix times are floats, and a child ends a moment
#: before or after what awaits it.
_BLUR: Final = 1e-5
#: Spans of one process have these bits of their ids in common; what other processes' clocks say is not compared.
_PROCESS_BITS: Final = 32

#: What there is to be found, and what to do about it.
KINDS: Final[Mapping[str, str]] = {
    "outlives_parent": "Await the child before the parent ends, or give it `parent=None` if it is to go on by itself.",
    "began_after_parent": "Begin it before the parent ends, or with `parent=None`: its context is that of a span that "
    "is over.",
    "before_parent": "A child cannot begin before its parent: look for lines that were edited, or for a clock that was "
    "set while the program ran.",
    "held_at_exit": "Give the lock back in the span that takes it, by `async with`.",
    "backwards": "Time went backwards: look for lines that were edited, or logs of different runs in one file.",
    "busier_than_long": "A task cannot hold the loop for longer than it lasts: look for lines that were edited.",
    "after_exit": "A span was left while its coroutine went on: enter and leave it in the same coroutine, by `with`.",
    "double_enter": "A span object serves once: make a new one each time, or use `span` as a decorator.",
    "double_exit": "A span ends once: leave it by `with`, and do not write records of your own under its id.",
    "never_began": "Its beginning is missing: give all files of the log, those from before a rotation too.",
    "steps_without_driver": "Step records are written by drivers, and its exit says that it had none: look for records "
    "of two spans under one id.",
    "left_off": "Mend those above first.",
}


class Flaw(NamedTuple):
    """`kind` is one of `KINDS`; `name` is the span's, `span_ids` are of the spans concerned, the one to look at first.
    `message` says what is wrong, `advice` what to do.
    """

    kind: str
    name: str
    span_ids: tuple[str, ...]
    message: str
    advice: str


class _Flaws:
    """The first so many, and how many there were."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.found: list[Flaw] = []
        self.left_off = 0

    def add(self, kind: str, name: str, span_ids: tuple[str, ...], message: str) -> None:
        if len(self.found) < self.limit:
            self.found.append(Flaw(kind, name, span_ids, message, KINDS[kind]))
        else:
            self.left_off += 1

    def all(self) -> list[Flaw]:
        if self.left_off:
            flaw = Flaw("left_off", "", (), f"{self.left_off:,} more flaws are not listed", KINDS["left_off"])
            return [*self.found, flaw]
        return self.found


# -- of tasks --------------------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    id: str
    name: str
    times: Times


def check(source: Source, *, limit: int = MAX_FLAWS) -> list[Flaw]:
    """Flaws of the tasks of a Snapshot or a stream of tasks, in the order in which their tasks come; at most `limit`,
    and one more that says how many there were beyond that. Raises TypeError for another source.

    Locks are only known of where the log or the snapshot has step records (level TRACE).
    """
    making = _Tasks(limit)
    for task in tasks_of(source):
        making.take(task)
    return making.done()


class _Tasks:
    def __init__(self, limit: int) -> None:
        self.flaws = _Flaws(limit)
        self.known: OrderedDict[str, _Seen] = OrderedDict()
        # Of parents that were not seen yet: the child that began first, and the one that ended last.
        self.children: OrderedDict[str, tuple[_Seen, _Seen]] = OrderedDict()
        # Locks not given back by who took them, and those given back by who had not taken them: by resource, the time.
        self.held: list[tuple[TaskView, str, float]] = []
        self.returned: dict[str, list[float]] = {}
        self.returned_count = 0
        self.met = Met()

    def take(self, task: TaskView) -> None:
        times = times_of(task)
        seen = _Seen(task.id, task.name, times)
        self._parents(task, seen)
        self._alone(task, times)
        self._locks(task, times)

    def _parents(self, task: TaskView, seen: _Seen) -> None:
        self.known[task.id] = seen
        if len(self.known) > _MAX_KNOWN:
            self.known.popitem(last=False)
        first_last = self.children.pop(task.id, None)
        if first_last is not None:
            first, last = first_last
            self._begun_in(first, seen)
            self._ended_in(last, seen)
        parent_id = task.parent_id
        if task.parent_closed and parent_id is not None:
            self.flaws.add(
                "began_after_parent",
                task.name,
                (task.id, parent_id),
                f"{task.name} began when its parent {parent_id} was over",
            )
            return
        if parent_id is None or parent_id == task.id or not _same_process(task.id, parent_id):
            return
        parent = self.known.get(parent_id)
        if parent is not None:
            self._begun_in(seen, parent)
            self._ended_in(seen, parent)
            return
        first, last = self.children.get(parent_id, (seen, seen))
        if seen.times.spawned < first.times.spawned:
            first = seen
        if seen.times.ended > last.times.ended:
            last = seen
        self.children[parent_id] = first, last
        self.children.move_to_end(parent_id)
        if len(self.children) > _MAX_KNOWN:
            self.children.popitem(last=False)

    def _begun_in(self, child: _Seen, parent: _Seen) -> None:
        early = parent.times.spawned - child.times.spawned
        if early > _BLUR:
            self.flaws.add(
                "before_parent",
                child.name,
                (child.id, parent.id),
                f"{child.name} began {early:.6f} s before its parent {parent.name}",
            )

    def _ended_in(self, child: _Seen, parent: _Seen) -> None:
        late = child.times.ended - parent.times.ended
        if not parent.times.over or late <= _BLUR:
            return
        did = f"ended {late:.6f} s after" if child.times.over else f"goes on {late:.6f} s after the end of"
        self.flaws.add(
            "outlives_parent", child.name, (child.id, parent.id), f"{child.name} {did} its parent {parent.name}"
        )

    def _alone(self, task: TaskView, times: Times) -> None:
        if times.began < times.spawned - _BLUR:
            self.flaws.add("backwards", task.name, (task.id,), f"{task.name} was entered before it was spawned")
        if times.ended < times.began - _BLUR:
            self.flaws.add("backwards", task.name, (task.id,), f"{task.name} was left before it was entered")
        if task.duration is not None and task.busy > task.duration + _BLUR:
            self.flaws.add(
                "busier_than_long",
                task.name,
                (task.id,),
                f"{task.name} held the loop for {task.busy:.6f} s and lasted {task.duration:.6f} s",
            )
        if times.over:
            late = [event for event in task.events if event.kind in _STEPS and event.at > times.ended + _BLUR]
            if late:
                self.flaws.add(
                    "after_exit",
                    task.name,
                    (task.id,),
                    f"{task.name} has {len(late)} step{'s' * (len(late) > 1)} after its exit, the last one "
                    f"({late[-1].kind}) {late[-1].at - times.ended:.6f} s",
                )

    def _locks(self, task: TaskView, times: Times) -> None:
        uses = uses_of(task, times, self.met)
        if times.over:
            for hold in uses.holds:
                if not hold.released and len(self.held) < _MAX_HELD:
                    self.held.append((task, str(hold.resource), hold.at))
        for resource, at in uses.returned:
            if resource.kind in HELD and self.returned_count < _MAX_HELD:
                self.returned.setdefault(str(resource), []).append(at)
                self.returned_count += 1

    def done(self) -> list[Flaw]:
        for times in self.returned.values():
            times.sort(reverse=True)
        for task, resource, at in sorted(self.held, key=lambda each: (each[2], each[0].id)):
            # A span around it may have given it back, or one after it: each giving back is of one lock.
            given = self.returned.get(resource, [])
            while given and given[-1] < at:
                given.pop()
            if given:
                given.pop()
                continue
            self.flaws.add("held_at_exit", task.name, (task.id,), f"{task.name} ended with {resource} still held")
        return self.flaws.all()


#: Records that come with a poll.
_STEPS: Final = frozenset({"suspend", "resume"})


def _same_process(one: str, other: str) -> bool:
    try:
        return int(one, 16) >> _PROCESS_BITS == int(other, 16) >> _PROCESS_BITS
    except ValueError:
        return False


# -- of records ------------------------------------------------------------------------------------------------------


class _Told:
    """What the records of one span said."""

    __slots__ = ("last_step", "name", "resumes", "stepless", "times")

    def __init__(self) -> None:
        self.name = ""
        #: Of spawn, enter and exit, as far as they were told, the time (ns) by seq: there should be one of each.
        self.times: dict[str, dict[int, int]] = {}
        self.resumes = 0
        #: Seq, time (ns) and kind of the step with the highest seq.
        self.last_step = _NO_STEP
        #: Whether its exit says that nobody saw its steps.
        self.stepless = False

    @property
    def complete(self) -> bool:
        return "exit" in self.times and ("enter" in self.times or "spawn" in self.times)

    def take(self, kind: str, seq: int, t: int, name: str, stepless: bool) -> None:
        self.name = self.name or name
        if kind in _STEPS:
            self.resumes += kind == "resume"
            if seq > self.last_step[0]:
                self.last_step = seq, t, kind
        elif kind in _ENDS:
            times = self.times.get(kind)
            if times is None:
                self.times[kind] = {seq: t}
            elif len(times) < 3:
                # Three tell of it as well as a thousand.
                times.setdefault(seq, t)
            if kind == "exit":
                self.stepless = stepless


_NO_STEP: Final = (-1, 0, "")
_ENDS: Final = frozenset({"spawn", "enter", "exit"})


def check_payloads(payloads: Iterable[Mapping[str, Any]], *, limit: int = MAX_FLAWS) -> list[Flaw]:
    """Flaws in the records of a log: `payloads` are what stands under the key `asyncinspect`, line by line, in any
    order; what is no record of version 1 is passed over, since `replay` counts it. At most `limit`, and one more that
    says how many there were beyond that.

    The same record again, by its seq, is no flaw: logs are shipped twice. What was said of a span is judged when
    100,000 others have ended after it, or in the end.
    """
    making = Records(limit)
    for payload in payloads:
        making.take(payload)
    return making.done()


class Records:
    """`check_payloads` for payloads that come one by one."""

    def __init__(self, limit: int = MAX_FLAWS) -> None:
        self.flaws = _Flaws(limit)
        self.over: OrderedDict[str, _Told] = OrderedDict()
        self.incomplete: OrderedDict[str, _Told] = OrderedDict()
        # Whether a span may have begun of which nothing is known any more.
        self.forgot = False

    def take(self, payload: Mapping[str, Any]) -> None:
        try:
            if flaw_of(payload) is None:
                self._take(payload)
        except (AttributeError, TypeError):
            pass

    def _take(self, payload: Mapping[str, Any]) -> None:
        stepless = payload.get("polls") == 1 and not payload.get("max_poll") and payload.get("slow_polls") is None
        self.note(
            payload["id"].lower(),
            payload["kind"],
            int(payload["seq"]),
            int(payload["t"]),
            "" if payload["kind"] in STEP_KINDS else str(payload["name"]),
            stepless=stepless,
        )

    def note(self, id: str, kind: str, seq: int, t: int, name: str = "", *, stepless: bool = False) -> None:
        """A record without a flaw; the id in small letters. `stepless`: of an exit, that it knows of no steps."""
        told = self.over.get(id)
        if told is not None:
            told.take(kind, seq, t, name, stepless)
            return
        told = self.incomplete.get(id)
        if told is None:
            told = self.incomplete[id] = _Told()
            if len(self.incomplete) > _MAX_KNOWN:
                self.forgot = True
                self._judge(*self.incomplete.popitem(last=False))
        told.take(kind, seq, t, name, stepless)
        if kind in _ENDS and told.complete:
            self.over[id] = self.incomplete.pop(id)
            if len(self.over) > _MAX_KNOWN:
                self._judge(*self.over.popitem(last=False))

    def done(self) -> list[Flaw]:
        for spans in (self.over, self.incomplete):
            for id, told in spans.items():
                self._judge(id, told)
        return self.flaws.all()

    def _judge(self, id: str, told: _Told) -> None:
        name = told.name or id
        times = told.times
        spawned, entered, left = (_first(times.get(kind)) for kind in ("spawn", "enter", "exit"))

        def add(kind: str, message: str) -> None:
            self.flaws.add(kind, told.name, (id,), message)

        for kind in ("enter", "exit"):
            seqs = sorted(times.get(kind, ()))
            if len(seqs) > 1:
                did = "entered" if kind == "enter" else "left"
                add(f"double_{kind}", f"{name} was {did} more than once: records {', '.join(map(str, seqs))}")
        if entered is None and spawned is None and not self.forgot:
            add("never_began", f"{name} has records, and none of its beginning")
        if spawned is not None and entered is not None and entered[1] < spawned[1]:
            add("backwards", f"{name} was entered {(spawned[1] - entered[1]) / 1e9:.6f} s before it was spawned")
        if left is None:
            return
        began = entered or spawned
        if began is not None and left[1] < began[1]:
            add("backwards", f"{name} was left {(began[1] - left[1]) / 1e9:.6f} s before it was entered")
        seq, t, kind = told.last_step
        if seq > left[0] and t > left[1]:
            add("after_exit", f"{name} has steps after its exit, the last one ({kind}) {(t - left[1]) / 1e9:.6f} s")
        if told.stepless and told.resumes:
            add("steps_without_driver", f"{name} was resumed {told.resumes} times, and its exit has one poll, unseen")


def _first(times: dict[int, int] | None) -> tuple[int, int] | None:
    return min(times.items()) if times else None
