"""The command `asyncinspect`. Its parts need the extra `cli`, and nothing but the command imports them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Final, NoReturn

from ..errors import MissingExtraError

__all__ = ["BROKEN_PIPE", "FAILED", "INTERNAL", "INTERRUPTED", "NAME", "UNUSABLE", "EndedError", "main"]

NAME: Final = "asyncinspect"
#: Exit statuses: a condition failed, or `--strict` found something; the command or its input cannot be used; an error
#: of ours (EX_SOFTWARE of sysexits.h); Ctrl-C; and nobody reads the output any longer. The last two are those of a
#: process that the signal ended.
FAILED: Final = 1
UNUSABLE: Final = 2
INTERNAL: Final = 70
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
    _open_closed()
    try:
        status = _run(arguments)
    except EndedError as end:
        status = end.status
    except KeyboardInterrupt:
        status = INTERRUPTED
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
    except OSError as error:
        # A full disk, or `>&-`: what was to be said was not.
        if status != UNUSABLE:
            print(f"{NAME}: standard output: {error.strerror}", file=sys.stderr)
        status = UNUSABLE
    if status in (BROKEN_PIPE, UNUSABLE):
        _close_stdout()
    sys.exit(status)


def _open_closed() -> None:
    """Standard streams that were closed (`>&-`) are opened: else Python has None for them, and the next file that is
    opened takes their number. Nothing comes in, and what goes to stdout is an error.
    """
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, flags)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115 - for good
        setattr(sys, name, stream)


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
