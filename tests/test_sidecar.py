"""A sidecar counts what others tell, exactly, whatever happens to it, to them, and to what is between them."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import until

from asyncinspect_logging import Inspector
from asyncinspect_logging.analysis.replay import Replay
from asyncinspect_logging.analysis.rules import parse_rules
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.sidecar import Sidecar, listen, processes

Tell = Callable[..., dict[str, Any]]


def line(payload: Any) -> str:
    return json.dumps({"message": "x", "asyncinspect": payload}) + "\n"


def add(path: Path, *payloads: Any) -> None:
    with path.open("a") as file:
        file.write("".join(map(line, payloads)))


def read_all(sidecar: Sidecar) -> None:
    """Until nothing is left to be read."""
    while sidecar.step():
        pass
    sidecar.files.scan()
    while sidecar.step():
        pass


def kill(sidecar: Sidecar) -> None:
    """What SIGKILL leaves: nothing more is written, and all descriptors are closed."""
    sidecar._close()


def counts(sidecar: Sidecar, name: str = "job") -> tuple[int, int, int]:
    """(spawned, finished, live)"""
    view = sidecar.inspector.snapshot().names.get(name)
    return (0, 0, 0) if view is None else (view.spawned, view.finished, view.live)


@contextmanager
def sending(sidecar: Sidecar) -> Iterator[socket.socket]:
    assert sidecar.address is not None
    with sidecar.address.connect(10) as connected:
        yield connected


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncinspect_logging.sidecar.sidecar._SCAN", 0.05)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "app.jsonl"


# -- files ---------------------------------------------------------------------------------------------------


def test_several_files_on_one_page(tmp_path: Path, stream: Callable[..., Tell]) -> None:
    """What several processes wrote is added up, and served over HTTP."""
    with Sidecar(tmp_path / "*.jsonl") as sidecar, PrometheusExporter(sidecar) as exporter:
        server = exporter.start_server(0)
        for number in range(3):
            tell = stream(pid=1000 + number, base=(0x1234 + number) << 40)
            for span in range(10):
                add(tmp_path / f"{number}.jsonl", tell("enter", span + 1), tell("exit", span + 1))
            add(tmp_path / f"{number}.jsonl", tell("enter", 99))
        assert sidecar.wait(10)
        with urllib.request.urlopen(server.url) as answer:
            page = answer.read().decode()
    assert 'async_inspect_tasks_total{name="job"} 33.0' in page
    assert 'async_inspect_tasks_completed_total{name="job"} 30.0' in page
    assert 'async_inspect_tasks_by_state{state="running"} 3.0' in page


def test_lines_of_all_kinds(log: Path, tell: Tell) -> None:
    """Annotations go to timelines, others pass by, and what is broken is counted."""
    first = tell("enter")
    log.write_text(
        "Traceback (most recent call last):\n"
        + line(first)
        + json.dumps({"span_id": first["id"], "levelname": "WARNING", "message": "row 3", "created": 1.7e9})
        + '\n{"message": "no asyncinspect at all"}\n{"asyncinspect": {"v": 1, "ki\n{"asyncinspect": 7}\n'
        + json.dumps(tell("exit"))
        + "\n\n"
    )
    sidecar = Sidecar(log)
    read_all(sidecar)
    reader = sidecar.reader
    assert (reader.lines, reader.records, reader.annotations, reader.foreign, reader.broken) == (7, 2, 1, 2, 2)
    snapshot = sidecar.inspector.snapshot()
    assert snapshot.dropped["malformed"] == 2
    assert [event.detail for event in snapshot.tasks[0].events if event.kind == "log"] == ["WARNING row 3"]
    kill(sidecar)


def test_what_is_around_a_line(log: Path, tell: Tell) -> None:
    """It is read without, as a replay reads it: the mark of an editor, NUL bytes of a file that was cut off."""
    told = [tell(kind, number) for number in (1, 2) for kind in ("enter", "exit")]
    parts = [b"\xef\xbb\xbf", line(told[0]).encode(), b"\0" * 4096, line(told[1]).encode(), b"\0\0\n \r\n"]
    parts += [b"\0", json.dumps(told[2]).encode(), b"\r\n", line(told[3]).encode()]
    log.write_bytes(b"".join(parts))
    sidecar, replay = Sidecar(log), Replay(log)
    read_all(sidecar)
    replay.run()
    assert counts(sidecar) == (2, 2, 0)
    reader, report = sidecar.reader, replay.report
    assert (reader.records, reader.broken, reader.foreign) == (4, 1, 0)
    assert (report.records, report.broken, report.foreign) == (4, 1, 0)
    kill(sidecar)


def test_a_line_that_is_too_long(log: Path, tell: Tell) -> None:
    """It is left out, and counted like any other that cannot be read."""
    log.write_text(line(tell("enter")) + line(tell("exit") | {"pad": "x" * (1 << 20)}) + line(tell("enter", 2)))
    sidecar = Sidecar(log)
    read_all(sidecar)
    assert counts(sidecar) == (2, 0, 2)
    assert sidecar.inspector.snapshot().dropped["malformed"] == sidecar.reader.broken == 1
    assert sidecar.reader.lines == 3
    kill(sidecar)


def test_without_follow(log: Path, tell: Tell) -> None:
    """What is there is read, and nothing that comes later."""
    add(log, tell("enter"))
    sidecar = Sidecar(log, follow=False)
    read_all(sidecar)
    add(log.with_name("app.jsonl.1"), tell("enter", 2))
    log.rename(log.with_name("b"))
    add(log, tell("enter", 3))
    sidecar._scan_at = 1e-9
    sidecar.step()
    assert counts(sidecar)[0] == 1
    kill(sidecar)


class Rules:
    """Stands for retrofit rules, of which these tests need no more than that they are asked."""

    def payloads(self, line: bytes | str, file: str, number: int) -> list[dict[str, Any]]:
        if not line.startswith(b"GET"):
            return []
        id = f"{number:016x}"
        said = {"v": 1, "id": id, "name": "GET", "t": number, "wall": number, "pid": 0}
        return [said | {"kind": "enter", "seq": 2 * number}, said | {"kind": "exit", "seq": 2 * number + 1} | OVER]


OVER = {"outcome": "completed", "duration": 5}


def test_rules(log: Path) -> None:
    """Lines of other programs become spans, each once, by file and number."""
    log.write_text("GET /\nPOST /\nGET /2\n")
    sidecar = Sidecar(log, rules=Rules())
    read_all(sidecar)
    assert counts(sidecar, "GET") == (2, 2, 0)
    assert (sidecar.reader.records, sidecar.reader.foreign) == (4, 1)
    kill(sidecar)


@pytest.mark.parametrize("timed", [True, False])
def test_rules_and_rotation(log: Path, timed: bool) -> None:
    """Lines that do not differ are told from each other by where they stand, and a new file is another place."""
    rule = '[[rule]]\nname = "GET"\nline = "^(?P<at>[^ ]*) GET"\n' + 'time = "at"\ntime_format = "iso"\n' * timed
    sidecar = Sidecar(log, rules=parse_rules(rule))
    for round in range(3):
        for _ in range(2):
            with log.open("a") as file:
                file.write(f"2026-01-01T00:00:0{round}Z GET /\n" * 5)
            read_all(sidecar)
        log.rename(f"{log}.{round}")
        with Path(f"{log}.{round}").open("a") as file:
            file.write(f"2026-01-01T00:00:0{round}Z GET /\n")
    read_all(sidecar)
    assert counts(sidecar, "GET") == (33, 33, 0)
    kill(sidecar)


# -- a restart -----------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.sampled_from(["tell", "tell", "rotate", "step", "save", "kill", "stop"]), max_size=30))
def test_killed_at_any_moment(
    tmp_path_factory: pytest.TempPathFactory, stream: Callable[..., Tell], plan: list[str]
) -> None:
    """Whenever it is killed or stopped: in the end every record has been counted once, and no counter ever fell."""
    folder = tmp_path_factory.mktemp("killed")
    log, state = folder / "app.jsonl", folder / "state"
    tell, told, before = stream(), [], (0, 0)
    sidecar = Sidecar(log, state=state, save_every=1000)
    sidecar._save_at = time.monotonic() + 1000
    for number, step in enumerate(plan, 1):
        if step == "tell":
            told += [tell("enter", number), tell("record", number, fields={"a": 1}), tell("exit", number)]
            add(log, *told[-3:])
            if number % 3:
                told.append(tell("enter", number + 1000))
                add(log, told[-1])
        elif step == "rotate" and log.exists():
            log.rename(folder / f"app.jsonl.{number}")
        elif step == "step":
            read_all(sidecar)
        elif step == "save":
            sidecar.save()
            before = counts(sidecar)[:2]
        elif step in ("kill", "stop"):
            if step == "stop":
                sidecar.save()
                before = counts(sidecar)[:2]
            kill(sidecar)
            sidecar = Sidecar(log, state=state, save_every=1000)
            sidecar._save_at = time.monotonic() + 1000
            assert counts(sidecar)[:2] >= before
    read_all(sidecar)
    uninterrupted = Inspector()
    for payload in told:
        uninterrupted.apply(payload)
    one, other = sidecar.inspector.snapshot(), uninterrupted.snapshot()
    assert {**one.names} == {**other.names}
    assert one.states == other.states
    assert sum(one.dropped.values()) == 0
    kill(sidecar)


PROGRAM = """
import signal, sys
from asyncinspect_logging.sidecar import Sidecar
sidecar = Sidecar(sys.argv[1], state=sys.argv[2], save_every=0.05)
signal.signal(signal.SIGTERM, lambda *_: sidecar.stop())
print("ready", flush=True)
sidecar.run()
"""


@pytest.mark.slow
def test_a_process_that_is_killed_again_and_again(log: Path, tmp_path: Path, tell: Tell) -> None:
    """SIGKILL at any moment of writing the state: the next one goes on, and nothing is lost or counted twice."""
    state = tmp_path / "state"
    for round in range(4):
        command = [sys.executable, "-c", PROGRAM, str(log), str(state)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            for number in range(200):
                add(log, tell("enter", 1 + round * 1000 + number), tell("exit", 1 + round * 1000 + number))
            until(state.exists)
            process.send_signal(signal.SIGKILL if round < 3 else signal.SIGTERM)
            assert process.wait(10) == (-signal.SIGKILL if round < 3 else 0)
    with Sidecar(log, state=state) as sidecar:
        assert sidecar.wait(10)
        assert counts(sidecar) == (800, 800, 0)
        assert sidecar.inspector.snapshot().dropped["duplicate"] == 0
    # And when there is nothing left to read it from.
    log.unlink()
    with Sidecar(log, state=state) as sidecar:
        assert counts(sidecar) == (800, 800, 0)


def test_state_is_whole_and_private(log: Path, tmp_path: Path, tell: Tell) -> None:
    """It is JSON, for nobody else to read, and only written when something has changed."""
    state = tmp_path / "state"
    add(log, tell("enter"))
    sidecar = Sidecar(log, state=state)
    read_all(sidecar)
    sidecar.save()
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    assert json.loads(state.read_text())["kind"] == "asyncinspect sidecar"
    inode = state.stat().st_ino
    sidecar.save()
    assert state.stat().st_ino == inode
    add(log, tell("exit"))
    read_all(sidecar)
    sidecar.save()
    assert state.stat().st_ino != inode
    assert os.listdir(tmp_path) == sorted(os.listdir(tmp_path), key=os.listdir(tmp_path).index)
    assert not list(tmp_path.glob("*.new"))
    kill(sidecar)


def test_scrapes_where_saving_takes_long(
    log: Path, tmp_path: Path, tell: Tell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not save again and again; what they show is saved all the same, and not for ever the same."""
    state = tmp_path / "state"
    sidecar = Sidecar(log, state=state, save_every=1000)

    def scrape() -> int:
        page = sidecar.snapshot(tasks=False)
        saved = json.loads(state.read_text())["inspector"]["names"]
        assert page.names["job"].spawned <= sum(one["spawned"] for one in saved)
        return page.names["job"].spawned

    def one_more(number: int) -> None:
        add(log, tell("enter", number))
        read_all(sidecar)

    one_more(1)
    assert scrape() == 1
    one_more(2)
    sidecar._took = 0.01
    assert scrape() == 2
    # The next one is held to have taken long; 20 times as long, but for 2 s at most, the page stays as it is.
    sidecar._took = 0.3
    one_more(3)
    inode = state.stat().st_ino
    assert [scrape(), scrape()] == [2, 2]
    assert state.stat().st_ino == inode
    assert sidecar._oldest() == 2.0
    sidecar._page_at -= 2.0
    assert scrape() == 3
    # Whoever asks for all of it has it, and nobody sees less afterwards.
    sidecar._took = 0.3
    one_more(4)
    assert len(sidecar.snapshot().tasks) == 4
    sidecar._took = 0.3
    one_more(5)
    assert scrape() == 4
    kill(sidecar)


def test_state_is_written_to_no_file_of_others(log: Path, tmp_path: Path, tell: Tell) -> None:
    """A link in its place, or a file that all may read, is replaced."""
    add(log, tell("enter"))
    victim, state, new = tmp_path / "victim", tmp_path / "state", tmp_path / "state.new"
    victim.write_text("precious")
    new.symlink_to(victim)
    sidecar = Sidecar(log, state=state)
    read_all(sidecar)
    sidecar.save()
    assert victim.read_text() == "precious"
    assert not state.is_symlink()
    new.write_text("left behind")
    new.chmod(0o666)
    add(log, tell("exit"))
    read_all(sidecar)
    sidecar.save()
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    kill(sidecar)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"kind": "asyncinspect sidecar", "v": 99}',
        '{"kind": "asyncinspect sidecar", "v": 1}',
    ],
    ids=["empty", "list", "cut", "deep", "version", "nothing"],
)
def test_a_state_that_is_none(log: Path, tmp_path: Path, text: str) -> None:
    """It says so, and leaves it alone."""
    state = tmp_path / "state"
    state.write_text(text)
    with pytest.raises(ConfigError, match="move it away"):
        Sidecar(log, state=state)
    assert state.read_text() == text
    state.unlink()
    kill(Sidecar(log, state=state))


@pytest.mark.parametrize("key", ["inspector", "files", "processes", "clients"])
def test_a_state_with_a_part_that_is_none(log: Path, tmp_path: Path, key: str) -> None:
    """Whichever it is."""
    state = tmp_path / "state"
    sidecar = Sidecar(log, state=state, listen=str(tmp_path / "s"))
    sidecar._saved = ("never",)
    sidecar.save()
    kill(sidecar)
    saved = json.loads(state.read_text())
    for bad in (None, 7, {"known": [7], "files": [7], "since": 1, "local": None}, [7]):
        state.write_text(json.dumps(saved | {key: bad}))
        with pytest.raises(ConfigError, match="cannot be gone on from"):
            Sidecar(log, state=state, listen=str(tmp_path / "s"))


def test_a_state_of_another_version(log: Path, tmp_path: Path, tell: Tell) -> None:
    """It is refused, with the way out, and left as it is."""
    state = tmp_path / "state"
    add(log, tell("enter"))
    sidecar = Sidecar(log, state=state)
    read_all(sidecar)
    sidecar.save()
    kill(sidecar)
    saved = json.loads(state.read_text())
    for version in (saved["v"] - 1, saved["v"] + 1):
        text = json.dumps(saved | {"v": version})
        state.write_text(text)
        with pytest.raises(ConfigError, match="not what a sidecar of this version saved; move it away"):
            Sidecar(log, state=state)
        assert state.read_text() == text


RULES = "[[rule]]\nname = 'job'\nstart = 'begin (?P<id>.*)'\nend = 'end (?P<id>.*)'\nkey = 'id'\n"


def test_starts_of_rules_outlive_a_restart(log: Path, tmp_path: Path) -> None:
    """An end finds its start in the next run; that of a rule which was changed meanwhile is left out."""
    state = tmp_path / "state"
    log.write_text("begin 1\nbegin 2\n")
    for rules, line in ((RULES, ""), (RULES, "end 1\n"), (RULES.replace("end (", "finish ("), "finish 2\n")):
        with log.open("a") as file:
            file.write(line)
        sidecar = Sidecar(log, state=state, rules=parse_rules(rules))
        read_all(sidecar)
        sidecar.save()
        kill(sidecar)
    assert counts(sidecar) == (2, 1, 1)


@pytest.mark.parametrize(
    "starts", [7, [7], [["x", [1], 1, 1, "n"]], [["x", [], -1, 1, "n"]], [["x", [], 1 << 64, 1, "n"]], [["x"] * 5]]
)
def test_starts_of_rules_that_are_none(log: Path, tmp_path: Path, starts: Any) -> None:
    """Whatever stands there is an error that is said."""
    state, rules = tmp_path / "state", parse_rules(RULES)
    sidecar = Sidecar(log, state=state, rules=rules)
    sidecar._saved = ("never",)
    sidecar.save()
    kill(sidecar)
    state.write_text(json.dumps(json.loads(state.read_text()) | {"starts": starts}))
    with pytest.raises(ConfigError, match="cannot be gone on from"):
        Sidecar(log, state=state, rules=rules)


def test_a_state_in_use(log: Path, tmp_path: Path) -> None:
    """Two sidecars do not share one; nor can it be where nothing can be written."""
    sidecar = Sidecar(log, state=tmp_path / "state")
    with pytest.raises(ConfigError, match="in use by another sidecar"):
        Sidecar(log, state=tmp_path / "state")
    kill(sidecar)
    with pytest.raises(ConfigError, match="cannot be written"):
        Sidecar(log, state=tmp_path / "no" / "folder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither a log"),
        ({"paths": "x", "save_every": -1}, "save_every=-1"),
        ({"paths": "x", "grace": "long"}, "grace='long'"),
        ({"listen": "nowhere"}, "listen='nowhere'"),
        ({"listen": "no.such.host.invalid:1"}, "host is not known"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    """Each is an error that says what to write."""
    with pytest.raises(ConfigError, match=message):
        Sidecar(**options)


# -- sockets -------------------------------------------------------------------------------------------------


def test_plain_lines(tmp_path: Path, tell: Tell) -> None:
    """Whatever writes JSON lines can send them, in pieces of any length."""
    with Sidecar(listen="127.0.0.1:0") as sidecar, sending(sidecar) as sender:
        text = "".join(line(tell(kind, number)) for number in range(1, 50) for kind in ("enter", "exit"))
        for start in range(0, len(text), 997):
            sender.sendall(text[start : start + 997].encode())
        until(lambda: counts(sidecar) == (49, 49, 0))


def test_bad_lines_close_nothing(tell: Tell) -> None:
    """Each is counted, and the ones after it are read."""
    bad = [b"\x00\xff", b"GET / HTTP/1.1", b"{", b'{"asyncinspect": []}', b"[" * 90_000, b'{"asyncinspect_socket": 1}']
    bad += [b'{"asyncinspect_socket": {"client": "0123456789abcdef", "dropped": 0, "next": -1}}', b"x" * (1 << 20)]
    with Sidecar(listen="127.0.0.1:0") as sidecar, sending(sidecar) as sender:
        for text in bad:
            sender.sendall(text + b"\n")
            sender.sendall(line(tell("enter", tell.seq + 1)).encode())  # type: ignore[attr-defined]
        until(lambda: counts(sidecar)[0] == len(bad))
        assert sidecar.inspector.snapshot().dropped["malformed"] == len(bad)
        assert sidecar.reader.broken == len(bad)


def test_a_line_without_end(tell: Tell) -> None:
    """100 MB of it cost no memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Sidecar(listen="127.0.0.1:0") as sidecar, sending(sidecar) as sender:
        for _ in range(100):
            sender.sendall(b"x" * 1_000_000)
        sender.sendall(b"\n" + line(tell("enter")).encode())
        until(lambda: counts(sidecar)[0] == 1)
        assert sidecar.reader.broken == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000  # kB


@pytest.mark.parametrize("before", [0, 1_000_000])
def test_a_line_byte_by_byte(before: int, tell: Tell) -> None:
    """Each is put behind what is there of the line, and that is not copied for it."""
    sidecar = Sidecar(listen="127.0.0.1:0")
    assert sidecar.listener is not None
    text = line(tell("enter") | {"pad": "x" * before}).encode()
    with sending(sidecar) as sender:
        sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with ThreadPoolExecutor(1) as other:
            sent = other.submit(sender.sendall, text[:-50])
            while sidecar.listener._pending < len(text) - 50:
                sidecar.step(0.01)
            sent.result()
        (connection,) = sidecar.listener._connections.values()
        pending = connection.pending
        for number in range(50):
            assert connection.pending is pending
            assert sidecar.listener._pending == len(text) - 50 + number
            sender.sendall(text[number - 50 :][:1])
            sidecar.step(1.0)
    assert counts(sidecar) == (1, 0, 1)
    assert sidecar.listener._pending == 0
    kill(sidecar)


def test_many_unfinished_lines(monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    """What is pending on all connections together has a bound."""
    monkeypatch.setattr(listen, "_MAX_PENDING", 1_000_000)
    with Sidecar(listen="127.0.0.1:0") as sidecar:
        assert sidecar.address is not None
        senders = [sidecar.address.connect(10) for _ in range(20)]
        for sender in senders:
            try:
                sender.sendall(b"x" * 200_000)
            except ConnectionError:
                pass
        assert sidecar.listener is not None
        until(lambda: len(sidecar.listener) <= 5)  # type: ignore[arg-type]
        with sending(sidecar) as sender:
            sender.sendall(line(tell("enter")).encode())
            until(lambda: counts(sidecar)[0] == 1)
        for sender in senders:
            sender.close()


def test_too_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those beyond the limit are closed, and silent ones give up their place."""
    monkeypatch.setattr(listen, "_MAX_CONNECTIONS", 3)
    with Sidecar(listen="127.0.0.1:0") as sidecar:
        assert sidecar.address is not None
        assert sidecar.listener is not None
        first = [sidecar.address.connect(10) for _ in range(3)]
        with sidecar.address.connect(10) as one_more:
            assert one_more.recv(1) == b""
        assert sidecar.listener.refused == 1
        monkeypatch.setattr(listen, "_IDLE", 0.0)
        assert [sender.recv(1) for sender in first] == [b""] * 3
        assert sidecar.listener.idle == 3
        for sender in first:
            sender.close()


def test_unix_socket(tmp_path: Path) -> None:
    """It is for its user alone, replaces one that was left behind, and takes nobody's place."""
    path = tmp_path / "s"
    with Sidecar(listen=path) as sidecar:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert str(sidecar.address) == f"unix:{path}"
        with pytest.raises(ConfigError, match="somebody listens there"):
            Sidecar(listen=path)
    assert not path.exists()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with Sidecar(listen=path, socket_mode=0o660):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    path.write_text("mine")
    with pytest.raises(ConfigError, match="no socket"):
        Sidecar(listen=path)
    assert path.read_text() == "mine"


def test_port_in_use() -> None:
    """It says so."""
    with Sidecar(listen="127.0.0.1:0") as sidecar, pytest.raises(ConfigError, match="in use"):
        Sidecar(listen=str(sidecar.address))


class Client:
    """The other side of the protocol, by hand."""

    def __init__(self, sidecar: Sidecar, next: int, dropped: int = 0, name: str = "0123456789abcdef") -> None:
        assert sidecar.address is not None
        self.socket = sidecar.address.connect(10)
        self.answers = self.socket.makefile("rb")
        self.control(client=name, next=next, dropped=dropped)
        self.have = self.answer()

    def control(self, **said: Any) -> None:
        self.socket.sendall(json.dumps({"asyncinspect_socket": said}, separators=(",", ":")).encode() + b"\n")

    def answer(self) -> int:
        have = json.loads(self.answers.readline())["have"]
        assert isinstance(have, int)
        return have

    def send(self, *payloads: Any) -> None:
        self.socket.sendall("".join(map(line, payloads)).encode())

    def close(self) -> None:
        self.answers.close()
        self.socket.close()


def connected(sidecar: Sidecar, next: int) -> Client:
    """A client of a sidecar that does only what it is told."""
    made: list[Client] = []
    thread = threading.Thread(target=lambda: made.append(Client(sidecar, next)))
    thread.start()
    while thread.is_alive():
        sidecar.step(0.01)
    return made[0]


def test_numbered_lines(tell: Tell) -> None:
    """After a break the client is told what is there already; lines sent again count once, also those without seq."""
    enter = tell("enter")
    note = {"span_id": enter["id"], "message": "noted"}
    with Sidecar(listen="127.0.0.1:0") as sidecar:
        client = Client(sidecar, next=1)
        assert client.have == 0
        client.send(enter)
        client.socket.sendall(json.dumps(note).encode() + b"\n")
        while client.answer() < 2:
            pass
        client.close()
        client = Client(sidecar, next=1)
        assert client.have == 2
        client.send(tell("exit"))
        assert client.answer() == 3
        snapshot = sidecar.inspector.snapshot()
        assert snapshot.events["log"] == 1
        assert snapshot.names["job"].completed == 1
        client.close()
        # It has forgotten what it sent last, and dropped some before; the second time it says the same.
        for _ in range(2):
            client = Client(sidecar, next=6, dropped=10)
            assert client.have <= 5
            client.close()
        assert sidecar.inspector.snapshot().dropped["gap"] == 2 + 10


def test_a_client_that_is_gone_before_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Tell) -> None:
    """To find that nobody can be answered any more is no reason not to read what was sent."""
    monkeypatch.setattr(listen, "_CHUNK", 1000)
    sidecar = Sidecar(listen=tmp_path / "s")
    client = connected(sidecar, 1)
    client.send(*(tell("enter", number) for number in range(1, 101)))
    client.close()
    for _ in range(100):
        sidecar.step()
    assert counts(sidecar)[0] == 100
    kill(sidecar)


def test_lines_are_had_once_they_are_saved(tmp_path: Path, tell: Tell) -> None:
    """With a state, what is confirmed outlives a SIGKILL of the sidecar, and what is not is asked for again."""
    path, state = tmp_path / "s", tmp_path / "state"
    sidecar = Sidecar(listen=path, state=state, save_every=1000)
    sidecar._save_at = time.monotonic() + 1000

    def serve(rounds: int = 3) -> None:
        for _ in range(rounds):
            sidecar.step(0.01)

    one = connected(sidecar, 1)
    told = [tell(kind, number) for number in (1, 2, 3) for kind in ("enter", "exit")]
    one.send(*told[:2])
    serve()
    sidecar.save()
    serve()
    assert one.answer() == 2
    one.send(*told[2:4])
    serve()
    assert counts(sidecar) == (2, 2, 0)
    # Another connection of the same client meanwhile: not confirmed, and yet counted.
    again = connected(sidecar, 1)
    assert again.have == 2
    again.send(*told[2:5])
    serve()
    assert counts(sidecar) == (3, 2, 1)
    kill(sidecar)
    one.close()
    again.close()
    sidecar = Sidecar(listen=path, state=state, save_every=1000)
    sidecar._save_at = time.monotonic() + 1000
    assert counts(sidecar) == (1, 1, 0)
    last = connected(sidecar, 1)
    assert last.have == 2
    last.send(*told[2:])
    serve()
    assert counts(sidecar) == (3, 3, 0)
    assert sum(sidecar.inspector.snapshot().dropped.values()) == 0
    last.close()
    kill(sidecar)


@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 3000), max_size=5))
def test_anything_over_the_socket(data: bytes, cuts: list[int]) -> None:
    """Nothing that is sent ends the sidecar, or is lost on it."""
    sidecar = Sidecar(listen="127.0.0.1:0")
    try:
        with sending(sidecar) as sender:
            for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 3000], strict=True):
                if data[start:end]:
                    sender.sendall(data[start:end])
                    sidecar.step(0.01)
            sender.sendall(b"\n" + json.dumps({"asyncinspect": {"v": 1}}).encode() + b"\n")
            before = sidecar.inspector.snapshot().dropped["malformed"]
            while sidecar.inspector.snapshot().dropped["malformed"] == before:
                sidecar.step(0.01)
    finally:
        kill(sidecar)


# -- processes that are gone ---------------------------------------------------------------------------------

WRITER = """
import logging, sys, time
from asyncinspect_logging import json_logging, span
import logging.config
logging.config.dictConfig(json_logging(sys.argv[1]))
for _ in range(10):
    with span("job"): pass
span("job").__enter__()
time.sleep(60)
"""


@pytest.mark.slow
def test_a_process_that_was_killed(log: Path, tmp_path: Path) -> None:
    """What it had open is interrupted once it is gone, and not before; of another restart it is not asked again."""
    state = tmp_path / "state"
    command = [sys.executable, "-c", WRITER, str(log)]
    with subprocess.Popen(command) as process, Sidecar(log, state=state, grace=0.1) as sidecar:
        until(lambda: counts(sidecar) == (11, 10, 1))
        time.sleep(0.5)  # several times as long as the grace, and as the pause between two looks
        assert counts(sidecar) == (11, 10, 1)
        process.kill()
        until(lambda: counts(sidecar) == (11, 11, 0))
        snapshot = sidecar.inspector.snapshot()
        assert snapshot.names["job"].cancelled == 1
        assert [task.outcome for task in snapshot.tasks].count("interrupted") == 1
        assert snapshot.states["running"] == 0
    with Sidecar(log, state=state, grace=0.1) as sidecar:
        assert sidecar.wait(10)
        assert counts(sidecar) == (11, 11, 0)


@pytest.mark.slow
def test_a_process_that_was_killed_while_nobody_looked(log: Path, tmp_path: Path) -> None:
    """The sidecar was down when it was."""
    state = tmp_path / "state"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(log)]) as process:
        with Sidecar(log, state=state, grace=0.1) as sidecar:
            until(lambda: counts(sidecar) == (11, 10, 1))
            until(lambda: [known[-1] for known in sidecar.processes.dump()["known"]] == [True])
        process.kill()
    with Sidecar(log, state=state, grace=0.1) as sidecar:
        until(lambda: counts(sidecar) == (11, 11, 0))


def test_a_process_elsewhere(log: Path, tell: Tell) -> None:
    """There is no such pid here, and there never was one: that says nothing, unless somebody says that it does."""
    tell.pid = 2**22 + 1  # type: ignore[attr-defined]
    add(log, tell("enter"))
    for local, live in ((None, 1), (False, 1), (True, 0)):
        sidecar = Sidecar(log, grace=0.0, local=local)
        for _ in range(3):
            sidecar._scan_at = 0.0
            sidecar.step()
        assert counts(sidecar)[2] == live
        kill(sidecar)


def test_a_pid_that_is_in_every_container(log: Path, tmp_path: Path, tell: Tell, stream: Callable[..., Tell]) -> None:
    """There is a process of that pid here, and it is not the one that writes: whoever else writes lives on."""
    elsewhere = stream(pid=2**22 + 1, base=0x4321 << 40)
    tell.pid = os.getppid()  # type: ignore[attr-defined]
    tell.t = elsewhere.t = time.time_ns() - 1_700_000_000_000_000_000  # type: ignore[attr-defined]
    add(log, tell("enter"), elsewhere("enter"))
    state = tmp_path / "state"
    for _ in range(2):
        sidecar = Sidecar(log, grace=0.0, state=state)
        for _ in range(3):
            sidecar._scan_at = 0.0
            sidecar.step()
        assert counts(sidecar) == (2, 0, 2)
        sidecar.save()
        kill(sidecar)


def test_who_writes_a_log(log: Path) -> None:
    """It is told by its descriptors; to read the log, as what ships it does, is not to write it."""
    with log.open("a") as file:
        status = os.fstat(file.fileno())
        assert processes.writes(os.getpid(), (status.st_dev, status.st_ino))
        assert not processes.writes(os.getpid(), (status.st_dev, status.st_ino + 1))
    with log.open() as file:
        assert not processes.writes(os.getpid(), (status.st_dev, status.st_ino))
    assert not processes.writes(2**22 + 1, (status.st_dev, status.st_ino))


def test_many_processes_that_are_gone(log: Path, stream: Callable[..., Tell], monkeypatch: pytest.MonkeyPatch) -> None:
    """All are seen to at once, by what is open, and no snapshot of everything is made for any of them."""
    tells = [stream(pid=2**22 + 1, base=(0x10000 + number) << 32) for number in range(300)]
    for number, tell in enumerate(tells):
        add(log, tell("enter"), tell("exit"), *([tell("enter", 2)] if number % 100 == 7 else []))
    monkeypatch.setattr("asyncinspect_logging.sidecar.sidecar._SCAN", 1000.0)  # looks only when it is told to
    sidecar = Sidecar(log, grace=0.0, local=True)
    read_all(sidecar)
    assert counts(sidecar) == (303, 300, 3)
    passes: list[Any] = []
    enter = sidecar.inspector.enter
    monkeypatch.setattr(sidecar.inspector, "enter", lambda records: (passes.append(1), enter(records)))
    monkeypatch.setattr(sidecar.inspector, "snapshot", None)
    sidecar.processes.look()
    sidecar.processes.look()
    monkeypatch.undo()
    assert len(passes) == 1
    assert len(sidecar.processes) == 0
    assert counts(sidecar) == (303, 303, 0)
    assert sidecar.inspector.snapshot().names["job"].cancelled == 3
    kill(sidecar)


def test_a_late_exit(log: Path, tell: Tell) -> None:
    """Of what was held to be interrupted: it changes no count but that of what could not be placed."""
    tell.pid = 2**22 + 1  # type: ignore[attr-defined]
    add(log, tell("enter"), tell("enter", 2))
    sidecar = Sidecar(log, grace=0.0, local=True)
    for _ in range(3):
        sidecar._scan_at = 0.0
        sidecar.step()
    assert counts(sidecar) == (2, 2, 0)
    ended = sidecar.inspector.snapshot().tasks[0]
    assert ended.duration == pytest.approx(0.001)  # to the last that was heard of its process
    add(log, tell("exit"))
    sidecar._scan_at = 0.0
    sidecar.step()
    assert counts(sidecar) == (2, 2, 0)
    assert sidecar.inspector.snapshot().dropped["duplicate"] == 1
    kill(sidecar)


def test_a_pid_that_is_another_process_by_now() -> None:
    """Whoever began after the record was written has not written it."""
    inspector = Inspector()
    known = processes.Processes(inspector, 0.0, True)
    payload = {"v": 1, "kind": "enter", "id": "00000001" * 2, "name": "job", "pid": os.getppid(), "seq": 1}
    payload |= {"t": 1, "wall": 1_000_000_000_000_000_000}
    inspector.apply(payload)
    known.heard(payload)
    known.look()
    known.look()
    assert inspector.snapshot().names["job"].cancelled == 1
    recent = payload | {"id": "00000002" * 2, "seq": 2, "wall": time.time_ns()}
    inspector.apply(recent)
    known.heard(recent)
    known.look()
    known.look()
    assert inspector.snapshot().names["job"].live == 1


def test_when_a_process_began() -> None:
    """This one did, some time ago; one that is gone and not waited for has ended, too."""
    began = processes.began_at(os.getpid())
    assert began is not None
    assert began < time.time()
    process = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: processes.began_at(process.pid) is None)
    process.wait()
    assert processes.began_at(process.pid) is None
    assert processes.began_at(0) is None
    assert processes.began_at(1 << 40) is None


def test_a_connection_that_is_closed(tell: Tell) -> None:
    """What came over it is interrupted after the grace, unless the process comes back."""
    with Sidecar(listen="127.0.0.1:0", grace=0.5) as sidecar:
        client = Client(sidecar, next=1)
        client.send(tell("enter"), tell("enter", 2))
        until(lambda: counts(sidecar) == (2, 0, 2))
        client.close()
        client = Client(sidecar, next=3)
        client.control(client="0123456789abcdef", dropped=0, span=f"{tell.base:016x}")  # type: ignore[attr-defined]
        time.sleep(1.0)
        assert counts(sidecar) == (2, 0, 2)
        client.close()
        until(lambda: counts(sidecar) == (2, 2, 0))


def test_a_connection_that_does_not_come_back(tmp_path: Path, tell: Tell) -> None:
    """The sidecar was restarted, and the process ended meanwhile."""
    options: dict[str, Any] = {"listen": "127.0.0.1:0", "state": tmp_path / "state", "grace": 0.2}
    with Sidecar(**options) as sidecar:
        client = Client(sidecar, next=1)
        client.send(tell("enter"))
        until(lambda: counts(sidecar) == (1, 0, 1))
        sidecar.stop()
        assert sidecar._thread is not None
        sidecar._thread.join()
        client.close()
    assert counts(sidecar) == (1, 0, 1)
    with Sidecar(**options) as sidecar:
        until(lambda: counts(sidecar) == (1, 1, 0))


# -- the documentation ---------------------------------------------------------------------------------------


def test_the_limits_are_documented() -> None:
    """As they are."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "sidecar.md").read_text()
    assert f"{listen._MAX_CONNECTIONS} connections" in page
    assert f"{listen._IDLE:.0f} s" in page
    assert re.search(rf"{listen._MAX_PENDING >> 20} MB", page)
