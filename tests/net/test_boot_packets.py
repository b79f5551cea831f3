"""Each kind of client boots from the server of boots over a real network, as far as its script, within seconds."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.boot_site import fill
from tests.cluster import wait_for
from tests.net.hosts import network

pytestmark = [pytest.mark.root, pytest.mark.net]

FILES = {"bios": "undionly.kpxe", "uefi": "snponly.efi", "arm64": "snponly-arm64.efi"}


def boot(folder: Path, mode: str) -> dict[str, Any]:
    """What all kinds of clients got from a server of that mode."""
    (folder / "net").mkdir()
    with network(folder / "net", 2) as net:
        head, machine = net.hosts
        where = head.folder / "beo"
        fill(where)
        (where / "firmware").mkdir()
        (where / "beo.toml").write_text("[boot]\nrange = '10.77.0.100-10.77.0.120'\n")
        (where / "cluster.json").write_text(
            json.dumps({"cluster": "c", "heads": ["10.77.0.1:7420"], "key": "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"})
        )
        for name in FILES.values():
            (where / "firmware" / name).write_bytes(name.encode() * 1_000)
        log = (folder / "server.log").open("wb")
        server = head.start(sys.executable, "-m", "tests.net.boot_server", str(where), mode, stdout=log, stderr=log)
        ready = wait_for(
            lambda: server.poll() is not None or (where / "run" / "boot.json").exists(), "the server of boots"
        )
        assert ready and server.poll() is None, (folder / "server.log").read_text()
        done = machine.run(sys.executable, "-m", "tests.net.booter", "all", "10.77.0.1")
        assert done.returncode == 0, done.stderr + (folder / "server.log").read_text()
        found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_each_kind_of_client_boots_as_far_as_its_script(tmp_path: Path) -> None:
    found = boot(tmp_path, "dhcp")
    assert bytes.fromhex(found["router"][0]["data"])[6:8] == b"\0\0"
    for number, kind in enumerate(("bios", "uefi", "arm64", "http", "ipxe", "plain")):
        offer, ack = found[kind]["replies"]
        assert (offer["kind"], ack["kind"]) == ("OFFER", "ACK")
        assert offer["yiaddr"] == ack["yiaddr"] == f"10.77.0.{100 + number}" and offer["file"] == ack["file"]
        if kind in FILES:
            assert ack["file"] == FILES[kind]
            assert found[kind]["loads"]["sha256"] == hashlib.sha256(FILES[kind].encode() * 1_000).hexdigest()
    assert found["http"]["loads"]["text"].startswith("snponly.efi")
    assert found["ipxe"]["loads"]["text"].startswith("#!ipxe")
    assert " beo.mac=52:54:00:00:00:04 " in found["script"]["text"] and " beo.name=pc05" in found["script"]["text"]
