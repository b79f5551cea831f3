"""Output on two heads: all that was acknowledged or shown is on both, and the files become the same, byte for byte.

Two stores, the hands of a leader and of a follower, and a network and two machines that do what real ones do: lose,
double, delay and reorder messages; kill either head, with or without what its disk had not synced; fill a disk; hand
the leadership over with copies still under way. A seed tells all of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from beo import messages as ms
from beo import records
from beo.errors import Conflict
from beo.headnode import output
from beo.headnode.copies import Giver, Taker
from beo.headnode.mirror import Lag
from beo.headnode.output import Full, Output

Key = tuple[int, int]

STALL_S = 1.0  # after so long without an answer the leader goes on alone
JOBS = ((1, 1), (2, 1), (2, 2), (30, 1))
NODES = ("n1", "n2", "n3")


def spool_of(node: str, key: Key, seed: object, count: int = 200) -> bytes:
    """All that a node prints in an attempt."""
    dice = Random(f"{seed} {node} {key}")
    return b"".join(
        records.pack(n % 3, 1 + n % 2, f"{node} {n} {'x' * dice.randrange(60)}\n".encode()) for n in range(count)
    )


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files have marks and hints, too, and a disk that needn't be waited for."""
    monkeypatch.setattr(output, "MARK_EVERY_BYTES", 512)
    monkeypatch.setattr(output, "INDEX_EVERY_BYTES", 2_000)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    monkeypatch.setattr(os, "fsync", lambda fd: None)


class Head:
    """One head's store and hands, and what its disk would still have after a power cut."""

    def __init__(self, folder: Path, dice: Random) -> None:
        self.folder = folder
        self.dice = dice
        self.synced: dict[Key, bytes] = {}
        self.acks: dict[tuple[str, Key], list[tuple[int, int]]] = {}
        self.giver: Giver | None = None
        self.alive = False
        self.epoch = 0
        self.open()

    def open(self) -> None:
        """Start the head; it has no role yet."""
        self.store = Output(self.folder, files_open_max=2)
        self.taker = Taker(self.store, self.dice.randrange(1, 1 << 40))
        self.giver = None
        self.acks.clear()
        self.alive = True
        for key in self.store.files():
            self.store.end(*key)  # what recovery found is made durable
            self.synced[key] = self.bytes_of(key)

    def kill(self, power_cut: bool) -> None:
        """End it at once; after a power cut a file is as it was synced, or a part of what came since is there too."""
        self.store.close()
        self.alive = False
        for key in self.keys() if power_cut else ():
            now, before = self.bytes_of(key), self.synced.get(key, b"")
            same = next((at for at, (a, b) in enumerate(zip(now, before, strict=False)) if a != b), len(before))
            torn = now[: self.dice.randint(min(same, len(now)), len(now))]
            # What was cut off and not synced may be there again, all of it, or not at all.
            self.folder.joinpath(f"{key[0]}.{key[1]}.log").write_bytes(torn if self.dice.random() < 0.5 else before)

    def keys(self) -> list[Key]:
        """Attempts with a file."""
        return sorted(
            (int(path.name.split(".")[0]), int(path.name.split(".")[1])) for path in self.folder.glob("*.log")
        )

    def bytes_of(self, key: Key) -> bytes:
        """A file as it is."""
        path = self.folder / f"{key[0]}.{key[1]}.log"
        return path.read_bytes() if path.exists() else b""

    def lead(self, epoch: int, other: bool, now: float) -> None:
        """Lead from now on, alone at first."""
        self.epoch = epoch
        self.giver = Giver(self.store, epoch, False, self.dice.randrange(1 << 40), now) if other else None

    def follow(self, epoch: int) -> None:
        """Follow from now on."""
        self.epoch = epoch
        self.giver = None
        self.acks.clear()
        self.taker.follow(epoch)

    def shown(self, key: Key) -> int:
        """Up to where readers may see a file."""
        end = self.store.end(*key)
        return self.giver.shown(*key, end) if self.giver else end

    def take_chunk(self, node: str, key: Key, offset: int, data: bytes) -> None:
        """As the bulk plane does it."""
        try:
            before = self.store.mark(*key)
            have = self.store.append(*key, node, offset, data)
        except Full:
            return
        size = self.store.size(*key)
        self.acks.setdefault((node, key), []).append((size, have))
        if self.giver and size > before[0]:
            self.giver.grown(*key, before, size)

    def sync(self) -> None:
        """Make all durable."""
        for key in self.store.sync():
            self.synced[key] = self.bytes_of(key)
            if self.giver:
                self.giver.synced(*key, self.store.end(*key))


class Pair:
    """Two heads, the nodes that print, the readers, and who decides which head leads."""

    def __init__(self, folder: Path, seed: int, loss: float = 0.1) -> None:
        self.dice = Random(seed)
        self.seed = seed
        self.loss = loss
        self.now = 0.0
        self.epoch = 1
        self.heads = [Head(folder / name, self.dice) for name in "AB"]
        self.leader = 0
        self.duplex = False  # chosen: what is acknowledged is on both
        self.asked_both = False
        self.cut = False  # no message passes between the heads
        self.wires: list[list[ms.BulkRequest | ms.BulkAnswer]] = [[], []]  # to A, to B
        self.spools = {(node, key): spool_of(node, key, seed) for node in NODES for key in JOBS}
        self.acked = dict.fromkeys(self.spools, 0)
        self.read: dict[Key, bytes] = dict.fromkeys(JOBS, b"")
        self.cursors = dict.fromkeys(JOBS, 0)
        self.takeovers = self.in_steps = self.cuts = 0
        self.heads[0].lead(1, True, self.now)
        self.heads[1].follow(1)

    # ---- what the world does

    def step(self) -> None:
        """A moment of it."""
        self.now += self.dice.choice((0.0, 0.001, 0.02, 0.3))
        self.print_some()
        for number in (self.leader, 1 - self.leader):
            if self.heads[number].alive:
                self.turn(number)
        self.decide()
        self.look()

    def print_some(self) -> None:
        """Some node sends a chunk to the leader: what it has not acknowledged, or an old one again."""
        leader = self.heads[self.leader]
        if not leader.alive or not leader.epoch:
            return
        for _ in range(self.dice.randrange(4)):
            node, key = self.dice.choice(list(self.spools))
            spool = self.spools[node, key]
            offset = self.acked[node, key] if self.dice.random() < 0.8 else 0
            size = self.dice.randrange(80, 500)
            data = spool[offset : offset + records.whole_length(spool[offset : offset + size])]
            if data:
                leader.take_chunk(node, key, offset, data)

    def post(self, to: int, message: ms.BulkRequest | ms.BulkAnswer) -> bool:
        """Put a message on its way, through the very bytes of it."""
        if self.cut:
            return False
        body = ms.encode(message)
        decoded = (ms.bulk_to_head if isinstance(message, ms.Copy | ms.Offer) else ms.bulk_from_head).decode(body)
        for _ in range(self.dice.choices((1, 0, 2), (1 - self.loss, self.loss / 2, self.loss / 2))[0]):
            wire = self.wires[to]
            at = len(wire) if self.dice.random() >= self.loss else self.dice.randint(max(0, len(wire) - 5), len(wire))
            wire.insert(at, decoded)
        return True

    def turn(self, number: int) -> None:
        """What a head's bulk plane does in a turn of its loop."""
        head, other = self.heads[number], 1 - number
        arrived = [] if self.dice.random() < 0.3 else self.wires[number]
        self.wires[number] = self.wires[number][len(arrived) :]
        for message in arrived:
            if isinstance(message, ms.Copy | ms.Offer):
                if head.epoch and number != self.leader:
                    try:
                        head.taker.take(b"peer", message)
                    except Conflict:
                        assert message.epoch < head.taker.epoch
            elif head.giver:
                assert isinstance(message, ms.Copied | ms.Wanted)
                head.giver.hear(message, self.now)
        if head.giver:
            head.giver.pump(lambda message: self.post(other, message), self.now)
        head.sync()
        for _, answer in head.taker.answers():
            self.post(other, answer)
        if head.giver:
            head.giver.offer(lambda message: self.post(other, message), self.now)
        if number == self.leader and head.epoch:
            self.acknowledge(head)

    def acknowledge(self, head: Head) -> None:
        """The leader tells its nodes what it holds, and readers what there is."""
        for (node, key), waiting in head.acks.items():
            shown = head.shown(key)
            while waiting and waiting[0][0] <= shown:
                self.acked[node, key] = max(self.acked[node, key], waiting.pop(0)[1])
        for key in JOBS:
            cursor, data = head.store.read(*key, self.cursors[key], self.dice.choice((1, 10_000)), head.shown(key))
            self.cursors[key] = cursor
            self.read[key] += data

    # ---- who leads

    @property
    def lag(self) -> Lag:
        """What the leader says of the other."""
        giver = self.heads[self.leader].giver
        if giver is None:
            return Lag()
        lag, since = giver.lag()
        return lag._replace(stalled_s=self.now - since if since else 0.0)

    def decide(self) -> None:
        """As the two heads' control loops would do it, by their register."""
        leader = self.heads[self.leader]
        if not leader.alive or leader.giver is None:
            return
        lag = self.lag
        if self.asked_both and lag.in_step and not self.duplex:
            self.duplex = True
            self.in_steps += 1
        elif self.asked_both and lag.stalled_s > STALL_S:
            self.duplex = self.asked_both = False
            leader.giver.agree(False)
        elif not self.asked_both and 0 <= lag.missing_bytes < 3_000 and self.dice.random() < 0.2:
            self.asked_both = True
            leader.giver.agree(True)

    def begin(self, number: int) -> None:
        """A head leads from now on: it was in step, or is the one that went on alone."""
        self.takeovers += number != self.leader
        self.epoch += 1
        self.leader = number
        self.duplex = self.asked_both = False
        self.heads[number].lead(self.epoch, True, self.now)

    def kill(self, number: int, power_cut: bool) -> None:
        """A head dies; what is on its way to it is lost, and what it sent arrives."""
        self.heads[number].kill(power_cut)
        self.wires[number].clear()
        if number == self.leader and self.duplex and self.heads[1 - number].alive:
            self.begin(1 - number)
        else:
            self.heads[number].epoch = 0

    def start(self, number: int) -> None:
        """A dead head comes back."""
        head = self.heads[number]
        head.open()
        if number == self.leader:
            self.begin(number)
        else:
            head.follow(self.epoch if self.heads[self.leader].alive else 0)

    def switch(self) -> None:
        """The other head takes over though this one lives, with all that is under way."""
        before = self.leader
        self.begin(1 - before)
        self.heads[before].follow(self.epoch)

    def mischief(self) -> None:
        """Something goes wrong, or right again."""
        number = self.dice.randrange(2)
        both_alive = all(head.alive for head in self.heads)
        match self.dice.randrange(6):
            case 0:
                if self.heads[number].alive:
                    self.kill(number, power_cut=self.dice.random() < 0.5)
            case 1 | 2:
                if not self.heads[number].alive and not (number != self.leader and not self.heads[self.leader].alive):
                    self.start(number)
            case 3:
                if self.duplex and both_alive:
                    self.switch()
            case 4:
                self.cut = not self.cut and self.dice.random() < 0.5
            case _:
                self.cut = False

    # ---- what must be true

    def look(self) -> None:
        """All that was shown while the pair is in step is durable on both, the same."""
        leader, other = self.heads[self.leader], self.heads[1 - self.leader]
        if not self.duplex or not leader.alive:
            return
        for key in JOBS:
            shown = leader.shown(key)
            mine, theirs = leader.synced.get(key, b"")[:shown], other.synced.get(key, b"")[:shown]
            assert mine == theirs, f"seed {self.seed}: {key} is shown up to {shown}"

    def heal(self) -> None:
        """Let everything be well, and all be printed and copied."""
        self.cut, self.loss = False, 0.0
        for number in (self.leader, 1 - self.leader):
            if not self.heads[number].alive:
                self.start(number)
        for _ in range(20_000):
            self.step()
            done = all(self.acked[one] == len(spool) for one, spool in self.spools.items())
            done = done and all(self.cursors[key] == self.heads[0].store.end(*key) for key in JOBS)
            if done and self.duplex and self.lag.missing_bytes == 0 and not self.wires[0] and not self.wires[1]:
                break
        else:
            raise AssertionError(f"seed {self.seed}: it never heals: {self.lag}, {self.acked}")

    def check(self) -> None:
        """Byte for byte the same, nothing lost, nothing doubled, and the readers have seen just that."""
        a, b = self.heads
        for key in JOBS:
            assert a.bytes_of(key) == b.bytes_of(key), f"seed {self.seed}: {key}"
            found = self.read[key]
            for node in NODES:
                mark = node.encode() + b" "
                own = b"".join(records.pack(*one) for one in records.unpack(found) if one.data.startswith(mark))
                assert own == self.spools[node, key], f"seed {self.seed}: {node} {key}"
            for head in self.heads:  # and opened anew they are the same, too
                head.store.close()
                head.store = Output(head.folder)
                assert head.store.mark(*key) == a.store.mark(*key)
                assert {node: head.store.have(*key, node) for node in NODES} == {
                    node: len(self.spools[node, key]) for node in NODES
                }


def chaos(folder: Path, seed: int) -> Pair:
    """One life of a pair."""
    pair = Pair(folder, seed)
    for _ in range(400):
        pair.step()
        if pair.dice.random() < 0.08:
            pair.mischief()
    pair.heal()
    pair.check()
    for head in pair.heads:
        head.store.close()
    return pair


@pytest.mark.parametrize("seed", range(12))
def test_what_was_acknowledged_or_shown_is_on_both_whatever_dies(tmp_path: Path, seed: int) -> None:
    chaos(tmp_path, seed)
