"""Who serves whom: the part of the head that serves the tree which sends each node to a source for each chunk. Pure.

The head itself has few slots. It gives them to what the fewest nodes have, so that what it sends is soon everywhere,
and divides them among those who ask; the others go to nodes that have the chunk, each of which serves a few at a time.
All of it is memory: a new head knows nothing, and is told anew. A node that has got nothing for too long goes to the
head, whatever the slots say.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

import msgspec

from beo.bulk.words import BAD_MAX, DEAD, GONE, HEAD, LANES_MAX, LATE, NEWS_MAX, SLOW, WANTS_MAX, WRONG, Who

HEAD_SLOTS = 8  # chunks that the head sends at a time: enough to fill its link
HEAD_SLOTS_MAX = 32  # when nodes would starve
FANOUT = 6  # chunks that one node sends at a time
LEASE_S = 30.0  # then a slot is free again, whatever became of it: longer than a node tries
SILENT_S = 10.0  # then a node is forgotten: three times what it may be silent for
STARVING_S = 3.0  # for so long a node may get nothing
ACTIVE_S = 2.0  # who asked within it wants its part of the head's slots
AVOIDED_S = 15.0  # a node that was not reached
LATE_S = 3.0  # a node that doesn't know this head's time yet: it will have asked by then
SLOW_STRIKES = 3  # then a node that was found slow is avoided, too
TRIES = 4  # holders that are looked at for one chunk
WAIT_FIRST_S, WAIT_EACH_S, WAIT_MAX_S = 0.03, 0.001, 0.25  # between two questions of who got nothing
NODES_MAX = 2_000
HELD_MAX = 200_000  # chunks of one node that are known: 800 GB
REMEMBERED_MAX = 10_000  # sources that were bad to one node


class Pick(msgspec.Struct, frozen=True):
    """Fetch this chunk from there. server: HEAD, or a node's id."""

    name: bytes
    server: str
    address: str


class Picked(msgspec.Struct, frozen=True):
    """What a node is told."""

    picks: tuple[Pick, ...]
    wait_s: float
    again: bool
    suspect: tuple[bytes, ...]


class _Node:
    def __init__(self, address: str, now_s: float) -> None:
        self.address = address
        self.heard_s = now_s
        self.fed_s = now_s  # when it last had a source, or wanted none
        self.wanted_s = -ACTIVE_S
        self.avoided_s = 0.0  # until then
        self.strikes = 0
        self.has_key = False  # it was answered before: else it couldn't check a ticket
        self.uploads = 0
        self.from_head = 0
        self.holds: dict[bytes, bool] = {}
        self.under_way: dict[bytes, tuple[str, float]] = {}  # chunk -> (server, until)
        self.bad: dict[tuple[bytes, str], bool] = {}
        self.suspect: dict[bytes, bool] = {}


class Choice:
    """All nodes, as one head knows them."""

    def __init__(self, draw: Callable[[int], int], peers: bool = True) -> None:
        """Begin with nothing. draw(n): a number below n, at random. peers: whether nodes are sent to each other."""
        self._draw = draw
        self._peers = peers
        self._nodes: dict[str, _Node] = {}
        self._holders: dict[bytes, list[str]] = {}
        self._coming: dict[bytes, int] = {}  # how many fetch it now
        self._leases: list[tuple[float, str, bytes]] = []
        self._head_uploads = 0
        self._active: dict[str, float] = {}
        self._look_s = 0.0

    @property
    def head_uploads(self) -> int:
        """How many chunks the head is sending."""
        return self._head_uploads

    def uploads(self, server: str) -> int:
        """How many chunks a node is sending."""
        return self._nodes[server].uploads if server in self._nodes else 0

    def handle(self, who: Who, at_head: Mapping[bytes, bool], now_s: float) -> Picked:
        """Take what a node says, and tell it where to go. at_head: of what it wants, whether the head has it whole."""
        self._expire(now_s)
        node = self._nodes.get(who.id)
        again = node is None and not who.all
        if node is None:
            if len(self._nodes) >= NODES_MAX:
                return Picked((), WAIT_MAX_S, False, ())
            node = self._nodes[who.id] = _Node(who.address, now_s)
        else:
            node.has_key = True
        node.address, node.heard_s = who.address, now_s
        self._learn(who, node)
        suspect = tuple(node.suspect)[:NEWS_MAX]
        for name in suspect:
            del node.suspect[name]
        wants = [name for name in dict.fromkeys(who.wants[:WANTS_MAX]) if name in at_head and name not in node.holds]
        for name in wants:
            self._end(who.id, node, name)
        lanes = min(who.lanes, LANES_MAX - len(node.under_way), len(wants))
        if not wants:
            node.fed_s = now_s
            self._active.pop(who.id, None)
        if lanes <= 0:
            return Picked((), WAIT_MAX_S if wants else 0.0, again, suspect)
        self._active[who.id] = now_s
        picks = self._pick(who.id, node, wants, lanes, at_head, now_s)
        if picks:
            node.fed_s = now_s
        for pick in picks:
            self._begin(who.id, node, pick, now_s)
        wait_s = min(WAIT_MAX_S, WAIT_FIRST_S + WAIT_EACH_S * len(self._active)) if len(picks) < lanes else 0.0
        return Picked(tuple(picks), wait_s, again, suspect)

    # ---- who is picked

    def _pick(
        self, asker: str, node: _Node, wants: list[bytes], lanes: int, at_head: Mapping[bytes, bool], now_s: float
    ) -> list[Pick]:
        picks: list[Pick] = []
        slots = self._slots(node, now_s)
        for name in wants if slots else ():
            if len(picks) == min(slots, lanes):
                break
            if self._copies(name) == 0 and self._is_from_head(node, name, at_head):
                picks.append(Pick(name, HEAD, ""))
        slots -= len(picks)
        left = [name for name in wants if name not in {pick.name for pick in picks}]
        extra: dict[str, int] = {}
        for name in left if self._peers else ():
            if len(picks) == lanes:
                return picks
            if server := self._peer(asker, node, name, extra, now_s):
                extra[server] = extra.get(server, 0) + 1
                picks.append(Pick(name, server, self._nodes[server].address))
        if not slots:
            return picks
        taken = {pick.name for pick in picks}
        left = [name for name in left if name not in taken and self._is_from_head(node, name, at_head)]
        left.sort(key=self._copies)
        picks += [Pick(name, HEAD, "") for name in left[: min(slots, lanes - len(picks))]]
        return picks

    def _slots(self, node: _Node, now_s: float) -> int:
        """How many of the head's slots a node may have now: its part of them, of those that are free."""
        if now_s - node.fed_s >= STARVING_S and self._head_uploads < HEAD_SLOTS_MAX:
            return 1
        part = max(1, HEAD_SLOTS // max(1, len(self._active)))
        return max(0, min(HEAD_SLOTS - self._head_uploads, part - node.from_head))

    def _copies(self, name: bytes) -> int:
        return len(self._holders.get(name, ())) + self._coming.get(name, 0)

    @staticmethod
    def _is_from_head(node: _Node, name: bytes, at_head: Mapping[bytes, bool]) -> bool:
        return at_head[name] and (name, HEAD) not in node.bad

    def _peer(self, asker: str, node: _Node, name: bytes, extra: Mapping[str, int], now_s: float) -> str:
        """Return the least busy of a few holders of a chunk, drawn at random; "" where none of them is free."""
        holders = self._holders.get(name)
        best, least = "", FANOUT
        for _ in range(min(TRIES, len(holders)) if holders else 0):
            assert holders
            server = holders[self._draw(len(holders))]
            peer = self._nodes[server]
            load = peer.uploads + extra.get(server, 0)
            usable = peer.has_key and peer.avoided_s <= now_s and peer.address and (name, server) not in node.bad
            if server != asker and usable and load < least:
                best, least = server, load
        return best

    # ---- what is under way

    def _begin(self, asker: str, node: _Node, pick: Pick, now_s: float) -> None:
        if pick.server == HEAD:
            self._head_uploads += 1
            node.from_head += 1
        else:
            self._nodes[pick.server].uploads += 1
        node.under_way[pick.name] = (pick.server, now_s + LEASE_S)
        self._coming[pick.name] = self._coming.get(pick.name, 0) + 1
        heapq.heappush(self._leases, (now_s + LEASE_S, asker, pick.name))

    def _end(self, asker: str, node: _Node, name: bytes) -> str:
        """A chunk is not under way any more; return from where it was."""
        server, _ = node.under_way.pop(name, ("", 0.0))
        if not server:
            return ""
        if server == HEAD:
            self._head_uploads -= 1
            node.from_head -= 1
        elif server in self._nodes:
            self._nodes[server].uploads -= 1
        self._coming[name] -= 1
        if not self._coming[name]:
            del self._coming[name]
        return server

    def _expire(self, now_s: float) -> None:
        while self._leases and self._leases[0][0] <= now_s:
            _, asker, name = heapq.heappop(self._leases)
            node = self._nodes.get(asker)
            if node and node.under_way.get(name, ("", now_s + 1))[1] <= now_s:
                self._end(asker, node, name)
        if now_s >= self._look_s:
            self._look_s = now_s + 1.0
            for server in [one for one, node in self._nodes.items() if now_s - node.heard_s > SILENT_S]:
                self._forget(server)
            for asker in [one for one, asked_s in self._active.items() if now_s - asked_s > ACTIVE_S]:
                del self._active[asker]

    def _forget(self, server: str) -> None:
        node = self._nodes[server]
        for name in list(node.under_way):
            self._end(server, node, name)
        for name in list(node.holds):
            self._drop(server, node, name)
        del self._nodes[server]
        self._active.pop(server, None)
        if node.uploads:  # who fetches from it notices by himself; its slots are not another's
            for other in self._nodes.values():
                for name in [name for name, (whose, _) in other.under_way.items() if whose == server]:
                    other.under_way[name] = ("?", other.under_way[name][1])

    # ---- what nodes have

    def _learn(self, who: Who, node: _Node) -> None:
        if who.all:
            for name in list(node.holds):
                self._drop(who.id, node, name)
        for name in who.lost[:NEWS_MAX]:
            self._drop(who.id, node, name)
        for name in who.gained[:NEWS_MAX]:
            server = self._end(who.id, node, name)
            if server in self._nodes:
                self._nodes[server].strikes = 0
            if name not in node.holds and len(node.holds) < HELD_MAX:
                node.holds[name] = True
                self._holders.setdefault(name, []).append(who.id)
        for bad in who.bad[:BAD_MAX]:
            self._judge(who.id, node, bad.name, bad.server, bad.why)

    def _drop(self, server: str, node: _Node, name: bytes) -> None:
        if node.holds.pop(name, None):
            holders = self._holders[name]
            holders.remove(server)
            if not holders:
                del self._holders[name]

    def _judge(self, asker: str, node: _Node, name: bytes, server: str, why: str) -> None:
        self._end(asker, node, name)
        if why == WRONG or (why == GONE and server == HEAD):
            node.bad[name, server] = True
            while len(node.bad) > REMEMBERED_MAX:
                del node.bad[next(iter(node.bad))]
        peer = self._nodes.get(server)
        if peer is None:
            return
        now_s = node.heard_s
        if why in (WRONG, GONE):  # who has it says so again when it has looked
            if name in peer.holds:
                self._drop(server, peer, name)
                peer.suspect[name] = True
        elif why in (DEAD, LATE):
            peer.avoided_s = max(peer.avoided_s, now_s + (AVOIDED_S if why == DEAD else LATE_S))
        elif why == SLOW:
            peer.strikes += 1
            if peer.strikes >= SLOW_STRIKES:
                peer.strikes, peer.avoided_s = 0, now_s + AVOIDED_S
