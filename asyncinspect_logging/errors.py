"""The exceptions that reach a user, all of them raised while setting up, never while the application runs."""

from __future__ import annotations

__all__ = ["ConfigError", "MissingExtraError"]


class ConfigError(ValueError):
    """A setting cannot be used. The message says which, its value, and what to write instead."""


class MissingExtraError(ImportError):
    """A part needs a package that an extra installs. The message holds the pip command."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra that is not installed: pip install 'asyncinspect-logging[{extra}]'")
