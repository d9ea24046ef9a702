"""Whether a process is ready: as long as somebody feeds its inspector, by whatever way."""

from __future__ import annotations

import gc
import logging
import logging.config
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from typing import Any

import pytest

from asyncinspect_logging import AsyncInspectHandler, AsyncInspectProcessor, Inspector, span
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.exporters.server import MetricsServer

READY = (200, "ready\n")
UNFED = (503, "not ready: no handler and no processor feeds the inspector\n")


@pytest.fixture(autouse=True)
def free_logging() -> Iterator[None]:
    """What `dictConfig` disables is not so afterwards."""
    loggers = [one for one in logging.Logger.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    before = [(logger, logger.disabled, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    for logger, disabled, handlers, propagate in before:
        logger.disabled, logger.handlers[:], logger.propagate = disabled, handlers, propagate
    logging.getLogger("shop").handlers.clear()


def ready(server: MetricsServer) -> tuple[int, str]:
    url = f"http://127.0.0.1:{server.port}/-/ready"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.read().decode()


def test_ready_once_somebody_feeds_the_inspector() -> None:
    """A process whose handler is missing is not; one that reads a log of others needs none."""
    inspector = Inspector()
    with PrometheusExporter(inspector) as exporter, exporter.start_server(0) as server:
        assert ready(server) == UNFED
        logging.getLogger("shop").addHandler(AsyncInspectHandler(inspector))
        assert ready(server) == READY
    told = Inspector()
    told.first_hand = False
    with PrometheusExporter.multi([Inspector(), told]) as exporter, exporter.start_server(0) as server:
        assert ready(server) == READY


@pytest.mark.parametrize("how", ["removed", "closed", "disabled", "dictConfig", "before any scrape"])
def test_not_ready_once_nobody_feeds_the_inspector_any_more(how: str) -> None:
    """And again when somebody does."""
    inspector, logger = Inspector(), logging.getLogger("asyncinspect")
    handler = AsyncInspectHandler(inspector)
    logger.addHandler(handler)
    with PrometheusExporter(inspector) as exporter, exporter.start_server(0) as server:
        if how == "before any scrape":
            with span("work"):
                pass
        else:
            assert ready(server) == READY
        if how == "disabled":
            logger.disabled = True
        elif how == "dictConfig":
            logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
        else:
            logger.removeHandler(handler)
            if how == "closed":
                handler.close()
        assert ready(server) == UNFED
        with span("unheard"):
            pass
        assert "unheard" not in inspector.snapshot().names
        logger.disabled = False
        logger.addHandler(handler)
        assert ready(server) == READY
        # This closes the handler, and leaves it where it is.
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
        assert ready(server) == READY
        with span("heard"):
            pass
        assert inspector.snapshot().names["heard"].completed == 1


@pytest.mark.parametrize("how", ["listener", "queue", "applied", "processor"])
def test_ready_with_those_who_feed_an_inspector_by_another_way(how: str) -> None:
    """No handler of ours is on a logger."""
    inspector = Inspector()
    kept: list[Any] = [AsyncInspectHandler(inspector)]
    with PrometheusExporter(inspector) as exporter, exporter.start_server(0) as server:
        if how == "listener":
            # Of a queue in which other processes put what they have to say.
            kept.append(QueueListener(SimpleQueue(), *kept))
        elif how == "queue":
            logging.getLogger("asyncinspect").addHandler(*kept)
            assert ready(server) == READY
            logging.getLogger("asyncinspect").removeHandler(*kept)
            queue = QueueHandler(SimpleQueue())
            queue.accepts_spans = True  # type: ignore[attr-defined] # as the documents say
            logging.getLogger("asyncinspect").addHandler(queue)
        else:
            kept.pop().close()
            gc.collect()
            assert ready(server) == UNFED
            if how == "applied":
                inspector.apply({"asyncinspect": {}})
            else:
                kept.append(AsyncInspectProcessor(inspector))
        assert ready(server) == READY


def test_ready_while_logging_is_set_up_anew() -> None:
    """What `dictConfig` takes off and puts on again was never away."""
    inspector = Inspector()
    config = {
        "version": 1,
        # They are made in the order of their names.
        "handlers": {"1": {"()": lambda: slow()}, "2": {"()": lambda: AsyncInspectHandler(inspector)}},
        "loggers": {"shop": {"handlers": ["1"]}, "asyncinspect": {"handlers": ["2"]}},
    }
    logger = logging.getLogger("asyncinspect")  # while logging is set up, this waits too
    begun, go_on, seen = threading.Event(), threading.Event(), list[Any]()

    def slow() -> logging.Handler:
        begun.set()
        go_on.wait(10)
        return logging.NullHandler()

    go_on.set()
    logging.config.dictConfig(config)
    with PrometheusExporter(inspector) as exporter, exporter.start_server(0) as server:
        assert ready(server) == READY
        go_on.clear()
        begun.clear()
        setting_up = threading.Thread(target=logging.config.dictConfig, args=(config,))
        setting_up.start()
        assert begun.wait(10)
        # The old handler is off: whoever asks now waits for the new one.
        logger.handlers.clear()
        asking = threading.Thread(target=lambda: seen.append(ready(server)))
        asking.start()
        asking.join(0.1)
        assert not seen
        go_on.set()
        asking.join(10)
        setting_up.join(10)
    assert seen == [READY]
