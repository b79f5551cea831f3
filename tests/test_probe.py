"""The probe tells what this very machine is; the tests look at the machine in another way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from beo.worker import contain, probe


def test_the_walls_it_names_can_be_built() -> None:
    kind = probe.contain_kind()
    assert kind in contain.KINDS
    assert subprocess.call([sys.executable, "-I", "-S", probe._WARDEN, "--try", kind]) == 0


def test_trying_out_walls_changes_nothing_here() -> None:
    before = [os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "mnt", "ipc", "user")]
    mounts = len(Path("/proc/self/mounts").read_text().splitlines())
    probe.contain_kind()
    assert [os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "mnt", "ipc", "user")] == before
    assert len(Path("/proc/self/mounts").read_text().splitlines()) == mounts


def test_a_memory_limit_that_it_names_can_be_set_and_removed() -> None:
    kind, folder = probe.memory_limit()
    if kind == "poll":
        assert folder == ""
        pytest.skip("no cgroup of memory can be made here")
    path = f"{folder}/beo-probe-test-{os.getpid()}"
    probe.make_cgroup(path, 64 << 20)
    try:
        name = "memory.max" if kind == "cgroup2" else "memory.limit_in_bytes"
        assert int(Path(path, name).read_text()) == 64 << 20
    finally:
        assert probe.remove_cgroup(path)
    assert not Path(path).exists() and probe.remove_cgroup(path)


def test_cgroups_are_made_beside_our_own_where_systemd_has_left_the_one_above_to_us(tmp_path: Path) -> None:
    unit = tmp_path / "system.slice" / "beo-worker.service"
    (unit / "beo").mkdir(parents=True)
    mount, own = str(tmp_path), "/system.slice/beo-worker.service/beo"
    assert probe._under(mount, own) == [f"{unit}/beo", mount]
    try:
        os.setxattr(unit, "user.delegate", b"1")
    except OSError:
        pytest.skip("no attributes of files here")
    assert probe._under(mount, own) == [str(unit), f"{unit}/beo", mount]
    assert probe._under(mount, own.rpartition("/")[0]) == [str(unit), mount], "and where they aren't apart, as ever"


def test_a_cgroup_that_still_has_a_process_is_not_reported_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, folder = probe.memory_limit()
    if kind == "poll":
        pytest.skip("no cgroup of memory can be made here")
    monkeypatch.setattr(probe, "_REMOVE_S", 0.01)
    path = probe.make_cgroup(f"{folder}/beo-probe-busy-{os.getpid()}", 64 << 20)
    inmate = subprocess.Popen(["sleep", "1000"])
    try:
        Path(path, "cgroup.procs").write_text(str(inmate.pid))
        assert not probe.remove_cgroup(path)
    finally:
        inmate.kill()
        inmate.wait()
        monkeypatch.undo()
        assert probe.remove_cgroup(path)


def test_cores_and_memory_are_those_of_this_process() -> None:
    assert 1 <= probe.cores() <= (os.cpu_count() or 1)
    assert 1 << 20 < probe.memory_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_the_boot_has_one_name() -> None:
    assert probe.boot_id() == probe.boot_id() and len(probe.boot_id()) == 36
