"""`make audit` without a database that answers: a sentence, and a status that says that nothing is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / "tools" / "audit.py"


@pytest.mark.parametrize(
    ("says", "ends", "status", "said"),
    [
        (
            "raise OSError('no route to pypi.org')",
            1,
            2,
            "audit: nothing was checked, PyPI did not answer: OSError: no route",
        ),
        ("sys.stderr.write('x: Dependency not found on PyPI and could not be audited')", 1, 1, "audit: incomplete."),
        ("sys.stderr.write('Found 1 known vulnerability in 1 package')", 1, 1, "Found 1 known"),
        ("sys.stderr.write('No known vulnerabilities found')", 0, 0, "No known"),
    ],
)
def test_audit(tmp_path: Path, says: str, ends: int, status: int, said: str) -> None:
    """What pip-audit says is handed on, a traceback as a sentence, and never is a failure a success."""
    program = tmp_path / "pip-audit"
    program.write_text(f"#!{sys.executable}\nimport sys\n{says}\nsys.exit({ends})\n")
    program.chmod(0o755)
    done = subprocess.run([sys.executable, AUDIT, program, "list.txt"], capture_output=True, text=True)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr
