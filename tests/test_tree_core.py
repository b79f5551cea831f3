"""Sessions of the tree: what is asked twice is done once, what is open lives on, and silence ends what was held."""

from __future__ import annotations

import errno
import stat

import pytest

from beo.tree import core as module
from beo.tree import words as w
from tests.tree_world import Client, Tree, assert_same, look_after


@pytest.fixture
def tree() -> Tree:
    return Tree()


def names(tree: Tree) -> list[bytes]:
    return list(tree.state.inodes[w.ROOT].children or {})


def pass_time(tree: Tree, seconds: float, *alive: Client) -> None:
    """Let time pass as a head sees it, tick by tick, while these sessions present themselves."""
    for _ in range(int(seconds)):
        tree.tick(1.0)
        for client in alive:
            assert client.ask(w.Present()) == w.Done()


def test_a_question_that_is_asked_again_after_a_take_over_is_not_done_again(tree: Tree) -> None:
    client = tree.client()
    ino = client.make(b"a")
    for question in (
        w.Make(w.ROOT, b"b", stat.S_IFREG | 0o600),
        w.Link(ino, w.ROOT, b"c"),
        w.Rename(w.ROOT, b"c", w.ROOT, b"d"),
        w.Write(ino, 0, b"abc", append=True),
        w.Remove(w.ROOT, b"d"),
        w.Set(ino, size=1),
        w.Open(ino, truncate=True),
        w.Lock(ino, 1, "w"),
        w.Unlock(ino, 1),
    ):
        first = client.ask(question)
        before = tree.state.encode()
        assert client.again() == first and tree.state.encode() == before
        tree.take_over()
        assert client.again() == first and tree.state.encode() == before, question
    look_after(tree.state)
    assert_same(tree)


def test_a_copy_of_a_question_that_comes_after_its_answer_was_settled_does_nothing(tree: Tree) -> None:
    """It was still under way over an earlier connection, and has taken its time."""
    client = tree.client()
    client.make(b"a")
    client.ask(w.Rename(w.ROOT, b"a", w.ROOT, b"b"))
    late = client.last
    assert late
    client.make(b"a")
    before = tree.state.encode()
    assert tree.ask(late) is None
    assert tree.state.encode() == before and names(tree) == [b"b", b"a"]


def test_an_unlock_that_is_asked_again_leaves_the_lock_that_was_taken_after_it(tree: Tree) -> None:
    client, other = tree.client(), tree.client()
    ino = client.make(b"a")
    client.ask(w.Lock(ino, 1, "w"))
    settled = client.number
    assert client.ask(w.Unlock(ino, 1), settled=settled) == w.Done()
    unlock = client.last
    assert unlock and client.ask(w.Lock(ino, 1, "w"), settled=settled) == w.Done()
    tree.take_over()
    assert tree.ask(unlock) == w.Done() and client.again() == w.Done()
    assert other.ask(w.Lock(ino, 1, "w")) == w.Failed(errno.EAGAIN)


def test_what_a_session_has_open_lives_on_without_a_name_until_it_is_closed(tree: Tree) -> None:
    client = tree.client()
    ino = client.make(b"a")
    client.attr(w.Open(ino))
    client.ask(w.Remove(w.ROOT, b"a"))
    tree.tick(60.0)
    assert client.attr(w.Write(ino, 0, b"still")).nlink == 0
    assert client.ask(w.Read(ino, 0, 9)) == w.DataIs(b"still")
    client.ask(w.Close(ino))
    tree.tick()
    assert client.ask(w.Get(ino)) == w.Failed(errno.ESTALE)
    assert ino not in tree.files
    look_after(tree.state)


def test_a_new_head_keeps_what_is_loose_until_everybody_has_said_what_is_open(tree: Tree) -> None:
    """Whatever else a session asks before says nothing about that."""
    client, other = tree.client(), tree.client()
    ino = client.make(b"a")
    client.attr(w.Open(ino))
    client.ask(w.Remove(w.ROOT, b"a"))
    tree.take_over()
    for one in (client, other):
        tree.tick(0.1)
        one.ask(w.Look(w.ROOT, b"a"))
    tree.tick(0.1)
    assert ino in tree.state.inodes
    assert client.ask(w.Present((ino,))) == other.ask(w.Present()) == w.Done()
    tree.tick(0.1)
    assert ino in tree.state.inodes
    client.ask(w.Close(ino))
    tree.tick(0.1)
    assert ino not in tree.state.inodes


def test_a_new_head_waits_for_no_session_that_never_comes(tree: Tree) -> None:
    client = tree.client()
    ino = client.make(b"a")
    client.ask(w.Open(ino))
    client.ask(w.Remove(w.ROOT, b"a"))
    tree.take_over()
    pass_time(tree, module.GRACE_S - 1)
    assert ino in tree.state.inodes
    pass_time(tree, 2)
    assert ino not in tree.state.inodes


def test_a_word_of_what_is_open_that_comes_late_closes_nothing_that_was_opened_since(tree: Tree) -> None:
    client = tree.client()
    ino = client.make(b"a")
    settled = client.number
    client.number += 1
    late = w.Ask(client.session, client.number, settled, w.Caller(0, 0), w.Present())
    client.ask(w.Open(ino), settled=settled)
    client.ask(w.Remove(w.ROOT, b"a"), settled=settled)
    assert tree.ask(late) == w.Done()
    tree.tick()
    assert ino in tree.state.inodes


def test_a_session_that_is_silent_for_too_long_is_over_and_its_locks_are_free(tree: Tree) -> None:
    client, other = tree.client(), tree.client()
    ino = client.make(b"a")
    client.ask(w.Lock(ino, 1, "w"))
    pass_time(tree, module.SILENT_S - 1, other)
    assert other.ask(w.Lock(ino, 1, "w", wait=True)) is None
    waiting = other.number
    pass_time(tree, 3, other)
    assert [say.answer for say in tree.said if say.number == waiting][-1] == w.Done()
    assert client.ask(w.Get(ino)) == w.Over()
    look_after(tree.state)
    assert_same(tree)


def test_a_head_that_has_slept_does_not_take_that_for_the_silence_of_others(tree: Tree) -> None:
    """A machine was frozen: its clock goes on, and what was said meanwhile is still on its way to the process."""
    client = tree.client()
    ino = client.make(b"a")
    client.ask(w.Lock(ino, 1, "w"))
    tree.tick(10 * module.SILENT_S)
    assert client.ask(w.Present((ino,))) == w.Done()
    assert tree.state.locks


def test_leaving_frees_what_was_held_and_forgets_the_session(tree: Tree) -> None:
    client = tree.client()
    ino = client.make(b"a")
    client.attr(w.Open(ino))
    client.ask(w.Lock(ino, 1, "w"))
    client.ask(w.Remove(w.ROOT, b"a"))
    assert client.ask(w.Leave()) == w.Done()
    tree.tick()
    assert not tree.state.locks and not tree.state.sessions and ino not in tree.state.inodes
    look_after(tree.state)
    assert_same(tree)


def test_who_waits_for_a_lock_on_what_is_reaped_is_told(tree: Tree) -> None:
    client, other = tree.client(), tree.client()
    ino = client.make(b"a")
    client.ask(w.Lock(ino, 1, "w"))
    assert other.ask(w.Lock(ino, 1, "w", wait=True)) is None
    client.ask(w.Remove(w.ROOT, b"a"))
    assert w.Failed(errno.ESTALE) in [one.answer for one in tree.said if isinstance(one, module.Say)]
    look_after(tree.state)


@pytest.mark.parametrize("ahead", range(1, 4))
def test_every_name_comes_once_whatever_is_exchanged_while_a_directory_is_read(tree: Tree, ahead: int) -> None:
    client = tree.client()
    for name in (b"a", b"b", b"c", b"d"):
        client.make(name)
    client.ask(w.Rename(w.ROOT, b"a", w.ROOT, b"c", exchange=True))
    found: list[bytes] = []
    after, end = 0, False
    while not end:
        page = client.ask(w.List(w.ROOT, after, ahead))
        assert isinstance(page, w.Listing)
        found += [entry.name for entry in page.entries]
        after, end = page.entries[-1].place, page.end
    assert sorted(found) == [b"a", b"b", b"c", b"d"]
