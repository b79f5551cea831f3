"""The register's acceptor, the same on heads, workers and witnesses, and what a majority is. Pure.

An acceptor of a head or witness must have made durable what it answers before the answer leaves; `durable` is what to
keep, and it changes with every promise and acceptance. A worker's keeps it in memory: when that is lost, its name is,
too (see votes.py), so nobody counts a forgetful acceptor twice.
"""

from __future__ import annotations

from collections.abc import Collection

from beo.votes import Accept, Accepted, Append, Cfg, Granted, Lease, Prepare, Promise, Refuse

RHO = 0.01  # how wrong a machine's clock rate may be


class Acceptor:
    """One acceptor: the epoch that it has promised, the value it has taken, the lease it has given."""

    def __init__(self, voter: str, epoch: int = 0, acc: Cfg | None = None) -> None:
        """Begin with what was durable; voter: the name under which it answers."""
        self.voter = voter
        self.epoch = epoch
        self.acc = acc
        self._holder = ""
        self._until_s = 0.0

    @property
    def durable(self) -> tuple[int, Cfg | None]:
        """What must be on the disk before an answer shows it."""
        return self.epoch, self.acc

    def leased(self, to: str, now_s: float) -> bool:
        """Whether a lease given to this head still runs."""
        return self._holder == to and now_s < self._until_s

    def blocks(self, head: str, now_s: float) -> bool:
        """Whether a lease given to another head still runs."""
        return bool(self._holder) and self._holder != head and now_s < self._until_s

    def release(self) -> None:
        """The lease's holder has given it back."""
        self._holder = ""

    def hold(self, head: str, until_s: float) -> None:
        """Give a head a lease until `until_s`, as one that has forgotten which leases it gave must do to all others."""
        self._holder, self._until_s = head, until_s

    def prepare(self, message: Prepare, now_s: float) -> Promise | Refuse:
        """Promise an epoch, unless a higher one is or another head's lease runs. Repeated, it says so again."""
        known = message.epoch < self.epoch or (message.pre and message.epoch == self.epoch)
        if known or self.blocks(message.head, now_s):
            return Refuse(self.voter, message.epoch, self.epoch, lease=not known)
        if not message.pre:
            self.epoch = message.epoch
        return Promise(self.voter, message.epoch, self.acc, message.pre)

    def accept(self, message: Accept) -> Accepted | Refuse:
        """Take a value, unless a higher epoch is promised; one that is older than what was taken is not confirmed."""
        cfg = message.cfg
        if cfg.epoch < self.epoch:
            return Refuse(self.voter, cfg.epoch, self.epoch)
        self.epoch = cfg.epoch
        if self.acc is None or cfg.order > self.acc.order:
            self.acc = cfg
        if self.acc != cfg:
            return Refuse(self.voter, cfg.epoch, self.epoch)
        return Accepted(self.voter, cfg.epoch, cfg.n)

    def lease(self, message: Lease | Append, now_s: float) -> Granted | Refuse:
        """Give the primary of this epoch its lease, counted from here and now, so longer than it counts it itself.

        One that it has is never shortened: it may have been told of it and count on it.
        """
        if message.epoch < self.epoch:
            return Refuse(self.voter, message.epoch, self.epoch)
        self.epoch = message.epoch
        until_s = now_s + message.lease_s * (1 + RHO)
        self._until_s = max(until_s, self._until_s) if self._holder == message.head else until_s
        self._holder = message.head
        return Granted(self.voter, message.epoch, message.t)


def is_majority(of: Collection[str], these: Collection[str]) -> bool:
    """Whether `these` are more than half `of` a set; of the empty set, nothing is."""
    return 2 * sum(voter in these for voter in of) > len(of)


def carried(voters: Collection[Collection[str]], by: Collection[str]) -> bool:
    """Whether a majority of every set agrees; where there is no set, nobody can."""
    return bool(voters) and all(is_majority(group, by) for group in voters)
