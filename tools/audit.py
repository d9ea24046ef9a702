"""Ask PyPI's database of vulnerabilities about each package of a list, by pip-audit: `audit.py PIP-AUDIT LIST`.

0 where none is known, 1 where one is or a package could not be asked about, 2 where the database did not answer.
"""

from __future__ import annotations

import subprocess
import sys

_TRACEBACK = "Traceback (most recent call last)"


def audit(program: str, packages: str) -> int:
    """Run pip-audit on a file of requirements, and say its failure in one line where it says that by a traceback."""
    options = ["--strict", "--progress-spinner", "off", "--disable-pip", "--no-deps", "-r", packages]
    done = subprocess.run([program, *options], stderr=subprocess.PIPE, text=True)
    if _TRACEBACK in done.stderr:
        print(
            f"audit: nothing was checked, PyPI did not answer: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr
        )
        return 2
    print(done.stderr, end="", file=sys.stderr)
    if "not found on PyPI" in done.stderr:
        print(
            "audit: incomplete. Where that is a package of PyPI's, the index in use has no data on vulnerabilities "
            "(https://pypi.org/pypi/NAME/VERSION/json is asked); run it where pypi.org can be reached.",
            file=sys.stderr,
        )
    return done.returncode


if __name__ == "__main__":
    sys.exit(audit(*sys.argv[1:]))
