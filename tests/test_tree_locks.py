"""Locks of the tree against real ones, of fcntl(2) and flock(2), and those who wait for one: nobody for ever."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beo.tree import core, locks
from beo.tree import words as w
from beo.tree.locks import Held
from tests.tree_world import ROOT_CALLER, Client, Tree, assert_same, look_after

OWNERS = 3
# A process that owns locks: it takes one line for one system call, and says errno, or which lock is in the way.
OWNER = """
import fcntl, os, struct, sys
posix, whole = (os.open(sys.argv[1], os.O_RDWR) for _ in range(2))
kinds = {"r": fcntl.F_RDLCK, "w": fcntl.F_WRLCK, "u": fcntl.F_UNLCK}
flocks = {"r": fcntl.LOCK_SH, "w": fcntl.LOCK_EX, "u": fcntl.LOCK_UN}
for line in sys.stdin:
    verb, kind, start, end = line.split()
    said = "0"
    try:
        if verb == "flock":
            fcntl.flock(whole, flocks[kind] | fcntl.LOCK_NB)
        else:
            length = 0 if end == "end" else int(end) - int(start) + 1
            wish = struct.pack("hhqqi4x", kinds[kind], os.SEEK_SET, int(start), length, 0)
            found = fcntl.fcntl(posix, fcntl.F_SETLK if verb == "set" else fcntl.F_GETLK, wish)
            if verb == "get":
                said = " ".join(map(str, struct.unpack("hhqqi4x", found)))
    except OSError as error:
        said = str(error.errno)
    print(said, flush=True)
"""
LINUX_KINDS = {"READ": "r", "WRITE": "w"}


class Real:
    """Processes that lock one file."""

    def __init__(self, path: Path) -> None:
        path.touch()
        words = [sys.executable, "-I", "-S", "-c", OWNER, str(path)]
        pipe = subprocess.PIPE
        self.owners = [subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) for _ in range(OWNERS)]
        self.ino = path.stat().st_ino

    def ask(self, owner: int, verb: str, kind: str, start: int = 0, end: int = w.WHOLE) -> str:
        """Let a process do one thing, and return what it says."""
        process = self.owners[owner]
        assert process.stdin and process.stdout
        process.stdin.write(f"{verb} {kind} {start} {'end' if end == w.WHOLE else end}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    def held(self) -> set[tuple[int, str, int, int, bool]]:
        """Every lock on the file: (owner, kind, start, end, whole)."""
        found = set()
        pids = [process.pid for process in self.owners]
        for line in Path("/proc/locks").read_text().splitlines():
            sort, _, kind, pid, where, start, end = line.split()[1:8]
            if int(where.rpartition(":")[2]) == self.ino and int(pid) in pids:
                last = w.WHOLE if end == "EOF" else int(end)
                found.add((pids.index(int(pid)), LINUX_KINDS[kind], int(start), last, sort == "FLOCK"))
        return found

    def free(self) -> None:
        """Unlock everything."""
        for owner in range(OWNERS):
            self.ask(owner, "set", "u")
            self.ask(owner, "flock", "u")

    def close(self) -> None:
        """End the processes."""
        for process in self.owners:
            assert process.stdin and process.stdout
            process.stdin.close()
            process.wait()
            process.stdout.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    found = Real(tmp_path_factory.mktemp("locks") / "file")
    yield found
    found.close()


RANGES = st.tuples(st.integers(0, 12), st.sampled_from([0, 1, 2, 5, -1])).map(
    lambda pair: (pair[0], w.WHOLE if pair[1] < 0 else pair[0] + pair[1])
)
STEPS = st.lists(
    st.tuples(st.integers(0, OWNERS - 1), st.sampled_from("rwru"), RANGES, st.sampled_from(["set", "set", "flock"])),
    max_size=20,
)


@settings(max_examples=150)
@given(STEPS)
def test_locks_are_granted_split_and_joined_as_linux_does_it(
    real: Real, steps: list[tuple[int, str, tuple[int, int], str]]
) -> None:
    """What is known to differ: Linux loses a shared flock where it can't be made an exclusive one at once."""
    real.free()
    tree = Tree()
    clients = [tree.client(), tree.client()]  # owner 0 has a session of its own, the others share one
    ino = clients[0].make(b"a")
    for owner, kind, (start, end), verb in steps:
        client, whole = clients[owner > 0], verb == "flock"
        if whole:
            start, end = 0, w.WHOLE
        answer = client.ask(w.Lock(ino, owner, kind, start, end, whole))
        said = 0 if answer == w.Done() else answer.errno
        assert said == int(real.ask(owner, verb, kind, start, end))
        if whole and said:
            client.ask(w.Unlock(ino, owner, whole=True))
        held = {(lock.owner[1], lock.kind, lock.start, lock.end, lock.whole) for lock in tree.state.locks.get(ino, ())}
        assert held == real.held()
        for asker in range(OWNERS):
            found = clients[asker > 0].ask(w.Blocker(ino, asker, "w", start, end))
            assert isinstance(found, w.BlockerIs)
            in_the_way = [(found.kind, found.start, found.end)] if found.kind != "u" else []
            type_, _, real_start, length, _ = map(int, real.ask(asker, "get", "w", start, end).split())
            expected = (
                [("rwu"[type_], real_start, real_start + length - 1 if length else w.WHOLE)] if type_ != 2 else []
            )
            assert bool(in_the_way) == bool(expected)
            # Where there are several, Linux names the one that was first there, and the tree the first in the file.
            assert all((owner != asker, *lock, False) for owner, *lock, _ in held if tuple(lock) in expected)
            assert all(any(tuple(lock) == one for _, *lock, _ in held) for one in in_the_way + expected)
    look_after(tree.state)
    assert_same(tree)


# ---- those who wait


@pytest.fixture
def tree() -> Tree:
    return Tree()


def answers(tree: Tree, number: int) -> list[w.Told]:
    """What was said to a question."""
    return [say.answer for say in tree.said if say.number == number]


def wait_for_lock(client: Client, ino: int, owner: int, kind: str = "w", whole: bool = False) -> int:
    """Ask for a lock that isn't free; return the number of the question, which is nobody else's."""
    client.number = max(client.number, *(other.number + 1_000 for other in client.tree.clients))
    assert client.ask(w.Lock(ino, owner, kind, whole=whole, wait=True)) is None
    return client.number


def test_who_waits_gets_the_lock_in_the_order_of_asking(tree: Tree) -> None:
    holder, others = tree.client(), [tree.client() for _ in range(3)]
    ino = holder.make(b"a")
    assert holder.ask(w.Lock(ino, 1, "w")) == w.Done()
    numbers = [wait_for_lock(client, ino, 1) for client in others]
    for turn, number in enumerate(numbers):
        assert [say.number for say in tree.said if say.number in numbers] == numbers[:turn]
        (holder, *others)[turn].ask(w.Unlock(ino, 1))
        assert answers(tree, number) == [w.Done()]
    assert [say.number for say in tree.said if say.number in numbers] == numbers


def test_readers_that_wait_come_in_together_and_a_writer_after_them(tree: Tree) -> None:
    holder, one, other, writer = (tree.client() for _ in range(4))
    ino = holder.make(b"a")
    holder.ask(w.Lock(ino, 1, "w"))
    first, last = wait_for_lock(one, ino, 1, "r"), wait_for_lock(writer, ino, 1, "w")
    second = wait_for_lock(other, ino, 1, "r")
    holder.ask(w.Lock(ino, 1, "r"))  # the writer's lock becomes weaker, which lets readers in
    assert [say.number for say in tree.said if say.number in (first, second, last)] == [first, second]
    for client in (holder, one, other):
        client.ask(w.Unlock(ino, 1))
    assert last in [say.number for say in tree.said]


def test_a_thousand_readers_that_wait_for_one_writer_all_come_in(tree: Tree) -> None:
    client = tree.client()
    ino = client.make(b"a")
    client.ask(w.Lock(ino, 0, "w"))
    for owner in range(1, 1_001):
        assert client.ask(w.Lock(ino, owner, "r", wait=True), settled=0) is None
    assert client.ask(w.Unlock(ino, 0), settled=0) == w.Done()
    assert len(tree.state.locks[ino]) == 1_000


def test_a_lock_that_would_wait_for_itself_is_refused(tree: Tree) -> None:
    one, other, third = (tree.client() for _ in range(3))
    inos = [one.make(name) for name in (b"a", b"b", b"c")]
    for client, ino in zip((one, other, third), inos, strict=True):
        assert client.ask(w.Lock(ino, 1, "w")) == w.Done()
    wait_for_lock(one, inos[1], 1)
    wait_for_lock(other, inos[2], 1)
    assert third.ask(w.Lock(inos[0], 1, "w", wait=True)) == w.Failed(errno.EDEADLK)
    assert third.ask(w.Lock(inos[0], 1, "w")) == w.Failed(errno.EAGAIN)


def test_a_lock_that_would_wait_for_itself_behind_another_one_is_refused(tree: Tree) -> None:
    """Two are in the way, and it is the second that waits."""
    one, reader, other = (tree.client() for _ in range(3))
    first, second = one.make(b"a"), one.make(b"b")
    assert reader.ask(w.Lock(first, 1, "r", 0, 9)) == w.Done()
    assert other.ask(w.Lock(first, 1, "r", 5, 9)) == w.Done()
    assert one.ask(w.Lock(second, 1, "w")) == w.Done()
    wait_for_lock(other, second, 1)
    assert one.ask(w.Lock(first, 1, "w", wait=True)) == w.Failed(errno.EDEADLK)


def test_two_who_want_to_make_a_shared_flock_exclusive_do_not_wait_for_each_other(tree: Tree) -> None:
    one, other = tree.client(), tree.client()
    ino = one.make(b"a")
    for client in (one, other):
        assert client.ask(w.Lock(ino, 1, "r", whole=True)) == w.Done()
    number = wait_for_lock(one, ino, 1, whole=True)
    assert other.ask(w.Lock(ino, 1, "w", whole=True, wait=True)) == w.Done()  # who waits has given up what he had
    (held,) = tree.state.locks[ino]
    assert held.kind == "w" and held.owner == (other.session, 1)
    assert other.ask(w.Unlock(ino, 1, whole=True)) == w.Done()
    assert answers(tree, number) == [w.Done()]
    (held,) = tree.state.locks[ino]
    assert held.kind == "w" and held.owner == (one.session, 1)


def test_a_shared_flock_is_kept_where_it_can_not_be_made_exclusive_at_once(tree: Tree) -> None:
    one, other = tree.client(), tree.client()
    ino = one.make(b"a")
    for client in (one, other):
        client.ask(w.Lock(ino, 1, "r", whole=True))
    assert one.ask(w.Lock(ino, 1, "w", whole=True)) == w.Failed(errno.EAGAIN)
    assert len(tree.state.locks[ino]) == 2


def test_a_lock_that_is_waited_for_can_be_cancelled(tree: Tree) -> None:
    holder, other = tree.client(), tree.client()
    ino = holder.make(b"a")
    holder.ask(w.Lock(ino, 1, "w"))
    number = wait_for_lock(other, ino, 1)
    assert other.ask(w.CancelLock(number)) == w.Done()
    assert answers(tree, number) == [w.Failed(errno.EINTR)]
    number = wait_for_lock(other, ino, 1)
    assert other.ask(w.Unlock(ino, 1)) == w.Done()
    assert answers(tree, number) == [w.Failed(errno.EINTR)]
    holder.ask(w.Unlock(ino, 1))
    assert not tree.state.locks


def test_what_waits_ends_with_its_session_and_so_does_what_is_held(tree: Tree) -> None:
    holder, dead, other = (tree.client() for _ in range(3))
    ino = holder.make(b"a")
    holder.ask(w.Lock(ino, 1, "w"))
    wait_for_lock(dead, ino, 1)
    number = wait_for_lock(other, ino, 1)
    dead.ask(w.Leave())
    holder.ask(w.Leave())
    assert answers(tree, number) == [w.Done()]
    (held,) = tree.state.locks[ino]
    assert held.owner == (other.session, 1)


def test_a_lock_that_is_asked_for_again_is_granted_once_and_answered_over_the_new_connection(tree: Tree) -> None:
    holder, other = tree.client(), tree.client()
    ino = holder.make(b"a")
    holder.ask(w.Lock(ino, 1, "w"))
    number = wait_for_lock(other, ino, 1)
    assert other.last
    tree.perform(tree.core.ask(b"another peer", other.last, tree.now_s, tree.now_ns))
    holder.ask(w.Unlock(ino, 1))
    assert [(say.peer, say.answer) for say in tree.said if say.number == number] == [(b"another peer", w.Done())]
    before = tree.state.encode()
    tree.take_over()
    assert other.again() == w.Done() and tree.state.encode() == before


def test_a_lock_that_was_waited_for_is_waited_for_at_the_next_head_too(tree: Tree) -> None:
    holder, other = tree.client(), tree.client()
    ino = holder.make(b"a")
    holder.ask(w.Lock(ino, 1, "w"))
    number = wait_for_lock(other, ino, 1)
    tree.take_over()
    assert other.again() is None
    holder.ask(w.Unlock(ino, 1))
    assert answers(tree, number) == [w.Done()]


WAITS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from("rwwu"), st.integers(0, 1), RANGES, st.booleans()), max_size=40
)


@settings(max_examples=150)
@given(WAITS)
def test_nobody_waits_without_need_nor_in_a_circle(steps: list[tuple[int, str, int, tuple[int, int], bool]]) -> None:
    tree = Tree()
    client = tree.client()
    inos = [client.make(b"a"), client.make(b"b")]
    waiting: dict[int, tuple[int, int, Held]] = {}  # owner -> (question, inode, wish)
    for owner, kind, file, (start, end), cancels in steps:
        if owner in waiting:
            if not cancels:
                continue
            client.ask(w.CancelLock(waiting[owner][0]), settled=0)
        elif client.ask(w.Lock(inos[file], owner, kind, start, end, wait=True), settled=0) is None:
            wish = Held((client.session, owner), kind, start, end, False, 0)
            waiting[owner] = client.number, inos[file], wish
        answered = {say.number for say in tree.said}
        waiting = {one: wait for one, wait in waiting.items() if wait[0] not in answered}
        behind = {}
        for one, (_, ino, wish) in waiting.items():
            behind[one] = {lock.owner[1] for lock in locks.in_the_way(tree.state.locks.get(ino, ()), wish)}
            assert behind[one], "somebody waits for a lock that is free"
        while free := [one for one, ahead in behind.items() if not ahead & behind.keys()]:
            for one in free:
                del behind[one]
        assert not behind, "some wait in a circle"
        for held in tree.state.locks.values():
            assert not any(locks.blocker(held, lock) for lock in held)
    look_after(tree.state)
    assert_same(tree)


def test_a_question_that_waits_keeps_no_others_on_record_and_is_done_once_at_the_next_head(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "SETTLE_EVERY", 10)
    monkeypatch.setattr(core, "ANSWERED_MAX", 40)
    holder, client = tree.client(), tree.client()
    ino = client.make(b"file")
    assert holder.ask(w.Lock(ino, 1, "w")) == w.Done()
    assert client.ask(w.Lock(ino, 2, "w", wait=True)) is None
    waiting = client.last
    assert waiting

    def ask(question: w.Question) -> w.Ask:
        client.number += 1
        number = client.number
        return w.Ask(
            client.session, number, waiting.number - 1, ROOT_CALLER, question, False, number - 1, (waiting.number,)
        )

    asked = [ask(w.Make(w.ROOT, b"%d" % k, 0o100644)) for k in range(200)]
    for one in asked:
        assert isinstance(tree.ask(one), w.AttrIs)
    assert len(tree.state.sessions[client.session].answered) < 40
    tree.take_over()
    before = len(tree.log)
    assert tree.ask(asked[100]) is None, "a copy that comes late does nothing, though its name may be free by then"
    assert tree.ask(asked[-1]) is not None and len(tree.log) == before, "what may not have been heard is told again"
    assert tree.ask(waiting) is None
    assert holder.ask(w.Unlock(ino, 1)) == w.Done()
    assert tree.said[-1].number == waiting.number or tree.said[-2].number == waiting.number
    before = len(tree.log)
    tree.take_over()
    assert tree.ask(waiting) == w.Done() and len(tree.log) == before, "it has it already"
    client.number += 1
    settled = w.Ask(client.session, client.number + 20, client.number + 19, ROOT_CALLER, w.Unlock(ino, 2))
    assert tree.ask(settled) == w.Done()
    assert tree.ask(waiting) is None and ino not in tree.state.locks, "a late copy locks nothing that nobody unlocks"
    look_after(tree.state)
    assert_same(tree)
