"""What is read straight from lines, of tasks and of records: the same as in the general way, and of nearly all."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinspect_logging import Config, Inspector
from asyncinspect_logging.analysis import bulk, log_lifecycle
from asyncinspect_logging.analysis import replay as analysis_replay
from asyncinspect_logging.analysis.lifecycle import Flaw, check
from asyncinspect_logging.analysis.log_lifecycle import LogRecords
from asyncinspect_logging.analysis.replay import LogTasks
from asyncinspect_logging.snapshot import TaskView

TRACE_ID = "ab" * 16
long = "x" * 60
values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["", "a", long, ["a", 1], {}]))
fields = st.dictionaries(st.sampled_from(["a", "b", "token", long, "ä"]), values, max_size=3)
begins = st.fixed_dictionaries(
    {},
    optional={
        "trace": st.just(TRACE_ID),
        "parent": st.sampled_from([f"{9:016x}", f"{7:016x}"]),
        "task": st.sampled_from(["job", long, 3]),
        "thread": st.sampled_from([7, 0, -1, 1.0, "x"]),
        "at": st.sampled_from(["a.py:1", long, []]),
        "links": st.sampled_from([["ab"], [], "x"]),
        "parent_closed": st.sampled_from([True, False, 1, "x"]),
        "fields": fields,
    },
)
whole = st.sampled_from([0, 1, 2, 5_000_000])
pairs = st.sampled_from([[], [[1, 1]], [[1, 1], [1, 1]], [[99, 1]], [[2, 3]]])
exits = st.fixed_dictionaries(
    {"outcome": st.sampled_from(["completed", "completed", "failed", "cancelled", "interrupted", "abandoned"])},
    optional={
        **dict.fromkeys(("duration", "polls", "busy", "scheduled", "max_poll", "wakes", "self_wakes"), whole),
        "slow_polls": pairs,
        "slow_waits": pairs,
        "error": st.sampled_from([{"type": "E", "message": long}, {"type": "E", "leaves": ["A", long]}, "x", {}]),
    },
)
steps = st.lists(st.sampled_from(["suspend", "resume", "wake", "record", "log", "wait"]), max_size=5)
spans = st.tuples(
    st.none() | begins, begins, steps, exits, st.lists(st.sampled_from([-5, 0, 1, 10]), min_size=9, max_size=9)
)


def lines_of(number: int, seqs: Any, span: Any, t: int) -> list[bytes]:
    """The lines of one span; its times go forth and back."""
    spawn, enter, steps, exit, passed = span
    told = [("spawn", spawn)] if spawn is not None else []
    told += [("enter", enter), *((kind, {}) for kind in steps), ("exit", exit)]
    lines = []
    for (kind, more), gone in zip(told, itertools.chain(passed, itertools.repeat(1)), strict=False):
        t = max(0, t + gone)
        if kind == "log":
            lines.append({"span_id": f"{number:016x}", "message": "x", "created": 1.7e9 + t / 1e9})
            continue
        if kind == "record":
            more = {"fields": {"a": "later"}}
        base = {"v": 1, "kind": kind, "id": f"{number:016x}", "t": t, "wall": 1_700_000_000 * 10**9 + t}
        base |= {"pid": 7, "seq": next(seqs), "name": f"{kind}-name"}
        lines.append({"message": "x", "asyncinspect": base | more})
    return [json.dumps(each).encode() for each in lines]


def tasks_of(path: Path, limit: int) -> list[TaskView]:
    inspector = Inspector(Config(max_field_length=limit))
    return [task._replace(fields=dict(task.fields)) for task in LogTasks(path, inspector=inspector)]


@settings(max_examples=80)
@given(found=st.lists(spans, max_size=8), limit=st.sampled_from([50, 1024]), start=st.sampled_from([0, 1, 10**15]))
def test_same_view_as_of_the_span(
    tmp_path_factory: pytest.TempPathFactory, found: list[Any], limit: int, start: int
) -> None:
    """Whatever lines say of a task, usual or not, its view is that of the span which the general way makes of them."""
    path = tmp_path_factory.mktemp("logs") / "app.log"
    seqs = itertools.count(1)
    made = [lines_of((5 << 32) + number, seqs, span, start) for number, span in enumerate(found, 5)]
    path.write_bytes(b"\n".join(line for lines in made for line in lines))
    quick = tasks_of(path, limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis_replay, "view_of", lambda *_: None)
        # What is no number is not equal to itself.
        assert repr(tasks_of(path, limit)) == repr(quick)


@settings(max_examples=50)
@given(found=st.lists(spans, max_size=8), data=st.data())
def test_same_flaws_as_of_the_payloads(
    tmp_path_factory: pytest.TempPathFactory, found: list[Any], data: st.DataObject
) -> None:
    """Of lines in any order, some twice: what is quickly read of records comes to what their payloads do."""
    seqs = itertools.count(1)
    made = [lines_of((5 << 32) + number, seqs, span, 1) for number, span in enumerate(found, 5)]
    lines = [line for lines in made for line in lines]
    lines = data.draw(st.permutations(lines + lines[:2]))
    if data.draw(st.booleans()):
        # Ids in capitals, a wrong parent.
        lines = [line.replace(b'0000005"', b'000000A"').replace(b"0000009", b"000000x") for line in lines]
    path = tmp_path_factory.mktemp("logs") / "app.log"
    path.write_bytes(b"\n".join(lines))
    at = data.draw(st.none() | st.just(1_700_000_000.0))

    def flaws() -> list[Flaw]:
        tasks = LogTasks(path, at=at)
        records = LogRecords(tasks, at=at)
        return records.flaws(check(tasks))

    quick = flaws()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_lifecycle, "decoded", lambda lines: [None] * len(lines))
        assert flaws() == quick


def test_no_span_is_made_of_what_is_usual(tmp_path: Path, tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of finished tasks with or without steps, and of failed ones: only their own lines are looked at."""
    monkeypatch.setattr(bulk, "unfold", lambda *_: pytest.fail("a span was made"))
    records = []
    for number in range(1, 100):
        records += [tell("spawn", number)] if number % 2 else []
        records += [tell("enter", number, task="job", thread=3, at="a.py:1", fields={"a": 1})]
        records += [tell("suspend", number), tell("wake", number), tell("resume", number)] if number % 3 else []
        records += [tell("exit", number, outcome="completed" if number % 5 else "failed", error={"type": "E"})]
    path = tmp_path / "app.log"
    path.write_bytes(b"\n".join(json.dumps({"asyncinspect": record}).encode() for record in records))
    assert len(list(LogTasks(path))) == 99
