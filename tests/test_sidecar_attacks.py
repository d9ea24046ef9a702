"""What a sidecar meets that is no log, or comes to do harm: it is said once, and all the rest goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from asyncinspect_logging.sidecar import Sidecar, state


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
