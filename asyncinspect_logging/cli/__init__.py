"""The command `asyncinspect`. Its parts need the extra `cli`, and nothing but the command imports them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final, NoReturn

from ..errors import MissingExtraError

__all__ = ["BROKEN_PIPE", "FAILED", "INTERRUPTED", "NAME", "UNUSABLE", "EndedError", "main"]

NAME: Final = "asyncinspect"
#: Exit statuses: a condition failed, or `--strict` found something; the command or its input cannot be used; Ctrl-C;
#: and nobody reads the output any longer. The last two are those of a process that the signal ended.
FAILED: Final = 1
UNUSABLE: Final = 2
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141


class EndedError(Exception):
    """The command was ended from outside, which is no error: by Ctrl-C, or since nobody reads its output any longer.
    (What click makes of KeyboardInterrupt and BrokenPipeError is not what a shell expects.)
    """

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(status)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command, with the process's own arguments unless others are given, and exit."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except EndedError as end:
        status = end.status
    except BrokenPipeError:
        status = BROKEN_PIPE
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status == BROKEN_PIPE:
        _close_stdout()
    sys.exit(status)


def _run(arguments: Sequence[str] | None) -> int:
    if find_spec("click") is None or find_spec("rich") is None:
        print(MissingExtraError(f"the command {NAME}", "cli"), file=sys.stderr)
        return UNUSABLE
    import click

    from .commands import commands

    for stream in (sys.stdout, sys.stderr):
        # A terminal or a pipe in some other encoding gets what it can show.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        result = commands.main(arguments, prog_name=NAME, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    return result if isinstance(result, int) else 0


def _close_stdout() -> None:
    """So that Python does not try once more to write what it still holds, and complain, at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
