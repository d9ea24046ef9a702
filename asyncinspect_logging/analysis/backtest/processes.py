"""Which processes wrote a log, when, and which of them came in whose place.

Prometheus knows a target by its address, which a process has that takes the place of another: counters begin at zero
again under the same labels. A log says who wrote it, and not where that was. So a process takes the place of one that
wrote to the same file, or to one of the same name but for its pid or rotation, and whose last record is older than its
first one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ...errors import ConfigError
from ..files import Source, batches
from .lines import Key, told

__all__ = ["Process", "Processes"]

_MAX_PROCESSES: Final = 20_000
_MAX_INSTANCES: Final = 1_000
_PACKED: Final = re.compile(r"\.(gz|zst|zstd)$", re.IGNORECASE)
#: What rotation adds: a number, or a date.
_ROTATED: Final = re.compile(r"[.-]\d[\d_.T:-]*$")


@dataclass(slots=True)
class Process:
    """A process, from its first record to its last (Unix time in ns). `instance`: the label that its target has."""

    key: Key
    file: tuple[str, str]
    first: int
    last: int
    instance: str = ""


class Processes:
    """The processes in logs. `lines`, `records`: how many were met; `steps`: whether single steps are among them."""

    def __init__(self) -> None:
        self.by_key: dict[Key, Process] = {}
        self.lines = self.records = 0
        self.steps = False

    def find(self, found: list[Source], progress: Callable[[int, int | None], None] | None) -> None:
        """Read the logs. Raises ConfigError where there are too many processes in them."""
        for batch in batches(found, progress):
            for line in told(batch):
                self.lines += 1
                if line.key is None:
                    continue
                self.records += 1
                self.steps = self.steps or line.is_step
                process = self.by_key.get(line.key)
                if process is None:
                    if len(self.by_key) >= _MAX_PROCESSES:
                        raise ConfigError(
                            f"more than {_MAX_PROCESSES:,} processes wrote these logs; give fewer files at a time"
                        )
                    file = _family(batch.source.name, line.key[0])
                    self.by_key[line.key] = Process(line.key, file, line.wall, line.wall)
                elif line.wall < process.first:
                    process.first = line.wall
                elif line.wall > process.last:
                    process.last = line.wall
        self._name()

    @property
    def first(self) -> int:
        return min(process.first for process in self.by_key.values())

    @property
    def last(self) -> int:
        return max(process.last for process in self.by_key.values())

    def _name(self) -> None:
        files = {process.file for process in self.by_key.values()}
        shown: dict[tuple[str, str], str] = {}
        for folder, name in files:
            alone = sum(other == name for _, other in files) == 1
            shown[folder, name] = name if alone else os.path.join(folder, name)
        # For each place of a file, the end of the process that had it last.
        places: dict[tuple[str, str], list[int]] = {}
        count = 0
        for process in sorted(self.by_key.values(), key=lambda process: (process.first, process.last)):
            ends = places.setdefault(process.file, [])
            free = [(end, index) for index, end in enumerate(ends) if end < process.first]
            index = max(free)[1] if free else len(ends)
            if not free:
                ends.append(0)
                count += 1
                if count > _MAX_INSTANCES:
                    raise ConfigError(
                        f"more than {_MAX_INSTANCES:,} processes wrote these logs at a time; give fewer files at a time"
                    )
            ends[index] = process.last
            process.instance = shown[process.file] + (f"#{index + 1}" if index else "")


def _family(path: str, pid: int) -> tuple[str, str]:
    """Folder and name of a file without what is another with each process and rotation."""
    folder, name = os.path.split(path)
    bare = _ROTATED.sub("", _PACKED.sub("", name)) or name
    return os.path.realpath(folder), re.sub(rf"(?<!\d){pid}(?!\d)", "{pid}", bare)
