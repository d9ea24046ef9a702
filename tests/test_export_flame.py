"""Flame graphs: which time falls to which stack, and that other programs can read it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import a_view

from asyncinspect_logging import Inspector, nesting
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters import flame
from asyncinspect_logging.exporters.flame import MEASURES, FlameExporter
from asyncinspect_logging.snapshot import TaskView

EMPTY = Inspector().snapshot()
#: Published at https://www.speedscope.app/file-format-schema.json; its licence is beside it.
SCHEMA = json.loads((Path(__file__).parent / "formats" / "speedscope.schema.json").read_text("utf-8"))


def a_task(
    id: str, begin: float, end: float | None, parent: str | None = None, *, made: float | None = None, **more: Any
) -> TaskView:
    """A task from `begin` to `end` (None: it is live at 100 s), made before that if so told; idle all the time."""
    given = {"name": id.rstrip("0123456789"), "task": "main", "thread": 1}
    given["idle"] = (100 if end is None else end) - begin
    started = begin if made is None else made
    return a_view(started, end, now=100, entered=begin, id=id, parent_id=parent, **(given | more))


def stacks(*tasks: TaskView, measure: str) -> dict[str, float]:
    """Self times by stack, in seconds."""
    snapshot = EMPTY._replace(tasks=tasks)
    text = FlameExporter.export_to_string(snapshot, measure=measure, form="collapsed")  # type: ignore[arg-type]
    return {stack: int(ns) / 1e9 for stack, _, ns in (line.rpartition(" ") for line in text.splitlines())}


def all_measures(*tasks: TaskView) -> dict[str, dict[str, float]]:
    return {measure: stacks(*tasks, measure=measure) for measure in MEASURES}


def test_a_block_in_a_coroutine() -> None:
    """Its polls are its parent's, so both busy and blocked are less by its own."""
    inner = a_task("query", 2, 4, "request", busy=0.5, idle=1.5)
    outer = a_task("request", 1, 5, busy=1.5, idle=2.5)
    assert all_measures(inner, outer) == {
        "busy": {"request": 1.0, "request;query": 0.5},
        "blocked": {"request": 1.0, "request;query": 1.5},
        "time": {"request": 2.0, "request;query": 2.0},
    }


def test_children_in_tasks_of_their_own() -> None:
    """Their polls are not the parent's, which waits while they are there: once, however many there are."""
    children = [a_task(f"fetch{n}", 2, 4, "request", made=1.5, task="fetch", busy=0.5, idle=1.5) for n in range(3)]
    outer = a_task("request", 1, 5, busy=1.0, idle=3.0)
    assert all_measures(*children, outer) == {
        "busy": {"request": 1.0, "request;fetch": 1.5},
        "blocked": {"request": 1.0, "request;fetch": 4.5},
        "time": {"request": 2.0, "request;fetch": 6.0},
    }


def test_a_task_of_the_same_coroutine() -> None:
    """One that makes a task of itself: that was made some time before it began, and is no block."""
    child = a_task("crawl2", 2, 4, "crawl1", made=1.9, task="crawl", busy=0.5, idle=1.5)
    assert stacks(child, a_task("crawl1", 1, 5, task="crawl", busy=2, idle=2), measure="busy") == {
        "crawl": 2.0,
        "crawl;crawl": 0.5,
    }


def test_self_times_are_never_negative() -> None:
    """Nor is one above another's cost: a child that says it was busy for longer than its parent."""
    inner = a_task("inner", 1, 9, "outer", busy=7, idle=1)
    found = all_measures(inner, a_task("outer", 2, 3, busy=1, idle=0))
    assert found["busy"] == {"outer;inner": 7.0}
    assert found["time"] == {"outer;inner": 8.0}


def test_live_tasks_count_up_to_now() -> None:
    """Parents stand before their children in a snapshot, and are reckoned after them all the same."""
    tasks = a_task("main", 0, None), a_task("request", 10, None, "main"), a_task("query", 20, 30, "request")
    assert stacks(*tasks, measure="time") == {"main": 10.0, "main;request": 80.0, "main;request;query": 10.0}


def test_a_child_that_ends_after_its_parent() -> None:
    """It has its place below it; the parent's time is its own."""
    tasks = a_task("b", 1, 2, "a"), a_task("a", 0, 3), a_task("late", 2, 9, "b")
    assert stacks(*tasks, measure="time") == {"a": 2.0, "a;b": 1.0, "a;b;late": 7.0}


def test_a_parent_that_nobody_knows() -> None:
    """What is known of the stack."""
    assert stacks(a_task("b", 1, 2, "gone"), measure="time") == {"b": 1.0}


def test_names_of_collapsed_stacks() -> None:
    """Nothing in a name ends it, or the line."""
    task = a_task("x", 0, 1, name="a;b\nc  d\ud800")
    assert stacks(task, measure="time") == {"a:b c d\\ud800": 1.0}
    assert stacks(a_task("x", 0, 1, name=" "), measure="time") == {"-": 1.0}


def test_neither_measure_nor_form() -> None:
    """The error says what there is."""
    with pytest.raises(ConfigError, match="measure='wall' is not measured; write one of 'busy', 'blocked', 'time'"):
        FlameExporter.export_to_string(EMPTY, measure="wall")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="form='svg' is no format of flame graphs; write 'speedscope' or 'collapsed'"):
        FlameExporter.export_to_string(EMPTY, form="svg")  # type: ignore[arg-type]


def speedscope(*tasks: TaskView, **options: Any) -> Any:
    """A speedscope file, checked against the schema and for what the schema does not say."""
    document = json.loads(FlameExporter.export_to_string(EMPTY._replace(tasks=tasks), **options))
    jsonschema.validate(document, SCHEMA)
    frames = document["shared"]["frames"]
    for profile in document["profiles"]:
        assert len(profile["samples"]) == len(profile["weights"])
        assert profile["endValue"] == sum(profile["weights"])
        assert all(0 <= frame < len(frames) for sample in profile["samples"] for frame in sample)
        assert all(sample and weight > 0 for sample, weight in zip(profile["samples"], profile["weights"], strict=True))
    return document


def test_speedscope() -> None:
    """A profile for each measure, the one that was asked for first."""
    document = speedscope(a_task("query", 2, 4, "request"), a_task("request", 1, 5), measure="blocked")
    assert [profile["name"] for profile in document["profiles"]] == list(MEASURES)
    assert document["activeProfileIndex"] == 1
    names = [frame["name"] for frame in document["shared"]["frames"]]
    blocked = document["profiles"][1]
    found = [[names[frame] for frame in sample] for sample in blocked["samples"]]
    assert dict(zip(map(tuple, found), blocked["weights"], strict=True)) == {
        ("request",): 2 * 10**9,
        ("request", "query"): 2 * 10**9,
    }
    speedscope()


def test_the_schema_is_one() -> None:
    """What is wrong does not pass."""
    document = speedscope(a_task("a", 1, 2))
    document["profiles"][0]["unit"] = "hours"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


SECONDS = st.floats(0, 50) | st.floats()
TASKS = st.builds(
    lambda id, begin, end, parent, **more: a_task(id, begin, end, parent, **more),
    st.sampled_from(["a1", "a2", "b1", "b2", "c"]),
    SECONDS,
    st.none() | SECONDS,
    st.none() | st.sampled_from(["a1", "a2", "b1", "b2", "c", "gone"]),
    busy=SECONDS,
    idle=SECONDS,
    name=st.text(st.characters(exclude_categories=()), max_size=2),
    task=st.sampled_from(["x", "y", None]),
)


@given(st.lists(TASKS, max_size=12))
def test_whatever_the_tasks_are(tasks: list[TaskView]) -> None:
    """A file that speedscope takes."""
    speedscope(*tasks)


@given(st.integers(0, 10_000))
def test_blocks_add_up(seed: int) -> None:
    """Of blocks within blocks of one coroutine, self times add up to the times of the outermost, in each measure."""
    dice = random.Random(seed)

    def grow(begin: int, end: int, parent: str | None) -> Iterator[TaskView]:
        id, at, inside = f"n{dice.randrange(10**9)}", begin, []
        while end - at > 10 and dice.random() < 0.7:
            child = dice.randrange(at, end)
            inside.append((child, dice.randint(child, end)))
            at = inside[-1][1]
        for child in inside:
            yield from grow(*child, id)
        busy = (end - begin) // 4
        yield a_task(id, begin, end, parent, busy=busy, idle=end - begin - busy, name=dice.choice("abc"))

    tasks = list(grow(0, 10_000, None))
    root = tasks[-1]
    assert sum(stacks(*tasks, measure="time").values()) == 10_000
    # A quarter of each, rounded down: no block is busy for longer than its parent.
    assert sum(stacks(*tasks, measure="busy").values()) == root.busy
    assert sum(stacks(*tasks, measure="blocked").values()) == pytest.approx(root.idle, abs=len(tasks))


def test_deep_stacks_and_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is without a limit, and no time is lost to it."""
    deep = [a_task(f"x{n}", 0, 1, f"x{n - 1}" if n else None, name=f"f{n}", busy=0, idle=0) for n in range(5000)]
    deep[-1] = deep[-1]._replace(busy=1.0)
    (found,) = stacks(*reversed(deep), measure="busy").items()
    assert found[1] == 1.0
    assert found[0].count(";") <= flame._MAX_STACK
    monkeypatch.setattr(nesting, "_MAX_NODES", 100)
    names = stacks(*(a_task("x", 0, 1, name=str(n)) for n in range(150)), measure="time")
    assert len(names) == 101
    assert names["_other_"] == 50.0


def test_many_parents_that_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are waited for up to a limit, and no time is lost."""
    monkeypatch.setattr(nesting, "_MAX_WAITING", 5)
    tasks = [a_task(f"x{n}", 0, 1, f"gone{n}") for n in range(20)]
    assert stacks(*tasks, measure="time") == {"x": 20.0}


def test_an_empty_graph_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """Of spans that nobody polled only the time from enter to exit is known."""
    snapshot = EMPTY._replace(tasks=(a_task("a", 0, 1, idle=0),))
    assert FlameExporter.export_to_string(snapshot, form="collapsed", measure="time") == "a 1000000000\n"
    assert caplog.messages == []
    assert FlameExporter.export_to_string(snapshot, form="collapsed", measure="blocked") == ""
    assert ["no blocked time is known" in message for message in caplog.messages] == [True]
