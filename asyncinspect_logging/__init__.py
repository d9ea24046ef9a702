"""See what asyncio programs do, by way of their logging.

Add a handler to the logging config, wrap coroutines in a span, read /metrics.
"""

from .config import Config
from .drivers import install, instrument, run
from .handler import AsyncInspectHandler
from .inspector import Inspector
from .snapshot import Snapshot
from .spans import Span, annotate, current_span, span
from .states import TaskState

__all__ = [
    "AsyncInspectHandler",
    "Config",
    "Inspector",
    "Snapshot",
    "Span",
    "TaskState",
    "annotate",
    "current_span",
    "install",
    "instrument",
    "run",
    "span",
]
__version__ = "0.1.0"
