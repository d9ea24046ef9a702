"""Write the Grafana dashboard: the file in the package, and its copy in ops/.

    .venv/bin/python tools/dashboard.py

tests/test_dashboard.py fails until both are what the code says.
"""

from __future__ import annotations

import json
from pathlib import Path

from asyncinspect_logging.ops.builder import build
from asyncinspect_logging.ops.dashboard import FILE

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    text = json.dumps(build(), indent=2, sort_keys=True) + "\n"
    for folder in (ROOT / "asyncinspect_logging" / "ops", ROOT / "ops"):
        folder.mkdir(exist_ok=True)
        (folder / FILE).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
