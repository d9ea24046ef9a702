"""The handler that sends records over a socket: whatever happens to the other end, the application does not wait."""

from __future__ import annotations

import json
import logging
import logging.config
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from servers import until

from asyncinspect_logging import AsyncInspectSocketHandler, Config, Inspector, annotate, span
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.sidecar import Sidecar

LOGGER = logging.getLogger("asyncinspect")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def handle() -> Iterator[Callable[..., AsyncInspectSocketHandler]]:
    handlers: list[AsyncInspectSocketHandler] = []

    def handle(*args: Any, **options: Any) -> AsyncInspectSocketHandler:
        handlers.append(AsyncInspectSocketHandler(*args, **options))
        LOGGER.addHandler(handlers[-1])
        return handlers[-1]

    yield handle
    for handler in handlers:
        LOGGER.removeHandler(handler)
        handler.timeout = 0.1
        handler.close()


def counted(inspector: Inspector, name: str = "job") -> int:
    names = inspector.snapshot().names
    return names[name].finished if name in names else 0


class Peer:
    """The other end, which does as it is told: `have` is what it says to have."""

    def __init__(self, path: str) -> None:
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listening.bind(path)
        self.listening.listen()
        self.listening.settimeout(10)
        self.open: list[Any] = [self.listening]

    def accept(self, have: int | None = 0) -> tuple[socket.socket, Any, dict[str, Any]]:
        connected, _ = self.listening.accept()
        connected.settimeout(10)
        lines = connected.makefile("rb")
        self.open += [lines, connected]
        hello = json.loads(lines.readline())["asyncinspect_socket"]
        if have is not None:
            connected.sendall(b'{"have":%d}\n' % have)
        return connected, lines, hello

    def close(self) -> None:
        for each in self.open:
            each.close()


def test_counts_are_the_same_as_here(path: str, handle: Any, listen: Callable[..., Inspector]) -> None:
    """A sidecar comes to what an inspector in this process comes to."""
    here = listen()
    with Sidecar(listen=path) as sidecar:
        handler = handle(path)
        for number in range(500):
            try:
                with span("job", number=number) as current:
                    current.record(more=1)
                    if not number % 5:
                        annotate("half way")
                    if not number % 10:
                        raise ValueError
            except ValueError:
                pass
        handler.flush()
        until(lambda: counted(sidecar.inspector) == 500)
        there, own = sidecar.inspector.snapshot(), here.snapshot()
        assert {**own.names} == {**there.names}
        assert own.events == there.events
        assert there.events["log"] == 100
        assert [task.error for task in there.tasks] == [task.error for task in own.tasks]
        assert dict(there.tasks[-1].fields) == {"number": 499, "more": 1}
        assert handler.dropped == 0
        assert handler.connected


def test_levels(path: str, handle: Any) -> None:
    """Records of spans come whatever the levels, ordinary ones as the handler's level says, and only those in spans."""
    logging.getLogger().setLevel("INFO")
    with Sidecar(listen=path) as sidecar:
        handler = handle(path, level="WARNING")
        logging.getLogger().addHandler(handler)
        log = logging.getLogger("shop")
        log.warning("outside")
        with span("job"):
            log.info("too low")
            log.warning("row %d", 3)
        handler.flush()
        until(lambda: counted(sidecar.inspector) == 1)
        task = sidecar.inspector.snapshot().tasks[0]
        assert [event.detail for event in task.events if event.kind == "log"] == ["WARNING row 3"]
        assert sidecar.reader.lines == 3


def test_fields_go_through_the_policy(path: str, handle: Any) -> None:
    """Secrets do not leave the process, and long texts are cut."""
    with Sidecar(listen=path) as sidecar:
        handle(path, config=Config(max_field_length=8))
        with span("job", password="x", text="0123456789"):
            pass
        until(lambda: counted(sidecar.inspector) == 1)
        assert dict(sidecar.inspector.snapshot().tasks[0].fields) == {"password": "[redacted]", "text": "0123456…"}


def test_nobody_listens(path: str, handle: Any) -> None:
    """The application goes on as fast as ever; what finds no room is counted, and told once somebody listens."""
    handler = handle(path, capacity=100)
    for _ in range(1000):
        with span("job"):
            pass
    # But for what is in the queue, and what was taken from it to be sent.
    assert 1000 <= handler.dropped <= 2000 - 100
    with Sidecar(listen=path) as sidecar:
        until(lambda: sidecar.inspector.snapshot().dropped["gap"] >= handler.dropped)
        until(lambda: sidecar.reader.records == 2000 - handler.dropped)
        snapshot = sidecar.inspector.snapshot()
        assert 0 < snapshot.names["job"].spawned < 1000
        assert snapshot.dropped["malformed"] == 0


def test_ordinary_records_leave_room_for_spans(path: str, handle: Any) -> None:
    """However many there are, half of the queue is for what counters are made of."""
    handler = handle(path, capacity=1000)
    with span("job"):
        for _ in range(5000):
            annotate("noise")
        before = handler.dropped
        for _ in range(100):
            with span("inner"):
                pass
        assert handler.dropped == before
    assert before >= 3000


def test_a_slow_reader_does_not_hold_up_anybody(path: str, handle: Any) -> None:
    """A sidecar that accepts and never reads costs a bounded queue, and no time."""
    with closing(Peer(path)) as peer:
        handler = handle(path, capacity=1000)
        with span("job"):
            peer.accept()
            for _ in range(3000):
                with span("inner", text="x" * 500):
                    pass
        until(lambda: handler.dropped > 0)
        handler.timeout = 0.2
        handler.close()


def test_what_is_not_confirmed_is_sent_again(path: str, handle: Any) -> None:
    """After a break, from the first line on that the other end has not."""
    with closing(Peer(path)) as peer:
        handle(path)
        with span("a"):
            pass
        connected, lines, hello = peer.accept()
        assert hello["next"] == 1
        first = [lines.readline() for _ in range(2)]
        lines.close()
        connected.close()
        with span("b"):
            pass
        connected, lines, again = peer.accept(have=1)
        assert again["client"] == hello["client"]
        assert again["next"] == 1
        assert lines.readline() == first[1]
        assert b'"name":"b"' in lines.readline()
        connected.sendall(b'{"have":3}\n')
        with span("c"):
            pass
        lines.readline()
        sender: Any = LOGGER.handlers[-1]._sender  # type: ignore[attr-defined]
        # Until the first line that it still keeps is the fourth: it has read the answer.
        until(lambda: sender._last - len(sender.unsent) - len(sender._sent) == 3)
        lines.close()
        connected.close()
        connected, lines, third = peer.accept(have=3)
        assert third["next"] == 4


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", b'{"have":"x"}\n', b"[" * 100_000 + b"\n", b""])
def test_somebody_else_listens(path: str, handle: Any, answer: bytes) -> None:
    """What is no answer of a sidecar is no reason to send anything."""
    with closing(Peer(path)) as peer:
        handler = handle(path)
        with span("job"):
            pass
        connected, lines, _ = peer.accept(have=None)
        with suppress(ConnectionError):
            connected.sendall(answer)
            connected.shutdown(socket.SHUT_WR)
            assert lines.readline() == b""
        assert not handler.dropped


def test_dict_config(path: str) -> None:
    """It is set up as any handler is."""
    before = logging.getLogger().handlers[:]
    with Sidecar(listen=path) as sidecar:
        logging.config.dictConfig(
            {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {"sidecar": {"class": "asyncinspect_logging.AsyncInspectSocketHandler", "address": path}},
                "root": {"level": "INFO", "handlers": ["sidecar"]},
            }
        )
        with span("job"):
            pass
        logging.getLogger().handlers[0].close()
        until(lambda: counted(sidecar.inspector) == 1)
        # Closed, and yet on a logger: it goes on, and closes again.
        with span("job"):
            pass
        logging.getLogger().handlers[0].close()
        until(lambda: counted(sidecar.inspector) == 2)
    logging.getLogger().handlers[:] = before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": "nowhere"}, "unix:"),
        ({"address": "unix:"}, "Unix socket"),
        ({"address": "/" + "x" * 200}, "at most"),
        ({"address": 70_000}, "port"),
        ({"address": 1, "capacity": 0}, "capacity=0"),
        ({"address": 1, "timeout": -1}, "timeout=-1"),
        ({"address": 1, "config": {}}, "Config"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    """Each is an error that says what to write."""
    with pytest.raises(ConfigError, match=message):
        AsyncInspectSocketHandler(**options)


PROGRAM = """
import logging, os, sys, time
from asyncinspect_logging import AsyncInspectSocketHandler, span
logging.basicConfig(handlers=[AsyncInspectSocketHandler(sys.argv[1])])
"""


def run(path: str, code: str, program: str = PROGRAM, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program + code, path],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )


def test_the_end_of_the_process(path: str) -> None:
    """What is in the queue is sent, and spans that are open are interrupted."""
    # However slow this machine is at the moment.
    patient = PROGRAM.replace("sys.argv[1]", "sys.argv[1], timeout=30")
    with Sidecar(listen=path) as sidecar:
        done = run(path, "for _ in range(3000):\n    with span('job'): pass\nspan('open').__enter__()", patient)
        assert done.returncode == 0, done.stderr
        until(lambda: counted(sidecar.inspector) == 3000)
        snapshot = sidecar.inspector.snapshot()
        assert snapshot.names["open"].cancelled == 1
        assert snapshot.tasks[-1].outcome == "interrupted"


def test_the_end_of_the_process_with_nobody_there(path: str) -> None:
    """It takes no longer than the timeout, and says nothing."""
    began = time.monotonic()
    done = run(path, "with span('job'): pass")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork(path: str) -> None:
    """The child has a queue, a thread and a connection of its own, and sends nothing of the parent's."""
    code = """
with span("before"): pass
logging.getLogger().handlers[0].flush()
with span("around"):
    pid = os.fork()
    for _ in range(200):
        with span("child" if pid == 0 else "parent"): pass
    if pid == 0:
        logging.shutdown()
        os._exit(0)
    os.waitpid(pid, 0)
"""
    with Sidecar(listen=path) as sidecar:
        done = run(path, "import warnings; warnings.simplefilter('ignore')\n" + code)
        assert done.returncode == 0, done.stderr
        until(lambda: counted(sidecar.inspector, "around") == 1)
        names = {name: view.finished for name, view in sidecar.inspector.snapshot().names.items()}
        assert names == {"before": 1, "around": 1, "child": 200, "parent": 200}
        assert sidecar.inspector.snapshot().dropped["duplicate"] == 0


def test_threads(path: str, handle: Any) -> None:
    """From any thread, and nothing is lost or told twice."""
    with Sidecar(listen="127.0.0.1:0") as sidecar:
        handle(str(sidecar.address), capacity=100_000)

        def work() -> None:
            for _ in range(500):
                with span("job"):
                    pass

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: counted(sidecar.inspector) == 2000)
        assert sum(sidecar.inspector.snapshot().dropped.values()) == sidecar.inspector.snapshot().dropped["max_tasks"]
