"""Machines and boxes in a network of their own: a reboot is one, addresses are as leased, and nothing is on the box."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.cluster import ROOT, wait_for
from tests.net.hosts import Host, Network, network
from tests.test_boot_sh import BUSYBOX, HAS_BOX

pytestmark = [pytest.mark.root, pytest.mark.net, pytest.mark.slow]

PORT = 7425
SETTINGS = """[worker]
lease_s = 3.0
[boot]
policy = "lan"
range = "10.77.0.2-10.77.0.9"
"""


def said(host: Host, *words: str) -> str:
    done = host.beo(*words)
    assert done.returncode == 0, done
    return done.stdout


def state_of(host: Host, name: str) -> str:
    rows = msgspec.json.decode(said(host, "nodes", "--json"))
    return next((row["state"] for row in rows if row["name"] == name), "")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("boots"), 3) as net:
        head = net.hosts[0]
        head.beo_dir.mkdir(mode=0o700)
        (head.beo_dir / "beo.toml").write_text(SETTINGS)
        said(head, "head", "init")
        serving = head.start(sys.executable, "-m", "tests.booted", head.address, str(PORT))
        assert serving.stdout and serving.stdout.readline() == "serving\n"
        yield net
        serving.kill()
        said(head, "down")


def boot(head: Host, one: Host, mac: str) -> subprocess.Popen[str]:
    """What a machine does from power-on to its init, and what that starts."""
    lease = "from beo.client import Cluster; c = Cluster(); v = c.lease_machine(sys.argv[1]); c.open_machine(v.mac)"
    done = head.run(sys.executable, "-c", f"import sys; {lease}; print(v.address)", mac)
    assert done.stdout.strip() == one.address, done
    key = msgspec.json.decode((head.beo_dir / "cluster.json").read_bytes())["key"]
    words = ["--heads", f"{head.address}:7420", "--boot", f"{head.address}:{PORT}", f"--pin={key}", "--mac", mac]
    return one.start(sys.executable, "-m", "beo.boot.join", "--cmdline", "quiet", *words, "--slots", "1")


def test_a_machine_that_is_power_cycled_is_seen_lost_and_taken_in_again_by_itself(net: Network) -> None:
    head, one, _ = net.hosts
    mac = "02:00:00:00:77:02"
    boot(head, one, mac)
    wait_for(lambda: state_of(head, "pc01") == "up", "pc01 is up")
    job = int(said(head, "submit", "-q", "--requeue", "auto", "--", "sh", "-c", "sleep 2; echo $BEO_ATTEMPT").strip())
    one.crash()
    shutil.rmtree(one.beo_dir)  # it was in its memory
    one.boot()
    boot(head, one, mac)
    wait_for(lambda: said(head, "events").count("MachineJoined") == 2, "it has joined again")
    wait_for(lambda: state_of(head, "pc01") == "up", "pc01 is up again")
    assert head.beo("wait", str(job)).returncode == 0
    assert said(head, "logs", str(job)).strip() == "2"
    rows = msgspec.json.decode(said(head, "node", "list", "--json"))
    assert [(row["name"], row["address"], row["state"]) for row in rows] == [("pc01", "10.77.0.2", "joined")]
    said(one, "down")


@HAS_BOX
def test_an_empty_box_in_a_network_of_its_own_becomes_a_worker_and_runs_a_job(net: Network, tmp_path: Path) -> None:
    """Namespaces of user, mounts and network, and in them busybox, /proc and /dev/null."""
    head, _, two = net.hosts
    box = tmp_path / "box"
    for name in ("bin", "dev", "proc", "tmp"):
        (box / name).mkdir(parents=True)
    (box / "dev" / "null").touch()
    shutil.copy(BUSYBOX, box / "bin" / "busybox")
    (box / "bin" / "sh").symlink_to("busybox")
    line = said(head, "token", "--boot", "-q").strip().replace("curl -fsS", "busybox wget -q -O -")
    inside = f"mount --bind /dev/null {box}/dev/null && mount --rbind /proc {box}/proc && exec chroot {box} /bin/sh -c"
    began_s = time.monotonic()
    words = f"{line} --dir /tmp/w --name box --slots 1; cat; /tmp/w/beo down"
    # A further /proc may not be mounted where a part of the host's is covered, and a host's boot id is.
    process = two.start(
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        f'{inside} "$0"',
        words,
        stdin=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        wait_for(lambda: state_of(head, "box") == "up", "the box is a worker")
        print(f"the line took {time.monotonic() - began_s:.1f} s in an empty box in a network of its own")
        done = head.beo("run", "-N", "1", "--chdir", "/", "/bin/busybox", "echo", "from the box")
        assert done.stdout == "from the box\n", done
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(20)
        assert process.stdout and process.stderr
        print(process.stdout.read(), process.stderr.read())
