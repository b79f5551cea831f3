"""Two bulk planes with real sockets and threads: what is acknowledged and read while they are in step is on both."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import messages as ms
from beo import wire
from beo.config import ClusterFile
from beo.errors import BeoError, Refused
from beo.follow import Console
from beo.headnode import mirror
from beo.headnode.streams import Streams
from beo.spec import JobSpec
from beo.worker import shipper as shipper_module
from beo.worker.shipper import Shipper
from tests.test_streams import ENOUGH_S, HEAD, HEAD_PUBLIC, KEYS, View, ask, chunk, numbered, shipped, until


class Pair:
    """Two heads in this process, A and B, over one state."""

    def __init__(self, folder: Path, specs: dict[int, JobSpec] | None = None) -> None:
        self.folder = folder
        self.view = View(folder, specs)
        self.context = wire.new_context()
        self.connections: list[wire.Connection] = []
        self.addresses = {"A": "127.0.0.1:0", "B": "127.0.0.1:0"}
        self.heads: dict[str, Streams] = {}
        for name in self.addresses:
            self.start(name)

    def start(self, name: str) -> Streams:
        """Start a head, which has no role yet."""
        head = self.heads[name] = Streams(self.addresses[name], HEAD, self.output(name), self.view)
        self.addresses[name] = head.address
        head.start()
        return head

    def output(self, name: str) -> Path:
        """The folder of a head's store."""
        return self.folder / name

    def in_step(self, leader: str = "A", epoch: int = 1) -> None:
        """Let one lead and the other follow, and wait until they are in step."""
        other = "AB".replace(leader, "")
        self.heads[other].follow(epoch, "primary:1")
        self.heads[leader].lead(epoch, self.addresses[other])
        until(lambda: self.heads[leader].lag().missing_bytes == 0, "the other has everything")
        self.heads[leader].lead(epoch, self.addresses[other], both=True)
        until(lambda: self.heads[leader].lag().in_step, "they are in step")

    def connect(self, key: str, name: str = "A") -> wire.Connection:
        """A connection of somebody to a head."""
        connection = wire.Connection(self.addresses[name], HEAD_PUBLIC, KEYS[key][1], self.context)
        self.connections.append(connection)
        return connection

    def files(self, name: str) -> dict[str, bytes]:
        """What is in a head's store."""
        return {path.name: path.read_bytes() for path in self.output(name).glob("*.log")}

    def close(self) -> None:
        """Stop both."""
        for head in self.heads.values():
            head.stop()
        for connection in self.connections:
            connection.close()
        self.context.destroy(linger=0)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    found = Pair(tmp_path)
    yield found
    found.close()


def test_in_step_a_chunk_is_acknowledged_when_both_have_it(pair: Pair) -> None:
    pair.in_step()
    data = numbered(0, 100)
    assert ask(pair.connect("nodes:worker"), chunk(data)) == ms.ChunkAck(1, 1, len(data))
    assert pair.files("A") == pair.files("B") != {}


def test_in_step_nothing_is_acknowledged_or_shown_while_the_other_is_silent_and_then_all_at_once(pair: Pair) -> None:
    pair.in_step()
    agent, reader = pair.connect("nodes:worker"), pair.connect("ann:user")
    pair.heads.pop("B").stop()
    data = numbered(0, 10)
    assert agent.send(1, ms.encode(chunk(data)), ENOUGH_S)
    until(lambda: pair.files("A"), "A has it")
    assert agent.receive(0.3) is None
    assert ask(reader, ms.Fetch(1, 1, 0, 0.0)) == ms.Fetched(0, b"", False)
    until(lambda: pair.heads["A"].lag().stalled_s > 0.3, "the silence is told")
    assert pair.heads["A"].lag().in_step  # still: nobody was told of what is not there
    assert reader.send(7, ms.encode(ms.Fetch(1, 1, 0, 10.0)), ENOUGH_S)
    pair.heads["A"].lead(1, pair.addresses["B"])
    received = agent.receive(ENOUGH_S)
    assert received and ms.bulk_from_head.decode(received[1]) == ms.ChunkAck(1, 1, len(data))
    received = reader.receive(ENOUGH_S)
    assert received and ms.bulk_from_head.decode(received[1]).records == data  # type: ignore[union-attr]


def test_a_head_that_was_away_catches_up_on_all_files_and_drops_what_is_nobodys(pair: Pair) -> None:
    pair.in_step()
    agent = pair.connect("nodes:worker")
    ask(agent, chunk(numbered(0, 10)))
    pair.heads.pop("B").stop()
    pair.heads["A"].lead(1, pair.addresses["B"])
    ask(agent, chunk(numbered(0, 20)))  # more of one,
    for job in range(2, 30):
        ask(agent, chunk(numbered(job, 1000), job=job))  # and others from the beginning
    away = pair.output("B")
    with (away / "2.1.log").open("wb") as other:
        other.write((pair.output("A") / "3.1.log").read_bytes())
    (away / "77.1.log").write_bytes((pair.output("A") / "3.1.log").read_bytes())
    pair.start("B")
    pair.in_step()
    assert {name: data for name, data in pair.files("B").items() if data} == pair.files("A")
    assert (away / "2.1.cut").exists() and (away / "77.1.cut").exists()


def test_a_job_that_is_forgotten_on_both_is_copied_no_more(pair: Pair) -> None:
    pair.in_step()
    ask(pair.connect("nodes:worker"), chunk(numbered(0, 10)))
    pair.view.gone.add(1)
    for head in pair.heads.values():
        head.forget([1])
    until(lambda: not any(list(pair.output(name).glob("*.log")) for name in "AB"), "both have deleted it")
    ask(pair.connect("nodes:worker"), chunk(numbered(0, 10), job=2))
    assert pair.files("A") == pair.files("B")
    assert list(pair.files("B")) == ["2.1.log"]


def test_a_head_that_follows_sends_everybody_elsewhere_and_takes_no_output(pair: Pair) -> None:
    pair.heads["B"].lead(1)
    reader = pair.connect("ann:user", "B")
    assert reader.send(1, ms.encode(ms.Fetch(1, 1, 0, 10.0)), ENOUGH_S)
    ask(pair.connect("nodes:worker", "B"), chunk(numbered(0, 1), job=2))
    pair.heads["B"].follow(2, "primary:1")
    received = reader.receive(ENOUGH_S)  # who waited is told, too
    assert received == (1, ms.encode(ms.Elsewhere("primary:1", 2)))
    assert ask(reader, ms.Fetch(2, 1, 0, 0.0)) == ms.Elsewhere("primary:1", 2)
    assert ask(reader, ms.Stdin(1, 1, 0, b"x", False)) == ms.Elsewhere("primary:1", 2)
    agent = pair.connect("nodes:worker", "B")
    assert agent.send(1, ms.encode(chunk(numbered(0, 9), job=3)), ENOUGH_S)
    assert agent.receive(0.2) is None
    assert list(pair.files("B")) == ["2.1.log"]


def test_copies_are_taken_from_the_other_head_alone_and_from_no_earlier_leader(pair: Pair) -> None:
    pair.heads["B"].follow(5)
    copy = ms.Copy(4, (ms.Piece(1, 1, 0, 0, b""),))
    for name in KEYS:
        with pytest.raises(Refused):
            ask(pair.connect(name, "B"), copy)
    connection = wire.Connection(pair.addresses["B"], HEAD_PUBLIC, HEAD, pair.context)
    pair.connections.append(connection)
    with pytest.raises(BeoError, match=r"a leader of epoch 4 is one no more \(this head follows epoch 5\)"):
        ask(connection, copy)
    pair.heads["B"].lead(6)
    with pytest.raises(Refused):
        ask(connection, ms.Fetch(1, 1, 0, 0.0))


def test_a_reader_and_a_node_go_on_at_the_other_head_with_no_line_lost_or_doubled(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader changes again and again while a node prints without end, each time with copies under way."""
    monkeypatch.setattr(shipper_module, "RESEND_S", 0.1)
    leader, epoch = "A", 1
    pair.in_step()

    def open_bulk() -> wire.Connection:
        return wire.Connection(pair.addresses[leader], HEAD_PUBLIC, KEYS["ann:user"][1], pair.context)

    file = ClusterFile("c", ("",), HEAD_PUBLIC, bulk=(pair.addresses["A"],))
    agent = Shipper(file, KEYS["nodes:worker"][1], "n1", "i1", wire.Waker())
    agent.start()
    spool, written, found = tmp_path / "spool", 0, []
    console = Console(open_bulk, 1, 1)
    try:
        for turn in range(5):
            for _ in range(15):
                with spool.open("ab") as sink:
                    sink.write(numbered(0, 500, start=written))
                written += 500
                agent.ship(1, 1, spool, spool.stat().st_size, False)
                found += [record.data for record in console.step(0.02)]
            other, epoch = "AB".replace(leader, ""), epoch + 1
            pair.heads[other].lead(epoch)  # alone at first, with what it has
            pair.heads[leader].follow(epoch)
            leader = other
            agent.connect(pair.addresses[leader])
            if turn % 2:
                pair.heads.pop("AB".replace(leader, "")).stop()
                pair.start("AB".replace(leader, ""))
            pair.in_step(leader, epoch)
        agent.ship(1, 1, spool, spool.stat().st_size, True)
        until(lambda: shipped(agent), "shipped")
        (tmp_path / "1.1.over").touch()
        pair.heads[leader].wake()
        while not console.ended:
            found += [record.data for record in console.step(1.0)]
        assert found == [b"%08d\n" % n for n in range(written)]
        until(lambda: pair.files("A") == pair.files("B"), "both have the same")
    finally:
        console.close()
        agent.stop()


def test_the_file_of_a_job_goes_on_at_the_other_head_and_neither_writes_it_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pair = Pair(tmp_path, {1: JobSpec(argv=("x",), cwd="/", output=str(out))})
    try:
        pair.in_step()
        for head in pair.heads.values():
            head.started(1, 1)
        data = numbered(0, 10)
        ask(pair.connect("nodes:worker"), chunk(data))
        until(lambda: out.exists() and out.read_bytes().count(b"\n") == 10, "A writes it")
        pair.heads["B"].lead(2)
        pair.in_step("B", 2)
        ask(pair.connect("nodes:worker", "B"), chunk(numbered(0, 20)))
        until(lambda: out.read_bytes() == b"".join(b"%08d\n" % n for n in range(20)), "B goes on")
        (tmp_path / "1.1.over").touch()
        pair.heads["B"].wake()
        until(lambda: not list(tmp_path.glob("?/*.export-*")), "it is finished, and both know")
        out.unlink()
        pair.heads["A"].lead(3)
        pair.in_step("A", 3)
        pair.heads["A"].wake()
        ask(pair.connect("nodes:worker"), chunk(data, job=2))
        assert not out.exists()
    finally:
        pair.close()


@pytest.mark.root
def test_a_full_disk_at_the_other_is_told_and_copies_go_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "RESEND_S", 0.1)
    disk = tmp_path / "B"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "beo-test", disk], check=True)
    try:
        (disk / "ballast").write_bytes(bytes(900_000))
        pair = Pair(tmp_path)
        pair.in_step()
        agent = pair.connect("nodes:worker")
        data = numbered(0, 10_000)
        assert agent.send(1, ms.encode(chunk(data)), ENOUGH_S)
        until(lambda: "no space left" in pair.heads["A"].lag().trouble, "it is told")
        until(lambda: pair.heads["A"].lag().stalled_s > 0.2, "and that nothing goes on")
        assert agent.receive(0.0) is None
        (disk / "ballast").unlink()
        received = agent.receive(ENOUGH_S)
        assert received and ms.bulk_from_head.decode(received[1]) == ms.ChunkAck(1, 1, len(data))
        until(lambda: pair.heads["A"].lag() == mirror.Lag(True, 0, 0.0, ""), "all is well again")
        assert pair.files("A") == pair.files("B")
        pair.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
