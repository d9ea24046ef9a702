"""Which processes tell of spans, and which of them are gone, so that what they had open does not stay open for ever.

A process is known by the upper half of its span ids, which is random: its pid may be another's on another machine, or
later. It is gone when its connection is closed, or, where it writes a file, when there is no process of its pid any
more that began before its last record; and then for a while nothing more was heard of it.

A pid in a file may be that of another container or machine, and there be a process of that pid here all the same (1, 7
and 8 are everywhere). So it says nothing until the process of that pid here was seen to have the log open to write
to it.
"""

from __future__ import annotations

import os
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ..inspector import Inspector
from ..placing import Placing
from ..records import KEY, VERSION, is_id, is_whole
from ..told import ToldSpan
from .lines import payload_in

__all__ = ["Processes", "base_of", "began_at", "writes"]

#: Hex digits of an id that are the same for all spans of a process.
BASE_DIGITS: Final = 8
#: Finds the base of a record in a line, as our formatters write it.
_BASE_IN: Final = re.compile(rb'"%b":\s?\{"v":\s?\d,\s?"kind":\s?"\w+",\s?"id":\s?"([0-9a-f]{8})' % KEY.encode()).search
_MAX_PROCESSES: Final = 10_000
#: Seconds by which the clocks of the kernel and of a record may differ.
_SLACK: Final = 2.0
#: Descriptors of a process that are looked at. A log is opened early, and has a low number.
_MAX_DESCRIPTORS: Final = 1024


def base_of(payload: Mapping[str, Any]) -> str | None:
    """What the ids of its process begin with."""
    id = payload.get("id")
    return id[:BASE_DIGITS].lower() if is_id(id) else None


class _Process:
    """`last`: the latest payload that it wrote; `heard`: when that was seen (monotonic seconds). `connected`: how many
    connections bring its lines; None as long as only files have. `log`: device and inode of the file that has
    the latest payload; `here`: whether it was seen to write to such a file.
    """

    __slots__ = ("connected", "heard", "here", "last", "log", "looked_at")

    def __init__(self, last: Mapping[str, Any] | None, heard: float) -> None:
        self.last = self.looked_at = last
        self.heard = heard
        self.connected: int | None = None
        self.log = (0, 0)
        self.here = False


class Processes:
    """grace: seconds. local: whether pids in files are those of this machine (and of this container); None: those of
    processes that were seen to write the log.
    """

    def __init__(self, inspector: Inspector, grace: float, local: bool | None) -> None:
        self._inspector = inspector
        self._grace = grace
        self._local = local
        self._known: OrderedDict[str, _Process] = OrderedDict()
        # Who was found to write a log, or not, since the last look.
        self._asked: dict[tuple[int, tuple[int, int]], bool] = {}
        #: Device and inode of the file that is being read.
        self.log = (0, 0)
        #: Spans that were ended because their process was gone.
        self.interrupted = 0

    def __len__(self) -> int:
        return len(self._known)

    def heard(self, payload: Mapping[str, Any]) -> None:
        """A record came. For each one, and so no more than has to be."""
        try:
            known = self._known[payload["id"][:BASE_DIGITS]]
            known.last, known.log = payload, self.log
        except (LookupError, TypeError):
            self._meet(payload)

    def heard_in(self, lines: list[bytes]) -> None:
        """The same of all records in lines that came together, of which only the last of each process says anything."""
        seen: set[bytes] = set()
        for line in reversed(lines):
            found = _BASE_IN(line)
            if found is None or found[1] not in seen:
                payload = payload_in(line)
                base = base_of(payload or {})
                if payload is not None and base is not None and base.encode() not in seen:
                    seen.add(base.encode())
                    self.heard(payload)

    def _meet(self, payload: Mapping[str, Any]) -> None:
        base = base_of(payload)
        if base is not None:
            known = self._process(base)
            known.last, known.log = payload, self.log
            # At once, since it may be killed before the next look.
            self._seek(known)

    def _process(self, base: str) -> _Process:
        known = self._known.get(base)
        if known is None:
            known = self._known[base] = _Process(None, time.monotonic())
            if len(self._known) > _MAX_PROCESSES:
                self._known.popitem(last=False)
        return known

    def connect(self, base: str) -> None:
        """A connection begins to bring the lines of a process."""
        known = self._process(base)
        known.connected = (known.connected or 0) + 1

    def disconnect(self, base: str) -> None:
        """And no longer does."""
        known = self._known.get(base)
        if known is not None and known.connected:
            known.connected -= 1
            known.heard = time.monotonic()

    def look(self) -> None:
        """End what processes that are gone have left open."""
        now, gone = time.monotonic(), {}
        self._asked.clear()
        for base, known in list(self._known.items()):
            if known.last is not known.looked_at:
                known.looked_at, known.heard = known.last, now
                self._seek(known)
            elif not known.connected and now - known.heard >= self._grace and self._is_gone(known):
                del self._known[base]
                if known.last is not None:
                    gone[base] = known.last
        if gone:
            self._interrupt(gone)

    def _seek(self, known: _Process) -> None:
        """Find out whether a process is one of here."""
        if self._local is None and known.connected is None and not known.here and known.last is not None:
            pid = known.last.get("pid")
            if is_whole(pid) and pid != os.getpid():
                if (pid, known.log) not in self._asked:
                    self._asked[pid, known.log] = writes(pid, known.log)
                known.here = self._asked[pid, known.log]

    def _is_gone(self, known: _Process) -> bool:
        if known.connected is not None:
            return not known.connected
        last = known.last or {}
        pid, wall = last.get("pid"), last.get("wall")
        if not (known.here if self._local is None else self._local) or not is_whole(pid) or not is_whole(wall):
            return False
        began = began_at(pid)
        return began is None or began > wall / 1e9 + _SLACK

    def _interrupt(self, gone: Mapping[str, Mapping[str, Any]]) -> None:
        """End the live spans of processes, each at the time of its last record: so long it has lived for certain."""
        ended: list[dict[str, Any]] = []

        def find(placing: Placing) -> None:
            placing.complete()
            for span in placing.books.live.values():
                last = gone.get(span.id[:BASE_DIGITS]) if isinstance(span, ToldSpan) else None
                if last is not None and is_whole(last.get("t")) and is_whole(last.get("wall")):
                    # No process has the pid 0: in its name, every span is ended once.
                    said = {"v": VERSION, "kind": "exit", "id": span.id, "name": span.name, "outcome": "interrupted"}
                    seq = int(span.id[BASE_DIGITS:], 16)
                    ended.append({**said, "t": last["t"], "wall": last["wall"], "pid": 0, "seq": seq})

        # One pass for all of them, since there may be many of both.
        self._inspector.enter(find)
        self.interrupted += len(ended)
        for payload in ended:
            self._inspector.apply({KEY: payload})

    def dump(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        kept = [
            [
                base,
                {key: known.last[key] for key in ("id", "pid", "t", "wall")},
                known.connected is not None,
                known.here,
            ]
            for base, known in self._known.items()
            if known.last is not None and all(key in known.last for key in ("id", "pid", "t", "wall"))
        ]
        return {"known": kept}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from there; whoever was connected has a while to come again.

        Raises ValueError, TypeError or LookupError for what `dump` never gave.
        """
        # Who is here was not kept at first.
        for base, last, by_socket, *here in saved["known"]:
            known = self._known[str(base)] = _Process(dict(last), time.monotonic())
            known.connected = 0 if by_socket else None
            known.here = here == [True]


def writes(pid: int, log: tuple[int, int]) -> bool:
    """Whether a process has a file, given by device and inode, open to write to it. False where that cannot be told: of
    another user's process, and without /proc.
    """
    with suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:
        for each in islice(descriptors, _MAX_DESCRIPTORS):
            with suppress(OSError, ValueError, IndexError):
                status = os.stat(each.path)
                if (status.st_dev, status.st_ino) == log:
                    # proc(5): the flags of open(), in octal.
                    said = Path(f"/proc/{pid}/fdinfo/{each.name}").read_text().partition("flags:")[2]
                    if int(said.split()[0], 8) & os.O_ACCMODE != os.O_RDONLY:
                        return True
    return False


def began_at(pid: int) -> float | None:
    """When a process began, in Unix time in seconds, 0.0 where that cannot be told; None where there is none."""
    if not 0 < pid < 1 << 31:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # it is there, and another user's
    with suppress(OSError, ValueError, IndexError):
        # proc(5): the name, in parentheses, may hold anything; the state is the 3rd field, the start the 22nd.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        return _booted_at() + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _booted_at() -> float:
    """Unix time. By what both clocks say now, since the kernel's own note of it is rounded to seconds."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
