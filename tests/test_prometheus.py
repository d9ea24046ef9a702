"""The exporter: its options, its registry, how old a page may be, and what survives an error or a fork."""

import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
import weakref

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import REGISTRY
from prometheus_client.openmetrics import exposition as openmetrics_exposition

from asyncinspect_logging import clock
from asyncinspect_logging.catalogue import DURATION_BOUNDS, LAG_BOUNDS, POLL_COUNT_BOUNDS, STEP_BOUNDS
from asyncinspect_logging.config import Config
from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.exporters import families
from asyncinspect_logging.exporters.prometheus import PrometheusExporter
from asyncinspect_logging.inspector import Inspector
from asyncinspect_logging.snapshot import Histogram, NameView, Snapshot


def empty(bounds):
    return Histogram(bounds, (0,) * (len(bounds) + 1), 0.0)


class Source:
    """An inspector that finished `spawned` tasks called "job", in 0.02 s each."""

    def __init__(self, spawned=1):
        self.spawned = spawned
        self.bounds = DURATION_BOUNDS
        self.taken = 0
        self.fail = None
        self.reading = threading.Event()

    def add_duration_bounds(self, bounds):
        self.bounds = tuple(sorted({*self.bounds, *bounds}))

    def snapshot(self, *, tasks=True):
        assert not tasks, "a scrape needs no task views"
        self.taken += 1
        self.reading.set()
        if self.fail:
            raise self.fail
        counts = tuple(
            self.spawned * (low < 0.02 <= high) for low, high in zip((0, *self.bounds), (*self.bounds, 99), strict=True)
        )
        view = NameView(
            "job", self.spawned, self.spawned, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0,
            {"completed": Histogram(self.bounds, counts, 0.02 * self.spawned)},
            empty(POLL_COUNT_BOUNDS), empty(STEP_BOUNDS), empty(STEP_BOUNDS),
        )  # fmt: skip
        return Snapshot(0.0, (), {"job": view}, {}, {}, {}, {}, (), 0, {}, empty(LAG_BOUNDS))


class Time:
    """A clock that stands still until told otherwise."""

    def __init__(self):
        self.now = 10**9

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr(clock, "monotonic_ns", lambda: time.now)
    return time


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def exporter(source):
    with PrometheusExporter(source) as exporter:
        yield exporter


def fetch(url, **headers):
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.read().decode()


def job_total(text):
    """The value of tasks_total for "job", or None."""
    lines = [line for line in text.splitlines() if line.startswith('async_inspect_tasks_total{name="job"}')]
    assert len(lines) <= 1
    return float(lines[0].split()[1]) if lines else None


def test_gather_is_what_prometheus_client_gives(exporter):
    """The page is byte for byte generate_latest's of the registry, in both formats."""
    assert exporter.gather() == generate_latest(exporter.registry).decode()
    openmetrics = openmetrics_exposition.generate_latest(exporter.registry).decode()
    assert exporter.gather(openmetrics=True) == openmetrics
    assert job_total(openmetrics) == 1


def test_the_application_s_metrics_are_on_the_page(source):
    """A registry that holds other metrics is given whole: by gather, by the server, and by prometheus_client."""
    registry = CollectorRegistry(target_info={"env": "test"})
    Counter("http_requests", "Requests", registry=registry).inc(7)
    exporter = PrometheusExporter.with_registry(source, registry, name_label="task")
    Gauge("late_comer", "Registered later", registry=registry).set(3)
    text = exporter.gather()
    for part in (
        'async_inspect_tasks_total{task="job"} 1.0',
        "http_requests_total 7.0",
        "late_comer 3.0",
        'target_info{env="test"}',
    ):
        assert text.count(part) == 1
    assert sorted(text.splitlines()) == sorted(generate_latest(registry).decode().splitlines())
    openmetrics = exporter.gather(openmetrics=True)
    assert openmetrics.endswith("# EOF\n")
    assert openmetrics.count("# EOF") == 1
    assert "late_comer 3.0" in openmetrics
    with exporter.start_server("127.0.0.1:0") as server:
        assert fetch(server.url) == text
        assert fetch(server.url + "?name[]=late_comer").splitlines()[2:] == ["late_comer 3.0"]


def test_two_exporters_may_not_share_a_registry(source):
    """The second one fails with a family's name and the ways out, and leaves the first one as it was."""
    first = PrometheusExporter(source)
    with pytest.raises(ConfigError, match=r"already has async_inspect_\w+, .*PrometheusExporter\.multi"):
        PrometheusExporter(Source(), registry=first.registry, name_label="other")
    assert job_total(first.gather()) == 1
    first.close()
    assert job_total(PrometheusExporter(Source(5), registry=first.registry).gather()) == 5


def test_a_registry_that_refuses_for_its_own_reasons(source):
    """The reason is passed on."""

    class Closed(CollectorRegistry):
        def register(self, collector):
            raise ValueError("closed for today")

    with pytest.raises(ConfigError, match="closed for today; give another"):
        PrometheusExporter(source, registry=Closed())


def test_the_apps_give_the_page(exporter):
    """Both apps are about the exporter's own pages."""
    started = []
    body = exporter.wsgi_app()({"REQUEST_METHOD": "GET"}, lambda *response: started.append(response))
    assert b"".join(body).decode() == exporter.gather()
    assert started[0][0] == "200 OK"
    sent = []

    async def send(message):
        sent.append(message)

    with pytest.raises(StopIteration):
        exporter.asgi_app()({"type": "http", "method": "GET", "headers": []}, None, send).send(None)
    assert sent[1]["body"].decode() == exporter.gather()


def test_the_global_registry_stays_clean(exporter):
    """Without a registry the exporter has one of its own."""
    assert exporter.registry is not REGISTRY
    assert REGISTRY.get_sample_value("async_inspect_deadlocks_total") is None


def test_registering_reads_no_inspector(source):
    """What the families are is known without a snapshot."""
    PrometheusExporter(source)
    assert source.taken == 0


def test_the_default_inspector():
    """Without an inspector it exports the process's own."""
    exporter = PrometheusExporter()
    assert exporter._pages._source is Inspector.default()
    assert "async_inspect_build_info" in exporter.gather()


def test_several_inspectors_add_up():
    """One page holds the sums, and custom buckets reach every inspector."""
    sources = [Source(2), Source(3)]
    exporter = PrometheusExporter.multi(sources, duration_buckets=[0.015, 0.02, 7], task_metrics=True)
    text = exporter.gather()
    assert job_total(text) == 5
    assert 'async_inspect_task_duration_seconds_bucket{le="0.015",name="job",state="completed"} 0.0' in text
    assert 'async_inspect_task_duration_seconds_bucket{le="0.02",name="job",state="completed"} 5.0' in text
    assert all(0.015 in source.bounds for source in sources)
    assert text == generate_latest(exporter.registry).decode()


def test_multi_needs_each_inspector_once(source):
    """Nothing to export, and an inspector that would count twice, are errors."""
    with pytest.raises(ConfigError, match="at least one"):
        PrometheusExporter.multi([])
    with pytest.raises(ConfigError, match="twice"):
        PrometheusExporter.multi([source, source])


def test_buckets_of_their_own(source):
    """The page has the exporter's bounds and no others; default ones ask nothing of the inspector."""
    text = PrometheusExporter(source, duration_buckets=(0.01, 3)).gather()
    lines = [line for line in text.splitlines() if line.startswith("async_inspect_task_duration_seconds_bucket")]
    assert [line.split('le="')[1].split('"')[0] for line in lines] == ["0.01", "3.0", "+Inf"]
    assert 3.0 in source.bounds
    other = Source()
    PrometheusExporter(other, duration_buckets=(0.01, 0.1))
    assert other.bounds is DURATION_BOUNDS


def test_groups_are_switched_off(source):
    """Each switch takes its group off the page."""
    off = dict.fromkeys(("task_metrics", "event_metrics", "memory_metrics", "health_metrics"), False)
    assert PrometheusExporter(source, **off).gather() == ""
    text = PrometheusExporter(source, **{**off, "event_metrics": True}).gather()
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} == {
        "async_inspect_events_total"
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("path", "metrics"),
        ("port", 65536),
        ("port", -1),
        ("port", "9090"),
        ("port", True),
        ("update_interval", -1),
        ("update_interval", float("nan")),
        ("update_interval", float("inf")),
        ("update_interval", "1"),
        ("update_interval", None),
        ("name_label", "le"),
        ("name_label", "state"),
        ("name_label", "component"),
        ("name_label", "version"),
        ("name_label", "__name"),
        ("name_label", "a-b"),
        ("name_label", "1a"),
        ("name_label", "name\n"),
        ("name_label", ""),
        ("name_label", None),
        ("duration_buckets", ()),
        ("duration_buckets", (0.1, 0.1)),
        ("duration_buckets", (1, 0.1)),
        ("duration_buckets", (-1, 1)),
        ("duration_buckets", (0.1, float("nan"))),
        ("duration_buckets", (0.1, float("inf"))),
        ("duration_buckets", (0.1, "1")),
        ("duration_buckets", (0.1, None)),
        ("duration_buckets", (True, 2)),
        ("duration_buckets", (10**400,)),
        ("duration_buckets", "0.1"),
        ("duration_buckets", 5),
        ("duration_buckets", None),
    ],
)
def test_bad_options(source, option, value):
    """The error names the option, its value, and what to write instead; nothing is registered."""
    registry = CollectorRegistry()
    with pytest.raises(ConfigError, match=r"; (write|sort)") as caught:
        PrometheusExporter(source, registry=registry, **{option: value})
    assert f"{option}={value!r}" in str(caught.value)
    assert generate_latest(registry) == b""
    assert source.bounds is DURATION_BOUNDS


def test_a_page_is_served_again_for_its_interval(exporter, source, time):
    """Scrapes within update_interval share one snapshot, in every format; the next one is fresh."""
    with exporter.start_server(0) as server:
        for headers in ({}, {"Accept": "application/openmetrics-text"}, {}):
            source.spawned += 1
            assert job_total(fetch(server.url, **headers)) == 2
        assert source.taken == 1
        time.sleep(1.0)
        assert job_total(fetch(server.url)) == source.spawned


def test_interval_zero_makes_every_scrape_fresh(source, time):
    """update_interval=0 never serves a page twice."""
    with PrometheusExporter(source, update_interval=0) as exporter, exporter.start_server(0) as server:
        for expected in (5, 6, 7):
            source.spawned = expected
            assert job_total(fetch(server.url)) == expected


def test_rights_that_a_process_gives_up(source, monkeypatch):
    """What it could read when the exporter was made is on its pages after that; what it never could, fails none."""

    def unreadable(name):
        raise PermissionError(name)

    try:
        for read, shown in ((lambda name: "9.8.7", "9.8.7"), (unreadable, "unknown")):
            families.version_of_package.cache_clear()
            monkeypatch.setattr(families, "version", read)
            exporter = PrometheusExporter(source)
            monkeypatch.setattr(families, "version", unreadable)
            assert f'async_inspect_build_info{{version="{shown}"}} 1.0' in exporter.gather()
    finally:
        families.version_of_package.cache_clear()


@pytest.mark.parametrize(("interval", "kept"), [(0, False), (60, True)])
def test_a_page_is_kept_only_where_it_may_be_served_again(source, interval, kept):
    """With thousands of names it is as large as all that they count."""
    with PrometheusExporter(source, update_interval=interval) as exporter:
        page = weakref.ref(exporter._pages.refresh())
        assert (page() is not None) == kept


def test_gather_and_update_are_always_fresh(exporter, source, time):
    """What is called by hand reads the inspector now, and scrapes get that page from then on."""
    with exporter.start_server(0) as server:
        fetch(server.url)
        source.spawned = 8
        exporter.update()
        assert job_total(fetch(server.url)) == 8
        source.spawned = 9
        assert job_total(exporter.gather()) == 9


def test_ten_scrapes_and_updates_of_a_quiet_process_are_equal(exporter):
    """Reading changes nothing."""
    pages = set()
    for _ in range(10):
        exporter.update()
        pages |= {exporter.gather(), generate_latest(exporter.registry).decode()}
    assert len(pages) == 1


def test_a_clock_that_goes_back_does_not_keep_a_page(exporter, source, time):
    """A page from the future is not young."""
    exporter.update()
    time.sleep(-100)
    assert exporter._pages.refresh(unless_young=True)
    assert source.taken == 2


def test_the_updater_refreshes_in_the_background(exporter, source, time):
    """With an updater a scrape is served its latest page past update_interval, but not once the updater is stuck."""

    def updaters():
        return sum(thread.name == "asyncinspect-update" for thread in threading.enumerate())

    threads = updaters()
    exporter.start_background_updater(500.0)
    exporter.start_background_updater(500)
    assert updaters() == threads + 1
    assert source.reading.wait(10)
    exporter.update()  # waits for the first round, which holds the lock
    taken = source.taken
    with exporter.start_server(0) as server:
        time.sleep(900)
        fetch(server.url)
        assert source.taken == taken
        time.sleep(200)
        fetch(server.url)
        assert source.taken == taken + 1
    exporter.close()
    exporter.close()
    assert updaters() == threads


def test_the_updater_goes_round(exporter, source):
    """It calls update again and again, with another interval once told."""
    exporter.start_background_updater(1000)
    assert source.reading.wait(10)
    source.reading.clear()
    exporter.start_background_updater(0.001)
    for _ in range(3):
        assert source.reading.wait(10)
        source.reading.clear()


def test_the_updater_survives_errors(exporter, source, caplog):
    """A failing inspector is logged once, counted each time, and read again."""
    source.fail = RuntimeError("broken")
    exporter.start_background_updater(0.001)
    while exporter.errors < 3:
        assert source.reading.wait(10)
        source.reading.clear()
    source.fail = None
    source.reading.clear()
    assert source.reading.wait(10)
    exporter.close()
    assert [record.name for record in caplog.records] == ["asyncinspect.internal"]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "1", None])
def test_bad_updater_interval(exporter, seconds):
    """The error names the value and the fix."""
    with pytest.raises(ConfigError, match="write"):
        exporter.start_background_updater(seconds)


def test_updates_are_packed_before_they_are_asked_for(exporter, source):
    """After a refresh, the compressed form that scrapers use is ready."""
    exporter._pages.serve(openmetrics=True, compress=True, names=())
    exporter.update()
    assert exporter._pages._page._packed.keys() == {True}


def test_a_failing_inspector_spares_the_application_s_scrape(source, caplog):
    """The registry's own scrape goes on without our families; the failure is logged once until it is over."""
    registry = CollectorRegistry()
    Counter("http_requests", "Requests", registry=registry).inc()
    exporter = PrometheusExporter(source, registry=registry)
    source.fail = RuntimeError("broken")
    for _ in range(3):
        text = generate_latest(registry).decode()
        assert "http_requests_total 1.0" in text
        assert "async_inspect" not in text
    assert exporter.errors == 3
    assert [(record.name, record.levelno) for record in caplog.records] == [("asyncinspect.internal", logging.WARNING)]
    source.fail = None
    assert job_total(generate_latest(registry).decode()) == 1
    source.fail = RuntimeError("broken again")
    generate_latest(registry)
    assert len(caplog.records) == 2


def test_a_failing_inspector_is_a_failed_scrape(exporter, source, caplog):
    """Our server answers 500 rather than an old page or half of one, with names too, and recovers."""
    exporter.update()
    source.fail = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        exporter.gather()
    with exporter.start_server(0) as server:
        for query in ("", "?name[]=async_inspect_tasks_total"):
            with pytest.raises(urllib.error.HTTPError, match="500") as caught:
                fetch(server.url + query)
            caught.value.close()
        source.fail = None
        assert job_total(fetch(server.url)) == 1
        assert job_total(fetch(server.url + "?name[]=async_inspect_tasks_total")) == 1
    assert len(caplog.records) == 1


def test_a_failing_collector_of_the_application(exporter):
    """gather raises what another collector raised, and a later page is whole again."""

    class Broken:
        fail = True

        def collect(self):
            if self.fail:
                raise RuntimeError("theirs")
            return []

    broken = Broken()
    exporter.registry.register(broken)
    with pytest.raises(RuntimeError, match="theirs"):
        exporter.gather()
    broken.fail = False
    assert job_total(exporter.gather()) == 1


def test_an_inspector_that_logs_while_it_is_read_does_no_harm(exporter, source, caplog):
    """A scrape that logs, whose log asks for a page, comes to an end."""
    asked = []

    class Nosy(logging.Handler):
        def emit(self, record):
            asked.append(exporter.gather())

    handler = Nosy()
    logging.getLogger("asyncinspect.internal").addHandler(handler)
    source.fail = RuntimeError("broken")
    try:
        assert exporter.collect() == []
    finally:
        logging.getLogger("asyncinspect.internal").removeHandler(handler)
    assert asked == []


@pytest.mark.parametrize(("variable", "expected"), [("0", "127.0.0.1"), ("localhost:0", "127.0.0.1")])
def test_the_environment_names_the_port(exporter, monkeypatch, variable, expected):
    """Without an address the variable decides; an address given by hand wins over it."""
    monkeypatch.setenv("ASYNC_INSPECT_METRICS_PORT", variable)
    with exporter.start_server() as server:
        assert server.host == expected
    monkeypatch.setenv("ASYNC_INSPECT_METRICS_PORT", "nonsense")
    with pytest.raises(ConfigError, match="ASYNC_INSPECT_METRICS_PORT='nonsense'"):
        exporter.start_server()
    exporter.start_server("127.0.0.1:0").close()


def test_the_exporter_s_port_is_the_last_resort(source, monkeypatch):
    """Without an address and the variable, the option port decides."""
    monkeypatch.delenv("ASYNC_INSPECT_METRICS_PORT", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f":{port}: the port is in use"):
            PrometheusExporter(source, port=port).start_server()
    with PrometheusExporter(source, port=0, path="/own").start_server() as server:
        assert server.url.endswith("/own")
        assert job_total(fetch(server.url)) == 1


def test_the_inspector_s_config_names_the_port(monkeypatch):
    """Without an address, the variable and the option port, it is `metrics_port` that decides, with its host."""
    monkeypatch.delenv("ASYNC_INSPECT_METRICS_PORT", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        inspector = Inspector(Config(metrics_port=port))
        exporters = PrometheusExporter(inspector), PrometheusExporter.multi([inspector, Inspector()])
        for exporter in exporters:
            with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: the port is in use"):
                exporter.start_server()
        PrometheusExporter(inspector, port=0).start_server().close()
        monkeypatch.setenv("ASYNC_INSPECT_METRICS_PORT", "0")
        exporters[0].start_server().close()
        monkeypatch.delenv("ASYNC_INSPECT_METRICS_PORT")
        with pytest.raises(ConfigError, match=f"localhost:{port}: the port is in use"):
            PrometheusExporter(Inspector(Config(metrics_port=f"localhost:{port}"))).start_server()
    with exporters[0].start_server() as server:
        assert server.port == port


def test_the_default_inspector_has_the_port_of_the_environment(monkeypatch):
    """What the variable said when the default inspector was made holds, with its host, also when it is gone."""
    monkeypatch.setattr(Inspector, "_default", None)
    monkeypatch.setenv("ASYNC_INSPECT_METRICS_PORT", "localhost:0")
    with PrometheusExporter() as exporter:
        monkeypatch.delenv("ASYNC_INSPECT_METRICS_PORT")
        with exporter.start_server() as server:
            assert (server.host, server.port != 9090) == ("127.0.0.1", True)


def test_close_ends_servers_and_leaves_the_registry(source):
    """After close nothing listens, and the registry is free for another exporter; closing again does nothing."""
    exporter = PrometheusExporter(source)
    server = exporter.start_server(0)
    exporter.close()
    exporter.close()
    assert server.closed
    assert generate_latest(exporter.registry) == b""


def test_scrapes_of_many_threads_agree(exporter, source):
    """Scrapes at the same time share one page."""
    pages = []

    def scrape():
        pages.append(exporter._pages.serve(openmetrics=False, compress=True, names=()))

    threads = [threading.Thread(target=scrape) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pages)) == 1
    assert source.taken == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_after_a_fork():
    """The child neither answers on the parent's port nor disturbs it; its updater runs, and it can serve anew."""
    script = """
        import logging, os, socket, threading, urllib.request
        from asyncinspect_logging import AsyncInspectHandler
        from asyncinspect_logging.exporters.prometheus import PrometheusExporter

        def fetch(server):
            with urllib.request.urlopen(server.url, timeout=10) as response:
                return response.read()

        logging.basicConfig(handlers=[AsyncInspectHandler()])
        with PrometheusExporter() as exporter:
            server = exporter.start_server(0)
            kept = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            exporter.start_background_updater(1000)
            fetch(server)
            listening = server._listener.socket.fileno()
            with exporter._pages._lock:  # as if another thread made a page right now
                child = os.fork()
            if child == 0:
                names = sorted(thread.name for thread in threading.enumerate())
                assert names == ["MainThread", "asyncinspect-update"], names
                assert server.closed and server._listener.socket.fileno() == -1
                server.close()
                assert b"async_inspect" in exporter.gather().encode()
                with exporter.start_server(0) as own:
                    assert own.port != server.port
                    assert b"async_inspect" in fetch(own)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert b"async_inspect" in fetch(server)
            kept.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            assert b"200 OK" in kept.recv(1000)
            kept.close()
        print("done")
    """
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_the_source_protocol_is_the_inspector_s():
    """A real inspector can be exported, with bounds of one's own."""
    exporter = PrometheusExporter(Inspector(), duration_buckets=(0.123,))
    assert exporter.gather() == generate_latest(exporter.registry).decode()
