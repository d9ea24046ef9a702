"""Where time goes, by the names of spans and of those around them: for a flame graph.

A stack is the names of a task's ancestors and its own. Its *self* time is the task's own, less what falls to its
children, and never below zero. Times of all tasks with the same stack are added up.

Formats: speedscope's (speedscope.app, file-format-schema.json) and collapsed stacks (Brendan Gregg's flamegraph.pl).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, Final, Literal, TypeAlias

from ..diagnostics import warn_once
from ..errors import ConfigError
from ..nesting import Stacks
from .source import Progress, Source, read_source
from .writing import Path, loose_json, to_file, to_path, to_string

__all__ = ["MEASURES", "FlameExporter", "Form", "Measure"]

Measure: TypeAlias = Literal["busy", "blocked", "time"]
Form: TypeAlias = Literal["speedscope", "collapsed"]

#: What can be measured, in ns; `asyncinspect_logging.nesting.Stacks` says what each is.
MEASURES: Final = ("busy", "blocked", "time")

_FORMS: Final = ("speedscope", "collapsed")
#: Names in a stack; what is deeper counts as one.
_MAX_STACK: Final = 200


class FlameExporter:
    """A flame graph of a `measure`, in a `form`.

    "speedscope" has all measures and shows `measure` first; "collapsed" has one line for each stack, with its self time
    in ns. Raises `ConfigError` for any other measure or form.
    """

    @staticmethod
    def export_to_file(
        source: Source,
        path: Path,
        *,
        measure: Measure = "busy",
        form: Form = "speedscope",
        progress: Progress | None = None,
    ) -> None:
        """Write `source` to a file at `path`, which is complete or not there. Raises `ExportError`."""
        to_path(_parts(source, measure, form, progress), path)

    @staticmethod
    def export_to_string(source: Source, *, measure: Measure = "busy", form: Form = "speedscope") -> str:
        return to_string(_parts(source, measure, form, None))

    @staticmethod
    def write(
        source: Source,
        file: IO[Any],
        *,
        measure: Measure = "busy",
        form: Form = "speedscope",
        progress: Progress | None = None,
    ) -> None:
        """Write `source` to an open file, binary or text."""
        to_file(_parts(source, measure, form, progress), file)


def _parts(source: Source, measure: str, form: str, progress: Progress | None) -> Iterator[bytes]:
    if measure not in MEASURES:
        raise ConfigError(f"measure={measure!r} is not measured; write one of {', '.join(map(repr, MEASURES))}")
    if form not in _FORMS:
        raise ConfigError(f"form={form!r} is no format of flame graphs; write {' or '.join(map(repr, _FORMS))}")
    index = MEASURES.index(measure)
    return _speedscope(source, index, progress) if form == "speedscope" else _collapsed(source, index, progress)


def _speedscope(source: Source, index: int, progress: Progress | None) -> Iterator[bytes]:
    stacks = _stacks(source, progress)
    frames: dict[str, int] = {}
    found = [([frames.setdefault(name, len(frames)) for name in stack], own) for stack, own in stacks]
    profiles = []
    for which, name in enumerate(MEASURES):
        weighed = [(stack, own[which]) for stack, own in found if own[which]]
        profile = {"type": "sampled", "name": name, "unit": "nanoseconds", "startValue": 0}
        profile["endValue"] = sum(weight for _, weight in weighed)
        profile["samples"] = [stack for stack, _ in weighed]
        profile["weights"] = [weight for _, weight in weighed]
        profiles.append(profile)
    yield loose_json(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "name": "asyncinspect",
            "exporter": "asyncinspect_logging",
            "activeProfileIndex": index,
            "shared": {"frames": [{"name": name} for name in frames]},
            "profiles": profiles,
        }
    )
    yield b"\n"


def _collapsed(source: Source, index: int, progress: Progress | None) -> Iterator[bytes]:
    lines = 0
    for stack, own in _stacks(source, progress):
        if own[index]:
            lines += 1
            names = ";".join(" ".join(name.replace(";", ":").split()) or "-" for name in stack)
            yield f"{names} {own[index]}\n".encode("utf-8", "backslashreplace")
    if not lines:
        measure = MEASURES[index]
        why = "no span ended" if measure == "time" else "of spans that nobody polled there is all time (measure='time')"
        warn_once("empty flame graph", measure, "the flame graph is empty: no %s time is known; %s", measure, why)


def _stacks(source: Source, progress: Progress | None) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Each stack, outermost name first, with its self times in ns."""
    stacks = Stacks(_MAX_STACK)
    for task in read_source(source, progress).tasks:
        stacks.add(task, task.name)
    return ((stack.names, (stack.busy, stack.blocked, stack.time)) for stack in stacks.stacks())
