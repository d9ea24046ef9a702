"""An application that does a great deal while everything around it goes wrong, and the account of it.

    python tests/soak [--spans 10000000] [--names 10000] [--threads 4] [--loops 2] [--seconds 0] [--seed 1]
                      [--json FILE] [--inject WHAT,…]

Threads and event loops begin spans of every outcome; meanwhile /metrics is scraped, the process forks, logging is set
up anew, tasks are cancelled, fields cannot be shown, the disk under the log is full, and collectors are dead. At the
end stand the figures; the status is 1 if the application saw an error, a counter is not exact, a page is not valid,
memory has grown, or anything is left behind. Linux only.

--spans: in all, but those in forked children. --seconds: stop after so long, whatever has been done by then (0: never).
--json: keep the figures in a file, such as benchmarks/soak-3.11.json. --inject: break this, to see it noticed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))


def main() -> int:
    from soak import INJECTIONS, Options, Soak

    default = Options()
    parser = argparse.ArgumentParser(description="Do a great deal while everything around goes wrong.")
    for name in ("spans", "names", "threads", "loops", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inject", type=lambda given: frozenset(given.split(",")), default=frozenset())
    given = parser.parse_args()
    if min(given.spans, given.names, given.threads) < 1 or min(given.loops, given.seconds) < 0:
        parser.error("--spans, --names and --threads are at least 1, --loops and --seconds at least 0")
    if not given.inject <= set(INJECTIONS):
        parser.error(f"--inject takes some of {', '.join(INJECTIONS)}, with commas")
    options = Options(**{name: getattr(given, name) for name in Options._fields})
    table, figures, troubles = Soak(options).run()
    width = max(len(what) for what, _ in table)
    for what, value in table:
        print(f"{what:<{width}}  {value}")
    for line in troubles:
        print(f"TROUBLE: {line}", file=sys.stderr)
    if given.json:
        measured = {
            "python": platform.python_version(),
            "build": f"{platform.python_implementation()} {platform.python_version()}, {platform.python_compiler()}",
            "machine": f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}",
            "at": f"{time.strftime('%Y-%m-%d', time.gmtime())}, seed {options.seed}",
            "table": table,
            "figures": figures,
            "troubles": troubles,
        }
        given.json.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    print("failed" if troubles else "passed")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
