"""The bulk plane from a spool to a client and back: real sockets, real threads, a head that is really killed."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beo import follow as follow_module
from beo import messages as ms
from beo import records, wire
from beo.config import ClusterFile
from beo.errors import BeoError, NotFound, Refused, UsageError, from_dict
from beo.follow import Console, Source, follow
from beo.headnode import readers
from beo.headnode.decide import User
from beo.headnode.streams import Streams
from beo.spec import JobSpec
from beo.worker import shipper as shipper_module
from beo.worker.acts import Shipped, StdinCame
from beo.worker.shipper import Shipper

HEAD_PUBLIC, HEAD = wire.new_keypair()
KEYS = {name: wire.new_keypair() for name in ("root:admin", "ann:user", "bob:user", "nodes:worker")}
JOBS_MAX = 90  # jobs above are unknown
ENOUGH_S = 20.0


class View:
    """A head's state in a folder, which outlives the head: a file JOB.ATTEMPT.over for each attempt that is over."""

    def __init__(self, folder: Path, specs: dict[int, JobSpec] | None = None) -> None:
        self.folder = folder
        self.specs = specs or {}
        self.gone: set[int] = set()
        self.rank0 = "n1"
        self.keys = {public: name.split(":") for name, (public, _) in KEYS.items()}

    def user_of_key(self, key: str) -> User | None:
        found = self.keys.get(key)
        return User(found[0], found[1]) if found else None

    def speaks_for(self, user: User, node: str) -> bool:
        return node != "other"

    def owner(self, job: int) -> str | None:
        return "ann" if 0 < job <= JOBS_MAX and job not in self.gone else None

    def spec(self, job: int) -> JobSpec | None:
        return self.specs.get(job, JobSpec(argv=("x",), cwd="/", stdin=True)) if self.owner(job) else None

    def ids(self, job: int) -> tuple[int, int, tuple[int, ...]] | None:
        return (os.geteuid(), os.getegid(), ()) if self.owner(job) else None

    def since(self, job: int) -> int:
        return 10**9

    def is_over(self, job: int, attempt: int) -> bool:
        return (self.folder / f"{job}.{attempt}.over").exists()

    def rank0_node(self, job: int, attempt: int) -> tuple[str, str] | None:
        return (self.rank0, "i1") if self.owner(job) else None


class Cluster:
    """One head in this process, and as many connections as a test likes."""

    def __init__(self, folder: Path, view: View | None = None) -> None:
        self.view = view or View(folder)
        self.folder = folder
        self.context = wire.new_context()
        self.connections: list[wire.Connection] = []
        self.head = Streams("127.0.0.1:0", HEAD, folder / "output", self.view)
        self.address = self.head.address
        self.head.lead(1)
        self.head.start()

    def connect(self, name: str) -> wire.Connection:
        connection = wire.Connection(self.address, HEAD_PUBLIC, KEYS[name][1], self.context)
        self.connections.append(connection)
        return connection

    def open(self, name: str = "ann:user") -> Callable[[], wire.Connection]:
        return lambda: wire.Connection(self.address, HEAD_PUBLIC, KEYS[name][1], self.context)

    def shipper(self, node: str = "n1", waker: wire.Waker | None = None) -> Shipper:
        file = ClusterFile("c", ("",), HEAD_PUBLIC, bulk=(self.address,))
        found = Shipper(file, KEYS["nodes:worker"][1], node, "i1", waker or wire.Waker())
        found.start()
        return found

    def over(self, job: int, attempt: int) -> None:
        (self.folder / f"{job}.{attempt}.over").touch()
        self.head.wake()

    def close(self) -> None:
        self.head.stop()
        for connection in self.connections:
            connection.close()
        self.context.destroy(linger=0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(tmp_path)
    yield found
    found.close()


def ask(connection: wire.Connection, message: ms.BulkRequest, timeout_s: float = ENOUGH_S) -> ms.BulkAnswer:
    """Send and wait for the answer; an error is raised."""
    assert connection.send(1, ms.encode(message), ENOUGH_S)
    received = connection.receive(timeout_s)
    assert received, f"no answer to {message}"
    answer = ms.bulk_from_head.decode(received[1])
    if isinstance(answer, ms.Failed):
        raise from_dict(answer.error)
    return answer


def chunk(data: bytes, offset: int = 0, job: int = 1, node: str = "n1") -> ms.Chunk:
    return ms.Chunk(node, "i1", job, 1, offset, data)


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + ENOUGH_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def shipped(agent: Shipper) -> list[Shipped]:
    return [news for news in agent.news() if isinstance(news, Shipped)]


def numbered(rank: int, count: int, start: int = 0) -> bytes:
    return b"".join(records.pack(rank, 1, b"%08d\n" % n) for n in range(start, start + count))


# ---- who may do what


def test_output_is_for_its_owner_and_admins_alone(cluster: Cluster) -> None:
    ask(cluster.connect("nodes:worker"), chunk(numbered(0, 1)))
    fetch = ms.Fetch(1, 1, 0, 0.0)
    for name in ("ann:user", "root:admin"):
        assert isinstance(ask(cluster.connect(name), fetch), ms.Fetched)
    for name, why in (("bob:user", "belongs to ann.*you are bob.*ask ann"), ("nodes:worker", "use a user's key")):
        with pytest.raises(Refused, match=why):
            ask(cluster.connect(name), fetch)
        with pytest.raises(Refused, match=why):
            ask(cluster.connect(name), ms.Stdin(1, 1, 0, b"x", False))
    with pytest.raises(NotFound, match="no job 91"):
        ask(cluster.connect("ann:user"), ms.Fetch(91, 1, 0, 0.0))


def test_only_workers_bring_output(cluster: Cluster) -> None:
    for message in (chunk(numbered(0, 1)), ms.BulkHello("n1", "i1"), ms.StdinAck(1, 1, 0, False)):
        with pytest.raises(Refused, match="only a worker's key"):
            ask(cluster.connect("ann:user"), message)


def test_a_worker_brings_output_of_its_own_node_alone(cluster: Cluster) -> None:
    for message in (chunk(numbered(0, 1), node="other"), ms.BulkHello("other", "i1")):
        with pytest.raises(Refused, match="can't speak for other"):
            ask(cluster.connect("nodes:worker"), message)
    cluster.view.rank0 = "other"
    with pytest.raises(Refused, match="can't speak for other"):
        ask(cluster.connect("nodes:worker"), ms.StdinAck(1, 1, 0, False))


def test_nonsense_is_answered_clearly_and_changes_nothing(cluster: Cluster) -> None:
    agent = cluster.connect("nodes:worker")
    for data in (b"no records", numbered(0, 2)[:-1]):
        with pytest.raises(BeoError):
            ask(agent, chunk(data))
    with pytest.raises(UsageError):
        ask(agent, chunk(numbered(0, 1), offset=-1))
    assert agent.send(1, b"\xc1 no message", ENOUGH_S)
    received = agent.receive(ENOUGH_S)
    assert received
    assert isinstance(ms.bulk_from_head.decode(received[1]), ms.Failed)
    with pytest.raises(UsageError, match="no output begins at cursor 5"):
        ask(cluster.connect("ann:user"), ms.Fetch(1, 1, 5, 0.0))
    assert ask(agent, chunk(numbered(0, 1))) == ms.ChunkAck(1, 1, len(numbered(0, 1)))


# ---- long polls


def test_a_waiting_reader_is_answered_when_output_comes_and_when_the_attempt_is_over(cluster: Cluster) -> None:
    agent, reader = cluster.connect("nodes:worker"), cluster.connect("ann:user")
    assert reader.send(7, ms.encode(ms.Fetch(1, 1, 0, 10.0)), ENOUGH_S)
    assert reader.receive(0.05) is None
    ask(agent, chunk(numbered(0, 1)))
    received = reader.receive(ENOUGH_S)
    assert received
    assert received[0] == 7
    answer = ms.bulk_from_head.decode(received[1])
    assert isinstance(answer, ms.Fetched)
    assert (answer.records, answer.end) == (numbered(0, 1), False)
    assert reader.send(8, ms.encode(ms.Fetch(1, 1, answer.cursor, 10.0)), ENOUGH_S)
    assert reader.receive(0.05) is None
    cluster.over(1, 1)
    received = reader.receive(5.0)
    assert received
    assert ms.bulk_from_head.decode(received[1]) == ms.Fetched(answer.cursor, b"", True)


def test_a_poll_is_answered_at_its_time_though_nothing_comes(cluster: Cluster) -> None:
    assert ask(cluster.connect("ann:user"), ms.Fetch(1, 1, 0, 0.05)) == ms.Fetched(0, b"", False)


def test_one_connection_can_park_so_many_polls_and_no_more(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "POLLS_PER_PEER_MAX", 3)
    reader = cluster.connect("ann:user")
    for _ in range(10):  # asked again: replaced, not added
        assert reader.send(1, ms.encode(ms.Fetch(1, 1, 0, 10.0)), ENOUGH_S)
    for job in (2, 3):
        assert reader.send(1, ms.encode(ms.Fetch(job, 1, 0, 10.0)), ENOUGH_S)
    with pytest.raises(BeoError, match="too many readers"):
        ask(reader, ms.Fetch(4, 1, 0, 10.0))
    cluster.over(2, 1)
    assert ms.bulk_from_head.decode(reader.receive(ENOUGH_S)[1]) == ms.Fetched(0, b"", True)  # type: ignore[index]
    assert reader.send(1, ms.encode(ms.Fetch(4, 1, 0, 10.0)), ENOUGH_S)
    assert reader.receive(0.05) is None


def test_who_waits_for_a_job_that_is_forgotten_is_told(cluster: Cluster) -> None:
    ask(cluster.connect("nodes:worker"), chunk(numbered(0, 1)))
    reader = cluster.connect("ann:user")
    end = ask(reader, ms.Fetch(1, 1, 0, 0.0)).cursor  # type: ignore[union-attr]
    assert reader.send(1, ms.encode(ms.Fetch(1, 1, end, 10.0)), ENOUGH_S)
    assert reader.receive(0.05) is None
    cluster.view.gone.add(1)
    cluster.head.forget([1])
    received = reader.receive(ENOUGH_S)
    assert received
    assert isinstance(ms.bulk_from_head.decode(received[1]), ms.Failed)
    assert not list((cluster.folder / "output").iterdir())


def test_output_of_a_forgotten_job_is_acknowledged_away(cluster: Cluster) -> None:
    agent = cluster.connect("nodes:worker")
    data = numbered(0, 3)
    assert ask(agent, chunk(data, offset=100, job=91)) == ms.ChunkAck(91, 1, 100 + len(data))
    assert not list((cluster.folder / "output").iterdir())


# ---- from the spool to the client


def test_a_spool_arrives_whole_while_it_grows_and_its_end_is_told(cluster: Cluster, tmp_path: Path) -> None:
    agent = cluster.shipper()
    spool = tmp_path / "1.1.spool"
    agent.ship(1, 1, spool, 0, False)
    console = Console(cluster.open(), 1, 1)
    found: list[bytes] = []
    try:
        for n in range(20):
            with spool.open("ab") as file:
                file.write(numbered(0, 50, start=50 * n))
            agent.ship(1, 1, spool, spool.stat().st_size, n == 19)
            found += [record.data for record in console.step(0.01)]
        until(lambda: shipped(agent) == [Shipped(1, 1)], "shipped")
        cluster.over(1, 1)
        while not console.ended:
            found += [record.data for record in console.step(1.0)]
        assert found == [b"%08d\n" % n for n in range(1000)]
    finally:
        console.close()
        agent.stop()


def test_a_part_without_output_is_shipped_at_once(cluster: Cluster, tmp_path: Path) -> None:
    agent = cluster.shipper()
    agent.ship(1, 1, tmp_path / "none", 0, True)
    until(lambda: shipped(agent) == [Shipped(1, 1)], "shipped")
    agent.stop()


def test_a_new_agent_goes_on_where_the_old_one_was_killed(cluster: Cluster, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.write_bytes(numbered(0, 200_000))
    size = spool.stat().st_size
    for _ in range(4):
        agent = cluster.shipper()
        agent.ship(1, 1, spool, size, True)
        agent.stop()
    agent = cluster.shipper()
    agent.ship(1, 1, spool, size, True)
    until(lambda: shipped(agent), "shipped")
    agent.stop()
    cluster.over(1, 1)
    assert [data for _, _, _, data in follow(cluster.open(), 1, 1)] == [b"%08d\n" % n for n in range(200_000)]


def test_a_part_that_prints_without_end_does_not_hold_up_another(cluster: Cluster, tmp_path: Path) -> None:
    agent = cluster.shipper()
    big, small = tmp_path / "big", tmp_path / "small"
    block = b"".join(records.pack(0, 1, bytes(60_000)) for _ in range(50))
    big.write_bytes(block * 40)
    small.write_bytes(numbered(0, 1))
    agent.ship(1, 1, big, big.stat().st_size, True)
    agent.ship(2, 1, small, small.stat().st_size, True)
    done: list[Shipped] = []
    until(lambda: done.extend(shipped(agent)) or len(done) == 2, "both shipped")  # type: ignore[func-returns-value]
    agent.stop()
    assert done == [Shipped(2, 1), Shipped(1, 1)]


def test_a_damaged_spool_ends_all_the_same_and_what_is_before_the_damage_arrives(
    cluster: Cluster, tmp_path: Path
) -> None:
    agent = cluster.shipper()
    spool = tmp_path / "spool"
    spool.write_bytes(numbered(0, 3) + b"\xff" * 100)
    agent.ship(1, 1, spool, spool.stat().st_size, True)
    until(lambda: shipped(agent) == [Shipped(1, 1)], "shipped")
    agent.stop()
    cluster.over(1, 1)
    assert len(list(follow(cluster.open(), 1, 1))) == 3


def test_logs_without_waiting_end_with_what_is_there_and_go_on_from_a_cursor(cluster: Cluster) -> None:
    agent = cluster.connect("nodes:worker")
    assert list(follow(cluster.open(), 1, 1, wait=False)) == []
    ask(agent, chunk(numbered(0, 3)))
    first = list(follow(cluster.open(), 1, 1, wait=False))
    assert [data for *_, data in first] == [b"00000000\n", b"00000001\n", b"00000002\n"]
    ask(agent, chunk(numbered(0, 5)))
    second = list(follow(cluster.open(), 1, 1, cursor=first[-1][0], wait=False))
    assert [data for *_, data in second] == [b"00000003\n", b"00000004\n"]
    with pytest.raises(Refused):
        list(follow(cluster.open("bob:user"), 1, 1, wait=False))


@pytest.mark.root
def test_a_full_disk_holds_the_agents_back_and_nothing_is_lost(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "beo-test", disk], check=True)
    try:
        (disk / "ballast").write_bytes(bytes(900_000))
        cluster = Cluster(disk)
        agent = cluster.shipper()
        spool = tmp_path / "spool"
        spool.write_bytes(numbered(0, 20_000))
        agent.ship(1, 1, spool, spool.stat().st_size, True)
        until(lambda: cluster.head._full, "the disk is full")
        assert not shipped(agent)
        (disk / "ballast").unlink()
        until(lambda: shipped(agent), "shipped")
        cluster.over(1, 1)
        assert [data for *_, data in follow(cluster.open(), 1, 1)] == [b"%08d\n" % n for n in range(20_000)]
        agent.stop()
        cluster.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# ---- a head that dies

HEAD_PROGRAM = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_streams as t
given = json.loads(sys.stdin.readline())
t.KEYS = {name: tuple(pair) for name, pair in given["keys"].items()}
folder = Path(given["folder"])
specs = {int(job): t.JobSpec(argv=("x",), cwd="/", **files) for job, files in given["specs"].items()}
head = t.Streams(given["address"], given["secret"], folder / "output", t.View(folder, specs))
head.lead(1)
head.start()
for job in specs:
    head.started(job, 1)
print(head.address, flush=True)
for line in sys.stdin:
    head.wake()
"""


class Head:
    """A head as a process of its own, to be killed."""

    def __init__(self, folder: Path, specs: dict[int, dict[str, str]] | None = None) -> None:
        self.folder = folder
        self.specs = specs or {}
        self.address = "127.0.0.1:0"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        here = str(Path(__file__).parent)
        self.process = subprocess.Popen(
            [sys.executable, "-c", HEAD_PROGRAM, here], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        given = {"keys": KEYS, "folder": str(self.folder), "address": self.address, "secret": HEAD, "specs": self.specs}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(given) + "\n")
        self.process.stdin.flush()
        self.address = self.process.stdout.readline().strip()
        assert self.address

    def wake(self) -> None:
        assert self.process
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None


@contextmanager
def killed_again_and_again(head: Head, times: int) -> Iterator[threading.Thread]:
    """Kill the head at random moments while the block runs; it lives in the end."""

    def nemesis() -> None:
        dice = random.Random(1)
        for _ in range(times):
            time.sleep(dice.uniform(0.05, 0.4))
            head.kill()
            head.start()

    thread = threading.Thread(target=nemesis)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


def test_no_line_is_lost_or_doubled_though_the_head_is_killed_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes print, a client follows, -o is written, and the head is killed at random moments."""
    monkeypatch.setattr(shipper_module, "RESEND_S", 0.1)
    monkeypatch.setattr(follow_module, "POLL_S", 0.3)
    monkeypatch.setattr(follow_module, "OVERDUE_S", 0.2)
    out = tmp_path / "out-1.txt"
    head = Head(tmp_path, {1: {"output": str(tmp_path / "out-%j.txt")}})
    head.start()
    context = wire.new_context()
    file = ClusterFile("c", ("",), HEAD_PUBLIC, bulk=(head.address,))
    agents = {node: Shipper(file, KEYS["nodes:worker"][1], node, "i1", wire.Waker()) for node in ("n1", "n2")}
    console = Console(lambda: wire.Connection(head.address, HEAD_PUBLIC, KEYS["ann:user"][1], context), 1, 1)
    found: dict[int, list[bytes]] = {0: [], 1: []}
    written: dict[int, int] = {0: 0, 1: 0}
    try:
        for agent in agents.values():
            agent.start()
        final: set[str] = set()
        done: set[str] = set()
        with killed_again_and_again(head, 4) as nemesis:
            deadline = time.monotonic() + 3 * ENOUGH_S
            while len(done) < 2:
                assert time.monotonic() < deadline, (written, {rank: len(lines) for rank, lines in found.items()})
                for rank, (node, agent) in enumerate(agents.items()):
                    if node not in final:
                        spool = tmp_path / f"{node}.spool"
                        with spool.open("ab") as sink:
                            sink.write(numbered(rank, 20, start=written[rank]))
                        written[rank] += 20
                        if not nemesis.is_alive():
                            final.add(node)
                        agent.ship(1, 1, spool, spool.stat().st_size, node in final)
                    if shipped(agent):
                        done.add(node)
                for record in console.step(0.005):
                    found[record.rank].append(record.data)
        (tmp_path / "1.1.over").touch()
        head.wake()
        while not console.ended:
            assert time.monotonic() < deadline
            for record in console.step(0.5):
                found[record.rank].append(record.data)
        for rank in (0, 1):
            assert found[rank] == [b"%08d\n" % n for n in range(written[rank])]
        until(lambda: not list((tmp_path / "output").glob("*.export-*")), "the file is complete")
        lines = sorted(out.read_bytes().splitlines())
        assert lines == sorted(b"%08d" % n for rank in (0, 1) for n in range(written[rank]))
    finally:
        console.close()
        for agent in agents.values():
            agent.stop()
        head.kill()
        context.destroy(linger=0)


# ---- stdin


class Reader(threading.Thread):
    """A node that takes stdin as a warden does, and loses part of what comes and of what it should answer."""

    def __init__(self, agent: Shipper, waker: wire.Waker, loss: float) -> None:
        super().__init__()
        self.agent, self.waker, self.loss = agent, waker, loss
        self.taken = bytearray()
        self.closed = False
        self.stopping = False

    def run(self) -> None:
        dice = random.Random(2)
        poller = wire.Poller()
        poller.register(self.waker, wire.POLLIN)
        while not self.stopping:
            poller.poll(50)
            self.waker.clear()
            for news in self.agent.news():
                if isinstance(news, StdinCame) and dice.random() >= self.loss:
                    self.take(news.message, dice)

    def take(self, message: ms.Stdin, dice: random.Random) -> None:
        end = message.offset + len(message.data)
        if message.offset <= len(self.taken) <= end:
            self.taken += message.data[len(self.taken) - message.offset :]
            self.closed = self.closed or message.eof
        if dice.random() >= self.loss:
            self.agent.stdin_ack(message.job, message.attempt, len(self.taken), self.closed)


@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_stdin_reaches_the_rank_once_and_its_end_too(cluster: Cluster, loss: float) -> None:
    waker = wire.Waker()
    agent = cluster.shipper(waker=waker)
    node = Reader(agent, waker, loss)
    node.start()
    text = random.Random(3).randbytes(600_000 if loss else 3_000_000)
    source, sink = os.pipe()
    feeder = threading.Thread(target=_write_all, args=(sink, text))
    feeder.start()
    console = Console(cluster.open(), 1, 1, source=Source(source))
    try:
        deadline = time.monotonic() + ENOUGH_S
        while not console.input_closed:
            console.step(0.2)
            assert time.monotonic() < deadline, len(node.taken)
        assert node.closed
        assert bytes(node.taken) == text
    finally:
        node.stopping = True
        console.close()
        os.close(source)
        feeder.join()
        node.join()
        agent.stop()


def _write_all(fd: int, data: bytes) -> None:
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    except BrokenPipeError:
        pass


def test_stdin_of_an_attempt_that_is_over_is_closed(cluster: Cluster) -> None:
    cluster.over(1, 1)
    source, sink = os.pipe()
    console = Console(cluster.open(), 1, 1, source=Source(source))
    os.write(sink, b"too late\n")
    deadline = time.monotonic() + ENOUGH_S
    while not console.input_closed:
        console.step(0.2)
        assert time.monotonic() < deadline
    assert console.ended
    console.close()
    os.close(source)
    os.close(sink)


def test_a_job_that_reads_no_stdin_says_so(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, View(tmp_path, {1: JobSpec(argv=("x",), cwd="/")}))
    with pytest.raises(UsageError, match="reads no stdin"):
        ask(cluster.connect("ann:user"), ms.Stdin(1, 1, 0, b"x", False))
    cluster.close()


def test_a_step_ends_early_when_a_descriptor_of_the_caller_is_readable(cluster: Cluster) -> None:
    waker = wire.Waker()
    waker.wake()
    console = Console(cluster.open(), 1, 1, wake_on=(waker.fileno(),))
    began = time.monotonic()
    assert console.step(ENOUGH_S) == []
    assert time.monotonic() - began < ENOUGH_S / 2
    console.close()
    waker.close()
