"""A load generator that knows, to the last request, what it did.

    python examples/demo/load.py --port 8080 --seconds 5

It prints one JSON object: for each route how many requests it sent, and how many of them were answered with 200
(`completed`), answered with 500 (`failed`) or cut off by closing the connection (`cancelled`). It speaks HTTP over
plain asyncio streams, because a client library may retry a request on its own account and then the numbers are not
known. A request that is to be cut off is closed only after the first bytes of its answer have been read: by then its
handler has certainly begun, and the answer cannot end before the connection does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import time
from collections import Counter, defaultdict
from typing import Literal, NamedTuple

ANSWER_WITHIN = 30.0  # seconds; a request that takes longer is an error, and ends the load
ITEM, ORDER, REPORT = "GET /items/{id}", "POST /orders", "GET /reports/{id}"


class Request(NamedTuple):
    route: str
    head: str
    body: bytes = b""
    hang_up: Literal["", "close", "reset"] = ""  # how to cut it off, if at all

    def encode(self) -> bytes:
        return f"{self.head} HTTP/1.1\r\nHost: demo\r\nContent-Length: {len(self.body)}\r\n\r\n".encode() + self.body


def choose(rng: random.Random) -> Request:
    """The mix: mostly items, some orders of which one in five asks for too much, some reports of which every other
    is given up on."""
    dice = rng.random()
    if dice < 0.7:
        return Request(ITEM, f"GET /items/{rng.randrange(1000)}")
    if dice < 0.9:
        quantity = 100 if rng.random() < 0.2 else rng.randint(1, 90)
        return Request(ORDER, "POST /orders", json.dumps({"quantity": quantity}).encode())
    hang_up: Literal["", "close", "reset"] = rng.choice(("", "", "close", "reset"))
    return Request(REPORT, f"GET /reports/{rng.randrange(10)}?wait={600 if hang_up else 0.01}", hang_up=hang_up)


class Connection:
    """One kept-alive connection to the service."""

    def __init__(self, host: str, port: int) -> None:
        self.address = host, port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: Request) -> str:
        """Send a request and see it to its end; returns what became of it."""
        if self.streams is None:
            self.streams = await asyncio.open_connection(*self.address)
        reader, writer = self.streams
        writer.write(request.encode())
        status, headers = await self.read_head(reader)
        if request.hang_up:
            await reader.readexactly(int(await reader.readline(), 16))
            await self.close(reset=request.hang_up == "reset")
            return "cancelled"
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
            await reader.readline()
        else:
            await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection") == "close":
            await self.close()
        return {200: "completed", 500: "failed"}[status]

    @staticmethod
    async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return int(first.split()[1]), {name.lower(): value.strip().lower() for name, _, value in pairs}

    async def close(self, *, reset: bool = False) -> None:
        """Close in order, or with a TCP reset as happens to a client that crashes."""
        if self.streams is None:
            return
        _, writer = self.streams
        self.streams = None
        if reset:
            linger_not = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
            writer.transport.abort()
        else:
            writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def load(host: str, port: int, seconds: float, connections: int, seed: int) -> dict[str, Counter[str]]:
    """Keep `connections` requests under way for `seconds`, see each of them to its end, and return the tallies."""
    tallies: dict[str, Counter[str]] = defaultdict(Counter)
    deadline = time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = random.Random(seed + number)
        connection = Connection(host, port)
        try:
            while time.monotonic() < deadline:
                request = choose(rng)
                async with asyncio.timeout(ANSWER_WITHIN):
                    outcome = await connection.send(request)
                tallies[request.route][outcome] += 1
        finally:
            await connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(client(number))
    return tallies


def main() -> None:
    parser = argparse.ArgumentParser(description="The demo's load generator.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    started = time.monotonic()
    try:
        tallies = asyncio.run(load(options.host, options.port, options.seconds, options.connections, options.seed))
    except* (OSError, EOFError) as errors:
        sys.exit(f"a request was not answered: {errors.exceptions[0]!r}")
    json.dump(
        {
            "seconds": round(time.monotonic() - started, 3),
            "routes": {route: {"sent": tally.total(), **tally} for route, tally in sorted(tallies.items())},
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
