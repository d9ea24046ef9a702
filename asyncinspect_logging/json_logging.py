"""A log file that can be replayed: JSON lines with what spans said, as a fragment for `logging.config.dictConfig`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Final

from .errors import ConfigError, MissingExtraError
from .line_handlers import LineHandler, SizedLineHandler, TimedLineHandler
from .records import TRACE

__all__ = ["json_logging"]

_NAME: Final = "asyncinspect_json"
_LOGGER: Final = "asyncinspect"
_LEVELS: Final = {"DEBUG": logging.DEBUG, "TRACE": TRACE}
#: What `logging.handlers.TimedRotatingFileHandler` takes, but for the days of the week.
_EVERY: Final = ("S", "M", "H", "D", "MIDNIGHT", *(f"W{day}" for day in range(7)))


def json_logging(
    path: str | os.PathLike[str],
    *,
    level: int | str = "DEBUG",
    others: bool = False,
    max_bytes: int | None = None,
    every: str | None = None,
    backups: int = 5,
    propagate: bool = True,
    into: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A config for `logging.config.dictConfig` with a formatter, a handler and the span logger at `level`, so that what
    spans say goes to a file of JSON lines. Nothing is opened before the first record.

    path: the file; `{pid}` in it stands for the number of the process, which makes a file for each, after a fork too.
        Without it several processes may write the same file, each line in one piece.
    level: "DEBUG" for begin, fields and end of spans, which is all that counters need; "TRACE" (5) for each step, too.
    others: the root logger's records go to the file as well, and become lines of timelines when it is replayed.
    max_bytes: begin a new file at this size, which the last line may pass.
    every: or at a time, as the `when` of `TimedRotatingFileHandler` says it ("H", "D", "midnight", …), in UTC.
    backups: old files that are kept. To rotate is not for a file that several processes write: do that from outside.
    propagate: whether records go on to the handlers of the root logger. An `AsyncInspectHandler` there needs that.
    into: an existing config, into a copy of which all this is merged.

    Raises ConfigError for a value that cannot be used, and MissingExtraError without python-json-logger.
    """
    if find_spec("pythonjsonlogger") is None:
        raise MissingExtraError("json_logging", "json")
    handler = _handler(os.fspath(path), max_bytes, every, backups)
    config = _copy(into)
    _add(config, "formatters", _formatter())
    _add(config, "handlers", handler | {"formatter": _NAME})
    spans = config["loggers"].setdefault(_LOGGER, {})
    spans["level"] = _level(level)
    spans["propagate"] = propagate
    if others:
        root = config.setdefault("root", {})
        root.setdefault("level", "INFO")
        root["handlers"] = [*root.get("handlers", ()), _NAME]
    if not (others and propagate):
        spans["handlers"] = [*spans.get("handlers", ()), _NAME]
    return config


def _formatter() -> dict[str, Any]:
    # What the format does not name and the logging module does not set, such as our key, it adds by itself.
    return {
        "()": "pythonjsonlogger.json.JsonFormatter",
        "fmt": "%(levelname)s %(name)s %(message)s",
        "timestamp": True,
    }


def _handler(path: str | bytes, max_bytes: int | None, every: str | None, backups: int) -> dict[str, Any]:
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(f'path={path!r} is not the path of a file; write for example "logs/service-{{pid}}.jsonl"')
    handler: dict[str, Any] = {"class": _path_of(LineHandler), "filename": path}
    if max_bytes is None and every is None:
        return handler
    if max_bytes is not None and every is not None:
        raise ConfigError(
            f"max_bytes={max_bytes!r} and every={every!r}: a file is rotated by one of them; leave one out"
        )
    if not _is_number(backups, 1):
        raise ConfigError(f"backups={backups!r} is not a number of files; write for example backups=5")
    handler["backupCount"] = backups
    if max_bytes is not None:
        if not _is_number(max_bytes, 1):
            raise ConfigError(f"max_bytes={max_bytes!r} is not a size; write for example max_bytes=100_000_000")
        return handler | {"class": _path_of(SizedLineHandler), "maxBytes": max_bytes}
    if not isinstance(every, str) or every.upper() not in _EVERY:
        raise ConfigError(
            f'every={every!r} is not a time to rotate at; write "midnight", or one of {", ".join(_EVERY)}'
        )
    return handler | {"class": _path_of(TimedLineHandler), "when": every, "utc": True}


def _path_of(handler: type[logging.Handler]) -> str:
    return f"{handler.__module__}.{handler.__qualname__}"


def _is_number(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _level(level: int | str) -> int:
    number = _LEVELS.get(level.upper()) if isinstance(level, str) else level
    if number is None or not _is_number(number, 1) or number > logging.DEBUG:
        raise ConfigError(
            f'level={level!r} lets no span into the file; write "DEBUG" for begin and end, or "TRACE" for each step'
        )
    return number


def _copy(into: Mapping[str, Any] | None) -> dict[str, Any]:
    """The config to add to, as far as it is going to be changed."""
    if into is None:
        return {"version": 1, "disable_existing_loggers": False, "formatters": {}, "handlers": {}, "loggers": {}}
    if not isinstance(into, Mapping) or into.get("version") != 1:
        raise ConfigError('into= is not a config for dictConfig, which has "version": 1')
    if into.get("incremental"):
        raise ConfigError("into= has incremental=True, with which dictConfig adds no handler; leave that out")
    config = dict(into)
    for part in ("formatters", "handlers", "loggers", "root"):
        if part == "root" and part not in config:
            continue
        value = config.get(part) or {}
        if not isinstance(value, Mapping):
            raise ConfigError(f"into[{part!r}]={value!r} is not a mapping")
        config[part] = dict(value)
    if _LOGGER in config["loggers"]:
        config["loggers"][_LOGGER] = dict(config["loggers"][_LOGGER])
    return config


def _add(config: dict[str, Any], part: str, value: dict[str, Any]) -> None:
    if _NAME in config[part]:
        raise ConfigError(f"into[{part!r}] has {_NAME!r} already; merge json_logging() into a config once")
    config[part][_NAME] = value
