"""What gunicorn is to do: serve the page on a port of its own, and let a worker's gauges of your own metrics go."""

import os
from typing import Any

from prometheus_client import multiprocess

from asyncinspect_logging.exporters.prometheus import PrometheusExporter


def when_ready(server: Any) -> None:
    """In gunicorn's own process, which answers whatever the workers do."""
    if "ASYNC_INSPECT_METRICS_PORT" in os.environ:
        PrometheusExporter().start_server()


def child_exit(server: Any, worker: Any) -> None:
    multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
