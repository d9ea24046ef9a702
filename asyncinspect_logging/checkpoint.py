"""An inspector's books as plain values and back: what a sidecar keeps in a file, so that its counters outlive it.

Slots are taken as they are, whatever they are called, so that what is added to the books is kept too. What an
interrupted run and an uninterrupted one come to is the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, Final

from .books import Books
from .catalogue import LAG_BOUNDS, STEP_BOUNDS
from .detect.held import Hold, Owner, Resource, Wait
from .detect.waiting import Waits
from .errors import ConfigError
from .placing import Placing
from .retention import Note
from .sequence import Seen
from .snapshot import Finding
from .states import TaskState
from .telling import Telling
from .told import ToldSpan
from .totals import Cell, Folded, NameTotals, nanoseconds

__all__ = ["dump", "load"]

_VERSION: Final = 2
#: Tasks that wait, those that wait longest, and who holds what they wait for, in all.
_MAX_WAITS: Final = 10_000
_MAX_HOLDS: Final = 100_000
#: Not a value of its own: the same cells by outcome, and what cannot be kept.
_DERIVED: Final = frozenset({"__weakref__", "outcomes"})
#: Of a whole number: the counts of slow steps are packed into one (see `steps.slow`).
_MAX_BITS: Final = 48 * (len(STEP_BOUNDS) + 2)


def dump(books: Books, placing: Placing) -> dict[str, Any]:
    """All that was counted, and what is known of records, in values that JSON can hold. Of the spans of this process
    that are live or kept, only the counts are in it.
    """
    placing.complete(thoroughly=True)
    findings, retention = books.findings, books.retention
    return {
        "v": _VERSION,
        "bounds": list(books.bounds),
        "names": [_slots_of(total) for total in books.totals.values()],
        "live": [
            [_slots_of(span), _slots_of(books.folded[number])]
            for number, span in books.live.items()
            if isinstance(span, ToldSpan)
        ],
        "kept": [_slots_of(task) for task in retention.tasks if isinstance(task, ToldSpan)],
        "notes": list(map(list, retention.notes)),
        "dropped": dict(books.dropped),
        "dropped_tasks": retention.dropped_tasks,
        "dropped_events": retention.dropped_events,
        "logs": books.logs,
        "findings": [list(finding) for finding in findings.kept],
        "lints": [[*key, count] for key, count in findings.lints.items()],
        "deadlocks": findings.deadlocks,
        "lag": _plain(findings.lag),
        # Nearly all have one run, and there may be many.
        "streams": [[pid, base, seqs.only_run() or _slots_of(seqs)] for pid, base, seqs in placing.streams()],
        "missing": placing._holes,
        "waiting": [list(map(list, waiting)) for waiting in placing._waiting.values()],
        "gaps": placing.gaps,
        "over": list(placing._over),
        "waits": _waits_of(books.waits),
    }


def _waits_of(waits: Waits) -> dict[str, Any]:
    """Who waits for what by the records of other processes, and which of that was told to be a deadlock."""
    kept: list[Wait] = []
    resources: dict[int, Resource] = {}
    owners: dict[int, Owner] = {}
    room = _MAX_HOLDS
    for wait in waits.by_owner.values():
        resource = wait.resource
        if wait.owner.task is not None or wait.span not in waits.live or len(kept) == _MAX_WAITS:
            continue
        if resource.id not in resources:
            if len(resource.holders) > room:
                continue  # with some of the holders only, it could look dead
            room -= len(resource.holders)
            resources[resource.id] = resource
            owners.update((hold.owner.number, hold.owner) for hold in resource.holders.values())
        owners[wait.owner.number] = wait.owner
        kept.append(wait)
    return {
        "owners": [[owner.number, owner.name, owner.root, owner.over] for owner in owners.values()],
        "roots": [owner.root for owner in owners.values() if owner.root in waits._roots_seen],
        "resources": [
            [each.id, each.kind, each.name, each.open, list(map(_hold_of, each.holders.values()))]
            for each in resources.values()
        ],
        "waits": [
            [wait.owner.number, wait.resource.id, wait.since, str(wait.at), wait.span, wait.span_name, wait.timed]
            for wait in kept
        ],
        "found": [
            [list(map(list, key)), list(finding)]
            for key, finding in waits._found.items()
            if all(identity[0] in owners for identity in key)
        ],
    }


def _hold_of(hold: Hold) -> list[Any]:
    return [hold.owner.number, hold.t, str(hold.at), hold.span, hold.span_name, hold.permits]


def load(saved: Mapping[str, Any], books: Books, placing: Placing) -> None:
    """Fill new `books`, and the `placing` into them, with what `dump` gave.

    Raises ConfigError for what it never gave; books and placing are of no use then.
    """
    try:
        if saved["v"] != _VERSION:
            raise ConfigError(f"a checkpoint of version {saved['v']!r} cannot be read here; this is {_VERSION}")
        _load(saved, books, placing)
    except ConfigError:
        raise
    except Exception as error:  # whatever comes of values that were never dumped
        raise ConfigError(f"this is no checkpoint of an inspector: {type(error).__name__}: {error}") from error


def _load(saved: Mapping[str, Any], books: Books, placing: Placing) -> None:
    bounds, wanted = tuple(map(float, saved["bounds"])), books.bounds
    if list(bounds) != sorted(set(bounds)) or not bounds:
        raise ValueError("bounds are not in order")
    books.bounds = bounds
    for one in saved["names"]:
        books.totals[_text(one["name"])] = _fill(NameTotals(one["name"], len(bounds)), one)
    # Counted at these until now, and from now on at those that somebody wants, too.
    books.bounds_ns = nanoseconds(bounds)
    books.add_bounds(wanted)
    retention, findings = books.retention, books.findings
    for one, folded in saved["live"]:
        span = _span(one)
        books.live[span.number] = span
        books.folded[span.number] = _fill(Folded(), folded)
        if span.outcome is not None or span.state is None:
            raise ValueError(f"span {span.id} is not live")
        books.told_states[span.state] += 1
    kept = {}
    for one in saved["kept"]:
        span = kept[_whole(one["number"])] = _span(one)
        retention.keep(span)
    retention.notes.extend(Note(*note) for note in saved["notes"])
    for reason in books.dropped:
        books.dropped[reason] = _whole(saved["dropped"].get(reason, 0))
    retention.dropped_tasks, retention.dropped_events = _whole(saved["dropped_tasks"]), _whole(saved["dropped_events"])
    retention.trim()
    books.logs = _whole(saved["logs"])
    findings.kept.extend(map(_finding, saved["findings"]))
    findings.lints.update({(_text(lint), _text(name)): _whole(count) for lint, name, count in saved["lints"]})
    findings.deadlocks = _whole(saved["deadlocks"])
    findings.lag = _cell(saved["lag"], len(LAG_BOUNDS))
    for pid, base, seqs in saved["streams"]:
        told = _fill(Seen(), seqs) if isinstance(seqs, Mapping) else _run(*seqs)
        placing.put_by(*_process(pid, base), told)
    placing._holes = _whole(saved["missing"])
    for waiting in saved["waiting"]:
        tellings = [Telling._make([*one[:-1], _tuples(one[-1])]) for one in waiting]
        placing._waiting[tellings[0].number] = tellings
        placing._waiting_count += len(tellings)
    placing._gaps = _whole(saved["gaps"])
    gone = weakref.ref(ToldSpan(0, ""))
    for number in saved["over"]:
        placing._over[_whole(number)] = weakref.ref(kept[number]) if number in kept else gone
    _load_waits(saved["waits"], books.waits)


def _load_waits(saved: Mapping[str, Any], waits: Waits) -> None:
    owners, resources = waits._told_owners, waits._told_resources
    for number, name, root, over in saved["owners"]:
        owner = owners[_number(number)] = Owner(number, _text(name), None, _number(root))
        owner.over = over is True
    waits._roots_seen.update(map(_number, saved["roots"]))
    for id, kind, name, open, holds in saved["resources"]:
        resource = resources[_number(id)] = Resource(_text(kind), None if name is None else _text(name), id)
        resource.paired, resource.open = True, open is True
        for number, t, at, span, span_name, permits in holds:
            hold = Hold(owners[number], _number(t), _text(at), span=_number(span), span_name=_text(span_name))
            resource.holders[number] = hold._replace(permits=_number(permits))
    for number, id, since, at, span, name, timed in saved["waits"]:
        if number in waits.by_owner:
            raise ValueError(f"the task {number} waits twice")
        owner = owners[number]
        waits._begin(Wait(owner, resources[id], _number(since), _text(at), _number(span), _text(name), timed is True))
    holds = sum(len(resource.holders) for resource in resources.values())
    if resources.keys() != waits.waiting_for.keys() or len(waits.by_owner) > _MAX_WAITS or holds > _MAX_HOLDS:
        raise ValueError("there is more than what somebody waits for")
    if len(owners) > _MAX_WAITS + _MAX_HOLDS or len(waits._roots_seen) > len(owners):
        raise ValueError("there are others than those who wait and hold")
    for key, finding in saved["found"]:
        if not all(identity[0] in owners for identity in key):
            raise ValueError("a deadlock is of others")
        waits._found[frozenset(tuple(map(_number, identity)) for identity in key)] = _finding(finding)


def _finding(saved: Any) -> Finding:
    kind, name, ids, message, evidence, at = saved
    return Finding(kind, name, tuple(ids), message, tuple(evidence), at)


def _number(value: Any) -> int:
    number = _whole(value)
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{number} is no number of a span, a task or a resource, and no time")
    return number


def _process(pid: Any, base: Any) -> tuple[int, int]:
    if not 0 <= _whole(pid) < 1 << 63 or not 0 <= _whole(base) < 1 << 32:
        raise ValueError(f"{pid} and {base} are of no process")
    return pid, base


def _run(low: Any, high: Any) -> Seen:
    if not 0 <= _whole(low) <= _whole(high) < 1 << 63:
        raise ValueError(f"{low} to {high} are no numbers of records")
    return Seen.of_run(low, high)


def _slots_of(thing: Any) -> dict[str, Any]:
    return {slot: _plain(getattr(thing, slot)) for slot in type(thing).__slots__ if slot not in _DERIVED}


def _plain(value: Any) -> Any:
    """A copy of what is written to go on changing; the values of fields never do."""
    if isinstance(value, Cell):
        return [list(value.counts), value.sum]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, bytearray):
        return value.hex()
    return dict(value) if isinstance(value, Mapping) else value


def _fill(fresh: Any, saved: Mapping[str, Any]) -> Any:
    """A new object with the slots that were saved, each of the type that it has in a new one."""
    for slot in type(fresh).__slots__:
        if slot in _DERIVED:
            continue
        before, value = getattr(fresh, slot), saved[slot]
        if isinstance(before, Cell):
            # In place: `outcomes` refers to the same cell.
            filled = _cell(value, len(before.counts) - 1)
            before.counts, before.sum = filled.counts, filled.sum
            continue
        if isinstance(before, bytearray):
            setattr(fresh, slot, bytearray.fromhex(value))
            continue
        if type(value) is not type(before):
            raise TypeError(f"{type(fresh).__name__}.{slot} is {value!r}")
        for number in value if isinstance(value, list) else (value,):
            if not isinstance(number, str):
                _whole(number)
        setattr(fresh, slot, value)
    return fresh


def _span(saved: Mapping[str, Any]) -> ToldSpan:
    span = ToldSpan(_whole(saved["number"]), _text(saved["name"]))
    for slot in ToldSpan.__slots__:
        if slot not in _DERIVED:
            value, before = saved[slot], getattr(span, slot)
            if slot == "state":
                value = None if value is None else TaskState(value)
            elif isinstance(before, tuple):
                value = tuple(value)
            elif before is not None and type(value) is not type(before):
                raise TypeError(f"ToldSpan.{slot} is {value!r}")
            setattr(span, slot, value)
    return span


def _cell(saved: Any, bounds: int) -> Cell:
    cell = Cell(bounds)
    counts, summed = saved
    cell.sum = _whole(summed)
    if len(counts) != len(cell.counts):
        raise ValueError(f"{len(counts)} buckets instead of {len(cell.counts)}")
    cell.counts = [_whole(count) for count in counts]
    return cell


def _tuples(said: dict[str, Any]) -> dict[str, Any]:
    """What a telling says, the lists in it tuples again where they were."""
    return {key: tuple(value) if key in ("links", "resource") else value for key, value in said.items()}


def _whole(value: Any) -> int:
    if type(value) is not int or value.bit_length() > _MAX_BITS:
        raise TypeError(f"{str(value)[:100]} is not a whole number that was counted")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"{value!r} is not a text")
    return value
