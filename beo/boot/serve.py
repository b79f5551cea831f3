"""The server of boots beside a head: ``python -m beo.boot.serve``, with BEO_DIR naming the cluster.

One process and one loop for all that a machine asks until it is a worker: DHCP, TFTP, HTTP, and whether there is an
IPv6 router. It keeps nothing: what must be remembered is in the heads' journal, so that the other head goes on with it.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import selectors
import socket
import sys
import time
from contextlib import suppress
from ipaddress import IPv4Interface

from beo import daemon, wire
from beo.boot import ether, firmware, script, solicit, switch
from beo.boot.book import Book, Machine, Shelf
from beo.boot.clerk import Clerk
from beo.boot.desk import Desk
from beo.boot.giving import Giver
from beo.boot.loading import Loader
from beo.boot.pages import Desk as AnyDesk
from beo.boot.pages import Pages
from beo.boot.records import Records
from beo.boot.sharing import keep_up
from beo.boot.shelf import Folder
from beo.boot.storm import Storm
from beo.boot.switch import Status, Switch
from beo.boot.web import Web
from beo.child import end_with_parent
from beo.config import Home, home
from beo.errors import BeoError, Conflict, UsageError, reason

TICK_S = 0.1
SAY_EVERY_S = 0.5
DESCRIPTORS = 4_096  # of which connections, transfers and files take some hundreds
SOLICITATIONS_MAX = 32  # taken in one turn
_HOPS_BYTES = socket.CMSG_SPACE(4)

log = logging.getLogger("beo.boot")


class Router:
    """Says that it is none, to whoever looks for one."""

    def __init__(self, selector: selectors.BaseSelector, interface: str) -> None:
        """Listen; raises BeoError."""
        self._link = ether.solicitations(interface)
        self._word = solicit.advertisement(ether.mac(interface))
        self._scope = socket.if_nametoindex(interface)
        self.said = 0
        selector.register(self._link, selectors.EVENT_READ, self._hear)

    def close(self) -> None:
        """Listen no more."""
        self._link.close()

    def _hear(self, _: int) -> None:
        for _ in range(SOLICITATIONS_MAX):
            try:
                data, more, _, sender = self._link.recvmsg(solicit.SOLICITATION_MAX_BYTES + 1, _HOPS_BYTES)
            except OSError:
                return
            hops = next((value[0] for _, kind, value in more if kind == socket.IPV6_HOPLIMIT and value), 0)
            if not solicit.is_solicitation(data, hops):
                continue
            target = solicit.ALL_NODES if sender[0].partition("%")[0] == "::" else sender[0]
            with suppress(OSError):
                self._link.sendto(self._word, (target, 0, 0, self._scope))
                self.said += 1


class Server:
    """All of it, on one interface."""

    def __init__(self, where: Home, chosen: Switch, book: Book, shelf: Shelf, desk: AnyDesk) -> None:
        """Listen; raises BeoError with what is wrong."""
        if not chosen.is_on:
            raise UsageError("no machine may boot from here", "the switch is off", "'beo boot serve --interface IF'")
        self._home, self._chosen, self._book, self._shelf = where, chosen, book, shelf
        self._config = where.config().boot
        kinds, paths = firmware.find(where)
        self._number = ether.number(chosen.interface)
        self._site = firmware.site_of(where, chosen.interface)
        self._down = ""
        self._stopping = False
        self._say_s = 0.0
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < DESCRIPTORS:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(DESCRIPTORS, hard), hard))
        self._selector = selectors.DefaultSelector()
        self._boots, self._others = Clerk("boots"), Clerk("others")
        for clerk in (self._boots, self._others):
            self._selector.register(clerk, selectors.EVENT_READ, clerk.hear)
        own, interface = self._site.server, chosen.interface
        storm = self._storm = Storm(random.SystemRandom().uniform)
        asking = self._boots, self._others
        self._pages = Pages(asking, book, shelf, desk, storm, paths, self._site.http, self._write)
        listeners = [ether.listener("", host, self._config.port) for host in self._hosts()]
        self._web = Web(self._selector, listeners, self._pages.route)
        self._giver = Giver(self._selector, self._boots, book, self._site, interface, chosen.mode, self._config.range)
        self._loader = Loader(self._selector, interface, own, paths)
        self._router: Router | None = None
        self._lacks: tuple[str, ...] = ()
        try:
            self._router = Router(self._selector, interface)
        except BeoError as error:  # a kernel without IPv6: machines wait 16 s longer, and boot
            self._lacks = (str(error),)
        if not kinds:
            self._lacks += ("there is no iPXE here, so no firmware gets any: apt-get install ipxe",)

    def stop(self, *_: object) -> None:
        """Let `run` return; also a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Serve until stopped."""
        log.info("machines may boot by %s from %s (%s)", self._chosen.interface, self._site.http, self._chosen.mode)
        next_s = 0.0
        while not self._stopping:
            now_s = time.monotonic()
            if now_s >= next_s:
                next_s = now_s + TICK_S
                self._tick(now_s)
            for key, mask in self._selector.select(max(0.0, next_s - time.monotonic())):
                key.data(mask)

    def close(self) -> None:
        """Release everything."""
        self._web.close()
        self._loader.close()
        self._giver.close()
        if self._router:
            self._router.close()
        for clerk in (self._boots, self._others):
            clerk.close()
        self._selector.close()
        switch.status_path(self._home).unlink(missing_ok=True)

    # ----

    def _hosts(self) -> list[str]:
        """Where HTTP is served: on the interface, and where the head itself listens, for boxes with `boot.sh`."""
        found = [self._site.server]
        if self._home.who_file.exists():
            host = self._home.who().control.rpartition(":")[0]
            with suppress(ValueError):
                if str(IPv4Interface(host).ip) not in found:
                    found.append(host)
        return found

    def _write(self, machine: Machine) -> str:
        """The boot script of a machine. In a clerk's thread: it reads files."""
        cluster = self._home.cluster()
        image = self._shelf.image(machine.image)
        boots = [self._site.http]
        if self._home.who_file.exists():
            places = self._home.who().others.values()
            boots += [f"{place.control.rpartition(':')[0]}:{self._config.port}" for place in places]
        pin = wire.bytes_of_key(cluster.key).hex()
        prefix = IPv4Interface(self._site.interface).network.prefixlen
        return script.boot(machine, image, cluster.heads, tuple(boots), pin, prefix)

    def _look(self) -> None:
        """End where the interface isn't what it was: what listens hears by none that comes in its place."""
        name, own = self._chosen.interface, self._site.interface
        try:
            own, self._down = ether.address(name), ""
        except Conflict as error:  # down, or without its address for now: what listens goes on when that is back
            self._down = str(error)
        if own != self._site.interface or ether.number(name) != self._number:
            why = f"it has {own} now, and had {self._site.interface}" if own != self._site.interface else ""
            raise Conflict(f"{name} isn't the interface any more that it was", why, "a new start takes it as it is")

    def _tick(self, now_s: float) -> None:
        self._giver.tick(now_s)
        self._loader.tick(now_s)
        self._web.tick(now_s)
        if now_s >= self._say_s:
            self._say_s = now_s + SAY_EVERY_S
            self._look()
            down = (self._down,) if self._down else ()
            status = Status(
                os.getpid(),
                time.clock_gettime(time.CLOCK_BOOTTIME),
                self._chosen.interface,
                self._site.interface,
                self._site.http,
                self._chosen.mode,
                self._giver.part or "",
                self._config.range,
                self._giver.other,
                self._giver.answered,
                self._pages.sent,
                len(self._web),
                (*down, *self._lacks, *self._giver.troubles(now_s)),
                self._pages.referred,
                self._storm.givers(now_s),
            )
            try:
                switch.say(self._home, status)
            except OSError as error:  # a full disk is no reason not to boot machines
                log.warning("can't say how it goes: %s", reason(error))


def make(where: Home, chosen: Switch | None = None) -> Server:
    """Return the server of a head's folder. chosen: instead of what its switch says."""
    return Server(where, chosen or switch.read(where), Records(where), Folder(where), Desk(where))


def main() -> int:
    """Serve until SIGTERM or SIGINT, or until the head ends; 0 for a clean end."""
    if not end_with_parent():
        return 1
    keep_up(home())
    return daemon.main("boot", lambda: make(home()))


if __name__ == "__main__":
    sys.exit(main())
