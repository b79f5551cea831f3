"""Who sends an image to whom, when many machines boot at once. Pure.

One port of 1 Gbit/s takes 166 s for 200 machines of 97 MB. So the head sends to a few at a time; a machine that has the
image says so, and from then on others are sent to it: the number of senders doubles with each round. Nobody has to be
trusted: the image's hash stands on the kernel's command line, and what was wrong is fetched again.

A machine that was sent elsewhere and comes back has had no luck there, so that sender is left alone for a while.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

SLOTS = 4  # images that the head itself sends at one time
PEER_SLOTS = 4  # and each machine that has it: of more, each would get its part later
HOLDERS_MAX = 4_096  # as many as a cluster has nodes
HELD_S = 900.0  # a holder that hasn't said it again is taken for gone
SENT_S = 60.0  # for somebody who was sent elsewhere to say that he has it; his slot there is free then
TURNS = 8  # kernels and initrds that are sent at one time, so that some machines have theirs early, and go on
TURN_S = 300.0  # for whoever waits for his turn: 200 machines take 30 s
LUCKLESS_S = 120.0  # a sender with which somebody had no luck is left alone for so long
WAIT_MIN_S, WAIT_MAX_S = 1.0, 4.0  # before who finds all busy asks again, each another time


class Here(msgspec.Struct, frozen=True):
    """The head sends it itself; `Storm.over` is to be said when that has ended."""


class There(msgspec.Struct, frozen=True):
    """Ask this machine for it: host:port."""

    address: str


class Later(msgspec.Struct, frozen=True):
    """Ask again, in whole seconds."""

    wait_s: int


Choice = Here | There | Later


class Holder(msgspec.Struct):
    """A machine that has an image, and to whom it sends: asker -> since when."""

    address: str
    heard_s: float
    sends: dict[str, float] = {}
    shunned_s: float = float("-inf")


class Storm:
    """The choice, and what it depends on."""

    def __init__(
        self, chance: Callable[[float, float], float], slots: int = SLOTS, peer_slots: int = PEER_SLOTS
    ) -> None:
        """chance: a number between two, as random.uniform gives it."""
        self._chance = chance
        self._slots, self._peer_slots = slots, peer_slots
        self._here = 0
        self._holders: dict[str, dict[str, Holder]] = {}  # image -> host -> who
        self._sent: dict[str, tuple[str, str]] = {}  # asker -> image, and the host where it was sent

    @property
    def busy(self) -> int:
        """How many the head sends to now."""
        return self._here

    def holders(self, sha256: str) -> int:
        """How many machines have it, as far as is known."""
        return len(self._holders.get(sha256, {}))

    def givers(self, now_s: float) -> int:
        """How many machines give their image to others, whichever it is."""
        held = {host for holders in self._holders.values() for host, one in holders.items() if _is_fresh(one, now_s)}
        return len(held)

    def choose(self, asker: str, sha256: str, now_s: float, direct: bool = False) -> Choice:
        """Say where this machine is to get the image; asker: its address. direct: it wants it from the head alone."""
        self._came_back(asker, now_s)
        if self._here < self._slots:
            self._here += 1
            return Here()
        if not direct and (holder := self._free_holder(asker, sha256, now_s)):
            holder.sends[asker] = now_s
            self._sent[asker] = sha256, _host(holder.address)
            if len(self._sent) > HOLDERS_MAX:
                del self._sent[next(iter(self._sent))]
            return There(holder.address)
        return Later(round(self._chance(WAIT_MIN_S, WAIT_MAX_S)))

    def over(self) -> None:
        """A transfer of the head's own has ended, well or not."""
        self._here -= 1
        assert self._here >= 0

    def have(self, asker: str, address: str, sha256: str, now_s: float) -> None:
        """This machine has that image, and serves it at host:port."""
        self._settle(asker)
        holders = self._holders.setdefault(sha256, {})
        holder = holders.pop(asker, None) or Holder(address, now_s)
        holder.address, holder.heard_s = address, now_s
        holders[asker] = holder
        while sum(map(len, self._holders.values())) > HOLDERS_MAX:
            fullest = max(self._holders.values(), key=len)
            del fullest[next(iter(fullest))]

    def gone(self, asker: str) -> None:
        """This machine boots anew: it has nothing, serves nobody, and had no bad luck."""
        self._settle(asker)
        for holders in self._holders.values():
            holders.pop(asker, None)

    def _came_back(self, asker: str, now_s: float) -> None:
        if found := self._settle(asker):
            found.shunned_s = now_s + LUCKLESS_S

    def _settle(self, asker: str) -> Holder | None:
        """Who was sent elsewhere isn't any more; return where that was."""
        sha256, host = self._sent.pop(asker, ("", ""))
        holder = self._holders.get(sha256, {}).get(host)
        if holder:
            holder.sends.pop(asker, None)
        return holder

    def _free_holder(self, asker: str, sha256: str, now_s: float) -> Holder | None:
        holders = self._holders.get(sha256, {})
        for host in [host for host, holder in holders.items() if not _is_fresh(holder, now_s)]:
            del holders[host]
        free = []
        for host, holder in holders.items():
            for late in [who for who, since_s in holder.sends.items() if now_s - since_s > SENT_S]:
                del holder.sends[late]
            if host != asker and len(holder.sends) < self._peer_slots and now_s >= holder.shunned_s:
                free.append(holder)
        return min(free, key=lambda holder: (len(holder.sends), holder.address), default=None)


def _is_fresh(holder: Holder, now_s: float) -> bool:
    return now_s - holder.heard_s <= HELD_S


def _host(address: str) -> str:
    return address.rpartition(":")[0]
