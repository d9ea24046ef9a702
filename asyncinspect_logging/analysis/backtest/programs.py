"""promtool and Prometheus, run on a folder of their own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ...errors import ConfigError

__all__ = ["ProgramError", "Prometheus", "Promtool", "find"]

_READY: Final = 60  # seconds
_ANSWER: Final = 300  # seconds
_BLOCKS: Final = ("tsdb", "create-blocks-from")
_LISTENS: Final = re.compile(r'msg="Listening on" address=\S*:(\d+)')


class ProgramError(ConfigError):
    """promtool or Prometheus refused what it was given. The message has its own words."""


def find(program: str) -> str:
    """Path of a program. Raises ConfigError where it is not installed."""
    path = shutil.which(program)
    if path is None:
        raise ConfigError(
            f"there is no {program!r} on PATH, and the back-test needs it; install Prometheus, which has it: `apt-get"
            " install prometheus`, `brew install prometheus`, or https://prometheus.io/download/"
        )
    return path


class Promtool:
    """promtool. Raises ConfigError where it is not installed."""

    def __init__(self) -> None:
        self._path = find("promtool")

    def check(self, rules: Path) -> None:
        """Raises ProgramError for rules that are none."""
        self._run(f"{str(rules)!r} cannot be used", "check", "rules", str(rules))

    def blocks_from_samples(self, text: Path, folder: Path, within: int) -> None:
        """within: the seconds that a block may be of."""
        self._run(
            "samples", *_BLOCKS, f"--max-block-duration={within}s", "openmetrics", "--quiet", str(text), str(folder)
        )

    def blocks_from_rules(
        self, rules: Path, folder: Path, address: str, start: int, end: int, interval: int, within: int
    ) -> None:
        """What recording rules give, asked of a Prometheus. start, end: Unix time in seconds. interval: in seconds.
        within: the seconds that a block may be of; Prometheus answers at most 11,000 moments at a time.

        When in an interval a group is evaluated depends on its name and that of the file, which is given without its
        folder, so that it is always the same.
        """
        self._run(
            "recording rules",
            *_BLOCKS,
            f"--max-block-duration={within}s",
            "rules",
            f"--url=http://{address}",
            f"--start={start}",
            f"--end={end}",
            f"--eval-interval={interval}s",
            f"--output-dir={folder}",
            rules.name,
            within=rules.parent,
        )

    def _run(self, what: str, *arguments: str, within: Path | None = None) -> None:
        done = subprocess.run(
            [*_guard(), self._path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=within,
        )
        said = f"{done.stdout}\n{done.stderr}"
        # It does not fail where a rule of several does.
        problem = re.search(r"level=error.*", done.stderr)
        if done.returncode or problem:
            words = [line.strip() for line in said.splitlines() if line.strip() and "SUCCESS" not in line]
            shown = [problem[0]] if problem and not done.returncode else words
            raise ProgramError(f"{what}; promtool says: {' '.join(shown)[:1500] or f'status {done.returncode}'}")


class Prometheus:
    """A Prometheus that scrapes nothing, on a free loopback port, for as long as a `with` block lasts.

    folder: where its configuration and log are put. data: its samples. rules: a file of rules to load.
    lookback: for how long a sample stands for what comes after it, in milliseconds.
    """

    def __init__(self, folder: Path, data: Path, *, interval: int, lookback: int, rules: Path | None = None) -> None:
        self._folder, self._data = folder, data
        self._lookback = lookback
        self._config = {
            "global": {"evaluation_interval": f"{interval}s", "scrape_interval": f"{interval}s"},
            "rule_files": [] if rules is None else [str(rules)],
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def __enter__(self) -> Self:
        executable = find("prometheus")
        # JSON is YAML.
        (self._folder / "prometheus.yml").write_text(json.dumps(self._config), "utf-8")
        with (self._folder / "prometheus.log").open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *_guard(),
                    executable,
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._data}",
                    # Whatever the log's age, nothing of it is too old.
                    "--storage.tsdb.retention.time=100y",
                    f"--query.lookback-delta={self._lookback}ms",
                    f"--query.timeout={_ANSWER}s",
                    "--web.listen-address=127.0.0.1:0",
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C is for its owner.
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def ask(self, call: str, **arguments: str) -> Any:
        """The `data` of an answer of the API. Raises ProgramError for a refusal, with its words."""
        asked = urllib.parse.urlencode(arguments)
        try:
            with _open(f"http://{self.address}/api/v1/{call}?{asked}", _ANSWER) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as refusal:
            said = refusal.read(4096).decode("utf-8", "replace")
            try:
                said = json.loads(said)["error"]
            except (ValueError, KeyError):
                pass
            raise ProgramError(f"{arguments.get('query', call)!r}; Prometheus says: {said[:1000]}") from None
        except (OSError, ValueError) as error:
            raise ProgramError(f"Prometheus does not answer ({error}): {self._last_words()}") from None

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _READY
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ProgramError(f"Prometheus ended: {self._last_words()}")
            # It picks a free port itself and says so, so no other process can take it in between.
            found = _LISTENS.search((self._folder / "prometheus.log").read_text("utf-8", "replace"))
            if found:
                self.address = f"127.0.0.1:{found[1]}"
                try:
                    with _open(f"http://{self.address}/-/ready", 10):
                        return
                except OSError:
                    pass
            time.sleep(0.02)
        raise ProgramError(f"Prometheus was not ready after {_READY} s: {self._last_words()}")

    def _last_words(self) -> str:
        lines = (self._folder / "prometheus.log").read_text("utf-8", "replace").splitlines()
        wrong = [line for line in lines if "level=error" in line or "level=ERROR" in line]
        return " ".join((wrong or lines)[-3:])[-1500:]


def _guard() -> list[str]:
    """What a command begins with, where util-linux has it, to end when its owner does, even if that is killed."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def _open(address: str, timeout: float) -> Any:
    # Of this machine, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(address, timeout=timeout)
