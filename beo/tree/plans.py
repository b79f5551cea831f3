"""What is done with the tree by paths, as plans: generators that ask and are answered, with no I/O of their own. Pure.

A plan yields the questions that may be asked at one time, gets their answers in that order, and returns what came of
it. So any number of plans can be under way at once, and who carries them out is another's business (files.py).

A path is absolute in the tree, and a text; bytes of names that are no UTF-8 are as `os.fsdecode` has them. A plan
raises OSError, with the path in it, where the tree says no.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Generator, Iterator
from typing import TypeVar

from beo.tree import words as w

AHEAD = 8  # pieces of a file under way at a time
LINKS_FOLLOWED_MAX = 40  # on one path, as Linux has it

T = TypeVar("T")
Plan = Generator[tuple[w.Question, ...], list[w.Answer], T]

# What people are told; the rest is as errno has it.
REASONS = {
    errno.ENOENT: "no such file or directory",
    errno.EEXIST: "it exists",
    errno.ENOTDIR: "not a directory",
    errno.EISDIR: "it is a directory",
    errno.ENOTEMPTY: "the directory is not empty",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENOSPC: "no room is left on the heads' disks",
    errno.EDQUOT: "your quota is used up",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "too many symbolic links",
    errno.ESTALE: "it was removed meanwhile",
    errno.EIO: "its bytes can't be read on the head that acts",
    errno.EINVAL: "that is not possible",
}


def failure(number: int, path: str) -> OSError:
    """Return the error for a number of errno."""
    return OSError(number, REASONS.get(number, errno.errorcode.get(number, str(number))), path)


def ask(question: w.Question, path: str) -> Plan[w.Answer]:
    """Ask one thing."""
    (answer,) = yield (question,)
    return check(answer, path)


def check(answer: w.Answer, path: str) -> w.Answer:
    """Return an answer that is no failure; raises OSError for one."""
    if isinstance(answer, w.Failed):
        raise failure(answer.errno, path)
    return answer


def get(ino: int, path: str) -> Plan[w.Attr]:
    """Return what is known of an inode."""
    answer = yield from ask(w.Get(ino), path)
    assert isinstance(answer, w.AttrIs)
    return answer.attr


def look(path: str, follow: bool = True) -> Plan[w.Attr]:
    """Return what is known of the file at a path; follow: not of the last symbolic link, but of where it leads."""
    attr = yield from get(w.ROOT, path)
    names = [name for name in encoded(path).split(b"/") if name]
    above: list[w.Attr] = []
    links = 0
    while names:
        name = names.pop(0)
        if name == b".":
            continue
        if name == b"..":
            attr = above.pop() if above else attr
            continue
        answer = yield from ask(w.Look(attr.ino, name), path)
        assert isinstance(answer, w.AttrIs)
        if stat.S_ISLNK(answer.attr.mode) and (names or follow):
            links += 1
            if links > LINKS_FOLLOWED_MAX:
                raise failure(errno.ELOOP, path)
            led = yield from ask(w.Target(answer.attr.ino), path)
            assert isinstance(led, w.TargetIs)
            if led.target.startswith(b"/"):
                attr, above = (yield from get(w.ROOT, path)), []
            names = [part for part in led.target.split(b"/") if part] + names
            continue
        above.append(attr)
        attr = answer.attr
    return attr


def parent_of(path: str) -> Plan[tuple[int, bytes]]:
    """Return (inode of the directory, name) of what a path names, be it there or not."""
    head, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise OSError(errno.EINVAL, "it names nothing within a directory", path)
    found = yield from look(head or "/")
    if not found.is_dir:
        raise failure(errno.ENOTDIR, head)
    return found.ino, encoded(name)


def listing(path: str) -> Plan[list[tuple[str, w.Attr]]]:
    """Return (name, what is known) of everything in a directory, by name; of another file, that alone."""
    found = yield from look(path)
    if not found.is_dir:
        return [(path.rstrip("/").rpartition("/")[2], found)]
    entries: list[tuple[str, w.Attr]] = []
    after, end = 0, False
    while not end:
        answer = yield from ask(w.List(found.ino, after), path)
        assert isinstance(answer, w.Listing)
        for entry in answer.entries:
            entries.append((decoded(entry.name), entry.attr))
            after = entry.place
        end = answer.end
    return sorted(entries)


def target(ino: int, path: str) -> Plan[str]:
    """Return where a symbolic link leads."""
    answer = yield from ask(w.Target(ino), path)
    assert isinstance(answer, w.TargetIs)
    return decoded(answer.target)


def make_folder(path: str, mode: int = 0o777, exist_ok: bool = False) -> Plan[None]:
    """Make a directory."""
    parent, name = yield from parent_of(path)
    try:
        yield from ask(w.Make(parent, name, stat.S_IFDIR | mode), path)
    except OSError as error:
        if error.errno != errno.EEXIST or not exist_ok:
            raise
        if not (yield from look(path)).is_dir:
            raise failure(errno.ENOTDIR, path) from None


def make_folders(path: str, mode: int = 0o777) -> Plan[None]:
    """Make a directory, and those above it that are missing."""
    done = ""
    for name in path.split("/"):
        if name:
            done += f"/{name}"
            yield from make_folder(done, mode, exist_ok=True)


def make_link(led_to: str, path: str, tag: str) -> Plan[None]:
    """Make a symbolic link, in the place of another file if there is one. tag: as for `write`."""
    parent, name = yield from parent_of(path)
    hidden = _hidden(name, tag)
    yield from ask(w.Make(parent, hidden, stat.S_IFLNK | 0o777, encoded(led_to)), path)
    yield from _into_place(parent, hidden, name, path)


def remove(path: str) -> Plan[None]:
    """Remove a name, of an empty directory too."""
    parent, name = yield from parent_of(path)
    is_dir = (yield from look(path, follow=False)).is_dir
    yield from ask(w.Remove(parent, name, is_dir), path)


def move(old: str, new: str) -> Plan[None]:
    """Move a name, in the place of another file if there is one."""
    parent, name = yield from parent_of(old)
    new_parent, new_name = yield from parent_of(new)
    yield from ask(w.Rename(parent, name, new_parent, new_name), old)


def write(path: str, pieces: Iterator[bytes], tag: str, mode: int = 0o666, mtime_ns: int | None = None) -> Plan[int]:
    """Let a file hold these bytes and nothing else; return how many they are.

    Who reads it meanwhile sees it as it was: it is written under another name first, and on all heads that are in step
    before it takes the place of the old one. tag: something that no other writer of this file has at that time.
    """
    parent, name = yield from parent_of(path)
    hidden = _hidden(name, tag)
    made = yield from ask(w.Make(parent, hidden, stat.S_IFREG | mode), path)
    assert isinstance(made, w.AttrIs)
    try:
        size = yield from _fill(made.attr.ino, pieces, path)
        if mtime_ns is not None:
            yield from ask(w.Set(made.attr.ino, mtime_ns=mtime_ns), path)
        yield from _into_place(parent, hidden, name, path)
    except GeneratorExit:
        raise
    except BaseException:
        yield (w.Remove(parent, hidden),)
        raise
    return size


def read(attr: w.Attr, path: str, start: int = 0, size: int = AHEAD * w.DATA_MAX_BYTES) -> Plan[list[bytes]]:
    """Return bytes of a file: as many as there are from `start` on, at most `size` (of AHEAD questions)."""
    offsets = range(start, min(attr.size, start + size), w.DATA_MAX_BYTES)
    if not offsets:
        return []
    pieces: list[bytes] = []
    for answer in (yield tuple(w.Read(attr.ino, offset, w.DATA_MAX_BYTES) for offset in offsets)):
        data = check(answer, path)
        assert isinstance(data, w.DataIs)
        pieces.append(data.data)
    return pieces


def _fill(ino: int, pieces: Iterator[bytes], path: str) -> Plan[int]:
    size = 0
    batch: list[w.Question] = []
    for piece in pieces:
        for start in range(0, len(piece), w.DATA_MAX_BYTES):
            data = piece[start : start + w.DATA_MAX_BYTES]
            batch.append(w.Write(ino, size, data))
            size += len(data)
            if len(batch) == AHEAD:
                for answer in (yield tuple(batch)):
                    check(answer, path)
                batch.clear()
    if batch:
        for answer in (yield tuple(batch)):
            check(answer, path)
    return size


def _into_place(parent: int, hidden: bytes, name: bytes, path: str) -> Plan[None]:
    try:
        yield from ask(w.Rename(parent, hidden, parent, name), path)
    except OSError:
        yield (w.Remove(parent, hidden),)
        raise


def _hidden(name: bytes, tag: str) -> bytes:
    """A name beside another one, for what is not whole yet."""
    return b".%s.%s~" % (name[: w.NAME_MAX_BYTES - len(tag) - 3], tag.encode())


def encoded(path: str) -> bytes:
    """Return a path as the tree has it."""
    return path.encode("utf-8", "surrogateescape")


def decoded(name: bytes) -> str:
    """Return a name of the tree as a text."""
    return name.decode("utf-8", "surrogateescape")
