"""`beo up` and `beo down` around tiny daemons: real processes, real locks, real kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from beo import birth, local, lockfile, supervisor, wire
from beo.config import Home, Place
from beo.errors import BeoError, Conflict, Refused, UsageError
from beo.lockfile import Process
from beo.supervisor import delay_s
from beo.worker import remains
from tests.cluster import is_alive, wait_for

# A head that knows a node while its agent holds the node's lock, and as many jobs as a file says.
HEAD = """
import signal, sys, time
from beo import config, lockfile, messages, wire
home = config.home()
held = lockfile.hold(home.head / "lock")
cluster = home.cluster()
if (home.path / "broken").exists():
    sys.exit("beo: the journal is full of sand")
server = wire.Server(cluster.heads[0], home.secret("head"), lambda key: key == wire.public_of(home.secret("admin")))
poller = wire.Poller()
server.register(poller)
if (home.path / "stubborn").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def answer(question):
    if isinstance(question, messages.ListNodes):
        names = sorted(lock.parent.name for lock in home.nodes.glob("*/lock") if lockfile.holder(lock))
        return messages.NodesAre(tuple(messages.NodeView(n, "up", 1, 0, 0, (), "", {}, 0.0, "") for n in names))
    jobs = (home.path / "jobs").read_text().split() if (home.path / "jobs").exists() else []
    return messages.JobsAre(tuple(
        messages.JobView(k, "", "", state, 1, "", 1, 0.0, 0.0, 0.0, -1, "") for k, state in enumerate(jobs)
    ))
while True:
    poller.poll()
    for peer, key, number, body in server.receive():
        server.send(peer, number, messages.encode(answer(messages.to_head.decode(body))))
"""
# An agent notes every start of it, and may leave a warden behind: a sleeper with a warden's command line.
AGENT = """
import os, pathlib, signal, subprocess, sys
from beo import config, lockfile
home = config.home()
node = home.nodes / sys.argv[sys.argv.index("--node") + 1]
held = lockfile.hold(node / "lock")
with open(node / "starts", "a") as file:
    file.write(f"{os.getpid()}\\n")
if (home.path / "leave-wardens").exists():
    (node / "wardens" / "7").mkdir(parents=True, exist_ok=True)
    subprocess.Popen([sys.executable, home.path / "warden.py", node / "wardens" / "7"])
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
while True:
    signal.pause()
"""
WARDEN = "import time; time.sleep(60)"
WAIT_S = 20.0


class Cluster:
    """A folder with `beo up` of the tiny daemons above."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700)
        (path / "warden.py").write_text(WARDEN)
        self.home = Home(path)
        self.said: list[str] = []

    def up(self, workers: int | None = None, slots: int | None = None) -> None:
        self.said.clear()
        local.up(self.home, workers, slots, self.said.append, head=("-c", HEAD), agent=("-c", AGENT))

    def down(self) -> str:
        self.said.clear()
        local.down(self.home, self.said.append)
        return "\n".join(self.said)

    def lock(self, name: str) -> Path:
        locks = {"head": self.home.head / "lock", "supervisor": supervisor.lock_path(self.home)}
        return locks.get(name, self.home.nodes / name / "lock")

    def pid(self, name: str) -> int:
        pid = lockfile.holder(self.lock(name))
        assert pid is not None, f"{name} doesn't run"
        return pid

    def kill(self, *names: str) -> None:
        """kill -9, and wait until they are gone, since a killed process holds its lock for a moment more."""
        processes = [Process(self.pid(name)) for name in names]
        for process in processes:
            process.send(signal.SIGKILL)
        for process in processes:
            assert process.wait(WAIT_S)
            process.close()

    def starts(self, node: str) -> list[str]:
        return (self.home.nodes / node / "starts").read_text().split()

    def processes(self) -> list[str]:
        """The command lines of all processes that belong to this folder."""
        return processes_of(self.home.path)


def processes_of(path: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            environment = (entry / "environ").read_bytes().split(b"\0") if words else []
        except OSError:
            continue
        if int(entry.name if words else 0) != os.getpid() and f"BEO_DIR={path}".encode() in environment:
            found.append(b" ".join(words).decode())
    return found


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "beo")
    yield made
    made.down()
    assert made.processes() == []


def test_up_returns_when_all_is_ready_and_down_leaves_nothing(cluster: Cluster) -> None:
    cluster.up(2, 4)
    assert cluster.said[0] == "up: 2 nodes (node01 to node02), 8 slots"
    assert any("beo run -n 8" in line for line in cluster.said)
    assert any(f"BEO_DIR={cluster.home.path}" in line for line in cluster.said)
    assert len(cluster.processes()) == 4
    assert cluster.down() == f"the cluster in {cluster.home.path} is down"
    assert cluster.processes() == []
    assert cluster.down() == f"nothing is up in {cluster.home.path}"


def test_down_of_a_folder_that_was_never_up_changes_nothing_in_it(tmp_path: Path) -> None:
    said: list[str] = []
    for path in (tmp_path, tmp_path / "none"):
        local.down(Home(path), said.append)
    assert said == [f"nothing is up in {tmp_path}", f"nothing is up in {tmp_path}/none"]
    assert not [*tmp_path.iterdir()]


def test_what_is_up_stays_as_it_is(cluster: Cluster) -> None:
    cluster.up(1, 3)
    head = cluster.pid("head")
    cluster.up()
    cluster.up(1, 3)
    assert cluster.said[0] == "already up: 1 node (node01), 3 slots"
    assert cluster.pid("head") == head
    with pytest.raises(Conflict, match="already up, with 1 worker of 3 slots: 'beo down' first"):
        cluster.up(2)
    with pytest.raises(Conflict, match="already up"):
        cluster.up(1, 4)


def test_the_folder_is_for_its_owner_alone_and_everything_in_it_is_remembered(cluster: Cluster) -> None:
    cluster.up(1, 3)
    home = cluster.home
    modes = {path.name: path.stat().st_mode & 0o777 for path in (home.path, *home.path.iterdir(), *home.keys.iterdir())}
    for name in ("beo", "keys", "head", "nodes", "log", "run"):
        assert modes[name] == 0o700, name
    for name in ("head.secret", "admin.secret", "worker.secret", "local.json"):
        assert modes[name] == 0o600, name
    born = home.cluster()
    assert msgspec.json.decode(home.path.joinpath("local.json").read_bytes())["slots"] == 3
    cluster.down()
    cluster.up()
    assert home.cluster() == born, "id, key and port are those of the first time"
    assert cluster.said[0] == "up: 1 node (node01), 3 slots"


def test_the_port_is_one_that_no_outgoing_connection_gets_by_chance(cluster: Cluster) -> None:
    birth.make_folder(cluster.home)
    birth.make_cluster(cluster.home)
    born = cluster.home.cluster()
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    who = cluster.home.who()
    assert (who.name, (who.control,), (who.bulk,)) == ("A", born.heads, born.bulk)
    assert len({who.control, who.bulk, *who.links}) == 3, "three planes"
    for address in born.heads + born.bulk + who.links:
        host, _, port = address.rpartition(":")
        assert host == "127.0.0.1"
        assert birth.PORT_MIN <= int(port) < first


def test_a_birth_that_was_cut_short_is_completed_with_the_keys_that_there_are(cluster: Cluster) -> None:
    birth.make_folder(cluster.home)
    public, secret = wire.new_keypair()
    cluster.home.write_secret("head", secret)
    birth.make_cluster(cluster.home)
    assert (cluster.home.secret("head"), cluster.home.cluster().key) == (secret, public)
    assert cluster.home.secret("admin") != cluster.home.secret("worker")


def test_the_address_follows_a_listen_with_a_port(cluster: Cluster) -> None:
    cluster.up(1)
    born = cluster.home.cluster()
    cluster.down()
    host, _, port = born.heads[0].rpartition(":")
    other = f"{host}:{int(port) + 1}"
    cluster.home.toml.write_text(f'[head]\nlisten = "{other}"\n')
    cluster.up()
    assert cluster.home.cluster() == msgspec.structs.replace(born, heads=(other,))


def test_a_cluster_of_a_beo_that_knew_one_head_keeps_its_addresses(cluster: Cluster) -> None:
    birth.make_folder(cluster.home)
    birth.make_cluster(cluster.home)
    born = cluster.home.cluster()
    cluster.home.who_file.unlink()
    birth.make_cluster(cluster.home)
    who = cluster.home.who()
    assert ((who.control,), (who.bulk,), who.name) == (born.heads, born.bulk, "A")
    assert cluster.home.cluster() == born


def test_where_the_other_head_listens_is_kept_beside_ones_own_addresses(cluster: Cluster) -> None:
    home = cluster.home
    birth.make_folder(home)
    birth.make_cluster(home)
    own = home.who()
    other = Place("10.0.0.2:7420", "10.0.0.2:7421", ("10.0.0.2:7422", "10.1.0.2:7422"))
    birth.note_heads(home, {"A": Place("moved:1", "moved:2", ("moved:3",)), "B": other})
    birth.make_cluster(home)
    assert home.who() == msgspec.structs.replace(own, others={"B": other})
    assert home.cluster().heads == (own.control, other.control)
    assert home.cluster().bulk == (own.bulk, other.bulk)
    birth.note_heads(home, {"A": own.place})
    assert home.who() == own
    assert home.cluster().heads == (own.control,)


def test_the_planes_of_a_head_that_others_reach_lie_side_by_side(cluster: Cluster) -> None:
    birth.make_folder(cluster.home)
    port = int(birth.free_address("127.0.0.1").rpartition(":")[2])
    birth.make_cluster(cluster.home, f"127.0.0.1:{port}")
    who = cluster.home.who()
    places = [int(text.rpartition(":")[2]) for text in (who.control, who.bulk, *who.links)]
    assert places == [port, port + 1, port + 2]


def test_a_machine_on_several_networks_has_the_pair_plane_in_each(cluster: Cluster) -> None:
    birth.make_folder(cluster.home)
    cluster.home.toml.write_text('[ha]\nlinks = ["192.168.7.1", "192.168.8.1:99"]\n')
    birth.make_cluster(cluster.home)
    own, *further = cluster.home.who().links
    assert further == [f"192.168.7.1:{own.rpartition(':')[2]}", "192.168.8.1:99"]
    cluster.home.toml.write_text("")
    birth.make_cluster(cluster.home)
    assert cluster.home.who().links == (own,)


@pytest.mark.parametrize("name", ["head", "node01"])
def test_a_killed_daemon_is_started_again_at_once(cluster: Cluster, name: str) -> None:
    cluster.up(1)
    before = cluster.pid(name)
    cluster.kill(name)
    wait_until(lambda: lockfile.holder(cluster.lock(name)))
    assert cluster.pid(name) != before
    log = supervisor.log_path(cluster.home).read_text()
    assert f"{name} was ended by SIGKILL" in log
    assert '"restart_in_s": 0.0' in log


def test_restarts_in_a_row_wait_longer_and_longer() -> None:
    assert [delay_s(ends) for ends in range(1, 10)] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert delay_s(10**9) == supervisor.DELAY_MAX_S


def test_a_daemon_that_has_settled_down_begins_with_no_delay_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "HEALTHY_S", 0.5)
    home = Home(tmp_path)
    birth.make_folder(home)
    settled = tmp_path / "settled"
    program = f"import os, time; os.path.exists({str(settled)!r}) or os._exit(3); time.sleep(60)"
    daemon = supervisor.Daemon("head", (sys.executable, "-c", program), home.head / "lock", home.logs / "head.log")

    def ends() -> supervisor.Ends:
        text = supervisor.ends_path(home).read_bytes()
        return msgspec.json.decode(text, type=dict[str, supervisor.Ends])["head"]

    own = supervisor.Supervisor(home, [daemon], [])
    thread = threading.Thread(target=own.run)
    thread.start()
    try:
        wait_until(lambda: ends().count >= 3)
        assert ends().how == "exited with 3"
        settled.touch()
        wait_until(lambda: ends() == supervisor.Ends())
    finally:
        own.stop()
        thread.join()


def test_a_stopped_daemon_is_alive_and_down_ends_it_all_the_same(cluster: Cluster) -> None:
    cluster.up(2)
    stopped, other = cluster.pid("node01"), cluster.pid("node02")
    os.kill(stopped, signal.SIGSTOP)
    cluster.kill("node02")  # by the time that this one is back, a restart of the other would have been seen
    wait_until(lambda: lockfile.holder(cluster.lock("node02")) not in (None, other))
    assert cluster.pid("node01") == stopped
    assert len(cluster.starts("node01")) == 1
    assert "down" in cluster.down()


def test_a_new_supervisor_takes_over_what_runs_and_starts_what_is_missing(cluster: Cluster) -> None:
    cluster.up(2)
    head, left = cluster.pid("head"), cluster.pid("node01")
    cluster.kill("supervisor")
    cluster.kill("node02")
    cluster.up()
    assert (cluster.pid("head"), cluster.pid("node01")) == (head, left)
    assert (len(cluster.starts("node01")), len(cluster.starts("node02"))) == (1, 2)
    cluster.kill("node01")  # which is no child of this supervisor
    wait_until(lambda: len(cluster.starts("node01")) == 2)
    assert len(cluster.processes()) == 4


def test_down_without_a_supervisor_ends_everything_too(cluster: Cluster) -> None:
    cluster.up(2)
    cluster.kill("supervisor")
    assert "down" in cluster.down()
    assert cluster.processes() == []


def test_everything_killed_at_once_is_as_a_power_loss_and_up_just_works(cluster: Cluster) -> None:
    cluster.up(2)
    born = cluster.home.cluster()
    cluster.kill("supervisor", "head", "node01", "node02")
    cluster.up()
    assert cluster.home.cluster() == born
    assert len(cluster.processes()) == 4


def test_two_clusters_live_side_by_side(cluster: Cluster, tmp_path: Path) -> None:
    other = Cluster(tmp_path / "other")
    for each in (cluster, other):
        (each.home.path / "leave-wardens").touch()
    try:
        cluster.up(1)
        other.up(1)
        assert cluster.home.cluster().heads != other.home.cluster().heads
        cluster.down()
        assert len(other.processes()) == 4, "supervisor, head, agent and its warden"
        wait_until(lambda: cluster.processes() == [])
    finally:
        other.down()
    wait_until(lambda: other.processes() == [])


def test_down_tells_how_many_running_jobs_it_stopped(cluster: Cluster) -> None:
    cluster.up(1)
    (cluster.home.path / "jobs").write_text("running ending queued running")
    assert "3 running jobs were stopped" in cluster.down()


def test_a_head_that_does_not_end_in_time_is_killed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "HEAD_END_S", 0.2)
    (cluster.home.path / "stubborn").touch()
    cluster.up(1)
    cluster.kill("supervisor")  # so that it is `down` in this process, with the short time above, that ends the head
    assert "down" in cluster.down()


def test_a_head_that_dies_at_start_is_named_with_its_last_line_and_nothing_stays_up(cluster: Cluster) -> None:
    (cluster.home.path / "broken").touch()
    with pytest.raises(BeoError, match=r"head doesn't stay up.*exited with 1.*full of sand.*see .*/log/head.log"):
        cluster.up(1)
    assert cluster.processes() == []
    (cluster.home.path / "broken").unlink()
    cluster.up()


def test_a_log_that_has_grown_too_large_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_SIZE_MAX_BYTES", 10)
    path = tmp_path / "head.log"
    with path.open("a") as writer:
        for text in ("0123456789", "x"):
            supervisor.bound(path)
            writer.write(text)
            writer.flush()
        supervisor.bound(path)
        assert (path.read_text(), (tmp_path / "head.log.1").read_text()) == ("", "0123456789x")
        writer.write("next")
    assert path.read_text() == "next", "its writer goes on in it, at its beginning"


def test_mistakes_name_their_cure(cluster: Cluster) -> None:
    with pytest.raises(UsageError, match=r"0 workers .*change --workers"):
        cluster.up(0)
    with pytest.raises(UsageError, match=r"slots of a worker .*change --slots"):
        cluster.up(1, 100_000)
    cluster.home.path.chmod(0o777)
    with pytest.raises(Refused, match=r"others may write .*chmod 700"):
        cluster.up()
    cluster.home.path.chmod(0o700)
    with lockfile_held(cluster.home.path / "run" / "up.lock"), pytest.raises(Conflict, match="another 'beo up'"):
        cluster.up()


class lockfile_held:
    """A lock held for the length of a with block."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.fd = lockfile.hold(self.path)

    def __exit__(self, *error: object) -> None:
        os.close(self.fd)


def test_a_lock_has_one_holder_who_can_be_named_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert lockfile.holder(path) is None
    program = f"import pathlib; from beo import lockfile; lockfile.hold(pathlib.Path({str(path)!r})); print(); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin and child.stdout
    with child:
        child.stdout.readline()
        assert lockfile.holder(path) == child.pid
        with pytest.raises(Conflict, match=f"is locked .by process {child.pid}"):
            lockfile.hold(path)
        child.kill()
    assert lockfile.holder(path) is None
    with lockfile_held(path):
        assert lockfile.holder(path) == os.getpid()


def test_a_pid_left_by_an_earlier_holder_is_never_taken_for_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lockfile, "IDENTIFY_S", 0.0)
    path = tmp_path / "lock"
    with lockfile_held(path):
        path.write_text(f"{os.getppid()} 1\n")
        with pytest.raises(Conflict, match="its holder is not to be seen"):
            lockfile.holder(path)


@pytest.mark.slow  # of waiting
def test_a_cluster_whose_folder_is_removed_ends(tmp_path: Path) -> None:
    home = Home(tmp_path / "beo")
    local.up(home, 1, 1, lambda _: None)
    everything = [process.pid for process in [*supervisor.heads(home), *supervisor.agents(home)]]
    everything += [process.pid for process in supervisor.wardens(home)]
    watcher = lockfile.Process(lockfile.holder(supervisor.lock_path(home)) or 0)
    cluster = home.cluster().cluster
    shutil.rmtree(home.path)
    assert watcher.wait(60)
    watcher.close()
    assert len(everything) >= 3
    wait_for(lambda: not any(map(is_alive, everything)), "the end of everything")
    assert not remains.found(cluster, ["node01"])


def test_a_daemon_that_was_started_just_before_its_supervisor_died_is_ended_too(tmp_path: Path) -> None:
    home = Home(tmp_path / "beo")
    birth.make_folder(home)
    birth.make_cluster(home)
    argv = [sys.executable, "-c", "import time; time.sleep(1000)", *local.AGENT_ARGV]
    process = subprocess.Popen(argv, env=supervisor.environment(home))
    wait_for(lambda: Path(f"/proc/{process.pid}/environ").read_bytes(), "its environment, which exec sets late")
    supervisor.end(home, [], [])
    assert process.wait(10) == -signal.SIGKILL
