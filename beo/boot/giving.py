"""The DHCP server of one interface: sockets around answers.py, and whether it gives addresses or another one does.

With mode "auto" it asks around first. Two servers that give addresses on one network are the worst neighbours there
are, so it gives none where another does, and stops where another one turns up later.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface

from beo.boot import answers, dhcp, ether
from beo.boot.answers import Part, Site, Talks
from beo.boot.book import Book, Machine
from beo.boot.clerk import Clerk
from beo.boot.dhcp import Packet
from beo.errors import BeoError, UsageError

LISTEN_S = 3.0  # mode "auto": for another server to answer
ASK_EVERY_S = 0.9
LOOK_EVERY_S = 60.0  # and later, whether there is one now
KNOWN_S = 5.0  # a machine's record is asked for again then: its name or address may have been changed
KNOWN_MAX = 4_096
PACKETS_MAX = 64  # taken in one turn
HEARD_S = 600.0  # another server that was not heard for so long is told of no more

log = logging.getLogger("beo.boot")


def check_range(site: Site, pool: str) -> None:
    """Raise UsageError where the addresses to give can't be used on this network."""
    cure = "set [boot] range in beo.toml, like 10.77.0.100-10.77.0.199, on both heads"
    if not pool:
        raise UsageError("there are no addresses to give", "[boot] range is empty", cure)
    network = IPv4Interface(site.interface).network
    first, last = (IPv4Address(text.strip()) for text in pool.split("-"))
    for address in (first, last):
        if address not in network:
            raise UsageError(f"{address} of [boot] range is not in {network}", "the interface's network", cure)
    taken = {site.server: "this head's own", site.router: "the router's"}
    if network.prefixlen < 31:
        taken |= {str(network[0]): "the network's own", str(network[-1]): "for all of the network"}
    for text, whose in taken.items():
        if text and first <= IPv4Address(text) <= last:
            raise UsageError(f"{text} can't be given to a machine", f"it is in [boot] range, and is {whose}", cure)


class Giver:
    """Answers DHCP clients."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        clerk: Clerk,
        book: Book,
        site: Site,
        interface: str,
        mode: str,
        pool: str,
    ) -> None:
        """Listen; raises BeoError. mode: auto, proxy or dhcp. pool: [boot] range."""
        self._clerk, self._book, self._site, self._interface = clerk, book, site, interface
        self._mode, self._has_pool = mode, bool(pool)
        if mode == "dhcp" or pool:
            check_range(site, pool)
        self._talks = Talks()
        self._known: OrderedDict[str, tuple[Machine, float]] = OrderedDict()
        self._asked: set[str] = set()
        self.part: Part | None = "dhcp" if mode == "dhcp" else None if mode == "auto" and pool else "proxy"
        self.other = ""  # who else gives addresses here
        self._other_s = 0.0
        self._listen_until_s = self._ask_s = self._asked_s = -1.0
        self.notes: OrderedDict[str, float] = OrderedDict()
        self.answered = self.refused = 0
        self._xid = int.from_bytes(os.urandom(4), "big")
        self._now_s = 0.0
        self._sockets: dict[int, socket.socket] = {}
        try:
            for port in (dhcp.SERVER_PORT, dhcp.PXE_PORT):
                self._sockets[port] = ether.datagrams(interface, port, broadcast=True)
            with suppress(
                BeoError
            ):  # this machine's own DHCP client may have it; then another server isn't seen so soon
                self._sockets[dhcp.CLIENT_PORT] = ether.datagrams(interface, dhcp.CLIENT_PORT, broadcast=True)
        except BeoError:
            self.close()
            raise
        for port, link in self._sockets.items():
            selector.register(link, selectors.EVENT_READ, self._reading(port, link))

    def close(self) -> None:
        """Listen no more."""
        for link in self._sockets.values():
            link.close()

    def tick(self, now_s: float) -> None:
        """Ask around, if it is time."""
        self._now_s = now_s
        if self._listen_until_s < 0:
            self._listen_until_s = now_s + LISTEN_S
        if self.part is None and now_s >= self._listen_until_s:
            self.part = "dhcp"
            log.info("no other DHCP server answers on %s: addresses are given from here", self._interface)
        if self.other and now_s - self._other_s > HEARD_S:
            self.other = ""
        if now_s >= self._ask_s:
            self._asked_s, self._ask_s = now_s, now_s + (ASK_EVERY_S if self.part is None else LOOK_EVERY_S)
            self._ask_around()

    def troubles(self, now_s: float) -> tuple[str, ...]:
        """What a person should know."""
        for note in [note for note, said_s in self.notes.items() if now_s - said_s > HEARD_S]:
            del self.notes[note]
        found = list(self.notes)
        alone = not self.other and 0 <= self._listen_until_s <= now_s
        if self._mode == "auto" and not self._has_pool and alone:
            found.append("nobody gives addresses: set [boot] range in beo.toml, then 'beo down' and 'beo up'")
        if self.other and self.part == "dhcp":
            found.append(
                f"the DHCP server at {self.other} gives addresses on {self._interface}, too: end it, or --mode proxy"
            )
        return tuple(found)

    # ----

    def _ask_around(self) -> None:
        """Say DISCOVER in the name of this interface, to hear whether another server offers an address."""
        options = {dhcp.KIND: bytes((dhcp.DISCOVER,)), dhcp.PARAMETERS: bytes((dhcp.MASK, dhcp.ROUTER))}
        own = Packet(op=dhcp.REQUEST, mac=ether.mac(self._interface), xid=self._xid, broadcast=True, options=options)
        if link := self._sockets.get(dhcp.CLIENT_PORT):
            with suppress(OSError):
                link.sendto(dhcp.encode(own), ("255.255.255.255", dhcp.SERVER_PORT))

    def _reading(self, port: int, link: socket.socket) -> Callable[[int], None]:
        def read(_: int) -> None:
            for _ in range(PACKETS_MAX):
                try:
                    data, sender = link.recvfrom(dhcp.PACKET_MAX_BYTES + 1)
                except OSError:
                    return
                try:
                    self._hear(dhcp.parse(data), port, sender)
                except BeoError as error:
                    self.refused += 1
                    log.debug("from %s: %s", sender[0], error)

        return read

    def _hear(self, packet: Packet, port: int, sender: tuple[str, int]) -> None:
        if packet.xid == self._xid and packet.op == dhcp.REQUEST:
            return  # our own question
        if other := answers.is_other_server(packet, self._site.server):
            # Only who answers our own question is believed to be there: of a packet of any other, nobody knows whose it
            # is, and one would be enough to end all boots. But it is a reason to ask now.
            if packet.xid == self._xid and packet.op == dhcp.REPLY:
                self._found_other(other)
            else:
                self._ask_s = min(self._ask_s, self._asked_s + ASK_EVERY_S)
        if port == dhcp.CLIENT_PORT or packet.op != dhcp.REQUEST:
            return
        kind, note = self._talks.hear(packet, self._now_s)
        if note:
            self._note(note)
        if packet.kind == dhcp.DECLINE and self.part == "dhcp" and packet.address(dhcp.SERVER) == self._site.server:
            wanted = packet.address(dhcp.WANTED_ADDRESS)
            self._note(f"{wanted}, the address of {packet.mac}, is used by another machine: find it, or change one")
        if kind not in (answers.NOTHING, answers.SCRIPT) and kind not in self._site.firmware:
            self._note(f"a machine asks for an iPXE of kind {kind!r}, which isn't here: apt-get install ipxe")
        part = self.part
        if part is None:
            return  # it asks again
        if not answers.wants_machine(packet, part, self._site.server) or port == dhcp.PXE_PORT:
            self._answer(packet, part, kind, None, port, sender)
            return
        machine, known_s = self._known.get(packet.mac, (None, 0.0))
        if machine and self._now_s - known_s <= KNOWN_S:
            self._answer(packet, part, kind, machine, port, sender)
        elif packet.mac not in self._asked:
            self._asked.add(packet.mac)
            hostname = packet.text(dhcp.HOSTNAME)
            self._clerk.ask(
                lambda: self._book.lease(packet.mac, hostname),
                lambda found: self._leased(found, packet, kind, port, sender),
            )

    def _leased(self, found: Machine | BeoError, packet: Packet, kind: str, port: int, sender: tuple[str, int]) -> None:
        self._asked.discard(packet.mac)
        if isinstance(found, BeoError):
            self._note(f"{packet.mac} gets no address: {found}")
            return
        self._known.pop(packet.mac, None)
        self._known[packet.mac] = found, self._now_s
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        if self.part == "dhcp":
            self._answer(packet, "dhcp", kind, found, port, sender)

    def _answer(
        self, packet: Packet, part: Part, kind: str, machine: Machine | None, port: int, sender: tuple[str, int]
    ) -> None:
        reply = answers.answer(packet, part, self._site, kind, machine, port)
        if reply is None:
            return
        host, to = sender if port == dhcp.PXE_PORT and sender[0] != dhcp.NONE else (reply.host, reply.port)
        try:
            self._sockets[port].sendto(dhcp.encode(reply.packet), (host, to or dhcp.CLIENT_PORT))
        except OSError as error:
            log.warning("can't answer %s: %s", packet.mac, error)
            return
        self.answered += 1
        what = f" {reply.packet.yiaddr}" if reply.packet.yiaddr != dhcp.NONE else ""
        said = dhcp.NAMES[reply.packet.kind]
        log.info("%s %s (%s): %s%s", packet.mac, dhcp.NAMES[packet.kind], kind or "no boot", said, what)

    def _found_other(self, other: str) -> None:
        self.other, self._other_s = other, self._now_s
        if self._mode == "auto" and self.part != "proxy":
            self.part = "proxy"
            log.warning("the DHCP server at %s gives addresses on %s: none are from here", other, self._interface)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            log.warning("%s", note)
        self.notes[note] = self._now_s
        while len(self.notes) > 8:
            self.notes.popitem(last=False)
