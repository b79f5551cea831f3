"""A write that nobody needs to wait for is seen by whoever looks after it, on any node, and lost by nobody who syncs.

The server's core and three mounts, each with two programs that open, write, read and close one file through a kernel;
between them links on which words are late, and, in some worlds, lost with the connection, and heads that take over.
"""

from __future__ import annotations

import random
import stat
import struct
from collections import deque
from typing import Any

import msgspec
import pytest

from beo.tree import leases
from beo.tree import words as w
from beo.tree.core import AMPLE_BYTES, Core
from beo.tree.decide import Room
from beo.tree.leases import LEASE_S
from beo.tree.mounting import Mount
from beo.tree.replies import Ask, Effect, Notify
from tests import fake_kernel as fake
from tests.test_tree_leases import forget, recalls
from tests.tree_world import ROOT_CALLER, Client, Tree

FILE = stat.S_IFREG | 0o666
PROGRAMS = 6
GROWTH = 1_000  # from here on a byte is written to make the file longer
LATE_S = LEASE_S / 4  # no word is later than that where no connection is lost


class Program:
    """One that does one thing at a time with the file, in a slot of its own."""

    def __init__(self, node: Node, slot: int) -> None:
        self.node, self.slot = node, slot
        self.is_open = False
        self.doing = ""
        self.value = 0  # what it has written last
        self.seen: dict[str, int] = {}  # what it must see, as of when it began to look


class Node:
    """A mount, its kernel, and its session's link to the server."""

    def __init__(self, world: World, name: str, slots: range) -> None:
        self.world, self.session = world, name
        self.mount = Mount()
        self.mount.has_epochs = True
        self.programs = [Program(self, slot) for slot in slots]
        self.waiting: dict[int, Program] = {}  # by the number of their request
        self.unique = self.number = 0
        self.asked: dict[int, tuple[int, w.Question, float]] = {}  # number -> (the mount's, question, when)
        self.up: deque[int] = deque()
        self.down: deque[tuple[int, w.Told]] = deque()
        self.teller: deque[Ask] = deque()
        self.put(0, w.Begin())

    def put(self, mounts: int, question: w.Question) -> None:
        """Ask, as a session does."""
        self.number += 1
        self.asked[self.number] = mounts, question, self.world.tree.now_s
        self.up.append(self.number)

    def carry_out(self, effects: list[Effect]) -> None:
        """Do what the mount says."""
        for effect in effects:
            if isinstance(effect, Ask):
                self.put(effect.number, effect.question)
            elif isinstance(effect, Notify):
                self.teller.append(effect.then)
            else:
                _, error, unique = struct.unpack_from("=IiQ", effect.data)
                self.world.done(self.waiting.pop(unique), unique, -error, (effect.data + effect.body)[16:])

    def request(self, program: Program, opcode: int, body: bytes, ino: int) -> None:
        """Let the kernel ask the mount."""
        self.unique += 2
        self.waiting[self.unique] = program
        data = fake.request(opcode, body, self.unique, ino)
        self.carry_out(self.mount.from_kernel(data, self.world.tree.now_s))

    def rise(self) -> None:
        """A question arrives at the server."""
        if self.up and (number := self.up.popleft()) in self.asked:
            question = self.asked[number][1]
            settled = min(self.asked) - 1
            self.world.tree.ask(w.Ask(self.session, number, settled, ROOT_CALLER, question, remembers=True))
            self.world.sort()

    def fall(self) -> None:
        """A word of the server arrives."""
        if not self.down:
            return
        number, told = self.down.popleft()
        now_s = self.world.tree.now_s
        if isinstance(told, w.Recall):
            self.carry_out(self.mount.from_tree(0, told, now_s))
        elif number in self.asked:
            mounts, _, asked_s = self.asked.pop(number)
            if isinstance(told, w.Leased):
                told = msgspec.structs.replace(told, lease_s=asked_s + told.lease_s)
            if mounts:
                self.carry_out(self.mount.from_tree(mounts, told, now_s))

    def reconnect(self) -> None:
        """What was on its way is lost; everything is asked again, in order, behind what is open."""
        self.up.clear()
        self.down.clear()
        self.number += 1
        self.asked = {self.number: (0, w.Present(tuple(self.mount.opened)), self.world.tree.now_s), **self.asked}
        self.up.extend(self.asked)


class World:
    """A tree with one file, and three nodes."""

    def __init__(self, seed: int, loses: bool = False) -> None:
        self.rng, self.loses = random.Random(seed), loses
        self.tree = Tree()
        maker = self.tree.client()
        self.ino = maker.make(b"file")
        maker.ask(w.Write(self.ino, 0, bytes(8 * PROGRAMS)))
        self.nodes: list[Node] = []
        for number in range(3):
            self.nodes.append(Node(self, f"session of node {number}", range(2 * number, 2 * number + 2)))
        self.busiest = self.nodes[0]
        self.programs = [program for node in self.nodes for program in node.programs]
        self.written: dict[str, int] = {}  # what was replied to: slot or size -> value
        self.synced: dict[str, int] = {}  # of that, what a close or fsync said is durable
        self.ahead = self.checked = 0

    def sort(self) -> None:
        """What the server says is on its way."""
        for say in self.tree.said:
            for node in self.nodes:
                if say.peer == node.session.encode():
                    node.down.append((say.number, say.answer))
        self.tree.said.clear()

    def step(self) -> None:
        """Let something happen: on one node more than on the others, so that it is alone with the file now and then."""
        if self.rng.random() < 0.01:
            self.busiest = self.rng.choice(self.nodes)
        node = self.busiest if self.rng.random() < 0.8 else self.rng.choice(self.nodes)
        match self.rng.randrange(20):
            case 0 | 1 | 2 | 3 | 4 | 5:
                self.act(self.rng.choice(node.programs))
            case 6 | 7 | 8 | 9 | 10:
                for _ in range(self.rng.randrange(1, 5)):
                    node.rise()
            case 11 | 12 | 13 | 14 | 15:
                for _ in range(self.rng.randrange(1, 5)):
                    node.fall()
            case 16 | 17 if node.teller:
                ask = node.teller.popleft()
                node.put(ask.number, ask.question)
            case 18:
                self.let_pass(self.rng.choice((0.01, 0.01, LATE_S)))
            case 19 if self.loses and self.rng.random() < 0.3:
                node.reconnect()
            case 19 if self.loses and self.rng.random() < 0.1:
                self.take_over()

    def let_pass(self, seconds: float) -> None:
        """Let time pass; where no connection is lost, no word is too late for that."""
        if not self.loses:
            self.settle()
        self.tree.tick(seconds)
        self.sort()

    def settle(self) -> None:
        """Let all words arrive."""
        for _ in range(10_000):
            for node in self.nodes:
                node.rise()
                node.fall()
                while node.teller:
                    ask = node.teller.popleft()
                    node.put(ask.number, ask.question)
            if not any(node.up or node.down or node.teller for node in self.nodes):
                return
        raise AssertionError("it never settles")

    def take_over(self) -> None:
        """Another head leads: it was given the lead a moment ago, or had to wait until it could be the only one."""
        waited = self.rng.random() < 0.5
        tree = self.tree
        tree.take_over()
        tree.now_s += LEASE_S if waited else 0.0
        tree.core = Core(tree.state, tree.now_s, tree.now_ns, 0.0 if waited else tree.now_s + LEASE_S)
        for node in self.nodes:
            node.reconnect()

    # ---- programs

    def act(self, program: Program) -> None:
        """Let a program do the next thing, if it isn't doing one."""
        if program.doing:
            return
        what = self.rng.choice(4 * ["write", "write", "grow"] + ["read", "size", "look", "sync", "close"])
        if program.node is not self.busiest and self.rng.random() < 0.8:
            what = "close"
        program.doing = what if program.is_open else "open"
        if not program.is_open and program.node is not self.busiest and self.rng.random() < 0.9:
            program.doing = "look"
        node = program.node
        match program.doing:
            case "open":
                node.request(program, fake.OPEN, struct.pack("=II", 2, 0), self.ino)
            case "write":
                program.value += 1
                data = struct.pack("=Q", program.value)
                node.request(program, fake.WRITE, fake.write(8 * program.slot, data), self.ino)
            case "grow":
                program.value += 1
                at = GROWTH + program.value * PROGRAMS + program.slot
                node.request(program, fake.WRITE, fake.write(at, b"x"), self.ino)
            case "read":
                program.seen = self.must_see(program)
                node.request(program, fake.READ, fake.read(0, 8 * PROGRAMS), self.ino)
            case "size":
                program.seen = self.must_see(program)
                node.request(program, fake.GETATTR, bytes(16), self.ino)
            case "look":
                program.seen = self.must_see(program)
                node.request(program, fake.LOOKUP, b"file\0", w.ROOT)
            case "sync":
                program.seen = dict(self.written)
                node.request(program, fake.FSYNC, bytes(16), self.ino)
            case "close":
                program.seen = dict(self.written)
                node.request(program, fake.FLUSH, fake.flush(program.slot), self.ino)

    def must_see(self, program: Program) -> dict[str, int]:
        """What whoever looks now has to see: everything that was written, or where connections were lost, what was
        synced or written on the same node."""
        if not self.loses:
            return dict(self.written)
        near = {f"{other.slot}" for other in program.node.programs} | {f"size by {program.node.session}"}
        return {key: value if key in near else self.synced.get(key, 0) for key, value in self.written.items()}

    def done(self, program: Program, unique: int, error: int, body: bytes) -> None:
        """A program's request is replied to."""
        assert not error, (program.doing, error)
        what, program.doing = program.doing, ""
        size_by = f"size by {program.node.session}"
        match what:
            case "open":
                program.is_open = True
            case "write":
                self.written[f"{program.slot}"] = program.value
            case "grow":
                at = GROWTH + program.value * PROGRAMS + program.slot
                self.written[size_by] = max(self.written.get(size_by, 0), at + 1)
            case "read":
                for slot, value in enumerate(struct.unpack(f"={PROGRAMS}Q", body)):
                    assert value >= self.expected(program, f"{slot}"), (slot, value, program.seen)
            case "size" | "look":
                (size,) = struct.unpack_from("=Q", body, (40 if what == "look" else 16) + 8)
                for key in program.seen:
                    assert not key.startswith("size") or size >= program.seen[key], (what, size, program.seen)
                self.checked += 1
            case "sync" | "close":
                self.synced_by(program)
                if what == "close":
                    program.is_open = False
                    program.doing = "release"
                    program.node.request(program, fake.RELEASE, fake.release(), self.ino)
        if what in ("write", "grow"):
            self.ahead += any(one.request.unique == unique for one in program.node.mount.writing._behind)

    def expected(self, program: Program, slot: str) -> int:
        """The least value of a slot; a program that grows the file writes nothing into it."""
        self.checked += 1
        return program.seen.get(slot, 0)

    def synced_by(self, program: Program) -> None:
        """All that a node had written before somebody there synced is durable."""
        node = program.node
        keys = [f"{other.slot}" for other in node.programs] + [f"size by {node.session}"]
        for key in keys:
            self.synced[key] = max(self.synced.get(key, 0), program.seen.get(key, 0))
        held = bytes(self.tree.files[self.ino])
        for other in node.programs:
            (there,) = struct.unpack_from("=Q", held, 8 * other.slot)
            assert there >= program.seen.get(f"{other.slot}", 0), "a sync was replied to before the writes were done"


@pytest.fixture(autouse=True)
def recalled_is_soon_lent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BUSY_S", LATE_S / 2)


def run(seed: int, loses: bool) -> World:
    world = World(seed, loses)
    for _ in range(4_000):
        world.step()
    for _ in range(10):
        world.settle()
        world.tree.tick(LEASE_S)
        world.sort()
    world.settle()
    assert not any(node.asked or node.waiting for node in world.nodes), "somebody waits for ever"
    return world


@pytest.mark.parametrize("seed", range(40))
def test_whoever_looks_sees_every_write_that_was_replied_to(seed: int) -> None:
    run(seed, loses=False)


@pytest.mark.parametrize("seed", range(40))
def test_what_was_synced_is_seen_whatever_connection_or_head_is_lost_and_ones_own_writes_always(seed: int) -> None:
    run(seed, loses=True)


def test_in_these_worlds_many_writes_are_ahead_of_their_answers() -> None:
    worlds = [run(seed, loses) for seed in range(10) for loses in (False, True)]
    assert sum(world.ahead for world in worlds) > 300 and sum(world.checked for world in worlds) > 2_000


# ---- who may


def opened(tree: Tree) -> tuple[Client, int]:
    """A session that has a new file open and has written it: it holds it alone."""
    here = tree.client(remembers=True)
    ino = here.ask(w.Make(w.ROOT, b"a", FILE)).answer.attr.ino
    here.ask(w.Open(ino))
    assert here.ask(w.Write(ino, 0, b"own")).alone
    return here, ino


@pytest.mark.parametrize(
    "question",
    [
        lambda ino: w.Get(ino),
        lambda ino: w.Look(w.ROOT, b"a"),
        lambda ino: w.List(w.ROOT),
        lambda ino: w.Read(ino, 0, 10),
        lambda ino: w.Open(ino),
        lambda ino: w.Set(ino, mode=0o600),
        lambda ino: w.Write(ino, 0, b"other"),
    ],
    ids=["get", "look", "list", "read", "open", "set", "write"],
)
@pytest.mark.parametrize("remembers", [True, False])
def test_whoever_else_wants_to_see_it_waits_until_its_holder_has_said_that_he_forgot(
    question: Any, remembers: bool
) -> None:
    tree = Tree()
    here, ino = opened(tree)
    there = tree.client(remembers=remembers)
    assert there.ask(question(ino)) is None and there.again() is None
    assert [word.inos for word in recalls(tree)] == [(ino,)]
    forget(tree, here)
    said = [say for say in tree.said if say.number == there.number and say.peer == there.session.encode()]
    assert len(said) == 1 and not isinstance(said[0].answer, w.Failed)
    assert not here.ask(w.Write(ino, 0, b"more")).alone, "somebody else has had to do with it a moment ago"


def test_a_holder_that_is_silent_delays_who_looks_by_a_lease() -> None:
    tree = Tree()
    _, ino = opened(tree)
    there = tree.client()
    assert there.ask(w.Get(ino)) is None
    tree.tick(LEASE_S * 1.1)
    assert any(say.number == there.number and say.peer == there.session.encode() for say in tree.said)


def test_nobody_holds_alone_what_others_have_open_or_remember() -> None:
    tree = Tree()
    here, there = tree.client(remembers=True), tree.client(remembers=True)
    ino = here.ask(w.Make(w.ROOT, b"a", FILE)).answer.attr.ino
    here.ask(w.Open(ino))
    there.ask(w.Open(ino))
    tree.tick(2 * LEASE_S)
    assert here.ask(w.Write(ino, 0, b"x")) is None
    forget(tree, there)
    assert not here.ask(w.Write(ino, 0, b"x")).alone
    there.ask(w.Close(ino))
    tree.tick(3 * LEASE_S)
    assert here.ask(w.Write(ino, 0, b"x")).alone


def test_nobody_holds_alone_what_he_has_not_open_any_more() -> None:
    tree = Tree()
    here, ino = opened(tree)
    here.ask(w.Close(ino))
    there = tree.client()
    assert isinstance(there.ask(w.Get(ino)), w.AttrIs) and not recalls(tree)


def test_with_little_room_everybody_waits_for_each_write_and_hears_at_once_that_there_is_no_more() -> None:
    tree = Tree()
    here, ino = opened(tree)
    tree.core.room = Room(free_bytes=AMPLE_BYTES - 1)
    assert not here.ask(w.Write(ino, 0, b"x")).alone
    other = here.ask(w.Make(w.ROOT, b"b", FILE)).answer.attr.ino
    here.ask(w.Open(other))
    assert not here.ask(w.Write(other, 0, b"x")).alone


def test_what_waited_for_a_new_head_is_done_before_what_is_asked_when_it_may_change_something() -> None:
    """Writes that are behind come again at once; those that came a moment later must not be faster."""
    tree = Tree()
    here, ino = opened(tree)
    tree.take_over()
    tree.core = Core(tree.state, tree.now_s, 99, tree.now_s + LEASE_S)
    assert here.ask(w.Write(ino, 0, b"first")) is None
    tree.now_s += 2 * LEASE_S
    assert here.ask(w.Write(ino, 0, b"later"))
    assert bytes(tree.files[ino]) == b"later"
