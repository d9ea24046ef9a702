"""Where lines go over a socket: an address of TCP, or the path of a Unix socket."""

from __future__ import annotations

import os
import socket
from typing import Final, NamedTuple

from .config import parse_address
from .errors import ConfigError

__all__ = ["CONTROL", "MAX_LINE", "Endpoint", "parse_endpoint"]

#: The key of a line that says something about the connection: see docs/sidecar.md.
CONTROL: Final = "asyncinspect_socket"
#: Bytes of a line, with its newline.
MAX_LINE: Final = 1 << 20
#: What the kernel takes, with the zero at the end; 104 where it is least.
_MAX_PATH: Final = 103


class Endpoint(NamedTuple):
    """`path` of a Unix socket, or "" and then `host` and `port`."""

    path: str
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def connect(self, timeout: float) -> socket.socket:
        """A connected stream socket; `timeout` in seconds, for connecting and from then on. Raises OSError."""
        if not self.path:
            return socket.create_connection((self.host, self.port), timeout)
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(timeout)
            connected.connect(self.path)
        except BaseException:
            connected.close()
            raise
        return connected


def parse_endpoint(address: str | int | os.PathLike[str], setting: str = "address") -> Endpoint:
    """What an address means: "unix:PATH", anything with a "/" in it (a path), "host:port", ":port" or a port; without
    a host, 127.0.0.1. Raises ConfigError for anything else.
    """
    if isinstance(address, os.PathLike):
        address = f"unix:{os.fspath(address)}"
    if isinstance(address, str) and (address.startswith("unix:") or "/" in address):
        path = address.removeprefix("unix:")
        if not path or "\0" in path or len(os.fsencode(path)) > _MAX_PATH:
            raise ConfigError(
                f"{setting}={address!r} is not the path of a Unix socket, which has at most {_MAX_PATH} bytes; write "
                'for example "unix:/run/asyncinspect.sock"'
            )
        if not hasattr(socket, "AF_UNIX"):
            raise ConfigError(f'{setting}={address!r}: this system has no Unix sockets; write "127.0.0.1:9091"')
        return Endpoint(path)
    try:
        return Endpoint("", *parse_address(address, setting))
    except ConfigError as error:
        raise ConfigError(f'{error}, or "unix:/path/of/a.sock"') from None
