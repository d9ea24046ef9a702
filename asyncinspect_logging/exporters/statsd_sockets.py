"""Where StatsD packets go: UDP, or a Unix socket of datagrams or of a stream, connected anew after every trouble."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any, Final, NamedTuple

from ..config import parse_address
from ..errors import ConfigError

__all__ = ["Target", "parse_target"]

#: What goes through an Ethernet frame of 1500 bytes, and what the Datadog agent takes through a Unix socket.
_UDP_PACKET: Final = 1432
_UNIX_PACKET: Final = 8192
#: What the kernel takes for a path, with the zero at the end; 104 where it is least.
_MAX_PATH: Final = 103
_SCHEMES: Final = {"unix": None, "unixgram": socket.SOCK_DGRAM, "unixstream": socket.SOCK_STREAM}


class Target(NamedTuple):
    """A host and a port of UDP; or the path of a Unix socket, of the kind given (None: whichever it is)."""

    path: str
    kind: socket.SocketKind | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def packet(self) -> int:
        """Bytes of a packet, unless somebody says otherwise."""
        return _UNIX_PACKET if self.path else _UDP_PACKET


def parse_target(address: object) -> Target:
    """What an address means: "host:port" or "[ipv6]:port" (UDP), "unix:///path", "unixgram:///path" or
    "unixstream:///path". Raises ConfigError for anything else.
    """
    fix = 'write "127.0.0.1:8125", or "unix:///run/datadog/dsd.socket"'
    if not isinstance(address, str):
        raise ConfigError(f"address={address!r} is not an address; {fix}")
    scheme, colon, path = address.partition("://")
    if colon:
        if scheme not in _SCHEMES or not path.startswith("/") or "\0" in path or len(os.fsencode(path)) > _MAX_PATH:
            raise ConfigError(
                f"address={address!r} is not the path of a Unix socket, which begins with / and has at most {_MAX_PATH}"
                f" bytes; {fix}"
            )
        if not hasattr(socket, "AF_UNIX"):
            raise ConfigError(f'address={address!r}: this system has no Unix sockets; write "127.0.0.1:8125"')
        return Target(path, _SCHEMES[scheme])
    try:
        host, port = parse_address(address)
    except ConfigError:
        raise ConfigError(f"address={address!r} is not an address; {fix}") from None
    if not port:
        raise ConfigError(f"address={address!r} has no port to send to; {fix}")
    return Target("", None, host, port)


class Sender:
    """Sends packets of lines to a target. `timeout` (seconds) is what one may take. `framed`: on a stream, each packet
    follows its length, as DogStatsD has it; else each line ends with a newline.
    """

    def __init__(self, target: Target, timeout: float, *, framed: bool) -> None:
        self._target = target
        self._timeout = timeout
        self._framed = framed
        self._socket: socket.socket | None = None

    def send(self, packet: bytes) -> None:
        """Raises OSError where the packet was not taken: by whoever listens on this machine, or else by the network."""
        try:
            connected = self._socket or self._connect()
            if connected.type == socket.SOCK_STREAM:
                connected.sendall(struct.pack("<I", len(packet)) + packet if self._framed else packet + b"\n")
                return
            if connected.family != socket.AF_UNIX:
                # Of a packet before, which another machine refused: it says nothing of this one.
                connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            connected.send(packet)
            if connected.family != socket.AF_UNIX:
                # On this machine the refusal is there by now.
                refused = connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if refused:
                    raise OSError(refused, os.strerror(refused))
        except OSError:
            self.close()
            raise

    def _connect(self) -> socket.socket:
        target = self._target
        if not target.path:
            family, kind, protocol, _, place = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)[0]
            self._socket = _connected(socket.socket(family, kind, protocol), place, self._timeout)
            return self._socket
        for kind in (target.kind,) if target.kind else (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            try:
                self._socket = _connected(socket.socket(socket.AF_UNIX, kind), target.path, self._timeout)
                return self._socket
            except OSError as error:
                if error.errno != errno.EPROTOTYPE or target.kind:
                    raise
        raise OSError(errno.EPROTOTYPE, "neither a socket of datagrams nor of a stream", target.path)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _connected(new: socket.socket, place: Any, timeout: float) -> socket.socket:
    try:
        new.settimeout(timeout)
        new.connect(place)
    except BaseException:
        new.close()
        raise
    return new
