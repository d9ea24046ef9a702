"""Fetching a page ends in time, whatever the server does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from asyncinspect_logging.analysis.pages import PageError, fetch_page


@pytest.fixture
def serve() -> Iterator[Callable[[bytes, bytes], str]]:
    """A server that sends the one part at once, and then ten times a second a byte of the other."""
    ending = threading.Event()
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def answer(listener: socket.socket, head: bytes, drips: bytes) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            try:
                client.sendall(head)
                for place in range(len(drips)):
                    if ending.wait(0.1):
                        return
                    client.sendall(drips[place : place + 1])
            except OSError:
                pass  # who asked has gone

    def serve(head: bytes, drips: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threads.append(threading.Thread(target=answer, args=(listener, head, drips)))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    ending.set()
    for thread in threads:
        thread.join()
    for listener in listeners:
        listener.close()


PAGE = b'async_inspect_tasks_total{name="job"} 3\n'


@pytest.mark.parametrize(
    ("head", "drips"),
    [
        (b"", b"HTTP/1.1 200 OK" + b" " * 1000),
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x" * 1000),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"#" * 1000),
    ],
    ids=["status", "header", "body"],
)
def test_a_server_that_sends_one_byte_now_and_then(
    serve: Callable[[bytes, bytes], str], head: bytes, drips: bytes
) -> None:
    """All of it has to be there in the time that was given, and not each byte."""
    address = serve(head, drips)
    began = time.monotonic()
    with pytest.raises(PageError, match=r"/metrics: not all there after 0.5 s"):
        fetch_page(address, timeout=0.5)
    assert time.monotonic() - began < 5


def test_a_server_that_is_a_bit_slow(serve: Callable[[bytes, bytes], str]) -> None:
    """Is waited for."""
    address = serve(b"HTTP/1.0 200 OK\r\n\r\n" + PAGE[:-3], PAGE[-3:])
    assert fetch_page(address).names["job"].spawned == 3
