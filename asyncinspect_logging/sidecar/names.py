"""Which files a log has by their names: those asked for, and those that rotation makes of them, whose names go on after
theirs.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

from ..errors import ConfigError

__all__ = ["Names", "origins_of"]

#: Where the name of a file goes on once it is rotated: `app.log.1`, `app.log-20260101.gz`, `app.log.2026-01-01_12`.
_ROTATED: Final = re.compile(r"[.\-_](?=\d)")
#: The same before its extension: `app-20260101.log`.
_INSERTED: Final = re.compile(r"[.\-_]\d[\d.\-_:T]*(?=\.\D)")
_PACKED: Final = (".gz", ".zst")


class Names:
    """Of `paths` (names or globs). Raises ConfigError for what is there and is no file."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        self.patterns = [os.path.abspath(os.fspath(path)) for path in paths]
        for pattern in self.patterns:
            if os.path.exists(pattern) and not os.path.isfile(pattern):
                raise ConfigError(f"{pattern!r} is no file; give the path of a log, or a glob such as 'logs/*.jsonl'")
        #: Names of logs that were found or asked for.
        self.bases: set[str] = set()

    def look(self) -> Iterator[tuple[str, os.stat_result, bool]]:
        """The files that are there, as (path, status, whether it was asked for by name), those asked for first."""
        bases: dict[str, set[str]] = {}
        for pattern in self.patterns:
            # A name that has the characters of a glob in it is a name first.
            found = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
            for path in found or [pattern]:
                folder, name = os.path.split(path)
                bases.setdefault(folder, set()).add(name)
                status = _status(path)
                if status is not None:
                    yield path, status, True
        self.bases = {os.path.join(folder, name) for folder, names in bases.items() for name in names}
        for folder, names in bases.items():
            try:
                entries = os.listdir(folder)
            except OSError:
                continue
            for entry in entries:
                if any(entry[: suffix.start()] in names for suffix in _ROTATED.finditer(entry)):
                    status = _status(os.path.join(folder, entry))
                    if status is not None:
                        yield os.path.join(folder, entry), status, False

    def may_be_of(self, origins: frozenset[str], *names: str) -> bool:
        """Whether a file may be a copy of one that has, or had, these names: made of it, or both of the same log."""
        return bool(origins) and any(
            name in origins or not self.bases.isdisjoint(origins & origins_of(name)) for name in names
        )


@lru_cache(maxsize=4096)
def origins_of(path: str) -> frozenset[str]:
    """The names of files of which rotation may have made one of this name, by renaming or copying."""
    folder, name = os.path.split(path)
    plain = next((name.removesuffix(end) for end in _PACKED if name.endswith(end)), name)
    found = {name[: suffix.start()] for suffix in _ROTATED.finditer(name)} | {plain, _INSERTED.sub("", plain)}
    return frozenset(os.path.join(folder, origin) for origin in found - {name})


def _status(path: str) -> os.stat_result | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None
