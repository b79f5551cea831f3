"""Real firmware and a real iPXE, in emulated machines without a disk, boot as far as the kernel that the script names.

What comes as the kernel is none, so iPXE refuses it and begins anew, as it is to: nothing ever restarts the machine.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.boot_site import fill
from tests.cluster import wait_for
from tests.net.hosts import network

QEMU, OVMF, IPXE = "qemu-system-x86_64", Path("/usr/share/OVMF/OVMF_CODE.fd"), Path("/usr/lib/ipxe/snponly.efi")
BOOT_S = 110.0  # on a busy machine; 15 s on an idle one
MISSING = [
    name for name, is_there in (("qemu-system-x86", shutil.which(QEMU)), ("ovmf", OVMF.exists())) if not is_there
]
MISSING += [] if IPXE.exists() else ["ipxe ipxe-qemu"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.net,
    pytest.mark.real,
    pytest.mark.skipif(bool(MISSING), reason=f"apt-get install -y {' '.join(MISSING)}"),
]

# The machine's cable: a tap beside the host's own network card, on a bridge.
CABLE = (
    "ip link add bridge0 type bridge && ip link set bridge0 up && ip link set eth0 master bridge0 && "
    "ip tuntap add tap0 mode tap && ip link set tap0 master bridge0 && ip link set tap0 up"
)
NET = ["-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no", "-device"]
MACHINES = {
    "bios": ["-machine", "pc", *NET, "e1000,netdev=n,mac=52:54:00:00:00:07"],
    "uefi": ["-machine", "q35", *NET, "virtio-net-pci,netdev=n,mac=52:54:00:00:00:07,romfile="],
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", MACHINES)
def test_firmware_boots_as_far_as_the_kernel(kind: str, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    log, serial = tmp_path / "server.log", tmp_path / "serial.log"
    flash = []
    if kind == "uefi":
        shutil.copy(OVMF.with_name("OVMF_VARS.fd"), tmp_path / "vars.fd")
        flash = [f"if=pflash,format=raw,readonly=on,file={OVMF}", f"if=pflash,format=raw,file={tmp_path / 'vars.fd'}"]
    with network(tmp_path / "net", 2) as net:
        head, host = net.hosts
        where = head.folder / "beo"
        image = fill(where)
        (where / "beo.toml").write_text("[boot]\nrange = '10.77.0.100-10.77.0.120'\n")
        key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
        (where / "cluster.json").write_text(json.dumps({"cluster": "c", "heads": ["10.77.0.1:7420"], "key": key}))
        with log.open("wb") as file:
            words = [sys.executable, "-m", "tests.net.boot_server", str(where), "dhcp"]
            head.start(*words, stdout=file, stderr=file)
        done = host.run("sh", "-c", CABLE)
        assert done.returncode == 0, done.stderr
        drives = [word for drive in flash for word in ("-drive", drive)]
        words = [QEMU, "-smp", "1", "-m", "512", "-display", "none", "-serial", f"file:{serial}", "-boot", "n"]
        host.start(*words, *drives, *MACHINES[kind])
        asked = f"10.77.0.100 asks for /kernel/{image.kernel}"
        wait_for(lambda: asked in log.read_text(), "the machine to ask for its kernel", BOOT_S)
    told = log.read_text()
    assert "52:54:00:00:00:07 REQUEST (ipxe): ACK 10.77.0.100" in told and "52:54:00:00:00:07 has its script" in told
    if kind == "uefi":  # SeaBIOS has an iPXE of its own in the card
        assert "52:54:00:00:00:07 REQUEST (uefi): ACK 10.77.0.100" in told and "10.77.0.100 has snponly.efi" in told
