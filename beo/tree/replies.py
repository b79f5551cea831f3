"""What is said to the kernel and to the tree's server, and how what the one says is put for the other. Pure."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Final

import msgspec

from beo.tree import kernel, words

PREFERRED_BYTES: Final = 128 << 10  # st_blksize: stdio and cp go by it, and a question costs as much with one byte
ERRNO_MAX: Final = 511  # the kernel takes no higher one, and whoever asked would wait for ever


class Ask(msgspec.Struct, frozen=True):
    """Ask the tree's server. number: of the question, never used twice."""

    number: int
    caller: words.Caller
    question: words.Question


class Reply(msgspec.Struct, frozen=True):
    """Write this to the kernel, in one piece. body: comes behind data, apart so that it need not be copied."""

    data: bytes
    body: bytes = b""


class Notify(msgspec.Struct, frozen=True):
    """Write these to the kernel too, but from another thread: it may let the writer wait for a file's last pages, which
    we have to take. Then, when it has forgotten all that, ask."""

    notices: tuple[bytes, ...]
    then: Ask


Effect = Ask | Reply | Notify
Then = Callable[[kernel.Request, object], list[Effect]]  # what is done with an answer
Failed = Callable[[kernel.Request, int], list[Effect]]  # or with the errno instead of it
Handler = Callable[..., list[Effect]]


def no(request: kernel.Request, why: int) -> Reply:
    """Refuse it, by an errno."""
    return Reply(kernel.error(request.unique, why))


def refuse(request: kernel.Request, why: int) -> list[Effect]:
    """The same, where nothing else is to be done."""
    return [no(request, why)]


def yes(request: kernel.Request, answer: object = None) -> list[Effect]:
    """It is done, and there is nothing to tell."""
    return [Reply(kernel.error(request.unique, 0))]


def nothing(request: kernel.Request, answer: object) -> list[Effect]:
    """Nobody waits for a reply."""
    return []


def told(request: kernel.Request, body: bytes) -> list[Effect]:
    """Tell what was asked for."""
    return [Reply(kernel.reply(request.unique, body))]


def too_long(request: kernel.Request, *names: bytes) -> list[Effect]:
    """The reply if a name is too long, or nothing."""
    is_too_long = any(len(name) > words.NAME_MAX_BYTES for name in names)
    return [no(request, errno.ENAMETOOLONG)] if is_too_long else []


def errno_of(answer: object) -> int:
    """Why an answer is none, so that the kernel takes it. ENOSYS would make it never ask the like again."""
    why = answer.errno if isinstance(answer, words.Failed) else errno.EIO
    if why == errno.ENOSYS:
        return errno.EOPNOTSUPP
    return why if 0 < why <= ERRNO_MAX else errno.EIO


def without_ids(mode: int) -> int | None:
    """Permissions without the set-id bits that a write takes; None: there are none. Without the right to execute, the
    group's bit means something else."""
    left = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        left &= ~stat.S_ISGID
    return None if left == mode else left & words.PERMISSIONS


def facts(attr: words.Attr) -> kernel.Facts:
    """An inode, as the kernel wants to hear of it."""
    return kernel.Facts(
        ino=attr.ino,
        mode=attr.mode,
        nlink=attr.nlink,
        uid=attr.uid,
        gid=attr.gid,
        size=attr.size,
        blocks=attr.blocks,
        rdev=attr.rdev,
        atime_ns=attr.atime_ns,
        mtime_ns=attr.mtime_ns,
        ctime_ns=attr.ctime_ns,
        block_bytes=PREFERRED_BYTES,
    )
