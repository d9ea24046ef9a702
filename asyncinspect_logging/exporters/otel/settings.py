"""Where to, how and how often: arguments, then the OTEL_* environment variables, then defaults.

Variables and their defaults are those of the OpenTelemetry specification, "Environment Variable Specification" and
"OpenTelemetry Protocol Exporter"; timeouts are in seconds, as in the Python SDK. Each error names the setting, its
value and the fix. A variable that cannot be used is an error, too: nobody wants to look for spans at the wrong place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from math import isfinite, isnan
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args
from urllib.parse import urlsplit

from opentelemetry.util.re import parse_env_headers

from ...errors import ConfigError
from .limits import Limits

__all__ = [
    "Batching",
    "Compression",
    "Protocol",
    "Signal",
    "Wire",
    "batching",
    "is_disabled",
    "patience",
    "span_limits",
    "wire",
]

Protocol = Literal["grpc", "http/protobuf"]
Compression = Literal["none", "gzip"]
Signal = Literal["traces", "metrics"]

_PREFIX: Final = "OTEL_EXPORTER_OTLP_"
_GRPC_PORT, _HTTP_PORT, _HTTPS_PORT = 4317, 4318, 443
#: Seconds that stand for any longer time, which locks cannot wait for.
_LONGEST: Final = 1e6
_HEADER: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]*")
_METADATA: Final = re.compile(r"[0-9a-z_.\-]+")
_T = TypeVar("_T")


class Wire(NamedTuple):
    """How to reach a collector. `url`: of HTTP, complete; of gRPC, host and port. Times in seconds."""

    protocol: Protocol
    url: str
    headers: tuple[tuple[str, str], ...]
    timeout: float
    compression: Compression
    insecure: bool
    certificate: str | None
    client_key: str | None
    client_certificate: str | None


class Batching(NamedTuple):
    """`interval`: seconds. `batch`: tasks in a request. `queue`: tasks that wait."""

    interval: float
    batch: int
    queue: int


def is_disabled() -> bool:
    return (_variable("OTEL_SDK_DISABLED") or "").lower() == "true"


def _variable(name: str) -> str | None:
    """An empty one is as good as none, says the specification."""
    return os.environ.get(name, "").strip() or None


def _given(option: str, argument: _T | None, *names: str, read: Callable[[str], _T]) -> tuple[str, _T | None]:
    """What the argument says, else the first of the variables; with the name of where it was said."""
    if argument is not None:
        return option, argument
    for name in names:
        text = _variable(name)
        if text is not None:
            try:
                return name, read(text)
            except ValueError:
                raise ConfigError(f"{name}={text!r} is not a number; write for example {name}=10") from None
    return option, None


def wire(
    signal: Signal,
    *,
    endpoint: str | None = None,
    protocol: str | None = None,
    headers: Mapping[str, str] | str | None = None,
    timeout: float | None = None,
    compression: str | None = None,
    insecure: bool | None = None,
    certificate: str | os.PathLike[str] | None = None,
    client_key: str | os.PathLike[str] | None = None,
    client_certificate: str | os.PathLike[str] | None = None,
) -> Wire:
    """Raises ConfigError for a setting that cannot be used."""

    def given(what: str, option: str, argument: Any, read: Callable[[str], Any] = str) -> tuple[str, Any]:
        return _given(option, argument, f"{_PREFIX}{signal.upper()}_{what}", f"{_PREFIX}{what}", read=read)

    place, url = given("ENDPOINT", "endpoint", endpoint)
    name, chosen = given("PROTOCOL", "protocol", protocol)
    if chosen is None:
        chosen = "http/protobuf" if _looks_like_http(url) else "grpc"
    elif chosen not in get_args(Protocol):
        raise ConfigError(f'{name}={chosen!r} is not a protocol; write "grpc" or "http/protobuf"')
    name, unsafe = given("INSECURE", "insecure", insecure, lambda text: text.lower() == "true")
    if not isinstance(unsafe, bool | None):
        raise ConfigError(f"{name}={unsafe!r} is not a truth value; write True for no TLS")
    # A base address gets the path of the signal; one for the signal, or one with a path in an argument, has its own.
    whole = place == f"{_PREFIX}{signal.upper()}_ENDPOINT"
    address, unsafe = _address(place, url, chosen, signal, unsafe, whole=whole)
    name, seconds = given("TIMEOUT", "timeout", timeout, float)
    timeout = 10.0 if seconds is None else _seconds(name, seconds)
    name, packing = given("COMPRESSION", "compression", compression, str.lower)
    if packing is not None and packing not in get_args(Compression):
        raise ConfigError(f'{name}={packing!r} is not a compression; write "gzip" or "none"')
    name, head = given("HEADERS", "headers", headers)
    files = [
        given(what, option, argument)
        for what, option, argument in (
            ("CERTIFICATE", "certificate", certificate),
            ("CLIENT_KEY", "client_key", client_key),
            ("CLIENT_CERTIFICATE", "client_certificate", client_certificate),
        )
    ]
    key, own = files[1:]
    if key[1] is not None and own[1] is None:
        raise ConfigError(f"{key[0]}={key[1]!r} is of no use without client_certificate; give both")
    if chosen == "grpc" and own[1] is not None and key[1] is None:
        # gRPC would end the process.
        raise ConfigError(f"{own[0]}={own[1]!r} is of no use to gRPC without client_key; give both")
    return Wire(
        chosen,
        address,
        _headers(name, head, chosen),
        timeout,
        packing or "none",
        unsafe,
        *(_file(*file) for file in files),
    )


def _looks_like_http(url: object) -> bool:
    if not isinstance(url, str) or "://" not in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.port == _HTTP_PORT or parts.path.strip("/") != ""
    except ValueError:
        return False


def _address(
    place: str, url: str | None, protocol: str, signal: Signal, insecure: bool | None, *, whole: bool
) -> tuple[str, bool]:
    """The address to send to, and whether it is without TLS."""
    port = _GRPC_PORT if protocol == "grpc" else _HTTP_PORT
    if url is None:
        url = f"{'https' if insecure is False else 'http'}://localhost:{port}"
    fix = f'write for example {place}="http://localhost:{port}"'
    if not isinstance(url, str) or any(character.isspace() for character in url):
        raise ConfigError(f"{place}={url!r} is not an address; {fix}")
    text = url if "://" in url else f"{'http' if insecure else 'https'}://{url}"
    try:
        parts = urlsplit(text)
        host, at = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{place}={url!r} is not an address ({error}); {fix}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"{place}={url!r} is not an address with http or https and a host; {fix}")
    if parts.username is not None:
        raise ConfigError(f"{place} has a user name in it; put credentials into headers")
    without_tls = parts.scheme == "http" if insecure is None or parts.scheme == "https" else insecure
    if protocol == "grpc":
        if parts.path.strip("/"):
            raise ConfigError(
                f'{place}={url!r} has a path, which gRPC has no use for; {fix}, or protocol="http/protobuf"'
            )
        # As the SDK's exporter has it: what is https and names no port is at that of https.
        at = at or (_HTTPS_PORT if parts.scheme == "https" else port)
        return f"[{host}]:{at}" if ":" in host else f"{host}:{at}", without_tls
    path = parts.path
    if not whole and not path.rstrip("/").endswith(f"/v1/{signal}"):
        path = f"{path.rstrip('/')}/v1/{signal}"
    return (
        f"{'http' if without_tls else 'https'}://{parts.netloc}{path or '/'}{'?' + parts.query if parts.query else ''}",
        without_tls,
    )


def _headers(name: str, value: Any, protocol: str) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        value = parse_env_headers(value, liberal=True)
    if not isinstance(value, Mapping):
        raise ConfigError(f'{name} is not a mapping; write for example headers={{"x-api-key": "…"}}')
    found = []
    for key, text in value.items():
        if not isinstance(key, str) or not _HEADER.fullmatch(key):
            raise ConfigError(f"{name} has {key!r}, which is not the name of a header; write for example 'x-api-key'")
        if not isinstance(text, str) or not _HEADER_VALUE.fullmatch(text):
            # Not shown: it is a secret as a rule.
            raise ConfigError(f"the value of {key!r} in {name} is not printable ASCII text; quote what is not")
        if protocol == "grpc":
            key = key.lower()
            if not _METADATA.fullmatch(key) or key.endswith("-bin"):
                raise ConfigError(f"{name} has {key!r}, which gRPC cannot send; use letters, digits, '-', '_' and '.'")
        found.append((key, text))
    return tuple(found)


def _file(name: str, value: Any) -> str | None:
    if value is None:
        return None
    try:
        path = os.fspath(value)
        with Path(path).open("rb"):
            return str(path)
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{name}={value!r} cannot be read ({error}); give the path of a PEM file") from None


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value <= 0:
        raise ConfigError(f"{name}={value!r} is not a number of seconds above 0; write for example {name}=10.0")
    return float(value)


def patience(timeout: float) -> float:
    """Seconds to wait at most, 0 for not at all. Raises ConfigError for what is no number."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or isnan(timeout):
        raise ConfigError(f"timeout={timeout!r} is not a number of seconds; write for example timeout=5.0")
    return min(max(0.0, timeout), _LONGEST)


def batching(interval: float | None = None, batch_size: int | None = None, queue_size: int | None = None) -> Batching:
    """Raises ConfigError for what is no number of seconds, or of tasks."""
    name, pause = _given("interval", interval, "OTEL_BSP_SCHEDULE_DELAY", read=lambda text: float(text) / 1e3)
    pause = 5.0 if pause is None else _seconds(name, pause)
    sizes = []
    for option, argument, variable, default in (
        ("batch_size", batch_size, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 2048),
        ("queue_size", queue_size, "OTEL_BSP_MAX_QUEUE_SIZE", 50_000),
    ):
        name, size = _given(option, argument, variable, read=int)
        if size is None:
            size = default
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name}={size!r} is not a number of tasks above 0; write for example {name}={default}")
        sizes.append(size)
    if sizes[0] > sizes[1]:
        sizes[0] = sizes[1]
    return Batching(pause, *sizes)


def span_limits() -> Limits:
    """The limits that the environment sets."""

    def limit(*names: str, default: int | None) -> int | None:
        name, found = _given("", None, *names, read=int)
        if found is not None and found < 0:
            raise ConfigError(f"{name}={found} is below 0; write for example {name}=128")
        return default if found is None else found

    return Limits(
        attributes=limit("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT", default=128),
        events=limit("OTEL_SPAN_EVENT_COUNT_LIMIT", default=128),
        links=limit("OTEL_SPAN_LINK_COUNT_LIMIT", default=128),
        length=limit("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", default=None),
        event_attributes=limit("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT", default=128),
    )
