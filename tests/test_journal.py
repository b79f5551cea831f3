"""What the journal promises: durable means durable, a torn tail is cut, and damage or loss is named, never served."""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beo import journal as module
from beo import reader
from beo.errors import BeoError, DamagedJournal
from beo.journal import Entry
from tests.journals import (
    ENVIRONMENT,
    PAYLOAD,
    WAIT_S,
    assert_right,
    chained,
    contents,
    fill,
    opened,
    payload,
    take_snapshot,
)

# Appending, reading, cutting


def test_replay_equals_what_was_appended(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "journal") as (journal, watch):
        assert journal.load()[0] is None and list(journal.load()[1]) == []
        fill(journal, watch, 100)
        journal.append(3, b"")
        watch.until(101)
        before = journal.entries(1, 1000)
        assert before[-1] == Entry(101, 3, chained(before[-2].hash, before[-1]), b"")
        assert before[0].hash == chained(bytes(16), before[0])
    with opened(tmp_path / "new" / "journal") as (journal, _):
        assert list(journal.load()[1]) == before
        assert (journal.last_index, journal.last_epoch, journal.last_hash) == (101, 3, before[-1].hash)
        assert not journal.unmarked


def test_only_the_owner_can_read_the_journal(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 1)
        assert {p.stat().st_mode & 0o077 for p in tmp_path.iterdir()} == {0}


def test_closing_commits_what_was_queued(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, _):
        for index in range(1, 1001):
            journal.append(1, payload(index))
    with pytest.raises(BeoError, match="closed"):
        journal.append(1, b"late")
    with opened(tmp_path) as (journal, _):
        assert_right(journal, 1000)


def test_entries_gathered_during_a_commit_share_the_next_one(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        watch.free.clear()
        journal.append(1, payload(1))
        watch.until(1)  # and the commit thread is held there
        for index in range(2, 2001):
            journal.append(1, payload(index))
        watch.free.set()
        watch.until(2000)
        assert watch.durable == [1, 2000]
        assert watch.threads == {"journal"}
        assert_right(journal, 2000)


def test_durable_indices_never_go_back_and_nothing_newer_is_shown(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        for index in range(1, 3001):
            journal.append(1, payload(index))
            shown = journal.entries(max(1, journal.durable_index), 5000) if index % 100 == 0 else []
            assert not shown or shown[-1].index <= journal.durable_index
        watch.until(3000)
        assert watch.durable == sorted(watch.durable) and len(watch.durable) < 3000


def test_a_slow_disk_pushes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKLOG_LIMIT_BYTES", 3 << 20)
    with opened(tmp_path) as (journal, watch):
        watch.free.clear()
        for _ in range(12):
            journal.append(1, bytes(1 << 18))
        with pytest.raises(BeoError, match="the journal is 3 MiB behind"):
            journal.append(1, b"one more")
        watch.free.set()
        watch.until(12)
        with journal._wake:
            assert journal._wake.wait_for(lambda: not journal._backlog_bytes, WAIT_S)
        assert journal.append(1, b"again") == 13


def test_what_is_too_large_or_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRY_LIMIT_BYTES", 1 << 20)
    with opened(tmp_path) as (journal, _):
        journal.append(5, b"x")
        with pytest.raises(BeoError, match="too large"):
            journal.append(5, bytes((1 << 20) + 1))
        with pytest.raises(BeoError, match="epoch 4 comes too late"):
            journal.append(4, b"x")
        with pytest.raises(BeoError, match="no snapshot at entry 2"):
            journal.adopt_snapshot(2)
        assert journal.last_index == 1


def test_reading_stops_at_its_limit_of_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 50)
        monkeypatch.setattr(reader, "READ_LIMIT_BYTES", 0)
        assert [e.index for e in journal.entries(7, 100)] == [7]
        assert [e.index for e in journal.load()[1]] == list(range(1, 51))
        assert journal.entries(51, 100) == []


def test_every_entry_that_is_kept_has_a_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECENT", 8)
    with opened(tmp_path) as (journal, watch):
        assert journal.position(0) == (0, 0, bytes(16)) and journal.position(1) is None
        fill(journal, watch, 100)
        watch.free.clear()
        journal.append(2, payload(101))
        watch.until(101)
        journal.append(3, payload(102))  # not durable: the commit thread is held
        assert journal.position(102) == (102, 3, journal.last_hash) and journal.position(103) is None
        watch.free.set()
        watch.until(102)
        entries = journal.entries(1, 1000)
        assert [journal.position(e.index) for e in entries] == [(e.index, e.epoch, e.hash) for e in entries]
        assert len(journal._recent) == 8, "what is durable can be read again"
        take_snapshot(journal, watch, 40)
        assert journal.position(0) == (0, 0, bytes(16)), "nothing is cut yet"
        take_snapshot(journal, watch, 70)
        known = journal.position(40)
        assert known == (40, 1, entries[39].hash) and journal.position(39) is None and journal.position(0) is None
    with opened(tmp_path) as (journal, _):
        assert journal.position(40) == known and journal.position(39) is None
        assert [journal.position(e.index) for e in entries[40:]] == [(e.index, e.epoch, e.hash) for e in entries[40:]]


def test_a_copy_of_a_journal_has_the_same_positions(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as (primary, seen), opened(tmp_path / "b") as (standby, watch):
        fill(primary, seen, 50)
        primary.append(3, b"of the next epoch")
        seen.until(51)
        for entry in primary.entries(1, 100):
            standby.append_copy(entry)
        watch.until(51)
        assert standby.entries(1, 100) == primary.entries(1, 100)
        assert standby.position(51) == primary.position(51)
    with opened(tmp_path / "b") as (standby, _):
        assert (standby.last_index, standby.last_epoch) == (51, 3)


def test_a_copy_that_does_not_follow_is_refused_with_both_positions(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as (primary, seen), opened(tmp_path / "b") as (standby, watch):
        fill(primary, seen, 20)
        fill(standby, watch, 9)
        assert standby.append(2, b"another one") == 10
        entry, here = primary.entries(11, 1)[0], standby.last_hash
        for wrong in (entry, primary.entries(12, 1)[0], primary.entries(10, 1)[0]):
            with pytest.raises(BeoError) as caught:
                standby.append_copy(wrong)
            assert f"{wrong.index} (epoch 1, hash {wrong.hash.hex()}) is of another history" in caught.value.what
            assert f"ends at 10 (epoch 2, hash {here.hex()})" in caught.value.why
        old = Entry(11, 1, chained(here, Entry(11, 1, b"", b"x")), b"x")
        with pytest.raises(BeoError, match="epoch 1 comes too late"):
            standby.append_copy(old)
        assert (standby.last_index, standby.last_hash) == (10, here)


def test_the_tail_that_is_to_be_cut_can_be_copied_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "READ_LIMIT_BYTES", 500)
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 30)
        for index in range(31, 61):
            journal.append(1, payload(index))
        tail = journal.tail(25)  # some of it not durable when it is asked for
        assert [(e.index, e.data) for e in tail] == [(index, payload(index)) for index in range(26, 61)]
        assert journal.tail(60) == []
        journal.truncate_after(25)
        assert journal.position(26) is None and journal.position(25) == (25, 1, journal.last_hash)
        watch.durable.clear()
        for entry in tail:
            journal.append_copy(entry)
        watch.until(60)
        monkeypatch.undo()
        assert_right(journal, 60)


def test_a_second_head_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    script = "import sys, pathlib, beo.journal as j; j.Journal(pathlib.Path(sys.argv[1]), print, print).close()"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 5)
        second = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT_S)
        assert f"is locked (by process {os.getpid()})" in second.stderr
        fill(journal, watch, 10)
    assert subprocess.run(command, env=ENVIRONMENT, timeout=WAIT_S).returncode == 0


def test_a_folder_that_cannot_be_made_is_an_error_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BeoError, match="cannot be written"), opened(tmp_path / "file" / "journal"):
        pass


# Failing disks

FAILING_WRITER = PAYLOAD + textwrap.dedent(
    """
    import json, os, resource, sys, threading
    from pathlib import Path
    from beo.errors import BeoError
    from beo.journal import Journal

    folder, fault = Path(sys.argv[1]), sys.argv[2]
    durable, failures, changed = [0], [], threading.Condition()
    def report(where, what):
        with changed:
            where.append(what)
            changed.notify_all()
    def contents():
        return {p.name: p.read_bytes() for p in folder.glob("journal.*") if p.suffix in (".db", ".db-wal", ".mark")}

    journal = Journal(folder, lambda i: report(durable, i), lambda e: report(failures, e))
    for index in range(1, 51):
        journal.append(1, payload(index))
    with changed:
        assert changed.wait_for(lambda: durable[-1] == 50, 30)
    if fault == "fsync":
        Path(os.environ["FAIL_SYNC"]).touch()
    elif fault == "write":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, resource.RLIM_INFINITY))
    elif fault == "space":
        with open(folder / "filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                filler.truncate(filler.tell() - (64 << 10))
    refused = ""
    try:
        for _ in range(20_000):
            journal.append(1, payload(journal.last_index + 1))
        with changed:
            assert changed.wait_for(lambda: failures, 30)
        journal.append(1, b"after the failure")
    except BeoError as error:
        refused = str(error)
    with changed:
        assert changed.wait_for(lambda: failures, 30)
    before = contents()
    journal.close()
    untouched = contents() == before
    acknowledged, failed, cause = durable[-1], len(failures), str(failures[0])

    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (folder / "filler").unlink(missing_ok=True)
    again = Journal(folder, print, print)
    right = all(e.data == payload(e.index) for e in again.load()[1])
    print(json.dumps(dict(acknowledged=acknowledged, failures=failed, cause=cause, refused=refused, right=right,
                          untouched=untouched, found=again.last_index)))
    again.close()
    """
)

FAILING_SYNC = """
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
/* fails once: a retry would succeed, and would be wrong */
static int fails(void) { return unlink(getenv("FAIL_SYNC")) == 0; }
int fsync(int fd) { if (fails()) { errno = EIO; return -1; } return syscall(SYS_fsync, fd); }
int fdatasync(int fd) { if (fails()) { errno = EIO; return -1; } return syscall(SYS_fdatasync, fd); }
"""


def run_failing(prefix: list[str], folder: Path, fault: str, **environment: str) -> dict[str, Any]:
    command = [*prefix, sys.executable, "-c", FAILING_WRITER, str(folder), fault]
    ran = subprocess.run(command, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=WAIT_S)
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def assert_failed_once_and_lost_nothing(result: dict[str, Any], cause: str) -> None:
    assert result["failures"] == 1
    assert cause in result["cause"] and cause in result["refused"] and "start the head again" in result["refused"]
    assert result["untouched"], "something was written after the failure"
    assert result["acknowledged"] >= 50 and result["found"] >= result["acknowledged"] and result["right"]


def test_a_write_error_is_told_once_and_nothing_is_written_after_it(tmp_path: Path) -> None:
    assert_failed_once_and_lost_nothing(run_failing([], tmp_path, "write"), "disk I/O error")


def test_a_failed_fsync_is_told_once_and_never_retried(tmp_path: Path) -> None:
    if not (compiler := shutil.which("cc")):
        pytest.skip("needs a C compiler to make fsync fail")
    library, source = tmp_path / "sync.so", tmp_path / "sync.c"
    source.write_text(FAILING_SYNC)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    faults = {"LD_PRELOAD": str(library), "FAIL_SYNC": str(tmp_path / "fail")}
    result = run_failing([], tmp_path / "journal", "fsync", **faults)
    assert_failed_once_and_lost_nothing(result, "disk I/O error")
    assert not (tmp_path / "fail").exists(), "fsync never failed"


@pytest.mark.root
def test_a_full_disk_is_told_once_and_loses_nothing(tmp_path: Path) -> None:
    # A tmpfs in a mount namespace of its own: it goes when the process goes, however that is.
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("needs to be allowed to mount in a namespace")
    mount = f'mount -t tmpfs -o size=1m none {tmp_path} && exec "$0" "$@"'
    result = run_failing(["unshare", "--mount", "sh", "-c", mount], tmp_path, "space")
    assert_failed_once_and_lost_nothing(result, "full")


# Dying processes

ENDLESS_WRITER = PAYLOAD + textwrap.dedent(
    """
    import os, sys, threading
    from pathlib import Path
    from beo import journal as module, snapshots

    def on_durable(index):
        os.write(1, b"%d\\n" % index)
        moved.set()

    module.CHECKPOINT_BYTES = 64 << 10  # so that kills fall into checkpoints, too
    module.CUT_ROWS = 10  # and between cuts
    moved = threading.Event()
    journal = module.Journal(Path(sys.argv[1]), on_durable, lambda error: os._exit(1))
    while True:
        index = journal.append(1, payload(journal.last_index + 1))
        if index % 10 == 0:
            while journal.durable_index < index:
                moved.wait()
                moved.clear()
        if index % 100 == 0 and not journal.is_adopting:
            snapshots.write(Path(sys.argv[1]), module.Snapshot(*journal.position(index), b"state %d" % index))
            journal.adopt_snapshot(index)
    """
)


def test_a_killed_writer_loses_nothing_that_it_called_durable(tmp_path: Path) -> None:
    chance = random.Random(7)
    last = 0
    for _ in range(20):
        command = [sys.executable, "-c", ENDLESS_WRITER, str(tmp_path)]
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            heard = b"".join(writer.stdout.readline() for _ in range(chance.randrange(1, 60)))
            for _ in range(chance.randrange(20_000)):  # anywhere between two lines
                pass
            writer.kill()
            heard += writer.stdout.read()
        told = int(heard[: heard.rindex(b"\n")].split()[-1])
        assert told > last
        with opened(tmp_path) as (journal, _):
            last = journal.last_index
            assert last >= told
            assert_right(journal, last)
            assert journal.snapshot_index >= last // 100 * 100 - 200
    assert last > 20


def test_a_birth_cut_short_is_begun_again(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    (tmp_path / "journal.db").rename(tmp_path / "journal.new")
    (tmp_path / "journal.db-wal").unlink()
    for mark in ((tmp_path / "journal.mark").read_bytes(), bytes(8192), b""):
        (tmp_path / "journal.db").unlink(missing_ok=True)
        (tmp_path / "journal.db-wal").unlink(missing_ok=True)
        (tmp_path / "journal.mark").write_bytes(mark)
        with opened(tmp_path) as (journal, _):
            assert journal.last_index == 0 and not journal.unmarked
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 3)


# Damage


class Scene:
    """The files of a writer that died with a transaction in flight behind what it had acknowledged.

    Two snapshots cut entries 1 to 60 and left free pages; up to 600 all is in the database, the rest up to
    `acknowledged` in the first `wal_bytes` of the log, and behind that, in one transaction, what is there up to `full`.
    """

    acknowledged = 641
    full = 649

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        source = folder / "source"
        with opened(source) as (journal, watch):
            for at in (30, 60):
                fill(journal, watch, at)
                take_snapshot(journal, watch, at)
            fill(journal, watch, 600)
        with opened(source) as (journal, watch):
            take_snapshot(journal, watch, 600)
            fill(journal, watch, 640, step=4)
            watch.free.clear()
            fill(journal, watch, 641)  # and the commit thread is held there, so that what follows is one transaction
            self.wal_bytes = (source / "journal.db-wal").stat().st_size
            mark = (source / "journal.mark").read_bytes()
            for index in range(642, 650):
                journal.append(1, payload(index))
            watch.free.set()
            watch.until(649)
            self.files = {**contents(source), "journal.mark": mark}

    def outcome(self, **changed: bytes) -> int | None:
        """Open the scene with these files changed; return the last entry (all is right up to it), or None: refused."""
        self.count += 1
        case = self.folder / f"case{self.count}"
        case.mkdir()
        files = self.files | {f"journal.{name.replace('_', '-')}": data for name, data in changed.items()}
        for name, data in files.items():
            (case / name).write_bytes(data)
        last: int | None = None
        try:
            with opened(case) as (journal, watch):
                last = journal.last_index
                assert_right(journal, last)
                fill(journal, watch, last + 3)  # what looks right can also be written on
            with opened(case) as (journal, _):
                assert_right(journal, last + 3)
        except DamagedJournal as refusal:
            if last is not None or str(case) not in refusal.what or not refusal.cure:
                raise
            assert contents(case) == files, "a refused journal was changed"
        shutil.rmtree(case)
        return last

    def flipped(self, name: str, position: int, bit: int) -> dict[str, bytes]:
        data = bytearray(self.files[f"journal.{name.replace('_', '-')}"])
        data[position] ^= 1 << bit
        return {name: bytes(data)}


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    memory = Path("/dev/shm")  # hundreds of openings, each with its fsyncs
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Scene(Path(folder))


def test_a_torn_tail_is_cut_and_everything_before_it_stands(scene: Scene) -> None:
    wal = scene.files["journal.db-wal"]
    assert scene.outcome() == scene.full
    step = max(1, (len(wal) - scene.wal_bytes) // 60)
    cases = [scene.outcome(db_wal=wal[:end]) for end in range(scene.wal_bytes, len(wal), step)]
    assert len(cases) >= 60
    assert set(cases) == {scene.acknowledged}


def test_a_flipped_bit_in_the_transaction_in_flight_costs_only_that_transaction(scene: Scene) -> None:
    chance = random.Random(11)
    ends = (scene.wal_bytes, len(scene.files["journal.db-wal"]))
    cases = [scene.outcome(**scene.flipped("db_wal", chance.randrange(*ends), chance.randrange(8))) for _ in range(60)]
    assert set(cases) == {scene.acknowledged}


def test_a_flipped_bit_in_what_was_acknowledged_is_refused_or_harmless(scene: Scene) -> None:
    chance = random.Random(13)
    refused = {"db": 0, "db_wal": 0}
    for name, size in (("db", len(scene.files["journal.db"])), ("db_wal", scene.wal_bytes)):
        for _ in range(80):
            last = scene.outcome(**scene.flipped(name, chance.randrange(size), chance.randrange(8)))
            assert last in (scene.full, None)  # all of it or nothing: never less, never changed
            refused[name] += last is None
    assert refused["db_wal"] == 80  # every byte of the log is under SQLite's checksum, and the mark tells what it hid
    assert refused["db"] >= 20  # much of the database is free space, or has a newer page in the log


def test_every_flipped_bit_of_the_header_is_refused_or_harmless(tmp_path: Path) -> None:
    with opened(tmp_path / "source") as (journal, watch):
        fill(journal, watch, 30)
    whole = contents(tmp_path / "source")
    refused = 0
    for position in range(100):
        database = bytearray(whole["journal.db"])
        database[position] ^= 0x80 >> position % 2
        case = tmp_path / str(position)
        case.mkdir()
        for name, data in (whole | {"journal.db": bytes(database)}).items():
            (case / name).write_bytes(data)
        try:
            with opened(case) as (journal, watch):
                assert_right(journal, 30)
                fill(journal, watch, 31)
        except DamagedJournal:
            refused += 1
    assert refused >= 30


def rewritten(folder: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(folder / "journal.db")
    with connection:
        connection.execute(statement, values)
    connection.close()


def test_an_entry_that_is_whole_but_not_the_one_written_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 20)
        entry = journal.entries(9, 1)[0]
    header = (9).to_bytes(8, "big") + (1).to_bytes(8, "big")
    crc = zlib.crc32(b"forged", zlib.crc32(header + entry.hash))
    rewritten(tmp_path, "UPDATE entry SET data = ?, crc = ? WHERE idx = 9", b"forged", crc)
    with pytest.raises(DamagedJournal, match="entry 9 does not follow"), opened(tmp_path):
        pass


def test_a_missing_entry_in_the_middle_is_named(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 20)
    rewritten(tmp_path, "DELETE FROM entry WHERE idx = 9")
    with pytest.raises(DamagedJournal, match="entry 9 is missing"), opened(tmp_path):
        pass


def test_a_damaged_list_of_free_pages_is_refused_before_it_overwrites_a_used_one(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 600)
        take_snapshot(journal, watch, 500)
        take_snapshot(journal, watch, 600)
    database = bytearray((tmp_path / "journal.db").read_bytes())
    trunk = int.from_bytes(database[32:36], "big")
    assert trunk, "the snapshots freed no page"
    first = (trunk - 1) * 4096 + 8  # where the trunk page lists the first free one
    database[first : first + 4] = (2).to_bytes(4, "big")  # claims that the root page of a table is free
    (tmp_path / "journal.db").write_bytes(database)
    with pytest.raises(DamagedJournal, match="its pages are damaged"), opened(tmp_path):
        pass


def test_an_acknowledged_entry_that_is_gone_is_named_with_the_cure(scene: Scene) -> None:
    with pytest.raises(DamagedJournal) as caught:
        lose(scene, "wal", **{"journal.db-wal": None})
    assert "ends at entry 600, but entry 641 was acknowledged" in str(caught.value)
    assert "standby" in caught.value.cure and "entries 601 to 641" in caught.value.cure
    with pytest.raises(DamagedJournal, match="ends at entry 640, but entry 641 was acknowledged"):
        lose(scene, "tail", **{"journal.db-wal": scene.files["journal.db-wal"][: scene.wal_bytes - 1]})
    with pytest.raises(DamagedJournal, match=r"journal\.db is missing"):
        lose(scene, "database", **{"journal.db": None})
    with pytest.raises(DamagedJournal, match=r"journal\.mark is damaged"):
        lose(scene, "mark", **{"journal.mark": bytes(5000)})


def test_without_a_mark_the_journal_opens_and_says_so(scene: Scene) -> None:
    assert lose(scene, "unmarked", **{"journal.mark": None}) == (scene.full, True)
    wal = scene.files["journal.db-wal"][: scene.wal_bytes // 2]
    last, unmarked = lose(scene, "forced", **{"journal.mark": None, "journal.db-wal": wal})
    assert unmarked and 600 <= last < scene.acknowledged


def test_a_mark_with_one_bad_slot_still_speaks(scene: Scene) -> None:
    mark = bytearray(scene.files["journal.mark"])
    for slot in (0, 4096):
        torn = mark.copy()
        torn[slot + 20] ^= 4
        assert lose(scene, f"slot{slot}", **{"journal.mark": bytes(torn)}) == (scene.full, False)
        with pytest.raises(DamagedJournal, match="was acknowledged"):
            lose(scene, f"slot{slot}wal", **{"journal.mark": bytes(torn), "journal.db-wal": None})


def test_another_history_behind_the_same_indices_is_refused(scene: Scene, tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        for index in range(1, 701):
            journal.append(1, b"other %d" % index)
        watch.until(700)
    other = (tmp_path / "journal.db").read_bytes()
    with pytest.raises(DamagedJournal, match="entry 641 differs from what was acknowledged"):
        lose(scene, "other", **{"journal.db": other, "journal.db-wal": None})


def test_a_newer_format_is_not_guessed_at(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    rewritten(tmp_path, "PRAGMA user_version = 9")
    with pytest.raises(DamagedJournal, match="its format is 9, this beo reads 2"), opened(tmp_path):
        pass


def lose(scene: Scene, name: str, **changed: bytes | None) -> tuple[int, bool]:
    """Open the scene with these files changed, or gone (None); return the last index and whether it is unmarked."""
    case = scene.folder / name
    case.mkdir()
    for file, data in {**scene.files, **changed}.items():
        if data is not None:
            (case / file).write_bytes(data)
    with opened(case) as (journal, _):
        assert_right(journal, journal.last_index)
        return journal.last_index, journal.unmarked
