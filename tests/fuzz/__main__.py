"""Everything that reads input of others, with a great many inputs that are wrong.

    python tests/fuzz [--inputs 1000000] [--target log] [--engine mutation|atheris] [--seed 1]

Each target gets its share of the inputs. The engine `mutation` needs nothing, and the same seed makes the same inputs;
`atheris` (from the package index) is guided by which lines of the readers an input reaches. An input that makes a
target raise what it should not, or that takes longer than a second, is written to fuzz-failure-TARGET.bin, and the
status is 1. At the end stand the number of inputs, the slowest one, and how much memory was gained.
"""

from __future__ import annotations

import argparse
import logging
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Seconds of processor time that an input of at most 200 kB may take.
SLOW = 1.0


def peak() -> float:
    """The most memory that was ever used, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Run:
    """One target and its inputs."""

    def __init__(self, name: str, target: Callable[[bytes], None]) -> None:
        self.name, self.target = name, target
        self.inputs = 0
        self.slowest = 0.0
        self.warmed = 0.0

    def __call__(self, data: bytes) -> None:
        # Of the processor: others may have it meanwhile.
        began = time.process_time()
        try:
            self.target(data)
        except BaseException:
            self._fail(data, traceback.format_exc())
        took = time.process_time() - began
        self.slowest = max(self.slowest, took)
        if took > SLOW:
            self._fail(data, f"it took {took:.1f} s")
        self.inputs += 1
        if self.inputs == 2000:
            self.warmed = peak()

    def _fail(self, data: bytes, why: str) -> None:
        path = Path(f"fuzz-failure-{self.name}.bin")
        path.write_bytes(data)
        print(f"{self.name}: input {self.inputs} fails (see {path}):\n{why}", file=sys.stderr)
        sys.exit(1)

    def report(self, seconds: float) -> None:
        gained = peak() - self.warmed if self.warmed else 0.0
        print(
            f"{self.name}: {self.inputs:,} inputs in {seconds:.0f} s, the slowest {self.slowest * 1e3:.0f} ms, "
            f"{gained:.0f} MB gained after the first 2,000",
            flush=True,
        )


def by_mutation(run: Run, corpus: list[bytes], inputs: int, seed: int) -> None:
    from mutation import mutated

    rng = random.Random(f"{seed} {run.name}")
    for _ in range(inputs):
        run(mutated(rng.choice(corpus), corpus, rng))


def by_atheris(run: Run, corpus: list[bytes], inputs: int, seed: int) -> None:
    import atheris  # type: ignore[import-not-found]
    from mutation import mutated

    def mutate(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.3 or not data:
            return atheris.Mutate(data or rng.choice(corpus)[:most], most)  # type: ignore[no-any-return]
        return mutated(data, corpus, rng)[:most]

    folder = Path(f".cache/fuzz-{run.name}")
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(corpus):
        (folder / f"seed-{number}").write_bytes(text)
    atheris.instrument_all()
    arguments = [sys.argv[0], f"-runs={inputs}", f"-seed={seed}", "-max_len=20000", "-verbosity=0", str(folder)]
    atheris.Setup(arguments, run, custom_mutator=mutate)
    began = time.perf_counter()
    import atexit

    # It ends the process itself.
    atexit.register(lambda: run.report(time.perf_counter() - began))
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description="Feed the readers a great many inputs that are wrong.")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all, shared out among the targets")
    parser.add_argument("--target", help="only this one; --engine atheris needs it")
    parser.add_argument("--engine", choices=["mutation", "atheris"], default="mutation")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("error")
    logging.getLogger("asyncinspect").setLevel("CRITICAL")
    sys.path.insert(0, str(HERE))
    from targets import TARGETS, corpus_of

    if options.target not in (None, *TARGETS):
        parser.error(f"--target {options.target}: there are {', '.join(TARGETS)}")
    if options.engine == "atheris" and options.target is None:
        parser.error("--engine atheris takes one --target at a time")
    names = [options.target] if options.target else list(TARGETS)
    for name in names:
        run, corpus = Run(name, TARGETS[name]), corpus_of(name)
        for text in corpus:
            run(text)
        share = options.inputs // len(names)
        if options.engine == "atheris":
            by_atheris(run, corpus, share, options.seed)
        began = time.perf_counter()
        by_mutation(run, corpus, share, options.seed)
        run.report(time.perf_counter() - began)


if __name__ == "__main__":
    main()
