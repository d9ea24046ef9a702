from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncinspect_logging import Inspector
from asyncinspect_logging.records import LEVELS
from asyncinspect_logging.states import FINAL, LIVE, OUTCOMES, TRANSITIONS, TaskState, next_state

KINDS = sorted(LEVELS)


def test_every_state_is_live_or_final() -> None:
    """No state is both, and none is neither."""
    assert {*LIVE, *FINAL} == set(TaskState)
    assert not {*LIVE} & {*FINAL}


def test_table_speaks_of_known_kinds_and_live_states_only() -> None:
    """A final state is left by no record, and only an exit leads to one."""
    for (state, kind), after in TRANSITIONS.items():
        assert kind in LEVELS
        assert kind != "exit"
        assert state is None or state in LIVE
        assert after in LIVE


@pytest.mark.parametrize("state", [None, *TaskState])
@pytest.mark.parametrize("outcome", [*OUTCOMES, None, "unheard of"])
def test_exit_leads_from_each_live_state_to_that_of_its_outcome(state: TaskState | None, outcome: str | None) -> None:
    """And from nowhere else, and with no other outcome."""
    expected = OUTCOMES.get(outcome or "") if state in LIVE else None
    assert next_state(state, "exit", outcome) == expected


def test_every_live_state_accepts_every_step() -> None:
    """Step records may overtake each other."""
    for state in LIVE:
        for kind in KINDS:
            if kind not in ("spawn", "enter"):
                assert next_state(state, kind, "completed") is not None


@given(
    first=st.sampled_from(["spawn", "enter"]),
    later=st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(sorted(OUTCOMES))), max_size=12),
)
def test_inspector_follows_the_table(first: str, later: list[tuple[str, str]]) -> None:
    """The state of a told span is what the pure function makes of its records."""
    inspector, state = Inspector(), next_state(None, first)
    steps: list[tuple[str, str]] = [(first, "completed"), *later]
    for seq, (kind, outcome) in enumerate(steps):
        payload: dict[str, Any] = {"v": 1, "kind": kind, "id": "00000000000000a1", "t": 5 + seq, "wall": 5 + seq}
        inspector.apply({**payload, "pid": 7, "seq": seq, "name": "x", "outcome": outcome})
        if seq:
            state = next_state(state, kind, outcome) or state
    (task,) = inspector.snapshot().tasks
    assert task.state == state
