"""An inspector's checkpoint: whoever goes on from one comes to what nobody interrupted would have come to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import write_log

from asyncinspect_logging import Config, Inspector, Snapshot
from asyncinspect_logging.errors import ConfigError

KINDS = ("spawn", "enter", "suspend", "wake", "resume", "record", "exit", "exit", "enter")
OUTCOMES = ("completed", "failed", "cancelled", "abandoned", "interrupted")


class Clock:
    def monotonic_ns(self) -> int:
        return 50_000_000_000

    def time_ns(self) -> int:
        return 1_700_000_050_000_000_000


def payload(pid: int, number: int, kind: str, seq: int, of: int) -> dict[str, Any]:
    said: dict[str, Any] = {"v": 1, "kind": kind, "id": f"{(pid << 40) + number:016x}", "pid": pid, "seq": seq}
    said |= {"t": seq * 7_000_000, "wall": 1_700_000_000_000_000_000 + seq * 7_000_000}
    if kind in ("spawn", "enter", "record", "exit"):
        said["name"] = f"job{number % 3}"
    if kind in ("spawn", "enter"):
        said |= {"trace": f"{number:032x}", "thread": 1, "fields": {"n": number, "\ud800": ["x", {"y": None}]}}
        said |= {"parent": f"{(pid << 40) + 1:016x}", "links": ["ab"], "task": "main", "at": "a.py:1"}
    if kind == "suspend":
        said["on"] = "sleep"
    if kind == "record":
        said["fields"] = {"n": seq, f"k{of}": 1.5}
    if kind == "exit":
        said |= {"outcome": OUTCOMES[of], "duration": 2_000_000 * of, "polls": 1 + of, "busy": of * 1_000_000}
        said |= {"wakes": of, "self_wakes": 0, "scheduled": of * 20_000, "max_poll": of * 200_000_000}
        said |= {"slow_polls": [[2, of + 1], [12, 1]]} if of % 2 else {}
        said |= {"error": {"type": "E", "message": "m", "leaves": ["L"]}} if of else {}
    return said


told = st.builds(
    payload,
    pid=st.integers(100, 102),
    number=st.integers(1, 6),
    kind=st.sampled_from(KINDS),
    seq=st.integers(1, 60),
    of=st.integers(0, 4),
)
notes = st.builds(lambda number, wall: (number, wall), st.integers(1, 6), st.integers(0, 10**18))
anything = st.lists(st.one_of(told, told, told, notes, st.just({"asyncinspect": "broken"})), max_size=60)


def feed(inspector: Inspector, what: list[Any]) -> None:
    for one in what:
        if isinstance(one, tuple):
            inspector.annotate((100 << 40) + one[0], "WARNING row", one[1])
        else:
            inspector.apply(one)


def seen(inspector: Inspector) -> Snapshot:
    """All of a snapshot but what it costs."""
    return inspector.snapshot()._replace(memory={})


def gone_on(before: Inspector, config: Config) -> Inspector:
    """Another inspector, with what a file keeps of this one."""
    after = Inspector(config, clock=Clock())
    after.resume(json.loads(json.dumps(before.checkpoint())))
    return after


@given(what=anything, cuts=st.lists(st.integers(0, 60), max_size=3), small=st.booleans())
def test_interrupted_is_as_good_as_uninterrupted(what: list[Any], cuts: list[int], small: bool) -> None:
    """Wherever it is cut, once or several times, whatever comes twice or out of order, and with limits that are met."""
    config = Config(max_tasks=3, max_events=4, max_names=2) if small else Config()
    one, other = Inspector(config, clock=Clock()), Inspector(config, clock=Clock())
    feed(one, what)
    done = 0
    for cut in sorted(cuts):
        feed(other, what[done:cut])
        other, done = gone_on(other, config), max(done, cut)
    feed(other, what[done:])
    assert seen(other) == seen(one)
    assert seen(gone_on(one, config)) == seen(one)


@given(what=anything)
def test_what_was_taken_in_counts_as_seen(what: list[Any]) -> None:
    """All of it told once more after the checkpoint changes no counter of spans."""
    inspector = Inspector(clock=Clock())
    feed(inspector, what)
    after = gone_on(inspector, Config())
    records = [one for one in what if isinstance(one, dict)]
    feed(after, records)
    before, now = seen(inspector), seen(after)
    assert now.names == before.names
    assert now.states == before.states


def test_bounds_of_both_sides(tell: Callable[..., dict[str, Any]]) -> None:
    """Histograms go on with the bounds that they had, and count at those that this exporter wants, too."""
    before, after = Inspector(), Inspector()
    before.add_duration_bounds([0.0015])
    after.add_duration_bounds([0.003])
    before.apply(tell("enter"))
    before.apply(tell("exit"))
    after.resume(before.checkpoint())
    after.apply(tell("enter", 2))
    after.apply(tell("exit", 2))
    histogram = after.snapshot().names["job"].durations["completed"]
    assert {0.0015, 0.003} <= set(histogram.bounds)
    assert histogram.counts[histogram.bounds.index(0.003)] == 1
    assert histogram.total == 2


def test_after_a_replay(tmp_path: Path, stream: Callable[..., Any]) -> None:
    """What was read in bulk is in it, open spans and kept ones, too."""
    from asyncinspect_logging.analysis.replay import replay

    tell = stream()
    told = [tell(kind, number) for number in range(1, 60) for kind in ("enter", "exit")] + [tell("enter", 99)]
    log = write_log(tmp_path / "a.jsonl", told)
    inspector = replay([log], inspector=Inspector(clock=Clock()))
    assert seen(gone_on(inspector, Config())) == seen(inspector)
    assert inspector.snapshot().names["job"].live == 1


def test_spans_of_this_process_stay_live(listen: Callable[..., Inspector]) -> None:
    """A sidecar may look at itself, too: what it has open is open in the new books."""
    from asyncinspect_logging import span

    inspector = listen()
    with span("own"):
        inspector.resume(Inspector().checkpoint())
        assert inspector.snapshot().names["own"].live == 1
    assert inspector.snapshot().names["own"].completed == 1


def test_lost_records_are_a_gap() -> None:
    """What somebody knows to be missing shows as such, and outlives a restart."""
    inspector = Inspector()
    inspector.lose(3)
    assert inspector.snapshot().dropped["gap"] == 3
    assert gone_on(inspector, Config()).snapshot().dropped["gap"] == 3


@pytest.mark.parametrize(
    "change",
    [
        {"v": 1},
        {"bounds": [2.0, 1.0]},
        {"names": [{"name": 1}]},
        {"logs": "many"},
        {"live": [[{}, {}]]},
        {"dropped": None},
        {"streams": [[1, 2, {}]]},
        {"lag": [[1], 0]},
        {"over": ["x"]},
        {"waiting": [[]]},
        {"waits": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_checkpoint(change: dict[str, Any], tell: Callable[..., dict[str, Any]]) -> None:
    """What was not made by `checkpoint` is refused, and nothing is changed."""
    inspector = Inspector()
    inspector.apply(tell("enter"))
    with pytest.raises(ConfigError, match="checkpoint"):
        inspector.resume(inspector.checkpoint() | change)
    assert inspector.snapshot().names["job"].live == 1


# -- waits -------------------------------------------------------------------------------------------------------


def opposite(tell: Any) -> list[dict[str, Any]]:
    """Records of two tasks that take two locks in opposite order."""
    x, y = ({"kind": "lock", "name": name, "id": f"{number:016x}"} for name, number in (("x", 7), ("y", 8)))
    spans = tell("enter", 1), tell("enter", 2)
    a, b = ({"owner": f"{number:016x}", "task": task} for task, number in (("a", 21), ("b", 22)))
    held = [{**who, "t": each["t"], "id": each["id"], "at": "a.py:1"} for who, each in zip((a, b), spans, strict=True)]
    return [
        *spans,
        tell("wait", 1, resource=y, holders=[held[1]], at="a.py:2", **a),
        tell("wait", 2, resource=x, holders=[held[0]], at="a.py:3", **b),
    ]


def look(inspector: Inspector) -> Snapshot:
    inspector.look()
    inspector.look()
    return inspector.snapshot()


@pytest.mark.parametrize("cut", range(5))
def test_a_deadlock_whose_records_came_before_and_after(cut: int, tell: Any) -> None:
    """It is found, in the same words, and counted once; when it is no more, it is withdrawn."""
    told = opposite(tell)
    whole = Inspector(clock=Clock())
    feed(whole, told)
    before = Inspector(clock=Clock())
    feed(before, told[:cut])
    assert look(before).deadlocks == (cut == 4)
    after = gone_on(before, Config())
    feed(after, told[cut:])
    (found,) = look(after).findings
    assert (found.kind, "a.py:2" in found.message, "a.py:3" in found.message) == ("deadlock", True, True)
    assert found == look(whole).findings[0]
    last = gone_on(after, Config())
    assert look(last).deadlocks == 1
    assert look(last).findings == (found,)
    last.apply(tell("acquire", 2, **{key: told[3][key] for key in ("resource", "owner", "task")}))
    assert (look(last).deadlocks, look(last).findings) == (1, ())


def test_a_deadlock_across_a_restart(tmp_path: Path, tell: Any) -> None:
    """Of the sidecar that reads its log."""
    from asyncinspect_logging.sidecar import Sidecar

    log, told = tmp_path / "a.log", opposite(tell)
    for part in told[:3], told[3:], []:
        with log.open("a") as file:
            file.writelines(json.dumps({"asyncinspect": payload}) + "\n" for payload in part)
        sidecar = Sidecar(log, state=tmp_path / "state")
        while sidecar.step():
            pass
        deadlocks = look(sidecar.inspector).deadlocks
        sidecar.save()
        sidecar._close()
        assert deadlocks == (part != told[:3])


def test_a_deadlock_that_was_seen_is_saved(tmp_path: Path, tell: Any) -> None:
    """It is found by looking, without any line: what was scraped is in the state all the same."""
    from asyncinspect_logging.sidecar import Sidecar

    log, state = tmp_path / "a.log", tmp_path / "state"
    write_log(log, opposite(tell))
    sidecar = Sidecar(log, state=state)
    while sidecar.step():
        pass
    sidecar.save()
    assert look(sidecar.inspector).deadlocks == 1
    sidecar.snapshot()
    sidecar._close()
    assert json.loads(state.read_text())["inspector"]["deadlocks"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"owners": [[21, "a", 0, False]]},
        {"owners": [[-1, "a", 0, False]]},
        {"owners": [[number, "a", 0, False] for number in range(110_001)]},
        {"roots": list(range(10))},
        {"resources": []},
        {"resources": [[7, "lock", None, False, []], [8, "lock", 3, False, []]]},
        {"resources": [[number, "lock", None, False, []] for number in (7, 8, 9)]},
        {"waits": [[21, 8, 1 << 64, "", 1, "", False]]},
        {"waits": [[21, 7, 0, "", 1, "", False], [21, 8, 0, "", 1, "", False]]},
        {"found": [[[[1, 2, 3]], ["deadlock", "", [], "", [], 0]]]},
        {"found": [[[[21]], None]]},
    ],
)
def test_waits_that_nobody_saved(change: dict[str, Any], tell: Any) -> None:
    """Are refused, and nothing is changed; so is what has no end."""
    inspector = Inspector()
    feed(inspector, opposite(tell))
    saved = inspector.checkpoint()
    with pytest.raises(ConfigError, match="checkpoint"):
        inspector.resume(saved | {"waits": saved["waits"] | change})
    assert look(inspector).deadlocks == 1


def test_only_so_many_waits_are_kept(tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait longest, with all who hold what they wait for; and no task of this process, which ends with it."""
    monkeypatch.setattr("asyncinspect_logging.checkpoint._MAX_WAITS", 2)
    monkeypatch.setattr("asyncinspect_logging.checkpoint._MAX_HOLDS", 5)
    inspector = Inspector()
    feed(inspector, [tell("enter")])
    for number, holds in enumerate([3, 3, 2, 0], 1):
        holders = [{"owner": f"{100 * number + each:016x}", "t": 1} for each in range(holds)]
        resource = {"kind": "lock", "id": f"{number:016x}"}
        inspector.apply(tell("wait", owner=f"{number:016x}", resource=resource, holders=holders))
    kept = gone_on(inspector, Config()).checkpoint()["waits"]
    assert [wait[0] for wait in kept["waits"]] == [1, 3]
    assert len(kept["owners"]) == 2 + 5
