"""Tasks add up by their stacks, in whatever order they come."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import T0, TaskList, by_end, forests, id_of, snapshot, task

from asyncinspect_logging import nesting
from asyncinspect_logging.analysis.profile import Profile, profile
from asyncinspect_logging.analysis.replay import LogTasks, replay
from asyncinspect_logging.catalogue import OTHER
from asyncinspect_logging.exporters.flame import MEASURES, FlameExporter
from asyncinspect_logging.exporters.json_file import JsonExporter, JsonTasks
from asyncinspect_logging.nesting import Covered, Stacks
from asyncinspect_logging.records import KEY
from asyncinspect_logging.snapshot import Snapshot, TaskView
from asyncinspect_logging.streams import TaskStream, in_snapshot_order, in_stream_order


def flames(source: Snapshot | TaskStream) -> dict[str, list[str]]:
    """Lines of the collapsed stacks, by measure."""
    texts = {measure: FlameExporter.export_to_string(source, measure=measure, form="collapsed") for measure in MEASURES}
    return {measure: sorted(text.splitlines()) for measure, text in texts.items()}


def counted(tasks: list[TaskView]) -> set[nesting.Stack]:
    stacks = Stacks(64)
    for each in tasks:
        stacks.add(each, each.name)
    return set(stacks.stacks("…"))


@given(forests(within=False), st.randoms(use_true_random=False))
def test_no_order_makes_a_difference(tasks: list[TaskView], chance: random.Random) -> None:
    """A child may come after its parent, and after its grandparent, too."""
    expected = counted(by_end(tasks))
    assert counted(tasks) == counted(tasks[::-1]) == expected
    chance.shuffle(tasks)
    assert counted(tasks) == expected


@given(forests(within=False))
def test_self_time_is_what_no_child_covers_of_the_task(tasks: list[TaskView]) -> None:
    """What a child goes on after its parent's end is no time of the parent's."""
    spans = {}
    for each in tasks:
        begin = round((each.started_at - T0) * 64)
        spans[each.id] = set(range(begin, begin + round((each.age if each.duration is None else each.duration) * 64)))
    expected: dict[str, float] = {}
    for each in tasks:
        alone = spans[each.id].difference(*(spans[child.id] for child in tasks if child.parent_id == each.id))
        expected[each.name] = expected.get(each.name, 0.0) + len(alone) / 64
    for source in (snapshot(*tasks), TaskList(by_end(tasks))):
        told: dict[str, float] = {}
        for path in profile(source).paths:
            told[path.names[-1]] = told.get(path.names[-1], 0.0) + path.self_time
        assert told == expected


@given(forests(within=False))
def test_a_snapshot_a_log_and_an_export_give_the_same(tasks: list[TaskView]) -> None:
    """Profile and flame graphs; the export written of either, read as a whole or as a stream."""
    finished_by_end = [each for each in by_end(tasks) if each.duration is not None]
    live = [each for each in tasks if each.duration is None]
    kept = snapshot(*live, *finished_by_end)
    stream = TaskList([*finished_by_end, *live[::-1]])
    exports = [JsonExporter.export_to_string(source) for source in (kept, stream)]
    assert exports[0] == exports[1]
    assert JsonExporter.read(exports[0]) == kept
    first, *others = [kept, stream, JsonTasks(exports[0]), JsonExporter.read(exports[0])]
    for other in others:
        assert profile(other) == profile(first)
        assert flames(other) == flames(first)


def test_a_log_of_children_that_outlive_their_parents(tmp_path: Path, tell: Callable[..., dict[str, Any]]) -> None:
    """And of some that are live at its end."""
    lines = []

    def write(at: int, kind: str, number: int, name: str, parent: int | None = None, **more: Any) -> None:
        payload = tell(kind, number, name=name, t=at * 10**9, wall=(1_700_000_000 + at) * 10**9, **more)
        if kind == "enter":
            payload["trace"] = "1" * 32
            payload["parent"] = None if parent is None else id_of(parent)
        lines.append(json.dumps({KEY: payload}))

    write(0, "enter", 1, "request")
    write(0, "enter", 4, "run")
    write(1, "enter", 2, "late", 1)
    write(2, "exit", 1, "request", duration=2 * 10**9)
    write(2, "enter", 5, "worker", 4)
    write(4, "enter", 3, "later", 2)
    write(5, "exit", 2, "late", duration=4 * 10**9)
    write(8, "exit", 3, "later", duration=4 * 10**9)
    write(9, "record", 5, "worker", fields={})
    path = tmp_path / "app.log"
    path.write_text("\n".join(lines))
    kept = replay(path).snapshot()

    def comparable(told: Profile) -> dict[tuple[str, ...], tuple[int, float]]:
        return {each.names: (each.tasks, round(each.self_time, 9)) for each in told.paths}

    expected = {
        ("request",): (1, 1.0),
        ("request", "late"): (1, 3.0),
        ("request", "late", "later"): (1, 4.0),
        ("run",): (1, 2.0),
        ("run", "worker"): (1, 7.0),
    }
    export = JsonExporter.export_to_string(kept)
    for source in (kept, LogTasks(path), JsonTasks(export), JsonTasks(JsonExporter.export_to_string(LogTasks(path)))):
        assert comparable(profile(source)) == expected
    assert flames(TaskList(list(LogTasks(path)))) == flames(kept) == flames(JsonTasks(export))


@given(forests(within=False))
def test_orders_of_snapshots_and_streams_are_each_others(tasks: list[TaskView]) -> None:
    """There and back; and early exports had the order of snapshots."""
    kept = in_snapshot_order(in_stream_order(tasks))
    assert in_snapshot_order(in_stream_order(kept)) == kept
    if kept and kept[-1].duration is not None:
        assert in_snapshot_order(kept) == kept


# -- covered time ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=30), st.integers(0, 60))
def test_covered_time(intervals: list[tuple[int, int]], cut: int) -> None:
    """What intervals cover together, in any order."""
    seconds = {second for begin, end in intervals for second in range(begin, end)}
    covered = Covered()
    for begin, end in intervals:
        covered.add(begin, end)
    assert covered.within(0, 60) == len(seconds)
    assert covered.within(cut, 60) == len([second for second in seconds if second >= cut])


@pytest.mark.parametrize("step", [1, -1])
def test_many_stretches_are_added_up(step: int) -> None:
    """Exactly so if they come in order, and one that fills all gaps fills those that were forgotten, too."""
    covered = Covered()
    for number in range(1000)[::step]:
        covered.add(2 * number, 2 * number + 1)
    assert covered.within(0, 2000) == 1000
    assert len(covered._starts) == nesting._MAX_STRETCHES
    covered.add(0, 2000)
    assert covered.within(0, 2000) == 2000


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=80))
def test_never_more_than_there_is_is_covered(intervals: list[tuple[int, int]]) -> None:
    """Nor less than the longest one, however many gaps there are."""
    before, nesting._MAX_STRETCHES = nesting._MAX_STRETCHES, 3  # type: ignore[misc]
    try:
        covered = Covered()
        for begin, end in intervals:
            covered.add(begin, end)
    finally:
        nesting._MAX_STRETCHES = before  # type: ignore[misc]
    assert 0 <= covered.within(0, 500) <= 500


# -- limits ----------------------------------------------------------------------------------------------------------


def test_a_parent_with_many_children_in_a_row() -> None:
    """The time between them is its own, in a snapshot as in a stream."""
    children = [task(number + 2, "step", 1, number, number + 0.5) for number in range(500)]
    parent = task(1, "run", None, 0, 500)
    for source in (snapshot(*children, parent), snapshot(parent, *children), TaskList([*children, parent])):
        assert {each.names: each.self_time for each in profile(source).paths} == {
            ("run",): 250.0,
            ("run", "step"): 250.0,
        }


@pytest.mark.parametrize("shuffled", [False, True])
def test_deep_stacks_are_cut_in_the_same_place_in_any_order(shuffled: bool) -> None:
    """All that is further in counts as one, below the names that are kept."""
    tasks = [task(number + 1, f"n{number}", number or None, number / 64, 100 - number / 64) for number in range(300)]
    tasks += [task(1000 + number, "leaf", number, 50, 50.5) for number in range(1, 300)]
    expected = counted(by_end(tasks))
    if shuffled:
        random.Random(5).shuffle(tasks)
    found = counted(tasks)
    assert {each for each in found if "leaf" not in each.names} == {
        each for each in expected if "leaf" not in each.names
    }
    assert max(len(each.names) for each in found) == 64
    (cut,) = [each for each in found if len(each.names) == 64 and each.names[-1] == OTHER]
    assert cut.names == (*(f"n{number}" for number in range(63)), OTHER)
    assert sum(each.tasks for each in found) == len(tasks)


@given(forests(within=False), st.integers(1, 4), st.randoms(use_true_random=False))
def test_nothing_is_lost_at_any_limit(tasks: list[TaskView], limit: int, chance: random.Random) -> None:
    """Counts and own times add up to the same however little is kept, and no stack is too deep."""
    chance.shuffle(tasks)
    expected = len(tasks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nesting, "_MAX_NODES", limit)
        few = counted(tasks)
        assert sum(each.tasks for each in few) == expected
        assert sum(each.time for each in few) == sum(each.time for each in counted(tasks))
        patch.setattr(nesting, "_MAX_KNOWN", limit)
        patch.setattr(nesting, "_MAX_WAITING", limit)
        assert sum(each.tasks for each in counted(tasks)) == expected
    stacks = Stacks(limit)
    for each in tasks:
        stacks.add(each, each.name)
    found = list(stacks.stacks())
    assert sum(each.tasks for each in found) == expected
    assert max(len(each.names) for each in found) <= limit
    assert sum(each.time for each in found) == sum(each.time for each in counted(tasks))


@given(st.lists(st.tuples(st.integers(1, 5), st.none() | st.integers(1, 6)), max_size=30), st.integers(2, 4))
def test_ids_that_go_round_in_circles_or_come_again(family: list[tuple[int, int | None]], depth: int) -> None:
    """Each task counts once."""
    stacks = Stacks(depth)
    for number, parent in family:
        stacks.add(task(number, f"n{number % 3}", parent), f"n{number % 3}")
    assert sum(each.tasks for each in stacks.stacks()) == len(family)


def test_many_shapes_take_time_in_proportion() -> None:
    """Wide levels, deep ones, and parents that come first: four times the tasks take no more than eight times as long.

    Counted in calls, which no other load on the machine changes.
    """

    def work(count: int) -> int:
        tasks = [task(1, "root")]
        for number in range(60):
            tasks.append(task(number + 2, f"d{number}", number + 1))
        last = len(tasks)
        for number in range(count):
            tasks += [
                task(10_000 + 3 * number, f"w{number}", last),
                task(10_001 + 3 * number, "x", 10_000 + 3 * number),
                task(10_002 + 3 * number, "y", 10_001 + 3 * number),
            ]
            tasks.append(task(10_000_000 + number, f"w{number}", 1))
        calls = 0
        real_now, real_sum = nesting._now, nesting._sum

        def now(node: nesting._Node) -> nesting._Node:
            nonlocal calls
            calls += 1
            return real_now(node)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nesting, "_now", now)
            patch.setattr(nesting, "_sum", lambda *given: (now(nesting._Node()), real_sum(*given)))
            assert sum(each.tasks for each in counted(tasks)) == len(tasks)
        return calls

    assert work(400) < 8 * work(100)
