"""What the tree says to single questions that it once answered unlike Linux; test_tree_model.py asks at large."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator

import pytest

from beo.tree import words as w
from tests.tree_world import Client, Tree, assert_same, look_after

ROOT = w.Caller(0, 0)
ANN = w.Caller(1001, 2001)
BOB = w.Caller(1002, 2002)
DIR, FILE = stat.S_IFDIR, stat.S_IFREG


@pytest.fixture
def client() -> Iterator[Client]:
    tree = Tree()
    yield tree.client()
    look_after(tree.state)
    assert_same(tree)


def mode_of(client: Client, ino: int) -> int:
    return stat.S_IMODE(client.attr(w.Get(ino)).mode)


def owned(client: Client, name: bytes, caller: w.Caller, mode: int, parent: int = w.ROOT) -> int:
    """Make something that is a caller's."""
    return client.attr(w.Make(parent, name, mode), caller).ino


def test_a_rename_to_the_same_inode_is_nothing_that_anybody_could_be_denied(client: Client) -> None:
    """The root is sticky, and neither Ann's file nor the root is Bob's."""
    ino = owned(client, b"a", ANN, FILE | 0o600)
    client.attr(w.Link(ino, w.ROOT, b"b"), ANN)
    before = client.tree.state.index
    assert client.ask(w.Rename(w.ROOT, b"a", w.ROOT, b"a"), BOB) == w.Done()
    assert client.ask(w.Rename(w.ROOT, b"a", w.ROOT, b"b"), BOB) == w.Done()
    assert client.tree.state.index == before
    assert client.ask(w.Rename(w.ROOT, b"a", w.ROOT, b"c"), BOB) == w.Failed(errno.EPERM)


def test_a_rename_over_another_type_says_so_before_permissions_on_the_moved_directory(client: Client) -> None:
    folder = owned(client, b"folder", ANN, DIR | 0o777)
    owned(client, b"file", ANN, FILE | 0o666, folder)
    owned(client, b"closed", ANN, DIR | 0o500)
    moved = w.Rename(w.ROOT, b"closed", folder, b"file")
    assert client.ask(moved, ANN) == w.Failed(errno.ENOTDIR)
    moved = w.Rename(w.ROOT, b"closed", folder, b"closed")
    assert client.ask(moved, ANN) == w.Failed(errno.EACCES)  # its ".." would be another


def test_what_may_not_be_entered_does_not_tell_which_names_are_taken(client: Client) -> None:
    folder = owned(client, b"folder", ANN, DIR | 0o700)
    ino = owned(client, b"a", ANN, FILE | 0o600, folder)
    mine = owned(client, b"mine", BOB, FILE | 0o600)
    for question in (w.Link(mine, folder, b"a"), w.Make(folder, b"a", FILE), w.Rename(w.ROOT, b"mine", folder, b"a")):
        assert client.ask(question, BOB) == w.Failed(errno.EACCES)
    assert ino


def test_in_a_directory_that_was_removed_nothing_is_made_whoever_asks(client: Client) -> None:
    ghost = owned(client, b"ghost", ANN, DIR | 0o755)
    client.attr(w.Open(ghost))
    assert client.ask(w.Remove(w.ROOT, b"ghost", True)) == w.Done()
    for caller in (ROOT, ANN, BOB):
        assert client.ask(w.Make(ghost, b"a", FILE), caller) == w.Failed(errno.ENOENT)


def test_who_is_not_of_a_directorys_group_can_not_lend_it(client: Client) -> None:
    folder = owned(client, b"folder", ANN, DIR | 0o755)
    client.attr(w.Set(folder, gid=4000))
    assert mode_of(client, folder) == 0o755
    client.attr(w.Set(folder, mode=0o2755), ANN)
    assert mode_of(client, folder) == 0o755
    client.attr(w.Set(folder, mode=0o2755))
    assert mode_of(client, folder) == 0o2755


@pytest.mark.parametrize("mode", [0o4644, 0o4755, 0o6755])
def test_a_new_owner_or_size_takes_a_files_privileges_whether_it_can_be_executed_or_not(
    client: Client, mode: int
) -> None:
    for number, wish in enumerate(({"uid": 1001}, {"gid": 2001}, {"size": 0})):
        ino = owned(client, b"%d" % number, ANN, FILE | mode)
        client.attr(w.Set(ino, **wish), ANN)
        assert mode_of(client, ino) == mode & 0o777


def test_a_file_that_is_opened_to_be_emptied_loses_its_privileges(client: Client) -> None:
    ino = owned(client, b"a", ANN, FILE | 0o4777)
    client.attr(w.Open(ino, truncate=True), BOB)
    assert mode_of(client, ino) == 0o777
    assert client.ask(w.Open(w.ROOT, truncate=True), ROOT) == w.Failed(errno.EISDIR)


def test_a_group_that_is_not_the_writers_is_not_lent_by_what_he_has_written(client: Client) -> None:
    ino = owned(client, b"a", ANN, FILE | 0o666)
    client.attr(w.Set(ino, mode=0o2666))
    client.attr(w.Write(ino, 0, b"x"), ANN)
    assert mode_of(client, ino) == 0o2666
    client.attr(w.Write(ino, 0, b"x"), BOB)
    assert mode_of(client, ino) == 0o666


def test_a_directory_has_no_size_to_set_whoever_asks(client: Client) -> None:
    ino = owned(client, b"a", ANN, DIR | 0o700)
    assert client.ask(w.Set(ino, size=0), BOB) == w.Failed(errno.EISDIR)


def test_who_may_write_may_set_both_times_to_now_and_nothing_else(client: Client) -> None:
    ino = owned(client, b"a", ANN, FILE | 0o666)
    client.attr(w.Set(ino, atime_ns=-1, mtime_ns=-1), BOB)
    for wish in (w.Set(ino, atime_ns=-1), w.Set(ino, mtime_ns=5), w.Set(ino, atime_ns=-1, mtime_ns=5)):
        assert client.ask(wish, BOB) == w.Failed(errno.EPERM)
