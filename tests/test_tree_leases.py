"""What a node remembers under a lease is so: for as long as it may use it, whoever else changes the tree.

The server's core, which recalls, and the memories of three nodes, which are asked as their kernels ask them; between
them a network that delays, loses and gives up connections, and a clock. Whatever a memory says is compared with the
tree.
"""

from __future__ import annotations

import errno
import random
import stat
from collections import deque
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beo.tree import leases
from beo.tree import words as w
from beo.tree.core import Core
from beo.tree.leases import LEASE_S
from beo.tree.memory import Memory
from tests.tree_world import ROOT_CALLER, Client, Tree

NAMES = [b"a", b"b", b"c"]
FILE, FOLDER = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


class Node:
    """A node's session and memory, and what is on its way to it."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.session = world, name
        self.memory = Memory()
        self.number = 0
        self.asked: dict[int, tuple[w.Question, float]] = {}
        self.arriving: deque[tuple[int, w.Told]] = deque()
        self.is_silent = False  # it takes nothing in, as a node that is stopped or cut off

    def ask(self, question: w.Question) -> None:
        """Ask, whatever is known."""
        self.number += 1
        self.asked[self.number] = question, self.world.tree.now_s
        self.world.ask(self, self.number)

    def hear(self, number: int, told: w.Told) -> None:
        """Take one message, as the session and the mount do."""
        if isinstance(told, w.Recall):
            self.memory.recall(told)
            self.ask(w.Recalled(told.inos, told.recalls))
        elif number in self.asked:
            question, asked_s = self.asked.pop(number)
            if isinstance(told, w.Leased):
                told = msgspec.structs.replace(told, lease_s=asked_s + told.lease_s)
            self.memory.told(question, told)

    @property
    def changes(self) -> bool:
        """Whether it has asked for a change of which it doesn't know yet."""
        return any(not isinstance(question, w.Look | w.Get | w.List) for question, _ in self.asked.values())


class World:
    """A tree, and three nodes."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.tree = Tree()
        self.nodes = [Node(self, f"session of node {number}") for number in range(3)]
        self.compared = self.known = 0
        for node in self.nodes:
            node.ask(w.Begin())

    def ask(self, node: Node, number: int) -> None:
        """Put a question of a node to the server."""
        settled = min(node.asked) - 1
        question = node.asked[number][0]
        self.tree.ask(w.Ask(node.session, number, settled, ROOT_CALLER, question, remembers=True))
        self.sort()

    def sort(self) -> None:
        """What the server says is on its way."""
        for say in self.tree.said:
            for node in self.nodes:
                if say.peer == node.session.encode():
                    node.arriving.append((say.number, say.answer))
        self.tree.said.clear()

    def deliver(self, most: int = 1_000) -> None:
        """Let messages arrive at nodes that take them in."""
        for node in self.nodes:
            for _ in range(min(most, len(node.arriving))):
                if not node.is_silent and node.arriving:
                    node.hear(*node.arriving.popleft())

    def step(self) -> None:
        """Let something happen."""
        node = self.rng.choice(self.nodes)
        match self.rng.randrange(16):
            case 0 | 1 | 2 | 3 | 4:
                node.ask(self.question())
            case 5:
                self.change_connection(node)
            case 6:
                node.is_silent = not node.is_silent
            case 7:
                self.tree.tick(self.rng.choice((0.01, 0.1, LEASE_S, 3 * LEASE_S)))
                self.sort()
            case 8 if self.rng.random() < 0.2:
                self.take_over()
            case _:
                self.deliver(self.rng.choice((1, 2, 1_000)))
        self.compare()

    def question(self) -> w.Question:
        """Something to ask."""
        rng, inos = self.rng, list(self.tree.state.inodes)
        folders = [ino for ino in inos if self.tree.state.inodes[ino].is_dir]
        ino, parent, other = rng.choice(inos), rng.choice(folders), rng.choice(folders)
        name, new = rng.choice(NAMES), rng.choice(NAMES)
        return rng.choice(
            (
                w.Look(parent, name),
                w.Look(parent, name),
                w.Get(ino),
                w.List(parent, 0, rng.choice((1, 100))),
                w.List(parent, rng.choice((1, 2, 3)), 100),
                w.Make(parent, name, rng.choice((FILE, FILE, FOLDER))),
                w.Remove(parent, name, dir=rng.random() < 0.3),
                w.Rename(parent, name, other, new, exchange=rng.random() < 0.3),
                w.Link(ino, parent, name),
                w.Set(ino, mode=rng.randrange(0o1000)),
                w.Open(ino, truncate=rng.random() < 0.3),
                w.Write(ino, rng.randrange(10), b"x"),
            )
        )

    def change_connection(self, node: Node) -> None:
        """What was on its way is lost, and everything is asked again."""
        node.arriving.clear()
        for number in list(node.asked):
            self.ask(node, number)

    def take_over(self) -> None:
        """Another head leads: it was given the lead a moment ago, or had to wait until it could be the only one."""
        waited = self.rng.random() < 0.5
        tree = self.tree
        tree.take_over()
        if waited:
            tree.now_s += LEASE_S
        tree.core = Core(tree.state, tree.now_s, tree.now_ns, 0.0 if waited else tree.now_s + LEASE_S)
        for node in self.nodes:
            self.change_connection(node)

    def compare(self) -> None:
        """Whatever any node that has changed nothing since may say from memory is so."""
        state, now_s = self.tree.state, self.tree.now_s
        for node in self.nodes:
            if node.changes:
                continue
            for ino, found in state.inodes.items():
                if (known := node.memory.attr(ino, now_s)) is not None:
                    self.known += 1
                    assert known == state.attr(ino), (node.session, known)
                if found.children is None:
                    continue
                for name in NAMES:
                    seen = node.memory.look(ino, name, now_s)
                    child, _ = found.children.get(name, (0, 0))
                    self.compared += 1
                    if seen is not True:
                        self.known += 1
                        assert seen == (state.attr(child) if child else False), (node.session, ino, name)


@pytest.mark.parametrize("seed", range(60))
def test_what_is_remembered_is_so_whatever_happens(seed: int) -> None:
    world = World(seed)
    for _ in range(150):
        world.step()
    for node in world.nodes:
        node.is_silent = False
    for _ in range(10):
        world.deliver()
        world.tree.tick(LEASE_S)
        world.sort()
        for node in world.nodes:
            world.change_connection(node)
    world.deliver()
    assert not any(node.asked for node in world.nodes), "a question was never answered"


def test_in_these_worlds_much_is_remembered() -> None:
    known = compared = 0
    for seed in range(10):
        world = World(seed)
        for _ in range(150):
            world.step()
        known, compared = known + world.known, compared + world.compared
    assert known > compared / 20


def two() -> tuple[Tree, Client, Client, int]:
    """A tree, two sessions that remember, and a file that the first one has looked up."""
    tree = Tree()
    here, there = tree.client(remembers=True), tree.client(remembers=True)
    answer = there.ask(w.Make(w.ROOT, b"a", FILE))
    tree.tick(2 * LEASE_S)
    assert set(here.ask(w.Look(w.ROOT, b"a")).inos) == {w.ROOT, answer.answer.attr.ino}
    return tree, here, there, answer.answer.attr.ino


def recalls(tree: Tree) -> list[Any]:
    """What sessions were told to forget."""
    return [say.answer for say in tree.said if isinstance(say.answer, w.Recall)]


def forget(tree: Tree, client: Client) -> Any:
    """Let a session say that it has heard the last recall."""
    word = [say.answer for say in tree.said if isinstance(say.answer, w.Recall) and say.session == client.session][-1]
    return client.ask(w.Recalled(word.inos, word.recalls))


def test_a_change_waits_until_others_have_forgotten_what_it_changes() -> None:
    tree, here, there, ino = two()
    assert there.ask(w.Write(ino, 0, b"new")) is None
    assert [word.inos for word in recalls(tree)] == [(ino,)] and tree.state.inodes[ino].size == 0
    assert forget(tree, here) == w.Done()
    assert tree.state.inodes[ino].size == 3
    assert [say.number for say in tree.said if say.peer == there.session.encode()][-1] == there.number


def test_whoever_doesnt_say_that_he_has_forgotten_delays_others_for_the_time_of_a_lease_and_once() -> None:
    tree, _, there, ino = two()
    assert there.ask(w.Write(ino, 0, b"new")) is None
    tree.tick(LEASE_S * 0.9)
    assert tree.state.inodes[ino].size == 0
    tree.tick(LEASE_S * 0.2)
    assert tree.state.inodes[ino].size == 3
    assert isinstance(there.ask(w.Write(ino, 3, b"er")), w.Leased) and tree.state.inodes[ino].size == 5


def test_what_has_just_been_taken_back_is_not_lent_again_at_once() -> None:
    """Else each write of one node and each look of another would cost a recall."""
    tree, here, there, ino = two()
    there.ask(w.Write(ino, 0, b"new"))
    forget(tree, here)
    assert here.ask(w.Get(ino)).inos == ()
    tree.tick(leases.BUSY_S + 0.1)
    assert here.ask(w.Get(ino)).inos == (ino,)


def test_who_says_late_that_he_has_forgotten_doesnt_thereby_give_up_what_he_was_lent_since() -> None:
    tree, here, there, ino = two()
    there.ask(w.Write(ino, 0, b"new"))
    tree.tick(leases.BUSY_S + LEASE_S)
    assert here.ask(w.Get(ino)).inos == (ino,)  # it was stopped, and its question was faster than it could hear
    forget(tree, here)
    assert there.ask(w.Write(ino, 0, b"more")) is None
    late = recalls(tree)[0]
    here.ask(w.Recalled(late.inos, late.recalls))
    assert tree.state.inodes[ino].size == 3, "the change waits for the second recall, not for the first"


def test_nothing_is_lent_that_is_about_to_be_recalled() -> None:
    """The recall waits for a disk: what is answered meanwhile is told before it, what is asked then is not lent."""
    lent = leases.Leases(0)
    assert lent.grant("here", (7,), 0.0) == (7,)
    lent.recall(lent.in_the_way("there", (7,)), 0.0)
    assert lent.grant("here", (7,), leases.BUSY_S + 1) == ()


def test_what_one_remembers_oneself_one_may_change_at_once() -> None:
    tree = Tree()
    here = tree.client(remembers=True)
    ino = here.ask(w.Make(w.ROOT, b"a", FILE)).answer.attr.ino
    assert isinstance(here.ask(w.Write(ino, 0, b"own")), w.Leased) and not recalls(tree)


def test_a_session_that_ends_lets_go_of_what_it_remembers() -> None:
    tree, here, there, ino = two()
    there.ask(w.Write(ino, 0, b"new"))
    here.ask(w.Leave())
    assert tree.state.inodes[ino].size == 3


def test_a_change_that_waits_and_is_asked_again_is_done_once() -> None:
    tree, here, there, ino = two()
    assert there.ask(w.Write(ino, 0, b"new", append=True)) is None and there.again() is None
    forget(tree, here)
    assert isinstance(there.again(), w.Leased) and tree.state.inodes[ino].size == 3


def test_who_waits_for_others_to_forget_is_sent_to_the_head_that_leads_next() -> None:
    tree, _, there, ino = two()
    there.ask(w.Write(ino, 0, b"new"))
    assert there.number in [one.number for one in tree.core.unanswered()]


def test_a_head_that_was_given_the_lead_changes_nothing_as_long_as_leases_of_the_other_may_last() -> None:
    tree, here, there, ino = two()
    tree.take_over()
    tree.core = Core(tree.state, tree.now_s, 99, tree.now_s + LEASE_S)
    assert isinstance(here.ask(w.Get(ino)), w.Leased)
    assert there.ask(w.Make(w.ROOT, b"b", FILE)) is None
    tree.tick(LEASE_S + 0.01)
    assert b"b" in (tree.state.inodes[w.ROOT].children or {})


def test_who_remembers_too_much_is_told_to_forget_what_is_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SESSION_LEASES_MAX", 8)
    tree = Tree()
    here, there = tree.client(remembers=True), tree.client()
    inos = [there.make(f"{number}".encode()) for number in range(10)]
    tree.tick(2 * LEASE_S)
    for ino in inos:
        here.ask(w.Get(ino))
    assert [word.inos for word in recalls(tree)] == [tuple(inos[:3])]


def test_no_more_is_lent_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASES_MAX", 1)
    tree = Tree()
    here, there = tree.client(remembers=True), tree.client()
    first, second = there.make(b"a"), there.make(b"b")
    assert [here.ask(w.Get(ino)).inos for ino in (first, second)] == [(first,), ()]
    there.ask(w.Write(first, 0, b"x"))
    forget(tree, here)
    assert here.ask(w.Get(second)).inos == (second,)


def test_a_session_that_doesnt_ask_for_leases_gets_none() -> None:
    tree = Tree()
    plain = tree.client()
    assert isinstance(plain.ask(w.Get(w.ROOT)), w.AttrIs)


def remembered(question: w.Question, answer: w.Answer, *inos: int) -> Memory:
    """A memory that was told one thing."""
    memory = Memory()
    memory.told(question, w.Leased(answer, inos, 5, 10.0))
    return memory


ATTR = w.Attr(7, FILE, 1, 0, 0, 0, 0, 0, 0)


def test_nothing_is_known_when_the_lease_is_over_until_an_answer_says_that_it_still_holds() -> None:
    memory = remembered(w.Get(7), w.AttrIs(ATTR), 7)
    assert memory.attr(7, 9.9) == ATTR and memory.attr(7, 10.0) is None
    memory.told(w.Get(8), w.Leased(w.Failed(errno.ESTALE), (), 5, 20.0))
    assert memory.attr(7, 19.9) == ATTR


def test_all_is_forgotten_when_a_word_was_missed() -> None:
    memory = remembered(w.Get(7), w.AttrIs(ATTR), 7)
    memory.told(w.Get(8), w.Leased(w.Failed(errno.ESTALE), (), 6, 20.0))
    assert memory.attr(7, 1.0) is None
    memory = remembered(w.Get(7), w.AttrIs(ATTR), 7)
    memory.recall(w.Recall((9,), 7))
    assert memory.attr(7, 1.0) is None


def test_of_a_directory_that_was_listed_to_its_end_it_is_known_what_isnt_there() -> None:
    page = w.Listing((w.Named(b"a", 3, ATTR),), 1, end=False)
    memory = remembered(w.List(2), page, 2, 7)
    assert memory.look(2, b"a", 1.0) == ATTR and memory.look(2, b"z", 1.0) is True
    memory.told(w.List(2, after=3), w.Leased(w.Listing((), 1, end=True), (2,), 5, 10.0))
    assert memory.look(2, b"z", 1.0) is False


@given(st.lists(st.integers(0, 30), max_size=60))
@settings(max_examples=50)
def test_a_memory_keeps_no_more_than_it_may(inos: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beo.tree.memory.INODES_MAX", 5)
        memory = Memory()
        for ino in inos:
            memory.told(w.Get(ino), w.Leased(w.AttrIs(msgspec.structs.replace(ATTR, ino=ino)), (ino,), 5, 10.0))
        known = [ino for ino in range(31) if memory.attr(ino, 1.0)]
        assert sorted(known) == sorted(list(dict.fromkeys(reversed(inos)))[:5])
