"""The witness: one voter for ever, by a file that is on the disk before any head hears what it says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beo import lockfile, machines, votes, wire
from beo import messages as m
from beo.config import ClusterFile, Home
from beo.errors import BeoError, Conflict, Refused, UsageError
from beo.ha import witness
from beo.ha.witness import Voice, Witness, read, write
from beo.votes import Accept, Cfg, Lease, Prepare
from tests.cluster import HEADS, OTHER, kill, running, wait_for
from tests.fake_head import FakeHead

VOTER = "witness:box/0123456789abcdef"
CFG = Cfg(5, 2, ("A",), ((VOTER,),))


def test_what_was_written_is_read_again_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for voice in (Voice(VOTER), Voice(VOTER, 5, CFG, 0.6)):
        write(path, voice)
        assert read(path) == voice
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-5], lambda b: b"", lambda b: b.replace(b"5", b"4"), lambda b: b + b"x"]
)
def test_a_damaged_state_is_refused_with_its_cure(tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "state"
    write(path, Voice(VOTER, 5, CFG))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BeoError, match=r"state is damaged .*'beo witness' with a new token"):
        read(path)


def test_a_state_that_is_gone_is_refused_too(tmp_path: Path) -> None:
    with pytest.raises(BeoError, match=r"state is gone \(what this witness has promised was in it\)"):
        read(tmp_path / "state")


class Box:
    """A witness in a thread, before a head that says to it what a test wants, one thing per sign of life."""

    def __init__(self, path: Path) -> None:
        self.head = FakeHead(path / "head")
        self.home = Home(path / "box")
        (self.home.path / "witness").mkdir(parents=True)
        public, secret = wire.new_keypair()
        self.head.authorized.add(public)
        self.home.write_secret("witness", secret)
        self.home.write_cluster(ClusterFile("c" * 32, (self.head.address,), self.head.public, (self.head.bulk,)))
        write(witness.state_path(self.home), Voice(VOTER))
        self.ahead: list[votes.Prepare | votes.Accept | votes.Lease] = []
        self.kept: list[Voice] = []  # what was on the disk when an answer came
        self.head.on(votes.Present, lambda _: self.ahead.pop(0) if self.ahead else None)
        self.head.on(m.AskPair, lambda _: None)
        for kind in (votes.Promise, votes.Accepted, votes.Granted, votes.Refuse):
            self.head.on(kind, self._note)
        self._witness: Witness | None = None

    def _note(self, _: object) -> None:
        self.kept.append(read(witness.state_path(self.home)))

    def start(self) -> None:
        self._witness = Witness(self.home)
        self._thread = threading.Thread(target=self._witness.run)
        self._thread.start()

    def stop(self) -> None:
        if self._witness:
            self._witness.stop()
            self._thread.join()
            self._witness.close()
            self._witness = None

    def ask(self, question: votes.Prepare | votes.Accept | votes.Lease) -> Any:
        """Its answer to a question of the head."""
        before = len(self.kept)
        self.ahead.append(question)
        self.head.wait_for(lambda: len(self.kept) > before)
        kinds = votes.Promise | votes.Accepted | votes.Granted | votes.Refuse
        return [message for message in self.head.received if isinstance(message, kinds)][-1]


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    monkeypatch.setattr(witness, "SHOW_S", 0.02)
    monkeypatch.setattr(witness, "LEASE_MIN_S", 0.2)
    made = Box(tmp_path)
    yield made
    made.stop()
    made.head.stop()


def patiently(box: Box, question: Prepare) -> Any:
    """Ask until no lease is in the way."""
    return wait_for(lambda: None if (answer := box.ask(question)) and getattr(answer, "lease", False) else answer, "")


def test_what_it_says_is_on_its_disk_before_and_it_is_the_same_voter_after_a_restart(box: Box) -> None:
    box.start()
    assert patiently(box, Prepare("A", 5)) == votes.Promise(VOTER, 5, None)
    assert box.kept[-1].epoch == 5
    assert box.ask(Accept("A", CFG)) == votes.Accepted(VOTER, 5, 2)
    assert box.kept[-1].acc == CFG
    assert box.ask(Lease("A", 5, 1.5, 0.3)) == votes.Granted(VOTER, 5, 1.5)
    assert box.kept[-1].lease_s == 0.3
    box.stop()
    box.start()
    assert box.ask(Prepare("B", 4)) == votes.Refuse(VOTER, 4, 5)
    assert patiently(box, Prepare("B", 6)) == votes.Promise(VOTER, 6, CFG)


def test_after_a_start_it_promises_nothing_until_the_longest_lease_that_it_gave_is_over(box: Box) -> None:
    write(witness.state_path(box.home), Voice(VOTER, 5, CFG, 1.0))
    began_s = time.monotonic()
    box.start()
    assert box.ask(Prepare("B", 6)) == votes.Refuse(VOTER, 6, 5, lease=True)
    assert patiently(box, Prepare("B", 6)) == votes.Promise(VOTER, 6, CFG)
    assert time.monotonic() - began_s >= 1.0
    box.stop()
    box.start()
    assert box.ask(Lease("B", 6, 2.0, 0.1)) == votes.Granted(VOTER, 6, 2.0), "who acts gets its lease at once"


def test_a_disk_that_takes_nothing_ends_it_before_it_says_anything(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.start()
    patiently(box, Prepare("A", 5))
    said = len(box.kept)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(witness, "write_durably", full)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    box.ahead.append(Prepare("A", 7))
    box._thread.join(10.0)
    assert not box._thread.is_alive() and len(box.kept) == said


def test_a_machine_that_is_something_else_becomes_no_witness(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(UsageError, match="no witness yet: type the line that 'beo token --role witness' prints"):
        machines.be_witness(home, "", "", "", print, False)
    with pytest.raises(UsageError, match="--head without --token"):
        machines.be_witness(home, "127.0.0.1:1", "", "", print, False)
    from beo import local

    local.write_plan(home, local.Plan(1, 1, serves=False, name="pc2"))
    with pytest.raises(Conflict, match="this machine is pc2 already"):
        machines.be_witness(home, "", "", "", print, False)


@pytest.mark.slow
def test_with_a_witness_alone_either_head_goes_on_when_the_other_one_dies(tmp_path: Path) -> None:
    said: list[str] = []
    with running(tmp_path / "beo", 1, 1, heads=2) as cluster:
        box = Home(tmp_path / "box")
        text, _ = machines.new_token(cluster.home, "witness", 1, 60.0)
        where = cluster.home.cluster().heads[1]
        with pytest.raises(Refused, match=r"this token is for a witness \(not for a worker\): use 'beo witness'"):
            machines.join(Home(tmp_path / "worker"), where, text, "box", 1, said.append, False)
        machines.be_witness(box, where, text, "box", said.append, False)
        try:
            assert said[0].startswith("up: witness box, for the heads at ")

            def votes_alone() -> bool:
                acting = [view for view in cluster.views().values() if view.role == "primary" and view.in_step]
                return any([v.node for v in view.voters if v.votes] == ["witness:box"] for view in acting)

            cluster.kill("supervisor")
            cluster.kill_worker("node01")
            wait_for(votes_alone, "the witness is the only voter, and both heads are in step")
            first = cluster.acting()
            cluster.kill(HEADS[first])
            cluster.await_acting(OTHER[first])
            pid = lockfile.holder(box.path / "witness" / "lock")
            assert pid
            kill([pid])
            wait_for(lambda: lockfile.holder(box.path / "witness" / "lock") not in (None, pid), "it is started again")
            cluster.up()
            wait_for(lambda: any(view.in_step for view in cluster.views().values()), "both are in step again")
            assert read(witness.state_path(box)).epoch >= 2
        finally:
            from beo import local

            local.down(box, said.append)
    assert said[-1] == "witness box is down"
