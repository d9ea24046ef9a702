"""What each OTEL_* variable does, by what arrives: at a receiver behind a proxy that counts bytes, at one that shows a
certificate, and at one that takes a connection and says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

pytest.importorskip("opentelemetry.sdk")

import otlp_receiver as otlp

from asyncinspect_logging import Inspector, annotate, span
from asyncinspect_logging.exporters.opentelemetry import OtelExporter

Listen = Callable[..., Inspector]
DOCS = Path(__file__).resolve().parent.parent / "docs" / "opentelemetry.md"
OTLP = "OTEL_EXPORTER_OTLP_"
LINKS = [f"00-{'1' * 32}-{number:016x}-01" for number in (1, 2)]


class Proxy:
    """Passes on what comes to `address`, and counts it (`sent`); to nobody, it takes connections and says nothing."""

    def __init__(self, target: str | None = None) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listening]
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.sent = 0
        self.connected = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._sockets.append(client)
                self.connected.set()
                if self._target is not None:
                    host, _, port = self._target.rpartition(":")
                    server = socket.create_connection((host, int(port)))
                    self._sockets.append(server)
                    for ends in ((client, server), (server, client)):
                        threading.Thread(target=self._pump, args=(*ends, ends[0] is client), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                self.sent += len(part) if counts else 0
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def _receiver() -> Iterator[Any]:
    with otlp.Receiver() as receiver:
        yield receiver


@pytest.fixture
def receiver(_receiver: Any) -> Any:
    """Of the whole module, and empty."""
    _receiver.empty()
    return _receiver


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    otlp.without_variables(monkeypatch)


@pytest.fixture(params=["grpc", "http/protobuf"])
def protocol(request: pytest.FixtureRequest) -> Any:
    return request.param


def work(inspector: Inspector, **options: Any) -> OtelExporter:
    """Four tasks, each with two links, three log lines and long texts, exported at once."""
    exporter = OtelExporter(None, inspector, **options)
    try:
        for number in range(4):
            with span("work", parent=None, links=LINKS, text="x" * 2000, number=number):
                for _ in range(3):
                    annotate("y" * 100)
        exporter.export_tasks()
    finally:
        exporter.shutdown(0)
    return exporter


Arrived = tuple[OtelExporter, Any, Proxy]


def attributes(arrived: Arrived) -> dict[str, Any]:
    return otlp.attributes_of(arrived[1].spans[0])


def longest(arrived: Arrived) -> int:
    return max(len(value) for value in attributes(arrived).values() if isinstance(value, str))


#: By variable: values for it and for what else has to be set, what to look at, and what that is then, and not else.
EFFECTS: dict[str, tuple[str, dict[str, str], Callable[[Arrived], Any], Any]] = {
    "OTEL_SERVICE_NAME": ("billing", {}, lambda a: a[1].resource["service.name"], "billing"),
    "OTEL_RESOURCE_ATTRIBUTES": ("team=blue", {}, lambda a: a[1].resource.get("team"), "blue"),
    f"{OTLP}HEADERS": ("x-key=a%20b", {}, lambda a: a[1].headers[0].get("x-key"), "a b"),
    f"{OTLP}COMPRESSION": ("gzip", {}, lambda a: a[2].sent < a[1].sizes[0] / 2, True),
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": ("3", {}, lambda a: len(a[1].requests), 2),
    "OTEL_BSP_MAX_QUEUE_SIZE": ("2", {}, lambda a: (a[0].drops["queue_full"], len(a[1].spans)), (2, 2)),
    "OTEL_TRACES_SAMPLER": ("always_off", {}, lambda a: a[0].unsampled, 4),
    "OTEL_TRACES_SAMPLER_ARG": ("0.0", {"OTEL_TRACES_SAMPLER": "traceidratio"}, lambda a: a[0].unsampled, 4),
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": ("3", {}, lambda a: len(attributes(a)), 3),
    "OTEL_ATTRIBUTE_COUNT_LIMIT": ("4", {}, lambda a: len(attributes(a)), 4),
    "OTEL_SPAN_EVENT_COUNT_LIMIT": ("2", {}, lambda a: len(a[1].spans[0].events), 2),
    "OTEL_SPAN_LINK_COUNT_LIMIT": ("1", {}, lambda a: len(a[1].spans[0].links), 1),
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": ("1", {}, lambda a: len(a[1].spans[0].events[0].attributes), 1),
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": ("40", {}, longest, 40),
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": ("41", {}, longest, 41),
    "OTEL_SDK_DISABLED": ("true", {}, lambda a: (a[0].disabled, len(a[1].spans)), (True, 0)),
}
#: Those that have a test of their own here, or no effect, as the page says.
OWN = {f"{OTLP}{what}" for what in ("ENDPOINT", "PROTOCOL", "INSECURE", "TIMEOUT")}
OWN |= {f"{OTLP}{what}" for what in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")}
OWN |= {"OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_EXPORT_TIMEOUT"}


def test_every_variable_of_the_page_has_a_test() -> None:
    """And the other way round, but for the limits, of which it names one "and so on"."""
    text = DOCS.read_text("utf-8").replace("`…_", f"`{OTLP}")
    named = set(re.findall(r"OTEL_[A-Z_]*[A-Z]", text))
    assert named <= EFFECTS.keys() | OWN
    assert {name for name in EFFECTS.keys() | OWN if not name.endswith("_LIMIT")} <= named


@pytest.mark.parametrize("name", [*EFFECTS, f"{OTLP}TRACES_HEADERS", f"{OTLP}TRACES_COMPRESSION"])
def test_each_variable_has_its_effect(
    listen: Listen, receiver: Any, protocol: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On its own; one for traces alone goes before the general one."""
    variable = name.replace("_TRACES_", "_") if name.startswith(OTLP) else name
    value, more, look, wanted = EFFECTS[variable]
    inspector = listen()
    address = receiver.grpc if protocol == "grpc" else receiver.http
    with Proxy(address) as proxy:
        options = {"endpoint": f"http://{proxy.address}", "protocol": protocol}
        for key, text in more.items():
            monkeypatch.setenv(key, text)
        without = look((work(inspector, **options), receiver, proxy))
        assert without != wanted
        receiver.requests.clear()
        receiver.headers.clear()
        receiver.sizes.clear()
        proxy.sent = 0
        monkeypatch.setenv(variable, "none" if "COMPRESSION" in name else "other=1")
        monkeypatch.setenv(name, value)
        assert look((work(inspector, **options), receiver, proxy)) == wanted


@pytest.mark.parametrize("of_the_signal", ["", "TRACES_"])
def test_where_and_how(
    listen: Listen, receiver: Any, protocol: str, of_the_signal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENDPOINT, PROTOCOL and, for an address without a scheme, INSECURE."""
    address = receiver.grpc if protocol == "grpc" else receiver.http
    path = "/v1/traces" if of_the_signal and protocol != "grpc" else ""
    monkeypatch.setenv(f"{OTLP}{of_the_signal}ENDPOINT", f"{address}{path}")
    monkeypatch.setenv(f"{OTLP}{of_the_signal}PROTOCOL", protocol)
    inspector = listen()
    assert work(inspector, timeout=2.0).exported == 0, "without a scheme it is TLS"
    monkeypatch.setenv(f"{OTLP}{of_the_signal}INSECURE", "true")
    assert work(inspector).exported == 4
    kind = receiver.headers[0].get("content-type")
    assert kind == (None if protocol == "grpc" else "application/x-protobuf")


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_compression(listen: Listen, receiver: Any, protocol: str, compression: str) -> None:
    """By the bytes on the wire, since gRPC says it of no message."""
    with Proxy(receiver.grpc if protocol == "grpc" else receiver.http) as proxy:
        work(listen(), endpoint=f"http://{proxy.address}", protocol=protocol, compression=compression)
        size = receiver.sizes[0]
        assert size > 4000
        assert (proxy.sent < size / 2) == (compression == "gzip")
        assert (proxy.sent > size) == (compression == "none")


@pytest.mark.parametrize("how", ["OTEL_BSP_SCHEDULE_DELAY", "interval", "start_continuous_export"])
def test_the_interval(listen: Listen, receiver: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the environment in ms, by the constructor, and by the call in seconds: each goes before the one before it."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600" if how.startswith("OTEL") else "3600000")
    given = {"OTEL_BSP_SCHEDULE_DELAY": None, "interval": 0.6}.get(how, 3600.0)
    exporter = OtelExporter("shop", listen(), f"http://{receiver.grpc}", interval=given)
    try:
        began = time.monotonic()
        exporter.start_continuous_export(0.6 if how == "start_continuous_export" else None)
        with span("work"):
            pass
        receiver.wait_for(1, timeout=4)  # the default is five seconds
        assert time.monotonic() - began > 0.5
    finally:
        exporter.shutdown(0)


@pytest.mark.parametrize("variable", [f"{OTLP}TIMEOUT", f"{OTLP}TRACES_TIMEOUT"])
def test_the_timeout(listen: Listen, protocol: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one request, in seconds."""
    monkeypatch.setenv(variable, "0.3")
    with Proxy() as silent:
        exporter = OtelExporter("shop", listen(), f"http://{silent.address}", protocol=protocol)
        with span("work"):
            pass
        began = time.monotonic()
        assert exporter.export_tasks() == 0
        assert 0.25 < time.monotonic() - began < 1.3
        exporter.shutdown(0)


def test_a_silent_collector_holds_nothing_up(listen: Listen, protocol: str) -> None:
    """An application's loop goes on while a request waits for its answer, and the end takes as long as it may."""
    with Proxy() as silent:
        exporter = OtelExporter(
            "shop", listen(), f"http://{silent.address}", protocol=protocol, queue_size=500, timeout=10.0
        )
        exporter.start_continuous_export(0.02)

        async def main() -> float:
            worst, until = 0.0, time.monotonic() + 1
            while time.monotonic() < until or not silent.connected.is_set():
                before = time.monotonic()
                for _ in range(20):
                    with span("work"):
                        pass
                await asyncio.sleep(0.002)
                worst = max(worst, time.monotonic() - before)
            return worst

        assert asyncio.run(main()) < 1.0
        assert exporter.drops["queue_full"] > 0, "the queue is full, too"
        began = time.monotonic()
        assert not exporter.shutdown(1.0)
        assert 0.9 < time.monotonic() - began < 2.0
        assert exporter.exported == 0


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a certificate of 127.0.0.1."""
    folder = tmp_path_factory.mktemp("pems")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return key, certificate


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with")
@pytest.mark.parametrize("of_the_signal", ["", "TRACES_"])
def test_certificates(
    listen: Listen, pems: tuple[Path, Path], protocol: str, of_the_signal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CERTIFICATE, by which the collector is known, and CLIENT_KEY and CLIENT_CERTIFICATE, which it asks for."""
    import grpc

    key, certificate = pems
    pem = certificate.read_bytes()
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), pem)], pem, require_client_auth=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    inspector = listen()
    delivered = []
    with otlp.Receiver(credentials, context) as receiver:
        endpoint = f"https://{receiver.grpc if protocol == 'grpc' else receiver.http}"
        for variables in (
            {},
            {"CERTIFICATE": certificate},
            {"CERTIFICATE": certificate, "CLIENT_KEY": key, "CLIENT_CERTIFICATE": certificate},
        ):
            for name, path in variables.items():
                monkeypatch.setenv(f"{OTLP}{of_the_signal}{name}", str(path))
            delivered.append(work(inspector, endpoint=endpoint, protocol=protocol).exported)
        monkeypatch.delenv(f"{OTLP}{of_the_signal}CERTIFICATE")
        delivered.append(work(inspector, endpoint=endpoint, protocol=protocol).exported)
    assert delivered == [0, 0, 4, 0]
