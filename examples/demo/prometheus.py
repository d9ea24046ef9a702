"""A real Prometheus server on a free loopback port, for as long as a `with` block lasts."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CONFIG = """\
global:
  scrape_interval: {interval}
  scrape_timeout: {interval}
  evaluation_interval: {interval}
scrape_configs:
  - job_name: unnamed
    file_sd_configs:
      - files: [targets.json]
"""

Sample = tuple[dict[str, str], float]


def find() -> str | None:
    """Path of the Prometheus executable, or None where it is not installed."""
    return shutil.which("prometheus")


class Prometheus:
    """Runs Prometheus with its data and configuration in `folder`, scraping every `interval`. `more`: what else there
    is to be in the configuration, such as rules.
    """

    def __init__(self, folder: Path, *, interval: str = "1s", more: str = "") -> None:
        self.folder = folder
        self.interval = interval
        self.more = more
        self.address = ""
        self._targets: list[dict[str, Any]] = []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        executable = find()
        if executable is None:
            raise FileNotFoundError("Prometheus is not installed: there is no `prometheus` on PATH")
        (self.folder / "prometheus.yml").write_text(CONFIG.format(interval=self.interval) + self.more, "utf-8")
        self._write_targets()
        # Where util-linux can arrange it, the server also goes when its owner is killed and closes nothing.
        guard = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        with (self.folder / "prometheus.log").open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *guard,
                    executable,
                    "--config.file=prometheus.yml",
                    "--storage.tsdb.path=data",
                    "--web.listen-address=127.0.0.1:0",
                    "--web.enable-lifecycle",
                    "--enable-feature=exemplar-storage",
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C goes to everyone in the terminal's process group; this one is stopped by its owner instead.
                start_new_session=True,
            )
        try:
            # It picks a free port itself and says so in its log, so no other process can take the port in between.
            self.address = f"127.0.0.1:{self._until('its port', self._logged_port)}"
            self._until("readiness", lambda: self._get("/-/ready"))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server and wait for its end."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def add_target(self, job: str, address: str, path: str = "/metrics") -> None:
        """Have `address` scraped under the label job=`job`. Its first scrape comes up to some seconds later."""
        self._targets.append({"targets": [address], "labels": {"job": job, "__metrics_path__": path}})
        self._write_targets()

    def targets(self) -> dict[str, dict[str, Any]]:
        """What Prometheus says of its targets (health, lastError, lastScrape, …), by job."""
        return {target["labels"]["job"]: target for target in self._api("targets")["activeTargets"]}

    def query(self, promql: str) -> list[Sample]:
        """Answer of an instant query: labels and value of each series."""
        result = self._api("query", query=promql)["result"]
        return [(sample["metric"], float(sample["value"][1])) for sample in result]

    def query_range(
        self, promql: str, start: float, end: float, step: float
    ) -> list[tuple[dict[str, str], list[float]]]:
        """Labels of each series, and the moments (Unix seconds) from start to end at which it has a value."""
        result = self._api("query_range", query=promql, start=str(start), end=str(end), step=str(step))["result"]
        return [(series["metric"], [float(at) for at, _ in series["values"]]) for series in result]

    def metadata(self, job: str) -> dict[str, dict[str, str]]:
        """Type, help and unit of every family that the job's page declares, by family name."""
        with_job = urllib.parse.urlencode({"match_target": f'{{job="{job}"}}'})
        families: list[dict[str, str]] = json.loads(self._get(f"/api/v1/targets/metadata?{with_job}"))["data"]
        return {family["metric"]: family for family in families}

    def value(self, promql: str) -> float:
        """Value of a query that gives one series, and 0 for one that gives none."""
        samples = self.query(promql)
        if len(samples) > 1:
            raise ValueError(f"{promql} gives {len(samples)} series where one was expected")
        return samples[0][1] if samples else 0.0

    def wait_for_scrape(self, job: str, *, after: float, timeout: float = 30.0) -> None:
        """Return once Prometheus holds a scrape of `job` that was begun later than `after` (Unix seconds)."""
        up = f'up{{job="{job}"}}'
        promql = f"timestamp({up}) and {up} == 1"
        self._until(f"a scrape of {job}", lambda: self.value(promql) > after, timeout)

    def _logged_port(self) -> str | None:
        log = (self.folder / "prometheus.log").read_text("utf-8", "replace")
        found = re.search(r'msg="Listening on" address=\S*:(\d+)', log)
        return found[1] if found else None

    def _write_targets(self) -> None:
        # Put in place by a rename, so that Prometheus never reads half a file.
        draft = self.folder / "targets.json.new"
        draft.write_text(json.dumps(self._targets), "utf-8")
        os.replace(draft, self.folder / "targets.json")

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as response:
            body: bytes = response.read()
            return body

    def _api(self, call: str, **arguments: str) -> dict[str, Any]:
        try:
            answer = json.loads(self._get(f"/api/v1/{call}?{urllib.parse.urlencode(arguments)}"))
        except urllib.error.HTTPError as refusal:
            raise ValueError(f"Prometheus refuses {arguments}: {refusal.read().decode()}") from None
        data: dict[str, Any] = answer["data"]
        return data

    def _until(self, what: str, ask: Any, timeout: float = 30.0) -> Any:
        """Ask until the answer is true, and return it."""
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(urllib.error.URLError):
                if answer := ask():
                    return answer
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"Prometheus ended:\n{self._last_words()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} from Prometheus within {timeout:g} s:\n{self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        return (self.folder / "prometheus.log").read_text("utf-8", "replace")[-2000:]
