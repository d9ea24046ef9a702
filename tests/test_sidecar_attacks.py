"""What a sidecar meets that is no log, or comes to do harm: it is said once, and all the rest goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from asyncinspect_logging.sidecar import Sidecar, listen, processes, state


def turn(sidecar: Sidecar, times: int = 1) -> None:
    for _ in range(times):
        sidecar.files.scan()
        while sidecar.step():
            pass


def line(payload: Any) -> str:
    return json.dumps({"asyncinspect": payload}) + "\n"


def test_a_folder_of_all_kinds(tmp_path: Path, tell: Any) -> None:
    """Pipes, folders, sockets, loops of links and links to nowhere are no logs, and one log beside them is read."""
    os.mkfifo(tmp_path / "pipe.log")
    (tmp_path / "folder.log").mkdir()
    (tmp_path / "loop.log").symlink_to(tmp_path / "loop.log")
    (tmp_path / "nowhere.log").symlink_to(tmp_path / "nothing")
    (tmp_path / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "good.log").write_text(line(tell("enter")) + line(tell("exit")))
    (tmp_path / "same.log").symlink_to(tmp_path / "good.log")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket.log"))
        sidecar = Sidecar([tmp_path / "*.log", tmp_path / "**" / "*.log"])
        turn(sidecar, 2)
    assert sidecar.reader.records == 2
    assert len(sidecar.files) == 1
    sidecar._close()


def test_files_that_come_and_go(tmp_path: Path, tell: Any) -> None:
    """While they are looked at; what is remembered of them has an end."""
    stop = threading.Event()

    def make() -> None:
        number = 0
        while not stop.is_set():
            path = tmp_path / f"{number % 50}.log"
            if number % 3:
                path.write_text("text\n" * (number % 7))
            else:
                path.unlink(missing_ok=True)
                os.mkfifo(path) if number % 2 else path.symlink_to(path)
                path.unlink()
            number += 1

    good = tmp_path / "good.log"
    thread = threading.Thread(target=make)
    thread.start()
    sidecar = Sidecar(tmp_path / "*.log")
    try:
        for number in range(1, 101):
            with good.open("a") as file:
                file.write(line(tell("enter", number)) + line(tell("exit", number)))
            sidecar.step()
    finally:
        stop.set()
        thread.join()
    turn(sidecar)
    assert sidecar.reader.records == 200
    assert len(sidecar.files._open) <= 128
    sidecar._close()


def test_files_that_come_and_go_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Any) -> None:
    """Whenever they were looked at, one is gone before it is read: there is a pause between two looks all the same, and
    what is in the others is read.
    """
    good = tmp_path / "good.log"
    sidecar = Sidecar(tmp_path / "*.log")
    scan, looks, pauses = sidecar.files.scan, 0, 0

    def look() -> None:
        nonlocal looks
        looks += 1
        come = tmp_path / f"{looks}.log"
        come.write_text("text\n")
        scan()
        come.unlink()
        assert looks < 100, "it does nothing else"

    def pause(timeout: float | None = None) -> bool:
        nonlocal pauses
        pauses += 1
        with good.open("a") as file:
            file.write(line(tell("enter", pauses)) + line(tell("exit", pauses)))
        if pauses == 10:
            sidecar.stop()
        return True

    monkeypatch.setattr(sidecar.files, "scan", look)
    monkeypatch.setattr(sidecar._stopping, "wait", pause)
    sidecar.run()
    assert pauses == 10
    assert looks <= 2 * pauses
    assert sidecar.reader.records == 2 * 9


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path, tell: Any) -> None:
    """It is read once it may be."""
    log = tmp_path / "a.log"
    log.write_text(line(tell("enter")))
    log.chmod(0)
    sidecar = Sidecar(log)
    turn(sidecar, 2)
    assert sidecar.reader.records == 0
    log.chmod(0o600)
    turn(sidecar)
    assert sidecar.reader.records == 1
    sidecar._close()


def test_no_room_for_the_state(tmp_path: Path, tell: Any, caplog: Any) -> None:
    """What was saved before stays whole, it is said once, and the next save that has room is made."""
    log, kept = tmp_path / "a.log", tmp_path / "state"
    sidecar = Sidecar(log, state=kept)
    log.write_text(line(tell("enter")))
    turn(sidecar)
    sidecar.snapshot()
    before = kept.read_text()
    with log.open("a") as file:
        file.write("".join(line(tell("enter", number, name=f"name {number}")) for number in range(2, 200)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), hard))
    try:
        turn(sidecar)
        for _ in range(3):
            assert sidecar.snapshot().names["job"].live == 1
        assert kept.read_text() == before
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            sidecar.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sidecar.snapshot()
    assert len(json.loads(kept.read_text())["inspector"]["live"]) == 199
    assert [record.getMessage().count("cannot be saved") for record in caplog.records].count(1) == 1
    sidecar._close()
    assert state.StateFile(kept).load() is not None


def test_a_long_line_over_the_socket(tell: Any) -> None:
    """100 MB without an end take no memory, and count as one bad line."""
    sidecar = Sidecar(listen=0)
    assert sidecar.address is not None
    chunk = b"x" * (1 << 20)
    tracemalloc.start()
    with sidecar.address.connect(10) as client:
        last = b"\n" + line(tell("enter")).encode()
        sender = threading.Thread(target=lambda: [client.sendall(part) for part in [chunk] * 100 + [last]])
        sender.start()
        while not sidecar.reader.records:
            sidecar.step(0.01)
        sender.join()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sidecar.reader.broken == 1
    assert peak < 8 << 20
    sidecar._close()


@pytest.mark.parametrize("ours", [True, False])
def test_a_log_of_another_program(tmp_path: Path, tell: Any, caplog: Any, ours: bool) -> None:
    """That there is no record in it is said once, and not before there is something to say it of."""
    log = tmp_path / "access.log"
    log.write_text("GET /\n" * 999)
    sidecar = Sidecar(log)
    turn(sidecar)
    assert caplog.text == ""
    for _ in range(2):
        with log.open("a") as file:
            file.write((line(tell("enter")) if ours else "") + "GET /\n" * 2000)
        turn(sidecar)
    said = [record.getMessage() for record in caplog.records]
    assert [f"{log}: no records of spans in 2999 lines" in message for message in said] == [True] * (not ours)
    sidecar._close()


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Sidecar]:
    """A sidecar that is driven by hand, and room for the descriptors of both sides."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (hard if hard == resource.RLIM_INFINITY else max(soft, min(hard, 6000)), hard)
    )
    sidecar = Sidecar(listen=f"unix:{tmp_path / 'socket'}")
    yield sidecar
    sidecar._close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(sidecar: Sidecar) -> socket.socket:
    assert sidecar.address is not None
    connected = sidecar.address.connect(10)
    sidecar.step()
    return connected


def is_served(sidecar: Sidecar, tell: Any) -> bool:
    """Whether one who comes now is counted."""
    before = sidecar.reader.records
    with connect(sidecar) as good:
        with suppress(OSError):
            good.sendall(line(tell("enter")).encode())
        sidecar.step()
    sidecar.step()
    return sidecar.reader.records == before + 1


def test_clients_that_send_a_byte_now_and_then(listening: Sidecar, tell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never a line: they give up their places like silent ones."""
    assert listening.listener is not None
    now = 1000.0
    monkeypatch.setattr(listen.time, "monotonic", lambda: now)
    slow = [connect(listening) for _ in range(listen._MAX_CONNECTIONS)]
    assert not is_served(listening, tell)
    for _ in range(4):
        now += listen._IDLE / 3
        for client in slow:
            with suppress(OSError):
                client.sendall(b"{")
        listening.step()
        listening.listener.sweep()
    assert (len(listening.listener), listening.listener.idle) == (0, len(slow))
    assert is_served(listening, tell)
    for client in slow:
        client.close()


def test_2000_connections(listening: Sidecar, tell: Any) -> None:
    """Those beyond the limit are closed at once; the others are served, and their places are free again after them."""
    assert listening.listener is not None
    clients = [connect(listening) for _ in range(2000)]
    room = listen._MAX_CONNECTIONS
    assert (len(listening.listener), listening.listener.refused) == (room, 2000 - room)
    for number, client in enumerate(clients, 1):
        with suppress(BrokenPipeError):
            client.sendall(line(tell("enter", number, seq=number)).encode())
    while listening.reader.records < room:
        listening.step()
    assert [client.recv(1) for client in clients[room:]] == [b""] * (2000 - room)
    for client in clients:
        client.close()
    listening.step()
    assert len(listening.listener) == 0
    assert is_served(listening, tell)
    assert listening.reader.broken == 0


def test_records_in_the_name_of_another(listening: Sidecar, stream: Any) -> None:
    """Of two records with one number, the first is taken and the other is a duplicate; all others count as ever."""
    own, foreign, other = stream(), stream(), stream(pid=7, base=0x77 << 40)
    with connect(listening) as client, connect(listening) as liar:

        def say(sender: socket.socket, *payloads: Any) -> None:
            sender.sendall("".join(map(line, payloads)).encode())
            listening.step()

        say(client, own("enter"), own("exit"), other("enter"))
        say(liar, foreign("enter"), foreign("exit", outcome="failed"), foreign("enter", 2))
        assert listening.snapshot().dropped["duplicate"] == 2
        # The third of this process has come, as far as anybody can tell.
        say(client, own("enter", 3), own("exit", 2), other("exit"))
        say(liar, foreign("exit", 9, seq=(1 << 63) - 1, outcome="failed"))
    job, dropped = listening.snapshot().names["job"], listening.snapshot().dropped
    assert (job.spawned, job.completed, job.failed) == (3, 3, 0)
    assert (dropped["duplicate"], dropped["malformed"]) == (3, 0)


def test_more_names_than_there_are_processes(listening: Sidecar, stream: Any) -> None:
    """What is remembered of those whose records one client makes up has an end, and another one is still known."""
    with connect(listening) as client, connect(listening) as liar:
        own = stream()
        client.sendall(line(own("enter")).encode())
        listening.step()
        most = processes._MAX_PROCESSES
        text = "".join(line(stream(pid=pid, base=pid << 40)("enter")) for pid in range(0x2000, 0x2000 + most + 500))
        sender = threading.Thread(target=liar.sendall, args=(text.encode(),))
        sender.start()
        while listening.reader.records < 1 + most + 500:
            listening.step(0.01)
        sender.join()
        assert len(listening.processes) <= most
        assert max(len(each.bases) for each in listening.listener._connections.values()) <= listen._MAX_BASES
        client.sendall(line(own("exit")).encode())
        listening.step()
    assert listening.snapshot(tasks=False).names["job"].completed == 1
