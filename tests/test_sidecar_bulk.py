"""A sidecar reads in bulk, and comes to what a replay of the same files comes to, however they came to it."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinspect_logging import Config, Inspector, Snapshot
from asyncinspect_logging.analysis.bulk import Bulk
from asyncinspect_logging.analysis.replay import Replay
from asyncinspect_logging.analysis.rules import parse_rules
from asyncinspect_logging.sidecar import Sidecar, processes

BASE = 1_700_000_000_000_000_000
RULES = """
[[rule]]
name = "sync"
start = '(?P<at>\\d+) begin (?P<id>\\d+)'
end = '(?P<at>\\d+) end (?P<id>\\d+)'
key = "id"
time = "at"
time_format = "unix"
"""


class Clock:
    def monotonic_ns(self) -> int:
        return 60_000_000_000

    def time_ns(self) -> int:
        return BASE + 60_000_000_000


def span_lines(pid: int, number: int, chance: random.Random) -> list[dict[str, Any]]:
    """What is said of a span, in order, without seqs."""
    id = f"{(pid << 32) + number:016x}"
    kinds = ["enter"]
    if chance.random() < 0.3:
        kinds.insert(0, "spawn")
    kinds += chance.choices(["suspend", "wake", "resume", "record", "log"], k=chance.choice([0, 0, 1, 3]))
    if chance.random() < 0.9:
        kinds.append("exit")
    told = []
    for kind in kinds:
        said: dict[str, Any] = {"v": 1, "kind": kind, "id": id, "pid": pid}
        if kind in ("spawn", "enter", "record", "exit"):
            said["name"] = f"job{number % 3}"
        if kind in ("spawn", "enter"):
            said |= {"trace": f"{number:032x}", "fields": {"n": number}, "task": "main"}
        if kind == "record":
            said["fields"] = {"n": chance.choice([1, 1.5, float("nan"), "x" * 20_000])}
        if kind == "exit":
            of = chance.randrange(5)
            outcome = ("completed", "completed", "failed", "cancelled", "abandoned")[of]
            said |= {"outcome": outcome, "duration": of * 2_000_000, "polls": 1 + of, "busy": of * 1_000_000}
            said |= {"wakes": of, "self_wakes": 0, "scheduled": of * 20_000, "max_poll": of * 100_000_000}
            said |= {"slow_polls": [[2, of + 1], [12, 1]]} if of % 2 else {}
        told.append(said)
    return told


def log_of(seed: int) -> list[bytes]:
    """A log of two processes, whose spans overlap, with lines of others, broken ones, some twice and some late."""
    chance = random.Random(seed)
    lines: list[bytes] = []
    clock, seqs = 0, {101: 0, 102: 0}
    queues = [span_lines(chance.choice([101, 102]), number, chance) for number in range(1, chance.randrange(2, 40))]
    under_way = queues[:3]
    left = queues[3:]
    while under_way:
        queue = chance.choice(under_way)
        said = queue.pop(0)
        if not queue:
            under_way.remove(queue)
            under_way += left[:1]
            left = left[1:]
        clock += chance.randrange(5_000_000)
        if said["kind"] == "log":
            note = {"span_id": said["id"], "levelname": "WARNING", "message": "row", "created": (BASE + clock) / 1e9}
            lines.append(json.dumps(note).encode())
            continue
        seqs[said["pid"]] += 1
        said |= {"t": clock, "wall": BASE + clock, "seq": seqs[said["pid"]]}
        lines.append(json.dumps({"message": "x", "asyncinspect": said}).encode())
        if chance.random() < 0.15:
            junk = [b"text", b"", b'{"asyncinspect": {"v": 1, "ki', b'{"a": 1}', b'{"asyncinspect": 3}', b"\0\0"]
            ends = [b"%d begin %d" % (clock // 10**6, chance.randrange(3)), b"%d end 1" % (clock // 10**6)]
            lines.append(chance.choice([*junk, *ends, lines[chance.randrange(len(lines))]]))
    for _ in range(chance.choice([0, 0, 3])):
        if lines:
            line = lines.pop(chance.randrange(len(lines)))
            lines.insert(chance.randrange(len(lines) + 1), line)
    return lines


def same(snapshot: Snapshot) -> Snapshot:
    """Without what it costs, and but for one counter: which records are missing (`gap`) is known by their numbers once
    a log is read to its end, and a sidecar's never is. Open tasks have no order.

    What these logs do not come to: beyond the last 10,000 spans that ended, what comes late of a span finds it known or
    not by where batches are cut, since the quick way forgets 10,000 at a time; and a record that comes before its span
    waits among 10,000 others in a sidecar, and among 262,144 in a replay.
    """
    # What is said of where rules found a span: the file's name is the sidecar's own.
    tasks = [task._replace(at=(task.at or "").replace("#1:", ":")) for task in snapshot.tasks]
    return snapshot._replace(
        memory={}, dropped={**snapshot.dropped, "gap": 0}, tasks=tuple(sorted(tasks, key=lambda task: task.id))
    )


steps = st.lists(st.sampled_from(["scrape", "snapshot", "checkpoint", "restart", "nothing"]), max_size=6)


@pytest.fixture(scope="module", autouse=True)
def _not_told() -> Iterator[None]:
    """What is found in all these logs is not to be shown."""
    logger = logging.getLogger("asyncinspect.findings")
    logger.disabled = True
    yield
    logger.disabled = False


@settings(max_examples=40)
@given(seed=st.integers(0, 1 << 30), data=st.data(), steps=steps, small=st.booleans(), rules=st.booleans())
def test_the_same_as_a_replay(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject, steps: list[str], small: bool, rules: bool
) -> None:
    """All counters, findings, tasks and timelines: in chunks, with scrapes, checkpoints and restarts in between."""
    folder = tmp_path_factory.mktemp("logs")
    log, state = folder / "app.jsonl", folder / "state"
    lines = log_of(seed)
    text = b"".join(line + b"\n" for line in lines)
    config = Config(max_tasks=3, max_events=4, max_names=2) if small else Config()

    def sidecar() -> Sidecar:
        inspector = Inspector(config, clock=Clock())
        return Sidecar(log, inspector=inspector, state=state, rules=parse_rules(RULES) if rules else None, local=False)

    running = sidecar()
    done = 0
    for step in [*steps, "nothing"]:
        end = data.draw(st.integers(done, len(text))) if step != "nothing" else len(text)
        with log.open("ab") as file:
            file.write(text[done:end])
        done = end
        running.files.scan()
        while running.step():
            pass
        if step in ("scrape", "snapshot"):
            running.inspector.snapshot(tasks=step == "snapshot")
        elif step == "checkpoint":
            running.inspector.resume(json.loads(json.dumps(running.inspector.checkpoint())))
        elif step == "restart":
            running.save()
            running._close()
            running = sidecar()
    seen, reader = running.inspector.snapshot(), running.reader
    running._close()
    replay = Replay(log, inspector=Inspector(config, clock=Clock()), rules=parse_rules(RULES) if rules else None)
    expected = replay.run().snapshot()
    assert same(seen) == same(expected)
    if "restart" not in steps:
        report = replay.report
        assert reader.broken == report.broken
        assert rules or reader.foreign == report.foreign
        assert reader.annotations == report.annotations


def late(pid: int, number: int, **exit: Any) -> list[bytes]:
    """A span that ends badly, and of which the spawn comes after its end."""
    said = {"v": 1, "id": f"{(pid << 32) + number:016x}", "pid": pid, "name": "job"}
    begin = {"trace": f"{number:032x}", "thread": 1}
    told = [
        {"kind": "enter", "seq": 3 * number - 1, "t": 20 * number + 5, **begin},
        {"kind": "exit", "seq": 3 * number, "t": 20 * number + 10, "outcome": "completed", **exit},
        {"kind": "spawn", "seq": 3 * number - 2, "t": 20 * number, **begin},
    ]
    return [json.dumps({"asyncinspect": {**said, "wall": BASE + each["t"], **each}}).encode() for each in told]


@pytest.mark.parametrize("config", [Config(), Config(max_tasks=1, max_events=1)], ids=["all", "few"])
def test_where_batches_are_cut(tmp_path: Path, config: Config) -> None:
    """Spans are judged at their end, and again where something comes late; what limits let go is gone at once. So
    however many lines are read at a time, findings and what was dropped are the same.
    """
    lines = []
    for number in range(1, 8):
        lines += late(101, number, **({"outcome": "abandoned"} if number % 2 else {"max_poll": 10**9, "polls": 1}))
    # And once all are over, their spawns again, with seqs of their own.
    spawns = enumerate(lines[2::3], 1)
    lines += [line.replace(b'"seq": %d,' % (3 * number - 2), b'"seq": %d,' % (100 + number)) for number, line in spawns]
    log = tmp_path / "app.jsonl"
    found = []
    for at_once in (1, 2, 3, 4, 5, 7, len(lines)):
        log.unlink(missing_ok=True)
        log.touch()
        sidecar = Sidecar(log, inspector=Inspector(config, clock=Clock()), local=False)
        for first in range(0, len(lines), at_once):
            with log.open("ab") as file:
                file.writelines(line + b"\n" for line in lines[first : first + at_once])
            sidecar.files.scan()
            while sidecar.step():
                pass
        found.append(same(sidecar.inspector.snapshot()))
        sidecar._close()
    assert found[0].lints == {("leaked", "job"): 4, ("long_poll", "job"): 3, ("never_yielded", "job"): 3}
    assert all(each == found[0] for each in found)
    assert same(Replay(log, inspector=Inspector(config, clock=Clock())).run().snapshot()) == found[0]


def test_it_is_bulk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Any) -> None:
    """Most lines do not go the general way, in the next run too, and while somebody scrapes."""
    log, odd, take = tmp_path / "app.jsonl", [], Bulk.take

    def watched(self: Bulk, lines: list[bytes], read: Any) -> None:
        take(self, lines, lambda line, index: (odd.append(line), read(line, index)))

    monkeypatch.setattr(Bulk, "take", watched)
    for run in range(2):
        sidecar = Sidecar(log, state=tmp_path / "state")
        for part in range(3):
            first = 1 + 1000 * (3 * run + part)
            told = [tell(kind, number) for number in range(first, first + 400) for kind in ("enter", "exit")]
            with log.open("a") as file:
                file.write("".join(json.dumps({"asyncinspect": payload}) + "\n" for payload in told))
            sidecar.files.scan()
            while sidecar.step():
                pass
            assert sidecar.snapshot().names["job"].live == 0
        sidecar.save()
        sidecar._close()
    assert sidecar.inspector.snapshot().names["job"].completed == 2400
    assert odd == []


def test_what_cannot_be_read_in_bulk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Any, caplog: Any) -> None:
    """Should that ever fail, the lines go the general way, and it is said."""
    take = Bulk.take

    def fail_in_the_middle(self: Bulk, lines: list[bytes], odd: Any) -> None:
        take(self, lines[:5], odd)
        raise RuntimeError("not to be")

    monkeypatch.setattr(Bulk, "take", fail_in_the_middle)
    log = tmp_path / "app.jsonl"
    told = [tell(kind, number) for number in range(1, 11) for kind in ("enter", "exit")]
    lines = [json.dumps({"asyncinspect": payload}) for payload in told]
    log.write_text("\n".join([*lines[:2], "text", *lines[2:]]) + "\n")
    sidecar = Sidecar(log)
    while sidecar.step():
        pass
    view = sidecar.inspector.snapshot().names["job"]
    assert (view.spawned, view.completed) == (10, 10)
    assert (sidecar.reader.lines, sidecar.reader.foreign, sidecar.reader.records) == (21, 1, 20)
    assert "in bulk" in caplog.text
    sidecar._close()


def test_the_last_of_each_process(tmp_path: Path, stream: Callable[..., Any]) -> None:
    """Of lines that come together, whoever wrote them, in whatever spelling."""
    log = tmp_path / "app.jsonl"
    last = {}
    with log.open("w") as file:
        for number in range(1, 40):
            for pid in (1001, 1002, 1003):
                payload = stream(pid=pid, base=pid << 40)("enter", number)
                payload["t"] = payload["wall"] = BASE + number
                last[pid] = payload
                if pid == 1003:
                    payload = dict(sorted(payload.items()))
                file.write(json.dumps({"id": "00000000", "asyncinspect": payload}) + "\n")
    sidecar = Sidecar(log)
    while sidecar.step():
        pass
    known = sidecar.processes._known
    assert {base: each.last["wall"] for base, each in known.items() if each.last} == {
        processes.base_of(payload): payload["wall"] for payload in last.values()
    }
    sidecar._close()
