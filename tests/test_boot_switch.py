"""Whether machines may boot from a head: its switch, the process that it starts, and what is told where none can."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from beo.boot import ether, firmware, giving, switch
from beo.boot.answers import Site
from beo.boot.switch import Status, Switch
from beo.config import Home
from beo.errors import BeoError, Conflict, NotFound, UsageError
from beo.headnode import boots
from beo.headnode.boots import Boots
from tests.cluster import ROOT, wait_for


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "head").mkdir()
    return Home(tmp_path)


def test_the_switch_is_what_beo_toml_says_until_somebody_says_otherwise(home: Home) -> None:
    assert switch.read(home) == Switch("", "off") and not switch.read(home).is_on
    home.toml.write_text("[boot]\ninterface = 'eth1'\n")
    assert switch.read(home) == Switch("eth1", "auto") and switch.read(home).is_on
    switch.write(home, Switch("eth1", "off"))
    assert not switch.read(home).is_on
    switch.switch_path(home).write_text('{"interface": "eth1", "mode": "maybe"}')
    with pytest.raises(Conflict, match=r"mode.*beo boot serve"):
        switch.read(home)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("interface = 'a b'", "interface"),
        ("mode = 'never'", "mode"),
        ("router = 'gateway'", "router"),
        ("dns = ['10.0.0.1', 'x']", "dns"),
        ("domain = 'a b'", "domain"),
    ],
)
def test_a_faulty_setting_is_refused_by_its_name(home: Home, line: str, why: str) -> None:
    home.toml.write_text(f"[boot]\n{line}\n")
    with pytest.raises(BeoError, match=why):
        home.config()


def test_addresses_must_be_of_the_interfaces_network() -> None:
    site = Site("10.77.0.1/24", "10.77.0.1:7425", {})
    giving.check_range(site, "10.77.0.100-10.77.0.199")
    with pytest.raises(UsageError, match=r"10\.78\.0\.1 .* not in 10\.77\.0\.0/24"):
        giving.check_range(site, "10.77.0.100-10.78.0.1")
    with pytest.raises(UsageError, match="range is empty"):
        giving.check_range(site, "")


@pytest.mark.parametrize(
    ("pool", "whose"),
    [
        ("10.77.0.1-10.77.0.9", "10.77.0.1 .*this head's own"),
        ("10.77.0.250-10.77.0.254", "10.77.0.254 .*the router's"),
        ("10.77.0.250-10.77.0.253", ""),
        ("10.77.0.255-10.77.0.255", "10.77.0.255 .*for all of the network"),
        ("10.77.0.0-10.77.0.0", "10.77.0.0 .*the network's own"),
    ],
)
def test_no_machine_is_given_an_address_that_is_taken(pool: str, whose: str) -> None:
    site = Site("10.77.0.1/24", "10.77.0.1:7425", {}, router="10.77.0.254")
    with pytest.raises(UsageError, match=whose) if whose else nullcontext():
        giving.check_range(site, pool)


def test_an_interface_that_is_not_there_or_has_no_address_is_told_with_the_cure() -> None:
    with pytest.raises(NotFound, match="no interface 'eth99'"):
        ether.address("eth99")
    assert ether.address("lo") == "127.0.0.1/8"


@pytest.mark.root
def test_without_root_it_says_so_and_what_to_do() -> None:
    program = (
        "import os; from beo.boot import ether; from beo.errors import BeoError; os.setgroups([]); os.setgid(65534);"
        "os.setuid(65534)\n"
        "for listen in (lambda: ether.datagrams('lo', 67), lambda: ether.solicitations('lo')):\n"
        "    try: listen()\n"
        "    except BeoError as error: print(error.exit_code, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert line.startswith("77 ") and "only root may" in line and "beo boot off" in line


def test_the_ipxe_of_a_cluster_comes_before_the_systems(home: Home, tmp_path: Path) -> None:
    system = tmp_path / "system"
    system.mkdir()
    assert firmware.find(home, system) == ({}, {})
    for name in ("undionly.kpxe", "ipxe.efi"):
        (system / name).write_bytes(b"x")
    kinds, paths = firmware.find(home, system)
    assert kinds == {"bios": "undionly.kpxe", "uefi": "ipxe.efi", "http": "ipxe.efi"}
    (home.path / "firmware").mkdir()
    (home.path / "firmware" / "undionly.kpxe").write_bytes(b"y")
    assert firmware.find(home, system)[1]["undionly.kpxe"] == str(home.path / "firmware" / "undionly.kpxe")
    assert "undionly.kpxe" in paths


# ---- the head and that process


class FakeHeads:
    """A process in the place of the server, and a head's loop around it."""

    def __init__(self, home: Home, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
        monkeypatch.setattr(boots, "ARGV", ("-c", program))
        monkeypatch.setattr(boots, "LOOK_S", 0.0)
        self.boots = Boots(home)

    def turn(self, leads: bool = True) -> int:
        """A tick; return the process."""
        self.boots.tick(leads, time.monotonic())
        return self.boots._child.pid


def is_there(pid: int) -> bool:
    return bool(pid) and os.path.exists(f"/proc/{pid}")


def test_it_runs_where_the_head_leads_and_the_switch_is_on_and_nowhere_else(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = FakeHeads(home, monkeypatch, "import time; time.sleep(60)")
    try:
        assert head.turn() == 0
        switch.write(home, Switch("eth0", "proxy"))
        assert head.turn(leads=False) == 0
        first = head.turn()
        assert is_there(first) and head.turn() == first
        switch.write(home, Switch("eth0", "dhcp"))  # another word: another process
        second = wait_for(lambda: (pid := head.turn()) != first and pid, "another process")
        assert not is_there(first) and is_there(second)
        os.kill(second, 9)
        third = wait_for(lambda: (pid := head.turn()) != second and pid, "it to be started anew")
        assert head.turn(leads=False) == 0 and not is_there(third)
        assert is_there(head.turn())
    finally:
        pid = head.boots._child.pid
        head.boots.close()
    assert not is_there(pid)


def test_what_ails_it_is_a_finding_of_the_head(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boots, "SILENT_S", 0.2)
    head = FakeHeads(home, monkeypatch, "raise SystemExit(1)")
    assert not head.boots.troubles
    switch.write(home, Switch("eth0", "proxy"))

    def troubles() -> tuple[str, ...]:
        head.turn()
        return head.boots.troubles

    try:
        assert "its server doesn't live" in wait_for(troubles, "it to be told")[0]
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        said = Status(1, now_s, "eth0", "", "", "proxy", "proxy", "", "", 0, 0, 0, ("two servers",))
        switch.say(home, said)
        assert troubles() == ("two servers",) and switch.ask(home) == said
        switch.switch_path(home).write_text("{")
        assert "can't be read" in wait_for(lambda: [t for t in troubles() if "read" in t], "the fault")[0]
    finally:
        head.boots.close()
