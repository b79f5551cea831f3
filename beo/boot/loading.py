"""The TFTP server of one interface: sockets and files around tftp.py. A transfer has a socket of its own."""

from __future__ import annotations

import logging
import os
import selectors
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress

from beo.boot import ether, tftp
from beo.boot.tftp import Data, Raw, Transfer
from beo.errors import BeoError, NotFound, Refused, reason

PORT = 69
TRANSFERS_MAX = 256  # of 1 MB each at most; who finds them all taken asks again
REQUESTS_MAX = 64  # taken in one turn

log = logging.getLogger("beo.boot")


class _Run:
    """One transfer, its socket and its file."""

    def __init__(self, link: socket.socket, file: int, transfer: Transfer, peer: tuple[str, int], name: str) -> None:
        self.link, self.file, self.transfer, self.peer, self.name = link, file, transfer, peer, name

    def do(self, effects: list[Data | Raw]) -> None:
        for effect in effects:
            packet = effect.data if isinstance(effect, Raw) else b""
            if isinstance(effect, Data):
                packet = tftp.frame(effect.block, os.pread(self.file, effect.length, effect.offset))
            try:
                self.link.send(packet)
            except BlockingIOError:
                return  # it is sent again
            except OSError as error:  # nobody is there any more
                self.transfer.failed = reason(error)
                return


class Loader:
    """Gives firmware its iPXE."""

    def __init__(self, selector: selectors.BaseSelector, interface: str, server: str, files: Mapping[str, str]) -> None:
        """Listen; raises BeoError. server: this head's address; files: name -> path of all there is to give."""
        self._selector, self._interface, self._server, self._files = selector, interface, server, files
        self._link = ether.datagrams(interface, PORT)
        self._runs: dict[tuple[str, int], _Run] = {}
        self.sent = 0
        selector.register(self._link, selectors.EVENT_READ, self._hear)

    def close(self) -> None:
        """End all transfers."""
        for run in list(self._runs.values()):
            self._drop(run)
        self._link.close()

    def tick(self, now_s: float) -> None:
        """Send again what was lost."""
        for run in list(self._runs.values()):
            run.do(run.transfer.tick(now_s))
            self._look(run)
        self._now_s = now_s

    _now_s = 0.0

    def _hear(self, _: int) -> None:
        for _ in range(REQUESTS_MAX):
            try:
                data, peer = self._link.recvfrom(tftp.REQUEST_MAX_BYTES + 1)
            except OSError:
                return
            try:
                self._begin(tftp.parse(data), peer)
            except BeoError as error:
                if data[:2] != b"\0\5":  # never answer an error with one
                    with suppress(OSError):
                        self._link.sendto(tftp.error(error), peer)
                log.info("%s gets nothing by TFTP: %s", peer[0], error)

    def _begin(self, wish: tftp.Wish, peer: tuple[str, int]) -> None:
        if peer in self._runs:
            return  # its packet came twice
        name = tftp.plain_name(wish.name)
        if name not in self._files:
            raise NotFound(f"no file {name}", "", f"there are {', '.join(sorted(self._files)) or 'none'}")
        if len(self._runs) >= TRANSFERS_MAX:
            return
        try:
            file = os.open(self._files[name], os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound(f"no file {name}", reason(error), "apt-get install ipxe") from None
        try:
            link = self._link_to(peer)
        except BeoError:
            os.close(file)
            raise
        run = _Run(link, file, Transfer(os.fstat(file).st_size, wish.options, self._now_s), peer, name)
        self._runs[peer] = run
        self._selector.register(link, selectors.EVENT_READ, self._reading(run))
        run.do(run.transfer.begin())
        self._look(run)

    def _link_to(self, peer: tuple[str, int]) -> socket.socket:
        link = ether.datagrams(self._interface, 0, self._server)
        try:
            link.connect(peer)
        except OSError as error:  # it says that it comes from everybody's address, or from one without a way there
            link.close()
            raise Refused(f"nothing can be sent to {peer[0]}", reason(error), "") from None
        return link

    def _reading(self, run: _Run) -> Callable[[int], None]:
        def read(_: int) -> None:
            try:
                data = run.link.recv(tftp.REQUEST_MAX_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                run.transfer.failed = reason(error)
            else:
                run.do(run.transfer.hear(data, self._now_s))
            self._look(run)

        return read

    def _look(self, run: _Run) -> None:
        if run.transfer.done:
            self.sent += 1
            log.info("%s has %s", run.peer[0], run.name)
        elif run.transfer.failed:  # which is how OVMF asks for the size
            log.info("%s has no %s: %s", run.peer[0], run.name, run.transfer.failed)
        else:
            return
        self._drop(run)

    def _drop(self, run: _Run) -> None:
        if self._runs.pop(run.peer, None):
            self._selector.unregister(run.link)
            run.link.close()
            os.close(run.file)
