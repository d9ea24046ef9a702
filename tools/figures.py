"""Put the figures of benchmarks/RESULTS.md into the pages that quote them.

    python tools/figures.py          # after `make bench`
    python tools/figures.py --check  # say whether a page has others

A page has the place for a table between `<!-- figures: NAME -->` and `<!-- end of figures -->`; what goes there is said
here. Standard library only.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
PAGES = [ROOT / "docs" / "production.md", ROOT / "docs" / "comparison.md"]

#: The lines of a table by how the line of the results begins, and what it is called on the page.
LINES = {
    "overhead": {
        "span enter and exit, handler attached": "a span, everything counted",
        "the same in an asyncio task": "the same in an asyncio task",
        "the same inside a driven coroutine": "the same inside a driven coroutine",
        "the same with three fields": "a span with three fields",
        "span when nobody listens": "a span that nobody hears",
        "the same against one `logger.info": "a span, against one `logger.info(…, extra=…)`",
        "a task under `install()`, all metrics": "a task under `install()`, against a bare one that does nothing",
        "a step under a driver, against a bare": "a step under a driver, against a bare `await asyncio.sleep(0)`",
        "that page": "a page of 1,000 names, made in a thread of the server",
        "the scrape with 100,000 live spans": "a scrape with 100,000 live spans, against one with 10",
        "what all detectors take of one core": "detectors, while 10,000 tasks wait for 1,000 locks: of one core",
        "an `async with` of that `asyncio.Lock`": "an `async with` of a free `asyncio.Lock` under `install(sync=True)`",
    },
    "memory": {
        "memory per live span": "an open span",
        "the same with three fields (memory)": "the same with three fields",
        "memory per driven task": "a driven task, beyond a bare one's",
        "memory of a name": "a name",
        "that, and of what is kept of the page": "a name that is on a page which was served",
    },
}
#: The peers of a line: how the results' line begins, and how each peer is called there and on the page.
PEERS = {
    "span": (
        "span enter and exit, handler attached",
        {
            "the same metrics by hand with prometheus_client": "prometheus_client by hand, the same metrics",
            "OpenTelemetry SDK": "OpenTelemetry SDK, a span, nothing exported",
            "logfire": "logfire, a span",
            "eliot": "eliot, an action",
            "ddtrace": "ddtrace, a span",
            "Sentry, a span in a transaction": "Sentry, a span in a transaction",
            "one `logger.info(…, extra=…)`": "one `logger.info(…, extra=…)`",
        },
    ),
    "task": (
        "a task under `install()`, all metrics",
        {
            "hand-written factory with a span and counters": "a task factory by hand, with a span and counters",
            "OpenTelemetry asyncio": "OpenTelemetry's asyncio instrumentation",
            "ddtrace": "ddtrace",
            "ddtrace, in a trace": "ddtrace, in a trace",
            "Sentry": "Sentry",
            "Sentry, in a transaction": "Sentry, in a transaction",
            "aiomonitor": "aiomonitor, with its hook",
            "asyncio debug mode": "asyncio's debug mode",
        },
    ),
    "open": (
        "memory per live span",
        {
            "eliot": "eliot, an action",
            "ddtrace": "ddtrace, a span",
            "OpenTelemetry": "OpenTelemetry SDK, a span",
            "logfire": "logfire, a span",
        },
    ),
}
_PLACE = re.compile(r"(<!-- figures: (\w+) -->\n)(.*?)(<!-- end of figures -->)", re.DOTALL)


class Results:
    """The lines of the table of results."""

    def __init__(self, text: str) -> None:
        rows = [line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| ")]
        # The columns before the peers are what, goal, and one for each Python; then whether it was met.
        self.pythons = [version.strip() for version in rows[0][2:4]]
        self.rows = []
        before = ""
        for row in rows[2:]:
            cells = [cell.strip() for cell in " | ".join(row).split("|")]
            # Two lines are called alike, and mean the one above each.
            name = f"{cells[0]} (memory)" if before.startswith("memory per live span") else cells[0]
            before = cells[0]
            self.rows.append([name, *cells[1:]])

    def row(self, begin: str) -> list[str]:
        found = [row for row in self.rows if row[0].startswith(begin)]
        if not found:
            raise LookupError(f"{RESULTS.name} has no line that begins with {begin!r}")
        return found[0]

    def table(self, name: str) -> str:
        """The table that a page shows under this name."""
        lines = [f"| what | {' | '.join(self.pythons)} |", "| --- |" + " ---: |" * len(self.pythons)]
        if name in LINES:
            for begin, shown in LINES[name].items():
                lines.append(f"| {shown} | {' | '.join(self.row(begin)[2:4])} |")
        else:
            begin, peers = PEERS[name]
            row = self.row(begin)
            lines.append(f"| **this library** | {' | '.join(f'**{figure}**' for figure in row[2:4])} |")
            measured = dict(re.findall(r"(?:^|; )(\D.*?) ([\d.,]+ \S+ / [\d.,]+ \S+)(?=;|$)", row[5]))
            for peer, shown in peers.items():
                if peer not in measured:
                    raise LookupError(f"{RESULTS.name} has no {peer!r} beside {row[0]!r}")
                lines.append(f"| {shown} | {measured[peer].replace(' / ', ' | ')} |")
        return "\n".join(lines) + "\n"


def with_figures(page: str, results: Results) -> str:
    """The text of a page with the tables of these results in their places."""
    return _PLACE.sub(lambda place: f"{place[1]}\n{results.table(place[2])}\n{place[4]}", page)


def main() -> int:
    parser = argparse.ArgumentParser(description="Put the figures of the benchmarks into the pages that quote them.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page has others")
    options = parser.parse_args()
    results = Results(RESULTS.read_text("utf-8"))
    status = 0
    for path in PAGES:
        page = path.read_text("utf-8")
        wanted = with_figures(page, results)
        if wanted == page:
            continue
        if options.check:
            print(f"{path.relative_to(ROOT)} has other figures than {RESULTS.name}: run python tools/figures.py")
            status = 1
        else:
            path.write_text(wanted, "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
