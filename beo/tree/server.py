"""Serves the tree beside a head: ``python -m beo.tree.server PID`` of that head, with BEO_DIR naming the cluster.

A process of its own, so that files never delay a heartbeat. The head tells it its role (tie.py): where the head leads,
this serves everybody and gives the other head's tree a copy of its log; else it takes copies, and sends everybody
elsewhere. Ended or killed, it is started anew, and goes on from its disk.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time

import msgspec

from beo import daemon, lockfile, votes, wire
from beo.accounts import Accounts
from beo.birth import free_address
from beo.bulk.desk import Desk
from beo.bulk.words import Who
from beo.child import end_with_parent
from beo.config import Home, home, write_durably
from beo.errors import Conflict
from beo.tree import leases
from beo.tree import words as w
from beo.tree.decide import Room
from beo.tree.following import Follower
from beo.tree.leading import Leader
from beo.tree.tie import HEAD, SAY_EVERY_S, TREE, Known, Report, Role, Tie, read_keys
from beo.tree.volume import Volume

TICK_S = 0.05
QUEUE_LENGTH_MAX = 1_024  # messages for one peer that doesn't read, of up to a MiB
PEER = "peer"  # the role of the other head's tree, which has the same key
PORT_STEP = 3  # behind the control plane's port: the tree's, where it is free

log = logging.getLogger("beo.tree")


class Server:
    """The tree of one head's folder."""

    def __init__(self, where: Home) -> None:
        """Take the lock, open the volume, listen."""
        self._folder = where.head / "tree"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lockfile.hold(self._folder / "lock")
        self._secret = where.secret("head")
        files = where.config().files
        self._level = files.level
        self._room = Room(user_bytes_max=files.user_bytes_max, user_inodes_max=files.user_files_max)
        self._own = wire.public_of(self._secret)
        self._accounts = Accounts()
        self._keys: dict[str, Known] = {}
        self._keys_number = -1
        self._waker = wire.Waker()
        self._failure: BaseException | None = None
        self._stopping = False
        self._volume = Volume(self._folder, lambda index: self._waker.wake(), self._failed)
        self._tie = Tie(self._folder, TREE, HEAD)
        self._router = self._listen(where.who().control)
        self._desk = Desk(where, self._secret, self._router.address, files.bulk == "plain")
        self._role = Role(-1, False, 0, "", False, 0.0, -1)
        self._part: Leader | Follower | None = None
        self._context = wire.new_context()
        self._poller = wire.Poller()
        self._router.register(self._poller)
        self._poller.register(self._tie.fileno(), wire.POLLIN)
        self._poller.register(self._waker.fileno(), wire.POLLIN)
        self._say_s = 0.0

    def stop(self, *_: object) -> None:
        """Let `run` return; also a signal handler."""
        self._stopping = True
        self._waker.wake()

    def run(self) -> None:
        """Serve until stopped; raises what the disk failed with."""
        log.info("the tree listens at %s: %d inodes", self._router.address, len(self._volume.state.inodes))
        next_tick_s = 0.0
        while not self._stopping:
            self._poller.poll(max(0, int((next_tick_s - time.monotonic()) * 1000) + 1))
            self._waker.clear()
            if self._failure:
                raise self._failure
            if isinstance(word := self._tie.hear(), Role):
                self._become(word)
            self._receive()
            if self._part:
                self._part.turn()
            now = time.monotonic()
            if now >= next_tick_s:
                next_tick_s = now + TICK_S
                self._tick(now)

    def close(self) -> None:
        """Release everything; what was taken is on the disk."""
        self._leave_part()
        self._desk.close()
        self._router.close()
        self._tie.close()
        self._volume.close()
        self._context.destroy(linger=0)
        os.close(self._lock)

    # ----

    def _failed(self, error: BaseException) -> None:
        self._failure = error
        self._waker.wake()

    def _listen(self, control: str) -> wire.Server:
        path = self._folder / "address"
        host, _, port = control.rpartition(":")
        kept = path.read_text().strip() if path.exists() else ""
        wishes = [kept] if kept.rpartition(":")[0] == host else []
        wishes += [f"{host}:{int(port) + PORT_STEP}", free_address(host)]
        for number, address in enumerate(wishes):
            try:
                router = wire.Server(address, self._secret, self._is_known, QUEUE_LENGTH_MAX)
            except (OSError, OverflowError) as error:
                if number + 1 == len(wishes):
                    raise Conflict(str(error), "", "look at [head] listen in beo.toml") from None
                continue
            if router.address != kept:
                write_durably(path, router.address.encode() + b"\n", 0o644)
            return router
        raise AssertionError

    def _is_known(self, key: str) -> bool:
        return self._who(key) is not None

    def _who(self, key: str) -> Known | None:
        return Known("", PEER, 0, (), "") if key == self._own else self._keys.get(key)

    def _become(self, role: Role) -> None:
        if role.keys != self._keys_number:
            self._keys, self._keys_number = read_keys(self._folder), role.keys
        old, self._role = self._role, role
        if isinstance(self._part, Leader):
            self._part.until_s = role.until_s
        if role.number == old.number:
            return
        if isinstance(self._part, Leader) and role.leads and role.epoch == old.epoch:
            other = self._connect(role.other) if role.other != old.other else None
            self._part.direct(other, role, self._poller)
            return
        calm_s = self._calm_s(old)
        self._leave_part()
        log.info("the tree %s, epoch %s", "leads" if role.leads else "follows", votes.epoch_text(role.epoch))
        if role.leads:
            self._part = Leader(self._volume, role, self._answer, self._room, calm_s, self._level, self._desk)
            self._part.direct(self._connect(role.other), role, self._poller)
        else:
            self._part = Follower(self._volume, role.epoch, self._reply, self._level)

    def _calm_s(self, old: Role) -> float:
        """For how long leases of who led before may last. A head that had to wait until nobody else could act has
        outlasted them; not so one that was given the lead, or this process if it is a successor's."""
        if not self._volume.state.sessions:
            return 0.0
        had_to_wait = isinstance(self._part, Follower) and time.monotonic() - self._part.heard_s > leases.LEASE_S
        return 0.0 if had_to_wait and old.number >= 0 else leases.LEASE_S

    def _connect(self, address: str) -> wire.Connection | None:
        if not address:
            return None
        connection = wire.Connection(address, self._own, self._secret, self._context)
        connection.register(self._poller)
        return connection

    def _leave_part(self) -> None:
        if isinstance(self._part, Leader):
            self._part.close(self._poller)
        self._part = None

    def _receive(self) -> None:
        if isinstance(self._part, Leader) and self._part.has_backlog:
            self._router.judge()
            return
        for peer, key, request, body in self._router.receive():
            known = self._who(key)
            if known is None:
                continue
            if known.role == PEER:
                if isinstance(self._part, Follower):
                    self._part.hear(peer, body)
                continue
            try:
                ask = w.ask_decoder.decode(body)
            except msgspec.MsgspecError as error:
                log.warning("%s's words can't be read: %s", known.name, str(error).lower())
                self._answer(peer, request, w.Failed(errno.EPROTO))
                continue
            if not isinstance(self._part, Leader):
                self._answer(peer, request, w.Elsewhere())
            elif isinstance(ask.question, Who) and known.role != "worker":
                self._answer(peer, request, w.Failed(errno.EPERM))
            elif ask.number == request:
                self._part.ask(peer, self._vouched(ask, known, key))

    def _vouched(self, ask: w.Ask, known: Known, key: str) -> w.Ask:
        """Return a question with what is known of who asks in the place of what he says of himself."""
        question = ask.question
        if isinstance(question, Who):  # no other key can go by this name, and get what is kept for it
            question = msgspec.structs.replace(question, id=f"{key}/{question.id}")
        return msgspec.structs.replace(ask, caller=self._caller(known, ask.caller), question=question)

    def _caller(self, known: Known, said: w.Caller) -> w.Caller:
        """For whom somebody may ask: a node for all, an admin for all as their modes allow, a user for himself."""
        if known.role == "worker":
            return said
        if known.role == "admin" and known.uid < 0:
            return msgspec.structs.replace(said, checked=False)
        if known.role not in ("admin", "user") or known.uid < 0:
            return w.Caller(_NOBODY, _NOBODY)
        gids = self._accounts.look(known.uid).gids or known.gids or (_NOBODY,)
        return w.Caller(known.uid, said.gid if said.gid in gids else gids[0], gids)

    def _answer(self, peer: bytes, number: int, answer: w.Told) -> None:
        self._router.send(peer, number, w.encode(answer))

    def _reply(self, peer: bytes, body: bytes) -> None:
        self._router.send(peer, 0, body)

    def _tick(self, now_s: float) -> None:
        if self._part:
            self._part.tick(now_s)
        self._volume.tick(now_s)
        self._desk.keep(now_s)
        if now_s >= self._say_s:
            self._say_s = now_s + SAY_EVERY_S
            part = self._part
            lag = part.lag(now_s) if isinstance(part, Leader) else (False, -1, 0.0)
            trouble = part.trouble if part else ""
            lacks = part.lacks if isinstance(part, Follower) else 0
            if isinstance(part, Leader) and not trouble:
                trouble = part.stale
            if self._volume.full and not trouble:
                trouble = "the tree's disk is full: free space there"
            files = len(self._volume.state.inodes)
            self._tie.say(Report(self._router.address, self._role.number, *lag, trouble, files, lacks))


_NOBODY = 65_534


def main() -> int:
    """Run a tree until SIGTERM or SIGINT, or until its head ends; 0 for a clean end."""
    if not end_with_parent():
        return 1
    return daemon.main("tree", lambda: Server(home()))


if __name__ == "__main__":
    sys.exit(main())
