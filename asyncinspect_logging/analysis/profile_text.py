"""A profile as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .drawing import bar, columns, distribution, duration, shown

if TYPE_CHECKING:
    from .profile import NameProfile, Profile

__all__ = ["lines_of"]


def _busy(of: NameProfile) -> float:
    return of.busy


def _p99(of: NameProfile) -> float:
    return of.durations.p99 or 0.0


def lines_of(told: Profile, width: int, ascii: bool, top: int) -> Iterator[str]:
    def time(seconds: float | None) -> str:
        return duration(seconds, ascii=ascii)

    def name_of(text: str) -> str:
        out = shown(text, max(width // 3, 16))
        return out.encode("ascii", "backslashreplace").decode() if ascii else out

    between = " > " if ascii else " › "
    yield f"{told.tasks:,} tasks at hand, {len(told.names):,} names"
    for note in told.notes:
        yield f"note: {note}".encode("ascii", "replace").decode() if ascii else f"note: {note}"
    if told.names:
        yield ""
        head = ("name", "spawned", "live", "p50", "p95", "p99", "max", "total", "busy", "eff.")
        rows: list[tuple[str, ...]] = [head]
        for each in told.names[:top]:
            of = each.durations
            share = "-" if each.efficiency is None else f"{each.efficiency:.0%}"
            times = (of.p50, of.p95, of.p99, of.max, each.total, each.busy)
            rows.append((name_of(each.name), f"{each.spawned:,}", f"{each.live:,}", *map(time, times), share))
        yield from columns(rows)
        yield from _more(len(told.names), top)
    for each in told.names[:top]:
        drawn = distribution(each.histogram, width - 2, ascii=ascii)
        if drawn:
            counts = ", ".join(f"{count:,} {outcome}" for outcome, count in each.outcomes.items())
            yield ""
            yield f"{name_of(each.name)}: {counts}"
            yield from (f"  {line}" for line in drawn)
    for title, ranking, value in (
        ("busiest: time on the loop", told.busiest(top), _busy),
        ("slowest: p99", told.slowest(top), _p99),
    ):
        if ranking:
            yield from ("", title)
            most = value(ranking[0])
            rows = [
                (name_of(each.name), time(value(each)), bar(value(each) / most if most else 0.0, 20, ascii=ascii))
                for each in ranking
            ]
            yield from _indented(rows)
    ranking = told.least_efficient(top)
    if ranking:
        yield from ("", "least efficient: busy / (busy + idle)")
        rows = [
            (name_of(each.name), f"{each.efficiency:.1%}", bar(each.efficiency or 0.0, 20, ascii=ascii))
            for each in ranking
        ]
        yield from _indented(rows)
    if told.paths:
        yield from ("", "hot paths: self time, total, count")
        rows = [
            (time(each.self_time), time(each.total), f"{each.tasks:,}", between.join(map(name_of, each.names)))
            for each in told.hot_paths(top)
        ]
        yield from _indented(rows, left=0)
        yield from _more(len(told.paths), top)
    if told.contention:
        yield from ("", "contention: waited, longest, times")
        for of_it in told.contention[:top]:
            more = [f"{of_it.given_up:,} given up"] if of_it.given_up else []
            more += [f"{of_it.waiting:,} waiting"] if of_it.waiting else []
            numbers = ", ".join([time(of_it.total), time(of_it.max), f"{of_it.waits:,}", *more])
            yield f"  {name_of(of_it.resource)}  {numbers}"
            for label, users in (("waited", of_it.waiters), ("held", of_it.holders)):
                listed = [f"{name_of(user)} {count:,} x {time(spent)}" for user, (count, spent) in users.items()]
                if listed:
                    yield f"    {label}: {', '.join(listed[:5])}{', and others' if len(listed) > 5 else ''}"
        yield from _more(len(told.contention), top)


def _indented(rows: list[tuple[str, ...]], left: int = 1) -> Iterator[str]:
    """All columns but the last ranged as told, the last one left."""
    heads = columns([row[:-1] for row in rows], left)
    wide = max(map(len, heads))
    for head, row in zip(heads, rows, strict=True):
        yield f"  {head:<{wide}}  {row[-1]}".rstrip()


def _more(there: int, top: int) -> Iterator[str]:
    if there > top:
        yield f"  and {there - top:,} more"
