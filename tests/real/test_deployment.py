"""What ops/ has for running a service is right by the tools that it is for: the schemas of Kubernetes and of the
Prometheus operator, Docker Compose, promtool, amtool and systemd-analyze. So are the configurations in the docs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "ops"
NODE = ROOT / ".cache" / "node"


def missing(what: str) -> NoReturn:
    """Skip for want of a tool, except in CI, which has to have it."""
    if os.environ.get("CI", "").lower() in {"true", "1"}:
        pytest.fail(f"{what} is not installed, and CI accepts no skip for it")
    pytest.skip(f"{what} is not installed")


def tool(name: str) -> str:
    return shutil.which(name) or missing(name)


def run(*command: str | Path, folder: Path | None = None, given: str = "") -> str:
    """What a command says on both streams; it fails the test if the command fails."""
    done = subprocess.run([*map(str, command)], cwd=folder, input=given, capture_output=True, text=True, timeout=60)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


# -- Kubernetes ------------------------------------------------------------------------------------------------------


def check_objects(objects: list[dict[str, Any]]) -> list[list[str]]:
    """What is wrong with each of the Kubernetes objects."""
    if not (NODE / "node_modules" / "@kubernetes-models" / "prometheus-operator").is_dir():
        missing("the package @kubernetes-models/prometheus-operator")
    script = Path(__file__).with_name("kubernetes.mjs").read_text("utf-8")
    # Modules are looked for beside where it runs.
    said = run(
        tool("node"), "--input-type=module", "--eval", script, folder=NODE, given=json.dumps(objects, default=str)
    )
    found: list[list[str]] = json.loads(said)
    return found


def objects_of(page: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(page.read_text("utf-8")) if each]


def test_kubernetes_objects_are_right_by_the_schemas() -> None:
    """Every object of the folder has all that its schema asks for, and nothing that it does not know."""
    pages = sorted((OPS / "kubernetes").glob("*.yaml"))
    objects = {f"{page.name} {each['kind']}": each for page in pages for each in objects_of(page)}
    kinds = {each["kind"] for each in objects.values()}
    assert kinds >= {"Deployment", "Service", "ServiceMonitor", "PodMonitor", "NetworkPolicy"}
    assert dict(zip(objects, check_objects(list(objects.values())), strict=True)) == {name: [] for name in objects}


def test_the_schemas_find_mistakes() -> None:
    """A wrong value, a wrong type, something left out, and a key that is misspelt, deep inside."""

    def monitor(**endpoint: Any) -> dict[str, Any]:
        spec = {"selector": {"matchLabels": {"app": "a"}}, "endpoints": [{"port": "metrics", **endpoint}]}
        return {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "ServiceMonitor",
            "metadata": {"name": "a"},
            "spec": spec,
        }

    no_endpoints = monitor()
    del no_endpoints["spec"]["endpoints"]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"ports": [{"port": "http"}]}}
    objects = [monitor(), monitor(interval="15sec"), monitor(intervall="15s"), no_endpoints, service]
    fine, value, key, lacking, kind = check_objects(objects)
    assert fine == []
    assert "interval must match pattern" in value[0]
    assert key == ["/spec/endpoints/0/intervall is not in the schema"]
    assert "must have required property endpoints" in lacking[0]
    assert "port must be integer" in kind[0]


@pytest.mark.parametrize("name", ["deployment.yaml", "sidecar.yaml"])
def test_kubernetes_objects_fit_each_other(name: str) -> None:
    """Selectors select the pods, and every port is one that a container has; by number where what looks for it may not
    look at init containers (kubernetes/kubernetes#127958, projectcalico/calico#8881).
    """
    (deployment,) = objects_of(OPS / "kubernetes" / name)
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    containers = [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
    ports = {port["name"]: port["containerPort"] for each in containers for port in each.get("ports", [])}
    (service,) = objects_of(OPS / "kubernetes" / "service.yaml")
    (by_service,) = objects_of(OPS / "kubernetes" / "servicemonitor.yaml")
    (by_pod,) = objects_of(OPS / "kubernetes" / "podmonitor.yaml")
    (policy,) = objects_of(OPS / "kubernetes" / "networkpolicy.yaml")

    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert by_pod["spec"]["selector"]["matchLabels"] == labels
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    assert by_service["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert {port["name"]: port["targetPort"] for port in service["spec"]["ports"]} == ports
    assert {each["port"] for each in by_service["spec"]["endpoints"]} == {"metrics"}
    assert {each["port"] for each in by_pod["spec"]["podMetricsEndpoints"]} == {"metrics"}
    assert {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]} == {*ports.values()}
    assert service["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    for container in containers:
        named = {port["name"] for port in container.get("ports", [])}
        probes = [container[probe]["httpGet"] for probe in container if probe.endswith("Probe")]
        assert {probe["port"] for probe in probes} <= named
        if "metrics" in named:
            given = [each["value"] for each in container.get("env", []) if each["name"] == "ASYNC_INSPECT_METRICS_PORT"]
            given += [each.removeprefix("--address=") for each in container.get("args", []) if "--address=" in each]
            assert given == [f"0.0.0.0:{ports['metrics']}"]
    volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
    assert {mount["name"] for each in containers for mount in each.get("volumeMounts", [])} == volumes


def test_the_rules_as_an_object_of_the_operator() -> None:
    """What docs/deployment.md has one print is a PrometheusRule."""
    text = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    (script,) = re.findall(r"^```sh\n({\n.*?)kubectl.*?^```", text, re.MULTILINE | re.DOTALL)
    script = script.replace("asyncinspect rules", f"'{sys.executable}' -m asyncinspect_logging rules")
    (rules,) = yaml.safe_load_all(run("sh", "-c", script.replace("> prometheusrule.yaml", "")))
    assert rules["kind"] == "PrometheusRule"
    assert len(rules["spec"]["groups"]) == 2
    assert check_objects([rules]) == [[]]


def test_the_sidecar_of_the_pod_is_ready(tmp_path: Path) -> None:
    """Started as the pod does, it answers the probes, and Prometheus."""
    (pod,) = (each["spec"]["template"]["spec"] for each in objects_of(OPS / "kubernetes" / "sidecar.yaml"))
    (sidecar,) = pod["initContainers"]
    _, *arguments = sidecar["args"]
    arguments = [each.replace("/logs/", f"{tmp_path}/") for each in arguments if "--address" not in each]
    command = [sys.executable, "-m", "asyncinspect_logging", *arguments, "--address=127.0.0.1:0"]
    probes = [sidecar[probe]["httpGet"]["path"] for probe in sidecar if probe.endswith("Probe")]
    assert {*probes} == {"/-/ready", "/-/healthy"}
    with started(*command, env={}) as wait_for:
        address = wait_for(r"Metrics at (http://[^/]+)")
        for path in *probes, "/metrics":
            with urllib.request.urlopen(address + path, timeout=10) as response:
                assert response.status == 200


# -- Compose ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The Compose file as Docker Compose itself reads it."""
    beside = Path(sys.executable).with_name("docker-compose")
    program = str(beside) if beside.is_file() else tool("docker-compose")
    said = run(program, "-f", OPS / "compose" / "compose.yaml", "config", "--format", "json")
    config: dict[str, Any] = json.loads(said)
    return config


def in_container(compose: dict[str, Any], service: str, folder: Path) -> Path:
    """The files of a service laid out below a folder as its mounts do it."""
    for mount in compose["services"][service]["volumes"]:
        if mount["type"] == "bind":
            target = folder / mount["target"].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            source = Path(mount["source"])
            assert source.exists(), source
            assert source.is_relative_to(OPS)
            assert mount["read_only"]
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copy(source, target)
    return folder


def test_compose_publishes_to_this_machine_only(compose: dict[str, Any]) -> None:
    """Every port is on loopback, that of the application's metrics is not published, and all are told apart."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    published = [port["published"] for port in ports]
    assert len(published) == len({*published}) == 4
    assert [port["target"] for port in compose["services"]["app"]["ports"]] == [8000]


def test_what_compose_builds_is_there(compose: dict[str, Any]) -> None:
    """Everything that the Dockerfile copies is in its context."""
    build = compose["services"]["app"]["build"]
    context = Path(build["context"])
    assert context == ROOT
    lines = (context / build["dockerfile"]).read_text("utf-8").splitlines()
    copied = [path for line in lines if line.startswith("COPY ") for path in line.split()[1:-1]]
    assert len(copied) > 4
    assert all((context / path).exists() for path in copied)


def test_prometheus_of_compose(compose: dict[str, Any], promtool: str, tmp_path: Path) -> None:
    """promtool finds nothing wrong with its configuration, nor with the rules that come with it."""
    folder = in_container(compose, "prometheus", tmp_path) / "etc" / "prometheus"
    said = run(promtool, "check", "config", folder / "prometheus.yml")
    assert "is valid prometheus config" in said
    assert len(re.findall(r"SUCCESS: \d+ rules found", said)) == 2
    config = yaml.safe_load((folder / "prometheus.yml").read_text("utf-8"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (found,) = jobs["app"]["dns_sd_configs"]
    assert {*found["names"]} <= {*compose["services"]}
    _, _, port = compose["services"]["app"]["environment"]["ASYNC_INSPECT_METRICS_PORT"].partition(":")
    assert found["port"] == int(port)
    (managers,) = config["alerting"]["alertmanagers"]
    (target,) = managers["static_configs"][0]["targets"]
    assert target.partition(":")[0] in compose["services"]


def test_alertmanager_of_compose(compose: dict[str, Any], tmp_path: Path) -> None:
    """amtool finds nothing wrong with its configuration."""
    folder = in_container(compose, "alertmanager", tmp_path)
    said = run(tool("amtool"), "check-config", folder / "etc" / "alertmanager" / "alertmanager.yml")
    assert "SUCCESS" in said


def test_grafana_of_compose(compose: dict[str, Any], tmp_path: Path) -> None:
    """Its data source is Prometheus's address; the folder it takes dashboards from has ours, and what shows first."""
    folder = in_container(compose, "grafana", tmp_path)
    provisioning = folder / "etc" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text("utf-8"))["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert int(port) in {each["target"] for each in compose["services"][host]["ports"]}
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "asyncinspect.yaml").read_text("utf-8"))["providers"]
    dashboards = [*(folder / provider["options"]["path"].lstrip("/")).glob("*.json")]
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert [folder / home.lstrip("/")] == dashboards
    dashboard = json.loads(dashboards[0].read_text("utf-8"))
    assert dashboard["panels"]


@contextmanager
def started(*command: str | Path, env: dict[str, str]) -> Iterator[Callable[[str], str]]:
    """A program, and a function that waits for a line of its output that has a pattern, and gives its group."""
    with subprocess.Popen(
        [*map(str, command)],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = process.stdout
        seen: list[str] = []

        def wait_for(pattern: str) -> str:
            for line in lines:
                seen.append(line)
                if found := re.search(pattern, line):
                    return found[1]
            raise AssertionError(f"it ended without {pattern}: {''.join(seen)}")

        try:
            yield wait_for
        finally:
            process.kill()


def test_the_service_of_compose_counts_its_load(compose: dict[str, Any]) -> None:
    """It says where it serves, answers to the probes of Compose and Kubernetes, and its own metrics have every request
    that was answered, by route and by outcome.
    """
    folder = OPS / "compose"
    (deployment,) = objects_of(OPS / "kubernetes" / "deployment.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    probes = [container[probe]["httpGet"]["path"] for probe in container if probe.endswith("Probe")]
    assert len(probes) == 3
    probes += re.findall(r"9090(/[^\"]+)", compose["services"]["app"]["healthcheck"]["test"][-1])
    assert len(probes) == 4
    environment = {"ASYNC_INSPECT_METRICS_PORT": "127.0.0.1:0", "PORT": "0"}
    assert {*environment} >= {*compose["services"]["app"]["environment"]} - {"ASYNC_INSPECT_PRESET"}
    with started(sys.executable, folder / "app.py", env=environment) as wait_for:
        metrics = wait_for(r"metrics at (\S+)")
        service = wait_for(r"running on (http://\S+)").replace("0.0.0.0", "127.0.0.1")
        with started(sys.executable, folder / "load.py", service, env={}):
            for answered in 19, 49:  # a 404 and a 500
                wait_for(rf"(/orders/{answered}) ")
        with urllib.request.urlopen(metrics, timeout=10) as response:
            page = response.read().decode()
        for path in probes:
            with urllib.request.urlopen(metrics.removesuffix("/metrics") + path, timeout=10) as response:
                assert response.status == 200
    name = '{name="GET /orders/{order}"}'
    counted = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[0] != "#"}
    assert counted[f"async_inspect_tasks_failed_total{name}"] >= 1
    assert counted[f"async_inspect_tasks_completed_total{name}"] >= 20


# -- systemd ---------------------------------------------------------------------------------------------------------

UNITS = sorted((OPS / "systemd").glob("*.service"))


def test_systemd_units_are_right(tmp_path: Path) -> None:
    """systemd-analyze has nothing to say of them, once the programs that they start are there."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in "python", "asyncinspect":
        (programs / program).symlink_to(sys.executable)
    units = []
    for unit in UNITS:
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text("utf-8").replace("/opt/myapp/.venv", str(tmp_path)), "utf-8")
        units.append(copy)
    assert len(units) == 2
    assert run(tool("systemd-analyze"), "verify", "--man=no", *units) == ""


def test_systemd_analyze_finds_mistakes(tmp_path: Path) -> None:
    """A key that it does not know, and a program that is not there, are told."""
    unit = tmp_path / "wrong.service"
    unit.write_text("[Service]\nExecStart=/nowhere/python\nRestrt=always\n", "utf-8")
    done = subprocess.run([tool("systemd-analyze"), "verify", "--man=no", unit], capture_output=True, text=True)
    assert "Unknown key" in done.stderr
    assert "'Restrt'" in done.stderr
    assert "/nowhere/python is not executable" in done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_units_are_hardened(unit: Path) -> None:
    """Their exposure, from 0 to 10 by `systemd-analyze security`, is low; a unit that says nothing has 9.6."""
    said = run(tool("systemd-analyze"), "security", "--offline=yes", "--threshold=20", "--no-pager", unit)
    assert "OK" in said.splitlines()[-1]


def test_systemd_units_start_what_there_is() -> None:
    """The sidecar's command line is one of the command, and the port is a setting."""
    sidecar = (OPS / "systemd" / "asyncinspect-sidecar.service").read_text("utf-8")
    (line,) = re.findall(r"^ExecStart=\S+/asyncinspect (.*)$", sidecar, re.MULTILINE)
    command = next(each for each in objects_of(OPS / "kubernetes" / "sidecar.yaml"))["spec"]["template"]["spec"]
    for words in line.split(), command["initContainers"][0]["args"][1:]:
        name, *options = words
        known = run(sys.executable, "-m", "asyncinspect_logging", name, "--help")
        assert {option.partition("=")[0] for option in options if option.startswith("--")} <= {
            *re.findall(r"--[a-z-]+", known)
        }
    for unit in UNITS:
        assert "\nEnvironment=ASYNC_INSPECT_METRICS_PORT=127.0.0.1:9464\n" in unit.read_text("utf-8")


def test_the_units_in_the_docs(tmp_path: Path) -> None:
    """What the page has one add to a unit, systemd-analyze takes."""
    text = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    blocks = re.findall(r"^```ini\n(\[Service\]\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        unit = tmp_path / f"of-the-docs-{number}.service"
        unit.write_text(f"{block}ExecStart={sys.executable}\n", "utf-8")
        assert run(tool("systemd-analyze"), "verify", "--man=no", unit) == ""


# -- the configurations in the docs ----------------------------------------------------------------------------------


def yaml_blocks() -> list[Any]:
    found = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text("utf-8")
        for block in re.finditer(r"^```ya?ml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, block.start(1)) + 1
            found.append(pytest.param(block[1], id=f"{page.name}:{line}"))
    return found


@pytest.mark.parametrize("text", yaml_blocks())
def test_the_configurations_in_the_docs(text: str, promtool: str, tmp_path: Path) -> None:
    """promtool takes what is Prometheus's, as a configuration or as rules; the rest is YAML."""
    content = yaml.safe_load(text)
    file = tmp_path / "it.yml"
    file.write_text(text, "utf-8")
    keys = {*content} if isinstance(content, dict) else set()
    if keys & {"global", "scrape_configs", "remote_write", "rule_files"}:
        for job in content.get("scrape_configs", []):
            # Debian's Prometheus is built without discovery by Kubernetes.
            found = job.pop("kubernetes_sd_configs", [])
            assert {each["role"] for each in found} <= {"pod", "endpoints", "endpointslice", "service", "node"}
        content["rule_files"] = [Path(rules).name for rules in content.get("rule_files", [])]
        for rules in content["rule_files"]:
            (tmp_path / rules.replace("*", "all")).write_text("groups: []\n", "utf-8")
        file.write_text(yaml.safe_dump(content), "utf-8")
        assert "is valid prometheus config" in run(promtool, "check", "config", file)
    elif keys == {"groups"}:
        run(promtool, "check", "rules", file)
    elif "apiVersion" in keys:
        assert check_objects([content]) == [[]]
    elif keys == {"spec"}:
        # What is added to the pod's template of a Deployment, and has its image from there.
        for container in content["spec"]["containers"]:
            container["image"] = "registry.example/myapp:1.0"
        named = {mount["name"] for container in content["spec"]["containers"] for mount in container["volumeMounts"]}
        assert named == {volume["name"] for volume in content["spec"]["volumes"]}
        assert check_objects([{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "myapp"}, **content}]) == [[]]
    elif "receivers" in keys:
        check_collector(content, promtool, tmp_path)
    elif keys == {"otlp_config"}:
        # Datadog's agent, which nothing checks; what its page sends to is what this opens.
        protocols = content["otlp_config"]["receiver"]["protocols"]
        assert {name: each["endpoint"] for name, each in protocols.items()} == {
            "grpc": "localhost:4317",
            "http": "localhost:4318",
        }
    else:
        pytest.fail("nothing checks this block")


def check_collector(config: dict[str, Any], promtool: str, folder: Path) -> None:
    """Every part of a pipeline of the OpenTelemetry Collector is one that is configured, and the other way round; the
    configuration inside its Prometheus receiver, in which it has `$$` for `$`, is one of Prometheus.
    """
    pipelines = config["service"]["pipelines"].values()
    for kind in "receivers", "processors", "exporters":
        assert {part for pipeline in pipelines for part in pipeline.get(kind, [])} == {*config.get(kind, {})}, kind
    assert {*config["service"].get("extensions", [])} == {*config.get("extensions", {})}
    for name, receiver in config["receivers"].items():
        if name.partition("/")[0] == "prometheus":
            file = folder / "receiver.yml"
            file.write_text(yaml.safe_dump(receiver["config"]).replace("$$", "$"), "utf-8")
            assert "is valid prometheus config" in run(promtool, "check", "config", file)
