"""The tree by paths, for whoever has no mount of it: one thing at a time, each done when it returns.

A path is absolute in the tree, and a text; bytes of names that are no UTF-8 are as `os.fsdecode` has them. Everything
raises OSError with the path in it where the tree says no, and BeoError where nobody serves the tree.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator

from beo import wire
from beo.errors import NoHead
from beo.tree import words as w
from beo.tree.session import Session

PATIENCE_S = 30.0  # for an answer: a take-over, and a slow disk
AHEAD = 8  # pieces of a file under way at a time
LINKS_FOLLOWED_MAX = 40  # on one path, as Linux has it


class Files:
    """A session by paths. For one thread."""

    def __init__(self, session: Session, caller: w.Caller, patience_s: float = PATIENCE_S) -> None:
        """Ask by this session, for this caller."""
        self._session = session
        self._caller = caller
        self._patience_s = patience_s
        self._poller = wire.Poller()
        session.register(self._poller)
        self._answers: dict[int, w.Answer] = {}

    def close(self) -> None:
        """End the session."""
        self._session.close()

    # ---- one file

    def stat(self, path: str, follow: bool = True) -> w.Attr:
        """Return what is known of a file."""
        return self._walk(path, follow)

    def list(self, path: str) -> Iterator[tuple[str, w.Attr]]:
        """Yield (name, what is known) of what is in a directory."""
        found = self._walk(path)
        after, end = 0, False
        while not end:
            answer = self._ask(w.List(found.ino, after), path)
            assert isinstance(answer, w.Listing)
            for entry in answer.entries:
                yield os.fsdecode(entry.name), entry.attr
                after = entry.place
            end = answer.end

    def target(self, path: str) -> str:
        """Return where a symbolic link leads."""
        answer = self._ask(w.Target(self._walk(path, follow=False).ino), path)
        assert isinstance(answer, w.TargetIs)
        return os.fsdecode(answer.target)

    def mkdir(self, path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        """Make a directory."""
        parent, name = self._parent(path)
        try:
            self._ask(w.Make(parent, name, stat.S_IFDIR | mode), path)
        except FileExistsError:
            if not exist_ok or not self._walk(path).is_dir:
                raise

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link."""
        parent, name = self._parent(path)
        self._ask(w.Make(parent, name, stat.S_IFLNK | 0o777, os.fsencode(target)), path)

    def remove(self, path: str) -> None:
        """Remove a name, of an empty directory too."""
        parent, name = self._parent(path)
        is_dir = self._walk(path, follow=False).is_dir
        self._ask(w.Remove(parent, name, is_dir), path)

    def rename(self, old: str, new: str) -> None:
        """Move a name, over another one if there is one."""
        parent, name = self._parent(old)
        new_parent, new_name = self._parent(new)
        self._ask(w.Rename(parent, name, new_parent, new_name), old)

    def set(self, path: str, mode: int | None = None, mtime_ns: int | None = None) -> None:
        """Set permissions, or when it was changed."""
        self._ask(w.Set(self._walk(path).ino, mode=mode, mtime_ns=mtime_ns), path)

    def read(self, path: str) -> Iterator[bytes]:
        """Yield the bytes of a file, in order, as it is while it is read."""
        found = self._walk(path)
        if found.is_dir:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        under_way: list[int] = []
        asked = 0
        while asked < found.size or under_way:
            while asked < found.size and len(under_way) < AHEAD:
                under_way.append(self._session.ask(self._caller, w.Read(found.ino, asked, w.DATA_MAX_BYTES)))
                asked += w.DATA_MAX_BYTES
            answer = self._wait(under_way.pop(0), path)
            assert isinstance(answer, w.DataIs)
            if not answer.data:
                return
            yield answer.data

    def write(self, path: str, pieces: Iterator[bytes], mode: int = 0o666, mtime_ns: int | None = None) -> int:
        """Let a file hold these bytes, and nothing of what it held; return how many they are.

        Readers see it as it was or as it is to be: it is written under another name first. It is on all heads that are
        in step when this returns.
        """
        parent, name = self._parent(path)
        with_links = self._last(path)
        if with_links and with_links.is_dir:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        hidden = b".%s.%d.%d" % (name[:200], os.getpid(), time.monotonic_ns())
        kept = stat.S_IMODE(with_links.mode) if with_links else mode
        made = self._ask(w.Make(parent, hidden, stat.S_IFREG | kept), path)
        assert isinstance(made, w.AttrIs)
        try:
            size = self._fill(made.attr.ino, pieces, path)
            if mtime_ns is not None:
                self._ask(w.Set(made.attr.ino, mtime_ns=mtime_ns), path)
            self._ask(w.Rename(parent, hidden, parent, name), path)
        except BaseException:
            self._ask(w.Remove(parent, hidden), path)
            raise
        return size

    def _fill(self, ino: int, pieces: Iterator[bytes], path: str) -> int:
        under_way: list[int] = []
        size = 0
        for piece in pieces:
            for start in range(0, len(piece), w.DATA_MAX_BYTES):
                data = piece[start : start + w.DATA_MAX_BYTES]
                under_way.append(self._session.ask(self._caller, w.Write(ino, size, data)))
                size += len(data)
                if len(under_way) >= AHEAD:
                    self._wait(under_way.pop(0), path)
        for number in under_way:
            self._wait(number, path)
        return size

    def space(self) -> w.SpaceIs:
        """Return how much room there is."""
        answer = self._ask(w.Space(), "/")
        assert isinstance(answer, w.SpaceIs)
        return answer

    # ---- paths

    def _walk(self, path: str, follow: bool = True) -> w.Attr:
        """Return what a path leads to."""
        attr = self._get(w.ROOT, path)
        names = [name for name in os.fsencode(path).split(b"/") if name]
        above: list[w.Attr] = []
        links = 0
        while names:
            name = names.pop(0)
            if name == b".":
                continue
            if name == b"..":
                attr = above.pop() if above else attr
                continue
            answer = self._ask(w.Look(attr.ino, name), path)
            assert isinstance(answer, w.AttrIs)
            if stat.S_ISLNK(answer.attr.mode) and (names or follow):
                links += 1
                if links > LINKS_FOLLOWED_MAX:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                led = self._ask(w.Target(answer.attr.ino), path)
                assert isinstance(led, w.TargetIs)
                if led.target.startswith(b"/"):
                    attr, above = self._get(w.ROOT, path), []
                names = [part for part in led.target.split(b"/") if part] + names
                continue
            above.append(attr)
            attr = answer.attr
        return attr

    def _last(self, path: str) -> w.Attr | None:
        try:
            return self._walk(path, follow=False)
        except FileNotFoundError:
            return None

    def _parent(self, path: str) -> tuple[int, bytes]:
        head, _, name = path.rstrip("/").rpartition("/")
        if name in ("", ".", ".."):
            raise OSError(errno.EINVAL, "it names no entry of a directory", path)
        found = self._walk(head or "/")
        if not found.is_dir:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), head)
        return found.ino, os.fsencode(name)

    def _get(self, ino: int, path: str) -> w.Attr:
        answer = self._ask(w.Get(ino), path)
        assert isinstance(answer, w.AttrIs)
        return answer.attr

    # ---- questions

    def _ask(self, question: w.Question, path: str) -> w.Answer:
        return self._wait(self._session.ask(self._caller, question), path)

    def _wait(self, number: int, path: str) -> w.Answer:
        deadline_s = time.monotonic() + self._patience_s
        while number not in self._answers:
            self._answers.update(self._session.receive())
            if number in self._answers:
                break
            now = time.monotonic()
            if now > deadline_s:
                raise self._session.failure or NoHead(
                    "the tree of files doesn't answer", f"tried for {self._patience_s:.0f} s", "see 'beo ha status'"
                )
            until_s = min(deadline_s, self._session.next_at)
            self._poller.poll(max(0, int((until_s - now) * 1000) + 1))
        answer = self._answers.pop(number)
        if isinstance(answer, w.Failed):
            raise OSError(answer.errno, os.strerror(answer.errno), path)
        return answer
