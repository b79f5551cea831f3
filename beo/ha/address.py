"""The service address: one address for a cluster, which the primary has, whichever head it is.

It stands for as long as `renew` is called, by the loop that may act; the kernel takes it from a machine whose daemon is
stopped or dead, within 1.1 s. All of it happens in a thread: the kernel may let a caller wait.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface
from typing import Protocol

from beo.address import interface_of
from beo.errors import reason
from beo.ha import arp
from beo.ha.standing import NEVER, VALID_S, Act, Standing
from beo.netlink import Found, Netlink

ETHERNET = 1  # ARPHRD_ETHER: what has ARP
FRAMES_MAX = 10_000  # read at a time when listening for others: a flood is not read to its end
END_S = 5.0  # for the last words to the kernel

log = logging.getLogger("beo.ha")


class Kernel(Protocol):
    """What of the kernel is used: `Netlink`."""

    def put(self, index: int, address: IPv4Address, prefix: int, valid_s: int) -> None:
        """Give an interface an address for so many seconds."""

    def remove(self, index: int, address: IPv4Address, prefix: int) -> None:
        """Take an address from an interface."""

    def addresses(self) -> list[Found]:
        """Return every IPv4 address of this machine."""


class Fault(Exception):
    """Why the address can't be had, in beo's words."""


class ServiceAddress:
    """One service address: `[ha] address`, on `[ha] interface`.

    listen: where the head listens, HOST:PORT; its interface is taken where no other is named or fits.
    """

    def __init__(self, address: str, interface: str, listen: str, kernel: Kernel | None = None) -> None:
        """Start the thread; nothing is done yet. Raises OSError where the kernel can't be spoken to."""
        self._wanted = IPv4Interface(address)
        self._has_prefix = "/" in address
        self._named = interface
        self._listen = listen.rpartition(":")[0]
        self._own_line = None if kernel else Netlink()
        self._kernel: Kernel = kernel or self._own_line or Netlink()
        self._standing = Standing()
        self._place: tuple[int, str, int] = (0, "", 32)  # the interface's number and name, the prefix
        self._troubles: dict[str, str] = {}  # by what has it: the interface, announcing, another machine
        self._ear: socket.socket | None = None
        self._ended = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="service address", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """The address without its prefix."""
        return str(self._wanted.ip)

    @property
    def is_held(self) -> bool:
        """Whether this machine has it now."""
        with self._change:
            return self._standing.is_held(_now_s())

    @property
    def troubles(self) -> list[str]:
        """What is wrong, a line each."""
        with self._change:
            return list(self._troubles.values())

    def renew(self) -> None:
        """Have it, for now: to be said again and again, only while the head may act."""
        with self._change:
            now_s = _now_s()
            was_due_s = self._standing.due_s(now_s)
            self._standing.renew(now_s)
            if self._standing.due_s(now_s) < was_due_s:
                self._change.notify()

    def release(self) -> None:
        """Let it go, at once."""
        with self._change:
            self._standing.release()
            if self._standing.due_s(0.0) < NEVER:
                self._change.notify()

    def close(self) -> None:
        """Let it go, and end."""
        with self._change:
            self._standing.release()
            self._ended = True
            self._change.notify()
        self._thread.join(END_S)
        if not self._thread.is_alive() and self._own_line:
            self._own_line.close()

    def _run(self) -> None:
        while True:
            with self._change:
                now_s = _now_s()
                acts = self._standing.acts(now_s)
                if not acts:
                    if self._ended:
                        return
                    due_s = self._standing.due_s(now_s)
                    self._change.wait(None if due_s == NEVER else max(0.0, due_s - now_s))
                    continue
            for act in acts:
                self._do(act, now_s)

    def _do(self, act: Act, now_s: float) -> None:
        """Do one act, without the lock: the loop must never wait for the kernel."""
        match act:
            case Act.PUT:
                self._put(now_s)
            case Act.REMOVE:
                index, name, prefix = self._place
                with suppress(OSError):  # the kernel was faster
                    self._kernel.remove(index, self._wanted.ip, prefix)
                self._hush()
                log.info("%s is let go", self.address, extra={"interface": name})
            case Act.ANNOUNCE:
                self._announce()
            case Act.PROBE:
                self._probe()
            case Act.LISTEN:
                self._hear()

    def _put(self, now_s: float) -> None:
        held = self._standing.is_held(now_s)
        try:
            if not held:
                self._place = self._find()
            index, name, prefix = self._place
            self._kernel.put(index, self._wanted.ip, prefix, VALID_S)
        except (Fault, OSError) as error:
            with self._change:
                self._standing.refused(now_s)
            self._tell("interface", str(error) if isinstance(error, Fault) else self._refusal(error))
            return
        with self._change:
            # Counted from before the call, so that it is never taken to stand for longer than the kernel lets it.
            self._standing.put(now_s)
        if not held:
            log.info("%s/%d is ours", self.address, prefix, extra={"interface": name})
        self._tell("interface", "")

    def _find(self) -> tuple[int, str, int]:
        """Return the interface that shall have the address, and the prefix to give it with. Raises Fault, OSError."""
        names = dict(socket.if_nameindex())
        found = self._kernel.addresses()
        own = [one for one in found if one.address == self._wanted.ip and one.valid_s > VALID_S]
        if own:
            where = names.get(own[0].index, "?")
            cure = "set [ha] address to one that no machine has"
            raise Fault(f"{self.address} is an address of this machine itself (on {where}): {cure}")
        near = [one for one in found if one.valid_s > VALID_S and self._wanted.ip in one.network and one.prefix < 32]
        index = self._choose(names, [one.index for one in near])
        prefixes = [one.prefix for one in near if one.index == index]
        prefix = self._wanted.network.prefixlen if self._has_prefix else min(prefixes, default=32)
        return index, names[index], prefix

    def _choose(self, names: dict[int, str], near: list[int]) -> int:
        numbers = {name: index for index, name in names.items()}
        if self._named:
            if self._named not in numbers:
                raise Fault(f"no interface {self._named!r} here: set [ha] interface to one of {', '.join(numbers)}")
            return numbers[self._named]
        if near:
            return near[0]
        with suppress(ValueError):  # a head that listens on a name
            if (name := interface_of(self._listen)) in numbers and name != "lo":
                return numbers[name]
        raise Fault(
            f"no interface is in the network of {self.address}: set [ha] interface to one of {', '.join(numbers)}"
        )

    def _refusal(self, error: OSError) -> str:
        what = f"can't have {self.address} on {self._place[1] or 'any interface'} ({reason(error)})"
        cure = "run the head as root" if error.errno in (errno.EPERM, errno.EACCES) else "see 'ip address'"
        return f"{what}: {cure}"

    def _announce(self) -> None:
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
                if (mac := _bind(mouth, self._place[1])) is None:
                    return
                for frame in arp.announcements(mac, self._wanted.ip):
                    mouth.send(frame)
        except OSError as error:
            self._tell("announcing", f"can't tell others where {self.address} is ({reason(error)}): see 'ip link'")
        else:
            self._tell("announcing", "")

    def _probe(self) -> None:
        self._hush()
        try:
            self._ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(arp.TYPE))
            self._ear.setblocking(False)
            if (mac := _bind(self._ear, self._place[1], arp.TYPE)) is not None:
                self._ear.send(arp.probe(mac, self._wanted.ip))
        except OSError:
            self._hush()  # told when announcing

    def _hear(self) -> None:
        if self._ear is None:
            return
        others: set[str] = set()
        with suppress(OSError):  # nothing more has come, or the interface went
            mac = self._ear.getsockname()[4]
            for _ in range(FRAMES_MAX):
                others.add(arp.claimant(self._ear.recv(2048), mac, self._wanted.ip))
        self._hush()
        others -= {"", *_own_macs()}  # a kernel answers on each of its interfaces for the addresses of all
        told = f"{self.address} is also at {', '.join(sorted(others))}: take it from that machine" if others else ""
        self._tell("another", told)

    def _hush(self) -> None:
        if self._ear is not None:
            self._ear.close()
            self._ear = None

    def _tell(self, what: str, trouble: str) -> None:
        """Keep what is wrong, and log it once."""
        with self._change:
            before = self._troubles.pop(what, "")
            if trouble:
                self._troubles[what] = trouble
        if trouble and trouble != before:
            log.warning("%s", trouble)


def _bind(packet: socket.socket, interface: str, protocol: int = 0) -> bytes | None:
    """Bind a socket for frames and return the interface's own hardware address; None where it has no ARP."""
    packet.bind((interface, protocol))
    name = packet.getsockname()
    return bytes(name[4]) if name[3] == ETHERNET and len(name[4]) == arp.MAC_BYTES else None


def _own_macs() -> list[str]:
    found = []
    for _, name in socket.if_nameindex():
        with suppress(OSError), open(f"/sys/class/net/{name}/address") as file:
            found.append(file.read().strip())
    return found


def _now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
