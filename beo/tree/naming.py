"""What a mount's kernel asks of names, inodes and directories. Pure."""

from __future__ import annotations

import errno
import stat
from typing import Final

from beo.tree import kernel, words
from beo.tree.asking import Asking
from beo.tree.replies import Effect, Handler, facts, no, told, too_long

BLOCK_BYTES: Final = 4096  # that room is counted in
PLACES_FROM: Final = 2  # in READDIR 1 is behind ".", 2 behind "..", and place n of the tree is n + 2
NAME_GUESS_BYTES: Final = 16  # of a name in a directory with its padding, to ask for as many as the kernel has room for
TIME_MAX_NS: Final = (1 << 62) - 1  # from 1970 on, of what the tree takes: from 1823 to 2116


class Naming(Asking):
    """A mount, as far as no file need be open."""

    # ---- names and inodes

    def _lookup(self, request: kernel.Request, op: kernel.Lookup) -> list[Effect]:
        known = self.memory.look(request.ino, op.name, self._now_s)
        if isinstance(known, words.Attr):
            return self._entry(request, words.AttrIs(known))
        if not known:
            name_s = self._name_s(request.ino, op.name)
            return [no(request, errno.ENOENT)] if not name_s else told(request, kernel.no_entry_out(name_s))
        return too_long(request, op.name) or self._ask(request, words.Look(request.ino, op.name), self._entry)

    def _getattr(self, request: kernel.Request, op: kernel.Getattr) -> list[Effect]:
        if known := self.memory.attr(request.ino, self._now_s):
            return self._attr(request, words.AttrIs(known))
        return self._ask(request, words.Get(request.ino), self._attr)

    def _setattr(self, request: kernel.Request, op: kernel.Setattr) -> list[Effect]:
        valid = op.valid
        question = words.Set(
            request.ino,
            mode=op.mode & words.PERMISSIONS if valid & kernel.FATTR_MODE else None,
            uid=op.uid if valid & kernel.FATTR_UID else None,
            gid=op.gid if valid & kernel.FATTR_GID else None,
            size=op.size if valid & kernel.FATTR_SIZE else None,
            atime_ns=_time(valid, kernel.FATTR_ATIME, kernel.FATTR_ATIME_NOW, op.atime_ns),
            mtime_ns=_time(valid, kernel.FATTR_MTIME, kernel.FATTR_MTIME_NOW, op.mtime_ns),
        )
        if question == words.Set(request.ino):
            return self._ask(request, words.Get(request.ino), self._attr)
        return self._ask(request, question, self._attr)

    def _readlink(self, request: kernel.Request, op: kernel.Readlink) -> list[Effect]:
        return self._ask(request, words.Target(request.ino), self._target)

    def _symlink(self, request: kernel.Request, op: kernel.Symlink) -> list[Effect]:
        if len(op.target) > words.TARGET_MAX_BYTES:
            return [no(request, errno.ENAMETOOLONG)]
        return self._make(request, op.name, stat.S_IFLNK | 0o777, target=op.target)

    def _mknod(self, request: kernel.Request, op: kernel.Mknod) -> list[Effect]:
        return self._make(request, op.name, op.mode & ~op.umask, rdev=op.rdev)

    def _mkdir(self, request: kernel.Request, op: kernel.Mkdir) -> list[Effect]:
        return self._make(request, op.name, stat.S_IFDIR | stat.S_IMODE(op.mode & ~op.umask))

    def _make(
        self, request: kernel.Request, name: bytes, mode: int, target: bytes = b"", rdev: int = 0
    ) -> list[Effect]:
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG  # mknod(2) has it so
        question = words.Make(request.ino, name, mode, target, rdev)
        return too_long(request, name) or self._ask(request, question, self._entry)

    def _unlink(self, request: kernel.Request, op: kernel.Unlink) -> list[Effect]:
        return too_long(request, op.name) or self._ask(request, words.Remove(request.ino, op.name))

    def _rmdir(self, request: kernel.Request, op: kernel.Rmdir) -> list[Effect]:
        return too_long(request, op.name) or self._ask(request, words.Remove(request.ino, op.name, dir=True))

    def _rename(self, request: kernel.Request, op: kernel.Rename) -> list[Effect]:
        keep, exchange = bool(op.flags & kernel.RENAME_NOREPLACE), bool(op.flags & kernel.RENAME_EXCHANGE)
        if op.flags & ~(kernel.RENAME_NOREPLACE | kernel.RENAME_EXCHANGE) or (keep and exchange):
            return [no(request, errno.EINVAL)]
        question = words.Rename(request.ino, op.name, op.new_parent, op.new_name, keep, exchange)
        return too_long(request, op.name, op.new_name) or self._ask(request, question)

    def _link(self, request: kernel.Request, op: kernel.Link) -> list[Effect]:
        return too_long(request, op.name) or self._ask(request, words.Link(op.ino, request.ino, op.name), self._entry)

    def _statfs(self, request: kernel.Request, op: kernel.Statfs) -> list[Effect]:
        return self._ask(request, words.Space(), self._space)

    # ---- what is answered about them

    def _entry(self, request: kernel.Request, answer: object) -> list[Effect]:
        op = request.op
        assert isinstance(answer, words.AttrIs)
        assert isinstance(op, kernel.Lookup | kernel.Mknod | kernel.Mkdir | kernel.Symlink | kernel.Link)
        ino = answer.attr.ino
        if self.writing.is_behind(ino):  # then that is how it was before
            return self.writing.after(ino, lambda: self._ask(request, words.Get(ino), self._entry))
        return told(request, self._entry_out(request.ino, op.name, answer.attr))

    def _entry_out(self, parent: int, name: bytes, attr: words.Attr) -> bytes:
        return kernel.entry_out(facts(attr), self._name_s(parent, name), self._attr_s(attr))

    def _attr(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.AttrIs)
        return told(request, kernel.attr_out(facts(answer.attr), self._attr_s(answer.attr)))

    def _target(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.TargetIs)
        return told(request, answer.target[: words.TARGET_MAX_BYTES])

    def _space(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.SpaceIs)
        total, free = answer.total_bytes // BLOCK_BYTES, answer.free_bytes // BLOCK_BYTES
        room = kernel.statfs_out(total, free, answer.files, answer.free_files, BLOCK_BYTES, words.NAME_MAX_BYTES)
        return told(request, room)

    # ---- directories

    def _opendir(self, request: kernel.Request, op: kernel.Opendir) -> list[Effect]:
        """What was listed is kept as the pages of files are: as long as the directory's time of change is the same."""
        return told(request, kernel.open_out(0, kernel.FOPEN_CACHE_DIR | kernel.FOPEN_KEEP_CACHE))

    def _readdir(self, request: kernel.Request, op: kernel.Readdir) -> list[Effect]:
        fixed = kernel.DIRENTPLUS_BYTES if op.plus else kernel.DIRENT_BYTES
        limit = min(max(1, op.size // (fixed + NAME_GUESS_BYTES)), words.ENTRIES_MAX)
        return self._ask(request, words.List(request.ino, max(0, op.offset - PLACES_FROM), limit), self._listing)

    def _listing(self, request: kernel.Request, answer: object) -> list[Effect]:
        op = request.op
        assert isinstance(answer, words.Listing) and isinstance(op, kernel.Readdir)
        parts: list[bytes] = []
        room = op.size
        for part in self._dirents(request.ino, op, answer):
            if len(part) > room:
                break
            parts.append(part)
            room -= len(part)
        else:
            return told(request, b"".join(parts))
        return told(request, b"".join(parts)) if parts else [no(request, errno.EINVAL)]  # as ext4 has it

    def _dirents(self, ino: int, op: kernel.Readdir, listing: words.Listing) -> list[bytes]:
        """The entries as the kernel reads them: "." and ".." are of our making, and of them nothing more is said."""
        dots = [(ino, 1, b"."), (listing.parent, 2, b"..")][op.offset :]
        if not op.plus:
            return [kernel.dirent(dot, place, stat.S_IFDIR, name) for dot, place, name in dots] + [
                kernel.dirent(entry.attr.ino, entry.place + PLACES_FROM, entry.attr.mode, entry.name)
                for entry in listing.entries
            ]
        return [kernel.direntplus(None, dot, place, stat.S_IFDIR, name, (0.0, 0.0)) for dot, place, name in dots] + [
            kernel.direntplus(
                None if self.writing.is_behind(entry.attr.ino) else facts(entry.attr),
                entry.attr.ino,
                entry.place + PLACES_FROM,
                entry.attr.mode,
                entry.name,
                (self._name_s(ino, entry.name), self._attr_s(entry.attr)),
            )
            for entry in listing.entries
        ]


def _time(valid: int, given: int, now: int, time_ns: int) -> int | None:
    if valid & now:
        return -1
    if not valid & given:
        return None
    time_ns = max(-TIME_MAX_NS, min(time_ns, TIME_MAX_NS))
    return -2 if time_ns == -1 else time_ns  # the last nanosecond of 1969 is taken for "now"


HANDLERS: dict[type, Handler] = {
    kernel.Lookup: Naming._lookup,
    kernel.Getattr: Naming._getattr,
    kernel.Setattr: Naming._setattr,
    kernel.Readlink: Naming._readlink,
    kernel.Symlink: Naming._symlink,
    kernel.Mknod: Naming._mknod,
    kernel.Mkdir: Naming._mkdir,
    kernel.Unlink: Naming._unlink,
    kernel.Rmdir: Naming._rmdir,
    kernel.Rename: Naming._rename,
    kernel.Link: Naming._link,
    kernel.Statfs: Naming._statfs,
    kernel.Opendir: Naming._opendir,
    kernel.Readdir: Naming._readdir,
}
