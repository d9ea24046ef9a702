"""What the quick way of reading takes for a record of a kind, the general way takes for the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncinspect_logging.analysis.replay import Replay

ID, TRACE = "0000000a00000001", "c" * 16 + "0000000a00000001"
ENTER = (
    f'"v": 1, "kind": "enter", "id": "{ID}", "t": 5, "wall": 1005, "pid": 7, "seq": 1, "name": "a", "trace": "{TRACE}"'
)
EXIT = f'"v": 1, "kind": "exit", "id": "{ID}", "t": 9, "wall": 1009, "pid": 7, "seq": 2, "name": "a"'
DONE = f'{EXIT}, "outcome": "completed"'


@pytest.mark.parametrize(
    "payloads",
    [
        (ENTER, DONE),
        (ENTER, f'{DONE}, "kind": "enter"'),
        (f'{ENTER}, "kind": "exit", "outcome": "failed"', DONE),
        (f'{ENTER}, "kind": "enter"', f'{DONE}, "kind": "exit", "outcome": "failed"'),
        (f'{ENTER}, "id": "000000AA00000001"', DONE),
        (f'{ENTER}, "trace": null', DONE),
        (f'{ENTER}, "fields": null', DONE),
        (f'{ENTER}, "fields": {{"a": 1}}, "fields": {{"b": 2}}', DONE),
        (f'{ENTER}, "parent": null, "line": null', f'{DONE}, "line": null, "begun": null'),
        (ENTER, f'{DONE}, "line": 1'),
        (ENTER, EXIT),
        (ENTER, f'{EXIT}, "outcome": "abandoned"'),
        (ENTER, f'{DONE}, "trace": 5, "fields": 5'),
        (ENTER, f'{DONE}, "duration": -1'),
        (ENTER, f'{DONE}, "duration": null'),
        (ENTER, f'{DONE}, "duration": 3, "slow_polls": []'),
        (
            ENTER,
            f'{DONE}, "duration": 3, "polls": 120, "wakes": 3, "slow_polls": [[1, 2], [2, 1]], "slow_waits": [[3, 4]]',
        ),
        (ENTER, f'{DONE}, "slow_polls": [[1, 2], [1, 1]], "slow_waits": [[99, 4]]'),
        (ENTER, f'"v": 1, "kind": "wake", "id": "{ID}", "t": 6, "wall": 1006, "pid": 7, "seq": 2, "name": 5'),
        (ENTER, f'"v": 1, "kind": "suspend", "id": "{ID}", "t": 6, "wall": 1006, "pid": 7, "seq": 2, "on": "x"'),
        (ENTER, f'"v": 1, "kind": "record", "id": "{ID}", "t": 6, "wall": 1006, "pid": 7, "seq": 2, "name": null'),
        (f'{ENTER}, "fields": {{"a": {"1" * 5000}}}', DONE),
        (f'{ENTER}, "more": {"1" * 5000}', DONE),
        (ENTER, f'{DONE}, "error": {{"type": {"1" * 5000}}}'),
        *((f'{ENTER}, "more": {"[" * depth}{"]" * depth}', DONE) for depth in (40, 300, 600, 5000, 200_000)),
        (f"{ENTER.replace('00000001', '0000000g').replace('1005', str(10**18))}", DONE),
        (ENTER.replace("0000000a", "00000000"), DONE.replace("0000000a", "00000000")),
    ],
)
@pytest.mark.parametrize("at", [None, 1.0])
def test_the_quick_way_takes_what_the_general_way_takes(
    at: float | None, payloads: tuple[str, ...], tmp_path: Path
) -> None:
    """The same payloads under our key, which go the quick way where they may, and bare, which never do."""
    quick, general = tmp_path / "quick", tmp_path / "general"
    quick.write_text("".join(f'{{"asyncinspect": {{{payload}}}}}\n' for payload in payloads))
    general.write_text("".join(f"{{{payload}}}\n" for payload in payloads))
    one, other = Replay(quick, at=at), Replay(general, at=at)
    left, right = one.run().snapshot()._asdict(), other.run().snapshot()._asdict()
    assert {key for key in left if left[key] != right[key]} <= {"memory"}
    assert [what for _, _, what in one.report.problems] == [what for _, _, what in other.report.problems]
    assert (one.report.records, one.report.broken) == (other.report.records, other.report.broken)


def test_what_can_just_be_read_can_be_shown(tmp_path: Path) -> None:
    """Lines nested so deep that they could be read when they came, and not with a frame or two more on the stack: left
    out as a broken line is, or shown.
    """
    for depth in (*range(850, 1000), *range(1400, 1500), *range(9970, 10_000)):
        log = tmp_path / "log"
        log.write_text(f'{{"asyncinspect": {{{ENTER}, "fields": {{"a": {"[" * depth}{"]" * depth}}}}}}}\n')
        reading = Replay(log)
        assert len(reading.run().snapshot().tasks) == reading.report.records == 1 - reading.report.broken
