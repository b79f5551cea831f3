"""A mount without a kernel and without a tree: what it asks, and that every request gets its one reply."""

import errno
import os
import stat
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beo.tree import asking, decide, kernel, words, writing
from beo.tree.changes import Changed
from beo.tree.decide import Room
from beo.tree.mounting import Mount
from beo.tree.replies import Ask, Reply
from beo.tree.state import State
from beo.tree.words import AttrIs, Done, Failed
from tests import fake_kernel as fake
from tests.fake_kernel import FakeKernel, request

FILE = words.Attr(7, stat.S_IFREG | 0o644, 1, 1000, 1000, 5, 3, 2, 1)
SUID = msgspec.structs.replace(FILE, mode=stat.S_IFREG | 0o6755)
DIR = words.Attr(8, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 0, 0, 0)
R, W, U = kernel.LOCK_READ, kernel.LOCK_WRITE, kernel.LOCK_NONE


def open_file(user: FakeKernel, ino: int = 7, flags: int = 2) -> None:
    """Open a file to the end."""
    user.ask(fake.OPEN, struct.pack("=II", flags, 0), ino)
    user.answer(AttrIs(FILE))
    assert user.reply()[0] == 0


# ---- the beginning


def test_the_kernel_and_the_mount_agree() -> None:
    user = FakeKernel()
    user.ask(fake.INIT, fake.init(minor=kernel.EPOCHS_FROM - 1))
    told = struct.unpack("=IIIIHHIIHHI28x", user.reply()[1])
    assert told[:3] == (7, kernel.MINOR, 1 << 17) and told[6] == 1 << 20 and told[8] == 256
    flags = told[3] | told[10] << 32
    assert flags & kernel.POSIX_LOCKS and flags & kernel.FLOCK_LOCKS and flags & kernel.DIRECT_IO_ALLOW_MMAP
    assert not flags & kernel.DO_READDIRPLUS and not flags & kernel.DONT_MASK
    newer = FakeKernel()
    newer.ask(fake.INIT, fake.init(minor=kernel.EPOCHS_FROM))
    assert newer.core.flags & kernel.DO_READDIRPLUS
    old = FakeKernel()
    old.ask(fake.INIT, fake.init(kernel.ASYNC_READ, minor=31))
    assert old.core.flags == kernel.ASYNC_READ and struct.unpack_from("=II", old.reply()[1]) == (7, 31)
    for minor, major, error in ((30, 7, errno.EPROTO), (50, 6, errno.EPROTO), (0, 8, 0)):
        other = FakeKernel()
        other.ask(fake.INIT, fake.init(minor=minor, major=major))
        assert other.reply()[0] == error


def test_what_isnt_served_is_said_so() -> None:
    user = FakeKernel()
    for opcode in (fake.ACCESS, fake.GETXATTR, fake.LSEEK, fake.COPY_FILE_RANGE, 52, 999):
        user.ask(opcode, bytes(64))
        assert user.reply() == (errno.ENOSYS, b"")
    for opcode in (fake.FORGET, fake.BATCH_FORGET, fake.INTERRUPT):
        user.ask(opcode, bytes(8))
        assert user.unique not in user.replies
    user.ask(fake.DESTROY)
    assert user.reply() == (0, b"") and not user.asked


# ---- names and inodes


def test_a_request_becomes_a_question_in_the_callers_name() -> None:
    user = FakeKernel()
    user.ask(fake.LOOKUP, b"name\0", ino=5, uid=1000)
    assert user.asked == [Ask(1, words.Caller(1000, 0, checked=True), words.Look(5, b"name"))]
    assert not user.replies
    user.answer(AttrIs(FILE))
    assert user.reply()[0] == 0 and struct.unpack_from("=QQQQII", user.reply()[1]) == (7, 0, 0, 0, 0, 0)
    user.answer(AttrIs(FILE))  # a second answer is nobody's


def test_answers_come_in_any_order() -> None:
    user = FakeKernel()
    first, second = user.ask(fake.GETATTR, bytes(16), 7), user.ask(fake.GETATTR, bytes(16), 8)
    user.answer(AttrIs(DIR), 2)
    assert set(user.replies) == {second}
    user.answer(Failed(errno.ESTALE), 1)
    assert user.reply(first) == (errno.ESTALE, b"")


def test_what_changes_names() -> None:
    user = FakeKernel()
    user.ask(fake.MKDIR, struct.pack("=II", 0o1777, 0o27) + b"d\0", 5)
    assert user.question() == words.Make(5, b"d", stat.S_IFDIR | 0o1750)
    user.ask(fake.MKNOD, struct.pack("=IIII", stat.S_IFCHR | 0o666, 0x103, 0o22, 0) + b"n\0", 5)
    assert user.question() == words.Make(5, b"n", stat.S_IFCHR | 0o644, rdev=0x103)
    user.ask(fake.MKNOD, struct.pack("=IIII", 0o644, 0, 0, 0) + b"f\0", 5)
    assert user.question() == words.Make(5, b"f", stat.S_IFREG | 0o644)
    user.ask(fake.SYMLINK, b"l\0over/there\0", 5)
    assert user.question() == words.Make(5, b"l", stat.S_IFLNK | 0o777, b"over/there")
    user.ask(fake.LINK, struct.pack("=Q", 7) + b"l\0", 5)
    assert user.question() == words.Link(7, 5, b"l")
    user.ask(fake.UNLINK, b"f\0", 5)
    assert user.question() == words.Remove(5, b"f")
    user.ask(fake.RMDIR, b"d\0", 5)
    assert user.question() == words.Remove(5, b"d", dir=True)
    for flags, keep, exchange in ((0, False, False), (1, True, False), (2, False, True)):
        user.ask(fake.RENAME2, struct.pack("=QII", 6, flags, 0) + b"a\0b\0", 5)
        assert user.question() == words.Rename(5, b"a", 6, b"b", keep, exchange)
    for flags in (3, 4):
        user.ask(fake.RENAME2, struct.pack("=QII", 6, flags, 0) + b"a\0b\0", 5)
        assert user.reply() == (errno.EINVAL, b"")
    user.ask(fake.LOOKUP, b"x" * 256 + b"\0")
    assert user.reply() == (errno.ENAMETOOLONG, b"")
    user.ask(fake.SYMLINK, b"l\0" + b"x" * 4096 + b"\0")
    assert user.reply() == (errno.ENAMETOOLONG, b"")


def test_what_is_set() -> None:
    user = FakeKernel()

    def setattr_of(valid: int) -> words.Question:
        numbers = valid, 0, 0, 99, 0, 5, -1, 0, 6, 999_999_999, 0, stat.S_IFREG | 0o4755, 0, 10, 11, 0
        user.ask(fake.SETATTR, struct.pack("=IIQQQqqqIIIIIIII", *numbers), 7)
        return user.question()

    assert setattr_of(kernel.FATTR_MODE) == words.Set(7, mode=0o4755)
    assert setattr_of(kernel.FATTR_UID | kernel.FATTR_GID) == words.Set(7, uid=10, gid=11)
    assert setattr_of(kernel.FATTR_SIZE) == words.Set(7, size=99)
    now = kernel.FATTR_ATIME | kernel.FATTR_ATIME_NOW
    assert setattr_of(now) == words.Set(7, atime_ns=-1)
    assert setattr_of(kernel.FATTR_ATIME) == words.Set(7, atime_ns=5_000_000_006)
    assert setattr_of(kernel.FATTR_MTIME) == words.Set(7, mtime_ns=-2)  # -1 would be now
    assert setattr_of(0) == words.Get(7)


def test_times_that_the_tree_has_no_room_for_are_the_nearest_that_it_has() -> None:
    """As Linux does it with every file system's own range: an archive with a strange date unpacks."""
    user = FakeKernel()
    valid = kernel.FATTR_ATIME | kernel.FATTR_MTIME
    user.ask(fake.SETATTR, struct.pack("=IIQQQqqqIIIIIIII", valid, 0, 0, 0, 0, 1 << 40, -(1 << 40), 0, *[0] * 8), 7)
    asked = user.question()
    assert isinstance(asked, words.Set)
    root = msgspec.structs.replace(asked, ino=words.ROOT)
    change = decide.decide(State.new(), words.Ask("s" * 16, 1, 0, words.Caller(0, 0), root), 0, Room())
    assert isinstance(change, Changed)
    assert (change.atime_ns, change.mtime_ns) == (decide.TIME_MAX_NS - 1, 1 - decide.TIME_MAX_NS)


def test_an_errno_that_the_kernel_wouldnt_take() -> None:
    user = FakeKernel()
    for told, seen in ((errno.EDQUOT, errno.EDQUOT), (0, errno.EIO), (-5, errno.EIO), (512, errno.EIO)):
        user.ask(fake.GETATTR, bytes(16), 7)
        user.answer(Failed(told))
        assert user.reply() == (seen, b"")
    user.ask(fake.GETATTR, bytes(16), 7)
    user.answer(Failed(errno.ENOSYS))  # the kernel would never ask again
    assert user.reply() == (errno.EOPNOTSUPP, b"")
    user.ask(fake.GETATTR, bytes(16), 7)
    user.answer(Done())  # no answer to this question
    assert user.reply() == (errno.EIO, b"")
    user.ask(fake.GETATTR, bytes(16), 7)
    user.answer(AttrIs(msgspec.structs.replace(FILE, size=-1)))
    assert user.reply() == (errno.EIO, b"")


# ---- directories


def listed(body: bytes, plus: bool = False) -> list[tuple[int, int, bytes, int]]:
    """What a kernel reads: (inode, offset, name, inode that it remembers)."""
    found, at = [], 0
    while at < len(body):
        known = struct.unpack_from("=Q", body, at)[0] if plus else 0
        at += 128 if plus else 0
        ino, offset, size, _ = struct.unpack_from("=QQII", body, at)
        found.append((ino, offset, body[at + 24 : at + 24 + size], known))
        at += 24 + size + -size % 8
    return found


def test_a_directory_is_read_in_pieces() -> None:
    user = FakeKernel()
    entries = tuple(words.Named(b"f%d" % n, n, FILE) for n in range(1, 5))
    user.ask(fake.READDIR, fake.read(0, 4 * 32), 8)
    assert user.question() == words.List(8, 0, 3)
    user.answer(words.Listing(entries[:3], 5, end=False))
    seen = listed(user.reply()[1])
    assert seen == [(8, 1, b".", 0), (5, 2, b"..", 0), (7, 3, b"f1", 0), (7, 4, b"f2", 0)]
    user.ask(fake.READDIR, fake.read(4, 4096), 8)
    assert user.question() == words.List(8, 2, 102)
    user.answer(words.Listing(entries[2:], 5, end=True))
    assert [name for _, _, name, _ in listed(user.reply()[1])] == [b"f3", b"f4"]
    user.ask(fake.READDIR, fake.read(1, 4096), 8)
    user.answer(words.Listing((), 5, end=True))
    assert listed(user.reply()[1]) == [(5, 2, b"..", 0)]
    user.ask(fake.READDIR, fake.read(6, 4096), 8)
    user.answer(words.Listing((), 5, end=True))
    assert user.reply() == (0, b"")
    user.ask(fake.READDIR, fake.read(2, 16), 8)
    user.answer(words.Listing(entries, 5, end=True))
    assert user.reply() == (errno.EINVAL, b"")


def test_dots_dont_count_as_looked_up() -> None:
    user = FakeKernel()
    user.ask(fake.READDIRPLUS, fake.read(0, 4096), 8)
    user.answer(words.Listing((words.Named(b"f", 1, FILE),), 5, end=True))
    assert listed(user.reply()[1], plus=True) == [(8, 1, b".", 0), (5, 2, b"..", 0), (7, 3, b"f", 7)]


# ---- files


def test_who_only_reads_goes_by_kept_pages_and_who_writes_passes_them_by() -> None:
    told = []
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND):
        user = FakeKernel()
        user.ask(fake.OPEN, struct.pack("=II", flags, 0), 7)
        user.answer(AttrIs(FILE))
        told.append(struct.unpack_from("=QI", user.reply()[1])[1])
    assert told[0] == kernel.FOPEN_KEEP_CACHE
    assert all(flags == kernel.FOPEN_DIRECT_IO | kernel.FOPEN_PARALLEL_DIRECT_WRITES for flags in told[1:])


def test_a_file_that_is_made_is_open() -> None:
    user = FakeKernel()
    user.ask(fake.CREATE, fake.create(b"n", flags=0o101, mode=0o100666, umask=0o22), 5)
    assert user.question() == words.Make(5, b"n", stat.S_IFREG | 0o644)
    user.answer(AttrIs(FILE))
    assert user.question() == words.Open(7) and not user.replies
    user.answer(AttrIs(FILE))
    error, body = user.reply()
    assert error == 0 and len(body) == 128 + 16
    assert struct.unpack_from("=QI", body, 128)[1] & kernel.FOPEN_DIRECT_IO
    assert user.core.opened == {7: 1}


def test_a_file_that_is_there_meanwhile_is_looked_up_again() -> None:
    user = FakeKernel()
    user.ask(fake.CREATE, fake.create(b"n"), 5)
    user.answer(Failed(errno.EEXIST))
    assert user.reply() == (errno.ESTALE, b"")
    user.ask(fake.CREATE, fake.create(b"n", flags=0o200), 5)
    user.answer(Failed(errno.EEXIST))
    assert user.reply() == (errno.EEXIST, b"")


def test_the_tree_is_told_of_the_last_close_alone() -> None:
    user = FakeKernel()
    open_file(user)
    open_file(user, flags=0o1000)
    assert user.question() == words.Open(7, truncate=True)
    user.ask(fake.RELEASE, fake.release(), 7)
    assert user.reply() == (0, b"") and user.question() == words.Open(7, truncate=True)
    closing = user.ask(fake.RELEASE, fake.release(), 7)
    assert user.question() == words.Close(7) and closing not in user.replies
    close = user.asked[-1].number
    again = user.ask(fake.OPEN, bytes(8), 7)
    assert user.asked[-1].number > close and user.question() == words.Open(7) and again not in user.replies
    user.answer(Done(), close)
    assert user.reply(closing) == (0, b"") and again not in user.replies
    user.answer(Failed(errno.ESTALE))
    assert user.reply(again) == (errno.ESTALE, b"") and user.core.opened == {}
    user.answer(Done())
    assert user.core.pending == 0


def test_without_a_head_a_remembered_file_is_opened_as_often_as_one_likes() -> None:
    """Though nobody answers that it was closed."""
    user = FakeKernel()
    user.ask(fake.OPEN, bytes(8), 7)
    user.answer(words.Leased(AttrIs(FILE), (7,), 0, 9.0))
    for now_s in (60.0, 70.0, 80.0):
        user.ask(fake.RELEASE, fake.release(), 7)
        opened = user.ask(fake.OPEN, bytes(8), 7, now_s=now_s)
        assert opened not in user.replies, "its lease is over"
        user.drift(now_s)
        assert user.reply(opened)[0] == 0
    assert user.core.opened == {7: 1}


def test_reads_and_writes() -> None:
    user = FakeKernel()
    user.ask(fake.READ, fake.read(10, 4), 7)
    assert user.question() == words.Read(7, 10, 4)
    user.answer(words.DataIs(b"data and more"))
    assert user.reply() == (0, b"data")
    user.ask(fake.WRITE, fake.write(10, b"data"), 7)
    assert user.question() == words.Write(7, 10, b"data")
    user.answer(words.Written(FILE))
    assert user.reply() == (0, struct.pack("=II", 4, 0))
    user.ask(fake.WRITE, fake.write(10, b"data", flags=0o2001), 7)
    assert user.question() == words.Write(7, 10, b"data", append=True)
    user.answer(Failed(errno.ENOSPC))
    assert user.reply() == (errno.ENOSPC, b"")
    user.ask(fake.WRITE, fake.write(0, b"page", flags=0o2001, write_flags=kernel.WRITE_CACHE), 7)
    assert user.question() == words.Write(7, 0, b"page")
    user.ask(fake.READ, fake.read(0, (1 << 20) + 1), 7)
    assert user.reply() == (errno.EINVAL, b"")


def test_a_write_takes_set_id_bits_away() -> None:
    user = FakeKernel()
    write = fake.write(0, b"x", write_flags=kernel.WRITE_KILL_SUIDGID)
    user.ask(fake.WRITE, write, 7)
    user.answer(words.Written(SUID))
    assert user.question() == words.Set(7, mode=0o755) and not user.replies
    user.answer(AttrIs(FILE))
    assert user.reply() == (0, struct.pack("=II", 1, 0))
    user.ask(fake.OPEN, struct.pack("=II", 0o1001, 0), 7, uid=1000)
    user.answer(AttrIs(SUID))
    assert user.question() == words.Set(7, mode=0o755)
    user.answer(AttrIs(FILE))
    assert user.reply()[0] == 0


def test_room_is_made_and_holes_are() -> None:
    user = FakeKernel()
    for mode, keep, punch in ((0, False, False), (1, True, False), (3, True, True)):
        user.ask(fake.FALLOCATE, struct.pack("=QQQII", 0, 10, 20, mode, 0), 7)
        assert user.question() == words.Allocate(7, 10, 20, keep, punch)
        user.answer(AttrIs(FILE))
        assert user.reply() == (0, b"")
    for mode in (0x10, 0x20):
        user.ask(fake.FALLOCATE, struct.pack("=QQQII", 0, 10, 20, mode, 0), 7)
        assert user.reply() == (errno.EOPNOTSUPP, b"")


def test_fsync_waits_for_the_writes_before_it() -> None:
    user = FakeKernel()
    for offset in (0, 1):
        user.ask(fake.WRITE, fake.write(offset, b"x"), 7)
    user.ask(fake.WRITE, fake.write(0, b"x"), 8)
    sync = user.ask(fake.FSYNC, bytes(16), 7)
    user.ask(fake.WRITE, fake.write(2, b"x"), 7)
    user.answer(words.Written(FILE), 2)
    assert sync not in user.replies
    user.answer(Failed(errno.EIO), 1)
    assert user.reply(sync) == (0, b"")
    user.answer(words.Written(FILE), 4)
    assert user.reply(user.ask(fake.FSYNC, bytes(16), 7)) == (0, b"")


# ---- writes that nobody needs to wait for

ALONE = words.Leased(words.Written(FILE), (7,), 0, 9.0, alone=True)


def alone() -> FakeKernel:
    """A kernel whose mount holds a file alone, as it was told when it had written it."""
    user = FakeKernel()
    user.ask(fake.WRITE, fake.write(0, b"first"), 7)
    user.answer(ALONE)
    return user


def number_of(user: FakeKernel) -> int:
    """The last question's."""
    return user.asked[-1].number


def test_who_holds_a_file_alone_waits_for_no_write_but_fsync_does() -> None:
    user = alone()
    write = user.ask(fake.WRITE, fake.write(5, b"data"), 7)
    assert user.question() == words.Write(7, 5, b"data") and user.reply(write) == (0, struct.pack("=II", 4, 0))
    number = number_of(user)
    sync = user.ask(fake.FSYNC, bytes(16), 7)
    assert sync not in user.replies
    user.answer(words.Written(FILE), number)
    assert user.reply(sync) == (0, b"")


def test_a_write_that_fails_behind_is_told_once_to_whoever_writes_syncs_or_closes_next() -> None:
    for opcode, body in (
        (fake.WRITE, fake.write(9, b"x")),
        (fake.FSYNC, bytes(16)),
        (fake.FLUSH, fake.flush(1)),
    ):
        user = alone()
        user.ask(fake.WRITE, fake.write(5, b"data"), 7)
        user.answer(Failed(errno.ENOSPC))
        assert user.reply(user.ask(opcode, body, 7))[0] == errno.ENOSPC
        assert user.reply(user.ask(fake.FSYNC, bytes(16), 7))[0] == 0
        waits = user.ask(fake.WRITE, fake.write(5, b"data"), 7)
        assert waits not in user.replies, "from then on each waits, and hears it at once"


def test_what_is_asked_of_a_file_waits_for_the_writes_that_are_behind() -> None:
    user = alone()
    user.ask(fake.WRITE, fake.write(5, b"data"), 7)
    number = number_of(user)
    waiting = {
        user.ask(fake.GETATTR, bytes(16), 7): words.Get(7),
        user.ask(fake.READ, fake.read(0, 9), 7): words.Read(7, 0, 9),
        user.ask(fake.SETLK, fake.lock(3, U), 7): words.Lock(7, 3, "u", pid=7),
    }
    assert number_of(user) == number
    user.answer(words.Written(FILE), number)
    assert [ask.question for ask in user.asked[-3:]] == list(waiting.values())
    user.ask(fake.SETLK, fake.lock(3, W), 7)
    assert user.question() == words.Lock(7, 3, "w", pid=7)


def test_a_name_tells_nothing_of_a_file_that_is_older_than_writes_that_are_behind() -> None:
    """The kernel would take the size that it had."""
    user = alone()
    user.ask(fake.WRITE, fake.write(5, b"data"), 7)
    behind = number_of(user)
    looked = user.ask(fake.LOOKUP, b"name\0", 1)
    user.answer(AttrIs(FILE))
    listed = user.ask(fake.READDIRPLUS, fake.read(0, 4096), 1)
    user.answer(words.Listing((words.Named(b"name", 1, FILE),), 1, end=True))
    assert struct.unpack_from("=Q", user.reply(listed)[1], 2 * (kernel.DIRENTPLUS_BYTES + 8)) == (0,)
    assert looked not in user.replies
    user.answer(words.Written(FILE), behind)
    assert user.question() == words.Get(7)
    user.answer(AttrIs(FILE))
    assert user.reply(looked)[0] == 0


def test_nobody_holds_a_file_alone_after_a_recall_or_when_the_lease_is_over() -> None:
    def waits(user: FakeKernel, now_s: float) -> bool:
        unique = user.unique + 2
        effects = user.core.from_kernel(request(fake.WRITE, fake.write(0, b"x"), unique, 7), now_s)
        return not any(isinstance(effect, Reply) for effect in effects)

    assert not waits(alone(), 8.9) and waits(alone(), 9.1)
    user = alone()
    user.core.from_tree(0, words.Recall((7,), 1), 1.0)
    assert waits(user, 1.0)
    user = alone()
    user.core.memory.hold(99.0)
    assert waits(user, 9.1), "that it is used without a head is for reading"
    user = alone()
    user.core.from_tree(0, words.Recall((), 9), 1.0)
    assert waits(user, 1.0)
    user = alone()
    user.ask(fake.WRITE, fake.write(0, b"x"), 7)
    user.answer(words.Leased(words.Written(FILE), (7,), 0, 9.0))
    assert waits(user, 1.0), "as there is little room"
    user = alone()
    open_file(user)
    user.ask(fake.RELEASE, fake.release(0), 7)
    assert waits(user, 1.0)


def test_no_more_writes_are_behind_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "BEHIND_MAX", 3)
    user = alone()
    writes = [user.ask(fake.WRITE, fake.write(5, b"data"), 7) for _ in range(5)]
    numbers = [ask.number for ask in user.asked[-5:]]
    assert [write in user.replies for write in writes] == [True, True, True, False, False]
    user.answer(words.Written(FILE), numbers[0])
    assert writes[3] in user.replies and writes[4] not in user.replies
    user.answer(Failed(errno.EDQUOT), numbers[4])
    assert user.reply(writes[4]) == (errno.EDQUOT, b""), "who still waits hears it himself"
    assert user.reply(user.ask(fake.FLUSH, fake.flush(1), 8)) == (0, b"")
    monkeypatch.setattr(writing, "BEHIND_MAX_BYTES", 10)
    user = alone()
    writes = [user.ask(fake.WRITE, fake.write(5, bytes(9)), 7) for _ in range(2)]
    assert [write in user.replies for write in writes] == [True, False]


def test_a_write_that_is_behind_takes_set_id_bits_away_when_it_is_answered() -> None:
    user = alone()
    user.ask(fake.WRITE, fake.write(0, b"x", write_flags=kernel.WRITE_KILL_SUIDGID), 7)
    user.answer(words.Written(SUID))
    assert user.question() == words.Set(7, mode=0o755)


def test_pages_of_mappings_are_never_behind() -> None:
    """The kernel keeps their errors itself, and waits for them where somebody syncs."""
    user = alone()
    assert user.ask(fake.WRITE, fake.write(0, b"page", write_flags=kernel.WRITE_CACHE), 7) not in user.replies


# ---- locks


def test_locks_are_the_trees() -> None:
    user = FakeKernel()
    user.ask(fake.SETLK, fake.lock(1 << 63, W, start=5, end=9), 7)
    assert user.question() == words.Lock(7, 1 << 63, "w", 5, 9, pid=7)
    user.answer(Failed(errno.EAGAIN))
    assert user.reply() == (errno.EAGAIN, b"")
    user.ask(fake.SETLKW, fake.lock(3, R, flock=True), 7)
    assert user.question() == words.Lock(7, 3, "r", whole=True, wait=True, pid=7)
    user.ask(fake.SETLKW, fake.lock(3, U), 7)
    assert user.question() == words.Lock(7, 3, "u", pid=7)
    user.ask(fake.GETLK, fake.lock(3, W, start=5, end=9), 7)
    assert user.question() == words.Blocker(7, 3, "w", 5, 9)
    user.answer(words.BlockerIs("r", 1, 6, 99))
    assert user.reply() == (0, struct.pack("=QQII", 1, 6, R, 99))


def test_a_close_gives_up_locks_behind_the_writes() -> None:
    user = FakeKernel()
    user.ask(fake.SETLK, fake.lock(3, W), 7)
    user.answer(Done())
    user.ask(fake.FLUSH, fake.flush(4), 7)  # another owner, who never locked
    assert user.reply() == (0, b"")
    user.ask(fake.WRITE, fake.write(0, b"x"), 7)
    written = user.asked[-1].number
    closing = user.ask(fake.FLUSH, fake.flush(3), 7)
    assert user.asked[-1].number == written
    user.answer(words.Written(FILE))
    assert user.question() == words.Unlock(7, 3) and closing not in user.replies
    user.answer(Done())
    assert user.reply(closing) == (0, b"")
    user.ask(fake.FLUSH, fake.flush(3), 7)
    assert user.reply() == (0, b"")


def test_the_last_close_gives_up_the_lock_of_flock() -> None:
    user = FakeKernel()
    open_file(user)
    user.ask(fake.RELEASE, fake.release(9, kernel.RELEASE_FLOCK_UNLOCK), 7)
    assert [ask.question for ask in user.asked[-2:]] == [words.Unlock(7, 9, whole=True), words.Close(7)]
    user.answer(Done(), user.asked[-2].number)
    assert user.unique not in user.replies
    user.answer(Done())
    assert user.reply() == (0, b"")


def test_a_signal_ends_the_wait_for_a_lock_alone() -> None:
    user = FakeKernel()
    waiting = user.ask(fake.SETLKW, fake.lock(3, W), 7)
    number = user.asked[-1].number
    reading = user.ask(fake.READ, fake.read(0, 1), 7)
    user.ask(fake.INTERRUPT, struct.pack("=Q", reading))
    assert isinstance(user.question(), words.Read)
    user.ask(fake.INTERRUPT, struct.pack("=Q", waiting))
    assert user.question() == words.CancelLock(number)
    user.ask(fake.INTERRUPT, struct.pack("=Q", waiting))
    assert len(user.asked) == 3
    user.answer(Failed(errno.EINTR), number)
    assert user.reply(waiting) == (errno.EINTR, b"")
    user.answer(Done())
    user.answer(words.DataIs(b"x"), 2)
    assert user.core.pending == 0


# ---- whatever comes


def test_a_request_without_a_number_is_answered_with_nothing() -> None:
    assert Mount().from_kernel(request(fake.LOOKUP, b"", unique=0), 0.0) == []
    assert Mount().from_kernel(b"", 0.0) == []
    assert len(Mount().from_kernel(request(fake.LOOKUP, b""), 0.0)) == 1
    assert Mount().from_kernel(request(fake.INTERRUPT, b""), 0.0) == []
    assert Mount().from_tree(5, Done(), 0.0) == []


ANSWERS: list[words.Answer] = [
    Done(),
    AttrIs(FILE),
    AttrIs(SUID),
    AttrIs(msgspec.structs.replace(DIR, size=-1, uid=-1)),
    words.Listing((words.Named(b"f", 1, FILE), words.Named(b"g" * 255, 2, DIR)), 1, end=True),
    words.Listing((words.Named(b"f", 1 << 64, FILE),), 1, end=True),
    words.TargetIs(b"there"),
    words.DataIs(b"data"),
    words.Written(SUID),
    words.SpaceIs(1 << 40, 1 << 70, 5, 5),
    words.BlockerIs("w", 1, 2, 3),
    words.BlockerIs("?"),
]
FIT: dict[type, list[words.Told]] = {
    question: [each for each in ANSWERS if isinstance(each, answer)] for question, answer in asking.ANSWERS.items()
}
FIT[words.Write] += [words.Leased(words.Written(FILE), (7,), 0, 9.0, alone=True)] * 3
SHAPES = {  # operation -> bytes before its names, and how many names
    fake.LOOKUP: (0, 1),
    fake.GETATTR: (16, 0),
    fake.SETATTR: (88, 0),
    fake.READLINK: (0, 0),
    fake.SYMLINK: (0, 2),
    fake.MKNOD: (16, 1),
    fake.MKDIR: (8, 1),
    fake.UNLINK: (0, 1),
    fake.RMDIR: (0, 1),
    fake.RENAME: (8, 2),
    fake.LINK: (8, 1),
    fake.OPEN: (8, 0),
    fake.READ: (40, 0),
    fake.STATFS: (0, 0),
    fake.RELEASE: (24, 0),
    fake.FSYNC: (16, 0),
    fake.FLUSH: (24, 0),
    fake.READDIR: (40, 0),
    fake.READDIRPLUS: (40, 0),
    fake.CREATE: (16, 1),
    fake.INTERRUPT: (8, 0),
    fake.FALLOCATE: (32, 0),
    fake.RENAME2: (16, 2),
}
NAMES = st.sampled_from([b"a", b".", b"x" * 255, b"x" * 300, b"\xff"])


@st.composite
def asks(draw: st.DrawFn) -> tuple[int, bytes]:
    """An operation and its body, most of them well made."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.integers(0, 60)), draw(st.binary(max_size=120))
    owner = draw(st.integers(0, 1))
    if kind == 1:
        last = [(fake.FLUSH, fake.flush(owner)), (fake.RELEASE, fake.release(owner, draw(st.integers(0, 2))))]
        signal = fake.INTERRUPT, struct.pack("=Q", 2 * draw(st.integers(0, 20)))
        return draw(st.sampled_from([*last, *last, signal, (fake.OPEN, bytes(8))]))
    if kind == 2:
        opcode = draw(st.sampled_from([fake.GETLK, fake.SETLK, fake.SETLKW, fake.SETLKW]))
        return opcode, fake.lock(owner, draw(st.integers(0, 3)), draw(st.booleans()))
    if kind == 3:
        flags, write_flags = draw(st.sampled_from([0, 0o2000])), draw(st.integers(0, 7))
        return fake.WRITE, fake.write(draw(st.integers(0, 9)), draw(st.binary(max_size=9)), flags, write_flags)
    opcode = draw(st.sampled_from(sorted(SHAPES)))
    size, count = SHAPES[opcode]
    head = bytearray(size)
    for place in draw(st.lists(st.integers(0, max(0, size - 1)), max_size=min(3, size))):
        head[place] = draw(st.sampled_from([1, 2, 4, 16, 255]))
    return opcode, bytes(head) + b"".join(draw(NAMES) + b"\0" for _ in range(count))


requests = st.tuples(asks(), st.sampled_from([7, 7, 7, 7, 8, 1, 0]), st.sampled_from([0, 1000]))
answers = st.one_of(st.none(), st.none(), st.sampled_from(ANSWERS), st.integers(-600, 600).map(Failed))
steps = st.lists(st.one_of(requests, st.tuples(st.integers(0, 100), answers)), min_size=15, max_size=80)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_every_request_gets_one_reply_whatever_comes(steps: list[Any]) -> None:
    user = FakeKernel()
    expected: set[int] = set()
    done = 0
    for step in steps:
        if len(step) == 3:
            (opcode, body), ino, uid = step
            unique = user.ask(opcode, body, ino, uid)
            if kernel.is_answered(opcode):
                expected.add(unique)
        elif user.asked:
            which, answer = step
            asked = user.asked[which % len(user.asked)]
            user.answer(_fit(asked, which) if answer is None else answer, asked.number)
    while done < len(user.asked):
        user.answer(_fit(user.asked[done], done), user.asked[done].number)
        done += 1
    assert set(user.replies) == expected
    assert user.core.pending == 0 and len({ask.number for ask in user.asked}) == len(user.asked)


def _fit(ask: Ask, which: int) -> words.Told:
    fit = FIT[type(ask.question)]
    return fit[which % len(fit)]
