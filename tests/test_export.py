"""Exports: JSON that reads back to what was written, CSV, files that are whole or not there, and streams."""

from __future__ import annotations

import csv
import errno
import io
import json
import logging
import math
import os
import random
import re
import stat
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import TaskList, a_view

from asyncinspect_logging import Inspector, Snapshot, TaskState, nesting, span
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters import chrome_trace, json_file
from asyncinspect_logging.exporters.chrome_trace import ChromeTraceExporter
from asyncinspect_logging.exporters.csv_file import EVENT_COLUMNS, TASK_COLUMNS, CsvExporter
from asyncinspect_logging.exporters.flame import FlameExporter
from asyncinspect_logging.exporters.json_file import FormatError, JsonExporter, JsonTasks
from asyncinspect_logging.exporters.source import read_source
from asyncinspect_logging.exporters.writing import ExportError, loose_json
from asyncinspect_logging.snapshot import Event, Finding, Histogram, NameView, TaskView

EXPORTERS: list[Any] = [JsonExporter, CsvExporter, ChromeTraceExporter, FlameExporter]
EMPTY = Inspector().snapshot()

TASK = a_view(
    1_700_000_000.5,
    1_700_000_001.5,
    now=1_700_000_002.0,
    trace_id="0" * 30 + "a1",
    polls=2,
    wakes=1,
    busy=0.25,
    idle=0.75,
    scheduled=0.125,
    max_poll=0.2,
    task="job",
    thread=7,
    at="app.py:3",
    fields={},
)


def a_snapshot(*tasks: TaskView) -> Snapshot:
    return EMPTY._replace(tasks=tasks)


def generated(count: int) -> Iterator[TaskView]:
    """Requests with a query in each, inside one program that goes on to the end, as they end."""
    root = f"{1:016x}"
    for number in range(count):
        request, at = number // 2 * 2 + 3, 1_700_000_000 + number // 2 * 0.001
        inner = number % 2 == 0
        yield TASK._replace(
            id=f"{request + inner:016x}",
            parent_id=f"{request:016x}" if inner else root,
            name="query" if inner else "request",
            fields=MappingProxyType({"user_id": number}),
            started_at=at,
            duration=0.0004 if inner else 0.0008,
            busy=0.0001 if inner else 0.0003,
            idle=0.0003 if inner else 0.0005,
            events=(Event(at, "spawn", ""), Event(at, "enter", ""), Event(at + 0.0005, "exit", "completed")),
        )


# ---- JSON

TEXTS = st.text(st.characters(exclude_categories=()), max_size=8) | st.sampled_from(
    ["\ud83d\ude00", "\ud83d", "$", "é\u2028\x00", '"\\', "😀"]
)
FLOATS = st.floats()
INTS = st.integers() | st.sampled_from([1 << 64, -(1 << 5000)])
VALUES = st.recursive(
    st.none() | st.booleans() | INTS | FLOATS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(TEXTS | st.just("$"), inner, max_size=3)
        | st.dictionaries(st.integers() | st.tuples(TEXTS), inner, max_size=2)
    ),
    max_leaves=6,
)
FIELDS = st.dictionaries(TEXTS, VALUES, max_size=4).map(MappingProxyType)
COUNTS = st.integers(0, (1 << 127) - 1)
TALLIES = st.integers(1 - (1 << 127), (1 << 127) - 1)
NUMBERS = st.floats(-1e38, 1e38)
HISTOGRAMS = (
    st.lists(NUMBERS, max_size=4, unique=True)
    .map(sorted)
    .flatmap(
        lambda bounds: st.builds(
            Histogram,
            st.just(tuple(bounds)),
            st.lists(COUNTS, min_size=len(bounds) + 1, max_size=len(bounds) + 1).map(tuple),
            NUMBERS,
        )
    )
)
TEXT_TUPLES = st.lists(TEXTS, max_size=2).map(tuple)
TASKS = st.builds(
    TaskView,
    **dict.fromkeys(("id", "trace_id", "name"), TEXTS),
    **{key: st.none() | TEXTS for key in ("parent_id", "outcome", "task", "at", "waiting_on")},
    **dict.fromkeys(("age", "busy", "idle", "scheduled", "max_poll", "started_at"), NUMBERS),
    **{key: st.none() | NUMBERS for key in ("duration", "waiting_since")},
    **dict.fromkeys(("polls", "wakes", "self_wakes"), TALLIES),
    state=st.sampled_from(TaskState),
    fields=FIELDS,
    thread=st.none() | TALLIES,
    error=st.none() | FIELDS,
    await_chain=TEXT_TUPLES,
    links=TEXT_TUPLES,
    awaiting=TEXT_TUPLES,
    parent_closed=st.booleans(),
    events=st.lists(st.builds(Event, NUMBERS, TEXTS, TEXTS), max_size=2).map(tuple),
)
NAMES = st.builds(
    NameView,
    TEXTS,
    *[COUNTS] * 7,
    *[NUMBERS] * 3,
    durations=st.dictionaries(st.sampled_from(["completed", "failed"]), HISTOGRAMS, max_size=2).map(MappingProxyType),
    poll_counts=HISTOGRAMS,
    poll_durations=HISTOGRAMS,
    scheduled_delays=HISTOGRAMS,
)
SNAPSHOTS = st.builds(
    Snapshot,
    taken_at=NUMBERS,
    # The live ones first, as in every snapshot.
    tasks=st.lists(TASKS, max_size=3).map(
        lambda tasks: tuple(sorted(tasks, key=lambda task: task.duration is not None))
    ),
    names=st.dictionaries(TEXTS, NAMES, max_size=2).map(MappingProxyType),
    **{
        key: st.dictionaries(TEXTS, COUNTS, max_size=2).map(MappingProxyType)
        for key in ("states", "events", "dropped", "memory")
    },
    findings=st.lists(st.builds(Finding, TEXTS, TEXTS, TEXT_TUPLES, TEXTS, TEXT_TUPLES, NUMBERS), max_size=2).map(
        tuple
    ),
    deadlocks=COUNTS,
    lints=st.dictionaries(st.tuples(TEXTS, TEXTS), COUNTS, max_size=2).map(MappingProxyType),
    loop_lag=HISTOGRAMS,
)


def exact(value: Any) -> Any:
    """`value` in a form that compares types too, and in which NaN equals NaN and 0.0 is not -0.0."""
    if isinstance(value, tuple):
        return (type(value).__name__, *map(exact, value))
    if isinstance(value, list):
        return ["list", *map(exact, value)]
    if isinstance(value, dict | MappingProxyType):
        return {exact(key): exact(item) for key, item in value.items()}
    if isinstance(value, float):
        return ("float", repr(value))
    return (type(value).__name__, value)


@given(SNAPSHOTS)
@settings(max_examples=40)
def test_json_reads_back_to_an_equal_snapshot(snapshot: Snapshot) -> None:
    """Whatever is in it, in every field and to the type of each value, both as written and laid out anew."""
    text = JsonExporter.export_to_string(snapshot)
    document = json.loads(text, parse_constant=lambda _: pytest.fail("no JSON"))
    assert exact(JsonExporter.read(text)) == exact(snapshot)
    if "\\u" not in text:
        assert exact(JsonExporter.read(json.dumps(document, indent=1).encode())) == exact(snapshot)


def test_json_of_a_program(tmp_path: Path, listen: Callable[..., Inspector]) -> None:
    """The snapshot of a real inspector comes back equal, with tuples, states and frozen mappings where they were."""
    inspector = listen()
    with span("outer", links=["00f067aa0ba902b7"], user="ä\ud800", deep={"a": [1, {"b": 2.5}]}) as outer:
        logging.getLogger("app").warning("careful")
        with pytest.raises(ExceptionGroup), span("failing", n=1 << 70):
            raise ExceptionGroup("all", [ValueError("x"), KeyError("y")])
    with span("late", parent=outer):
        snapshot = inspector.snapshot()
    path = tmp_path / "trace.json"
    JsonExporter.export_to_file(snapshot, path)
    read = JsonExporter.read(path)
    assert read == snapshot
    assert exact(read) == exact(snapshot)
    assert read.names["outer"].durations["completed"].total == 1
    with pytest.raises(TypeError):
        read.names["outer"].durations["x"] = 1  # type: ignore[index]
    # An inspector is exported as it is at that moment.
    assert JsonExporter.read(JsonExporter.export_to_string(inspector)).names == inspector.snapshot().names


@pytest.mark.parametrize("laid_out_anew", [False, True])
def test_reading_an_export_tells_how_far_it_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, laid_out_anew: bool
) -> None:
    """In bytes of the file, rising to all of them; as the export itself, too."""
    monkeypatch.setattr(json_file, "_STEP", 1000)
    path = tmp_path / "trace.json"
    JsonExporter.export_to_file(TaskList(generated(100)), path)
    if laid_out_anew:
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")), indent=1), "utf-8")
    for where in (path, path.read_bytes()):
        told: list[tuple[int, int | None]] = []
        JsonExporter.read(where, progress=lambda done, total, told=told: told.append((done, total)))  # type: ignore[misc]
        size = path.stat().st_size
        assert told[-1] == (size, size)
        assert len(told) > 10
        assert told == sorted(told)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("polls", 1 << 200, "0x1000.* is not a whole number of at most 127 bits"),
        ("busy", 1e300, r"1e\+300 is not a number of at most 127 bits"),
        ("busy", {"$": "float", "value": "nan"}, "is not a number of at most 127 bits"),
        ("started_at", 1 << 2000, "is not a number of at most 127 bits"),
        ("duration", True, "True is not a number"),
    ],
)
def test_numbers_that_nobody_can_reckon_with_are_refused(key: str, value: Any, what: str) -> None:
    """When they are read, and not by whoever adds them up later."""
    document = json.loads(JsonExporter.export_to_string(a_snapshot(TASK)))
    document["tasks"][0][key] = value
    with pytest.raises(FormatError, match=rf"the export: tasks\[0\]: {key}: .*{what}"):
        JsonExporter.read(json.dumps(document, indent=1))


@pytest.mark.parametrize(("bounds", "counts"), [([2.0, 1.0], [0, 0, 0]), ([1.0], [-1, 2]), ([1.0, 1.0], [0, 0, 0])])
def test_histograms_that_are_none_are_refused(bounds: list[float], counts: list[int]) -> None:
    """With where they stand."""
    document = json.loads(JsonExporter.export_to_string(EMPTY))
    document["rest"]["loop_lag"] |= {"bounds": bounds, "counts": counts}
    with pytest.raises(FormatError, match="rest: loop_lag: bounds that do not rise, or a count below zero"):
        JsonExporter.read(json.dumps(document))


def test_json_tasks_are_on_lines_and_read_one_by_one(tmp_path: Path) -> None:
    """A stream of tasks again, so that what reads a log reads an export too."""
    path = tmp_path / "trace.json"
    JsonExporter.export_to_file(TaskList(generated(100), EMPTY._replace(deadlocks=3)), path)
    tasks = JsonTasks(path)
    with pytest.raises(RuntimeError, match="go through them first"):
        tasks.rest()
    assert tuple(tasks) == tuple(generated(100))
    assert tasks.rest() == EMPTY._replace(deadlocks=3)
    assert sum(line.startswith(b'{"id"') for line in path.read_bytes().splitlines()) == 100


def test_json_of_values_that_no_span_has() -> None:
    """A value of an unknown type, and one that is nested too deep, are named, and the export goes on."""
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    snapshot = a_snapshot(TASK._replace(fields={"bytes": b"\0", "set": {1}}), TASK._replace(fields={"deep": deep}))
    first, second = JsonExporter.read(JsonExporter.export_to_string(snapshot)).tasks
    assert first.fields == {"bytes": "<bytes>", "set": "<set>"}
    assert "<list>" in repr(second.fields["deep"])


WHOLE = JsonExporter.export_to_string(a_snapshot(TASK, TASK))


def changed(**changes: Any) -> str:
    document = json.loads(WHOLE)
    document["tasks"][1].update(changes)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "not an export of snapshots"),
        ('{"format": "asyncinspect_logging snapshot", "version": 2}', "version 0x2 of the format"),
        ('{"format": "asyncinspect_logging snapshot", "version": true}', "version True of the format"),
        ('{"format": "asyncinspect_logging snapshot", "version": 1}', "tasks: None is not a list"),
        ("{" * 100_000, "not JSON"),
        ('{"a":' + "[" * 100_000, "nested too deep"),
        (WHOLE[: len(WHOLE) // 3], "line 2: not JSON, or cut short"),
        (WHOLE[: WHOLE.index("],\n")], "cut short after line 3"),
        (WHOLE[:-9], "cut short"),
        (WHOLE + "{}", "not JSON"),
        (changed(polls="2"), "tasks[1]: polls: '2' is not a whole number"),
        (changed(polls=2.0), "polls: 2.0 is not a whole number"),
        (changed(polls=True), "polls: True is not a whole number"),
        (changed(busy="x" * 999), "is not a number"),
        (changed(busy=10**400), "busy: 0x"),
        (changed(name=None), "name: None is not text"),
        (changed(state="asleep"), "'asleep' is not a state (pending, running"),
        (changed(fields=[]), "fields: a list of 0 is not an object"),
        (changed(events=[[1, "log"]]), "an event: its time, kind and detail"),
        (changed(links="x"), "links: 'x' is not a list"),
        (changed(parent_closed=0), "0x0 is not true or false"),
        (changed(fields={"a": {"$": "code", "run": "x"}}), "marked \"$\" that cannot be: 'code'"),
        (changed(fields={"a": {"$": []}}), 'marked "$"'),
        (changed(fields={"a": {"$": "int", "hex": 7}}), 'marked "$"'),
        (changed(fields={"a": {"$": "text", "utf8": "ff"}}), 'marked "$"'),
        (changed(fields={"a": {"$": "mapping", "items": [[[], 1]]}}), 'marked "$"'),
        (changed(fields={"$": "tuple", "items": []}), "is not an object"),
        (WHOLE.replace('"polls"', '"bowls"', 1), "line 2: polls is missing"),
        (WHOLE.replace("1.0", "NaN"), "NaN is not JSON"),
        (WHOLE.replace('"counts":[0,', '"counts":[', 1), "there is one more"),
        (WHOLE.replace('"deadlocks":0,', "", 1), "rest: deadlocks is missing"),
        (WHOLE.replace('"thread":7', '"thread":' + "7" * 5000), "not JSON"),
    ],
    ids=lambda value: value[:24] if len(value) < 100 else "",
)
def test_json_that_cannot_be(text: str, said: str) -> None:
    """What is wrong, and where, in one line of bounded length."""
    with pytest.raises(FormatError) as caught:
        JsonExporter.read(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_json_files_that_cannot_be(tmp_path: Path) -> None:
    """An empty file, one of other bytes, and one that is not there."""
    path = tmp_path / "trace.json"
    for content in (b"", b"\x80\xff\x00", b"PK\x03\x04", "{}".encode("utf-16"), b"[1]", b"null"):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"trace\.json: "):
            JsonExporter.read(path)
    with pytest.raises(FileNotFoundError):
        JsonExporter.read(tmp_path / "missing.json")


@given(st.data())
def test_json_read_never_fails_otherwise(data: st.DataObject) -> None:
    """An export with bytes changed, taken out or put in is read, or is no export."""
    raw = bytearray(WHOLE.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        assert isinstance(JsonExporter.read(bytes(raw)), Snapshot)
    except FormatError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$", "items", "hex", "utf8", "value", "a"]), inner, max_size=3)
        | st.fixed_dictionaries({"$": st.sampled_from(["text", "int", "float", "tuple", "mapping"]), "items": inner})
    ),
    max_leaves=8,
)


@given(st.sampled_from(sorted(json.loads(WHOLE)["tasks"][0])), JSON)
@settings(max_examples=150)
def test_json_members_of_any_type(key: str, value: Any) -> None:
    """Any value in any place of a task is read, or is an error that says where."""
    try:
        task = JsonExporter.read(changed(**{key: value})).tasks[1]
    except FormatError as error:
        assert f"tasks[1]: {key}: " in str(error)
    else:
        assert isinstance(task, TaskView)


# ---- CSV


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_of_tasks() -> None:
    """A header, a row for each task, fields as one column of JSON."""
    task = TASK._replace(
        name='a "b", c\nd',
        fields=MappingProxyType({"n": 1, "x": math.nan, "deep": {"a": [1]}}),
        error={"type": "ValueError", "message": "no"},
        links=("a", "b"),
        duration=None,
    )
    text = CsvExporter.export_to_string(a_snapshot(task, TASK))
    assert text.endswith("\r\n")
    assert text.splitlines()[0] == ",".join(TASK_COLUMNS)
    second, first = rows_of(text)  # live ones come last
    assert (first["name"], first["state"], first["duration"]) == (task.name, "completed", "")
    assert json.loads(first["fields"]) == {"n": 1, "x": "nan", "deep": {"a": [1]}}
    assert (first["error_type"], first["error_message"], first["links"]) == ("ValueError", "no", "a\nb")
    assert (float(second["started_at"]), int(second["polls"]), second["fields"]) == (TASK.started_at, 2, "{}")


def test_csv_of_events() -> None:
    """A row for each entry of each timeline."""
    rows = rows_of(CsvExporter.export_to_string(a_snapshot(TASK, TASK), what="events"))
    assert tuple(rows[0]) == EVENT_COLUMNS
    assert [row["kind"] for row in rows] == ["spawn", "enter", "exit"] * 2
    assert float(rows[0]["at"]) == TASK.events[0].at


def test_csv_of_neither() -> None:
    """The error comes before a file is made."""
    with pytest.raises(ConfigError, match="what='spans' is no table; write 'tasks' or 'events'"):
        CsvExporter.export_to_file(EMPTY, "never.csv", what="spans")  # type: ignore[arg-type]
    assert not os.path.exists("never.csv")


@given(st.lists(TASKS, max_size=2))
@settings(max_examples=30)
def test_csv_cells_are_no_formulas(tasks: list[TaskView]) -> None:
    """Whatever the texts are, no cell of text begins a formula, and each row has its columns."""
    for what, columns in (("tasks", TASK_COLUMNS), ("events", EVENT_COLUMNS)):
        text = CsvExporter.export_to_string(a_snapshot(*tasks), what=what)  # type: ignore[arg-type]
        rows = list(csv.reader(io.StringIO(text, newline="")))
        assert len(rows) == 1 + (len(tasks) if what == "tasks" else sum(len(task.events) for task in tasks))
        for row in rows:
            assert len(row) == len(columns)
            for cell in row:
                assert cell[:1] not in set("=+@\t\r\n＝＋－＠")
                if cell[:1] == "-":
                    float(cell)


def test_csv_formula() -> None:
    """The well-known one, in each place where text of the program's can be."""
    evil = "=cmd|' /C calc'!A0"
    task = TASK._replace(name=evil, waiting_on=evil, at=evil, events=(Event(1.0, "log", evil),))
    for what in ("tasks", "events"):
        text = CsvExporter.export_to_string(a_snapshot(task), what=what)  # type: ignore[arg-type]
        assert text.count("'" + evil) == text.count(evil) >= 2


# ---- files


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_file_is_whole_or_not_there(exporter: Any, tmp_path: Path) -> None:
    """A source that fails half way leaves the file that was there, and nothing beside it."""
    path = tmp_path / "out"
    path.write_text("before")

    def failing() -> Iterator[TaskView]:
        yield from generated(20_000)
        assert len(os.listdir(tmp_path)) == 2, "it is written beside its place"
        raise LookupError("the log is gone")

    with pytest.raises(LookupError):
        exporter.export_to_file(TaskList(failing()), path)
    assert os.listdir(tmp_path) == ["out"]
    assert path.read_text() == "before"
    exporter.export_to_file(TaskList(generated(10)), path)
    assert os.listdir(tmp_path) == ["out"]
    assert path.read_bytes().decode() == exporter.export_to_string(TaskList(generated(10)))


def test_a_killed_export_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    """SIGKILL in the midst of it."""
    path = tmp_path / "trace.json"
    path.write_text("before")
    code = f"""
import os, signal
from asyncinspect_logging import Inspector, span, AsyncInspectHandler
from asyncinspect_logging.exporters.json_file import JsonExporter
def progress(done, total):
    if done == 2000:
        os.kill(os.getpid(), signal.SIGKILL)
import logging
inspector = Inspector()
logging.basicConfig(handlers=[AsyncInspectHandler(inspector)])
with span("job"):
    task = inspector.snapshot().tasks[0]
JsonExporter.export_to_file(inspector.snapshot()._replace(tasks=(task,) * 5000), {str(path)!r}, progress=progress)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -9
    assert path.read_text() == "before"


def test_permissions(tmp_path: Path) -> None:
    """Those of the file that was there are kept; a new one has what the umask leaves."""
    path = tmp_path / "trace.json"
    before = os.umask(0o027)
    try:
        JsonExporter.export_to_file(EMPTY, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        JsonExporter.export_to_file(EMPTY, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    """What it points to is replaced, in its own folder, be it there or not."""
    (tmp_path / "real").mkdir()
    link = tmp_path / "latest.json"
    link.symlink_to(Path("real", "trace.json"))
    for _ in range(2):
        JsonExporter.export_to_file(EMPTY, link)
        assert link.is_symlink()
        assert JsonExporter.read(tmp_path / "real" / "trace.json") == EMPTY
    assert sorted(os.listdir(tmp_path)) == ["latest.json", "real"]
    assert os.listdir(tmp_path / "real") == ["trace.json"]


def test_a_device_is_written_to(tmp_path: Path) -> None:
    """And stays what it is; a named pipe too."""
    JsonExporter.export_to_file(EMPTY, "/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        JsonExporter.export_to_file(TaskList(generated(50)), pipe)
        out, _ = reader.communicate(timeout=30)
    assert out.decode() == JsonExporter.export_to_string(TaskList(generated(50)))
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_where_a_file_cannot_be(tmp_path: Path) -> None:
    """No such folder, a folder, a file in the place of a folder: an OSError that says what to do, and no file."""
    (tmp_path / "file").write_text("")
    for path, number, said in [
        (tmp_path / "no" / "x.json", errno.ENOENT, "there is no folder"),
        (tmp_path, errno.EISDIR, "that is a folder"),
        (tmp_path / "file" / "x.json", errno.ENOTDIR, "Not a directory"),
        (tmp_path / ("x" * 300), errno.ENAMETOOLONG, "too long"),
    ]:
        with pytest.raises(ExportError, match="the export could not be written") as caught:
            JsonExporter.export_to_file(EMPTY, path)
        assert said in str(caught.value)
        assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system's own error, on a device that is always full, and for a file beside its place."""
    with pytest.raises(ExportError, match="No space left on device") as caught:
        JsonExporter.export_to_file(TaskList(generated(2000)), "/dev/full")
    assert caught.value.errno == errno.ENOSPC
    # The same for a file: what is opened beside its place is the full device.
    opened, full = os.open, []

    def open_full(path: Any, flags: int, *more: Any) -> int:
        if str(path).endswith(".tmp"):
            os.close(opened(path, flags, *more))
            full.append(path)
            return opened("/dev/full", os.O_WRONLY)
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "open", open_full)
    with pytest.raises(ExportError, match="No space left on device"):
        JsonExporter.export_to_file(TaskList(generated(2000)), tmp_path / "trace.json")
    assert full
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes another user's place")
def test_no_permission() -> None:
    """In a folder where nothing may be written, and over a file that may not."""
    # Not pytest's own, which no other user gets to.
    with tempfile.TemporaryDirectory() as made:
        _no_permission(Path(made))


def _no_permission(folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "mine.json").write_text("before")
    # By itself: the user is changed for good.
    code = """
import os, sys
from asyncinspect_logging import Inspector
from asyncinspect_logging.exporters.json_file import JsonExporter
from asyncinspect_logging.exporters.writing import ExportError
os.setuid(65534)
for name in ("new.json", "mine.json"):
    try:
        JsonExporter.export_to_file(Inspector(), os.path.join(sys.argv[1], name))
    except ExportError as error:
        assert isinstance(error, OSError) and "not permitted to write there" in str(error), error
    else:
        sys.exit(f"{name} was written")
"""
    for parent in folder.parents:
        if not parent.stat().st_mode & stat.S_IXOTH:
            pytest.skip("no other user gets to the folder of temporary files")
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(folder) == ["mine.json"]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_write_to_an_open_file(exporter: Any) -> None:
    """Binary or text, such as standard output."""
    text, binary = io.StringIO(newline=""), io.BytesIO()
    exporter.write(TaskList(generated(10)), text)
    exporter.write(TaskList(generated(10)), binary)
    assert text.getvalue() == binary.getvalue().decode() == exporter.export_to_string(TaskList(generated(10)))


# ---- sources


def test_sources() -> None:
    """An inspector, a snapshot and a stream are read alike; anything else is told of."""
    snapshot = a_snapshot(TASK)
    tasks, rest, total = read_source(snapshot)
    assert (tuple(tasks), rest(), total) == ((TASK,), EMPTY, 1)
    tasks, rest, total = read_source(TaskList([TASK], EMPTY))
    assert (tuple(tasks), rest(), total) == ((TASK,), EMPTY, None)
    for wrong in (None, [TASK], "trace.json", Inspector):
        with pytest.raises(TypeError, match="give an Inspector, a Snapshot or a stream of tasks"):
            read_source(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_progress(exporter: Any, tmp_path: Path) -> None:
    """Now and then, and at the end; with the number of tasks where it is known."""
    seen: list[tuple[int, int | None]] = []
    exporter.export_to_file(TaskList(generated(2500)), tmp_path / "x", progress=lambda *now: seen.append(now))
    assert seen == [(1000, None), (2000, None), (2500, None)]
    seen.clear()
    exporter.write(a_snapshot(*generated(1500)), io.BytesIO(), progress=lambda *now: seen.append(now))
    assert seen == [(1000, 1500), (1500, 1500)]


class Sink:
    """A binary file that forgets."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)


def peak(exporter: Any, tasks: Iterator[TaskView]) -> int:
    """Bytes that were in use at most while tasks are exported."""
    tracemalloc.start()
    try:
        exporter.write(TaskList(tasks), Sink())
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_memory_is_flat(exporter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times the tasks take no more: none keeps 30 bytes. The benchmark shows it with a million."""
    monkeypatch.setattr(chrome_trace, "_WINDOW", 200)
    monkeypatch.setattr(nesting, "_MAX_KNOWN", 200)
    peak(exporter, generated(10))  # what is made once
    assert peak(exporter, generated(3000)) < 1.1 * peak(exporter, generated(1000)) + 60_000


@given(VALUES)
def test_loose_json_is_json(value: Any) -> None:
    """Strictly so, and in UTF-8."""

    def no_constant(_: str) -> None:
        pytest.fail("no JSON")

    # A whole number of any length is one in JSON, if not in every reader.
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        json.loads(loose_json(value).decode("utf-8"), parse_constant=no_constant)
    finally:
        sys.set_int_max_str_digits(limit)


def test_random_order_of_a_stream() -> None:
    """The tasks of a shuffled stream are all there."""
    tasks = list(generated(1000))
    random.Random(4).shuffle(tasks)
    assert len(rows_of(CsvExporter.export_to_string(TaskList(tasks)))) == 1000


def test_the_page_names_every_column() -> None:
    """In their order."""
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text("utf-8")
    names = [
        name
        for line in page.splitlines()
        if line.startswith("`id`")
        for name in re.findall(r"`(\w+)`", page[page.index(line) :])
    ]
    assert tuple(names[: len(TASK_COLUMNS)]) == TASK_COLUMNS
    assert ", ".join(f"`{name}`" for name in EVENT_COLUMNS[:-1]) + f" and `{EVENT_COLUMNS[-1]}`" in " ".join(
        page.split()
    )
