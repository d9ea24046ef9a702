"""The commands, each imported when it is called, and what is said where one of them cannot go on."""

from __future__ import annotations

import os
import traceback
from importlib import import_module
from typing import IO, Any, Final

import click

from .. import __version__
from ..errors import ConfigError, MissingExtraError
from . import BROKEN_PIPE, FAILED, INTERNAL, INTERRUPTED, NAME, UNUSABLE, EndedError
from .text import clean

__all__ = ["StrictError", "UnusableError", "commands"]

#: Where each command is, in the order of `--help`.
_MODULES: Final = {
    "replay": "replay",
    "serve": "serve",
    "export": "export",
    "stats": "stats",
    "graph": "graph",
    "diff": "diff",
    "check": "check",
    "rules": "rules",
    "backtest": "backtest",
    "dashboard": "dashboard",
    "info": "about",
    "config": "settings",
    "version": "about",
    "demo": "demo",
}


class UnusableError(click.ClickException):
    """The command cannot do what it was asked to: one line says why, without a traceback."""

    exit_code = UNUSABLE

    def show(self, file: IO[Any] | None = None) -> None:
        # The message may quote a log.
        text = clean(self.format_message(), keep="\n", limit=2000)
        click.echo(f"{NAME}: {text}", file=file, err=True)


class StrictError(UnusableError):
    """A log has a broken line, and `--strict` does not bear that."""

    exit_code = FAILED


class InternalError(UnusableError):
    """Something is wrong with the command itself, and not with what it was given."""

    exit_code = INTERNAL

    def __init__(self, error: Exception) -> None:
        *_, frame = traceback.extract_tb(error.__traceback__) or [None]
        at = "" if frame is None else f" at {os.path.basename(frame.filename)}:{frame.lineno}"
        super().__init__(
            f"internal error{at}: {type(error).__name__}: {str(error)[:500]}; please report it, with what "
            f"`{NAME} --debug …` prints ({NAME} {__version__})"
        )


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        command = getattr(import_module(f".{_MODULES[name]}", __package__), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise EndedError(INTERRUPTED) from error
        except (ConfigError, MissingExtraError) as error:
            raise UnusableError(str(error)) from error
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise EndedError(BROKEN_PIPE) from error
            raise UnusableError(_said(error)) from error
        except ValueError as error:
            if _is_strict(error):
                raise StrictError(str(error)) from error
            if _is_about_input(error):
                raise UnusableError(str(error)) from error
            raise _internal(ctx, error) from error
        except (click.ClickException, click.exceptions.Exit, click.Abort, EndedError):
            raise
        except Exception as error:
            raise _internal(ctx, error) from error


def _internal(ctx: click.Context, error: Exception) -> InternalError:
    if ctx.params.get("debug"):
        text = "".join(traceback.format_exception(error))
        click.echo(clean(text, keep="\n", limit=len(text)), err=True)
    return InternalError(error)


def _is_strict(error: ValueError) -> bool:
    from ..analysis.replay import ReplayError

    return isinstance(error, ReplayError)


def _is_about_input(error: ValueError) -> bool:
    from ..analysis.files import LogFileError
    from ..analysis.loading import LoadError
    from ..analysis.pages import PageError
    from ..exporters.json_file import FormatError

    return isinstance(error, LogFileError | LoadError | PageError | FormatError)


def _said(error: OSError) -> str:
    if error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return f"input or output: {error.strerror}" if error.strerror else str(error)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Examples:
  asyncinspect replay service.jsonl            what was on /metrics, from a log
  asyncinspect stats http://127.0.0.1:9090     the same of a running process
  asyncinspect diff before.jsonl after.jsonl --fail-on "p99 > 1.2x"
  asyncinspect demo                            something to look at

\b
Exit status: 0 all is well; 1 a condition failed, or --strict found something;
2 the command, or what it was given, cannot be used; 70 an error of its own;
130 after Ctrl-C.
""",
)
@click.option("--debug", is_flag=True, help="Print where an error of the command itself comes from.")
def commands(debug: bool) -> None:
    """See what asyncio programs did, from their logs, and do, from their metrics.

    LOG is a file of JSON lines, a pattern ("logs/*.jsonl"), or - for standard input; gzip and zstd are fine. WHERE is
    a log, a JSON export, or the address of a running process.
    """
