"""wrk and slowhttptest against a real server: benchmarks/attack.py in short, by the bounds of docs/security.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from loading import load

from asyncinspect_logging.exporters.server import _MAX_CONNECTIONS

pytestmark = pytest.mark.real

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "attack.py"
#: The event loop's thread, the server's, the one that tells, and those that make pages.
OTHERS = 12


@pytest.mark.usefixtures("needs_attackers")
def test_fast_and_slow_clients_do_no_harm() -> None:
    """Every answer to wrk is a page; threads stay below their bound, and scrapes come through beside slow clients."""
    attack = load(BENCHMARK)
    rows = {row.what: row for row in attack.attacks(seconds=2, clients=300)}
    assert len(rows) == 7
    for row in rows.values():
        assert row.threads <= _MAX_CONNECTIONS + OTHERS, row
        assert row.answers is None or (row.answers > 0 and not row.refused), row
    before = rows["nobody"]
    for what in ("slow headers", "slow bodies"):
        row = rows[f"{what}, 300 clients"]
        assert len(row.scrapes) == attack.SCRAPES
        assert None not in row.scrapes, row
        # 300 threads with stacks that were used would be more.
        assert row.memory < before.memory + 50, row
    # Who reads slowly may be let go, and be a scrape.
    assert any(rows["slow readers, 300 clients"].scrapes)
