"""The file that a sidecar keeps its counters and its places in: written whole or not at all, and by one at a time."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError

try:
    import fcntl
except ImportError:  # pragma: no cover - not on this system
    fcntl = None  # type: ignore[assignment]

__all__ = ["StateFile"]

_VERSION: Final = 2
_KIND: Final = "asyncinspect sidecar"


class StateFile:
    """At `path`, beside which `path.lock` says that it is in use. Raises ConfigError where it is, by another sidecar,
    or where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.abspath(os.fspath(path)))
        self._lock: int | None = None
        try:
            if fcntl is not None:
                self._lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ConfigError(
                f"state={str(self.path)!r} is in use by another sidecar; end that one, or give each its own file"
            ) from None
        except OSError as error:
            self.close()
            raise ConfigError(f"state={str(self.path)!r} cannot be written: {error}; choose another place") from error

    def load(self) -> dict[str, Any] | None:
        """What was saved last, or None where there is nothing yet. Raises ConfigError for anything else."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"state={str(self.path)!r} cannot be read: {error}") from error
        try:
            saved = json.loads(text)
        except (ValueError, RecursionError):
            saved = None
        if not isinstance(saved, dict) or saved.get("kind") != _KIND or saved.get("v") != _VERSION:
            raise self.unusable("is not what a sidecar of this version saved")
        return saved

    def unusable(self, why: str) -> ConfigError:
        """The error for a file that says something else than was written."""
        return ConfigError(f"state={str(self.path)!r} {why}; move it away to begin anew with what is in the logs")

    def save(self, state: dict[str, Any]) -> None:
        """Replace what was saved. After a crash, of the machine too, there is either this or what was there before.

        Raises OSError.
        """
        text = json.dumps({"kind": _KIND, "v": _VERSION, **state}, separators=(",", ":")).encode("ascii")
        new = f"{self.path}.new"
        # A file of this run alone: not what somebody else's link leads to, nor what others may have open already.
        with suppress(FileNotFoundError):
            os.unlink(new)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(new, flags, 0o600)
        with open(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)
        with suppress(OSError):
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def close(self) -> None:
        """Let another one have it."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)
