"""Files are read to their ends, each line once, through all kinds of rotation and from where a former run stopped."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from asyncinspect_logging.errors import ConfigError
from asyncinspect_logging.sidecar import copies, tail
from asyncinspect_logging.sidecar.tail import Files


class Followed:
    """What was read of files, line by line."""

    def __init__(self, *paths: Path | str, saved: Any = None) -> None:
        self.files = Files(paths)
        self.lines: list[str] = []
        if saved is not None:
            self.files.load(json.loads(json.dumps(saved)))

    def read(self) -> list[str]:
        """Everything that was added, and all lines until now."""
        self.files.scan()
        while self.files.poll(self._take) or self.files.moved:
            if self.files.moved:
                self.files.scan()
        return self.lines

    def _take(self, path: str, first: int, lines: list[bytes]) -> None:
        self.lines += [line.decode() for line in lines]

    def again(self, *paths: Path | str) -> Followed:
        """The next run."""
        saved = self.files.dump()
        self.files.close()
        return Followed(*paths, saved=saved)


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def lines(*numbers: int) -> str:
    """Long enough that some files are longer than their heads."""
    return "".join(f"{number:04} {'x' * 200}\n" for number in numbers)


def numbers(read: list[str]) -> list[int]:
    return [int(line[:4]) for line in read]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "app.log"


def test_names_of_files(log: Path) -> None:
    """A file has one name, in the next run too and for what is copied of it, and another at its place has another."""
    named: dict[str, list[tuple[str, int]]] = {}

    def read(followed: Followed) -> None:
        followed._take = (
            lambda name, first, lines: [  # type: ignore[method-assign]
                named.setdefault(line[:4].decode(), []).append((name, number))
                for number, line in enumerate(lines, first)
            ]
        )
        followed.read()

    add(log, lines(*range(10)))
    followed = Followed(log)
    read(followed)
    log.rename(f"{log}.1")
    add(Path(f"{log}.1"), lines(10))
    add(log, lines(20, 21))
    read(followed)
    followed = followed.again(log)
    add(log, lines(22))
    shutil.copy(log, f"{log}.2")
    os.truncate(log, 0)
    add(log, lines(30))
    read(followed)
    assert [named[f"{number:04}"] for number in range(11)] == [[(f"{log}#1", number + 1)] for number in range(11)]
    assert [named[f"{number:04}"] for number in (20, 21, 22)] == [[(f"{log}#2", number)] for number in (1, 2, 3)]
    assert named["0030"] == [(f"{log}#3", 1)]


def test_pieces_of_lines(log: Path) -> None:
    """A line is handed over once it is whole, however it came."""
    followed = Followed(log)
    assert followed.read() == []
    for piece in ("a", "b", "c\nd", "", "e\n", "\nf\n"):
        add(log, piece)
        followed.read()
    assert followed.lines == ["abc", "de", "", "f"]


def test_files_that_appear_later(tmp_path: Path) -> None:
    """A glob is looked at again and again; folders that match it are no files."""
    followed = Followed(tmp_path / "*.log")
    (tmp_path / "folder.log").mkdir()
    for number in range(3):
        add(tmp_path / f"{number}.log", lines(number))
        followed.read()
    add(tmp_path / "0.log", lines(3))
    assert numbers(followed.read()) == [0, 1, 2, 3]


def test_a_name_with_the_characters_of_a_glob(tmp_path: Path) -> None:
    """It is a name first."""
    add(tmp_path / "a[1].log", "x\n")
    assert Followed(tmp_path / "a[1].log").read() == ["x"]


def test_renamed_and_made_anew(log: Path) -> None:
    """What is written to the old file after it was renamed is read too, and both only once."""
    followed = Followed(log)
    writer = log.open("a")
    writer.write(lines(0))
    writer.flush()
    followed.read()
    log.rename(f"{log}.1")
    writer.write(lines(1))
    writer.close()
    add(log, lines(2))
    assert sorted(numbers(followed.read())) == [0, 1, 2]
    Path(f"{log}.1").rename(f"{log}.2")
    log.rename(f"{log}.1")
    add(log, lines(3))
    assert sorted(numbers(followed.read())) == [0, 1, 2, 3]


@pytest.mark.parametrize("before", [1, 20])
def test_copied_and_cut_off(log: Path, before: int) -> None:
    """What was not read of the file when it was cut off is read from the copy, and nothing of it twice."""
    add(log, lines(*range(before)))
    followed = Followed(log)
    followed.read()
    add(log, lines(before))
    shutil.copy(log, f"{log}.1")
    followed.read()
    os.truncate(log, 0)
    add(log, lines(before + 1))
    assert sorted(numbers(followed.read())) == list(range(before + 2))
    add(log, lines(*range(before + 2, 60)))
    assert sorted(numbers(followed.read())) == list(range(60))


def test_copied_and_cut_off_between_two_looks(log: Path) -> None:
    """The same where nobody looked in between, and the new content is longer than the old one was."""
    add(log, lines(0, 1))
    followed = Followed(log)
    followed.read()
    add(log, lines(2))
    shutil.copy(log, f"{log}.1")
    os.truncate(log, 0)
    add(log, lines(*range(3, 9)))
    assert sorted(numbers(followed.read())) == list(range(9))


packers = pytest.mark.parametrize(
    ("end", "pack"), [("gz", gzip.compress), ("zst", zstandard.compress)], ids=["gzip", "zstd"]
)


@packers
@pytest.mark.parametrize("more", [(), (10,)])
def test_compressed(log: Path, more: tuple[int, ...], end: str, pack: Callable[[bytes], bytes]) -> None:
    """Of a compressed file, what was read before it was compressed is passed over."""
    add(log, lines(*range(10)))
    followed = Followed(log)
    followed.read()
    add(log, lines(*more))
    Path(f"{log}.1.{end}").write_bytes(pack(log.read_bytes()))
    followed.read() if not more else None
    log.unlink()
    followed.files.close()  # as if there had been too many to keep them open
    assert numbers(followed.read()) == [*range(10), *more]
    Path(f"{log}.1.{end}").rename(f"{log}.2.{end}")
    assert numbers(followed.read()) == [*range(10), *more]


@packers
def test_compressed_in_the_middle(log: Path, end: str, pack: Callable[[bytes], bytes]) -> None:
    """A file that is being compressed is waited for."""
    add(log, lines(*range(10)))
    followed = Followed(log)
    followed.read()
    add(log, lines(10))
    packed = pack(log.read_bytes())
    log.unlink()
    followed.files.close()
    Path(f"{log}.1.{end}").write_bytes(packed[:-20])
    followed.read()
    Path(f"{log}.1.{end}").write_bytes(packed)
    assert numbers(followed.read()) == list(range(11))


@packers
def test_long_compressed_file(
    log: Path, monkeypatch: pytest.MonkeyPatch, end: str, pack: Callable[[bytes], bytes]
) -> None:
    """One of many chunks, which end in the middle of lines, read in two runs."""
    monkeypatch.setattr(tail, "_CHUNK", 700)
    monkeypatch.setattr(tail, "_TURN", 1400)
    path = log.with_suffix(f".{end}")
    path.write_bytes(pack(lines(*range(40)).encode()) + pack(lines(*range(40, 100)).encode()[:-1]))
    followed = Followed(path)
    followed.files.scan()
    for _ in range(10):
        assert followed.files.poll(followed._take)
    read = followed.lines
    after = followed.again(path)
    assert numbers(read + after.read()) == list(range(100))
    assert after.again(path).read() == []


@packers
def test_compressed_and_cut_short(
    log: Path, monkeypatch: pytest.MonkeyPatch, end: str, pack: Callable[[bytes], bytes], caplog: Any
) -> None:
    """It is waited for; once it is clear that nothing comes, what is whole of it is read, and it is said."""
    path = Path(f"{log}.{end}")
    path.write_bytes(pack(lines(*range(10)).encode()) + pack(os.urandom(5000).hex().encode())[:-20])
    followed = Followed(path)
    assert followed.read() == []
    monkeypatch.setattr(tail, "_PACKING", 0.0)
    assert numbers(followed.read()[:10]) == [*range(10)]
    followed.read()
    assert len(followed.files._open) == 0
    assert followed.files.bad == 1
    assert [record.getMessage().count("cannot be unpacked") for record in caplog.records] == [1]
    assert followed.again(path).read() == []


def test_a_file_that_is_none_any_more(log: Path) -> None:
    """What is opened for its content is a file, or not waited for."""
    os.mkfifo(log)
    with pytest.raises(OSError, match="no file any more"):
        copies.Unpacked(str(log))
    assert copies.head_of(str(log)) == (False, None)


def test_rotated_files_of_before_are_not_asked_for(log: Path) -> None:
    """Nor is what only looks like one."""
    for suffix in (".1", "-20250101", ".2.gz", ".swp", "-errors"):
        add(Path(f"{log}{suffix}"), lines(1))
        os.utime(f"{log}{suffix}", (1e9, 1e9))
    add(log, lines(2))
    followed = Followed(log)
    assert numbers(followed.read()) == [2]
    add(Path(f"{log}-errors"), lines(3))
    assert numbers(followed.read()) == [2]
    # Whoever asks for them by name has them.
    assert len(Followed(f"{log}*").read()) == 7


def test_rotated_twice_between_two_looks(log: Path) -> None:
    """A file that came and was renamed is found under the name that it has now."""
    followed = Followed(log)
    add(log, lines(0))
    followed.read()
    for number in (1, 2, 3):
        for old in (2, 1):
            if os.path.exists(f"{log}.{old}"):
                os.rename(f"{log}.{old}", f"{log}.{old + 1}")
        log.rename(f"{log}.1")
        add(log, lines(number))
    assert sorted(numbers(followed.read())) == [0, 1, 2, 3]


def test_removed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left in a file without a name is read, its last line even without an end; then it is let go."""
    monkeypatch.setattr(tail, "_LINGER", 0.0)
    add(log, "a\n")
    followed = Followed(log)
    followed.read()
    with log.open("a") as writer:
        log.unlink()
        writer.write("b\nc")
    followed.read()
    followed.read()
    assert followed.read() == ["a", "b", "c"]
    assert len(followed.files) == 0
    add(log, "d\n")
    assert followed.read()[3:] == ["d"]


def test_another_run(tmp_path: Path, log: Path) -> None:
    """It goes on where the last one stopped: of each file, wherever it is by now."""
    add(log, lines(*range(10)) + "half")
    other = tmp_path / "other.log"
    add(other, lines(50))
    first = Followed(log, other)
    first.read()
    log.rename(f"{log}.1")
    add(Path(f"{log}.1"), " a line\n")
    add(log, lines(11))
    second = first.again(log, other)
    assert sorted(second.read()) == sorted(["half a line", *lines(11).splitlines()])
    Path(f"{log}.2.gz").write_bytes(gzip.compress(Path(f"{log}.1").read_bytes()))
    os.remove(f"{log}.1")
    log.rename(f"{log}.1")
    add(log, lines(12))
    add(other, lines(51))
    third = second.again(log, other)
    assert sorted(numbers(third.read())) == [12, 51]


def test_another_run_after_all_was_rotated_away(log: Path) -> None:
    """The file of the last run is gone, and several came and went: what is there of them is read."""
    add(log, lines(0))
    first = Followed(log)
    first.read()
    saved = first.files.dump()
    first.files.close()
    log.unlink()
    add(Path(f"{log}.2"), lines(5))
    add(Path(f"{log}.1"), lines(6))
    add(log, lines(7))
    assert sorted(numbers(Followed(log, saved=saved).read())) == [5, 6, 7]


def test_an_inode_is_used_again(log: Path) -> None:
    """A file is not the one of before for having its number."""
    add(log, lines(*range(3)))
    first = Followed(log)
    first.read()
    saved = first.files.dump()
    first.files.close()
    log.write_text(lines(*range(100, 110)))
    assert numbers(Followed(log, saved=saved).read()) == list(range(100, 110))


@pytest.mark.parametrize("more", [0, 20])
def test_written_anew_with_the_same_beginning(log: Path, more: int) -> None:
    """Such as a banner that is longer than what a file begins with: it is read from its beginning, be it longer."""
    banner = "= my server 1.0 =\n" * 100
    log.write_text(banner + lines(*range(20)))
    followed = Followed(log)

    def look() -> None:
        for _ in range(3):
            followed.files.scan()
            followed.files.poll(followed._take)

    look()
    log.write_text(banner + lines(*range(100, 110 + more)))
    look()
    assert not followed.files.moved
    add(log, lines(*range(110 + more, 150)))
    look()
    assert numbers([line for line in followed.lines if line[0] != "="]) == [*range(20), *range(100, 150)]


def test_folders_in_folders(tmp_path: Path) -> None:
    """`**` stands for any number of them, as it does for a replay."""
    followed = Followed(tmp_path / "**" / "*.log")
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        folder.mkdir(exist_ok=True)
        add(folder / "x.log", f"in {folder.name}\n")
        followed.read()
    assert followed.lines == [f"in {tmp_path.name}", "in a", "in b"]


def test_a_line_without_end(log: Path) -> None:
    """It is passed over, in memory that does not grow, and what comes after it is read."""
    add(log, "a\n" + "x" * 3_500_000)
    followed = Followed(log)
    assert followed.read() == ["a"]
    after = followed.again(log)
    add(log, "\nb\n")
    assert after.read() == ["b"]
    assert followed.files.bad == 1


def test_more_files_than_descriptors(tmp_path: Path) -> None:
    """A thousand files are followed with a few of them open."""
    before = len(os.listdir("/proc/self/fd"))
    paths = [tmp_path / f"{number}.log" for number in range(1000)]
    followed = Followed(tmp_path / "*.log")
    for path in paths:
        add(path, lines(1))
    followed.read()
    open_before = len(os.listdir("/proc/self/fd"))
    for path in paths:
        add(path, lines(2))
    assert len(followed.read()) == 2000
    assert len(os.listdir("/proc/self/fd")) <= open_before
    assert open_before < before + 200
    followed.files.close()


def test_all_files_have_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is written all the time does not keep the others waiting."""
    monkeypatch.setattr(tail, "_CHUNK", 1000)
    monkeypatch.setattr(tail, "_TURN", 1000)
    for name in "abc":
        add(tmp_path / f"{name}.log", lines(*range(100)))
    followed = Followed(tmp_path / "*.log")
    followed.files.scan()
    read: set[str] = set()
    for _ in range(6):
        followed.files.poll(lambda name, *_: read.add(Path(name).name[0]))
    assert read == {"a", "b", "c"}


def test_what_cannot_be_followed(tmp_path: Path) -> None:
    """A folder is an error at once."""
    with pytest.raises(ConfigError, match="is no file"):
        Files([tmp_path])


# -- files that begin alike ---------------------------------------------------------------------------------------

BANNER = "".join(f"= my server 1.0, setting {number} =\n" for number in range(60))


def numbered(read: list[str]) -> list[int]:
    """The lines that are not of a banner."""
    return sorted(int(line[:4]) for line in read if line[0] != "=")


def going_on(followed: Followed, restart: bool, *paths: Path | str) -> Followed:
    """The same, or the next run, which knows what was read before."""
    if not restart:
        return followed
    after = followed.again(*paths)
    after.lines = followed.lines
    return after


both = pytest.mark.parametrize("restart", [False, True], ids=["", "restart"])


@both
@pytest.mark.parametrize("names", [("a.log", "b.log"), ("worker-1.log", "worker-2.log"), ("app.log", "app.log.1")])
def test_two_services_that_begin_alike(tmp_path: Path, names: tuple[str, str], restart: bool) -> None:
    """Two files are two, whatever both say first, and for how long."""
    paths = [tmp_path / name for name in names]
    followed = Followed(*paths)
    add(paths[0], BANNER)
    followed.read()
    add(paths[1], BANNER)
    followed = going_on(followed, restart, *paths)
    followed.read()
    add(paths[1], lines(1))
    followed.read()
    followed = going_on(followed, restart, *paths)
    add(paths[0], lines(2))
    assert numbered(followed.read()) == [1, 2]
    assert sum(line[0] == "=" for line in followed.lines) == 2 * 60
    followed.files.close()


def test_two_services_that_say_the_same(tmp_path: Path) -> None:
    """Both are read, though no byte tells them apart."""
    followed = Followed(tmp_path / "worker-*.log")
    for number in (1, 2):
        add(tmp_path / f"worker-{number}.log", lines(*range(10)))
        followed.read()
    assert numbers(followed.lines) == [*range(10)] * 2


@both
def test_a_service_that_is_gone(tmp_path: Path, restart: bool) -> None:
    """Another one that begins like it is read from its beginning."""
    followed = Followed(tmp_path / "worker-*.log")
    add(tmp_path / "worker-1.log", BANNER + lines(1))
    followed.read()
    (tmp_path / "worker-1.log").unlink()
    followed.files.close()
    followed.read()
    followed = going_on(followed, restart, tmp_path / "worker-*.log")
    add(tmp_path / "worker-2.log", BANNER + lines(2, 3, 4))
    assert numbered(followed.read()) == [1, 2, 3, 4]


@both
@pytest.mark.parametrize("how", ["rename", "copy", "gzip"])
@pytest.mark.parametrize("unread", [(), (10, 11)])
@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
def test_rotation_of_files_that_begin_alike(
    log: Path, how: str, unread: tuple[int, ...], restart: bool, pattern: str
) -> None:
    """Each line once, also where the next file is longer than the last one was."""
    followed = Followed(log.with_name(pattern))
    add(log, BANNER + lines(*range(5)))
    followed.read()
    add(log, lines(*unread))
    followed = going_on(followed, restart, log.with_name(pattern))
    if how == "copy":
        shutil.copy(log, f"{log}.1")
        if not restart:
            followed.read()
        os.truncate(log, 0)
    else:
        log.rename(f"{log}.1")
    add(log, BANNER + lines(*range(20, 40)))
    if how == "gzip":
        Path(f"{log}.1.gz").write_bytes(gzip.compress(Path(f"{log}.1").read_bytes()))
        if not restart:
            followed.read()
        os.remove(f"{log}.1")
        followed.files.close()
    assert numbered(followed.read()) == [*range(5), *unread, *range(20, 40)]
    followed = going_on(followed, restart, log.with_name(pattern))
    add(log, lines(40))
    assert numbered(followed.read()) == [*range(5), *unread, *range(20, 41)]
    followed.files.close()


def test_compressed_beside_what_was_compressed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was rotated and compressed before it was seen, and begins like one that is there, is read."""
    add(log, BANNER + lines(1))
    followed = Followed(log)
    followed.read()
    Path(f"{log}.2.gz").write_bytes(gzip.compress((BANNER + lines(2, 3)).encode()))
    Path(f"{log}.3.gz").write_bytes(gzip.compress(log.read_bytes()))
    # It may be in the making.
    assert numbered(followed.read()) == [1]
    monkeypatch.setattr(tail, "_SETTLED", 0.0)
    assert numbered(followed.read()) == [1, 2, 3]
    assert numbered(followed.again(log).read()) == []
    followed.files.close()


def test_an_empty_file_may_become_a_copy(log: Path) -> None:
    """Who looks between the making of a copy and the copying reads nothing twice."""
    add(log, lines(1, 2))
    followed = Followed(log)
    followed.read()
    copy = Path(f"{log}.1")
    copy.touch()
    followed.read()
    copy.write_bytes(log.read_bytes())
    os.truncate(log, 0)
    add(log, lines(3))
    assert numbers(followed.read()) == [1, 2, 3]


def test_on_another_device(log: Path) -> None:
    """After a move of the whole folder, a file with the same name and content goes on where it was."""
    add(log, lines(1, 2))
    first = Followed(log)
    first.read()
    saved = first.files.dump()
    first.files.close()
    saved["files"][0]["key"][0] += 1
    add(log, lines(3))
    assert numbers(Followed(log, saved=saved).read()) == [3]


steps = st.lists(
    st.sampled_from(["add", "add", "part", "rename", "copy", "pack", "remove", "read", "restart", "twice"]), max_size=25
)


@pytest.mark.parametrize("banner", ["", BANNER], ids=["", "banner"])
@given(steps=steps)
def test_each_line_once(tmp_path_factory: pytest.TempPathFactory, banner: str, steps: list[str]) -> None:
    """Whatever is done to the files, in whatever order: nothing is read twice, and what is still there is read. The
    same where all files begin alike.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tail, "_SETTLED", 0.0)
        follow(tmp_path_factory.mktemp("log") / "app.log", banner, steps)


def follow(log: Path, banner: str, steps: list[str]) -> None:
    followed, read, written, lost, half = Followed(log), [], 0, set(), False

    def write() -> None:
        nonlocal written, half
        if not log.exists() or not log.stat().st_size:
            add(log, banner)
        add(log, "" if half else f"{written:06} ")
        add(log, f"{'y' * 150}\n")
        written, half = written + 1, False

    def shift() -> None:
        for number in range(30, 0, -1):
            for end in ("", ".gz"):
                if os.path.exists(f"{log}.{number}{end}"):
                    os.rename(f"{log}.{number}{end}", f"{log}.{number + 1}{end}")

    for step in steps:
        if step in ("add", "twice"):
            write()
            if step == "twice":
                write()
        elif step == "part" and not half:
            if not log.exists() or not log.stat().st_size:
                add(log, banner)
            add(log, f"{written:06} ")
            half = True
        elif step == "rename" and log.exists() and not half:
            shift()
            log.rename(f"{log}.1")
        elif step == "copy" and log.exists() and not half:
            shift()
            shutil.copy(log, f"{log}.1")
            os.truncate(log, 0)
        elif step == "pack" and os.path.exists(f"{log}.1"):
            Path(f"{log}.1.gz").write_bytes(gzip.compress(Path(f"{log}.1").read_bytes()))
            os.remove(f"{log}.1")
        elif step == "remove" and os.path.exists(f"{log}.1"):
            lost |= {int(line[:6]) for line in Path(f"{log}.1").read_text().splitlines() if line[0] != "="}
            os.remove(f"{log}.1")
        elif step == "read":
            followed.read()
        elif step == "restart":
            read += followed.lines
            followed = followed.again(log)
    if half:
        write()
    followed.read()
    read += followed.read()
    followed.files.close()
    found = [int(line[:6]) for line in read if line[0] != "="]
    assert len(found) == len(set(found))
    assert set(range(written)) - lost <= set(found)
