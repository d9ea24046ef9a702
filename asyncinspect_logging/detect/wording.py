"""A deadlock in words: who waits for what, where, who holds it, and what to do about it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from .. import process
from ..snapshot import Finding
from .findings import DEADLOCK
from .held import HELD, THREAD_LOCK, Hold, Owner, Wait, evidence_id

__all__ = ["Core", "Tied", "finding_of"]

#: Tasks, and holders of one resource, that a message lists.
_SHOWN: Final = 8


class Tied(NamedTuple):
    """A task in a deadlock: it waits for a resource (`wait`), or for tasks (`awaited`). `span`: number of the span
    that it waits in, or 0, and that span's name. `suspended_at`: where it is while what it waits for stops its thread,
    or that in which it has work done; empty in all other cases.
    """

    owner: Owner
    wait: Wait | None
    awaited: list[Owner]
    span: int
    span_name: str
    suspended_at: str = ""

    @property
    def since(self) -> int:
        """Monotonic ns; 0 where it is not known."""
        return 0 if self.wait is None else self.wait.since

    @property
    def identity(self) -> tuple[Any, ...]:
        """The wait, and no other."""
        if self.wait is not None:
            return self.owner.number, self.wait.resource.id, self.wait.since
        return self.owner.number, *sorted(each.number for each in self.awaited)


class Core(NamedTuple):
    """Tasks that wait for each other. `behind`: how many more wait because of what they hold."""

    tied: tuple[Tied, ...]
    behind: int

    @property
    def key(self) -> frozenset[tuple[Any, ...]]:
        return frozenset(each.identity for each in self.tied)


def finding_of(core: Core, at: float) -> Finding:
    """What is told of it. `at`: Unix time in seconds."""
    tied = core.tied
    numbers = {each.owner.number for each in tied}
    evidence: list[str] = []
    for each in tied:
        if each.wait is not None and each.wait.resource.kind == THREAD_LOCK:
            # Of this no record tells: it is the frames that show it.
            evidence += [str(each.wait.at), *(str(hold.at) for hold in _holds(each.wait))]
        elif each.wait is not None:
            evidence.append(evidence_id(each.span, "wait", each.wait.since))
            if each.wait.resource.kind in HELD:
                evidence += [evidence_id(hold.span, "acquire", hold.t) for hold in _holds(each.wait)]
    shown = [_clause(each) for each in tied[:_SHOWN]]
    if len(tied) > _SHOWN:
        shown.append(f"and {len(tied) - _SHOWN} more like these")
    message = f"deadlock: {'; '.join(shown)}. "
    if core.behind:
        message += f"{core.behind} more wait because of that. "
    return Finding(
        DEADLOCK,
        tied[0].span_name or tied[0].owner.name,
        tuple(dict.fromkeys(process.span_id(each.span) for each in tied if each.span)),
        message + _advice(core, numbers),
        tuple(dict.fromkeys(evidence)),
        at,
    )


def _holds(wait: Wait) -> list[Hold]:
    return sorted(wait.resource.holders.values(), key=lambda hold: (hold.t, hold.owner.number))


def _clause(tied: Tied) -> str:
    who = _who(tied.owner)
    if tied.span:
        who += f" (span {tied.span_name} {process.span_id(tied.span)})"
    wait = tied.wait
    if tied.suspended_at:
        return f"{who}, suspended at {tied.suspended_at}, goes on only after {_listed(_all_who(tied.awaited))}"
    if wait is None:
        return f"{who} waits for {_listed(_all_who(tied.awaited))}"
    did = "taken by" if wait.resource.kind in HELD else "which has been served by"
    holders = [
        f"{_who(hold.owner)}{f' (span {hold.span_name})' if hold.span_name else ''} at {hold.at}"
        for hold in _holds(wait)
    ]
    return f"{who} waits at {wait.at} for {wait.resource}, {did} {_listed(holders)}"


def _who(owner: Owner) -> str:
    return f"task {owner.name}" if owner.is_task else owner.name


def _all_who(owners: list[Owner]) -> list[str]:
    return [_who(owner) for owner in owners]


def _listed(texts: list[str]) -> str:
    more = [f"{len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return " and ".join([*dict.fromkeys(texts[:_SHOWN]), *more])


def _advice(core: Core, numbers: set[int]) -> str:
    waits = [each.wait for each in core.tied if each.wait is not None]
    held = [wait for wait in waits if wait.resource.kind in HELD]
    if any(wait.resource.kind == THREAD_LOCK for wait in waits):
        return "Give a threading.Lock back before an await, or use asyncio.Lock."
    if not waits:
        return "Have one of them not await the other, or wait with asyncio.timeout()."
    if len(held) < len(waits):
        return "Give the queue room, do not wait for it while others wait for you, or wait with asyncio.timeout()."
    if not any(hold.owner.number in numbers for wait in held for hold in wait.resource.holders.values()):
        if len(core.tied) == 1:
            return "Whoever took it has ended without giving it back: take it by `async with`."
        return "Do not await a task while holding what it waits for, or wait with asyncio.timeout()."
    if len(core.tied) == 1:
        return "A task cannot take it twice: give it back first, or pass on that it is held."
    if len(held) < len(core.tied):
        return "Do not await a task while holding what it waits for, or wait with asyncio.timeout()."
    return "Take these in the same order everywhere, or wait with asyncio.timeout()."
