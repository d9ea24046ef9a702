"""See what asyncio programs do, by way of their logging.

Add a handler to the logging config, wrap coroutines in a span, read /metrics.
"""

from typing import TYPE_CHECKING, Any

# Of which `spans` imports nothing before it is called: a module that another thread imports at the moment of a fork can
# never be imported in the child.
from . import decorate as _decorate  # noqa: F401
from .config import Config
from .drivers import install, instrument, run
from .handler import AsyncInspectHandler
from .inspector import Inspector
from .json_logging import json_logging
from .snapshot import Snapshot
from .socket_handler import AsyncInspectSocketHandler
from .spans import Span, annotate, current_span, span
from .states import TaskState

if TYPE_CHECKING:
    from .processor import AsyncInspectProcessor as AsyncInspectProcessor

# Without AsyncInspectProcessor, which needs an extra: `import *` must not.
__all__ = [
    "AsyncInspectHandler",
    "AsyncInspectSocketHandler",
    "Config",
    "Inspector",
    "Snapshot",
    "Span",
    "TaskState",
    "annotate",
    "current_span",
    "install",
    "instrument",
    "json_logging",
    "run",
    "span",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Imported on demand, since structlog is an extra. Raises MissingExtraError without it.
    if name == "AsyncInspectProcessor":
        from .processor import AsyncInspectProcessor

        return AsyncInspectProcessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "AsyncInspectProcessor"})
