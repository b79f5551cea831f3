"""A rank that is a machine of its own, so that it can be moved while others hold connections to it.

It has processes, mounts, shared memory and a network of its own, with an address that only its job knows: rank R has
`10.0.0.1` + R on every node, and a MAC made of that. The ranks of a job are joined by a VXLAN: each has one end, which
listens at a port of its node's address, and knows where the others' are. So a rank needs nothing of the network but
that its node can send UDP to the others, and two ranks need not know whether they are on the same node.

An end that comes back has another MAC at first: what was sent to it again meanwhile is for nobody, where the kernel
would else say that there is no such connection, which ends it (`let_in`).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from beo.errors import BeoError, reason
from beo.netlink import FOREVER_S, Netlink
from beo.worker import contain

INTERFACE = "beo0"
FIRST_PORT = 47_100  # of a node, for rank 0's end of any job; the next rank's has the next
MTU = 1400  # what fits into a packet of Ethernet with all that VXLAN puts before it
FIRST_ADDRESS = IPv4Address("10.0.0.1")
PREFIX = 8
GONE_S = 30.0  # the end of a rank that was killed here is taken away by the kernel when it comes to it
LAST_WORDS_S = 60.0  # for those to come back who are to hear them: their images may be large
RANKS_MAX = 1024  # each has a port, and is told of each other
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Places:
    """The ends of a job. number: of its VXLAN. first_port: rank 0's, on whatever node; the others' follow. hosts: the
    address of each rank's node. is_back: its ranks were elsewhere before.
    """

    number: int
    first_port: int
    hosts: tuple[str, ...]
    is_back: bool = False

    @classmethod
    def read(cls, path: str) -> Places:
        """Read what `text` has written; OSError or ValueError where it isn't that."""
        words = json.loads(Path(path).read_bytes())
        return cls(words["number"], words["first_port"], tuple(words["hosts"]), words["is_back"])

    def text(self) -> str:
        """Return it for a file."""
        return json.dumps(
            {"number": self.number, "first_port": self.first_port, "hosts": self.hosts, "is_back": self.is_back}
        )


def mac_of(rank: int, is_in: bool = True) -> bytes:
    """The MAC of a rank's end; is_in: that to which the others send."""
    return bytes((2, 0xBE, 0 if is_in else 1)) + (rank + 1).to_bytes(3, "big")


def address_of(rank: int) -> IPv4Address:
    """The address of a rank."""
    return FIRST_ADDRESS + rank


def go(rank: int, places: Places) -> int:
    """Give the next child a machine of its own; BeoError where the kernel refuses. It returns twice, as `os.fork` does.

    Nobody reaches it until `let_in`.
    """
    shm = os.statvfs("/dev/shm")
    try:
        node = Netlink()  # a socket stays in the network in which it was made
        contain.enter("pidns")
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "no network namespace")
        _join(node, rank, places)
    except OSError as error:
        why = f"{reason(error)}: a network of its own is refused, or this kernel has no VXLAN"
        raise BeoError(f"rank {rank} can't be a machine of its own", why, "submit it without --migratable") from None
    pid = os.fork()
    if not pid:
        contain.settle("pidns")
        contain.limit_shm("pidns", shm.f_blocks * shm.f_frsize)
    return pid


def let_in(rank: int, places: Places) -> None:
    """Let the others reach it, and it them: all the connections that it has had are there again."""
    own = Netlink()
    index = socket.if_nametoindex(INTERFACE)
    own.raise_up(index, mac_of(rank))  # with which the kernel forgets what MACs the others have
    for other in range(len(places.hosts)):
        if other != rank:
            own.place(index, address_of(other), mac_of(other))
    own.close()


def await_last_words() -> None:
    """Wait until the others have all that this rank had sent when it ended: connections outlive it, but not its end.

    Who isn't let in yet, or lost a packet, gets it again until then. To be called inside: what /proc shows is there.
    """
    until_s = time.monotonic() + LAST_WORDS_S
    while _is_unheard() and time.monotonic() < until_s:
        time.sleep(0.01)


def _is_unheard() -> bool:
    """Whether something is sent here that was not acknowledged: tx_queue of proc_net_tcp.txt of the kernel."""
    rows = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    return any(int(row.split()[4].partition(":")[0], 16) for row in rows)


def leave() -> None:
    """Take this rank's end away: another may be made at once."""
    own = Netlink()
    with suppress(OSError):
        own.drop(socket.if_nametoindex(INTERFACE))
    own.close()


def _join(node: Netlink, rank: int, places: Places) -> None:
    own = Netlink()
    into = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    until_s = time.monotonic() + GONE_S
    try:
        while True:
            try:
                here = IPv4Address(places.hosts[rank])
                node.tunnel(INTERFACE, places.number, places.first_port + rank, here, MTU, into)
                break
            except OSError as error:
                if error.errno != errno.EEXIST or time.monotonic() > until_s:
                    raise
                time.sleep(0.05)
        own.raise_up(socket.if_nametoindex("lo"))
        index = socket.if_nametoindex(INTERFACE)
        own.put(index, address_of(rank), PREFIX, FOREVER_S)
        own.raise_up(index, mac_of(rank, is_in=False))
        for other, host in enumerate(places.hosts):
            if other != rank:
                own.lead(index, mac_of(other), IPv4Address(host), places.first_port + other)
    finally:
        os.close(into)
        own.close()
        node.close()
