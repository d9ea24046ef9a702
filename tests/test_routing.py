"""Who hears of a span: handlers, levels, filters, propagation, and handlers that raise."""

import asyncio
import logging
import logging.handlers
import queue
import sys

import pytest

from asyncinspect_logging import AsyncInspectHandler, Config, Inspector, annotate, diagnostics, instrument, span
from asyncinspect_logging.records import TRACE, SpanRecord
from asyncinspect_logging.routing import DEFAULT_POLICY, route_of

LOGGER = logging.getLogger("asyncinspect")
ROOT = logging.getLogger()


class Keep(logging.Handler):
    """Keeps what it is given, as text."""

    def __init__(self, level=logging.NOTSET, *, accepts=None):
        super().__init__(level)
        if accepts is not None:
            self.accepts_spans = accepts
        self.told = []

    def emit(self, record):
        self.told.append(record.getMessage().partition(" completed after")[0])


class Refuse(logging.Filter):
    """A filter that lets nothing pass, and counts what it was asked about."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def filter(self, record):
        self.asked.append(record.getMessage().partition(" completed after")[0])
        return False


@pytest.fixture(autouse=True)
def _quiet_root():
    """Only the handlers of the test, not those of the test runner."""
    before, ROOT.handlers = ROOT.handlers, []
    yield
    ROOT.handlers = before


@pytest.fixture
def tree():
    """Three loggers below each other."""
    names = ["routes", "routes.shop", "routes.shop.orders"]
    loggers = [logging.getLogger(name) for name in names]
    yield loggers
    for logger in loggers:
        logger.handlers.clear()
        logger.filters.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        logger.disabled = False


def one_span(logger=None, name="a"):
    with span(name, logger=logger):
        pass


def finished(inspector):
    return {name: view.finished for name, view in inspector.snapshot().names.items()}


def test_accepting_handlers_hear_whatever_the_levels():
    """At root level ERROR the console stays quiet, and the inspector sees everything."""
    inspector, console, accepting = Inspector(), Keep(), Keep(accepts=True)
    ROOT.handlers = [console, AsyncInspectHandler(inspector), accepting]
    ROOT.setLevel("ERROR")
    one_span()
    assert console.told == []
    assert accepting.told == ["enter a", "exit a"]
    assert finished(inspector) == {"a": 1}


def test_level_of_an_accepting_handler_is_for_ordinary_records():
    """Its own level does not keep spans from it."""
    inspector = Inspector()
    ROOT.handlers = [AsyncInspectHandler(inspector, level="CRITICAL")]
    one_span()
    assert finished(inspector) == {"a": 1}


@pytest.mark.parametrize(
    ("logger_level", "handler_level", "kinds"),
    [
        ("INFO", logging.NOTSET, set()),
        ("DEBUG", logging.NOTSET, {"enter", "exit"}),
        ("DEBUG", logging.INFO, set()),
        (TRACE, logging.DEBUG, {"enter", "exit"}),
        (TRACE, TRACE, {"spawn", "enter", "suspend", "wake", "resume", "exit"}),
    ],
)
def test_ordinary_handlers_hear_as_the_levels_allow(logger_level, handler_level, kinds):
    """Both the logger's level and the handler's count, as for any record."""
    handler = Keep(handler_level)
    ROOT.handlers = [handler]
    LOGGER.setLevel(logger_level)
    asyncio.run(instrument(asyncio.sleep(0), name="a"))
    assert {line.split()[0] for line in handler.told} == kinds


def test_steps_need_level_trace_even_where_spans_are_accepted():
    """What happens at each step is a record only where level TRACE is on."""
    handler = Keep(accepts=True)
    ROOT.handlers = [handler]
    asyncio.run(instrument(asyncio.sleep(0), name="a"))
    assert [line for line in handler.told if not line.startswith("spawn")] == ["enter a", "exit a"]


def test_path_to_the_root(tree):
    """Handlers all the way up hear, nearest first, up to a logger that does not propagate."""
    top, middle, bottom = tree
    heard = []
    for logger in (ROOT, *tree):
        handler = Keep(accepts=True)
        handler.emit = lambda record, name=logger.name: heard.append(name) if record.kind == "enter" else None
        logger.addHandler(handler)
    one_span(bottom)
    assert heard == ["routes.shop.orders", "routes.shop", "routes", "root"]
    heard.clear()
    for cut, expected in ((top, 3), (middle, 2), (bottom, 1)):
        # Each is cut off from what is above it.
        cut.propagate = False
        one_span(bottom)
        assert len(heard) == expected
        heard.clear()
    for logger in tree:
        logger.propagate = True
    one_span(bottom)
    assert len(heard) == 4


def test_changes_are_noticed(tree):
    """Whatever changes in the logging set-up counts from the next span on."""
    top, middle, bottom = tree
    inspector, other = Inspector(), Inspector()
    handler, second = AsyncInspectHandler(inspector), AsyncInspectHandler(other)
    steps = [
        (lambda: None, 0, 0),
        (lambda: middle.addHandler(handler), 1, 0),
        (lambda: top.addHandler(second), 1, 1),
        (lambda: setattr(middle, "propagate", False), 1, 0),
        (lambda: setattr(middle, "propagate", True), 1, 1),
        (lambda: top.removeHandler(second), 1, 0),
        (lambda: ROOT.addHandler(second), 1, 1),
        (lambda: setattr(top, "propagate", False), 1, 0),
        (lambda: setattr(top, "propagate", True), 1, 1),
        (lambda: middle.handlers.clear(), 0, 1),
        (lambda: setattr(ROOT, "handlers", [handler]), 1, 0),
        (lambda: ROOT.handlers.append(second), 1, 1),
        (lambda: bottom.addFilter(lambda record: False), 0, 0),
        (lambda: bottom.filters.clear(), 1, 1),
        (lambda: handler.addFilter(lambda record: False), 0, 1),
        (lambda: handler.filters.clear(), 1, 1),
        (lambda: second.addFilter(lambda record: False), 1, 0),
        (lambda: second.filters.clear(), 1, 1),
    ]
    for number, (change, one, two) in enumerate(steps):
        change()
        before = finished(inspector).get("a", 0), finished(other).get("a", 0)
        one_span(bottom)
        after = finished(inspector).get("a", 0), finished(other).get("a", 0)
        assert (after[0] - before[0], after[1] - before[1]) == (one, two), f"step {number}"


def test_levels_changed_are_noticed(tree):
    """A level set anywhere on the path, or on a handler, or by `logging.disable`, counts from the next span on."""
    top, _middle, bottom = tree
    handler = Keep()
    ROOT.handlers = [handler]
    steps = [
        (lambda: None, 0),
        (lambda: top.setLevel("DEBUG"), 2),
        (lambda: handler.setLevel("INFO"), 0),
        (lambda: handler.setLevel("DEBUG"), 2),
        (lambda: bottom.setLevel("INFO"), 0),
        (lambda: bottom.setLevel("DEBUG"), 2),
        (lambda: logging.disable(logging.DEBUG), 0),
        (lambda: logging.disable(logging.NOTSET), 2),
    ]
    try:
        for number, (change, expected) in enumerate(steps):
            change()
            handler.told.clear()
            one_span(bottom)
            assert len(handler.told) == expected, f"step {number}"
    finally:
        logging.disable(logging.NOTSET)


def test_same_handler_twice_on_the_path(tree):
    """It hears once."""
    inspector, keep = Inspector(), Keep(accepts=True)
    handler = AsyncInspectHandler(inspector)
    tree[2].handlers = [handler, keep]
    tree[0].handlers = [handler, keep]
    one_span(tree[2])
    assert finished(inspector) == {"a": 1}
    assert keep.told == ["enter a", "exit a"]


def test_two_handlers_of_one_inspector():
    """They count once."""
    inspector = Inspector()
    ROOT.handlers = [AsyncInspectHandler(inspector), AsyncInspectHandler(inspector)]
    one_span()
    assert finished(inspector) == {"a": 1}
    assert inspector.snapshot().names["a"].spawned == 1


@pytest.mark.parametrize("where", ["handler", "logger"])
@pytest.mark.parametrize("accepts", [True, None])
def test_filter_is_asked_once_for_each_span(where, accepts):
    """A filter decides on the first record; what it refused is not told later."""
    handler, refuse = Keep(accepts=accepts), Refuse()
    ROOT.handlers = [handler]
    LOGGER.setLevel("DEBUG")
    (handler if where == "handler" else LOGGER).addFilter(refuse)
    with span("a") as a:
        a.record(x=1)
    assert refuse.asked == ["enter a"]
    assert handler.told == []


def test_filter_asked_at_spawn_decides_for_the_rest():
    """A driven span that was refused at its first record is not told at any later one, steps included."""
    handler, refuse = Keep(accepts=True), Refuse()
    handler.addFilter(refuse)
    ROOT.handlers = [handler]
    LOGGER.setLevel(TRACE)
    asyncio.run(instrument(asyncio.sleep(0), name="a"))
    assert len(refuse.asked) == 1
    assert handler.told == []


def test_filter_on_our_own_handler():
    """Spans can be kept from the inspector by name."""
    inspector = Inspector()
    handler = AsyncInspectHandler(inspector)
    handler.addFilter(lambda record: record.span != "health")
    ROOT.handlers = [handler]
    one_span(name="health")
    one_span(name="work")
    assert finished(inspector) == {"work": 1}


def test_refused_by_one_heard_by_the_other():
    """Each handler's filters are its own."""
    one, two = Keep(accepts=True), Keep(accepts=True)
    one.addFilter(lambda record: False)
    ROOT.handlers = [one, two]
    one_span()
    assert (one.told, two.told) == ([], ["enter a", "exit a"])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="filters replace records since 3.12")
def test_filter_that_replaces_the_record():
    """A filter may put another record in place of the one that it is asked about."""
    handler = Keep(accepts=True)
    handler.addFilter(lambda record: logging.makeLogRecord({"msg": "instead"}))
    ROOT.handlers = [handler]
    one_span()
    assert handler.told[0] == "instead"


def test_filter_that_raises():
    """It is the handler's trouble, told once, and the application does not see it."""

    def fail(record):
        raise ValueError("filter")

    handler, other = Keep(accepts=True), Keep(accepts=True)
    errors = []
    handler.handleError = errors.append
    handler.addFilter(fail)
    ROOT.handlers = [handler, other]
    for _ in range(3):
        one_span()
    assert len(errors) <= 1
    assert other.told == ["enter a", "exit a"] * 3


def test_handler_that_raises(monkeypatch):
    """`handleError` is called once, every error is counted, and the others hear all the same."""
    monkeypatch.setattr(diagnostics, "troubles", diagnostics.troubles.__class__())
    monkeypatch.setattr("asyncinspect_logging.routing.troubles", diagnostics.troubles)

    class Broken(Keep):
        def emit(self, record):
            raise OSError("disk full")

    handler, other = Broken(accepts=True), Keep(accepts=True)
    errors = []
    handler.handleError = errors.append
    ROOT.handlers = [handler, other]
    for _ in range(3):
        one_span()
    assert len(errors) == 1
    assert sum(diagnostics.troubles.values()) == 6
    assert other.told == ["enter a", "exit a"] * 3


def test_handler_whose_handle_error_raises():
    """Not even that reaches the application."""

    class Broken(Keep):
        def emit(self, record):
            raise OSError

        def handleError(self, record):
            raise RuntimeError

    ROOT.handlers = [Broken(accepts=True)]
    one_span()


def test_span_inside_emit_is_not_heard():
    """A span that a handler begins while it is given a record is current, and no more."""

    class Spanning(Keep):
        def emit(self, record):
            super().emit(record)
            with span("inside") as inside:
                annotate("line")
                assert inside.id

    handler = Spanning(accepts=True)
    ROOT.handlers = [handler]
    one_span()
    assert handler.told == ["enter a", "exit a"]


def test_own_handle_is_respected():
    """A handler that overrides `handle`, as QueueHandler's listeners and test doubles do, is given the record there."""
    handled = []

    class Own(Keep):
        def handle(self, record):
            handled.append(record.getMessage().partition(" completed after")[0])

    ROOT.handlers = [Own(accepts=True)]
    one_span()
    assert handled == ["enter a", "exit a"]


def test_queue_handler_with_accepting_listener():
    """A queue handler accepts spans where it says so, and the inspector behind it counts them."""
    inspector = Inspector()
    records = queue.SimpleQueue()
    handler = logging.handlers.QueueHandler(records)
    handler.accepts_spans = True
    ROOT.handlers = [handler]
    ROOT.setLevel("WARNING")
    one_span()
    listener = logging.handlers.QueueListener(records, AsyncInspectHandler(inspector))
    listener.start()
    listener.stop()
    assert finished(inspector) == {"a": 1}


def test_disabled_logger(tree):
    """dictConfig's `disable_existing_loggers` takes the logger's own handlers out, and not those above it."""
    inspector, above = Inspector(), Inspector()
    tree[2].addHandler(AsyncInspectHandler(inspector))
    ROOT.handlers = [AsyncInspectHandler(above)]
    tree[2].disabled = True
    one_span(tree[2])
    tree[2].disabled = False
    one_span(tree[2])
    assert finished(inspector) == {"a": 1}
    assert finished(above) == {"a": 2}


def test_disabled_by_hand_between_two_spans(tree):
    """`logger.disabled` tells nobody that it was set, and counts from the next span on. As with ordinary records, a
    logger above that is disabled goes on handing to its handlers.
    """
    inspector = Inspector()
    tree[2].addHandler(AsyncInspectHandler(inspector))
    for disabled, count in ((False, 1), (True, 1), (False, 2)):
        tree[2].disabled = disabled
        one_span(tree[2])
        assert inspector.snapshot().names["a"].finished == count
    tree[2].handlers, tree[1].handlers = [], tree[2].handlers
    for disabled, count in ((False, 3), (True, 4)):
        tree[1].disabled = disabled
        one_span(tree[2])
        assert inspector.snapshot().names["a"].finished == count


def test_strictest_policy_counts():
    """One record goes to all, so what one inspector hides, none is shown."""
    open_, strict = Inspector(), Inspector(Config(redact=("colour",), max_field_length=5))
    ROOT.handlers = [AsyncInspectHandler(open_), AsyncInspectHandler(strict)]
    with span("a", colour="red", password="x", text="1234567890"):
        pass
    for inspector in (open_, strict):
        (task,) = inspector.snapshot().tasks
        assert dict(task.fields) == {"colour": "[redacted]", "password": "[redacted]", "text": "1234…"}


def test_route_is_kept_for_each_logger():
    """One route for each logger, whatever is put in for it."""
    logger = logging.getLogger("routes")
    assert route_of(logger) is route_of(logger)
    assert route_of(logging.LoggerAdapter(logger, {})) is route_of(logger)


def test_default_policy_where_nobody_has_one():
    """Without an inspector the records still have no secrets in them."""
    told = []

    class Ordinary(logging.Handler):
        def emit(self, record):
            assert isinstance(record, SpanRecord)
            told.append(record.asyncinspect.get("fields"))

    ROOT.handlers = [Ordinary()]
    LOGGER.setLevel("DEBUG")
    with span("a", password="x", long="y" * 5000):
        pass
    assert told[0]["password"] == "[redacted]"
    assert len(told[0]["long"]) == DEFAULT_POLICY.max_length


def test_nobody_listens():
    """Without handlers, and with one that hears no spans, there is no audience."""
    assert route_of(LOGGER).audience() is None
    ROOT.handlers = [Keep(accepts=False)]
    ROOT.setLevel("INFO")
    assert route_of(LOGGER).audience() is None
