"""Settings of an inspector."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Final

from .errors import ConfigError
from .fields import FieldPolicy
from .redaction import REDACT

__all__ = ["SERVER_VARIABLES", "Config", "check_port", "parse_address"]

_PREFIX = "ASYNC_INSPECT_"
_DEFAULT_HOST: Final = "127.0.0.1"
#: Seconds, some thirty years; and the rarest sampling. More is a mistake.
_LONGEST = 1e9
_RAREST = 10**9
#: Settings that may be None: no limit, or never.
_LIMITS: Final = ("max_tasks", "max_events", "max_names", "many_self_wakes")
_DELAYS: Final = ("never_yielded", "leaked_after", "lost_waker_after")
#: Ends of the variables ASYNC_INSPECT_METRICS_… that are options of the server and not of an inspector.
SERVER_VARIABLES: Final = (
    "CERTFILE",
    "KEYFILE",
    "KEY_PASSWORD_FILE",
    "CLIENT_CAFILE",
    "BEARER_TOKEN",
    "BEARER_TOKEN_FILE",
    "BASIC_AUTH",
    "BASIC_AUTH_FILE",
    "ALLOWED_HOSTS",
    "READY_LAG",
)
_log = logging.getLogger("asyncinspect.internal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What an inspector keeps. Nothing here changes a counter: metrics are never sampled, and limits only thin out
    details, each loss being counted in `async_inspect_dropped_total`.

    sampling_rate: keep the details of 1 in so many traces, as whole traces (1 keeps all). A fraction such as 0.01 is
        read as 1 in 100. Failed tasks and those slower than `slow_task` are always kept.
    max_tasks: finished tasks retained. None: no limit.
    max_events: timeline entries retained. None: no limit.
    max_names: span names counted apart; later ones count under "_other_". None: no limit.
    track_polls, track_wakes: keep each poll and wake in the timelines (they are counted in any case).
    capture_fields: keep the spans' fields.
    max_field_length: characters of one field's text.
    redact: parts of field names, in any case, whose values never leave the span.
    slow_poll: seconds from which one step of a coroutine is a long one, and a loop that does not come back is blocked.
    never_yielded: seconds from which a task that runs in a single step has held the event loop too long. It and the
        next three settle when a lint is told; None: never.
    many_self_wakes: wakes of a task by itself from which they are too many if they are more than half of its wakes.
    leaked_after: seconds for which nobody has referred to a task whose parent is over.
    lost_waker_after: seconds for which a task has waited for a future that nobody can complete.
    slow_task: seconds from which a task is slow.
    metrics_port: where `start_server` of an exporter of this inspector listens unless it is told otherwise: a TCP port,
        0 for any free one, or "host:port". Without a host it is 127.0.0.1.
    """

    sampling_rate: float = 1
    max_tasks: int | None = 1000
    max_events: int | None = 10_000
    max_names: int | None = 1000
    track_polls: bool = True
    track_wakes: bool = True
    capture_fields: bool = True
    max_field_length: int = 1024
    redact: tuple[str, ...] = REDACT
    slow_poll: float = 0.1
    never_yielded: float | None = 1.0
    many_self_wakes: int | None = 100
    leaked_after: float | None = 5.0
    lost_waker_after: float | None = 5.0
    slow_task: float = 1.0
    metrics_port: int | str = 9090

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the setting, its value and the fix."""
        object.__setattr__(self, "sampling_rate", _one_in(self.sampling_rate))
        for name in _LIMITS:
            _check_limit(name, getattr(self, name), optional=True)
        _check_limit("max_field_length", self.max_field_length, optional=False)
        for name in ("slow_poll", "slow_task", *_DELAYS):
            value = getattr(self, name)
            if value is None and name in _DELAYS:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST:
                never = ", or None for never" if name in _DELAYS else ""
                raise ConfigError(
                    f"{name}={value!r} is not a number of seconds above 0; write for example {name}=0.1{never}"
                )
        for name in ("track_polls", "track_wakes", "capture_fields"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} is not a truth value; write True or False")
        redact: Any = self.redact
        if isinstance(redact, Iterable) and not isinstance(redact, str):
            redact = tuple(redact)
        if not isinstance(redact, tuple) or not all(isinstance(part, str) and part for part in redact):
            raise ConfigError(f'redact={self.redact!r} is not a tuple of names; write for example redact=("password",)')
        object.__setattr__(self, "redact", redact)
        parse_address(self.metrics_port, "metrics_port")

    @classmethod
    def production(cls) -> Config:
        """Details of 1 in 100 traces, 1,000 events, 500 tasks."""
        return cls(sampling_rate=100, max_events=1000, max_tasks=500)

    @classmethod
    def development(cls) -> Config:
        """Everything, 10,000 events, 1,000 tasks."""
        return cls(sampling_rate=1, max_events=10_000, max_tasks=1000)

    @classmethod
    def debug(cls) -> Config:
        """Everything, without limits on tasks and events: memory grows with the number of tasks."""
        return cls(sampling_rate=1, max_events=None, max_tasks=None)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Config:
        """The preset named by ASYNC_INSPECT_PRESET (production, development or debug; else the defaults) with each
        setting that ASYNC_INSPECT_<SETTING> gives: numbers as they are, `none` for no limit, yes/no, and a list
        with commas for REDACT. An empty variable is as good as none.

        Raises ConfigError for a value that cannot be read. A variable with our prefix that names no setting is
        logged, since it is likely a misspelt one.
        """
        env = os.environ if environ is None else environ
        preset = env.get(_PREFIX + "PRESET", "").strip().lower()
        presets: dict[str, Callable[[], Config]] = {
            "": cls,
            "production": cls.production,
            "development": cls.development,
            "debug": cls.debug,
        }
        if preset not in presets:
            raise ConfigError(f"{_PREFIX}PRESET={preset!r} is no preset; write production, development or debug")
        known = {_PREFIX + f.name.upper(): f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        others = {f"{_PREFIX}PRESET", *(f"{_PREFIX}METRICS_{name}" for name in SERVER_VARIABLES)}
        for variable, text in env.items():
            text = text.strip()
            if variable in known:
                if text:
                    values[known[variable]] = _read(variable, known[variable], text)
            elif variable.startswith(_PREFIX) and variable not in others:
                near = get_close_matches(variable.removeprefix(_PREFIX).lower(), known.values(), 1)
                hint = (
                    f"did you mean {_PREFIX}{near[0].upper()}?"
                    if near
                    else f"the settings are {', '.join(sorted(known))}"
                )
                _log.warning("%s names no setting; %s", variable, hint)
        try:
            return replace(presets[preset](), **values)
        except ConfigError as error:
            raise ConfigError(f"in the environment ({_PREFIX}…): {error}") from None

    def field_policy(self) -> FieldPolicy:
        return FieldPolicy(capture=self.capture_fields, max_length=self.max_field_length, redact=self.redact)


def check_port(port: object, setting: str = "port") -> int:
    """A TCP port from 0 (any free one) to 65535. Raises ConfigError for anything else."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ConfigError(f"{setting}={port!r} is not a TCP port; write a number from 0 (any free port) to 65535")
    return port


def parse_address(address: str | int, setting: str = "address") -> tuple[str, int]:
    """Host and port of "host:port", "[ipv6]:port", ":port", "port" or a port number; without a host, 127.0.0.1.

    Raises ConfigError for anything else.
    """
    if isinstance(address, int):
        return _DEFAULT_HOST, check_port(address, setting)
    found = isinstance(address, str) and re.fullmatch(r"(?:(\[[^][]*\]|[^][:]*):)?([0-9]{1,5})", address.strip())
    if found and int(found[2]) <= 65535:
        return (found[1] or "").strip("[]") or _DEFAULT_HOST, int(found[2])
    raise ConfigError(
        f'{setting}={address!r} is not an address to listen on; write "host:port" such as "127.0.0.1:9090", '
        '"[::1]:9090", or a port from 0 (any free port) to 65535'
    )


def _one_in(rate: float) -> int:
    if isinstance(rate, int | float) and not isinstance(rate, bool):
        if 1 / _RAREST <= rate < 1:
            return round(1 / rate)
        if 1 <= rate <= _RAREST and rate == int(rate):
            return int(rate)
    raise ConfigError(
        f"sampling_rate={rate!r} is neither a whole number N (1 in N traces) nor a fraction between 0 and 1; "
        "write for example sampling_rate=100 or 0.01"
    )


def _check_limit(name: str, value: Any, *, optional: bool) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        none = ", or None for no limit" if optional else ""
        raise ConfigError(f"{name}={value!r} is not a limit; write a whole number of at least 1{none}")


def _read(variable: str, name: str, text: str) -> Any:
    default = getattr(Config(), name)
    lowered = text.lower()
    if isinstance(default, bool):
        if lowered in ("1", "true", "yes", "on"):
            return True
        if lowered in ("0", "false", "no", "off"):
            return False
        raise ConfigError(f"{variable}={text!r} is not a truth value; write 1 or 0")
    if isinstance(default, tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if name == "metrics_port":
        parse_address(text, variable)
        return int(text) if text.isdecimal() else text
    if lowered == "none" and name in _LIMITS + _DELAYS:
        return None
    try:
        return float(text) if "." in text or "e" in lowered else int(text)
    except ValueError:
        raise ConfigError(f"{variable}={text!r} is not a number") from None
