"""The words of a Linux kernel to whoever serves a FUSE file system, and back: bytes to structs, values to bytes. Pure.

The layouts are those of include/uapi/linux/fuse.h, protocol 7.40; what is newer adds operations that are answered
ENOSYS without being understood. Every request begins with a header and every reply with another one; `unique` tells
which reply is whose. No bytes make `parse` raise anything but `Malformed`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import msgspec

MAJOR: Final = 7
MINOR: Final = 40
MINOR_MIN: Final = 31  # Linux 5.4: before, max_pages and what we send for it were different
NAME_MAX_BYTES: Final = 4_095  # of a name or a target in a request: what is too long for the tree, the tree says
HEADER_BYTES: Final = 40
NOTE_BYTES: Final = 4096  # what a request may have beside the bytes of a write: header, names, a target

# Flags of INIT, as far as they are of use here. Those from bit 32 on travel in a field of their own.
ASYNC_READ: Final = 1 << 0
POSIX_LOCKS: Final = 1 << 1
ATOMIC_O_TRUNC: Final = 1 << 3
BIG_WRITES: Final = 1 << 5
DONT_MASK: Final = 1 << 6
FLOCK_LOCKS: Final = 1 << 10
AUTO_INVAL_DATA: Final = 1 << 12
DO_READDIRPLUS: Final = 1 << 13
READDIRPLUS_AUTO: Final = 1 << 14
ASYNC_DIO: Final = 1 << 15
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES: Final = 1 << 22
INIT_EXT: Final = 1 << 30
DIRECT_IO_ALLOW_MMAP: Final = 1 << 36

# Flags of what is answered to OPEN and CREATE.
FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6

# Which parts of a SETATTR count.
FATTR_MODE: Final = 1 << 0
FATTR_UID: Final = 1 << 1
FATTR_GID: Final = 1 << 2
FATTR_SIZE: Final = 1 << 3
FATTR_ATIME: Final = 1 << 4
FATTR_MTIME: Final = 1 << 5
FATTR_ATIME_NOW: Final = 1 << 7
FATTR_MTIME_NOW: Final = 1 << 8

WRITE_CACHE: Final = 1 << 0  # of a WRITE: from the page cache, where a mapping has changed it
WRITE_KILL_SUIDGID: Final = 1 << 2  # of a WRITE: who writes may not keep a file's set-id bits
RELEASE_FLOCK_UNLOCK: Final = 1 << 1
LK_FLOCK: Final = 1 << 0
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
LOCK_READ, LOCK_WRITE, LOCK_NONE = 0, 1, 2  # F_RDLCK, F_WRLCK, F_UNLCK
NOTIFY_INVAL_INODE: Final = 2
NOTIFY_INC_EPOCH: Final = 8
EPOCHS_FROM: Final = 44  # the minor version (Linux 6.16) whose kernel takes that notice

_in_header = struct.Struct("=IIQQIIIHH")
_out_header = struct.Struct("=IiQ")
_u32 = struct.Struct("=I")
_u64 = struct.Struct("=Q")
_init_in = struct.Struct("=IIIII")
_INIT_SHORT_BYTES = 16  # of kernels before 7.36, without the upper flags
_init_out = struct.Struct("=IIIIHHIIHHII24x")
_setattr_in = struct.Struct("=IIQQQqqqIIIIIIII")
_mknod_in = struct.Struct("=IIII")
_mkdir_in = struct.Struct("=II")
_rename2_in = struct.Struct("=QII")
_open_in = struct.Struct("=II")
_create_in = struct.Struct("=IIII")
_read_in = struct.Struct("=QQIIQII")
_write_in = struct.Struct("=QQIIQII")
_release_in = struct.Struct("=QIIQ")
_flush_in = struct.Struct("=QIIQ")
_lk_in = struct.Struct("=QQQQIIII")
_fallocate_in = struct.Struct("=QQQII")
_attr = struct.Struct("=QQQqqqIIIIIIIIII")
_entry_out = struct.Struct("=QQQQII")
_attr_out = struct.Struct("=QII")
_open_out = struct.Struct("=QII")
_write_out = struct.Struct("=II")
_statfs_out = struct.Struct("=QQQQQIIII24x")
_lk_out = struct.Struct("=QQII")
_dirent = struct.Struct("=QQII")
_inval_inode = struct.Struct("=Qqq")

DIRENT_BYTES: Final = _dirent.size  # of an entry of READDIR, without its name
DIRENTPLUS_BYTES: Final = _entry_out.size + _attr.size + _dirent.size  # the same of READDIRPLUS

_U32_MAX = (1 << 32) - 1
_S_PER_NS = 1_000_000_000


class Malformed(ValueError):
    """A request that is not as the protocol has it. unique: whose it is, 0 if not even that can be read."""

    def __init__(self, why: str, unique: int = 0, opcode: int = 0) -> None:
        """Keep whom to answer."""
        super().__init__(why)
        self.unique = unique
        self.opcode = opcode


class _Op(msgspec.Struct, frozen=True):
    pass


class Init(_Op, frozen=True):
    """The kernel's first word: what it speaks, and what it could do (flags)."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class Lookup(_Op, frozen=True):
    """What is called `name` in this directory?"""

    name: bytes


class Forget(_Op, frozen=True):
    """The kernel no longer remembers some inodes. No reply."""


class Getattr(_Op, frozen=True):
    """What is known of this inode?"""


class Setattr(_Op, frozen=True):
    """Set those which `valid` names (FATTR_...)."""

    valid: int
    size: int
    atime_ns: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int


class Readlink(_Op, frozen=True):
    """Where does this symbolic link lead?"""


class Symlink(_Op, frozen=True):
    """Make a symbolic link in this directory."""

    name: bytes
    target: bytes


class Mknod(_Op, frozen=True):
    """Make a file, fifo, socket or device in this directory."""

    name: bytes
    mode: int
    rdev: int
    umask: int


class Mkdir(_Op, frozen=True):
    """Make a directory in this one."""

    name: bytes
    mode: int
    umask: int


class Unlink(_Op, frozen=True):
    """Take a name away that is no directory's."""

    name: bytes


class Rmdir(_Op, frozen=True):
    """Take an empty directory away."""

    name: bytes


class Rename(_Op, frozen=True):
    """Move a name from this directory to another; flags: RENAME_..."""

    name: bytes
    new_parent: int
    new_name: bytes
    flags: int


class Link(_Op, frozen=True):
    """Give inode `ino` one more name, in this directory."""

    ino: int
    name: bytes


class Open(_Op, frozen=True):
    """Open this file; flags: as of open(2)."""

    flags: int


class Create(_Op, frozen=True):
    """Make a file in this directory and open it."""

    name: bytes
    flags: int
    mode: int
    umask: int


class Read(_Op, frozen=True):
    """Bytes of this file."""

    offset: int
    size: int


class Write(_Op, frozen=True):
    """Bytes into this file. flags: as of open(2), of whoever writes; write_flags: WRITE_..."""

    offset: int
    data: bytes
    flags: int
    write_flags: int


class Statfs(_Op, frozen=True):
    """How much room is there?"""


class Release(_Op, frozen=True):
    """The last descriptor of an OPEN is closed."""

    release_flags: int
    lock_owner: int


class Flush(_Op, frozen=True):
    """A descriptor of this file is closed, by whom his locks are known by."""

    lock_owner: int


class Fsync(_Op, frozen=True):
    """What was written before is to be durable."""


class Opendir(_Op, frozen=True):
    """Open this directory."""


class Readdir(_Op, frozen=True):
    """Entries of this directory behind `offset`, in at most `size` bytes; plus: with what is known of each."""

    offset: int
    size: int
    plus: bool


class Releasedir(_Op, frozen=True):
    """This directory is closed."""


class Fsyncdir(_Op, frozen=True):
    """What was changed in this directory is to be durable."""


class Lock(_Op, frozen=True):
    """GETLK (test), SETLK and SETLKW (wait): kind is LOCK_..., end inclusive; flock: of flock(2)."""

    owner: int
    start: int
    end: int
    kind: int
    pid: int
    flock: bool
    test: bool
    wait: bool


class Interrupt(_Op, frozen=True):
    """Whoever waits for the reply to request `target` got a signal. No reply."""

    target: int


class Fallocate(_Op, frozen=True):
    """Make room in this file, or a hole; mode: FALLOC_..."""

    offset: int
    size: int
    mode: int


class Destroy(_Op, frozen=True):
    """The last word."""


class NotifyReply(_Op, frozen=True):
    """What a notification asked for; none of ours does. No reply."""


class Unknown(_Op, frozen=True):
    """An operation that is not served here."""

    opcode: int


class Request(msgspec.Struct, frozen=True):
    """A request: of whom (as its user and group are known to the kernel), about which inode, and what."""

    unique: int
    ino: int
    uid: int
    gid: int
    pid: int
    op: _Op


def parse(data: bytes | memoryview) -> Request:
    """Return what one read of /dev/fuse gave; raises `Malformed`."""
    if len(data) < HEADER_BYTES:
        raise Malformed(f"a request of {len(data)} bytes has no header")
    length, opcode, unique, ino, uid, gid, pid, extension, _ = _in_header.unpack_from(data)
    if length != len(data):
        raise Malformed(f"a request says that it has {length} bytes, and has {len(data)}", unique, opcode)
    end = length - 8 * extension
    if end < HEADER_BYTES:
        raise Malformed("a request's extension is longer than the request", unique, opcode)
    parser = _PARSERS.get(opcode)
    if parser is None:
        return Request(unique, ino, uid, gid, pid, Unknown(opcode))
    try:
        op = parser(memoryview(data)[HEADER_BYTES:end])
    except (struct.error, ValueError) as error:
        raise Malformed(f"a request of operation {opcode}: {error}", unique, opcode) from error
    return Request(unique, ino, uid, gid, pid, op)


def is_answered(opcode: int) -> bool:
    """Return whether the kernel waits for a reply to such a request."""
    return opcode not in _UNANSWERED


def _names(body: memoryview, at: int, count: int) -> list[bytes]:
    """Names that end with NUL each; of what comes behind them, nothing is known."""
    parts = bytes(body[at : at + 2 * NAME_MAX_BYTES + 2]).split(b"\0", count)
    if len(parts) <= count:
        raise ValueError("a name that doesn't end")
    if not all(parts[:count]):
        raise ValueError("a name without a byte")
    return parts[:count]


def _name(body: memoryview, at: int = 0) -> bytes:
    name = _names(body, at, 1)[0]
    if b"/" in name:
        raise ValueError("a name with a slash")
    return name


def _place(offset: int, size: int = 0) -> int:
    """The kernel's own offsets are signed."""
    if (offset + size) >> 63:
        raise ValueError(f"{size} bytes from {offset} on are behind the end of any file")
    return offset


def _ns(seconds: int, ns: int) -> int:
    if ns >= _S_PER_NS:
        raise ValueError("a second of more than 1,000,000,000 ns")
    return seconds * _S_PER_NS + ns


def _init(body: memoryview) -> _Op:
    if len(body) < _init_in.size:
        major, minor, readahead, flags = struct.unpack_from("=IIII", body)
        return Init(major, minor, readahead, flags)
    major, minor, readahead, flags, more = _init_in.unpack_from(body)
    return Init(major, minor, readahead, flags | more << 32 if flags & INIT_EXT else flags)


def _setattr(body: memoryview) -> _Op:
    (valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = _setattr_in.unpack_from(body)
    # What doesn't count may be anything.
    at = _ns(atime, atime_ns) if valid & FATTR_ATIME else 0
    mt = _ns(mtime, mtime_ns) if valid & FATTR_MTIME else 0
    return Setattr(valid, _place(size) if valid & FATTR_SIZE else 0, at, mt, mode, uid, gid)


def _symlink(body: memoryview) -> _Op:
    name, target = _names(body, 0, 2)
    if b"/" in name:
        raise ValueError("a name with a slash")
    return Symlink(name, target)


def _mknod(body: memoryview) -> _Op:
    mode, rdev, umask, _ = _mknod_in.unpack_from(body)
    return Mknod(_name(body, _mknod_in.size), mode, rdev, umask)


def _mkdir(body: memoryview) -> _Op:
    mode, umask = _mkdir_in.unpack_from(body)
    return Mkdir(_name(body, _mkdir_in.size), mode, umask)


def _moved(body: memoryview, at: int, new_parent: int, flags: int) -> _Op:
    name, new_name = _names(body, at, 2)
    if b"/" in name or b"/" in new_name:
        raise ValueError("a name with a slash")
    return Rename(name, new_parent, new_name, flags)


def _rename(body: memoryview) -> _Op:
    return _moved(body, _u64.size, _u64.unpack_from(body)[0], 0)


def _rename2(body: memoryview) -> _Op:
    new_parent, flags, _ = _rename2_in.unpack_from(body)
    return _moved(body, _rename2_in.size, new_parent, flags)


def _link(body: memoryview) -> _Op:
    return Link(_u64.unpack_from(body)[0], _name(body, _u64.size))


def _open(body: memoryview) -> _Op:
    return Open(_open_in.unpack_from(body)[0])


def _create(body: memoryview) -> _Op:
    flags, mode, umask, _ = _create_in.unpack_from(body)
    return Create(_name(body, _create_in.size), flags, mode, umask)


def _read(body: memoryview) -> _Op:
    _, offset, size, _, _, _, _ = _read_in.unpack_from(body)
    return Read(_place(offset, size), size)


def _write(body: memoryview) -> _Op:
    _, offset, size, write_flags, _, flags, _ = _write_in.unpack_from(body)
    data = bytes(body[_write_in.size :])
    if len(data) != size:
        raise ValueError(f"{size} bytes to write, and {len(data)} are there")
    return Write(_place(offset, size), data, flags, write_flags)


def _release(body: memoryview) -> _Op:
    _, _, release_flags, lock_owner = _release_in.unpack_from(body)
    return Release(release_flags, lock_owner)


def _flush(body: memoryview) -> _Op:
    return Flush(_flush_in.unpack_from(body)[3])


def _readdir(plus: bool) -> Callable[[memoryview], _Op]:
    def read(body: memoryview) -> _Op:
        _, offset, size, _, _, _, _ = _read_in.unpack_from(body)
        return Readdir(_place(offset), size, plus)

    return read


def _lock(test: bool = False, wait: bool = False) -> Callable[[memoryview], _Op]:
    def read(body: memoryview) -> _Op:
        _, owner, start, end, kind, pid, flags, _ = _lk_in.unpack_from(body)
        if kind not in (LOCK_READ, LOCK_WRITE, LOCK_NONE) or start > end or end >> 63:
            raise ValueError(f"a lock of kind {kind} from {start} to {end}")
        return Lock(owner, start, end, kind, pid, bool(flags & LK_FLOCK), test, wait)

    return read


def _interrupt(body: memoryview) -> _Op:
    return Interrupt(_u64.unpack_from(body)[0])


def _fallocate(body: memoryview) -> _Op:
    _, offset, size, mode, _ = _fallocate_in.unpack_from(body)
    return Fallocate(_place(offset, size), size, mode)


_UNANSWERED = {2, 36, 41, 42}
_PARSERS: dict[int, Callable[[memoryview], _Op]] = {
    1: lambda body: Lookup(_name(body)),
    2: lambda body: Forget(),
    3: lambda body: Getattr(),
    4: _setattr,
    5: lambda body: Readlink(),
    6: _symlink,
    8: _mknod,
    9: _mkdir,
    10: lambda body: Unlink(_name(body)),
    11: lambda body: Rmdir(_name(body)),
    12: _rename,
    13: _link,
    14: _open,
    15: _read,
    16: _write,
    17: lambda body: Statfs(),
    18: _release,
    20: lambda body: Fsync(),
    25: _flush,
    26: _init,
    27: lambda body: Opendir(),
    28: _readdir(plus=False),
    29: lambda body: Releasedir(),
    30: lambda body: Fsyncdir(),
    31: _lock(test=True),
    32: _lock(),
    33: _lock(wait=True),
    35: _create,
    36: _interrupt,
    38: lambda body: Destroy(),
    41: lambda body: NotifyReply(),
    42: lambda body: Forget(),  # several at once
    43: _fallocate,
    44: _readdir(plus=True),
    45: _rename2,
}


# ---- replies


class Facts(msgspec.Struct, frozen=True):
    """An inode as the kernel is told of it. blocks: of 512 bytes; block_bytes: what to read at a time, best."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    block_bytes: int


def error(unique: int, errno: int) -> bytes:
    """Return the reply that says no, or with errno 0 a yes of which there is no more to say."""
    return _out_header.pack(_out_header.size, -errno, unique)


def reply(unique: int, body: bytes) -> bytes:
    """Return a reply with its body."""
    return header(unique, len(body)) + body


def header(unique: int, size: int) -> bytes:
    """Return how a reply begins whose body has `size` bytes."""
    return _out_header.pack(_out_header.size + size, 0, unique)


def whose(message: bytes) -> int:
    """Return to which request a reply belongs."""
    return int(_out_header.unpack_from(message)[2])


def init_out(minor: int, flags: int, max_readahead: int, max_write: int, max_pages: int, background: int) -> bytes:
    """Return the body of the answer to INIT. background: requests at a time that nobody waits for."""
    lower, upper = flags & _U32_MAX, flags >> 32
    congested = background * 3 // 4
    return _init_out.pack(
        MAJOR, minor, max_readahead, lower, background, congested, max_write, 1, max_pages, 0, upper, 0
    )


def entry_out(facts: Facts, entry_s: float, attr_s: float) -> bytes:
    """Return what a name stands for, and how long that and what is known of it may be remembered."""
    return _entry_head(facts.ino, entry_s, attr_s) + _attr_of(facts)


def no_entry_out(entry_s: float) -> bytes:
    """Return that a name stands for nothing, and how long that may be remembered."""
    return _entry_head(0, entry_s, 0.0) + bytes(_attr.size)


def attr_out(facts: Facts, attr_s: float) -> bytes:
    """Return what is known of an inode, and for how long."""
    seconds, ns = _split(attr_s)
    return _attr_out.pack(seconds, ns, 0) + _attr_of(facts)


def open_out(handle: int, flags: int) -> bytes:
    """Return the answer to an OPEN: FOPEN_... flags."""
    return _open_out.pack(handle, flags, 0)


def write_out(size: int) -> bytes:
    """Return how many bytes were written."""
    return _write_out.pack(size, 0)


def statfs_out(blocks: int, free: int, files: int, free_files: int, block_bytes: int, name_max_bytes: int) -> bytes:
    """Return how much room there is, in blocks."""
    return _statfs_out.pack(blocks, free, free, files, free_files, block_bytes, name_max_bytes, block_bytes, 0)


def lk_out(kind: int, start: int, end: int, pid: int) -> bytes:
    """Return the lock that is in the way."""
    return _lk_out.pack(start, end, kind, pid & _U32_MAX)


def dirent(ino: int, offset: int, mode: int, name: bytes) -> bytes:
    """Return an entry of a directory. offset: where to go on behind it."""
    return _dirent.pack(ino, offset, len(name), mode >> 12 & 0o17) + name + bytes(-len(name) % 8)


def direntplus(facts: Facts | None, ino: int, offset: int, mode: int, name: bytes, times: tuple[float, float]) -> bytes:
    """Return an entry with what is known of it; None: nothing is said of it, and it doesn't count as looked up.

    times: how long the name and what is known may be remembered, in seconds.
    """
    if facts is None:
        known = bytes(_entry_out.size + _attr.size)
    else:
        known = entry_out(facts, *times)
    return known + dirent(ino, offset, mode, name)


def invalid_attr(ino: int) -> bytes:
    """Return the notice that what is known of an inode no longer holds. Its bytes are held against that when they are
    read."""
    return _notice(NOTIFY_INVAL_INODE, _inval_inode.pack(ino, -1, 0))


def invalid_names() -> bytes:
    """Return the notice that no name that is known has to mean what it did. It waits for nobody, other than the notice
    that one name is invalid, which waits for whoever changes that directory, be it by a question to us."""
    return _notice(NOTIFY_INC_EPOCH, b"")


def _notice(code: int, body: bytes) -> bytes:
    return _out_header.pack(_out_header.size + len(body), code, 0) + body


def _split(seconds: float) -> tuple[int, int]:
    whole = int(seconds)
    return whole, int((seconds - whole) * _S_PER_NS)


def _entry_head(ino: int, entry_s: float, attr_s: float) -> bytes:
    entry, entry_ns = _split(entry_s)
    attr, attr_ns = _split(attr_s)
    # The generation is always 0: no inode's number is used twice.
    return _entry_out.pack(ino, 0, entry, attr, entry_ns, attr_ns)


def _attr_of(facts: Facts) -> bytes:
    atime, atime_ns = divmod(facts.atime_ns, _S_PER_NS)
    mtime, mtime_ns = divmod(facts.mtime_ns, _S_PER_NS)
    ctime, ctime_ns = divmod(facts.ctime_ns, _S_PER_NS)
    return _attr.pack(
        facts.ino,
        facts.size,
        facts.blocks,
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        facts.mode,
        facts.nlink,
        facts.uid,
        facts.gid,
        facts.rdev,
        facts.block_bytes,
        0,
    )
