"""Snapshots of a journal: made beside it, adopted, cut behind, swept away, installed; and tails that are cut."""

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from contextlib import closing
from pathlib import Path

import pytest

from beo import journal as module
from beo import reader, snapshots
from beo.entries import Position
from beo.errors import BeoError, DamagedJournal
from beo.journal import Journal, Snapshot
from tests.journals import (
    ENVIRONMENT,
    WAIT_S,
    assert_right,
    contents,
    fill,
    make_snapshot,
    opened,
    payload,
    take_snapshot,
)


def test_a_snapshot_cuts_what_is_older_than_the_one_before(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 100)
        take_snapshot(journal, watch, 40)
        assert journal.oldest_index == 1
        take_snapshot(journal, watch, 70)
        assert journal.oldest_index == 41
        take_snapshot(journal, watch, 100)
        assert journal.oldest_index == 71
        with pytest.raises(BeoError, match="entry 70 is cut"):
            journal.entries(70, 10)
        assert list(journal.load()[1]) == []
        fill(journal, watch, 120)
        assert_right(journal, 120)
    with opened(tmp_path) as (journal, watch):
        assert (journal.oldest_index, journal.snapshot_index) == (71, 100)
        assert [e.index for e in journal.load()[1]] == list(range(101, 121))
        assert_right(journal, 120)


def test_only_a_whole_snapshot_of_this_history_at_a_durable_entry_is_adopted(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 9)
        watch.free.clear()
        journal.append(1, payload(10))
        watch.until(10)
        journal.append(1, payload(11))
        with pytest.raises(BeoError, match=r"no snapshot at entry 11 .*the newest durable entry is 10"):
            journal.adopt_snapshot(11)
        with pytest.raises(BeoError, match=r"no snapshot for entry 10 .*no process has finished one"):
            journal.adopt_snapshot(10)
        snapshots.write(tmp_path, Snapshot(10, 1, bytes(16), b"of others"))
        with pytest.raises(BeoError, match=r"no snapshot for entry 10 .*another history"):
            journal.adopt_snapshot(10)
        make_snapshot(journal, tmp_path, 10)
        journal.adopt_snapshot(10)
        with pytest.raises(BeoError, match="still being adopted"):
            journal.adopt_snapshot(10)
    with opened(tmp_path) as (journal, _):
        assert journal.snapshot_index == 10
        assert_right(journal, 11)


def test_what_is_cut_goes_little_by_little_between_and_with_the_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices: list[int] = []
    cut_some = Journal._cut_some

    def recorded(journal: Journal) -> int:
        slices.append(cut_some(journal))
        return slices[-1]

    monkeypatch.setattr(Journal, "_cut_some", recorded)
    monkeypatch.setattr(module, "CUT_ROWS", 30)
    monkeypatch.setattr(module, "CUT_BYTES", 10_000)
    with opened(tmp_path) as (journal, watch):
        for index in range(1, 301):  # the last hundred too large for more than one of them in a slice
            journal.append(1, bytes(50) if index <= 200 else bytes(20_000))
        watch.until(300)
        take_snapshot(journal, watch, 300)
        assert not slices
        fill(journal, watch, 310)
        take_snapshot(journal, watch, 310)
        assert (journal.oldest_index, journal.position(299)) == (301, None), "at once, whatever is still there"
        with pytest.raises(BeoError, match="entry 300 is cut"):
            journal.entries(300, 1)
        fill(journal, watch, 320)
    assert all(0 < rows <= 30 for rows in slices[:-1]) and len(slices) < 107, "closing doesn't wait for it"
    with opened(tmp_path) as (journal, watch), sqlite3.connect(tmp_path / "journal.db") as other:
        with journal._wake:
            assert journal._wake.wait_for(lambda: not journal._has_rest, WAIT_S)
        assert sum(slices) == 300 and 1 in slices
        assert other.execute("SELECT min(idx), count(*) FROM entry").fetchone() == (301, 20)
        assert [e.data for e in journal.entries(301, 100)] == [payload(index) for index in range(301, 321)]
    other.close()


def test_files_of_snapshots_that_do_not_count_are_swept_away(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 40)
        for index in (10, 20, 30):
            take_snapshot(journal, watch, index)
        make_snapshot(journal, tmp_path, 40)
        (tmp_path / "snapshot-40-00000000.4711").write_bytes(b"half of one")
        (tmp_path / "snapshot-mine.txt").touch()
        assert len(list(tmp_path.glob("snapshot-[34]*"))) == 3
    with opened(tmp_path) as (journal, _):
        journal._sweeper_ended()
        assert sorted(p.name.rpartition("-")[0] for p in tmp_path.glob("snapshot-*")) == [
            "snapshot",
            "snapshot-20",
            "snapshot-30",
        ]
        assert_right(journal, 40)
        newest = journal.newest_snapshot()
        assert newest and newest[0].position == journal.position(30)
        assert snapshots.read(newest[1], newest[0]).state == b"state 30"


def test_a_snapshot_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot(5, 1, bytes(16), os.urandom(3 << 20))
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "STATE_LIMIT_BYTES", 1 << 20)
        with pytest.raises(BeoError, match=r"3 MiB is too large for the journal .*purge old jobs"):
            snapshots.write(tmp_path, snapshot)
    with monkeypatch.context() as patched:
        patched.setattr(snapshots, "SPACE_LEFT_MIN_BYTES", 1 << 60)
        with pytest.raises(BeoError, match="no room for a snapshot"):
            snapshots.write(tmp_path, snapshot)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            snapshots.write(tmp_path, snapshot)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
    stamp = snapshots.write(tmp_path, snapshot)
    assert [p.name for p in tmp_path.iterdir()] == [stamp.name]
    assert (tmp_path / stamp.name).stat().st_mode & 0o077 == 0
    assert snapshots.read(tmp_path / stamp.name, stamp) == snapshot


def test_another_process_may_read_while_the_head_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_BYTES", 64 << 10)
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 100)
        other = reader.Reader(tmp_path)
        inside = other._connection.execute("SELECT idx FROM entry")  # a read that lasts: the worst that it can do
        assert inside.fetchone() == (1,)
        fill(journal, watch, 3000, step=50)  # with many a checkpoint, and each of these commits was waited for
        take_snapshot(journal, watch, 3000)
        inside.close()
        snapshot, entries = other.load(2000)
        assert snapshot is None and [e.data for e in entries] == [payload(index) for index in range(1, 2001)]
        snapshot, entries = other.load(3000)
        assert snapshot and snapshot.state == b"state 3000" and not list(entries)
        other.close()
        fill(journal, watch, 4000, step=100)
        assert_right(journal, 4000)


def test_a_reader_beside_a_head_that_cuts_its_tail_notices_the_other_history(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        for index in range(1, 3001):
            journal.append(1, payload(index))
        watch.until(3000)
        other = reader.Reader(tmp_path)
        entries = other.load(3000)[1]
        assert next(entries).index == 1  # and a thousand are read ahead
        journal.truncate_after(500)
        watch.durable.clear()
        for index in range(501, 3001):
            journal.append(2, payload(index))
        watch.until(3000)
        with pytest.raises(DamagedJournal, match="entry 1001 does not follow"):
            list(entries)
        other.close()


# Cutting the tail


def test_a_standby_cuts_its_tail_and_goes_on_from_there(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 30)
        take_snapshot(journal, watch, 20)
        for _ in range(10):
            journal.append(1, b"never committed")
        journal.truncate_after(30)
        assert (journal.last_index, journal.durable_index) == (30, 30)
        with pytest.raises(BeoError, match=r"cannot be cut after entry 31 \(.*holds entries 1 to 30"):
            journal.truncate_after(31)
    with opened(tmp_path) as (journal, watch):
        journal.truncate_after(25)
        fill(journal, watch, 33)
        assert_right(journal, 33)
    with opened(tmp_path) as (journal, _):
        assert_right(journal, 33)
        assert journal.snapshot_index == 20


def test_a_cut_behind_which_the_newest_snapshot_lies_falls_back_to_the_one_before(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 100)
        for index in (20, 50, 80):
            take_snapshot(journal, watch, index)
        assert [entry.index for entry in journal.tail(0)] == list(range(51, 101)), "what is kept"
        with pytest.raises(BeoError, match=r"cannot be cut after entry 49 \(the journal holds entries 51 to 100"):
            journal.truncate_after(49)
        assert journal.last_index == 100
        journal.truncate_after(60)
        assert (journal.snapshot_index, journal.last_index, journal.oldest_index) == (50, 60, 51)
        journal._sweeper_ended()
        assert len(list(tmp_path.glob("snapshot-*"))) == 1
        watch.durable.clear()
        fill(journal, watch, 90)
        assert_right(journal, 90)
    with opened(tmp_path) as (journal, watch):
        assert_right(journal, 90)
        take_snapshot(journal, watch, 90)
        assert (journal.snapshot_index, journal.oldest_index) == (90, 51)
        journal.truncate_after(50)  # to the snapshot's own entry
        assert (journal.snapshot_index, journal.last_index, journal.position(50)) == (50, 50, journal._cut)
        assert journal.load()[0] and list(journal.load()[1]) == []
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 60)
        assert_right(journal, 60)


def test_what_waits_for_the_journal_is_not_kept_waiting_by_what_is_to_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Journal, "_cut_some", lambda _: 1)  # as if there were always more
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 60)
        for index in (20, 40):
            take_snapshot(journal, watch, index)
        for last in range(59, 39, -1):
            assert [entry.index for entry in journal.tail(last)] == [last + 1]
            journal.truncate_after(last)
        assert journal._has_rest
        watch.durable.clear()
        fill(journal, watch, 70)
        assert_right(journal, 70)


def test_a_cut_before_the_first_snapshot_goes_back_to_the_beginning(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 50)
        take_snapshot(journal, watch, 40)
        journal.truncate_after(30)
        assert journal.snapshot_index == 0 and journal.load()[0] is None
        assert_right(journal, 30)
        journal.truncate_after(0)
        assert (journal.last_index, journal.last_hash) == (0, bytes(16))
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 5)
        assert_right(journal, 5)


def test_a_snapshot_that_was_being_made_when_its_entries_were_cut_is_void(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 50)
        make_snapshot(journal, tmp_path, 50)
        journal.truncate_after(40)
        make_snapshot(journal, tmp_path, 40)
        for _ in range(20):
            journal.append(2, b"of the other head")
        watch.durable.clear()
        watch.until(60)
        with pytest.raises(BeoError, match="no snapshot for entry 50"):
            journal.adopt_snapshot(50)
        take_snapshot(journal, watch, 40)  # while one that is not beyond the cut is as good as before
        assert journal.snapshot_index == 40


# Installing another head's snapshot


def install_state(journal: Journal, position: Position, folder: Path | None) -> None:
    """Install `state N` of entry N, out of a file where a folder is given."""
    state = b"state %d" % position.idx
    if folder:
        folder.mkdir()
        stamp = snapshots.write(folder, Snapshot(*position, state))
        journal.install(position, folder / stamp.name)
    else:
        journal.install(position, state)


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("behind", [300, 70])
def test_a_standby_that_is_too_far_behind_begins_again_from_a_snapshot(
    tmp_path: Path, from_file: bool, behind: int
) -> None:
    with opened(tmp_path / "a") as (primary, seen), opened(tmp_path / "b") as (standby, watch):
        for index in range(1, 401):
            primary.append(3, payload(index))
        seen.until(400)
        fill(standby, watch, 100)  # of another history, and longer than one of the snapshots
        for index in (40, 80):
            take_snapshot(standby, watch, index)
        position = primary.position(behind)
        assert position
        install_state(standby, position, tmp_path / "received" if from_file else None)
        assert (standby.last_index, standby.last_epoch, standby.last_hash) == position
        assert (standby.durable_index, standby.snapshot_index, standby.oldest_index) == (behind, behind, behind + 1)
        assert standby.position(behind) == position and standby.position(behind - 1) is None
        with standby._wake:
            assert standby._wake.wait_for(lambda: not standby._has_rest, WAIT_S)
        with closing(sqlite3.connect(tmp_path / "b" / "journal.db")) as database:
            assert database.execute("SELECT count(*) FROM entry").fetchone() == (0,)
        standby._sweeper_ended()
        assert len(list((tmp_path / "b").glob("snapshot-*"))) == 1
        watch.durable.clear()
        for entry in primary.entries(behind + 1, 1000):
            standby.append_copy(entry)
        watch.until(400)
        assert_right(standby, 400)
    with opened(tmp_path / "b") as (standby, watch):
        assert_right(standby, 400)
        take_snapshot(standby, watch, 400)
        assert standby.oldest_index == behind + 1


def test_a_snapshot_of_another_position_or_a_damaged_one_is_not_installed(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as (journal, watch):
        fill(journal, watch, 20)
        state = Snapshot(50, 1, b"h" * 16, b"state 50" * 100)
        stamp = snapshots.write(tmp_path, state)
        received = tmp_path / "received"
        (tmp_path / stamp.name).rename(received)
        with pytest.raises(BeoError, match=r"is of entry 50 \(epoch 1, hash 6868.*\(51 .* is needed"):
            journal.install(Position(51, 1, b"h" * 16), received)
        whole = received.read_bytes()
        for wrong in (whole[:-1] + b"!", whole[:-1], whole[:20], b""):
            received.write_bytes(wrong)
            with pytest.raises(BeoError, match="damaged"):
                journal.install(stamp.position, received)
        with pytest.raises(BeoError, match="cannot be moved into"):
            journal.install(stamp.position, tmp_path / "missing")
        assert_right(journal, 20)
        received.write_bytes(whole)
        journal.install(stamp.position, received)
        assert journal.last_index == 50 and not received.exists()


CRASHES = textwrap.dedent(
    """
    import itertools, json, os, shutil, signal, sys
    from pathlib import Path
    from beo.journal import Journal
    from tests.journals import payload

    act, source, case = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    EFFECTS = {"open", "write", "pwrite", "fsync", "fdatasync", "rename", "unlink", "execute"}

    def die_before(count):
        def look(frame, event, function):
            nonlocal count
            if event == "c_call" and function.__name__ in EFFECTS:
                count -= 1
                if count < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(look)

    def perform(journal, other):
        if act == "truncate":
            journal.truncate_after(60)
        else:
            journal.install(other, b"state %d" % other.idx)

    with_other = Journal(source.with_name("other"), print, print)
    position = with_other.position(int(act)) if act != "truncate" else None
    with_other.close()
    seen = []
    for point in itertools.count():
        shutil.copytree(source, case)
        if not (pid := os.fork()):
            journal = Journal(case, lambda _: None, lambda _: None)
            journal._sweeper_ended()
            die_before(point)
            perform(journal, position)
            sys.setprofile(None)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -signal.SIGKILL), code
        journal = Journal(case, lambda _: None, lambda _: None)
        snapshot, tail = journal.load()
        assert snapshot.state == b"state %d" % snapshot.index
        assert all(entry.data == payload(entry.index) for entry in tail)
        seen.append((journal.last_index, journal.snapshot_index, journal.oldest_index))
        journal.append(9, b"and it goes on")
        journal.close()
        shutil.rmtree(case)
        if code == 0:
            break
    print(json.dumps(seen))
    """
)


@pytest.mark.parametrize(("act", "after"), [("truncate", [60, 50, 51]), ("70", [70, 70, 71]), ("300", [300, 300, 301])])
def test_a_crash_at_any_point_leaves_the_journal_as_it_was_or_as_it_should_be(act: str, after: list[int]) -> None:
    memory = Path("/dev/shm")  # dozens of openings, each with its fsyncs
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        source = Path(folder, "source")
        with opened(source) as (journal, watch):
            fill(journal, watch, 100)
            for index in (50, 80):
                take_snapshot(journal, watch, index)
        with opened(Path(folder, "other")) as (journal, watch):
            for _ in range(300):
                journal.append(3, b"of another history")
            watch.until(300)
        command = [sys.executable, "-c", CRASHES, act, str(source), str(Path(folder, "case"))]
        ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=2 * WAIT_S)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    before = [100, 80, 51]
    assert len(seen) > 8 and seen == [before] * seen.count(before) + [after] * seen.count(after)
    assert seen[0] == before and seen[-1] == after


# Files that are damaged


def test_a_snapshot_that_is_missing_or_damaged_is_refused_with_the_cure(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 100)
        for index in (50, 80):
            take_snapshot(journal, watch, index)
    for path in sorted(tmp_path.glob("snapshot-*")):
        whole = path.read_bytes()
        for position in range(len(whole)):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
            with pytest.raises(DamagedJournal) as caught, opened(tmp_path):
                pass
            assert path.name in caught.value.what and "from its standby" in caught.value.cure
        for wrong in (whole[:-1], whole + b"x", b""):
            path.write_bytes(wrong)
            with pytest.raises(DamagedJournal, match="damaged"), opened(tmp_path):
                pass
        path.unlink()
        with pytest.raises(DamagedJournal, match="cannot be read"), opened(tmp_path):
            pass
        path.write_bytes(whole)
    with opened(tmp_path) as (journal, _):
        assert_right(journal, 100)


# A journal of the format before


def make_former(folder: Path) -> None:
    """Turn a journal into what it was in format 1: its snapshots in the database."""
    with closing(sqlite3.connect(folder / "journal.db", isolation_level=None)) as database:
        rows = database.execute("SELECT idx, epoch, hash, crc FROM snapshot").fetchall()
        database.execute("DROP TABLE cut")
        database.execute("DROP TABLE snapshot")
        columns = "idx INTEGER PRIMARY KEY, epoch INTEGER, hash BLOB, crc INTEGER, state BLOB"
        database.execute(f"CREATE TABLE snapshot ({columns}) STRICT")
        database.executemany("INSERT INTO snapshot VALUES (?, ?, ?, ?, ?)", [(*r, b"state %d" % r[0]) for r in rows])
        database.execute("PRAGMA user_version = 1")
    for path in folder.glob("snapshot-*"):
        path.unlink()


@pytest.mark.parametrize(("at", "oldest"), [((), 1), ((40,), 1), ((40, 80), 41)])
def test_a_journal_of_the_format_before_is_upgraded_at_its_first_opening(
    tmp_path: Path, at: tuple[int, ...], oldest: int
) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 100)
        for index in at:
            take_snapshot(journal, watch, index)
        with journal._wake:
            assert journal._wake.wait_for(lambda: not journal._has_rest, WAIT_S)
    make_former(tmp_path)
    for _ in range(2):
        with opened(tmp_path) as (journal, watch):
            assert (journal.oldest_index, journal.snapshot_index) == (oldest, max(at, default=0))
            assert_right(journal, journal.last_index)
            watch.durable.clear()
            fill(journal, watch, journal.last_index + 10)
            assert_right(journal, journal.last_index)
    assert journal.last_index == 120


def test_a_damaged_journal_of_the_format_before_is_refused_as_it_is(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        fill(journal, watch, 100)
        take_snapshot(journal, watch, 40)
    make_former(tmp_path)
    for statement in ("UPDATE snapshot SET state = 'x'", "DELETE FROM entry WHERE idx = 50", "CREATE TABLE mine (x)"):
        case = tmp_path / statement[:6]
        shutil.copytree(tmp_path, case, ignore=lambda *_: ["CREATE", "DELETE", "UPDATE"])
        with closing(sqlite3.connect(case / "journal.db", isolation_level=None)) as database:
            database.execute(statement.replace("'x'", "x'00'"))
        before = contents(case)
        with pytest.raises(DamagedJournal, match=r"entry 40 is damaged|entry 50 is missing|tables are damaged"):
            Journal(case, print, print)
        assert {name: data for name, data in contents(case).items() if data} == before  # SQLite makes an empty log
