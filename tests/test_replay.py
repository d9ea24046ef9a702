"""Reading logs: files of every kind, lines of every kind, and what is said of those that are broken."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinspect_logging import Config, Inspector, TaskState, placing, sequence
from asyncinspect_logging.analysis import bulk, files
from asyncinspect_logging.analysis import replay as analysis_replay
from asyncinspect_logging.analysis.files import LogFileError
from asyncinspect_logging.analysis.replay import LogTasks, Replay, ReplayError, Report, replay
from asyncinspect_logging.analysis.rules import parse_rules
from asyncinspect_logging.analysis.zstd import Zstd, is_zstd
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.snapshot import Snapshot

Tell = Callable[..., dict[str, Any]]
Log = Callable[..., Path]


def line(payload: Any, **more: Any) -> bytes:
    return json.dumps({"message": "x", **more, "asyncinspect": payload}).encode()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """A function that writes a log of these lines."""

    def log(*lines: Any, name: str = "app.log", end: bytes = b"\n") -> Path:
        path = tmp_path / name
        path.write_bytes(b"\n".join(each if isinstance(each, bytes) else line(each) for each in lines) + end)
        return path

    return log


@pytest.fixture
def spans(tell: Tell) -> Callable[[int], list[dict[str, Any]]]:
    """A function that makes the records of so many spans."""
    return lambda count: [tell(kind, number) for number in range(1, count + 1) for kind in ("enter", "exit")]


def log_of(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(lines))
    return path


def read(path: Any, **more: Any) -> tuple[Snapshot, Report]:
    replayed = Replay(path, **more)
    return replayed.run().snapshot(), replayed.report


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, lambda data: data], ids=["gzip", "zstd", "plain"])
def test_packed_by_content_and_not_by_name(log: Log, spans: Any, pack: Callable[[bytes], bytes]) -> None:
    """Compressed files are known by their first bytes; several parts one after the other are one file."""
    path = log(*spans(3))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(pack(b"".join(lines[:3])) + pack(b"".join(lines[3:])))
    snapshot, report = read(path, strict=True)
    assert snapshot.names["job"].completed == 3
    assert (report.lines, report.records, report.bytes_read) == (6, 6, path.stat().st_size)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_packed_file_that_is_cut_off_or_damaged(log: Log, spans: Any, pack: Callable[[bytes], bytes]) -> None:
    """What can be read of it is, and the rest is a problem, or an error."""
    path = log(*spans(2000))
    whole = pack(path.read_bytes())
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"\xff" * 100 + whole[200:]):
        path.write_bytes(damaged)
        snapshot, report = read(path)
        assert report.broken >= 1 or report.missing or snapshot.names["job"].completed < 2000
        assert len(snapshot.names) <= 1


frames = st.lists(
    st.one_of(
        st.builds(
            lambda data, level, sized, checked: zstandard.ZstdCompressor(
                level=level, write_content_size=sized, write_checksum=checked
            ).compress(data),
            # Such as makes several blocks, of all types.
            st.one_of(st.binary(max_size=50), st.just(bytes(300_000)), st.just(random.Random(1).randbytes(140_000))),
            st.sampled_from([1, 19]),
            st.booleans(),
            st.booleans(),
        ),
        # To be passed over, such as those of pzstd.
        st.builds(lambda data: b"\x5a\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data, st.binary(max_size=9)),
    ),
    min_size=1,
    max_size=4,
)


@given(parts=frames, data=st.data())
def test_where_a_zstd_file_ends(parts: list[bytes], data: st.DataObject) -> None:
    """It is cut short wherever it does not end with a frame."""
    whole = b"".join(parts)
    assert is_zstd(whole[:4])
    ends = {sum(map(len, parts[:number])) for number in range(len(parts) + 1)}
    cut = data.draw(st.sampled_from(sorted(ends)) | st.integers(0, len(whole)))
    stream = Zstd(io.BytesIO(whole[:cut]))

    def read_all() -> None:
        while stream.read(1 << 17):
            pass

    if cut in ends:
        read_all()
    else:
        with pytest.raises(EOFError, match="middle of a zstd frame"):
            read_all()


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_packed_file_that_is_cut_short(log: Log, spans: Any, pack: Callable[[bytes], bytes]) -> None:
    """It is said to be."""
    path = log(*spans(2000))
    path.write_bytes(pack(path.read_bytes())[:-20])
    _, report = read(path)
    assert "the file cannot be read on" in report.problems[-1][2]
    with pytest.raises(ReplayError, match=r"cut short|cannot be read on"):
        read(path, strict=True)


def test_rotated_set_by_a_pattern(log: Log, spans: Any, tmp_path: Path) -> None:
    """Newest first by name, oldest first by time: spans that begin in one file and end in the next are whole."""
    records = spans(30)
    parts = [records[:21], records[21:39], records[39:]]
    for name, part in zip(("app.log.2", "app.log.1", "app.log"), parts, strict=True):
        log(*part, name=name)
    older = tmp_path / "app.log.2"
    (tmp_path / "app.log.2.gz").write_bytes(gzip.compress(older.read_bytes()))
    older.unlink()
    order: list[str] = []
    found = files.sources(tmp_path / "app.log*")
    for batch in files.batches(found):
        order.append(os.path.basename(batch.source.name))
    assert list(dict.fromkeys(order)) == ["app.log.2.gz", "app.log.1", "app.log"]
    snapshot, report = read(tmp_path / "app.log*", strict=True)
    assert snapshot.names["job"].completed == 30
    assert sum(snapshot.dropped.values()) == report.missing == 0


def test_several_and_the_same_twice(log: Log, stream: Callable[..., Tell], tmp_path: Path) -> None:
    """A file that is named twice is read once; those of two processes are added up."""
    one, other = stream(1, 0x11 << 40), stream(2, 0x22 << 40)
    log(*[one(kind) for kind in ("enter", "exit")], name="a.log")
    log(*[other(kind) for kind in ("enter", "exit")], name="b.log")
    paths = [tmp_path / "a.log", str(tmp_path / "*.log"), tmp_path / "b.log"]
    assert read(paths, strict=True)[0].names["job"].completed == 2


def test_more_files_than_may_be_open(
    log: Log, stream: Callable[..., Tell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their processes ran all at the same time."""
    monkeypatch.setattr(files, "_MAX_OPEN", 3)
    monkeypatch.setattr(files, "_CHUNK", 512)
    for number in range(10):
        tell = stream(number, (number + 1) << 40)
        log(*[tell(kind, span) for span in range(1, 6) for kind in ("enter", "exit")], name=f"{number}.log")
    snapshot, report = read(tmp_path / "*.log", strict=True)
    assert snapshot.names["job"].completed == 50
    assert report.records == 100


def test_stdin(log: Log, spans: Any) -> None:
    """A dash is what is piped in, packed or not."""
    code = "import sys; from asyncinspect_logging.analysis.replay import replay\n"
    code += "print(replay('-').snapshot().names['job'].completed)"
    data = log(*spans(3)).read_bytes()
    for piped in (data, gzip.compress(data)):
        done = subprocess.run([sys.executable, "-c", code], input=piped, capture_output=True, timeout=60)
        assert done.stdout.strip() == b"3", done.stderr


@pytest.mark.parametrize("paths", ["nothing.log", "nothing*", [], "."])
def test_what_is_no_log(paths: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to name instead."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LogFileError, match="name"):
        replay(paths)


def test_progress(log: Log, spans: Any) -> None:
    """It ends with all bytes done."""
    path, calls = log(*spans(2000)), []
    Replay(path, progress=lambda done, total: calls.append((done, total))).run()
    size = path.stat().st_size
    assert calls[-1] == (size, size)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len(calls) > 2


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 18])
def test_lines_are_lines_however_they_are_read(
    log: Log, spans: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line numbers and line ends do not depend on where a chunk ends; Windows' line ends and empty lines are fine."""
    path = log(*spans(2), b"", b'{"asyncinspect": ', *spans(1)[:1])
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    monkeypatch.setattr(files, "_CHUNK", chunk)
    _, report = read(path)
    assert (report.lines, report.broken) == (7, 1)
    assert report.problems[0][:2] == (str(path), 6)


def test_a_line_without_end(tmp_path: Path) -> None:
    """100 MB in one line are passed over, in little memory and in little time, and what follows is read."""
    path = tmp_path / "app.log"
    with path.open("wb") as file:
        file.write(b'{"message": "before"}\n')
        for _ in range(100):
            file.write(b'{"asyncinspect": [' * (1 << 16))
        file.write(b'\n{"message": "after"}\n')
    tracemalloc.start()
    _, report = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (report.lines, report.broken, report.foreign) == (3, 1, 2)
    assert report.problems == [(str(path), 2, "the line is longer than 16 MB; it is left out")]
    assert peak < 60 << 20


# -- lines -----------------------------------------------------------------------------------------------------------


def test_forms_of_a_record(log: Log, tell: Tell) -> None:
    """By a formatter, by structlog, a payload alone; with a mark of the encoding, with NULs that a copy left."""
    enter, record, suspend, exit_ = (tell(kind) for kind in ("enter", "record", "suspend", "exit"))
    path = log(
        b"\xef\xbb\xbf" + line(enter),
        json.dumps({"event": "record job", "asyncinspect": record}).encode(),
        json.dumps(suspend).encode(),
        b"\0" * 1000 + line(exit_),
    )
    snapshot, report = read(path, strict=True)
    assert snapshot.names["job"].completed == 1
    assert (report.records, report.missing, report.broken) == (4, 0, 0)


ANNOTATIONS: list[tuple[dict[str, Any], str, float]] = [
    ({"levelname": "INFO", "message": "hello", "created": 1700000001.25}, "INFO hello", 1700000001.25),
    ({"level": "warning", "event": "hello", "timestamp": "2023-11-14T22:13:21.5Z"}, "WARNING hello", 1700000001.5),
    ({"level": "info", "event": "hello", "timestamp": 1700000001}, "INFO hello", 1700000001),
    ({"severity": "Error", "msg": "hello", "ts": 1700000001500}, "ERROR hello", 1700000001.5),
    ({"message": "hello", "@timestamp": "2023-11-14T23:13:21,25+01:00"}, "hello", 1700000001.25),
    ({"message": {"a": 1}}, "<dict>", 1700000001.001),
    ({"message": "", "timestamp": "yesterday", "time": True, "created": float("inf")}, "", 1700000001.001),
    ({"message": "x" * 5000, "created": 1e300}, "x" * 1024, 1700000001.001),
]


@pytest.mark.parametrize(("told", "text", "at"), ANNOTATIONS)
def test_annotations(log: Log, tell: Tell, told: dict[str, Any], text: str, at: float) -> None:
    """Ordinary lines with our `span_id` are on the timeline, with level, text and time as formatters write them; where
    there is no time, that of the record before.
    """
    enter = tell("enter")
    snapshot, report = read(log(enter, json.dumps({**told, "span_id": enter["id"], "span": "job"}).encode()))
    (task,) = snapshot.tasks
    (event,) = (event for event in task.events if event.kind == "log")
    assert (event.detail, event.at) == (text, pytest.approx(at, abs=1e-6))
    assert snapshot.events["log"] == report.annotations == 1
    assert report.broken == report.foreign == 0


@pytest.mark.parametrize("key", ["name", "logger"])
def test_what_the_library_says_is_no_annotation(log: Log, tell: Tell, key: str) -> None:
    """As it is none live."""
    enter = tell("enter")
    said = {"span_id": enter["id"], key: "asyncinspect.internal", "message": "a handler failed"}
    snapshot, report = read(log(enter, json.dumps(said).encode()))
    assert (report.annotations, snapshot.events["log"], report.foreign, report.broken) == (0, 0, 1, 0)


@pytest.mark.parametrize(
    "foreign",
    [b"127.0.0.1 - GET /", b"[1, 2]", b"7", b'"x"', b'{"message": "x"}', b'{"span_id": ""}', b'{"span_id": "xyz"}',
     b'{"span_id": 7}', b'{"asyncinspect": null}', b'{"kind": "enter"}', b"Traceback (most recent call last):",
     b"{worker-1} started", b"{'asyncinspect': 1}", b"pip install asyncinspect-logging", b"{", b'say "asyncinspect"',
     b'{"x": NaN}', b'{"x": "\\ud800"}', b"\xff\xfe\x00x"],
)  # fmt: skip
def test_lines_of_others_pass_by(log: Log, foreign: bytes) -> None:
    """They are counted, and are no error."""
    snapshot, report = read(log(foreign), strict=True)
    assert (report.lines, report.foreign, report.broken) == (1, 1, 0)
    assert sum(snapshot.dropped.values()) == 0


BROKEN = {
    "cut": (b'{"asyncinspect": {"v": 1, "ki', "no JSON"),
    "NULs": (b"\0" * 100, "NUL"),
    "a text": (line("{'v': 1}"), "str, not an object"),
    "a version": (line({"v": 2}), "v=2 is not a version"),
    "a float": (line({"v": 1, "kind": "enter", "id": "0" * 15 + "1", "t": 1.5}), "t=1.5 is not a whole number"),
    "a nest": (b'{"asyncinspect": ' + b'{"a":' * 100_000, "nested too deep"),
    "a nest of lists": (b'{"x":' + b"[" * 500_000 + b', "asyncinspect"', "nested too deep"),
    "a number": (b'{"asyncinspect": {"t": ' + b"9" * 100_000 + b"}}", "no JSON"),
    "2 MB": (b'{"asyncinspect": {"t": "' + b"9" * (2 << 20) + b'"', "longer than 1 MB"),
}


@pytest.mark.parametrize("key", BROKEN)
def test_broken_lines(log: Log, spans: Any, key: str) -> None:
    """They are counted, with file and line; strict, they are an error that says so and what to do."""
    broken, why = BROKEN[key]
    path = log(*spans(1), broken, *spans(1)[:1])
    snapshot, report = read(path)
    assert (report.lines, report.records, report.broken) == (4, 3, 1)
    ((file, number, problem),) = report.problems
    assert (file, number) == (str(path), 3)
    assert why in problem
    assert len(problem) < 600
    assert snapshot.dropped["malformed"] == 1
    with pytest.raises(ReplayError, match=r"app\.log:3: .*; take the line out, or read without strict"):
        read(path, strict=True)


def test_problems_have_a_limit(log: Log) -> None:
    """All are counted."""
    _, report = read(log(*[b'{"asyncinspect"'] * 1000))
    assert report.broken == 1000
    assert len(report.problems) == 100


def test_a_log_that_is_being_written(log: Log, spans: Any) -> None:
    """The last line may lack its end, or a part."""
    path = log(*spans(2), end=b"")
    assert read(path, strict=True)[0].names["job"].completed == 2
    path.write_bytes(path.read_bytes()[:-20])
    snapshot, report = read(path)
    assert (snapshot.names["job"].completed, snapshot.names["job"].live, report.broken) == (1, 1, 1)
    assert "cut short" in report.problems[0][2]
    with pytest.raises(ReplayError, match=r"app\.log:4: the line is cut short"):
        read(path, strict=True)


SCRAPS = [b'{"', b'":', b"}", b"[", b"\0", b"\xff", b"1e999", b"\n", b","]
SCRAPS += [b'"asyncinspect"', b'"span_id": "00000000000000ab"', b'"v": 1', b'"kind": "exit"']


@settings(max_examples=100)
@given(st.binary(max_size=200) | st.lists(st.sampled_from(SCRAPS)).map(b"".join))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever is in a file, nothing is raised, and every line is something."""
    path = tmp_path_factory.getbasetemp() / "any.log"
    path.write_bytes(data)
    _, report = read(path)
    assert report.lines >= report.records + report.annotations + report.foreign


# -- both ways -------------------------------------------------------------------------------------------------------

scraps = st.sampled_from(
    [None, True, 0, -1, 3, 1.5, 2.0, 10**400, "", "x", "enter", "0" * 16, "A" * 16, "ab " * 6, "0" * 32, [], {},
     [[1, 2]], [[2, 3], [1, 1]], [[1, 2, 3]], [["a", 1]], [[0, 1]], {"type": "E"}, {"password": "x"},
     "y" * 2000, 1 << 63, 5000]
)  # fmt: skip
KEYS = [
    "v", "kind", "id", "trace", "parent", "name", "t", "wall", "pid", "seq", "task", "thread", "fields", "outcome",
    "error", "duration", "polls", "busy", "scheduled", "max_poll", "wakes", "self_wakes", "slow_polls", "slow_waits",
    "on", "at", "links", "parent_closed", "begun", "resource",
]  # fmt: skip
KINDS = ("spawn", "enter", "suspend", "wake", "resume", "record", "exit", "wait", "acquire", "release")


@st.composite
def logs(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Payloads in some order, as they are written or changed."""
    payloads = []
    base = 0xABCD << 40
    for seq in range(1, draw(st.integers(2, 25))):
        kind, number = draw(st.sampled_from(KINDS)), draw(st.integers(1, 3))
        payload: dict[str, Any] = {"v": 1, "kind": kind, "id": f"{base + number:016x}", "t": seq * 1000, "pid": 7}
        payload |= {"wall": seq * 1000 + 1_700_000_000_000_000_000, "seq": seq, "name": f"job {number % 2}"}
        if kind in ("spawn", "enter", "record"):
            payload |= {"trace": f"{base + 1:032x}", "fields": {f"of_{kind}": seq}, "thread": seq, "at": "x.py:1"}
        if kind == "exit":
            payload |= {"outcome": draw(st.sampled_from(["completed", "failed", "cancelled", "abandoned"]))}
            payload |= draw(
                st.fixed_dictionaries(
                    {},
                    optional={
                        **dict.fromkeys(("duration", "busy", "scheduled"), st.sampled_from([0, 5, 70_000, 2_000_000])),
                        **dict.fromkeys(("polls", "wakes", "self_wakes", "max_poll"), st.integers(0, 4)),
                        "slow_polls": st.sampled_from([[], [[1, 1]], [[2, 9]]]),
                        "slow_waits": st.sampled_from([[], [[1, 1]], [[2, 9]]]),
                    },
                )
            )
        if draw(st.integers(0, 9)) == 0:
            payload |= draw(st.dictionaries(st.sampled_from(KEYS), scraps, max_size=2))
        payloads.append(payload)
    for _ in range(draw(st.integers(0, 3))):
        first, second = draw(st.tuples(*[st.integers(0, len(payloads) - 1)] * 2))
        payloads[first], payloads[second] = payloads[second], payloads[first]
    return payloads


@settings(max_examples=60)
@given(payloads=logs(), rate=st.sampled_from([1, 2]), looks=st.booleans())
def test_both_ways_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[dict[str, Any]], rate: int, looks: bool
) -> None:
    """In bulk, line by line in one go or looked at in between, and one by one as an inspector takes records live."""
    path = tmp_path_factory.getbasetemp() / "ways.log"
    path.write_bytes(b"".join(line(payload) + b"\n" for payload in payloads))
    config = Config(sampling_rate=rate, max_names=1, slow_poll=3e-9)
    one_by_one, in_bulk = Inspector(config), Inspector(config)
    for payload in payloads:
        one_by_one.apply({"asyncinspect": payload})
    for inspector in (one_by_one, in_bulk):
        inspector.first_hand = False
    with pytest.MonkeyPatch.context() as patch:
        if looks:
            patch.setattr(files, "_CHUNK", 300)
            Replay(path, inspector=in_bulk, progress=lambda done, total: in_bulk.snapshot()).run()
        else:
            Replay(path, inspector=in_bulk).run()
    expected, snapshot = one_by_one.snapshot(), in_bulk.snapshot()
    for field in ("names", "states", "events", "lints"):
        assert getattr(snapshot, field) == getattr(expected, field), field
    # What is missing is counted by those who read all there is.
    assert {**snapshot.dropped, "gap": 0} == {**expected.dropped, "gap": 0}
    assert outline(snapshot) == outline(expected)


def outline(snapshot: Snapshot) -> dict[str, Any]:
    return {task.id: task._replace(age=0, idle=0, events=tuple(sorted(task.events))) for task in snapshot.tasks}


# -- a moment, a clock, and limits -----------------------------------------------------------------------------------


def test_at_a_moment(log: Log, tell: Tell) -> None:
    """What came later is not there: spans that ended since are open, and the clock stands at that moment."""
    records = [tell("enter", 1), tell("enter", 2), tell("exit", 1), tell("suspend", 2, on="sleep"), tell("exit", 2)]
    at = records[2]["wall"] / 1e9
    path = log(*records)
    snapshot, report = read(path, at=at + 0.0005)
    assert (snapshot.names["job"].completed, snapshot.names["job"].live) == (1, 1)
    assert (report.records, report.missing) == (3, 0)
    assert snapshot.taken_at == pytest.approx(at + 0.0005, abs=1e-6)
    later = read(path, at=records[3]["wall"] / 1e9)[0]
    assert later.states["blocked"] == 1
    assert read(path, at=0)[0].names == {}


@pytest.mark.parametrize("at", [-1, "now", float("nan"), float("inf"), True, 1e300])
def test_what_is_no_moment(log: Log, at: Any) -> None:
    """The error shows one."""
    with pytest.raises(ConfigError, match="Unix time in seconds"):
        replay(log(b"{}"), at=at)


def test_ages_are_of_the_log(log: Log, stream: Callable[..., Tell], tmp_path: Path) -> None:
    """Each process has a monotonic clock of its own, and the age of what is open is up to the latest time of all."""
    one, other = stream(1, 0x11 << 40), stream(2, 0x22 << 40)
    other.t = 77_000_000_000  # type: ignore[attr-defined]
    log(one("enter"), name="a.log")
    second = other("enter")
    second["wall"] = one("enter")["wall"] + 3_000_000_000
    log(second, name="b.log")
    snapshot, _ = read(tmp_path / "*.log")
    ages = {task.id: round(task.age, 3) for task in snapshot.tasks}
    assert sorted(ages.values()) == [0, 3.001]
    assert snapshot.taken_at == second["wall"] / 1e9


def test_open_spans_say_where_they_are(log: Log, tell: Tell) -> None:
    """As a process that was killed left them, by its records of steps."""
    records = [tell("spawn", 1), tell("enter", 1), tell("suspend", 1, on="lock:db"), tell("spawn", 2), tell("enter", 3)]
    snapshot, _ = read(log(*records))
    first, second, third = sorted(snapshot.tasks, key=lambda task: task.id)
    assert (first.state, first.waiting_on, first.waiting_since) == (
        TaskState.BLOCKED,
        "lock:db",
        records[2]["wall"] / 1e9,
    )
    assert (second.state, third.state) == (TaskState.PENDING, TaskState.RUNNING)


def test_deadlock_in_a_log(log: Log, tell: Tell) -> None:
    """Records of waits show it; and nothing of this process does, nor is it logged here."""
    records = []
    for number, (own, wanted) in enumerate(((0xAA, 0xBB), (0xBB, 0xAA)), 1):
        owner = f"{number:016x}"
        records += [tell("enter", number)]
        for kind, lock in (("acquire", own), ("wait", wanted)):
            other = f"{3 - number:016x}"
            held = [{"owner": other, "task": "job", "root": other, "t": 1, "id": records[0]["id"], "name": "job"}]
            records.append(
                tell(kind, number, owner=owner, root=records[-1]["id"], task="job",
                     resource={"kind": "lock", "name": f"{lock:x}", "id": f"{lock:016x}"},
                     holders=held if kind == "wait" else [])
            )  # fmt: skip
    snapshot, _ = read(log(*records), strict=True)
    assert snapshot.deadlocks == 1
    assert [finding.kind for finding in snapshot.findings] == ["deadlock"]


def test_into_an_inspector_that_is_there(log: Log, spans: Any) -> None:
    """Twice the same log counts once."""
    inspector = Inspector()
    path = log(*spans(5))
    for _ in range(2):
        replay(path, inspector=inspector)
    snapshot = inspector.snapshot()
    assert snapshot.names["job"].completed == 5
    assert snapshot.dropped["duplicate"] == 10


def test_late_news_of_what_came_in_bulk(log: Log, tell: Tell) -> None:
    """Fields that come after the end, after a look, and after the inspector was reset or kept in a checkpoint."""
    records = [tell("enter", 1), tell("exit", 1), tell("enter", 2), tell("record", 2, fields={"a": 1})]
    inspector = replay(log(*records))
    inspector.snapshot()
    inspector.apply(tell("record", 1, fields={"late": 1}))
    assert {task.outcome: dict(task.fields) for task in inspector.snapshot().tasks} == {
        "completed": {"late": 1},
        None: {"a": 1},
    }
    kept = inspector.checkpoint()
    again = Inspector()
    again.resume(json.loads(json.dumps(kept)))
    assert again.snapshot().names == inspector.snapshot().names
    inspector.reset()
    assert inspector.snapshot().names["job"].live == 1


def test_memory_is_flat(tmp_path: Path, stream: Callable[..., Tell], monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as long a log takes no more memory: not the reading of it, and not what is kept."""

    def peak(spans: int, make: Callable[[Path], object]) -> int:
        tell, path = stream(), tmp_path / "app.log"
        with path.open("wb") as file:
            for number in range(1, spans + 1):
                for kind in ("enter", "suspend", "wake", "resume", "exit"):
                    file.write(line(tell(kind, number)) + b"\n")
        tracemalloc.start()
        make(path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    def tasks(path: Path) -> None:
        assert sum(1 for _ in LogTasks(path)) >= 300

    for module, limit, value in ((analysis_replay, "_HELD_BACK", 50), (bulk, "MAX_OVER", 50), (files, "_CHUNK", 8192)):
        monkeypatch.setattr(module, limit, value)
    config = Config(max_tasks=100, max_events=100)
    for make in (lambda path: Replay(path, inspector=Inspector(config)).run(), tasks):
        short = peak(300, make)
        # A table of the process that grows just then does so once; what is kept of a log is kept each time.
        assert any(peak(1200, make) < 1.2 * short + (100 << 10) for _ in range(3))


# -- tasks one by one ------------------------------------------------------------------------------------------------


def test_tasks_of_a_log(log: Log, tell: Tell) -> None:
    """Each with its whole timeline, whatever the limits are; open ones last; the rest is a snapshot without them."""
    records = [tell("enter", 9999)]
    for number in range(1, 3001):
        records += [tell("enter", number), tell("suspend", number), tell("resume", number), tell("exit", number)]
    tasks = LogTasks(log(*records), inspector=Inspector(Config(max_tasks=1, max_events=1)))
    found = list(tasks)
    assert len({task.id for task in found}) == 3001
    assert [task.outcome for task in found] == ["completed"] * 3000 + [None]
    assert {tuple(event.kind for event in task.events) for task in found[:-1]} == {
        ("spawn", "enter", "suspend", "resume", "exit")
    }
    rest = tasks.rest()
    assert (rest.tasks, rest.names["job"].completed, rest.states["completed"]) == ((), 3000, 3000)
    assert sum(rest.dropped.values()) == 0
    assert tasks.report.records == 12_001
    with pytest.raises(ReplayError, match="once"):
        next(iter(tasks))


def test_task_with_an_endless_timeline(log: Log, tell: Tell) -> None:
    """Only the latest entries of it are kept, and those that are not are counted."""
    records = [tell("enter"), *(tell(kind) for _ in range(12_000) for kind in ("suspend", "resume")), tell("exit")]
    tasks = LogTasks(log(*records))
    (task,) = tasks
    assert 10_000 <= len(task.events) <= 20_003
    assert tasks.rest().dropped["max_events"] == 24_003 - len(task.events)


def test_shuffled_lines(tmp_path: Path, stream: Callable[..., Tell], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each counts once, also where there are more holes than are kept as runs, and a checkpoint has it all."""
    monkeypatch.setattr(sequence, "MAX_RUNS", 100)
    tell, path = stream(), tmp_path / "app.log"
    lines = [line(tell(kind, number)) for number in range(1, 2001) for kind in ("enter", "exit")]
    random.Random(1).shuffle(lines)
    reading = Replay([log_of(path, lines), log_of(tmp_path / "again.log", lines[:500])])
    snapshot = reading.run().snapshot()
    assert (snapshot.names["job"].completed, reading.report.missing) == (2000, 0)
    assert (snapshot.dropped["duplicate"], snapshot.dropped["gap"]) == (500, 0)
    resumed = Inspector()
    resumed.resume(json.loads(json.dumps(reading.inspector.checkpoint())))
    for each in lines:
        resumed.apply(json.loads(each))
    assert resumed.snapshot().dropped["duplicate"] == 4500


def test_many_processes(tmp_path: Path, stream: Callable[..., Tell]) -> None:
    """Each counts once, and nothing of it is missing, however many come before it speaks again; also across a
    checkpoint.
    """
    tells = [stream(number + 1, (0xABC << 50) + (number << 40)) for number in range(1500)]
    lines = [line(tell(kind)) for kind in ("enter", "exit") for tell in tells]
    reading = Replay(log_of(tmp_path / "app.log", lines + lines[::5]))
    snapshot = reading.run().snapshot()
    assert (snapshot.names["job"].completed, reading.report.missing) == (1500, 0)
    assert (snapshot.dropped["duplicate"], snapshot.dropped["gap"]) == (600, 0)
    resumed = Inspector()
    resumed.resume(json.loads(json.dumps(reading.inspector.checkpoint())))
    for each in lines[:1500]:
        resumed.apply(json.loads(each))
    assert resumed.snapshot().dropped["duplicate"] == 2100


def test_processes_remembered_have_a_bound(
    log: Log, stream: Callable[..., Tell], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what they take; holes of those that are forgotten still count."""
    monkeypatch.setattr(placing, "_MAX_PAST", 20)
    monkeypatch.setattr(placing, "_MAX_STREAMS", 2)
    records = []
    for number in range(50):
        tell = stream(number + 1)
        records += [tell("enter", 1), tell("exit", 1, seq=3)]
    reading = Replay(log(*records))
    inspector = reading.run()
    assert reading.report.missing == 50
    assert len(inspector.checkpoint()["streams"]) <= 2 + 20


def test_entries_of_spans_that_are_not_there(log: Log, tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many are held, those that came last, and not those of open spans; the others are counted."""
    monkeypatch.setattr(analysis_replay, "_MAX_STRAY_NOTES", 100)
    monkeypatch.setattr(files, "_CHUNK", 4096)
    said = [
        json.dumps({"span_id": f"{9000 + n:016x}", "message": "x", "created": 1.7e9 + n}).encode() for n in range(999)
    ]
    first = tell("enter")
    tasks = LogTasks(log(first, json.dumps({"span_id": first["id"], "message": "x"}).encode(), *said, tell("exit")))
    for task in tasks:
        assert "log" in {event.kind for event in task.events}
    assert 850 < tasks.rest().dropped["max_events"] < 999
    assert tasks.report.annotations == 1000


# -- rules, and what is missing --------------------------------------------------------------------------------------


def test_rules_make_records_of_foreign_lines(log: Log, tell: Tell) -> None:
    """They are asked about lines of others only, and their numbers say nothing of what is missing."""
    asked: list[tuple[bytes | str, int]] = []

    class Rules:
        def payloads(self, line: bytes | str, file: str, number: int) -> list[dict[str, Any]]:
            asked.append((line, number))
            enter, _, exit_ = tell("enter", number, seq=number * 7), tell("wake"), tell("exit", number, seq=number * 9)
            return [enter, exit_]

    own = {**tell("enter", 5), "pid": 999, "seq": 1}
    snapshot, report = read(log(b"GET /", own, b'{"message": "x"}'), rules=Rules())
    assert asked == [(b"GET /", 1), (b'{"message": "x"}', 3)]
    assert (snapshot.names["job"].completed, report.records, report.foreign, report.missing) == (2, 1, 2, 0)


def test_spans_of_rules_are_no_processes(tmp_path: Path, stream: Callable[..., Tell]) -> None:
    """However many there are, nothing is missing, and what was seen of processes is not forgotten for them."""
    form = "name='req'\nline='^(?P<t>\\d+) GET'\ntime='t'\ntime_format='unix'"
    rules = parse_rules(f"[[rule]]\n{form}")
    one, other = stream(100, 0xA1 << 40), stream(200, 0xA2 << 40)
    own = [line(tell(kind)) for tell in (one, other) for kind in ("enter", "exit")]
    lines = [*own, *(b"%d GET /" % (1_700_000_000 + second) for second in range(1100)), *own]
    path = tmp_path / "mixed.log"
    path.write_bytes(b"\n".join(lines))
    reading = Replay(path, rules=rules)
    snapshot = reading.run().snapshot()
    assert (reading.report.missing, snapshot.names["req"].completed, snapshot.names["job"].completed) == (0, 1100, 2)
    assert snapshot.dropped["duplicate"] == 4
    inspector = Inspector()
    for told in rules.payloads("1800000000 GET /", "b.log", 1):
        inspector.apply(told)
    inspector.snapshot()
    assert inspector.checkpoint()["streams"] == []


@pytest.mark.parametrize("timed", [True, False])
def test_rules_read_rotated_files_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: bool
) -> None:
    """By the time that their lines tell, or else by that of their last change: starts and ends are paired as if it were
    one file, whatever the order in which the files are given.
    """
    form = "[[rule]]\nname='job'\nstart='^(?P<t>\\d+) (?P<n>\\d) begins'\nend='^(?P<t>\\d+) (?P<n>\\d) ends'\nkey='n'\n"
    form += "time='t'\ntime_format='unix'" if timed else ""
    lines = []
    for number in range(300):
        lines.append(b"%d %d begins" % (1_700_000_000 + number, number % 8))
        if number >= 6:
            lines.append(b"%d %d ends" % (1_700_000_000 + number, (number - 6) % 8))
    monkeypatch.setattr(files, "_CHUNK", 1024)
    third = len(lines) // 3
    # The copy of the oldest was touched last, which says nothing where lines have times.
    for part, name in enumerate(("app.log.2", "app.log.1", "app.log")):
        path = log_of(tmp_path / name, lines[part * third : (part + 1) * third])
        moment = 1_800_000_000 + (-part if timed else part)
        os.utime(path, (moment, moment))
    for names in (["app.log", "app.log.1", "app.log.2"], ["app.log.1", "app.log.2", "app.log"]):
        rules = parse_rules(form)
        snapshot, _ = read([tmp_path / name for name in names], rules=rules)
        assert (snapshot.names["job"].completed, snapshot.names["job"].live) == (294, 6)
        assert (rules.matched, rules.unmatched, rules.given_up) == (594, 0, 0)


def test_missing_packages(tmp_path: Path) -> None:
    """The error says what to install."""
    for module, path in (("msgspec", "x.log"), ("zstandard", str(tmp_path / "x.log"))):
        Path(tmp_path / "x.log").write_bytes(zstandard.compress(b"{}\n"))
        code = f"import sys; sys.modules[{module!r}] = None\n"
        code += f"from asyncinspect_logging.analysis.replay import replay; replay({path!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert "pip install 'asyncinspect-logging[replay]'" in done.stderr


def test_nothing_is_imported_for_it() -> None:
    """Not by the library itself."""
    code = "import sys, asyncinspect_logging\nassert not {'msgspec', 'orjson', 'zstandard'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_stdin_is_left_open(monkeypatch: pytest.MonkeyPatch, spans: Any) -> None:
    """It is not ours to close."""
    text = io.TextIOWrapper(io.BytesIO(b"".join(line(payload) + b"\n" for payload in spans(1))))
    monkeypatch.setattr(sys, "stdin", text)
    assert replay("-").snapshot().names["job"].completed == 1
    assert not text.buffer.closed


# -- several cores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_several_files_on_several_cores(
    log: Log, stream: Callable[..., Tell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """The same as in one process: also where two files turn out to have a process in common, and where the files of one
    process were rotated.
    """
    for number in range(3):
        tell = stream(number, (number + 0xA1) << 40)
        records = [tell(kind, span) for span in range(1, 30) for kind in ("enter", "suspend", "exit")]
        records += [tell("enter", 31), tell("wait", 77)]
        if shared and number == 2:
            # Of the first process, which nothing shows at the beginning of this file.
            first = stream(0, 0xA1 << 40)
            first.seq = 1000  # type: ignore[attr-defined]
            records += [first("enter", 99), first("exit", 99)]
        broken = [b"{", json.dumps({"span_id": records[0]["id"], "message": "x"}).encode()]
        log(*records[:41], *broken, name=f"{number}.log.1")
        log(*records[41:], name=f"{number}.log")
    one, several = Replay(tmp_path / "*.log*"), Replay(tmp_path / "*.log*", processes=2)
    expected, found = one.run().snapshot(), several.run().snapshot()
    assert several.report == one.report
    for field in found._fields:
        if field not in ("memory", "tasks"):
            assert getattr(found, field) == getattr(expected, field), field
    assert outline(found) == outline(expected)
    assert len(found.tasks) > 80
    for seen in (one.inspector, several.inspector):
        seen.apply(records[0])
        assert seen.snapshot().dropped["duplicate"] == 1 + expected.dropped["duplicate"]


def test_what_several_cores_keep_is_the_latest(log: Log, stream: Callable[..., Tell], tmp_path: Path) -> None:
    """The tasks that ended last of all, and not those of the file that was added last."""
    for number in (0, 1):
        tell = stream(number + 1, (number + 0xA1) << 40)
        # The second file's tasks ended earlier, each a bit before one of the first.
        tell.t += (1 - number) * 1_000_000  # type: ignore[attr-defined]
        log(*(tell(kind, span) for span in range(1, 801) for kind in ("enter", "exit")), name=f"{number}.log")
    snapshot = Replay(tmp_path / "*.log", processes=2).run().snapshot()
    assert Counter(task.id[:6] for task in snapshot.tasks) == {"0000a1": 500, "0000a2": 500}
    assert snapshot.dropped["max_tasks"] == 600
