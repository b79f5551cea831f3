"""The units of heads and workers, kept by a real systemd as the first process of a machine that QEMU emulates.

It takes four minutes on two busy cores, one of them for the image and the boot. Head and worker are on that machine, in
two folders. What a unit promises is tried in one life of them, from the first start to the stop, in the order below.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from beo.boot import building
from beo.boot.images import Store
from beo.config import Home
from tests.machine import Machine, Server
from tests.test_boot_image import CACHE, missing

pytestmark = [
    pytest.mark.boot,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing), reason=f"no {' '.join(missing)} here: make boot-packages"),
]

UP_S = 240.0

# In the place of what begins a worker's root: systemd, and one service beside those that are tried, which does what it
# is told to by HTTP.
START = """#!/usr/lib/beo/boot/busybox sh
busybox=/usr/lib/beo/boot/busybox
$busybox mkdir -p /var/lib/beo
echo 77777777777777777777777777777777 >/etc/machine-id # else it is systemd's first time, which enables every unit
/usr/bin/python3 -m venv --system-site-packages --without-pip /opt/beo
$busybox ln -s /usr/bin/beo /opt/beo/bin/beo
$busybox cp /usr/lib/python3/dist-packages/beo/worker/boot/beo-*.service /etc/systemd/system/
$busybox cat >/etc/systemd/system/steps.service <<END
[Service]
ExecStart=/usr/lib/beo/boot/busybox sh /usr/lib/beo/boot/worker
[Install]
WantedBy=multi-user.target
END
$busybox mkdir -p /etc/systemd/system/multi-user.target.wants
$busybox ln -s ../steps.service /etc/systemd/system/multi-user.target.wants/
exec /sbin/init
"""
STEPS = """PATH=/opt/beo/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/root
export PATH HOME
busybox=/usr/lib/beo/boot/busybox
for one in $(cat /proc/cmdline); do
  case $one in beo.boot=*) head=${one#*=} ;; esac
done
echo "beo: steps" >/dev/console
number=1
while :; do
  if $busybox wget -q -O /run/step http://$head/step/step$number 2>/dev/null; then
    /bin/bash /run/step >/run/said 2>&1
    echo "exit $?" >>/run/said
    {
      printf 'POST /console/step%s HTTP/1.1\\r\\nHost: head\\r\\nConnection: close\\r\\n' "$number"
      printf 'Content-Length: %s\\r\\n\\r\\n' "$($busybox wc -c </run/said)"
      cat /run/said
    } | $busybox nc -w 5 "${head%:*}" "${head##*:}" >/dev/null
    number=$((number + 1))
  else
    sleep 0.2
  fi
done
"""


class Box:
    """A machine with systemd, which does what it is told."""

    def __init__(self, store: Store, server: Server, machine: Machine) -> None:
        """Take the machine, and where it asks what to do."""
        self._store, self._server, self._machine, self._number = store, server, machine, 0

    def run(self, script: str, limit_s: float = 120.0) -> tuple[int, str]:
        """Run a script of shell there; return its exit code and what it has said."""
        self._number += 1
        name = f"step{self._number}"
        (self._store.folder / ".step").write_text(script)
        (self._store.folder / ".step").rename(self._store.folder / name)
        end_s = time.monotonic() + limit_s
        while not (said := self._server.consoles.get(name, b"")):
            assert time.monotonic() < end_s, (
                f"{script}\ntook more than {limit_s:.0f} s:\n{self._machine.console[-3000:]}"
            )
            time.sleep(0.05)
        text, _, code = said.decode(errors="replace").rstrip("\n").rpartition("exit ")
        print(f"$ {script}\n{text}[{code}]")
        return int(code), text

    def said(self, script: str, limit_s: float = 120.0) -> str:
        """What a script says that has to succeed."""
        code, text = self.run(script, limit_s)
        assert code == 0, f"{script}: {text}"
        return text


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A machine with systemd, and with beo and its units as docs/machines.md has them installed."""
    folder = tmp_path_factory.mktemp("systemd")
    store = Store(Home(folder))
    own = building.own
    with pytest.MonkeyPatch.context() as patch:
        ours = {"start": START.encode(), "worker": STEPS.encode()}
        patch.setattr(building, "own", lambda name: ours.get(name) or own(name))
        image = building.build(store, building.Wish("vm", ("systemd-sysv",)), CACHE, print)
    with Server(store) as server, Machine(store, image, (server,), folder) as machine:
        machine.wait_for("beo: steps", UP_S)
        yield Box(store, server, machine)
    shutil.rmtree(folder)


def state(box: Box, unit: str) -> dict[str, str]:
    """What systemd says of a unit."""
    names = "MainPID,NRestarts,ActiveState,Result"
    return dict(line.split("=", 1) for line in box.said(f"systemctl show -p {names} {unit}").splitlines())


def wait(box: Box, condition: str, what: str, limit_s: int = 90) -> None:
    """Wait there until a command succeeds."""
    code, said = box.run(
        f"for i in $(seq {limit_s * 2}); do ({condition}) && exit; sleep 0.5; done; exit 1", limit_s * 2.0
    )
    assert code == 0, f"not {what} after {limit_s} s: {said}"


def active(box: Box, unit: str) -> dict[str, str]:
    """Wait until a unit is active, and return what systemd says of it."""
    wait(box, f"systemctl is-active -q {unit}", f"{unit} active")
    return state(box, unit)


def program(box: Box) -> str:
    """The process of the job that runs."""
    wait(box, "pgrep -x sleep -a | grep -q 7777", "the job runs")
    return box.said("pgrep -f '^sleep 7777'").strip()


def agent(box: Box) -> str:
    """The worker's agent."""
    wait(box, "pgrep -f worker.agent >/dev/null", "the agent runs")
    return box.said("pgrep -f worker.agent").strip()


def test_systemd_finds_no_fault_with_the_units(box: Box) -> None:
    assert box.said("systemd-analyze verify /etc/systemd/system/beo-*.service 2>&1") == ""


def test_a_head_is_active_when_it_serves_and_not_before(box: Box) -> None:
    box.said("beo head init --listen 127.0.0.1:7420 && beo down")
    taken = "import socket, time; link = socket.create_server(('127.0.0.1', 7420)); time.sleep(999)"
    box.said(f'python3 -c "{taken}" >/dev/null 2>&1 & echo $! >/run/taken; sleep 3')
    code, _ = box.run("timeout 20 systemctl start beo-head")
    assert code == 124 and state(box, "beo-head")["ActiveState"] == "activating"
    box.said("kill $(cat /run/taken)")
    active(box, "beo-head")
    box.said("beo queue")
    box.said("systemctl stop beo-head && systemctl start beo-head && beo queue")


def test_a_worker_is_kept_and_its_job_outlives_all_that_keeps_it(box: Box) -> None:
    box.said(
        "line=$(beo token | grep 'beo worker'); export BEO_DIR=/var/lib/beo-worker; mkdir -m 700 $BEO_DIR\n"
        "$line --name w1 && beo down\n"
        "conf=/etc/systemd/system/beo-worker.service.d; mkdir $conf\n"
        "printf '[Service]\\nEnvironment=BEO_DIR=%s\\nWatchdogSec=6\\n' $BEO_DIR >$conf/here.conf\n"
        "systemctl daemon-reload && systemctl start beo-worker"
    )
    wait(box, "beo nodes --format name,state | grep -q 'w1 *up'", "the node is up")
    box.said("beo submit -J long --mem 100M sleep 7777")
    job = program(box)
    group = box.said(f"cat /proc/{job}/cgroup")
    assert group.startswith("0::/system.slice/beo-worker.service/beo-"), "inside what systemd has left to the worker"

    former = agent(box)
    box.said(f"kill -9 {former}")
    wait(box, f"pgrep -f worker.agent | grep -qv '^{former}$'", "another agent runs")
    box.said("kill -9 $(systemctl show -P MainPID beo-worker)")
    wait(box, "test $(systemctl show -P NRestarts beo-worker) = 1", "the supervisor was started again")
    active(box, "beo-worker")
    box.said("kill -STOP $(systemctl show -P MainPID beo-worker)")
    wait(box, "test $(systemctl show -P NRestarts beo-worker) = 2", "one that hangs was started again")
    active(box, "beo-worker")
    former = agent(box)
    box.said("systemctl restart beo-worker")
    assert agent(box) != former, "what was installed meanwhile is what runs"
    box.said("systemctl restart beo-head")
    wait(box, "beo nodes --format name,state | grep -q 'w1 *up'", "the node is up")
    assert program(box) == job, "the job has noticed nothing"
    assert "running" in box.said("beo queue --format state")


def test_what_is_stopped_ends_with_all_that_it_runs_and_jobs_are_queued_again(box: Box) -> None:
    job = program(box)
    box.said("systemctl stop beo-worker")
    stopped = state(box, "beo-worker")
    assert (stopped["ActiveState"], stopped["Result"]) == ("inactive", "success")
    assert box.run("pgrep -f 'beo-worker|worker.agent|warden.py|^sleep 7777'") == (1, ""), "nothing is left"
    assert box.run("test -e /sys/fs/cgroup/system.slice/beo-worker.service")[0] == 1
    box.said("systemctl start beo-worker")
    assert program(box) != job, "it runs again"
    box.said("BEO_DIR=/var/lib/beo-worker beo down; sleep 3")
    assert state(box, "beo-worker")["ActiveState"] == "inactive", "who ends it by hand means it"
    box.said("systemctl stop beo-head")
    stopped = state(box, "beo-head")
    assert (stopped["ActiveState"], stopped["Result"]) == ("inactive", "success")
    assert box.run("pgrep -f 'beo.headnode|beo.local'") == (1, "")
