"""What a supervisor tells systemd: ready when its daemons are, alive as long as it is, and that it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beo.notice import Notice
from tests.cluster import Cluster, is_alive, running, wait_for

UNITS = Path(__file__).resolve().parent.parent / "beo" / "worker" / "boot"


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """A socket like systemd's."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.bind(str(path))
        link.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield link


def test_ready_is_told_once_and_only_when_it_is_true(systemd: socket.socket) -> None:
    notice = Notice()
    assert "NOTIFY_SOCKET" not in os.environ, "no child is to speak for this process"
    assert notice.look(lambda: False) <= 0.2
    assert notice.look(lambda: True) == float("inf")
    assert notice.look(lambda: pytest.fail("it was told")) == float("inf")
    assert systemd.recv(99) == b"READY=1"
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.recv(99)


def test_the_watchdog_hears_twice_as_often_as_it_needs(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    assert 1.5 < Notice().look(lambda: True) <= 2.0
    assert [systemd.recv(99), systemd.recv(99)] == [b"READY=1", b"WATCHDOG=1"]
    monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.getsockname()))
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notice().look(lambda: True) == float("inf"), "another process is meant"


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notice = Notice()
    assert notice.look(lambda: pytest.fail("nobody asks")) == float("inf") and not notice.tell("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/socket")
    assert not Notice().tell("READY=1")


@contextmanager
def supervised(cluster: Cluster, notify: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """End a cluster's supervisor and all that it keeps, and start another one as systemd does."""
    cluster.beo("down")
    words = [sys.executable, "-P", "-m", "beo.local", "supervise", str(cluster.home.path), "--foreground"]
    env = {**os.environ, "BEO_DIR": str(cluster.home.path), "NOTIFY_SOCKET": notify, "WATCHDOG_USEC": "1000000"}
    env["PYTHONPATH"] = str(UNITS.parents[2])
    with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def test_a_supervisor_is_ready_when_its_daemons_are(tmp_path: Path, systemd: socket.socket) -> None:
    path = os.environ.pop("NOTIFY_SOCKET")
    with running(tmp_path / "beo") as cluster, supervised(cluster, path) as process:
        told: set[bytes] = set()
        while told != {b"READY=1", b"WATCHDOG=1"}:
            told.add(systemd.recv(99))
        process.send_signal(signal.SIGTERM)
        while systemd.recv(99) != b"STOPPING=1":
            pass


def test_a_supervisor_is_not_ready_while_its_head_can_not_listen(tmp_path: Path, systemd: socket.socket) -> None:
    path = os.environ.pop("NOTIFY_SOCKET")
    with running(tmp_path / "beo") as cluster:
        cluster.beo("down")
        host, _, port = cluster.home.who().control.rpartition(":")
        with socket.create_server((host, int(port))) as taken, supervised(cluster, path):
            wait_for(lambda: "Address already in use" in (cluster.home.logs / "head.log").read_text(), "it has tried")
            for _ in range(4):
                assert systemd.recv(99) == b"WATCHDOG=1", "it lives, and that is all"
            taken.close()
            wait_for(lambda: systemd.recv(99) == b"READY=1", "it is ready when it can")


@pytest.mark.slow
def test_jobs_go_on_when_a_supervisor_leaves_and_the_next_one_has_new_daemons(tmp_path: Path) -> None:
    with running(tmp_path / "beo") as cluster:
        with supervised(cluster) as process:
            cluster.wait_for_head()
            job = int(cluster.beo("submit", "sh", "-c", "echo $$; sleep 4; echo done").stdout.split()[1])
            wait_for(lambda: cluster.output(job), "it runs")
            before = cluster.pid("head"), cluster.pid("node01")
            process.send_signal(signal.SIGHUP)
            process.wait(30)
            assert not any(map(is_alive, before))
        cluster.beo("up")
        assert not {cluster.pid("head"), cluster.pid("node01")} & set(before)
        view = cluster.wait_for_state(job, "done")
        assert view.attempt == 1 and cluster.output(job).splitlines()[1:] == ["done"]


@pytest.mark.parametrize("name", ["head", "worker"])
def test_a_unit_waits_for_what_the_supervisor_tells(name: str) -> None:
    text = (UNITS / f"beo-{name}.service").read_text()
    for line in ("Type=notify", "WatchdogSec=", "KillMode=process", "KillSignal=SIGHUP", "--foreground"):
        assert line in text
