"""`info` and `version`: what this is, and what is there for it to work with."""

from __future__ import annotations

import logging
import platform
import sys
from importlib import import_module, metadata
from typing import Any, Final

import click

from .. import __version__
from ..inspector import Inspector
from ..records import VERSION
from ..stamping import users
from ..unheard import why_unheard
from . import NAME
from .commands import UnusableError
from .reading import as_json

__all__ = ["info", "version"]

_LOGGERS: Final = ("root", "asyncinspect", "asyncinspect.internal")


@click.command(
    epilog="""\b
Examples:
  asyncinspect version
  asyncinspect version --json
"""
)
@as_json
def version(machine: bool) -> None:
    """Print the version."""
    if machine:
        from .output import print_json

        print_json("version", {"asyncinspect_logging": __version__, "protocol": VERSION, "python": _python()})
    else:
        click.echo(f"{NAME} {__version__} (record protocol {VERSION}, Python {_python()})")


@click.command(
    epilog="""\b
Examples:
  asyncinspect info
  asyncinspect info --import shop.settings    # what the logging config of a program makes of spans
"""
)
@click.option("--import", "module", metavar="MODULE", help="Import this first: a module that configures logging.")
@as_json
def info(module: str | None, machine: bool) -> None:
    """Show versions, extras, and how logging is set up in this process."""
    if module is not None:
        sys.path.insert(0, "")
        try:
            import_module(module)
        except ImportError as error:
            raise UnusableError(f"--import {module!r}: {error}") from error
    found = {
        "asyncinspect_logging": __version__,
        "protocol": VERSION,
        "python": _python(),
        "platform": platform.platform(),
        "extras": _extras(),
        "loggers": [_logger(name) for name in _LOGGERS],
        "unheard": None if module is None else _unheard(),
    }
    from .output import print_json, print_table, say, title

    if machine:
        print_json("info", found)
        return
    say(f"{NAME} {__version__}, record protocol {VERSION}, Python {_python()} on {found['platform']}")
    title("Extras")
    print_table(
        ("extra", "installed", "package", "version"),
        [
            (extra, "yes" if all(packages.values()) else "no", package, number or "missing")
            for extra, packages in _extras().items()
            if extra != "full"
            for package, number in packages.items()
        ],
    )
    title("Logging in this process" + (f", with {module}" if module else ""))
    print_table(
        ("logger", "level", "handler", "handler level", "hears spans"),
        [
            (logger["name"], logger["level"], handler["class"], handler["level"], handler["spans"])
            for logger in (_logger(name) for name in _LOGGERS)
            for handler in logger["handlers"] or [{"class": "–", "level": "–", "spans": "–"}]
        ],
    )
    if found["unheard"]:
        say(f"Spans are not heard: {found['unheard']}")


def _unheard() -> str | None:
    """Why no inspector of this process hears of spans, or None."""
    found = [user.inspector for user in users() if hasattr(user, "inspector")]
    return why_unheard(found or [Inspector.default()]) or None


def _python() -> str:
    return platform.python_version()


def _extras() -> dict[str, dict[str, str | None]]:
    """The packages of each extra, with the version that is installed, or None."""
    try:
        # Looked up by name only: whether a version will do is pip's business.
        required = metadata.requires("asyncinspect-logging") or []
    except metadata.PackageNotFoundError:
        required = []
    found: dict[str, dict[str, str | None]] = {}
    for requirement in required:
        package, _, condition = requirement.partition(";")
        name = "".join(c if c.isalnum() or c in "-_." else " " for c in package).split()[0]
        if "extra" not in condition or name == "asyncinspect-logging":
            continue
        extra = condition.rpartition("==")[2].strip().strip("'\"")
        try:
            number: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            number = None
        found.setdefault(extra, {})[name] = number
    return found


def _logger(name: str) -> dict[str, Any]:
    logger = logging.getLogger() if name == "root" else logging.getLogger(name)
    handlers = [
        {
            "class": f"{type(handler).__module__}.{type(handler).__qualname__}",
            "level": logging.getLevelName(handler.level),
            "spans": _hears(logger, handler),
        }
        for handler in logger.handlers
    ]
    return {
        "name": name,
        "level": logging.getLevelName(logger.getEffectiveLevel()),
        "propagates": logger.propagate,
        "disabled": logger.disabled,
        "handlers": handlers,
    }


def _hears(logger: logging.Logger, handler: logging.Handler) -> str:
    """Which lifecycle records of the span logger reach a handler: all, none, or those from a level on."""
    if getattr(handler, "accepts_spans", False):
        return "all"
    level = max(logging.getLogger("asyncinspect").getEffectiveLevel(), handler.level)
    return "no" if level > logging.DEBUG else "begin and end" if level > 5 else "each step"
