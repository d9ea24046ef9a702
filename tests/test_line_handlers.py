"""Log files on a disk that is full, or gone: lines are lost, and the application hears nothing of it."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncinspect_logging import line_handlers
from asyncinspect_logging.line_handlers import LineHandler, SizedLineHandler, TimedLineHandler

ROOM = 20_000
MORE = {SizedLineHandler: {"maxBytes": 10**9, "backupCount": 2}, TimedLineHandler: {"when": "H", "backupCount": 2}}


@contextmanager
def full_disk() -> Iterator[None]:
    """No file gets longer than ROOM bytes: writing more fails, after a part of it, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture(params=[LineHandler, SizedLineHandler, TimedLineHandler])
def handler(request: Any, tmp_path: Path) -> Iterator[Any]:
    """Each kind, with the errors that it told of."""

    class Counting(request.param):  # type: ignore[misc]
        def handleError(self, record: logging.LogRecord) -> None:
            told.append(record)

    told: list[logging.LogRecord] = []
    made = Counting(tmp_path / "log", **MORE.get(request.param, {}))
    made.told = told
    yield made
    made.close()


def log(handler: logging.Handler, count: int, length: int = 90) -> None:
    """As an application does: what a handler raises comes out here."""
    for number in range(count):
        text = json.dumps({"n": number, "text": "x" * length})
        handler.handle(logging.LogRecord("a", logging.INFO, "f", 1, text, None, None))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_full_disk(handler, tmp_path):
    """What found no room is told to `handleError`; when there is room again the lines go on, and each is whole."""
    with full_disk():
        log(handler, 300)
        assert handler.told
    log(handler, 10)
    handler.close()
    found = lines(tmp_path / "log")
    assert found[-1]["n"] == 9
    assert 310 - len(handler.told) <= len(found) < 310


def test_a_full_disk_holds_nobody_up(handler, tmp_path, monkeypatch):
    """Whether somebody is in the middle of a line is waited for once, and not with each record that finds no room."""
    waited = []
    monkeypatch.setattr(line_handlers.time, "sleep", waited.append)
    # By a dictConfig, while somebody still has it: each record opens the file anew.
    handler.close()
    with full_disk():
        log(handler, 300)
        assert len(handler.told) > 50
    assert (tmp_path / "log").read_bytes()[-1:] != b"\n"
    assert len(waited) == 1
    # Another line that was cut, of somebody else.
    with (tmp_path / "log").open("ab") as file:
        file.write(b"cut")
    log(handler, 1)
    assert len(waited) == 2
    assert json.loads((tmp_path / "log").read_bytes().splitlines()[-1]) == {"n": 0, "text": "x" * 90}


def test_log_is_removed_from_a_full_disk(tmp_path):
    """The file is let go of, which is what makes the room, and a new one begun. It raised, again and again."""
    handler = LineHandler(tmp_path / "log")
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    with full_disk():
        log(handler, 300)
        (tmp_path / "log").unlink()
        log(handler, 10)
        assert os.fstat(handler.stream.fileno()).st_nlink == 1
    handler.close()
    assert [line["n"] for line in lines(tmp_path / "log")] == list(range(10))


@pytest.mark.parametrize("kind", [SizedLineHandler, TimedLineHandler])
def test_rotation_on_a_full_disk(kind, tmp_path):
    """It begins the new file all the same. It held on to the old one, closed, and wrote no line any more."""
    handler = kind(tmp_path / "log", **MORE[kind])
    handler.handleError = lambda record: None
    with full_disk():
        log(handler, 300)
        if kind is SizedLineHandler:
            handler.maxBytes = ROOM // 2
        else:
            handler.rolloverAt = 0
        log(handler, 10)
    handler.close()
    assert [line["n"] for line in lines(tmp_path / "log")][-10:] == list(range(10))


def test_folder_is_gone(handler, tmp_path):
    """A file that cannot be opened is the handler's trouble."""
    handler.baseFilename = str(tmp_path / "missing" / "log")
    log(handler, 2)
    assert len(handler.told) == 2
    (tmp_path / "missing").mkdir()
    log(handler, 1)
    assert len(handler.told) == 2


def test_closing_on_a_full_disk(handler, tmp_path):
    """It raises nothing, and closes the file. `logging.shutdown` left it open."""
    before = len(os.listdir("/proc/self/fd"))
    with full_disk():
        log(handler, 300)
        logging.shutdown([lambda: handler])
        assert len(os.listdir("/proc/self/fd")) == before
        log(handler, 300)
        handler.flush()
        handler.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_record_after_closing_leaves_no_file_open(handler, tmp_path):
    """A span that ends after logging was set up anew is written, and holds no file open."""
    log(handler, 1)
    handler.close()
    before = len(os.listdir("/proc/self/fd"))
    log(handler, 2)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(lines(tmp_path / "log")) == 3


@pytest.mark.parametrize("lines_of_child", [0, 1])
def test_child_does_not_write_what_waits_in_the_parent(lines_of_child, handler, tmp_path):
    """The rest of a line that found no room is written once, by the parent."""
    with full_disk():
        log(handler, 300)
    child = os.fork()
    if child == 0:
        try:
            log(handler, lines_of_child)
            logging.shutdown([lambda: handler])
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    handler.flush()
    log(handler, 1)
    handler.close()
    texts = (tmp_path / "log").read_text().splitlines()
    whole = [text for text in texts if text.startswith("{") and text.endswith("}")]
    # The child found the file to end in the middle of a line, and began a new one; the rest of the other came after.
    assert len(texts) - len(whole) <= 2
    assert sum(json.loads(text)["n"] == 200 for text in whole) <= 1
    assert [json.loads(text)["n"] for text in whole][-1] == 0
