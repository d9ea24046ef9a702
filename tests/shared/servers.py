"""Servers in processes of their own, the workers of gunicorn and uvicorn, and clients that count what was answered."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Load", "children", "free_port", "running", "under", "until"]

CLIENTS = 24


def until(true: Callable[[], Any], state: Callable[[], Any] = lambda: "") -> None:
    """Wait for what is to come, for 40 seconds at most; `state` says what there was instead."""
    end = time.monotonic() + 40
    while not true():
        assert time.monotonic() < end, f"it did not happen: {state()}"
        time.sleep(0.02)


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Ended by SIGTERM, or else killed."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()


def children(pid: int) -> list[int]:
    """Processes that this one has started and that are there."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Load:
    """Clients that count what was answered in full, and what was not. Each keeps its connection for so many requests,
    and may have another worker then.
    """

    def __init__(self, port: int, keep: int = 100) -> None:
        self.port = port
        self.keep = keep
        self.answered = self.failed = 0
        self.stop = False

    async def run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))

    async def _client(self) -> None:
        while not self.stop:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            try:
                for _ in range(self.keep):
                    if self.stop:
                        break
                    writer.write(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
                    await writer.drain()
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"HTTP/1.1 200"), head
                    assert await reader.readexactly(3) == b"ok\n"
                    self.answered += 1
                    if b"connection: close" in head.lower():
                        break
            except (OSError, asyncio.IncompleteReadError):
                self.failed += 1
            finally:
                writer.close()


async def under(load: Load, *steps: Callable[[], Any], apart: float = 0.4) -> None:
    """Take the steps while the clients are at it, so many seconds apart."""
    clients = asyncio.create_task(load.run())
    for step in steps:
        await asyncio.sleep(apart)
        await asyncio.to_thread(step)
    await asyncio.sleep(apart)
    load.stop = True
    await clients
