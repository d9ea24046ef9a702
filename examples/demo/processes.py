"""The demo's scripts as processes of their own, which answer with a line of JSON."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent


@contextlib.contextmanager
def child(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run one of the demo's scripts; end it with the block."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # out of reach of the terminal's Ctrl-C: it is ended here, in order
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def read_json(process: subprocess.Popen[str], what: str) -> dict[str, object]:
    """The line of JSON that a child prints."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"the {what} ended with status {process.wait()} and no answer")
    answer: dict[str, object] = json.loads(line)
    return answer
