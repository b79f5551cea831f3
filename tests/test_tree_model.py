"""The tree against the real thing: whatever is asked of it, it says and does what Linux does in a folder of its own.

Real system calls, by the same callers, are the oracle (setfsuid(2) makes this thread another user for the kernel's file
systems). After each step errno and the whole tree are compared: names, types, modes, owners, numbers of links, sizes,
targets and bytes. Differences that are meant, because the tree can't know or doesn't want it otherwise:

- the size of a directory is the number of its names; Linux leaves that to each file system
- who may link a file that isn't his is no matter of the tree: Linux has a switch for it (fs.protected_hardlinks), which
  the caller's own kernel looks at; so it is for open(O_CREAT) in sticky directories (fs.protected_regular)
- a name of a file system's root, and "." and "..", are what a kernel walks before it asks
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from beo.tree import words as w
from tests.tree_world import Client, Tree, assert_same, look_after

IS_ROOT = os.geteuid() == 0
ROOT = w.Caller(os.geteuid(), os.getegid(), tuple(os.getgroups()))
ANN = w.Caller(11_001, 21_001, (30_000,))
BOB = w.Caller(11_002, 21_002, (30_000, 30_001))
CALLERS = [ROOT, ANN, BOB] if IS_ROOT else [ROOT]
UIDS = [0, ANN.uid, BOB.uid] if IS_ROOT else [ROOT.uid]
GIDS = [0, ANN.gid, BOB.gid, 30_000, 30_001] if IS_ROOT else [ROOT.gid]
SHARED = Path("/dev/shm")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.linkat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fchownat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_int)
_NOREPLACE, _EXCHANGE, _EMPTY_PATH = 1, 2, 0x1000

NAMES = st.sampled_from([b"a", b"b", b"c", b"d", b"e\xff"])
MODES = st.sampled_from(
    [0o777, 0o755, 0o700, 0o644, 0o600, 0o1777, 0o2775, 0o2770, 0o4755, 0o6755, 0o2644, 0o000, 0o333]
)
PICKS = st.integers(0, 255)
CALLER = st.sampled_from(CALLERS)
BYTES = st.binary(max_size=40)


@contextmanager
def being(caller: w.Caller) -> Iterator[None]:
    """Be a caller, for the kernel's file systems."""
    if not IS_ROOT:
        yield
        return
    before = os.getgroups()
    os.setgroups(caller.groups)
    _libc.setfsgid(caller.gid)
    _libc.setfsuid(caller.uid)
    try:
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)
        os.setgroups(before)


def call(name: str, *arguments: Any) -> None:
    """Call a function of libc that Python doesn't have; raises OSError."""
    if getattr(_libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


class Oracle:
    """The same tree in a real folder, with a descriptor of everything in it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.fds = {w.ROOT: os.open(folder, os.O_PATH | os.O_DIRECTORY)}

    def path(self, ino: int) -> str:
        """A path of an inode, be it without a name."""
        return f"/proc/self/fd/{self.fds[ino]}"

    def found(self, ino: int, parent: int, name: bytes) -> None:
        """An inode of the tree is what has this name here."""
        self.fds[ino] = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.fds[parent])

    def gone(self, ino: int) -> None:
        """An inode is no more."""
        os.close(self.fds.pop(ino))

    def content(self, ino: int) -> bytes:
        """All bytes of a file."""
        return Path(self.path(ino)).read_bytes()

    def close(self) -> None:
        """Leave nothing behind."""
        for fd in self.fds.values():
            os.close(fd)
        shutil.rmtree(self.folder)


class Same(RuleBasedStateMachine):
    """Two clients ask the tree and, each time, the real file system."""

    @initialize(on_disk=st.booleans())
    def begin(self, on_disk: bool) -> None:
        self.umask = os.umask(0)
        where = None if on_disk or not SHARED.is_dir() else str(SHARED)
        folder = tempfile.mkdtemp(prefix="beo-oracle-", dir=where)
        os.chmod(folder, 0o1777)
        self.oracle = Oracle(folder)
        self.tree = Tree()
        self.clients = [self.tree.client(), self.tree.client()]
        self.held: dict[int, int] = {}  # inodes that are open -> real descriptor
        if not IS_ROOT:
            self.clients[0].attr(w.Set(w.ROOT, uid=ROOT.uid, gid=ROOT.gid))
        else:
            os.chown(folder, 0, 0)
        self.populate()

    def populate(self) -> None:
        """Something of everybody's, in directories of all sorts."""
        owners = [ROOT, ANN, BOB, ANN] if IS_ROOT else [ROOT] * 4
        for number, (letter, mode) in enumerate(zip(b"abcd", (0o755, 0o1777, 0o2775, 0o777), strict=True)):
            folder = bytes([letter])
            self.mkdir(0, ROOT, folder, 0o777, False)
            parent = self.inode(w.ROOT, folder)
            for caller in CALLERS:
                name = b"a%d" % caller.uid
                self.create(self.index(parent), caller, name, 0o4775, False, False)
                self.write(self.index(self.inode(parent, name), True), caller, 0, b"x", True)
            self.chown(self.index(parent, None), ROOT, owners[number].uid, GIDS[-2] if number == 2 else None)
            self.chmod(self.index(parent, None), ROOT, mode)
        self.symlink(0, ROOT, b"e", b"a")

    def inode(self, parent: int, name: bytes) -> int:
        children = self.tree.state.inodes[parent].children
        assert children is not None
        return children[name][0]

    def index(self, ino: int, files: bool | None = False) -> int:
        """The number by which an inode is picked, out of directories, files, or all that is no link."""
        right = stat.S_ISREG if files else stat.S_ISDIR if files is False else lambda mode: not stat.S_ISLNK(mode)
        return [one for one in self.oracle.fds if right(self.tree.state.inodes[one].mode)].index(ino)

    # ---- what there is

    def pick(self, number: int, right: Callable[[int], bool]) -> int:
        """One of the inodes that are right; 0 where none is."""
        found = [ino for ino in self.oracle.fds if right(self.tree.state.inodes[ino].mode)]
        return found[number % len(found)] if found else 0

    def folder(self, number: int) -> int:
        return self.pick(number, stat.S_ISDIR)

    def entry(self, number: int, name: bytes) -> tuple[int, bytes, int]:
        """Where some name is, mostly one that there is -> its directory, itself, the directory's descriptor."""
        inodes = self.tree.state.inodes
        entries = [(ino, key) for ino in self.oracle.fds for key in inodes[ino].children or ()]
        if not entries or number > 240:
            entries = [(self.folder(number), name)]
        parent, key = entries[number % len(entries)]
        return parent, key, self.oracle.fds[parent]

    def file(self, number: int) -> int:
        return self.pick(number, stat.S_ISREG)

    def both(
        self, pick: int, caller: w.Caller, question: w.Question, real: Callable[[], object], checked: bool = False
    ) -> w.Answer | None:
        """Ask, do the real thing, and compare. Half of the questions are asked twice: that changes nothing.

        checked: the caller's kernel has looked at permissions, and asks only if they are right.
        """
        number: int | None = None
        try:
            with being(caller):
                real()
        except OSError as error:
            number = error.errno
        if checked:
            if number in (errno.EACCES, errno.EPERM):
                return None
            caller = w.Caller(caller.uid, caller.gid, caller.groups, True)
        client: Client = self.clients[pick % 2]
        answer = client.ask(question, caller)
        assert answer is not None
        said = answer.errno if isinstance(answer, w.Failed) else None
        names = [errno.errorcode.get(code or 0, "fine") for code in (said, number)]
        assert said == number, f"{caller} asks for {question}: the tree says {names[0]}, Linux {names[1]}"
        if number is None and isinstance(question, w.CHANGING) and pick & 2:
            before = self.tree.state.encode(), len(self.tree.log)
            assert client.again() == answer
            assert (self.tree.state.encode(), len(self.tree.log)) == before
        self.forget_what_is_gone()
        return answer if number is None else None

    def forget_what_is_gone(self) -> None:
        """Nobody has it open, and nothing names it."""
        for ino in list(self.oracle.fds):
            if ino not in self.tree.state.inodes:
                assert ino not in self.held and not os.fstat(self.oracle.fds[ino]).st_nlink
                self.oracle.gone(ino)

    def made(self, answer: w.Answer | None, parent: int, name: bytes) -> None:
        if isinstance(answer, w.AttrIs):
            self.oracle.found(answer.attr.ino, parent, name)

    # ---- names

    @rule(pick=PICKS, caller=CALLER, name=NAMES, mode=MODES, checked=st.booleans())
    def mkdir(self, pick: int, caller: w.Caller, name: bytes, mode: int, checked: bool) -> None:
        parent, fd = self.folder(pick), self.oracle.fds[self.folder(pick)]
        mode &= 0o1777  # mkdir(2) has no other bits, and a kernel doesn't ask for them
        question = w.Make(parent, name, stat.S_IFDIR | mode)
        answer = self.both(pick, caller, question, lambda: os.mkdir(name, mode, dir_fd=fd), checked)
        self.made(answer, parent, name)

    @rule(pick=PICKS, caller=CALLER, name=NAMES, mode=MODES, checked=st.booleans(), fifo=st.booleans())
    def create(self, pick: int, caller: w.Caller, name: bytes, mode: int, checked: bool, fifo: bool) -> None:
        parent, fd = self.folder(pick), self.oracle.fds[self.folder(pick)]
        whole = (stat.S_IFIFO if fifo else stat.S_IFREG) | mode
        question = w.Make(parent, name, whole)
        answer = self.both(pick, caller, question, lambda: os.mknod(name, whole, dir_fd=fd), checked)
        self.made(answer, parent, name)

    @rule(pick=PICKS, caller=CALLER, name=NAMES, leads_to=st.sampled_from([b"a", b"/x/y", b"\xfe" * 4_095]))
    def symlink(self, pick: int, caller: w.Caller, name: bytes, leads_to: bytes) -> None:
        parent, fd = self.folder(pick), self.oracle.fds[self.folder(pick)]
        question = w.Make(parent, name, stat.S_IFLNK | 0o777, leads_to)
        answer = self.both(pick, caller, question, lambda: os.symlink(leads_to, name, dir_fd=fd))
        self.made(answer, parent, name)

    @rule(pick=PICKS, other=PICKS, caller=CALLER, name=NAMES, checked=st.booleans())
    def link(self, pick: int, other: int, caller: w.Caller, name: bytes, checked: bool) -> None:
        ino = self.pick(other, lambda mode: not stat.S_ISDIR(mode))
        if not ino:
            return
        found = self.tree.state.inodes[ino]
        if caller.uid not in (ROOT.uid, found.uid) or not found.nlink:
            return  # see above; and a file without a name has no path by which Linux would link it
        parent, fd = self.folder(pick), self.oracle.fds[self.folder(pick)]
        where = next(
            (folder, key)
            for folder, inode in self.tree.state.inodes.items()
            for key, (child, _) in (inode.children or {}).items()
            if child == ino
        )
        old = os.open(self.oracle.path(where[0]), os.O_PATH) if IS_ROOT else os.dup(self.oracle.fds[where[0]])
        permissions = self.tree.state.inodes[where[0]].mode
        if caller.uid and not permissions & 1:
            os.close(old)
            return  # he couldn't come as far
        question = w.Link(ino, parent, name)
        self.both(
            pick,
            caller,
            question,
            lambda: os.link(where[1], name, src_dir_fd=old, dst_dir_fd=fd, follow_symlinks=False),
            checked,
        )
        os.close(old)

    @rule(pick=PICKS, caller=CALLER, name=NAMES, wrong=st.integers(0, 7), checked=st.booleans())
    def remove(self, pick: int, caller: w.Caller, name: bytes, wrong: int, checked: bool) -> None:
        parent, name, fd = self.entry(pick, name)
        found = (self.tree.state.inodes[parent].children or {}).get(name)
        is_dir = bool(found and self.tree.state.inodes[found[0]].is_dir) != (not wrong)
        take = os.rmdir if is_dir else os.unlink
        self.both(pick, caller, w.Remove(parent, name, is_dir), lambda: take(name, dir_fd=fd), checked)

    @rule(
        pick=PICKS,
        other=PICKS,
        caller=CALLER,
        new=NAMES,
        how=st.sampled_from([0, 0, _NOREPLACE]),
        checked=st.booleans(),
    )
    def rename(self, pick: int, other: int, caller: w.Caller, new: bytes, how: int, checked: bool) -> None:
        self.rename_to(pick, caller, (self.folder(other), new), how, checked)

    @rule(pick=PICKS, other=PICKS, caller=CALLER, how=st.sampled_from([0, _EXCHANGE]), checked=st.booleans())
    def rename_to_what_is_there(self, pick: int, other: int, caller: w.Caller, how: int, checked: bool) -> None:
        self.rename_to(pick, caller, self.entry(other, b"a")[:2], how, checked)

    def rename_to(self, pick: int, caller: w.Caller, to: tuple[int, bytes], how: int, checked: bool) -> None:
        (old, name, fd), (into, new) = self.entry(pick, b"a"), to
        question = w.Rename(old, name, into, new, how == _NOREPLACE, how == _EXCHANGE)
        into_fd = self.oracle.fds[into]
        self.both(pick, caller, question, lambda: call("renameat2", fd, name, into_fd, new, how), checked)

    @rule(pick=PICKS, caller=CALLER, name=NAMES)
    def look(self, pick: int, caller: w.Caller, name: bytes) -> None:
        parent, name, fd = self.entry(pick, name)
        self.both(pick, caller, w.Look(parent, name), lambda: os.stat(name, dir_fd=fd, follow_symlinks=False))

    @rule(pick=PICKS, caller=CALLER, limit=st.integers(1, 3))
    def list_in_pages(self, pick: int, caller: w.Caller, limit: int) -> None:
        """Page by page, every name comes once."""
        ino = self.folder(pick)
        answer = self.both(pick, caller, w.List(ino, 0, limit), lambda: os.listdir(self.oracle.path(ino)))
        names: list[bytes] = []
        while isinstance(answer, w.Listing):
            assert len(answer.entries) <= limit
            names += [entry.name for entry in answer.entries]
            assert all(entry.attr == self.tree.state.attr(entry.attr.ino) for entry in answer.entries)
            if answer.end:
                assert sorted(names) == sorted(os.listdir(os.fsencode(self.oracle.path(ino))))
                return
            answer = self.clients[0].ask(w.List(ino, answer.entries[-1].place, limit))

    # ---- what is known of an inode

    @rule(pick=PICKS, caller=CALLER, mode=MODES)
    def chmod(self, pick: int, caller: w.Caller, mode: int) -> None:
        ino = self.pick(pick, lambda found: not stat.S_ISLNK(found))
        self.both(pick, caller, w.Set(ino, mode=mode), lambda: os.chmod(self.oracle.path(ino), mode))

    @rule(pick=PICKS, caller=CALLER, uid=st.sampled_from([None, *UIDS]), gid=st.sampled_from([None, *GIDS]))
    def chown(self, pick: int, caller: w.Caller, uid: int | None, gid: int | None) -> None:
        if uid is None and gid is None:
            return
        ino = self.pick(pick, lambda mode: pick > 200 or not stat.S_ISLNK(mode))
        whole = [(1 << 32) - 1 if number is None else number for number in (uid, gid)]
        fd = self.oracle.fds[ino]
        question = w.Set(ino, uid=uid, gid=gid)
        self.both(pick, caller, question, lambda: call("fchownat", fd, b"", *whole, _EMPTY_PATH))

    @rule(pick=PICKS, caller=CALLER, size=st.sampled_from([0, 1, 10, 5_000]))
    def truncate(self, pick: int, caller: w.Caller, size: int) -> None:
        ino = self.pick(pick, lambda mode: stat.S_ISREG(mode) or stat.S_ISDIR(mode))
        self.both(pick, caller, w.Set(ino, size=size), lambda: os.truncate(self.oracle.path(ino), size))

    @rule(pick=PICKS, caller=CALLER, times=st.sampled_from([(5, 6), (-1, 7), (8, -1), (-1, -1)]))
    def utimens(self, pick: int, caller: w.Caller, times: tuple[int, int]) -> None:
        ino = self.pick(pick, lambda mode: not stat.S_ISLNK(mode))
        path = self.oracle.path(ino)
        wish = times if times != (-1, -1) else None
        known = os.stat(path)
        before = known.st_atime_ns, known.st_mtime_ns
        if wish and -1 in wish:
            return self.utimens_of_one(pick, caller, ino, times)
        question = w.Set(ino, atime_ns=times[0], mtime_ns=times[1])

        def real() -> None:
            if wish:
                os.utime(path, ns=wish)
            else:
                os.utime(path)

        answer = self.both(pick, caller, question, real)
        if answer and wish:
            assert isinstance(answer, w.AttrIs)
            found = os.stat(path)
            assert (answer.attr.atime_ns, answer.attr.mtime_ns) == (found.st_atime_ns, found.st_mtime_ns) != before
        return None

    def utimens_of_one(self, pick: int, caller: w.Caller, ino: int, times: tuple[int, int]) -> None:
        """-1 stands for UTIME_OMIT here: only one of the two is set."""
        omit, path = (1 << 30) - 2, self.oracle.path(ino)

        def real() -> None:
            pairs = (ctypes.c_long * 4)(0, times[0], 0, times[1])
            for number, ns in enumerate(times):
                if ns == -1:
                    pairs[2 * number + 1] = omit
            call("utimensat", -100, path.encode(), pairs, 0)

        wish = [None if ns == -1 else ns for ns in times]
        self.both(pick, caller, w.Set(ino, atime_ns=wish[0], mtime_ns=wish[1]), real)

    # ---- bytes

    @rule(pick=PICKS, caller=CALLER, offset=st.integers(0, 60), data=BYTES, append=st.booleans())
    def write(self, pick: int, caller: w.Caller, offset: int, data: bytes, append: bool) -> None:
        ino = self.file(pick)
        if not ino:
            return

        def real() -> None:
            fd = os.open(self.oracle.path(ino), os.O_WRONLY | (os.O_APPEND if append else 0))
            try:
                os.pwrite(fd, data, offset)
            finally:
                os.close(fd)

        self.both(pick, caller, w.Write(ino, offset, data, append), real)

    @rule(pick=PICKS, caller=CALLER, offset=st.integers(0, 60), size=st.integers(0, 60))
    def read(self, pick: int, caller: w.Caller, offset: int, size: int) -> None:
        ino, got = self.file(pick), b""
        if not ino:
            return

        def real() -> None:
            nonlocal got
            fd = os.open(self.oracle.path(ino), os.O_RDONLY)
            got = os.pread(fd, size, offset)
            os.close(fd)

        answer = self.both(pick, caller, w.Read(ino, offset, size), real)
        assert answer is None or answer == w.DataIs(got)

    @rule(pick=PICKS, offset=st.integers(0, 60), size=st.integers(1, 60), how=st.sampled_from([(0, 0), (1, 0), (1, 1)]))
    def allocate(self, pick: int, offset: int, size: int, how: tuple[int, int]) -> None:
        ino = self.file(pick)
        if not ino:
            return
        keep, punch = map(bool, how)

        def real() -> None:
            fd = os.open(self.oracle.path(ino), os.O_WRONLY)
            try:
                call("fallocate", fd, keep | 2 * punch, offset, size)
            finally:
                os.close(fd)

        self.both(pick, ROOT, w.Allocate(ino, offset, size, keep, punch), real)

    # ---- what is open, and time

    @rule(pick=PICKS)
    def hold(self, pick: int) -> None:
        """A file that is open lives on without a name, here and there."""
        ino = self.file(pick)
        if ino and ino not in self.held:
            self.clients[0].attr(w.Open(ino))
            self.held[ino] = 1

    @precondition(lambda self: self.held)
    @rule(pick=PICKS)
    def let_go(self, pick: int) -> None:
        ino = sorted(self.held)[pick % len(self.held)]
        assert self.clients[0].ask(w.Close(ino)) == w.Done()
        del self.held[ino]

    @rule()
    def time_passes(self) -> None:
        self.tree.tick(1.0)
        for client in self.clients:
            opened = tuple(self.held) if client is self.clients[0] else ()
            assert client.ask(w.Present(opened)) == w.Done()
        self.tree.tick(1.0)
        self.forget_what_is_gone()
        kept = [ino for ino in self.tree.state.loose if ino not in self.held]
        assert not kept, "what nobody has is reaped"

    @rule()
    def another_head_takes_over(self) -> None:
        self.tree.take_over()

    # ---- the comparison

    @invariant()
    def both_have_the_same(self) -> None:
        state = self.tree.state
        look_after(state)
        assert_same(self.tree)
        for ino in [ino for ino in self.oracle.fds if ino not in state.inodes]:
            assert ino not in self.held, "what is open stays"
            self.oracle.gone(ino)
        inos = {}
        for ino, fd in self.oracle.fds.items():
            real, found = os.fstat(fd), state.attr(ino)
            inos[real.st_ino] = ino
            assert (found.mode, found.uid, found.gid) == (real.st_mode, real.st_uid, real.st_gid), found
            assert found.nlink == real.st_nlink, found
            if stat.S_ISDIR(found.mode):
                continue
            assert found.size == real.st_size, found
            if stat.S_ISREG(found.mode) and found.size:
                assert self.tree.files[ino] == self.oracle.content(ino)
            if stat.S_ISLNK(found.mode):
                assert state.inodes[ino].target == os.readlink(b"", dir_fd=fd)
        for ino in [ino for ino in self.oracle.fds if state.inodes[ino].is_dir]:
            with os.scandir(self.oracle.path(ino)) as entries:
                real_names = {os.fsencode(entry.name): inos[entry.inode()] for entry in entries}
            assert {name: child for name, (child, _) in (state.inodes[ino].children or {}).items()} == real_names

    def teardown(self) -> None:
        if hasattr(self, "oracle"):
            self.oracle.close()
            os.umask(self.umask)


def test_the_tree_does_what_linux_does() -> None:
    run_state_machine_as_test(Same, settings=settings(max_examples=30, stateful_step_count=40))


@pytest.mark.slow
@pytest.mark.timeout(600)  # of its minute there are several where other tests run beside it
def test_the_tree_does_what_linux_does_for_a_minute() -> None:
    run_state_machine_as_test(Same, settings=settings(max_examples=400, stateful_step_count=60))
