"""What nodes are called behind the walls: this one's host name, and names of the job's nodes that resolve.

Open MPI tells nodes apart by their host names, and by them MPICH tells which ranks of *different* worlds
(MPI_Comm_spawn) share a host. Several nodes of one machine would all have that machine's name: MPICH would then wait
for words in a shared memory that isn't there. Names of nodes are in no DNS, and looking for one there may take seconds,
so they stand in the walls' own /etc/hosts.
"""

from __future__ import annotations

import os
import socket

from beo.worker import contain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

HOSTS = "/etc/hosts"
HOST_NAME_LENGTH_MAX = 64
"""The kernel's limit; a longer name is cut."""


class Names:
    """The names behind the walls of one warden. kind: of the walls. folder: where it may keep a file."""

    def __init__(self, kind: str, folder: str) -> None:
        self._walled = kind != "subreaper"
        self._path = os.path.join(folder, "hosts")
        self._machine = ""  # the machine's own file, without our lines
        self._written: str | None = None

    def settle(self, node: str, addresses: Mapping[str, str]) -> None:
        """Call this host `node`, and let the names of `addresses` resolve. What the kernel refuses is left as it is."""
        if not self._walled:
            return
        try:
            name = node[:HOST_NAME_LENGTH_MAX]
            if socket.gethostname() != name:
                socket.sethostname(name)
            self._write("".join(f"{address}\t{name}\n" for name, address in addresses.items() if address))
        except OSError as error:
            print(f"beo: the names of nodes do not resolve in jobs: {error}", flush=True)

    def _write(self, lines: str) -> None:
        if lines == self._written:
            return
        fresh = self._written is None
        if fresh:
            with open(HOSTS, encoding="utf-8", errors="surrogateescape") as file:
                self._machine = file.read()
        with open(self._path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{self._machine.rstrip()}\n{lines}")
        if fresh:
            os.chmod(self._path, 0o644)
            contain.bind(self._path, HOSTS)
        self._written = lines
