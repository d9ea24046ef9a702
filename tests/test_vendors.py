"""The recipes for Datadog and Honeycomb run as the pages have them, against stand-ins that check the wire format."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from otlp_receiver import Receiver, Refusal
from vendors import DatadogIntake, Honeycomb, flaws_of

from asyncinspect_logging.exporters.otel.settings import wire

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[1] / "docs"
_BLOCK = re.compile(
    r"<!-- not run: by tests/test_vendors\.py[^\n]*-->\n```python\n(.*?)^```\n\n```text\n(.*?)^```\n", re.M | re.S
)
KEY, CLASSIC = "hcaik_01hqk4k20cjeh63wca8vva5stw", "0123456789abcdef0123456789abcdef"


class Recipe(NamedTuple):
    code: str
    output: str


def recipes(page: str) -> list[Recipe]:
    return [Recipe(*found.groups()) for found in _BLOCK.finditer((DOCS / page).read_text("utf-8"))]


def changed(text: str, old: str, new: str) -> str:
    """Fails where the page no longer has what is to be changed."""
    assert old in text, old
    return text.replace(old, new)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own, which knows no other address than the one that it is given."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "ASYNC_INSPECT_"))}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_each_recipe_is_run_here() -> None:
    """One for Honeycomb, and two for Datadog, whose third is an example."""
    assert [len(recipes(page)) for page in ("honeycomb.md", "datadog.md")] == [1, 2]


# -- Honeycomb -------------------------------------------------------------------------------------------------------

ADDRESS = "https://api.honeycomb.io"


def test_the_address_of_honeycomb_is_resolved_as_it_says() -> None:
    """Port 443 and TLS for both protocols."""
    http = wire("traces", endpoint=ADDRESS, protocol="http/protobuf")
    assert (http.url, http.insecure) == (f"{ADDRESS}/v1/traces", False)
    grpc = wire("traces", endpoint=ADDRESS, protocol="grpc")
    assert (grpc.url, grpc.insecure) == ("api.honeycomb.io:443", False)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_recipe_for_honeycomb(protocol: str) -> None:
    """The key goes along, and what arrives has all that a trace needs."""
    (recipe,) = recipes("honeycomb.md")
    with Honeycomb(KEY) as honeycomb:
        place = honeycomb.grpc if protocol == "grpc" else honeycomb.http
        code = changed(recipe.code, ADDRESS, f"http://{place}")
        done = run(changed(code, "http/protobuf", protocol), HONEYCOMB_API_KEY=KEY)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", recipe.output)
        assert (honeycomb.flaws, honeycomb.refusals) == ([], [])
        assert sorted(span.status.code for span in honeycomb.spans) == [0, 0, 0, 0, 2]
        assert honeycomb.resource["service.name"] == "shop"
        assert {headers["x-honeycomb-team"] for headers in honeycomb.headers} == {KEY}
        if protocol != "grpc":
            assert honeycomb.headers[0]["content-encoding"] == "gzip"


def test_honeycomb_by_the_environment_alone() -> None:
    """The page's variables do what its arguments do."""
    (recipe,) = recipes("honeycomb.md")
    code, replaced = re.subn(r"OtelExporter\(\n.*?^\)", "OtelExporter()", recipe.code, flags=re.M | re.S)
    assert replaced == 1
    code = changed(code, "import os\n", "")
    page = (DOCS / "honeycomb.md").read_text("utf-8")
    variables = dict(re.findall(r'^export (\w+)="?([^"\n]*)"?$', page, re.M))
    assert len(variables) == 4
    with Honeycomb(KEY) as honeycomb:
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = changed(
            variables["OTEL_EXPORTER_OTLP_ENDPOINT"], ADDRESS, f"http://{honeycomb.http}"
        )
        variables["OTEL_EXPORTER_OTLP_HEADERS"] = changed(
            variables["OTEL_EXPORTER_OTLP_HEADERS"], "$HONEYCOMB_API_KEY", KEY
        )
        done = run(code, **variables)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", recipe.output)
        assert honeycomb.flaws == []
        assert honeycomb.resource["service.name"] == "shop"


def test_a_key_that_honeycomb_does_not_know() -> None:
    """It says so, the log says what it said, and nothing is sent again."""
    (recipe,) = recipes("honeycomb.md")
    (told,) = re.findall(r"^WARNING.*$", (DOCS / "honeycomb.md").read_text("utf-8"), re.M)
    with Honeycomb(KEY) as honeycomb:
        code = changed(recipe.code, ADDRESS, f"http://{honeycomb.http}") + "print(exporter.dropped)\n"
        done = run(code, HONEYCOMB_API_KEY="wrong")
        assert (done.returncode, done.stdout) == (0, "False 0\n5\n")
        assert re.fullmatch(re.escape(told).replace(r"\.\.\.", ".*") + "\n", done.stderr), done.stderr
        assert "wrong" not in done.stderr
        assert [refusal.status for refusal in honeycomb.refusals] == [401]
        assert honeycomb.spans == []


def test_honeycomb_classic_wants_a_dataset() -> None:
    """Without the header it refuses, with it it takes."""
    (recipe,) = recipes("honeycomb.md")
    with Honeycomb(CLASSIC) as honeycomb:
        code = changed(recipe.code, ADDRESS, f"http://{honeycomb.http}")
        done = run(code, HONEYCOMB_API_KEY=CLASSIC)
        assert "missing 'x-honeycomb-dataset' header" in done.stderr
        (header,) = re.findall(r'`("x-honeycomb-dataset": "\w+")`', (DOCS / "honeycomb.md").read_text("utf-8"))
        done = run(changed(code, '"x-honeycomb-team"', f'{header}, "x-honeycomb-team"'), HONEYCOMB_API_KEY=CLASSIC)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", recipe.output)
        assert honeycomb.headers[0]["x-honeycomb-dataset"] == "shop"
        assert len(honeycomb.spans) == 5


# -- Datadog ---------------------------------------------------------------------------------------------------------


def test_the_recipe_for_the_agent_of_datadog() -> None:
    """Tasks and metrics arrive, with what the agent makes the unified tags of."""
    recipe, _ = recipes("datadog.md")
    with Receiver() as agent:
        done = run(changed(recipe.code, "localhost:4317", agent.grpc))
        assert (done.returncode, done.stderr, done.stdout) == (0, "", recipe.output)
        assert [flaw for request in agent.requests for flaw in flaws_of(request)] == []
        assert [span.name for span in agent.spans] == ["checkout"] * 5
        tags = {"service.name": "shop", "service.version": "1.4.2", "deployment.environment.name": "prod"}
        assert agent.resource.items() >= tags.items()
        metrics = agent.metric_requests[-1].resource_metrics[0]
        names = {metric.name for scope in metrics.scope_metrics for metric in scope.metrics}
        assert {"async_inspect_tasks", "async_inspect_tasks_completed"} <= {
            name.removesuffix("_total") for name in names
        }


def test_the_recipe_for_the_intake_of_datadog() -> None:
    """Protobuf over HTTP with the key; one that is not known is told, and not sent again."""
    _, recipe = recipes("datadog.md")
    assert wire("traces", endpoint="https://otlp.datadoghq.com/v1/traces").protocol == "http/protobuf"
    with DatadogIntake("secret") as intake:
        code = changed(recipe.code, "https://otlp.datadoghq.com", f"http://{intake.http}")
        done = run(code, DD_API_KEY="secret")
        assert (done.returncode, done.stderr, done.stdout) == (0, "", recipe.output)
        assert intake.flaws == []
        assert [span.name for span in intake.spans] == ["checkout"]
        done = run(code, DD_API_KEY="other")
        assert done.stdout == "False 0\n"
        assert "HTTP 403" in done.stderr
        assert [refusal.status for refusal in intake.refusals] == [403]
        assert len(intake.spans) == 1


# -- the stand-ins ---------------------------------------------------------------------------------------------------


def test_the_stand_ins_see_what_is_wrong() -> None:
    """A request that lacks everything has every flaw; and what is no request, or of another type, is refused."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for _ in range(2):
        scope.spans.add().attributes.add()
    found = {flaw.partition(" of ")[0] for flaw in flaws_of(request)}
    assert {"no service.name", "no name", "trace_id", "span_id", "name", "kind", "times", "attributes"} <= found
    assert any("came 2 times" in flaw for flaw in found)
    honeycomb = Honeycomb(KEY)
    headers = {"content-length": "4", "content-type": "application/x-protobuf", "x-honeycomb-team": KEY}
    answers: list[Refusal | None] = [
        honeycomb.take(b"\xff\xff\xff\xff", headers),
        honeycomb.take(b"", headers | {"content-type": "text/plain"}),
        honeycomb.take(b"", {"content-length": "0", "content-type": "application/x-protobuf"}),
        honeycomb.take(b"", headers),
    ]
    assert [answer and answer.status for answer in answers] == [400, 415, 401, None]
