"""A service that is killed under load: its log has what a real Prometheus scraped last, to the request."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.real


def test_log_of_a_killed_service_has_what_was_scraped_last(demo_folder: Path, needs_prometheus: ModuleType) -> None:
    done = subprocess.run(
        [sys.executable, str(demo_folder / "post_mortem.py"), "--seconds", "3"],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    compared = re.search(r"^(\d+) series compared, 0 differ\.$", done.stdout, re.MULTILINE)
    assert compared, done.stdout
    assert int(compared[1]) > 100
    # More than a handful of requests were scraped, and the same number was replayed.
    rows = re.findall(r"^async_inspect_tasks_total\{.*\} +(\d+) +(\d+)$", done.stdout, re.MULTILINE)
    assert len(rows) == 3
    assert all(scraped == replayed for scraped, replayed in rows)
    assert sum(int(scraped) for scraped, _ in rows) > 100
    # Under way at the end, each with the line that it waits at.
    live = re.search(r"(\d+) were under way when the process died:$", done.stdout, re.MULTILINE)
    assert live, done.stdout
    where = re.findall(r"^  [0-9a-f]{16} (?:GET|POST) \S+ .* at \S+service\.py:\d+$", done.stdout, re.MULTILINE)
    assert len(where) >= min(int(live[1]), 20) * 0.8 > 0
