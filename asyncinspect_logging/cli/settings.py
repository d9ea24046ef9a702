"""`config`: the settings that a process started from here would have, and where each comes from."""

from __future__ import annotations

import logging
import os
from dataclasses import fields
from typing import Any, Final

import click

from ..config import Config
from ..errors import ConfigError
from . import FAILED
from .reading import as_json

__all__ = ["config"]

_PREFIX: Final = "ASYNC_INSPECT_"
_PRESETS: Final = {
    "production": Config.production,
    "development": Config.development,
    "debug": Config.debug,
}


class _Kept(logging.Handler):
    """The warnings of a call, which are about variables that name no setting."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@click.command(
    epilog="""\b
Examples:
  asyncinspect config
  ASYNC_INSPECT_PRESET=production ASYNC_INSPECT_MAX_TASKS=50 asyncinspect config
  asyncinspect config --presets

\b
Exit status: 1 where a variable cannot be used.
"""
)
@click.option("--presets", is_flag=True, help="Show the presets beside each other instead.")
@as_json
@click.pass_context
def config(ctx: click.Context, presets: bool, machine: bool) -> None:
    """Show the settings that the environment gives, and where each of them comes from."""
    from .output import print_json, print_table, warn

    if presets:
        _presets(machine)
        return
    rows, problems, warnings = _settings()
    if machine:
        print_json("config", {"settings": rows, "errors": problems, "warnings": warnings})
    else:
        print_table(
            ("setting", "value", "from"),
            [(row["setting"], _shown(row["value"]), row["source"]) for row in rows],
        )
        for text in [*problems, *warnings]:
            warn(text)
    if problems:
        ctx.exit(FAILED)


def _presets(machine: bool) -> None:
    from .output import print_json, print_table

    values = {name: make() for name, make in _PRESETS.items()}
    if machine:
        print_json("config", {"presets": {name: _values(found) for name, found in values.items()}})
    else:
        rows = [(name, *(_shown(getattr(v, name)) for v in values.values())) for name in _values(Config())]
        print_table(("setting", *values), [row for row in rows if len(set(row[1:])) > 1])


def _settings() -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Each setting with its value and source; what cannot be used; and what names no setting."""
    ours = {name: text for name, text in os.environ.items() if name.startswith(_PREFIX)}
    logger, kept = logging.getLogger("asyncinspect.internal"), _Kept()
    problems, good = [], {}
    logger.addHandler(kept)
    propagates, logger.propagate = logger.propagate, False
    try:
        # One by one, so that all that is wrong is told at once.
        for name, text in ours.items():
            try:
                Config.from_env({name: text})
            except ConfigError as error:
                problems.append(str(error).removeprefix(f"in the environment ({_PREFIX}…): "))
            else:
                good[name] = text
        settings, told = Config.from_env(good), kept.texts[: len(ours)]
    finally:
        logger.removeHandler(kept)
        logger.propagate = propagates
    preset = good.get(_PREFIX + "PRESET", "").strip().lower()
    rows = []
    for name, value in _values(settings).items():
        variable = _PREFIX + name.upper()
        if good.get(variable, "").strip():
            source = variable
        elif preset and value != getattr(Config(), name):
            source = f"preset {preset}"
        else:
            source = "default"
        rows.append({"setting": name, "value": value, "source": source})
    return rows, problems, list(dict.fromkeys(told))


def _values(settings: Config) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in fields(Config)}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
