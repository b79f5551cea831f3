"""Snapshots are made by another process while the head goes on; whatever happens to it costs another try later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from beo import compaction, compactor, snapshots
from beo import events as ev
from beo.compaction import Compaction
from beo.entries import Snapshot
from beo.errors import BeoError
from beo.headnode.replay import replay
from beo.headnode.state import State
from beo.journal import Journal
from tests.cluster import is_alive, wait_for
from tests.journals import ENVIRONMENT, Watch, opened
from tests.world import START_S, birth, same, spec

ENOUGH = 100  # entries after which a snapshot is due here


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "ENTRIES_MIN", ENOUGH)


def happen(journal: Journal, watch: Watch, *facts: ev.Event) -> None:
    """Append events, and wait until they are durable."""
    for fact in facts:
        journal.append(1, ev.encode(fact))
    watch.durable.clear()
    if journal.durable_index < journal.last_index:
        watch.until(journal.last_index)


def submissions(first: int, last: int) -> list[ev.Event]:
    made = spec(env={"WORDS": "many " * 50})
    return [ev.Submitted(job, f"key {job}", "ann", 1000, 1000, (), made, START_S) for job in range(first, last + 1)]


def cluster(journal: Journal, watch: Watch, jobs: int) -> None:
    """A journal in which these jobs were submitted and cancelled, which is enough for a snapshot."""
    facts = [*birth(), *submissions(1, jobs)]
    facts += [ev.CancelRequested(job, "ann", "", START_S) for job in range(1, jobs + 1)]
    for fact in facts:
        journal.append(1, ev.encode(fact))
    wait_for(lambda: journal.durable_index == journal.last_index, "the journal is durable")
    assert not watch.failures


def run_to_its_end(compacting: Compaction, journal: Journal, now_s: float = 0.0) -> None:
    """Tick until the process has ended and what it made, if anything, is adopted."""
    compacting.tick(journal.durable_index, 0, now_s)
    assert compacting._run

    def ended() -> bool:
        compacting.tick(0, 0, now_s)  # nothing new is due
        return not compacting._run and not journal.is_adopting

    wait_for(ended, "the process ends")


def until_over(compacting: Compaction, now_s: float) -> None:
    """Tick until the process that runs has ended, and has been seen to."""

    def over() -> bool:
        compacting.tick(0, 0, now_s)
        return not compacting._run

    wait_for(over, "the process ends")


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("snapshot-*"))


def test_another_process_makes_the_state_that_the_head_has_byte_for_byte(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        cluster(journal, watch, 200)
        compacting = Compaction(journal, tmp_path, "beo.headnode.compactor")
        compacting.tick(journal.durable_index, 300, 0.0)
        assert not compacting._run, "with so many jobs, that isn't due yet"
        run_to_its_end(compacting, journal)
        first = journal.snapshot_index
        assert first == journal.durable_index == 200 * 2 + len(birth())
        assert len(left(tmp_path)) == 1 and journal.oldest_index == 1
        happen(journal, watch, *submissions(201, 201 + ENOUGH))
        run_to_its_end(compacting, journal)  # upon the first
        assert journal.oldest_index == first + 1
        whole = State()
        for fact in (*birth(), *submissions(1, 200)):
            whole.apply(fact)
        for job in range(1, 201):
            whole.apply(ev.CancelRequested(job, "ann", "", START_S))
        for fact in submissions(201, 201 + ENOUGH):
            whole.apply(fact)
        snapshot, entries = journal.load()
        assert snapshot and snapshot.index == journal.last_index and not list(entries)
        assert snapshot.state == whole.encode()
    with opened(tmp_path) as (journal, watch):
        happen(journal, watch, *submissions(302, 305))
        for fact in submissions(302, 305):
            whole.apply(fact)
        whole.changed.clear()
        assert same(replay(*journal.load()), whole)


def test_commits_go_on_while_a_snapshot_of_a_large_state_is_made(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        cluster(journal, watch, 5_000)
        compacting = Compaction(journal, tmp_path, "beo.headnode.compactor")
        compacting.tick(journal.durable_index, 0, 0.0)
        assert compacting._run
        commits = 0
        while compacting._run:
            happen(journal, watch, ev.CancelRequested(1, "ann", "", START_S))
            commits += 1
            compacting.tick(0, 0, 0.0)
        assert commits > 20
        wait_for(lambda: not journal.is_adopting, "the snapshot counts")
        assert journal.snapshot_index == journal.last_index - commits
        state = replay(*journal.load())
        assert (state.index, len(state.jobs)) == (journal.last_index, 5_000)


def test_a_process_that_is_killed_or_fails_costs_another_try_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as (journal, watch):
        cluster(journal, watch, ENOUGH)
        compacting = Compaction(journal, tmp_path, "beo.headnode.compactor")
        upto = journal.durable_index
        compacting.tick(upto, 0, 1000.0)
        assert compacting._run
        os.kill(compacting._run.pid, signal.SIGSTOP)
        half = tmp_path / f"snapshot-{upto}-00000000.{compacting._run.pid}"
        half.write_bytes(b"half of it")
        os.kill(compacting._run.pid, signal.SIGKILL)
        until_over(compacting, 1000.0)
        wait_for(lambda: not left(tmp_path), "nothing of it is left")
        compacting.tick(upto, 0, 1000.0 + compaction.RETRY_S_MIN - 1)
        assert not compacting._run, "not at once again"
        for program, retry_s in (("/bin/false", 1010.0), (str(tmp_path / "missing"), 1030.0)):
            with monkeypatch.context() as patched:
                patched.setattr(sys, "executable", program)
                compacting.tick(upto, 0, retry_s)
                until_over(compacting, retry_s)
        compacting.tick(upto, 0, 1030.0 + 39)
        assert not compacting._run, "each failure doubles the time to the next try"
        happen(journal, watch, *submissions(ENOUGH + 1, ENOUGH + 2))
        run_to_its_end(compacting, journal, 1070.0)
        assert journal.snapshot_index == journal.last_index
        assert len(left(tmp_path)) == 1


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        cluster(journal, watch, ENOUGH)
        compacting = Compaction(journal, tmp_path, "beo.headnode.compactor")
        compacting.tick(journal.durable_index, 0, 0.0)
        assert compacting._run
        run = compacting._run
        os.kill(run.pid, signal.SIGSTOP)
        compacting.tick(0, 0, compaction.RUN_S_MAX)
        assert is_alive(run.pid)
        until_over(compacting, compaction.RUN_S_MAX + 1)
        assert not is_alive(run.pid) and journal.snapshot_index == 0


def test_a_snapshot_under_way_is_void_when_its_entries_are_cut(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        cluster(journal, watch, ENOUGH)
        compacting = Compaction(journal, tmp_path, "beo.headnode.compactor")
        compacting.tick(journal.durable_index, 0, 0.0)
        assert compacting._run
        run = compacting._run
        os.kill(run.pid, signal.SIGSTOP)
        journal.truncate_after(journal.last_index - 10)
        until_over(compacting, 0.0)
        assert not is_alive(run.pid) and not left(tmp_path)
        run_to_its_end(compacting, journal)  # at once: nothing had failed
        assert journal.snapshot_index == journal.last_index


def test_a_head_that_ends_takes_the_process_along(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        cluster(journal, watch, ENOUGH)
        compacting = Compaction(journal, tmp_path, "beo.headnode.compactor")
        compacting.tick(journal.durable_index, 0, 0.0)
        assert compacting._run
        pid = compacting._run.pid
        os.kill(pid, signal.SIGSTOP)
        compacting.stop()
        compacting.stop()
        assert not is_alive(pid)


KILLED_HEAD = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from beo import compaction
    from beo.journal import Journal
    journal = Journal(Path(sys.argv[1]), print, print)
    compaction.ENTRIES_MIN = 10
    compacting = compaction.Compaction(journal, Path(sys.argv[1]), "beo.headnode.compactor")
    compacting.tick(journal.durable_index, 0, 0.0)
    print(compacting._run.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
)


def test_a_head_that_is_killed_takes_the_process_along_and_the_next_one_begins_again(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        cluster(journal, watch, 1_000)
    ran = subprocess.run([sys.executable, "-c", KILLED_HEAD, str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert ran.returncode == -signal.SIGKILL
    pid = int(ran.stdout)
    wait_for(lambda: not is_alive(pid), "it ends")
    with opened(tmp_path) as (journal, _):
        compacting = Compaction(journal, tmp_path, "beo.headnode.compactor")
        run_to_its_end(compacting, journal)
        assert journal.snapshot_index == journal.last_index and len(left(tmp_path)) == 1


def test_the_process_says_why_it_made_nothing(tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        command = [sys.executable, "-m", "beo.headnode.compactor", *arguments]
        ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        assert ran.returncode not in (0, 1) and not ran.stdout
        return str(json.loads(ran.stderr.splitlines()[-1]))

    with opened(tmp_path) as (journal, watch):
        cluster(journal, watch, 20)
        last = journal.last_index
        assert f"the journal ends at entry {last} (entry {last + 1} is gone)" in told(str(tmp_path), str(last + 1))
        assert "no snapshot was made" in told(str(tmp_path / "missing"), "5")
    (tmp_path / "journal.db-wal").unlink(missing_ok=True)
    database = tmp_path / "journal.db"
    database.write_bytes(database.read_bytes().replace(b"key 7", b"key 8"))
    assert "is damaged" in told(str(tmp_path), str(last))
    assert not left(tmp_path)


FULL_DISK = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from beo import compaction
    from beo.journal import Journal
    from tests.cluster import wait_for
    from tests.test_compaction import cluster, happen, left, run_to_its_end, submissions
    from tests.journals import opened

    folder = Path(sys.argv[1], "head")
    compaction.ENTRIES_MIN = 100
    with opened(folder) as (journal, watch):
        cluster(journal, watch, 2_000)
        with open(folder / "filler", "wb") as filler:
            filler.write(bytes(60 << 20))
        compacting = compaction.Compaction(journal, folder, "beo.headnode.compactor")
        run_to_its_end(compacting, journal)
        assert journal.snapshot_index == 0 and not left(folder)
        happen(journal, watch, *submissions(2_001, 2_010))
        (folder / "filler").unlink()
        run_to_its_end(compacting, journal, compaction.RETRY_S_MIN)
        assert journal.snapshot_index == journal.last_index
    """
)


@pytest.mark.root
def test_a_full_disk_costs_another_try_and_the_journal_keeps_its_room(tmp_path: Path) -> None:
    # A tmpfs in a mount namespace of its own: it goes when the process goes, however that is.
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("needs to be allowed to mount in a namespace")
    mount = f'mount -t tmpfs -o size=100m none {tmp_path} && exec "$0" "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, sys.executable, "-c", FULL_DISK, str(tmp_path)]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "has no room for a snapshot" in ran.stderr


def test_a_snapshot_that_does_not_lead_to_its_entry_is_not_made(tmp_path: Path) -> None:
    with opened(tmp_path) as (journal, watch):
        cluster(journal, watch, 20)
        state = replay(*journal.load())
        position = journal.position(10)
        assert position
        snapshots.write(tmp_path, Snapshot(*position, state.encode()))  # of entry 45, as if it were 10's
        journal.adopt_snapshot(10)
        wait_for(lambda: not journal.is_adopting, "it counts")
        with pytest.raises(BeoError, match="entry 11 was replayed as"):
            compactor.compact(tmp_path, journal.last_index, replay)
