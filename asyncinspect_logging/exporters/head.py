"""The head of an HTTP request, read strictly: what two programs could read in two ways is refused.

A server that answers from behind others must not take for the end of a request what they took for its middle (RFC 9112,
section 11). So a line ends with CRLF alone, a name touches its colon, no line is folded, and a length is a number.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import unquote

__all__ = ["END", "MAX_HEAD", "Refused", "Request", "parse_head"]

END: Final = b"\r\n\r\n"
#: Bytes of a head. Prometheus sends some 400; a token of 8 kB fits.
MAX_HEAD: Final = 16 * 1024
_MAX_HEADERS: Final = 100

_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}) ([!-~]+) HTTP/([0-9])\.([0-9])")
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_ABSOLUTE: Final = re.compile(r"https?://([^/?#]*)([^?#]*)", re.IGNORECASE)
_LENGTH: Final = re.compile("[0-9]{1,18}")


class Refused(Exception):
    """A request that is not answered but by this status, and with the end of its connection."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class Request(NamedTuple):
    """`path` is decoded, `host` as it came, "" where none is named. `headers` by name in small letters, several of one
    name joined by commas. `keep`: whether the connection may serve another request after it.
    """

    method: str
    path: str
    query: str
    host: str
    headers: dict[str, str]
    keep: bool


def parse_head(head: bytes) -> Request:
    """The request of a head without the empty line at its end. Raises Refused for what is not to be answered."""
    first, *lines = head.split(b"\r\n")
    found = _LINE.fullmatch(first)
    if found is None or len(head) > MAX_HEAD:
        raise Refused(HTTPStatus.BAD_REQUEST)
    if found[3] != b"1":
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if len(lines) > _MAX_HEADERS:
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    headers: dict[str, list[str]] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise Refused(HTTPStatus.BAD_REQUEST)
        headers.setdefault(header[1].decode("ascii").lower(), []).append(header[2].decode("latin-1").rstrip(" \t"))
    hosts = headers.get("host", [])
    if len(hosts) > 1:
        raise Refused(HTTPStatus.BAD_REQUEST)
    joined = {name: ",".join(values) for name, values in headers.items()}
    # A body that nobody reads would be taken for the next request.
    keep = found[4] != b"0" and not _has_body(headers) and "close" not in joined.get("connection", "").lower()
    target = found[2].decode("ascii")
    host, path = hosts[0] if hosts else "", target.partition("?")[0]
    absolute = _ABSOLUTE.match(target)
    if absolute is not None:
        # Which is what counts where both are given.
        host, path = absolute[1], absolute[2] or "/"
    query = target.partition("?")[2]
    return Request(found[1].decode("ascii"), unquote(path.partition("#")[0]), query, host, joined, keep)


def _has_body(headers: dict[str, list[str]]) -> bool:
    lengths = headers.get("content-length")
    if lengths is not None and (
        "transfer-encoding" in headers or len(set(lengths)) > 1 or not _LENGTH.fullmatch(lengths[0])
    ):
        raise Refused(HTTPStatus.BAD_REQUEST)
    return "transfer-encoding" in headers or (lengths is not None and int(lengths[0]) > 0)
