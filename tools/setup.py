"""Set up what the Makefile's targets need, and nothing that is there already.

Run by the Python that the environment is to be made from:

    python tools/setup.py --venv .venv --group test --group lint --extra structlog --programs

1. the virtual environment, with a pip that knows dependency groups;
2. the dependencies, whenever pyproject.toml asks for others than were installed last;
3. the package, built as a wheel and installed from it whenever a source file changed, so that tests import what a
   user would install and never the folder beside them;
4. Prometheus and the other servers that tests send to, and Node.js for what is written for it, by the system's package
   manager, where they are missing and may be installed; and that, from npm;
5. what draws the dashboard, with `--drawing`: Chromium, and Grafana's components from npm.

Each step leaves a stamp holding a digest of what it was made from. Standard library only: nothing is installed yet.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "asyncinspect_logging"
#: What tests and the demo run, and the Debian package that has it.
PROGRAMS = {
    "redis-server": "redis-server",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "node": "nodejs",
    "npm": "npm",
    "prometheus-pushgateway": "prometheus-pushgateway",
    "collectd": "collectd-core",
    "wrk": "wrk",
    "slowhttptest": "slowhttptest",
    "systemd-analyze": "systemd",
}
#: What draws the dashboard.
DRAWING = {"chromium": "chromium"}
FONTS = ["fonts-dejavu-core"]
#: What they run in Node.js, by package and version.
NODE_PACKAGES = {
    "statsd": "0.9.0",
    # The schemas of Kubernetes and of the Prometheus operator.
    "kubernetes-models": "5.1.0",
    "@kubernetes-models/prometheus-operator": "6.0.0",
}
_NPM_TIMEOUT = 60  # seconds
_GRAFANA_TIMEOUT = 400  # 340 packages, 310 MB


def say(text: str) -> None:
    print(f"set-up: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a command with its output on stderr; stop the set-up with its status if it fails."""
    done = subprocess.run(
        [*map(str, command)], stdin=subprocess.DEVNULL, stdout=sys.stderr, cwd=ROOT, env=env, check=False
    )
    if done.returncode:
        say(f"failed with status {done.returncode}: {' '.join(map(str, command))}")
        sys.exit(1)


def answers(*command: str | Path) -> bool:
    """Whether the command can be run and succeeds."""
    try:
        return subprocess.run([*map(str, command)], stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    except OSError:
        return False


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Hold a lock, so that two `make` runs in one checkout do not install over each other."""
    cache = ROOT / ".cache"
    cache.mkdir(exist_ok=True)
    with (cache / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Environment:
    """The virtual environment and its stamps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"

    def is_stamped(self, step: str, value: str) -> bool:
        stamp = self.folder / f".stamp-{step}"
        return stamp.exists() and stamp.read_text("utf-8") == value

    def stamp(self, step: str, value: str) -> None:
        (self.folder / f".stamp-{step}").write_text(value, "utf-8")

    def pip(self, *arguments: str | Path) -> None:
        run(self.python, "-m", "pip", "--disable-pip-version-check", "-qq", *arguments)

    def create(self) -> None:
        """Make the environment, unless there is one that works: scripts in it hold its path, so a copied or moved
        checkout needs its own, and so does another Python."""
        made_from = f"{self.folder}\n{sys.executable}\n{sys.version}"
        works = answers(self.python, "-c", "import pip, sys; sys.exit(sys.version_info < (3, 11))")
        if works and self.is_stamped("venv", made_from):
            return
        ours = (self.folder / ".stamp-venv").exists()
        if ours or not works:
            say(f"making {self.folder.name} with Python {sys.version.split()[0]}")
            run(sys.executable, "-m", "venv", "--clear", self.folder)
        self.pip("install", "--upgrade", "pip>=25.1")
        self.stamp("venv", made_from)

    def install_dependencies(self, project: dict[str, Any], groups: list[str]) -> None:
        wanted = digest(project["build-system"], {group: project["dependency-groups"][group] for group in groups})
        if self.is_stamped("dependencies", wanted):
            return
        say(f"installing dependencies: {', '.join(groups) or 'none'}")
        chosen = [argument for group in groups for argument in ("--group", f"{ROOT / 'pyproject.toml'}:{group}")]
        self.pip("install", *project["build-system"]["requires"], *chosen)
        self.stamp("dependencies", wanted)

    def install_package(self, project: dict[str, Any], extras: list[str]) -> None:
        wanted = digest(sorted(extras), *sources())
        if self.is_stamped("package", wanted):
            return
        say("building and installing the package")
        with tempfile.TemporaryDirectory() as folder:
            self.pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
            (wheel,) = Path(folder).glob("*.whl")
            # The version does not change with every edit, so pip has to be told that the files did.
            self.pip("install", "--no-deps", "--force-reinstall", wheel)
            needs = digest(sorted(extras), project["project"])
            if not self.is_stamped("extras", needs):
                self.pip("install", f"{wheel}[{','.join(extras)}]" if extras else wheel)
                self.stamp("extras", needs)
        self.stamp("package", wanted)


def sources() -> Iterator[tuple[str, str]]:
    """Name and digest of every file that goes into the wheel."""
    files = [ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"]
    files += [path for path in PACKAGE.rglob("*") if "__pycache__" not in path.parts]
    for path in sorted(files):
        if path.is_file():
            yield str(path.relative_to(ROOT)), hashlib.sha256(path.read_bytes()).hexdigest()


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def install_programs(programs: dict[str, str], more: Sequence[str] = ()) -> None:
    """Install the programs that are missing. Not being able to is not an error here: the demo can do without, and the
    tests that cannot say so themselves."""
    # Servers are not on every user's path.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    missing = {program: package for program, package in programs.items() if not shutil.which(program, path=path)}
    if not missing:
        return
    names = " and ".join(missing)
    if not shutil.which("apt-get"):
        say(f"there is no {names}, and no apt-get here to install it with: put it on PATH")
        return
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if as_root and not answers(*as_root, "true"):
        say(f"there is no {names}, and installing it takes root or sudo without a password")
        return
    say(f"installing {names}")
    # One unreachable package source does not keep the others from having it: the install decides.
    for command in ("update", "-qq"), ("install", "-qq", "-y", "--no-install-recommends", *missing.values(), *more):
        subprocess.run(
            [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", *command],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            check=False,
        )
    for program in missing:
        if not shutil.which(program, path=path):
            say(f"{program} could not be installed")


def install_node_packages() -> None:
    """Install what is missing from npm, and run nothing of it. Not being able to is not an error here either."""
    folder = ROOT / ".cache" / "node"
    wanted = [f"{name}@{version}" for name, version in NODE_PACKAGES.items()]
    stamp = folder / ".stamp"
    if shutil.which("npm") is None or (stamp.exists() and stamp.read_text("utf-8") == "\n".join(wanted)):
        return
    say(f"installing {' and '.join(wanted)} for Node.js")
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        "npm",
        "install",
        "--prefix",
        folder,
        "--ignore-scripts",
        "--no-save",
        "--no-audit",
        "--no-fund",
        *wanted,
    ]
    for _ in range(2):
        # A registry that does not answer is asked once more, and not waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                [*map(str, command)], stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False, timeout=_NPM_TIMEOUT
            )
            if done.returncode == 0:
                stamp.write_text("\n".join(wanted), "utf-8")
                return
    say("they could not be installed")


def install_grafana() -> None:
    """Install Grafana's components, as the lock file says, and run nothing of them. Not being able to is no error."""
    folder = ROOT / ".cache" / "grafana"
    files = [ROOT / "tests" / "real" / "grafana" / name for name in ("package.json", "package-lock.json")]
    wanted = digest(*(file.read_text("utf-8") for file in files))
    stamp = folder / ".stamp"
    if shutil.which("npm") is None or (stamp.exists() and stamp.read_text("utf-8") == wanted):
        return
    say("installing Grafana's components, which takes a minute or two")
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copy(file, folder)
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            check=False,
            timeout=_GRAFANA_TIMEOUT,
        )
        if done.returncode == 0:
            stamp.write_text(wanted, "utf-8")
            return
    say("they could not be installed")


def main() -> None:
    parser = argparse.ArgumentParser(description="Set up the environment that the Makefile's targets run in.")
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="folder of the virtual environment")
    parser.add_argument("--group", action="append", default=[], help="dependency group of pyproject.toml to install")
    parser.add_argument("--extra", action="append", default=[], help="extra of the package to install with it")
    parser.add_argument(
        "--programs", action="store_true", help="install the servers that tests send to, where they are missing"
    )
    parser.add_argument(
        "--drawing", action="store_true", help="install what draws the dashboard: Chromium, and Grafana's components"
    )
    options = parser.parse_args()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    environment = Environment((ROOT / options.venv).absolute())
    with one_at_a_time():
        environment.create()
        environment.install_dependencies(project, options.group)
        environment.install_package(project, options.extra)
        if options.programs:
            install_programs(PROGRAMS)
            install_node_packages()
        if options.drawing:
            install_programs(DRAWING, FONTS)
            install_grafana()


if __name__ == "__main__":
    main()
