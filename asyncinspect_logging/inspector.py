"""The inspector: what all the records of spans add up to.

Spans of this process are announced by a single append, at begin and at end, and everything is worked out in batches
later, under a lock that the application never waits for. That makes a span cheap, keeps threads, and finalisers that
run in the middle of anything, from meeting half-changed numbers, and needs no lock on the way in.
"""

from __future__ import annotations

import logging
import sys
import threading
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Final, NamedTuple

from . import clock as system_clock
from . import opened, process
from .catalogue import DROP_REASONS, DURATION_BOUNDS, EVENT_TYPES, LAG_BOUNDS, OTHER
from .config import Config
from .diagnostics import warn_once
from .errors import ConfigError
from .memory import bytes_of, estimate
from .records import STEP_KINDS, flaw_of, payload_of
from .retention import Note, Retention
from .routing import Clock, Listener
from .sequence import Seen
from .snapshot import Histogram, NameView, Snapshot, TaskView
from .spans import Misuse, Span, Stepped
from .states import LIVE, OUTCOMES, TaskState
from .told import ToldSpan
from .totals import Folded, NameTotals, nanoseconds
from .views import task_view

__all__ = ["Inspector"]

#: Records that wait for the one that would place them, and finished told spans remembered for late records.
_MAX_UNPLACED: Final = 10_000
#: Announcements after which `apply` works the batch off; spans of this process do so by `Listener.settle`.
_BATCH: Final = 128
#: Owners looked at in a scrape for having been collected; a full snapshot looks at all.
_OWNERS_A_SCRAPE: Final = 100
#: Slots of a span that lead to what it shares with others, or to what is not the inspector's.
_SHARED_SLOTS: Final = frozenset({"_audience", "_below", "_route", "_token", "_owner", "_parent", "steps", "code", "name"})


class _Annotation(NamedTuple):
    note: Note


class Inspector:
    """Counts everything, keeps some of it, and gives frozen snapshots. Safe to use from any thread.

    config: limits and sampling; default: `Config()`.
    clock: an object with `monotonic_ns()` and `time_ns()`, both in ns, such as `testing.FakeClock`; it then also sets
        the time of the spans whose handler feeds this inspector. Default: the system's clock.
    """

    _default: ClassVar[Inspector | None] = None
    _default_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, config: Config | None = None, *, clock: Any = None) -> None:
        if config is not None and not isinstance(config, Config):
            raise ConfigError(f"config={config!r} is not a Config; write Inspector(Config(max_tasks=…))")
        self.config = Config() if config is None else config
        self.clock: Clock = system_clock if clock is None else clock
        self.field_policy = self.config.field_policy()
        # What spans of this process and front ends append to, in any thread, without a lock.
        self._begun: deque[Any] = deque()
        self._ended: deque[Span] = deque()
        self._inbox: deque[Any] = deque()
        # Re-entrant, since a finaliser that runs while a batch is worked off may ask for a snapshot.
        self._lock = threading.RLock()
        self._working = False
        self._bounds: tuple[float, ...] = DURATION_BOUNDS
        self._bounds_ns = nanoseconds(DURATION_BOUNDS)
        self._start()
        process.after_fork(self._after_fork)

    def _start(self) -> None:
        self._live: dict[int, Span | ToldSpan] = {}
        self._told_states = dict.fromkeys(LIVE, 0)
        self._told_live = 0
        self._folded: dict[int, Folded] = {}
        self._totals: dict[str, NameTotals] = {}
        # Seqs of the records seen, by process; and numbers of the spans that were announced without records.
        self._seen: dict[int, Seen] = {}
        self._announced = Seen()
        self._unplaced: OrderedDict[int, list[Mapping[str, Any]]] = OrderedDict()
        self._unplaced_count = 0
        self._finished_told: OrderedDict[int, ToldSpan] = OrderedDict()
        self._retention = Retention(self.config)
        self._dropped = dict.fromkeys(DROP_REASONS, 0)
        self._gaps_shown = 0
        self._logs = 0

    @classmethod
    def default(cls) -> Inspector:
        """The process-wide inspector, made on first use from the environment (`Config.from_env`).

        Raises ConfigError where the environment holds a setting that cannot be used.
        """
        with Inspector._default_lock:
            if Inspector._default is None:
                Inspector._default = cls(Config.from_env())
            return Inspector._default

    # -- in -----------------------------------------------------------------------------------------------------------

    def listener(self) -> Listener:
        """How spans of this process are announced here."""
        return Listener(self._begun.append, self._ended.append, self.settle, self.clock)

    def begun(self, span: Span) -> None:
        self._begun.append(span)

    def ended(self, span: Span) -> None:
        self._ended.append(span)

    def apply(self, record: logging.LogRecord | Mapping[str, Any]) -> None:
        """Take in a lifecycle record: a LogRecord, an event dict, a parsed JSON line, or the payload itself.

        What is no lifecycle record is ignored; a malformed one is counted as dropped. Raises nothing.
        """
        try:
            payload = payload_of(record)
        except Exception:
            payload = {"flaw": True}
        if payload is not None:
            self._inbox.append(payload)
            if len(self._inbox) >= _BATCH:
                self.settle()

    def annotate(self, span_id: int, text: str, wall: int) -> None:
        """Note a log line inside a span, given by the number of its id. `wall`: Unix time in ns."""
        self._inbox.append(_Annotation(Note(wall, span_id, "log", text)))
        if len(self._inbox) >= _BATCH:
            self.settle()

    def settle(self) -> None:
        """Work off what was announced, unless somebody is at it already. Never waits, never raises."""
        if self._lock.acquire(blocking=False):
            try:
                self._work()
            except Exception:
                # One batch may be half counted then: to be told rather than to be raised into the application.
                warn_once("inspector", "settle", "the inspector failed on a batch of records", exc_info=True)
            finally:
                self._lock.release()

    # -- working off: only ever under the lock -----------------------------------------------------------------------

    def _work(self) -> None:
        if self._working:
            return
        self._working = True
        try:
            # Ends are counted before begins are taken: whatever has ended by now has its begin in the queue.
            ends = len(self._ended)
            self._work_begun()
            for _ in range(len(self._inbox)):
                self._take(self._inbox.popleft())
            self._work_ended(ends)
            self._retention.trim()
        finally:
            self._working = False

    def _work_begun(self) -> None:
        begun, live = self._begun.popleft, self._live
        totals = self._totals.get
        seen = self._announced
        for _ in range(len(self._begun)):
            span = begun()
            if span.__class__ is not Span:
                self._take_other(span)
                continue
            number = span.number
            if number in live:
                continue
            if number == seen.high + 1:
                seen.high = number
            elif not seen.add(number):
                self._dropped["duplicate"] += 1
                continue
            live[number] = span
            total = totals(span.name) or self._total_of(span.name)
            total.spawned += 1
            if span.tally is not None:
                total.driven += 1

    def _work_ended(self, count: int) -> None:
        ended, live = self._ended.popleft, self._live
        totals = self._totals.get
        bounds = self._bounds_ns
        retention = self._retention
        everything, keep, kept = retention.everything, retention.tasks.append, retention.kept
        for _ in range(count):
            span = ended()
            if live.pop(span.number, None) is None:
                self._dropped["duplicate"] += 1
                continue
            total = totals(span.name) or self._total_of(span.name, again=True)
            outcome = span.outcome
            duration = span.exited_at - span.entered_at
            cell = total.outcomes[outcome]
            cell.counts[bisect_left(bounds, duration)] += 1
            cell.sum += duration
            if span.tally is not None:
                self._finish_driven(span, total)
            if everything:
                keep(span)
                kept[outcome] += 1
            else:
                retention.keep(span)

    def _finish_driven(self, span: Span, total: NameTotals) -> None:
        tally = span.tally
        assert tally is not None
        folded = self._folded.pop(span.number, None) or Folded()
        idle = span.exited_at - span.entered_at - tally.busy
        total.fold(tally, folded, idle, done=tally.polls)
        total.finish_driven(tally.polls)

    def _take_other(self, item: Any) -> None:
        if item.__class__ is Stepped:
            self._fold_live(item.span)
        elif item.__class__ is Misuse:
            self._dropped["duplicate"] += 1
        else:  # a subclass, while a span is entered twice
            self._work_one(item)

    def _take(self, item: Any) -> None:
        if item.__class__ is _Annotation:
            self._logs += 1
            span = self._live.get(item.note.number)
            if span is None or self._retention.samples(span):
                self._retention.note(item.note)
        else:
            self._take_payload(item)

    def _fold_live(self, span: Span) -> None:
        number, tally = span.number, span.tally
        if number not in self._live or tally is None:
            return
        folded = self._folded.get(number)
        if folded is None:
            folded = self._folded[number] = Folded()
        tally.folded = True
        under_way = span.steps is not None and span.steps.started != 0
        idle = tally.part_from - span.entered_at - tally.busy
        total = self._totals.get(span.name) or self._total_of(span.name, again=True)
        total.fold(tally, folded, idle, done=tally.polls - under_way)

    def _take_payload(self, payload: Mapping[str, Any]) -> None:
        try:
            flaw = flaw_of(payload)
        except Exception as error:
            flaw = type(error).__name__
        if flaw is not None:
            self._dropped["malformed"] += 1
            return
        number = int(payload["id"], 16)
        pid = payload["pid"]
        seen = self._seen.get(pid)
        if seen is None:
            seen = self._seen[pid] = Seen()
        if not seen.add(payload["seq"]) or (number in self._announced and payload["kind"] in ("spawn", "enter", "exit")):
            self._dropped["duplicate"] += 1
            return
        span = self._live.get(number)
        if isinstance(span, Span):
            # Of this process, and known at first hand: only the timeline has use for it.
            self._note_step(number, payload)
        elif span is not None:
            self._apply_told(span, payload)
        elif number in self._finished_told:
            self._finished_told[number].apply(payload)
        elif payload["kind"] in ("spawn", "enter"):
            self._begin_told(number, payload)
        else:
            self._hold(number, payload)

    def _begin_told(self, number: int, payload: Mapping[str, Any]) -> None:
        span = ToldSpan(number, payload["name"])
        total = self._totals.get(span.name) or self._total_of(span.name)
        total.spawned += 1
        total.driven += 1
        self._live[number] = span
        self._told_live += 1
        self._apply_told(span, payload)
        held = self._unplaced.pop(number, ())
        self._unplaced_count -= len(held)
        for later in sorted(held, key=lambda held: held["seq"]):
            if number in self._live:
                self._apply_told(span, later)

    def _apply_told(self, span: ToldSpan, payload: Mapping[str, Any]) -> None:
        before = span.state
        if not span.apply(payload):
            self._dropped["duplicate"] += 1
            return
        if before is not None:
            self._told_states[before] -= 1
        total = self._totals.get(span.name) or self._total_of(span.name, again=True)
        folded = self._folded.setdefault(span.number, Folded())
        tally = span.tally
        self._note_step(span.number, payload)
        if span.outcome is None:
            assert span.state is not None
            self._told_states[span.state] += 1
            total.fold(tally, folded, 0, done=0)  # type: ignore[arg-type]
            return
        del self._live[span.number]
        self._told_live -= 1
        del self._folded[span.number]
        duration = span.exited_at - span.entered_at
        cell = total.outcomes[span.outcome]
        cell.counts[bisect_left(self._bounds_ns, duration)] += 1
        cell.sum += duration
        seen = span.seen_stepping
        total.fold(tally, folded, duration - tally.busy if seen else 0, done=tally.polls if seen else 0)  # type: ignore[arg-type]
        total.finish_driven(tally.polls)
        self._retention.keep(span)
        self._finished_told[span.number] = span
        if len(self._finished_told) > _MAX_UNPLACED:
            self._finished_told.popitem(last=False)

    def _hold(self, number: int, payload: Mapping[str, Any]) -> None:
        """Keep a record whose span has not been heard of: its beginning may come from another file. While it waits,
        and for good once there are too many, it counts as a gap.
        """
        self._unplaced.setdefault(number, []).append(payload)
        self._unplaced_count += 1
        while self._unplaced_count > _MAX_UNPLACED:
            _, oldest = self._unplaced.popitem(last=False)
            self._unplaced_count -= len(oldest)
            self._dropped["gap"] += len(oldest)

    def _note_step(self, number: int, payload: Mapping[str, Any]) -> None:
        kind = payload["kind"]
        config = self.config
        if kind not in STEP_KINDS or (kind == "wake" and not config.track_wakes):
            return
        if kind in ("suspend", "resume") and not config.track_polls:
            return
        span = self._live.get(number)
        if span is None or self._retention.samples(span):
            detail = payload.get("on") or payload.get("resource") or ""
            self._retention.note(Note(payload["wall"], number, kind, str(detail)))

    def _total_of(self, name: str, *, again: bool = False) -> NameTotals:
        """The totals of a name met for the first time, or those of the names beyond the limit."""
        limit = self.config.max_names
        if limit is not None and len(self._totals) - (OTHER in self._totals) >= limit and name != OTHER:
            if not again:
                self._dropped["max_names"] += 1
            name = OTHER
        total = self._totals.get(name)
        if total is None:
            total = self._totals[name] = NameTotals(name, len(self._bounds))
        return total

    # -- out ----------------------------------------------------------------------------------------------------------

    def snapshot(self, *, tasks: bool = True) -> Snapshot:
        """Everything as of now. Without `tasks` the cost does not depend on how many there are, and `.tasks` is empty."""
        opened.close_collected(sys.maxsize if tasks else _OWNERS_A_SCRAPE)
        with self._lock:
            self._work()
            now = self.clock.monotonic_ns()
            offset = system_clock.wall_ns(0, self.clock)
            names = {name: total.view(self._bounds) for name, total in self._totals.items()}
            return Snapshot(
                taken_at=(now + offset) / 1e9,
                tasks=self._task_views(now, offset) if tasks else (),
                names=names,
                states=self._state_counts(),
                events=self._event_counts(names),
                dropped=self._drop_counts(),
                memory=self._memory(),
                findings=(),
                deadlocks=0,
                lints={},
                loop_lag=Histogram(LAG_BOUNDS, (0,) * (len(LAG_BOUNDS) + 1), 0.0),
            )

    def _task_views(self, now: int, offset: int) -> tuple[TaskView, ...]:
        running = {span.number for span in opened.running_spans()}
        notes = self._retention.notes_by_span()
        fields = self.config.capture_fields
        views = []
        for task in (*self._live.values(), *self._retention.tasks):
            if isinstance(task, ToldSpan):
                state = task.state or TaskState.PENDING
            elif not task.entered_at:
                state = TaskState.PENDING
            else:
                state = TaskState.RUNNING if task.number in running else TaskState.BLOCKED
            views.append(task_view(task, state, now, notes.get(task.number, ()), offset, fields=fields))
        return tuple(views)

    def _state_counts(self) -> dict[str, int]:
        live = self._live
        pending = sum(number in live for number in opened.pending_numbers())
        running = sum(span.number in live for span in opened.running_spans())
        told = self._told_states
        return {
            "pending": pending + told[TaskState.PENDING],
            "running": running + told[TaskState.RUNNING],
            "blocked": max(0, len(live) - self._told_live - pending - running) + told[TaskState.BLOCKED],
            **self._retention.states(),
        }

    def _event_counts(self, names: Mapping[str, NameView]) -> dict[str, int]:
        counts = dict.fromkeys(EVENT_TYPES, 0)
        for view in names.values():
            counts["spawn"] += view.spawned
            counts["poll"] += view.polls
            counts["wake"] += view.wakes
            counts["drop"] += view.finished
        counts["log"] = self._logs
        return counts

    def _drop_counts(self) -> dict[str, int]:
        # A record that waits counts as a gap, and placing it later must not make the counter fall.
        self._gaps_shown = max(self._gaps_shown, self._dropped["gap"] + self._unplaced_count)
        return {
            **self._dropped,
            "max_tasks": self._retention.dropped_tasks,
            "max_events": self._retention.dropped_events,
            "gap": self._gaps_shown,
        }

    def _memory(self) -> dict[str, int]:
        shared: set[int] = set()
        live, kept, notes = self._live, self._retention.tasks, self._retention.notes
        tasks = estimate(live, islice(live.values(), 48), _SHARED_SLOTS, shared) + sys.getsizeof(live)
        tasks += estimate(kept, self._retention.sample_of(kept, 48), _SHARED_SLOTS, shared) + sys.getsizeof(kept)
        events = estimate(notes, self._retention.sample_of(notes, 48), frozenset(), shared) + sys.getsizeof(notes)
        metadata = estimate(self._totals, islice(self._totals.values(), 48), frozenset(), set())
        metadata += sys.getsizeof(self._totals) + sum(sys.getsizeof(seen) for seen in self._seen.values())
        metadata += bytes_of(list(self._unplaced.values())[:48], set())
        return {"tasks": tasks, "events": events, "metadata": metadata}

    def add_duration_bounds(self, bounds: Sequence[float]) -> None:
        """Count task durations at these bounds (seconds) too, from now on; what was counted before stays in the
        buckets that it was put into.
        """
        with self._lock:
            self._work()
            merged = tuple(sorted({*self._bounds, *(float(bound) for bound in bounds)}))
            if merged == self._bounds:
                return
            positions = [merged.index(bound) for bound in self._bounds] + [len(merged)]
            for total in self._totals.values():
                total.rebucket(positions, len(merged))
            self._bounds, self._bounds_ns = merged, nanoseconds(merged)

    def reset(self) -> None:
        """Forget everything but the tasks that are live, which count as spawned again."""
        with self._lock:
            self._work()
            live, seen, told = self._live, (self._seen, self._announced), (self._told_states, self._told_live)
            self._start()
            self._live, (self._seen, self._announced) = live, seen
            self._told_states, self._told_live = told
            for span in live.values():
                total = self._totals.get(span.name) or self._total_of(span.name)
                total.spawned += 1
                if span.tally is not None:
                    total.driven += 1
                    self._folded[span.number] = folded = Folded()
                    NameTotals("", 0).fold(span.tally, folded, 0, done=0)  # type: ignore[arg-type]

    def _after_fork(self) -> None:
        """The parent goes on counting what it counted; the child begins at zero, with a lock that nobody holds."""
        self._lock = threading.RLock()
        self._working = False
        for queue in (self._begun, self._ended, self._inbox):
            queue.clear()
        self._start()
