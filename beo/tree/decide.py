"""What a question about the tree comes to: the change that it makes, or why not. Pure, and changes nothing itself.

POSIX decides, as Linux does it. Permissions are looked at here too, unless the caller's own kernel has done so.
"""

from __future__ import annotations

import errno
import stat

import msgspec

from beo.tree.changes import Allocated, Change, Changed, Linked, Made, Moved, Removed, Wrote
from beo.tree.state import Inode, State, Used
from beo.tree.words import (
    CHUNKS,
    DATA_MAX_BYTES,
    LINKS_MAX,
    NAME_MAX_BYTES,
    PERMISSIONS,
    ROOT,
    SIZE_MAX_BYTES,
    TARGET_MAX_BYTES,
    Allocate,
    Ask,
    Caller,
    Link,
    Make,
    Remove,
    Rename,
    Set,
    Write,
)

READ, WRITE, ENTER = 4, 2, 1  # permissions, as in a mode
INODES_MAX = 4_000_000  # in one tree: about 2 GiB of the head's memory
TIME_MAX_NS = 1 << 62
NOW = -1  # for a time
CHUNKS_MODE = stat.S_IFDIR | 0o1777
NAMES_ONLY = (Remove, Rename)  # their answer has nothing to tell
_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)


class Refuse(Exception):
    """A question fails; errno: why."""

    def __init__(self, number: int) -> None:
        """Take a number of errno."""
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


class Room(msgspec.Struct, frozen=True):
    """What may be taken: bytes free on the disks of all heads that are in step, and what a user may have (0: all)."""

    free_bytes: int = 1 << 62
    user_bytes_max: int = 0
    user_inodes_max: int = 0


def inode(state: State, ino: int) -> Inode:
    """Return an inode; raises Refuse where it is gone."""
    found = state.inodes.get(ino)
    if found is None:
        raise Refuse(errno.ESTALE)
    return found


def folder(state: State, ino: int) -> Inode:
    """Return a directory; raises Refuse where it is none."""
    found = inode(state, ino)
    if not found.is_dir:
        raise Refuse(errno.ENOTDIR)
    return found


def find(state: State, caller: Caller, parent: int, name: bytes) -> int:
    """Return what has this name in a directory; raises Refuse where nothing has."""
    found = folder(state, parent)
    check(caller, found, ENTER)
    if len(name) > NAME_MAX_BYTES:
        raise Refuse(errno.ENAMETOOLONG)
    if name == b".":
        return parent
    if name == b"..":
        return found.parent
    assert found.children is not None
    ino, _ = found.children.get(name, (0, 0))
    if not ino:
        raise Refuse(errno.ENOENT)
    return ino


def check(caller: Caller, found: Inode, wanted: int) -> None:
    """Raise Refuse(EACCES) where a caller may not read, write or enter."""
    if caller.checked or permits(caller, found, wanted):
        return
    raise Refuse(errno.EACCES)


def permits(caller: Caller, found: Inode, wanted: int) -> bool:
    """Whether the mode of an inode lets a caller do all of `wanted`."""
    if caller.uid == 0:
        return found.is_dir or not wanted & ENTER or bool(found.mode & 0o111)
    if caller.uid == found.uid:
        granted = found.mode >> 6
    elif _is_member(caller, found.gid):
        granted = found.mode >> 3
    else:
        granted = found.mode
    return granted & wanted == wanted


def decide(state: State, ask: Ask, now_ns: int, room: Room) -> Change | None:
    """Return the change that a changing question makes, None where everything is so already. Raises Refuse."""
    question, caller = ask.question, ask.caller
    by = (ask.session, ask.number, ask.settled, now_ns)
    match question:
        case Write():
            return _write(state, caller, question, by, room)
        case Make():
            return _make(state, caller, question, by, room)
        case Set():
            return _set(state, caller, question, by, room)
        case Remove():
            return _remove(state, caller, question, by)
        case Rename():
            return _rename(state, caller, question, by)
        case Link():
            return _link(state, caller, question, by)
        case Allocate():
            return _allocate(state, caller, question, by, room)
    raise Refuse(errno.ENOSYS)


_By = tuple[str, int, int, int]


def _is_member(caller: Caller, gid: int) -> bool:
    return gid == caller.gid or gid in caller.groups


def _check_new_name(name: bytes) -> None:
    if len(name) > NAME_MAX_BYTES:
        raise Refuse(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name:
        raise Refuse(errno.EINVAL)
    if name in (b".", b".."):
        raise Refuse(errno.EEXIST)


def _check_old_name(name: bytes) -> None:
    if name == b".":
        raise Refuse(errno.EINVAL)
    if name == b"..":
        raise Refuse(errno.ENOTEMPTY)


def _check_making(caller: Caller, directory: Inode) -> None:
    """May a name be made in a directory? One that was removed is a ghost: nothing may be made in it."""
    if not directory.nlink:
        raise Refuse(errno.ENOENT)
    check(caller, directory, WRITE)


def _check_taking(caller: Caller, directory: Inode, found: Inode, as_dir: bool) -> None:
    """May a name be taken from a directory, or given to another inode, as that of a directory or of something else?"""
    check(caller, directory, WRITE)
    _check_sticky(caller, directory, found)
    if as_dir and not found.is_dir:
        raise Refuse(errno.ENOTDIR)
    if found.is_dir and not as_dir:
        raise Refuse(errno.EISDIR)


def _check_sticky(caller: Caller, directory: Inode, found: Inode) -> None:
    if caller.checked or not directory.mode & stat.S_ISVTX:
        return
    if caller.uid not in (0, directory.uid, found.uid):
        raise Refuse(errno.EPERM)


def has_room(state: State, uid: int, room: Room, size_bytes: int) -> bool:
    """Whether files of a user may grow by so much."""
    try:
        _check_room(state, uid, room, size_bytes, 0)
    except Refuse:
        return False
    return True


def _check_room(state: State, uid: int, room: Room, size_bytes: int, inodes: int) -> None:
    if size_bytes > 0 and size_bytes > room.free_bytes:
        raise Refuse(errno.ENOSPC)
    if inodes and (len(state.inodes) >= INODES_MAX or not room.free_bytes):
        raise Refuse(errno.ENOSPC)
    if uid == 0:
        return
    used = state.used.get(uid, Used())
    if room.user_bytes_max and size_bytes > 0 and used.size_bytes + size_bytes > room.user_bytes_max:
        raise Refuse(errno.EDQUOT)
    if room.user_inodes_max and inodes > 0 and used.inodes + inodes > room.user_inodes_max:
        raise Refuse(errno.EDQUOT)


def _make(state: State, caller: Caller, make: Make, by: _By, room: Room) -> Change:
    directory = folder(state, make.parent)
    check(caller, directory, ENTER)
    _check_new_name(make.name)
    assert directory.children is not None
    if make.name in directory.children:
        raise Refuse(errno.EEXIST)
    _check_making(caller, directory)
    kind = stat.S_IFMT(make.mode)
    if kind not in _TYPES or make.mode != kind | make.mode & PERMISSIONS or not 0 <= make.rdev < 1 << 32:
        raise Refuse(errno.EINVAL)
    if kind in (stat.S_IFCHR, stat.S_IFBLK) and caller.uid != 0:
        raise Refuse(errno.EPERM)
    is_link, is_dir = kind == stat.S_IFLNK, kind == stat.S_IFDIR
    if is_link != bool(make.target) or b"\0" in make.target:
        raise Refuse(errno.EINVAL if not is_link or make.target else errno.ENOENT)
    if len(make.target) > TARGET_MAX_BYTES:
        raise Refuse(errno.ENAMETOOLONG)
    if is_dir and directory.nlink >= LINKS_MAX:
        raise Refuse(errno.EMLINK)
    _check_room(state, caller.uid, room, 0, 1)
    mode, gid = kind | 0o777 if is_link else make.mode, caller.gid
    if directory.mode & stat.S_ISGID:
        gid = directory.gid
        if is_dir:
            mode |= stat.S_ISGID
        elif mode & stat.S_ISGID and mode & stat.S_IXGRP and caller.uid and not _is_member(caller, gid):
            mode &= ~stat.S_ISGID
    uid = caller.uid
    if _is_chunks(make.parent, make.name):
        if not is_dir:
            raise Refuse(errno.EPERM)
        mode, uid, gid = CHUNKS_MODE, 0, 0
    return Made(*by, make.parent, make.name, mode, uid, gid, make.target, make.rdev)


def _is_chunks(parent: int, name: bytes) -> bool:
    """Whether this is where chunks of bundles are: whoever makes it, it is root's and everybody's, as /tmp is."""
    return parent == ROOT and name == CHUNKS


def _link(state: State, caller: Caller, link: Link, by: _By) -> Change:
    found = inode(state, link.ino)
    directory = folder(state, link.parent)
    check(caller, directory, ENTER)
    _check_new_name(link.name)
    assert directory.children is not None
    if link.name in directory.children:
        raise Refuse(errno.EEXIST)
    if _is_chunks(link.parent, link.name):
        raise Refuse(errno.EPERM)
    _check_making(caller, directory)
    if found.is_dir:
        raise Refuse(errno.EPERM)
    if not found.nlink:
        raise Refuse(errno.ENOENT)
    if found.nlink >= LINKS_MAX:
        raise Refuse(errno.EMLINK)
    return Linked(*by, link.ino, link.parent, link.name)


def _remove(state: State, caller: Caller, remove: Remove, by: _By) -> Change:
    directory = folder(state, remove.parent)
    _check_old_name(remove.name)
    found = inode(state, find(state, caller, remove.parent, remove.name))
    _check_taking(caller, directory, found, remove.dir)
    if found.children:
        raise Refuse(errno.ENOTEMPTY)
    return Removed(*by, remove.parent, remove.name)


def _rename(state: State, caller: Caller, move: Rename, by: _By) -> Change | None:
    old, new = folder(state, move.parent), folder(state, move.new_parent)
    check(caller, old, ENTER)
    check(caller, new, ENTER)
    for name in (move.name, move.new_name):
        if name in (b".", b".."):
            raise Refuse(errno.EBUSY)
    _check_new_name(move.new_name)
    if move.keep and move.exchange:
        raise Refuse(errno.EINVAL)
    if _is_chunks(move.new_parent, move.new_name):
        raise Refuse(errno.EPERM)
    ino = find(state, caller, move.parent, move.name)
    found = state.inodes[ino]
    assert new.children is not None
    there, _ = new.children.get(move.new_name, (0, 0))
    if move.exchange and not there:
        raise Refuse(errno.ENOENT)
    if move.keep and there:
        raise Refuse(errno.EEXIST)
    if _is_within(state, move.new_parent, ino):
        raise Refuse(errno.EINVAL)
    if there and _is_within(state, move.parent, there):
        raise Refuse(errno.EINVAL if move.exchange else errno.ENOTEMPTY)
    if ino == there:
        return None
    _check_taking(caller, old, found, found.is_dir)
    target = state.inodes[there] if there else None
    if target is None:
        _check_making(caller, new)
    else:
        _check_taking(caller, new, target, (target if move.exchange else found).is_dir)
    if move.parent != move.new_parent:  # then its ".." is another's
        for moved in (found, target if move.exchange else None):
            if moved and moved.is_dir:
                check(caller, moved, WRITE)
    if target and target.children and not move.exchange:
        raise Refuse(errno.ENOTEMPTY)
    gains = found.is_dir and not (there and state.inodes[there].is_dir) and move.parent != move.new_parent
    if gains and new.nlink >= LINKS_MAX:
        raise Refuse(errno.EMLINK)
    return Moved(*by, move.parent, move.name, move.new_parent, move.new_name, move.exchange)


def _is_within(state: State, ino: int, directory: int) -> bool:
    """Whether a directory is another one, or somewhere below it."""
    if not state.inodes[directory].is_dir:
        return False
    while ino != directory:
        above = state.inodes[ino].parent
        if above == ino:
            return False
        ino = above
    return True


def _set(state: State, caller: Caller, wish: Set, by: _By, room: Room) -> Change | None:
    found = inode(state, wish.ino)
    mode, uid, gid = wish.mode, wish.uid, wish.gid
    if wish.size is not None:
        _check_size(found, wish.size)
    if not caller.checked:
        _check_set(caller, found, wish)
        owned = (uid, gid) != (None, None) and not found.is_dir
        if mode is None and (owned or (wish.size is not None and caller.uid)):
            mode = _stripped(caller, found)
    for number in (uid, gid):
        if number is not None and not 0 <= number < (1 << 32) - 1:
            raise Refuse(errno.EINVAL)
    if mode is not None:
        mode = stat.S_IFMT(found.mode) | mode & PERMISSIONS
        if caller.uid and not _is_member(caller, found.gid if gid is None else gid) and not caller.checked:
            mode &= ~stat.S_ISGID
    if wish.size is not None:
        _check_room(state, found.uid, room, wish.size - found.size, 0)
    now_ns = by[3]
    times = [now_ns if ns == NOW else ns for ns in (wish.atime_ns, wish.mtime_ns)]
    if any(ns is not None and not -TIME_MAX_NS < ns < TIME_MAX_NS for ns in times):
        raise Refuse(errno.EINVAL)
    if all(value is None for value in (mode, uid, gid, wish.size, *times)):
        return None
    return Changed(*by, wish.ino, mode, uid, gid, wish.size, *times)


def _check_set(caller: Caller, found: Inode, wish: Set) -> None:
    owns = caller.uid in (0, found.uid)
    if wish.mode is not None and not owns:
        raise Refuse(errno.EPERM)
    if wish.uid is not None and caller.uid and (not owns or wish.uid != found.uid):
        raise Refuse(errno.EPERM)
    if (
        wish.gid is not None
        and caller.uid
        and (not owns or not (wish.gid == found.gid or _is_member(caller, wish.gid)))
    ):
        raise Refuse(errno.EPERM)
    if wish.size is not None:
        check(caller, found, WRITE)
    times = wish.atime_ns, wish.mtime_ns
    if times != (None, None) and not owns:
        if times != (NOW, NOW):
            raise Refuse(errno.EPERM)
        check(caller, found, WRITE)


def _check_size(found: Inode, size: int) -> None:
    if found.is_dir:
        raise Refuse(errno.EISDIR)
    if not found.is_file or size < 0:
        raise Refuse(errno.EINVAL)
    if size > SIZE_MAX_BYTES:
        raise Refuse(errno.EFBIG)


def _stripped(caller: Caller, found: Inode) -> int | None:
    """The mode without what lends an owner's or a group's rights, after a new content or owner; None: as it is."""
    mode = found.mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP or (caller.uid and not _is_member(caller, found.gid)):
        mode &= ~stat.S_ISGID
    return mode if mode != found.mode else None


def _write(state: State, caller: Caller, write: Write, by: _By, room: Room) -> Change | None:
    found = inode(state, write.ino)
    check(caller, found, WRITE)
    if len(write.data) > DATA_MAX_BYTES or write.offset < 0:
        raise Refuse(errno.EINVAL)
    offset = found.size if write.append else write.offset
    end = offset + len(write.data)
    _check_size(found, end)
    if not write.data:
        return None
    if len(write.data) > room.free_bytes:  # also what is written over takes room, in the log
        raise Refuse(errno.ENOSPC)
    _check_room(state, found.uid, room, max(0, end - found.size), 0)
    mode = _stripped(caller, found) if caller.uid and not caller.checked else None
    return Wrote(*by, write.ino, offset, len(write.data), write.data, mode=mode)


def _allocate(state: State, caller: Caller, wish: Allocate, by: _By, room: Room) -> Change:
    found = inode(state, wish.ino)
    check(caller, found, WRITE)
    if wish.offset < 0 or wish.size <= 0 or (wish.punch and not wish.keep_size):
        raise Refuse(errno.EINVAL)
    end = wish.offset + wish.size
    _check_size(found, end)
    size = found.size if wish.keep_size else max(found.size, end)
    if not wish.punch and wish.size > room.free_bytes:
        raise Refuse(errno.ENOSPC)
    _check_room(state, found.uid, room, size - found.size, 0)
    return Allocated(*by, wish.ino, wish.offset, wish.size, size, wish.punch)
