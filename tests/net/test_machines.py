"""A cluster of several machines: joined by tokens, running jobs over all of them, hurt and healed.

The hosts are namespaces of this machine (hosts.py), each with a second network interface of the same address: jobs that
took that one would not work.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from beo import token, wire
from beo.config import ClusterFile, Home
from tests.cluster import BEO, wait_for
from tests.net.hosts import DECOY, Host, Network, network

pytestmark = [pytest.mark.root, pytest.mark.net]

SETTINGS = "[worker]\nlease_s = 3.0\n"


class Machines(NamedTuple):
    """A head and two workers."""

    net: Network
    head: Host
    one: Host
    two: Host


def said(host: Host, *words: str, code: int = 0) -> str:
    """What `beo WORDS` says on a host: its output, or with another exit code than 0 its complaint."""
    done = host.beo(*words)
    assert done.returncode == code, f"beo {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stderr if code else done.stdout


def line(host: Host, *words: str) -> list[str]:
    """The words of the command that `beo token` prints, without `beo`."""
    return said(host, "token", *words).split()[1:]


def states(host: Host) -> dict[str, str]:
    rows = msgspec.json.decode(said(host, "nodes", "--json"))
    return {row["name"]: row["state"] for row in rows}


def await_states(host: Host, **wanted: str) -> None:
    wait_for(lambda: wanted.items() <= states(host).items(), f"among the nodes are {wanted}")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    with network(tmp_path_factory.mktemp("machines"), 3) as net:
        head, one, two = net.hosts
        head.beo_dir.mkdir(mode=0o700)
        (head.beo_dir / "beo.toml").write_text(SETTINGS)
        printed = said(head, "head", "init")
        said(one, *printed.split("  beo ")[1].splitlines()[0].split(), "--slots", "1")
        said(two, *line(head), "--slots", "1")
        yield Machines(net, head, one, two)
        for host in net.hosts[:0:-1]:
            said(host, "down")
        assert "is down" in said(head, "down")
        assert [host.name for host in net.hosts if host.pids] == []


def test_the_head_listens_in_the_network_and_workers_join_by_the_line_that_it_prints(machines: Machines) -> None:
    await_states(machines.head, pc2="up", pc3="up")
    rows = msgspec.json.decode(said(machines.head, "nodes", "--json"))
    assert [row["address"].partition(":")[0] for row in rows] == ["10.77.0.2", "10.77.0.3"]
    assert all(row["facts"]["interface"] == "eth0" for row in rows)
    assert "10.77.0.1:7420" in said(machines.head, "info")
    for host in machines.net.hosts:
        secrets = list(host.beo_dir.rglob("*.secret"))
        assert secrets and all(path.stat().st_mode & 0o077 == 0 for path in secrets)
    assert not (machines.one.beo_dir / "keys" / "admin.secret").exists()


def test_a_job_runs_on_both_machines_and_its_output_comes_back(machines: Machines) -> None:
    out = said(machines.head, "run", "-n", "2", "sh", "-c", "echo $BEO_NODE $(hostname); cat")
    assert sorted(out.splitlines()) == ["pc2 pc2", "pc3 pc3"]


def test_a_job_takes_its_files_along_to_machines_that_have_no_admins_key(machines: Machines, tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("42\n")
    assert not (machines.one.beo_dir / "keys" / "admin.secret").exists()
    printed = said(
        machines.head, "run", "-n", "2", "-N", "2", "--chdir", str(tmp_path), "--in", "steps", "cat", "steps"
    )
    assert printed == "42\n42\n"


def test_an_mpi_job_crosses_the_network_in_spite_of_the_decoy(machines: Machines) -> None:
    out = said(machines.head, "run", "-n", "2", sys.executable, "jobs/ring.py")
    assert out.count("laps of 2 ranks") == 4, "four sizes of message, up to 8 MiB"
    every = ("--env", "UCX_NET_DEVICES=all")  # MPICH's own choice
    trapped = machines.head.beo("run", "-n", "2", *every, sys.executable, "jobs/ring.py")
    assert trapped.returncode != 0 and ("172.17.0.1" in trapped.stderr or "unreachable" in trapped.stderr), trapped


def test_a_worker_that_is_down_comes_back_without_a_token(machines: Machines) -> None:
    assert said(machines.one, "down") == "pc2 is down\n"
    assert machines.one.pids == []
    assert "up: pc2, 1 slot" in said(machines.one, "up")
    assert "already up: pc2" in said(machines.one, "worker")
    await_states(machines.head, pc2="up", pc3="up")


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="no /dev/fuse here: 'modprobe fuse'")
def test_a_workers_machine_shows_the_tree_by_its_own_key(machines: Machines) -> None:
    """It has none of an admin."""
    at = machines.one.inside / "tree"
    # As systemd has it: what is unmounted is unmounted behind the walls of a warden that was started meanwhile, too.
    machines.one.run("mount", "--make-rshared", "/")
    mount = machines.one.start(sys.executable, "-m", "beo.tree.attach", str(at))
    put = f"grep -q ' {at} fuse.beo ' /proc/mounts && echo from the worker > {at}/note"
    wait_for(
        lambda: machines.one.run("sh", "-c", put, timeout_s=10).returncode == 0, "the tree is mounted and takes it"
    )
    assert said(machines.head, "cat", "note") == "from the worker\n"
    assert machines.one.run("umount", str(at)).returncode == 0
    assert mount.wait(10) == 0


def test_a_killed_head_comes_back_and_running_jobs_go_on(machines: Machines) -> None:
    job = said(machines.head, "submit", "-n", "2", "sh", "-c", "sleep 2; echo done $BEO_NODE").split()[-1]
    wait_for(lambda: "running" in said(machines.head, "queue", job), "the job runs")
    pid = (machines.head.beo_dir / "head" / "lock").read_text().split()[0]
    machines.head.run("kill", "-9", pid)
    wait_for(lambda: machines.head.beo("info").returncode == 0, "a head answers")
    said(machines.head, "wait", job)
    assert sorted(said(machines.head, "logs", job).splitlines()) == ["done pc2", "done pc3"]


def test_a_head_whose_power_was_cut_serves_again_after_up(machines: Machines) -> None:
    job = said(machines.head, "submit", "sh", "-c", "sleep 1; echo $BEO_ATTEMPT").split()[-1]
    machines.head.crash()
    machines.head.boot()
    said(machines.head, "up")
    await_states(machines.head, pc2="up", pc3="up")
    said(machines.head, "wait", job)
    assert said(machines.head, "logs", job) == "1\n"


@pytest.mark.slow
def test_a_worker_that_is_cut_off_is_lost_and_its_job_comes_to_its_end_when_it_is_back(machines: Machines) -> None:
    words = ["sh", "-c", "sleep 6; echo $BEO_NODE $BEO_ATTEMPT"]
    job = said(machines.head, "submit", "-n", "2", "--requeue", "confirm", *words).split()[-1]
    wait_for(lambda: "running" in said(machines.head, "queue", job), "the job runs")
    machines.net.cut(machines.two)
    await_states(machines.head, pc2="up", pc3="lost")
    machines.net.mend(machines.two)
    await_states(machines.head, pc2="up", pc3="up")
    said(machines.head, "wait", job)
    last = said(machines.head, "logs", job).splitlines()[-2:]
    assert sorted(text.split()[0] for text in last) == ["pc2", "pc3"]


@pytest.mark.slow
def test_a_worker_whose_power_was_cut_loses_its_job_to_the_other(machines: Machines) -> None:
    words = ["sh", "-c", "[ $BEO_ATTEMPT = 2 ] || sleep 600; echo $BEO_NODE"]
    job = said(machines.head, "submit", "-n", "2", "--requeue", "auto", *words).split()[-1]
    wait_for(lambda: "running" in said(machines.head, "queue", job), "the job runs")
    machines.one.crash()
    await_states(machines.head, pc2="lost", pc3="up")
    machines.one.boot()
    said(machines.one, "up")
    said(machines.head, "wait", job)
    assert sorted(said(machines.head, "logs", job).splitlines()) == ["pc2", "pc3"]


# ---- who is kept out


@pytest.fixture
def newcomer(machines: Machines, request: pytest.FixtureRequest) -> Iterator[Host]:
    """The second worker's machine with a folder that belongs to no cluster."""
    own = machines.two.env["BEO_DIR"]
    machines.two.env["BEO_DIR"] = str(machines.two.folder / request.node.name[:20])
    yield machines.two
    machines.two.env["BEO_DIR"] = own


@pytest.mark.slow
def test_every_misuse_of_a_token_is_refused_with_its_reason(machines: Machines, newcomer: Host) -> None:
    head = machines.head
    used = line(head)
    text = used[-1]

    def refused(words: list[str], code: int, *parts: str) -> None:
        complaint = said(newcomer, *words, code=code)
        assert all(part in complaint for part in parts), complaint
        assert complaint.startswith("beo: ") and len(complaint.splitlines()) == 1

    refused([*used, "--name", "pc2"], 75, "there is a node pc2 already", "it is up", "--name")
    refused([*used, "--name", "a/b"], 2, "no name for a node")
    refused([*used[:-1], text[:-3]], 2, "this is no token", "copy it")
    refused(["worker", "--token", text], 2, "--token without --head")
    refused(["worker", "--head", head.address], 2, "--head without --token")
    refused(["worker"], 2, "this machine belongs to no cluster yet", "beo token")
    refused(["login", "--head", head.address, "--token", text], 77, "this token is for a worker", "beo worker")
    refused(["worker", "--head", f"{head.address}:7999", "--token", text], 69, "nobody answers", "refused", "7999")
    refused(["worker", "--head", "10.77.0.99", "--token", text], 69, "nobody answers at 10.77.0.99:7420")
    refused(["worker", "--head", "nowhere.invalid", "--token", text], 2, "no address of 'nowhere.invalid'")
    refused(["worker", "--head", "a:b", "--token", text], 2, "no address", "HOST:PORT")
    foreign = token.write(wire.new_keypair()[0], bytes(16))
    refused(["worker", "--head", head.address, "--token", foreign], 77, "is not the head that this token was made by")
    key = Home(head.beo_dir).cluster().key
    refused(["worker", "--head", head.address, "--token", token.write(key, bytes(16))], 77, "knows neither this token")
    number = msgspec.json.decode(said(head, "token", "--json"))["number"]
    revoked = line(head)
    said(head, "token", "revoke", str(number + 1))
    refused([*revoked, "--name", "pc9"], 77, "it was revoked")
    short = line(head, "--expires", "1s")
    wait_for(lambda: "expired" in said(head, "token", "list"), "the token has expired")
    refused([*short, "--name", "pc9"], 77, "it expired", "ago")
    ann = line(head, "--role", "user:nobody")
    refused(["worker", *ann[1:], "--name", "pc9"], 77, "this token is for a user", "beo login")
    said(newcomer, *ann)
    assert '"user": "nobody"' in said(newcomer, "info", "--json")
    assert "only an admin" in said(newcomer, "token", code=77)
    assert "pc9" not in states(head)
    refused([*used[:-1], foreign], 75, "belongs to another cluster", "BEO_DIR")


def test_a_used_token_joins_nobody_else_but_its_own_machine_again(machines: Machines, newcomer: Host) -> None:
    words = [*line(machines.head), "--name", "third", "--slots", "1"]
    assert "up: third" in said(newcomer, *words)
    assert "already up: third" in said(newcomer, *words)
    said(newcomer, "down")
    for name in ("cluster.json", "local.json"):  # as if the head's answer had been lost
        (Path(newcomer.env["BEO_DIR"]) / name).unlink()
    assert "up: third" in said(newcomer, *words)
    own = newcomer.env["BEO_DIR"]
    newcomer.env["BEO_DIR"] = str(newcomer.folder / "thief")
    assert "for 1 machine, and used" in said(newcomer, *words, "--name", "fourth", code=77)
    newcomer.env["BEO_DIR"] = own
    said(newcomer, "down")
    await_states(machines.head, pc2="up", pc3="up")


def test_a_machine_with_a_head_becomes_no_worker_and_a_worker_no_head(machines: Machines) -> None:
    assert "has a cluster of its own" in said(machines.head, *line(machines.head), code=75)
    assert "is pc2 of another machine's cluster" in said(machines.one, "head", "init", code=75)


STRANGER = """
import sys, time
from beo import messages as ms, wire
server_key, secret, *addresses = sys.argv[1:]
context = wire.new_context()
for address in addresses:
    connection = wire.Connection(address, server_key, secret, context)
    deadline_s = time.monotonic() + 5
    while not connection.refused:
        assert time.monotonic() < deadline_s, f"{address} doesn't refuse"
        assert not connection.send(1, ms.encode(ms.Info()), 0.05) or connection.refused
        assert connection.receive(0.05) is None
"""


def test_a_foreign_key_gets_nothing_from_head_or_agents(machines: Machines) -> None:
    cluster = Home(machines.head.beo_dir).cluster()
    secret = wire.new_keypair()[1]
    for key, addresses in (
        (cluster.key, (*cluster.heads, *cluster.bulk)),
        (agent_key(machines.one), [agent_address(machines.one)]),
    ):
        done = machines.two.run(sys.executable, "-c", STRANGER, key, secret, *addresses)
        assert done.returncode == 0, done.stderr


def test_a_workers_key_opens_no_other_worker_that_it_has_no_job_with(machines: Machines) -> None:
    secret = Home(machines.two.beo_dir).secret("worker")
    words = ["-c", STRANGER, agent_key(machines.one), secret, agent_address(machines.one)]
    done = machines.two.run(sys.executable, *words)
    assert done.returncode == 0, done.stderr


def agent_key(host: Host) -> str:
    return wire.public_of(Home(host.beo_dir).secret("worker"))


def agent_address(host: Host) -> str:
    return (host.beo_dir / "nodes" / host.name / "address").read_text()


def test_beo_of_another_protocol_is_told_so_on_both_sides(machines: Machines, newcomer: Host) -> None:
    words = line(machines.head)
    other = (
        "import sys\n"
        "from beo import version\n"
        "version.GREETING = b'beo/9/1/9.8.7'\n"
        "version.is_understood = lambda greeting: greeting.startswith(b'beo/9/')\n"
        "version.PROTOCOL, version.__version__ = 9, '9.8.7'\n"
        "from beo.cli.group import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = newcomer.run(sys.executable, "-c", other, *words, "--name", "future")
    assert done.returncode == 70
    assert "speaks protocol 1 (beo 0." in done.stderr and "this is protocol 9, beo 9.8.7" in done.stderr
    log = (machines.head.beo_dir / "log" / "head.log").read_text()
    assert "a client or worker speaks protocol 9 (beo 9.8.7)" in log


def test_beo_of_another_patch_version_is_welcome(machines: Machines, newcomer: Host) -> None:
    words = line(machines.head, "--role", "admin:eve")
    other = (
        "import sys\n"
        "from beo import version\n"
        "version.GREETING = b'beo/1/1/0.1.99'\n"
        "from beo.cli.group import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = newcomer.run(sys.executable, "-c", other, *words)
    assert done.returncode == 0 and "you are eve (admin)" in done.stdout, done.stderr


def test_a_wildcard_or_foreign_address_is_no_place_to_listen(machines: Machines, newcomer: Host) -> None:
    assert "10.77.0.3 (eth0)" in said(newcomer, "head", "init", "--listen", "0.0.0.0", code=2)
    assert "no address of this machine" in said(newcomer, "head", "init", "--listen", "10.77.0.77:7420", code=2)
    assert "no address" in said(newcomer, "head", "init", "--listen", "10.77.0.3:99999", code=2)


def test_where_there_is_no_default_route_the_address_must_be_said_if_there_are_several(
    machines: Machines, newcomer: Host
) -> None:
    assert newcomer.run("ip", "route", "del", "default").returncode == 0
    try:
        complaint = said(newcomer, "head", "init", code=2)
        assert "isn't clear" in complaint and "10.77.0.3 (eth0), 172.17.0.1 (docker0)" in complaint
        newcomer.run("ip", "addr", "flush", "dev", "docker0")
        assert "up: the head at 10.77.0.3:7420" in said(newcomer, "head", "init")
        said(newcomer, "down")
    finally:
        newcomer.run("ip", "addr", "add", DECOY, "dev", "docker0")
        newcomer.run("ip", "route", "add", "default", "via", "10.77.0.254")


def test_a_newcomer_whose_clock_is_off_is_told_so(machines: Machines, newcomer: Host) -> None:
    late = (
        "import sys, time\n"
        "real = time.time\n"
        "time.time = lambda: real() - 7230\n"
        "from beo.cli.group import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = newcomer.run(sys.executable, "-c", late, *line(machines.head, "--role", "admin:eve"))
    assert done.returncode == 0 and "clock is 2h" in done.stdout and "behind the head's" in done.stdout, done


def test_a_cluster_of_one_machine_becomes_one_of_several_with_its_jobs(machines: Machines, newcomer: Host) -> None:
    said(newcomer, "up", "--workers", "1", "--slots", "1")
    said(newcomer, "run", "true")
    assert "already up, with 1 worker of 1 slot" in said(newcomer, "head", "init", code=75)
    said(newcomer, "down")
    assert "up: the head at 10.77.0.3:7420" in said(newcomer, "head", "init")
    assert "done" in said(newcomer, "queue", "--all")
    assert "node01" in said(newcomer, "run", "sh", "-c", "echo $BEO_NODE")
    said(newcomer, "down")


def test_cluster_json_holds_no_secret(machines: Machines) -> None:
    text = (machines.one.beo_dir / "cluster.json").read_bytes()
    known = msgspec.json.decode(text, type=ClusterFile)
    assert known.heads == ("10.77.0.1:7420",) and known.key == Home(machines.head.beo_dir).cluster().key
    assert Home(machines.one.beo_dir).secret("worker").encode() not in text


def test_in_the_foreground_a_worker_ends_when_it_is_told_to(machines: Machines, newcomer: Host) -> None:
    words = line(machines.head)
    process = newcomer.start(*BEO, *words[:-1], "-", "--name", "front", "--foreground", stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(f"{words[-1]}\n")
    process.stdin.close()
    process.stdin = None
    wait_for(lambda: states(machines.head).get("front") == "up", "the node is up")
    assert words[-1] not in newcomer.run("ps", "axww").stdout
    assert process.poll() is None
    pid = (Path(newcomer.env["BEO_DIR"]) / "run" / "supervisor.lock").read_text().split()[0]
    newcomer.run("kill", pid)
    assert process.wait(30) == 0
    assert "nothing is up" in said(newcomer, "down")


def test_a_forgotten_machine_is_unknown_until_it_gets_a_new_token(machines: Machines, newcomer: Host) -> None:
    said(newcomer, *line(machines.head), "--name", "guest")
    said(newcomer, "down")
    wait_for(lambda: states(machines.head)["guest"] == "lost", "the node is lost")
    said(machines.head, "forget", "guest")
    assert "does not know this machine's key" in said(newcomer, "up", code=77)
    assert "nothing is up" in said(newcomer, "down")
    assert "up: guest" in said(newcomer, *line(machines.head))
    said(newcomer, "down")


@pytest.mark.slow
def test_a_node_that_is_cut_off_is_a_finding_of_the_doctor_and_so_is_an_open_key(machines: Machines) -> None:
    def findings() -> list[tuple[str, str]]:
        rows = msgspec.json.decode(machines.head.beo("doctor", "--json").stdout)
        return sorted((row["where"], row["check"]) for row in rows if row["where"] in ("pc2", "pc3"))

    assert findings() == []
    spare = machines.one.beo_dir / "keys" / "spare.secret"
    spare.touch(0o644)
    spare.chmod(0o644)
    assert machines.one.beo("doctor").returncode == 1
    said(machines.one, "down")
    said(machines.one, "up")
    wait_for(lambda: findings() == [("pc2", "modes")], "the open key is found")
    spare.unlink()
    machines.net.cut(machines.two)
    wait_for(lambda: ("pc3", "nodes") in findings(), "the silence is found")
    machines.net.mend(machines.two)
    await_states(machines.head, pc2="up", pc3="up")
