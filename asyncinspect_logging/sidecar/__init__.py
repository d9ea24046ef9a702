"""A sidecar: one process that follows the logs of others, or is told by them over a socket, and counts for all."""

from __future__ import annotations

from .sidecar import Sidecar

__all__ = ["Sidecar"]
