"""`-o` and `-e`: each byte once, over restarts, as the owner, and a clear word where it can't be."""

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beo import records
from beo.headnode import export
from beo.headnode.export import Exports
from beo.headnode.output import Output
from beo.spec import JobSpec

NOBODY = 65_534


class Jobs:
    """The head's state, as far as exports ask."""

    def __init__(self) -> None:
        self.specs: dict[int, JobSpec] = {}
        self.over: set[tuple[int, int]] = set()
        self.first: dict[int, int] = {}  # job -> attempt from which its present one goes on
        self.uid, self.gid = os.geteuid(), os.getegid()

    def add(self, job: int, output: Path | str = "", errors: Path | str = "") -> None:
        self.specs[job] = JobSpec(argv=("x",), cwd="/", output=str(output or ""), errors=str(errors or ""))

    def spec(self, job: int) -> JobSpec | None:
        return self.specs.get(job)

    def ids(self, job: int) -> tuple[int, int, tuple[int, ...]] | None:
        return self.uid, self.gid, (self.gid,)

    def since(self, job: int) -> int:
        return self.first.get(job, 10**9)

    def is_over(self, job: int, attempt: int) -> bool:
        return (job, attempt) in self.over


class Head:
    """A store with its exports, to be stopped at any point and begun again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs = Jobs()
        self.begin()

    def begin(self) -> None:
        self.store = Output(self.folder / "output")
        self.exports = Exports(self.folder / "output", self.store.path, self.jobs)
        self.exports.lead()
        for key in self.exports.active():
            self.exports.grown(*key, self.store.end(*key))
        self.exports.start()

    def stop(self) -> None:
        self.exports.stop()
        self.store.close()

    def start_attempt(self, job: int, attempt: int = 1) -> None:
        self.exports.begin(job, attempt)
        self.exports.grown(job, attempt, self.store.end(job, attempt))

    def print(self, job: int, text: bytes, fd: int = 1, attempt: int = 1) -> None:
        have = self.store.have(job, attempt, "a")
        self.store.append(job, attempt, "a", have, records.pack(0, fd, text))
        for key in self.store.sync():
            self.exports.grown(*key, self.store.end(*key))

    def end(self, job: int, attempt: int = 1) -> None:
        self.jobs.over.add((job, attempt))
        self.exports.poke()
        until(lambda: (job, attempt) not in self.exports.active())


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    monkeypatch.setattr(export, "RETRY_S", 0.02)
    found = Head(tmp_path)
    yield found
    found.stop()


def test_stdout_and_stderr_go_to_their_files_while_the_job_runs(head: Head, tmp_path: Path) -> None:
    head.jobs.add(12, tmp_path / "%j.out", tmp_path / "%j.err")
    head.start_attempt(12)
    head.print(12, b"one\n")
    head.print(12, b"oops\n", fd=2)
    until(lambda: (tmp_path / "12.out").exists() and (tmp_path / "12.out").read_bytes() == b"one\n")
    head.print(12, b"two\n")
    head.end(12)
    assert (tmp_path / "12.out").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "12.err").read_bytes() == b"oops\n"
    assert not list((tmp_path / "output").glob("*.export-*"))


@pytest.mark.parametrize("errors", ["", "same"])
def test_without_a_file_of_its_own_stderr_joins_stdout_in_order(head: Head, tmp_path: Path, errors: str) -> None:
    head.jobs.add(1, tmp_path / "out", tmp_path / "out" if errors else "")
    head.start_attempt(1)
    for n in range(6):
        head.print(1, b"%d\n" % n, fd=1 + n % 2)
    head.end(1)
    assert (tmp_path / "out").read_bytes() == b"0\n1\n2\n3\n4\n5\n"


def test_errors_alone(head: Head, tmp_path: Path) -> None:
    head.jobs.add(1, "", tmp_path / "err")
    head.start_attempt(1)
    head.print(1, b"out\n")
    head.print(1, b"err\n", fd=2)
    head.end(1)
    assert (tmp_path / "err").read_bytes() == b"err\n"


def test_a_job_that_prints_nothing_has_an_empty_file_and_an_old_one_is_emptied(head: Head, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("of yesterday")
    head.jobs.add(1, tmp_path / "out")
    head.start_attempt(1)
    head.end(1)
    assert (tmp_path / "out").read_bytes() == b""


def test_a_new_attempt_begins_the_file_anew_and_the_old_one_writes_no_more(head: Head, tmp_path: Path) -> None:
    head.jobs.add(1, tmp_path / "out")
    head.start_attempt(1, 1)
    head.print(1, b"first\n")
    until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_bytes() == b"first\n")
    head.start_attempt(1, 2)
    head.print(1, b"late\n", attempt=1)
    head.print(1, b"second\n", attempt=2)
    head.end(1, 2)
    assert (tmp_path / "out").read_bytes() == b"second\n"
    assert head.exports.active() == []


def test_an_attempt_that_goes_on_where_one_halted_goes_on_with_its_file(head: Head, tmp_path: Path) -> None:
    head.jobs.add(1, tmp_path / "out")
    for attempt, text in ((1, b"one\n"), (2, b""), (3, b"three\n")):
        head.jobs.first[1] = 1
        head.start_attempt(1, attempt)
        if text:
            head.print(1, text, attempt=attempt)
        head.end(1, attempt)
    assert (tmp_path / "out").read_bytes() == b"one\nthree\n"
    (tmp_path / "out").write_bytes(b"one\n")  # as if a head had died just there
    head.start_attempt(1, 4)
    head.print(1, b"four\n", attempt=4)
    head.end(1, 4)
    assert (tmp_path / "out").read_bytes() == b"one\nthree\nfour\n"


@pytest.mark.parametrize("seed", range(4))
def test_each_byte_is_written_once_over_any_restarts(head: Head, tmp_path: Path, seed: int) -> None:
    """The head stops at any point; what it was about to write may be in the file, in part or not at all."""
    dice = random.Random(seed)
    head.jobs.add(1, tmp_path / "out", tmp_path / "err")
    head.start_attempt(1)
    expected = {1: b"", 2: b""}
    for n in range(150):
        fd = dice.choice((1, 1, 2))
        text = b"%d %s\n" % (n, b"x" * dice.randrange(50))
        expected[fd] += text
        head.print(1, text, fd)
        if dice.random() < 0.1:
            head.stop()
            for name, fd in (("out", 1), ("err", 2)):  # a crash between two writes of one stretch
                path = tmp_path / name
                if path.exists() and dice.random() < 0.5:
                    assert expected[fd].startswith(path.read_bytes())
                    os.truncate(path, dice.randint(0, path.stat().st_size))
            head.begin()
    head.end(1)
    assert (tmp_path / "out").read_bytes() == expected[1]
    assert (tmp_path / "err").read_bytes() == expected[2]


def test_who_reads_the_file_along_sees_each_byte_once_over_a_restart(head: Head, tmp_path: Path) -> None:
    head.jobs.add(1, tmp_path / "out")
    head.start_attempt(1)
    head.print(1, b"one\n")
    until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").stat().st_size)
    with (tmp_path / "out").open("rb") as tail:
        seen = tail.read()
        written_ns = (tmp_path / "out").stat().st_mtime_ns
        head.stop()
        head.begin()
        until(lambda: head.exports._sinks[1, 1, "o"].fd >= 0)
        assert (tmp_path / "out").stat().st_mtime_ns == written_ns
        head.print(1, b"two\n")
        head.end(1)
        assert seen + tail.read() == b"one\ntwo\n"


def test_nothing_is_complete_before_the_store_has_told_its_end(tmp_path: Path) -> None:
    head = Head(tmp_path)
    head.jobs.add(1, tmp_path / "out")
    head.exports.begin(1, 1)
    head.jobs.over.add((1, 1))
    head.exports.poke()
    until(lambda: not head.exports._work)
    head.print(1, b"text\n")
    until(lambda: not head.exports.active())
    assert (tmp_path / "out").read_bytes() == b"text\n"
    head.stop()


def test_an_attempt_that_ended_while_no_head_ran_is_completed(head: Head, tmp_path: Path) -> None:
    head.jobs.add(1, tmp_path / "out")
    head.exports.begin(1, 1)  # and nothing could be written yet
    head.stop()
    head.begin()
    head.print(1, b"all\n")
    head.end(1)
    assert (tmp_path / "out").read_bytes() == b"all\n"


def test_a_missing_folder_is_told_and_tried_again(head: Head, tmp_path: Path) -> None:
    head.jobs.add(1, tmp_path / "later" / "out")
    head.start_attempt(1)
    head.print(1, b"text\n")
    until(lambda: head.exports.error(1))
    assert "no such file or directory" in head.exports.error(1)
    assert "beo logs 1" in head.exports.error(1)
    (tmp_path / "later").mkdir()
    head.end(1)
    assert (tmp_path / "later" / "out").read_bytes() == b"text\n"
    assert head.exports.error(1) == ""


def test_a_file_that_can_never_be_written_ends_with_its_attempt(head: Head, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for job, path in ((1, tmp_path / "none" / "out"), (2, tmp_path), (3, tmp_path / "fifo"), (4, "/dev/zero")):
        head.jobs.add(job, path)
        head.start_attempt(job)
        head.print(job, b"text\n")
        head.end(job)
        assert head.exports.error(job)
    assert "not a regular file" in head.exports.error(4)
    assert not list((tmp_path / "output").glob("*.export-*"))


def test_dev_null_is_a_place_to_write(head: Head) -> None:
    head.jobs.add(1, "/dev/null")
    head.start_attempt(1)
    head.print(1, b"text\n")
    head.end(1)
    assert head.exports.error(1) == ""


def test_two_jobs_in_one_file_are_refused_and_the_first_is_not_harmed(head: Head, tmp_path: Path) -> None:
    head.jobs.add(1, tmp_path / "out")
    head.jobs.add(2, tmp_path / "out")
    head.start_attempt(1)
    head.print(1, b"mine\n")
    until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_bytes() == b"mine\n")
    head.start_attempt(2)
    head.print(2, b"other\n")
    until(lambda: head.exports.error(2))
    assert head.exports.error(2).endswith("is being written by job 1: put %j into -o and -e")
    head.end(2)
    head.end(1)
    assert (tmp_path / "out").read_bytes() == b"mine\n"


def test_a_forgotten_job_is_dropped(head: Head, tmp_path: Path) -> None:
    head.jobs.add(1, tmp_path / "none" / "out")
    head.start_attempt(1)
    until(lambda: head.exports.error(1))
    head.exports.forget({1})
    until(lambda: not head.exports.active())


@pytest.mark.root
def test_files_are_the_owners_and_go_only_where_he_may_write(head: Head, tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
    os.chown(own, NOBODY, NOBODY)
    other.chmod(0o775)  # root's group may write, which the job's owner isn't in
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:  # pytest's own folders are for one user alone
            folder.chmod(folder.stat().st_mode | 0o011)
    head.jobs.uid = head.jobs.gid = NOBODY
    head.jobs.add(1, own / "out")
    head.jobs.add(2, other / "out")
    own_groups = os.getgroups()
    os.setgroups([0])
    try:
        for job in (1, 2):
            head.start_attempt(job)
            head.print(job, b"text\n")
            head.end(job)
    finally:
        os.setgroups(own_groups)
    assert (own / "out").read_bytes() == b"text\n"
    assert ((own / "out").stat().st_uid, (own / "out").stat().st_mode & 0o777) == (NOBODY, 0o644)
    assert not (other / "out").exists()
    assert "permission denied" in head.exports.error(2)
    (tmp_path / "by-root").touch()
    assert (tmp_path / "by-root").stat().st_uid == 0  # the rest of the process is who it was


@pytest.mark.root
def test_a_full_disk_delays_the_file_and_each_byte_still_comes_once(head: Head, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "beo-test", disk], check=True)
    try:
        (disk / "ballast").write_bytes(bytes(40_000))
        head.jobs.add(1, disk / "out")
        head.start_attempt(1)
        expected = b""
        for n in range(40):
            expected += b"%d\n" % n * 300
            head.print(1, b"%d\n" % n * 300)
        until(lambda: "no space left" in head.exports.error(1))
        (disk / "ballast").unlink()
        head.end(1)
        assert (disk / "out").read_bytes() == expected
        assert head.exports.error(1) == ""
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# ---- two heads


def test_a_file_that_another_head_began_goes_on_where_it_is(head: Head, tmp_path: Path) -> None:
    """It is never shorter than it was, so whoever reads it along sees each line once."""
    out = tmp_path / "out"
    head.jobs.add(1, out)
    head.start_attempt(1)
    for n in range(200):
        head.print(1, b"line %d\n" % n * 1_000)
    before = b"".join(b"line %d\n" % n * 1_000 for n in range(200))
    until(lambda: out.read_bytes() == before)
    head.stop()
    with out.open("rb") as along:
        assert along.read() == before
        head.begin()
        head.print(1, b"more\n")
        head.end(1)
        assert along.read() == b"more\n"
        assert os.fstat(along.fileno()).st_size == len(before) + 5


@pytest.mark.parametrize("text", [b"an older job's\n", b"line 0\n" * 5_000, b"line 0\nline 1\nline 2"])
def test_a_file_with_anything_else_in_it_is_begun_anew(head: Head, tmp_path: Path, text: bytes) -> None:
    out = tmp_path / "out"
    out.write_bytes(text)
    head.jobs.add(1, out)
    head.exports.rest()
    head.start_attempt(1)
    head.print(1, b"line 0\nline 1\n")
    head.exports.lead()
    head.exports.grown(1, 1, head.store.end(1, 1))
    head.end(1)
    assert out.read_bytes() == b"line 0\nline 1\n"


def test_a_head_that_rests_writes_nothing_and_goes_on_with_what_is_not_finished(head: Head, tmp_path: Path) -> None:
    for job in (1, 2, 3):
        head.jobs.add(job, tmp_path / f"out-{job}")
    head.exports.rest()
    for job in (1, 2, 3):
        head.start_attempt(job)
        head.print(job, b"line\n")
        head.jobs.over.add((job, 1))
    head.exports.poke()
    head.exports.drop([(1, 1, "o"), (9, 1, "o")])  # the head that leads has finished it
    head.exports.forget({3})
    until(lambda: head.exports.names() == [(2, 1, "o")])
    assert not list(tmp_path.glob("out-*"))
    head.exports.lead()
    head.exports.grown(2, 1, head.store.end(2, 1))
    until(lambda: not head.exports.names())
    assert [path.name for path in tmp_path.glob("out-*")] == ["out-2"]
    assert head.exports.finished() == [(2, 1, "o")]


def test_a_head_whose_lease_is_over_writes_nothing(head: Head, tmp_path: Path) -> None:
    head.jobs.add(1, tmp_path / "out")
    may: list[bool] = []
    asked = threading.Event()

    def ask() -> bool:
        asked.set()
        return bool(may)

    head.exports._may = ask
    head.start_attempt(1)
    head.print(1, b"line\n")
    head.jobs.over.add((1, 1))
    assert asked.wait(20)
    time.sleep(0.1)
    assert not (tmp_path / "out").exists() and head.exports.names()
    may.append(True)
    until(lambda: not head.exports.names())
    assert (tmp_path / "out").read_bytes() == b"line\n"
