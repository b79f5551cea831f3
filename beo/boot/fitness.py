"""What a head lacks to boot machines, with the line that cures it: for `beo doctor`, where booting is set up."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable, Iterator

from beo.config import Home
from beo.errors import BeoError
from beo.messages import Finding, MachineView

# What is looked for -> the package that has it. The distribution's iPXE is what firmware gets.
FILES = {"/usr/lib/ipxe/undionly.kpxe": "ipxe", "/usr/lib/ipxe/snponly.efi": "ipxe"}
PROGRAMS = {"mksquashfs": "squashfs-tools", "mmdebstrap": "mmdebstrap", "busybox": "busybox-static"}
CONNECT_S = 1.0
NAMED_MAX = 20  # machines that were refused: after a power cut, all of them


def is_wanted(home: Home, machines: Iterable[MachineView]) -> bool:
    """Whether machines are to boot from this machine: it is a head, and [boot] or the list of machines says so."""
    try:
        return home.who_file.exists() and (bool(home.config().boot.range) or any(True for _ in machines))
    except BeoError:
        return False


def findings(home: Home, machines: Iterable[MachineView]) -> list[Finding]:
    """Look at this head's machine, and at the machines that were refused lately."""
    return [*_packages(), *_server(home), *_refused(machines)]


def _packages() -> Iterator[Finding]:
    missing = {package: file for file, package in reversed(FILES.items()) if not os.path.exists(file)}
    missing |= {package: program for program, package in PROGRAMS.items() if not shutil.which(program)}
    if missing:
        packages = " ".join(sorted(missing))
        what = f"machines can't boot from here: there is no {', '.join(sorted(missing.values()))}"
        yield Finding("boot", what, f"apt-get install -y {packages}")


def _server(home: Home) -> Iterator[Finding]:
    try:
        host, port = home.who().control.rpartition(":")[0], home.config().boot.port
    except BeoError:
        return  # that is told elsewhere
    if host.startswith("127."):
        what = f"the head listens at {host}, where no machine that boots reaches it"
        yield Finding("boot", what, "'beo down', then 'beo head init'")
        return
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError:
        yield Finding("boot", f"no server of boots listens at {host}:{port}", "'beo boot serve' as root")


def _refused(machines: Iterable[MachineView]) -> list[Finding]:
    refused = [view for view in machines if view.why]
    return [
        Finding("boot", f"{view.name} doesn't join: {view.why}", "see 'beo node list'") for view in refused[:NAMED_MAX]
    ]
