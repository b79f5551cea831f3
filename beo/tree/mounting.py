"""A mounted tree, as its kernel and its server see it: requests of the one become questions to the other. Pure.

Every request of the kernel gets exactly one reply, when the answers that it needs have come; any number of requests are
under way at a time. What is leased to this mount is answered from its `Memory`, so that all nodes see the same at every
moment; the kernel remembers it, too, until the lease ends or it is told to forget it.

A write needs no answer where this mount holds the file *alone* (leases.py). It is replied to at once, and is *behind*
until it is answered; whatever else is asked of that file waits for that, fsync and close among them. Where it fails,
whoever asks for the next write, fsync or close is told.

Only *mappings* are less fresh. Files are opened for direct I/O
(those that are only read go by pages that are held against the file's time of change at each read), and mmap(2) goes
by the kernel's page cache nevertheless. On one node read, write and mappings agree: the kernel writes a mapping's
changed pages back before it reads or writes the same bytes directly, and drops its pages behind a direct write.
Between nodes a mapping is as of when its pages came: they are dropped when the file is mapped anew, and when an fstat
here finds another time of change or size. Changed pages are sent as whole pages at msync, fsync, munmap and close, so
two nodes that change bytes of one page through mappings overwrite each other's, as with NFS.
"""

from __future__ import annotations

import errno
import stat
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from beo.tree import kernel, words
from beo.tree.memory import Memory

MAX_PAGES: Final = words.DATA_MAX_BYTES // 4096  # of a request
BACKGROUND_MAX: Final = 64  # requests at a time that no one waits for: pages read ahead, and written back
BLOCK_BYTES: Final = 4096  # that room is counted in
PREFERRED_BYTES: Final = 128 << 10  # st_blksize: stdio and cp go by it, and a question costs as much with one byte
PLACES_FROM: Final = 2  # in READDIR 1 is behind ".", 2 behind "..", and place n of the tree is n + 2
NAME_GUESS_BYTES: Final = 16  # of a name in a directory with its padding, to ask for as many as the kernel has room for
TIME_MAX_NS: Final = (1 << 62) - 1  # from 1970 on, of what the tree takes: from 1823 to 2116
ERRNO_MAX: Final = 511  # the kernel takes no higher one, and whoever asked would wait for ever

BEHIND_MAX, BEHIND_MAX_BYTES = 256, 8 << 20  # writes that are replied to before they are answered
DRIFT_S = 0.5  # for so long what is remembered is used without a head, before it is looked for one again

_SET_ID = stat.S_ISUID | stat.S_ISGID
_KINDS = {kernel.LOCK_READ: "r", kernel.LOCK_WRITE: "w", kernel.LOCK_NONE: "u"}
_KIND_NUMBERS = {kind: number for number, kind in _KINDS.items()}
_O_ACCMODE, _O_RDONLY = 0o3, 0o0
_O_TRUNC, _O_APPEND, _O_EXCL = 0o1000, 0o2000, 0o200  # as Linux has them on x86 and Arm

# What is done with whatever of these the kernel can.
_WANTED = (
    kernel.ASYNC_READ
    | kernel.POSIX_LOCKS
    | kernel.FLOCK_LOCKS
    | kernel.ATOMIC_O_TRUNC
    | kernel.BIG_WRITES
    | kernel.AUTO_INVAL_DATA
    | kernel.ASYNC_DIO
    | kernel.PARALLEL_DIROPS
    | kernel.MAX_PAGES
    | kernel.INIT_EXT
    | kernel.DIRECT_IO_ALLOW_MMAP
)
_PLUS = kernel.DO_READDIRPLUS | kernel.READDIRPLUS_AUTO

_ANSWERS: dict[type, type] = {
    words.Look: words.AttrIs,
    words.Get: words.AttrIs,
    words.List: words.Listing,
    words.Target: words.TargetIs,
    words.Read: words.DataIs,
    words.Space: words.SpaceIs,
    words.Make: words.AttrIs,
    words.Link: words.AttrIs,
    words.Remove: words.Done,
    words.Rename: words.Done,
    words.Set: words.AttrIs,
    words.Write: words.Written,
    words.Allocate: words.AttrIs,
    words.Open: words.AttrIs,
    words.Close: words.Done,
    words.Lock: words.Done,
    words.Blocker: words.BlockerIs,
    words.Unlock: words.Done,
    words.CancelLock: words.Done,
}


def open_flags(flags: int) -> int:
    """Return what the kernel is told of an open file; flags: how it was opened, as of open(2).

    Who only reads goes by the kernel's pages: at each read it needs the file's attributes (AUTO_INVAL_DATA), and drops
    the pages where time of change or size are others than when they came. So what is read is never older than the
    beginning of the read, and what is read again isn't fetched again. Who also writes passes the pages by: with many
    writers of one file they would be dropped all the time.
    """
    if flags & _O_ACCMODE == _O_RDONLY:
        return kernel.FOPEN_KEEP_CACHE
    # Writers of one file needn't wait for each other's answers: the server puts them in an order.
    return kernel.FOPEN_DIRECT_IO | kernel.FOPEN_PARALLEL_DIRECT_WRITES


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
_Then = Callable[[kernel.Request, object], list[Effect]]
_Failed = Callable[[kernel.Request, int], list[Effect]]


class _Waiting(msgspec.Struct):
    """A question under way. failed: what to do instead of replying with the errno."""

    request: kernel.Request
    question: words.Question
    then: _Then
    failed: _Failed


class _Behind(msgspec.Struct):
    """A write under way that is replied to before it is answered, as soon as not too many are."""

    request: kernel.Request
    size: int
    is_replied: bool = False


class _Barrier(msgspec.Struct):
    """Who waits for writes."""

    numbers: set[int]
    then: Callable[[], list[Effect]]


class Mount:
    """One mounted tree. Its numbers of inodes are the kernel's."""

    def __init__(self) -> None:
        """Nothing is open yet."""
        self.memory = Memory()
        self.has_epochs = False  # the kernel can forget names without waiting for anybody, so it may remember them
        self._now_s = 0.0
        self.flags = 0  # what was agreed with the kernel
        self.opened: dict[int, int] = {}  # inode -> how many times it is open here, or about to be
        self._closing: dict[int, list[Callable[[], list[Effect]]]] = {}  # inode -> who wants to open it meanwhile
        self._number = 0
        self._waiting: dict[int, _Waiting] = {}
        self._writing: dict[int, set[int]] = {}  # inode -> the questions that write it
        self._barriers: list[_Barrier] = []
        self._behind: dict[int, _Behind] = {}  # by the number of the question
        self._late: deque[_Behind] = deque()  # of these, which are to be replied to next
        self._ahead = self._ahead_bytes = 0  # how many are replied to
        self._failures: dict[int, int] = {}  # inode -> errno of a write that was replied to
        self._lockers: set[tuple[int, int]] = set()  # (inode, owner) that may have a lock of fcntl
        self._lock_waits: dict[int, int] = {}  # unique of a request that waits for a lock -> its question

    @property
    def pending(self) -> int:
        """How many questions are under way."""
        return len(self._waiting)

    def from_kernel(self, data: bytes | memoryview, now_s: float) -> list[Effect]:
        """Take what one read of /dev/fuse gave. now_s: by the clock that leases end by."""
        self._now_s = now_s
        try:
            request = kernel.parse(data)
        except kernel.Malformed as error:
            # A reply to nobody would be taken for a notification.
            answered = error.unique and kernel.is_answered(error.opcode)
            return [Reply(kernel.error(error.unique, errno.EINVAL))] if answered else []
        handler = _HANDLERS.get(type(request.op))
        if handler is None:
            return [_no(request, errno.ENOSYS)]
        if isinstance(request.op, _NEVER_WAIT):
            return handler(self, request, request.op)
        return self._when_caught_up(request.ino, lambda: handler(self, request, request.op))

    def from_tree(self, number: int, told: words.Told, now_s: float) -> list[Effect]:
        """Take the answer to question `number`; one that nobody waits for is nothing."""
        self._now_s = now_s
        if isinstance(told, words.Recall):
            return self._recall(told)
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return []
        request, answer = waiting.request, told.answer if isinstance(told, words.Leased) else told
        self.memory.told(waiting.question, told)
        if number in self._behind:
            return self._caught_up(number, answer) + self._written(request.ino, number)
        if not isinstance(answer, _ANSWERS[type(waiting.question)]):
            effects = waiting.failed(request, _errno(answer))
        else:
            try:
                effects = waiting.then(request, answer)
            except struct.error:  # a number that the kernel has no room for
                effects = [_no(request, errno.EIO)]
        return effects + self._written(request.ino, number)

    def drift(self, now_s: float) -> list[Effect]:
        """No head is heard: answer by what is remembered, until then and for a moment more; all else waits."""
        self._now_s = now_s
        self.memory.hold(now_s + DRIFT_S)
        effects = []
        for waiting in list(self._waiting.values()):
            answer = self._remembered(waiting.question)
            if answer is not None:
                then, waiting.then, waiting.failed = waiting.then, _nothing, _nothing
                effects += then(waiting.request, answer)
        return effects

    def _remembered(self, question: words.Question) -> words.Answer | None:
        known: words.Attr | bool | None = None
        match question:
            case words.Get():
                known = self.memory.attr(question.ino, self._now_s)
            case words.Look():
                known = self.memory.look(question.parent, question.name, self._now_s)
            case words.Open() if not question.truncate:
                known = self.memory.attr(question.ino, self._now_s)
        return words.AttrIs(known) if isinstance(known, words.Attr) else None

    # ---- asking

    def _ask(
        self,
        request: kernel.Request,
        question: words.Question,
        then: _Then | None = None,
        failed: _Failed | None = None,
    ) -> list[Effect]:
        """Ask, and go on with `then`; without it the reply is just yes."""
        self._number += 1
        self._waiting[self._number] = _Waiting(request, question, then or _yes, failed or _no_list)
        return [Ask(self._number, words.Caller(request.uid, request.gid, checked=True), question)]

    def _recall(self, word: words.Recall) -> list[Effect]:
        """Others are about to change something. What the kernel remembers of it ends with the lease at the latest."""
        self.memory.recall(word)
        if not word.inos:
            return []
        self._number += 1
        ask = Ask(self._number, words.Caller(0, 0, checked=True), words.Recalled(word.inos, word.recalls))
        notices = [kernel.invalid_attr(ino) for ino in word.inos]
        return [Notify((*notices, kernel.invalid_names()) if self.has_epochs else tuple(notices), ask)]

    def _attr_s(self, attr: words.Attr) -> float:
        """For how long the kernel may remember this of an inode, in seconds."""
        return self.memory.left_s(self._now_s) if self.memory.attr(attr.ino, self._now_s) else 0.0

    def _name_s(self, parent: int, name: bytes) -> float:
        """For how long the kernel may remember what a name means, in seconds."""
        return self.memory.left_s(self._now_s) if self.has_epochs and self.memory.has_name(parent, name) else 0.0

    # ---- the beginning

    def _init(self, request: kernel.Request, op: kernel.Init) -> list[Effect]:
        if op.major < kernel.MAJOR or (op.major == kernel.MAJOR and op.minor < kernel.MINOR_MIN):
            return [_no(request, errno.EPROTO)]
        minor = min(op.minor, kernel.MINOR) if op.major == kernel.MAJOR else kernel.MINOR  # a newer one asks again
        self.has_epochs = op.major == kernel.MAJOR and op.minor >= kernel.EPOCHS_FROM
        # Entries come with what is known of each only where that is remembered; else it would be asked at once again.
        self.flags = op.flags & (_WANTED | _PLUS if self.has_epochs else _WANTED)
        return _told(
            request,
            kernel.init_out(minor, self.flags, op.max_readahead, words.DATA_MAX_BYTES, MAX_PAGES, BACKGROUND_MAX),
        )

    # ---- names and inodes

    def _lookup(self, request: kernel.Request, op: kernel.Lookup) -> list[Effect]:
        known = self.memory.look(request.ino, op.name, self._now_s)
        if isinstance(known, words.Attr):
            return self._entry(request, words.AttrIs(known))
        if not known:
            name_s = self._name_s(request.ino, op.name)
            return [_no(request, errno.ENOENT)] if not name_s else _told(request, kernel.no_entry_out(name_s))
        return _named(request, op.name) or self._ask(request, words.Look(request.ino, op.name), self._entry)

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
            return [_no(request, errno.ENAMETOOLONG)]
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
        return _named(request, name) or self._ask(request, question, self._entry)

    def _unlink(self, request: kernel.Request, op: kernel.Unlink) -> list[Effect]:
        return _named(request, op.name) or self._ask(request, words.Remove(request.ino, op.name))

    def _rmdir(self, request: kernel.Request, op: kernel.Rmdir) -> list[Effect]:
        return _named(request, op.name) or self._ask(request, words.Remove(request.ino, op.name, dir=True))

    def _rename(self, request: kernel.Request, op: kernel.Rename) -> list[Effect]:
        keep, exchange = bool(op.flags & kernel.RENAME_NOREPLACE), bool(op.flags & kernel.RENAME_EXCHANGE)
        if op.flags & ~(kernel.RENAME_NOREPLACE | kernel.RENAME_EXCHANGE) or (keep and exchange):
            return [_no(request, errno.EINVAL)]
        question = words.Rename(request.ino, op.name, op.new_parent, op.new_name, keep, exchange)
        return _named(request, op.name, op.new_name) or self._ask(request, question)

    def _link(self, request: kernel.Request, op: kernel.Link) -> list[Effect]:
        return _named(request, op.name) or self._ask(request, words.Link(op.ino, request.ino, op.name), self._entry)

    def _statfs(self, request: kernel.Request, op: kernel.Statfs) -> list[Effect]:
        return self._ask(request, words.Space(), self._space)

    # ---- what is answered about them

    def _entry(self, request: kernel.Request, answer: object) -> list[Effect]:
        op = request.op
        assert isinstance(answer, words.AttrIs)
        assert isinstance(op, kernel.Lookup | kernel.Mknod | kernel.Mkdir | kernel.Symlink | kernel.Link)
        ino = answer.attr.ino
        if self._is_behind(ino):  # then that is how it was before
            return self._behind_writes(ino, lambda: self._ask(request, words.Get(ino), self._entry))
        return _told(request, self._entry_out(request.ino, op.name, answer.attr))

    def _entry_out(self, parent: int, name: bytes, attr: words.Attr) -> bytes:
        return kernel.entry_out(_facts(attr), self._name_s(parent, name), self._attr_s(attr))

    def _attr(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.AttrIs)
        return _told(request, kernel.attr_out(_facts(answer.attr), self._attr_s(answer.attr)))

    def _target(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.TargetIs)
        return _told(request, answer.target[: words.TARGET_MAX_BYTES])

    def _space(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.SpaceIs)
        total, free = answer.total_bytes // BLOCK_BYTES, answer.free_bytes // BLOCK_BYTES
        room = kernel.statfs_out(total, free, answer.files, answer.free_files, BLOCK_BYTES, words.NAME_MAX_BYTES)
        return _told(request, room)

    # ---- directories

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
            return _told(request, b"".join(parts))
        return _told(request, b"".join(parts)) if parts else [_no(request, errno.EINVAL)]  # as ext4 has it

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
                None if self._is_behind(entry.attr.ino) else _facts(entry.attr),
                entry.attr.ino,
                entry.place + PLACES_FROM,
                entry.attr.mode,
                entry.name,
                (self._name_s(ino, entry.name), self._attr_s(entry.attr)),
            )
            for entry in listing.entries
        ]

    # ---- files

    def _open(self, request: kernel.Request, op: kernel.Open) -> list[Effect]:
        return self._ask_open(request, words.Open(request.ino, truncate=bool(op.flags & _O_TRUNC)), self._is_open)

    def _ask_open(self, request: kernel.Request, question: words.Open, then: _Then) -> list[Effect]:
        """The server knows only whether a node has a file open, so it is told of the last close alone; and no open may
        pass a close by, since the close would be the later one for the server if it had to be sent again."""
        ino = question.ino

        def failed(whose: kernel.Request, why: int) -> list[Effect]:
            return [_no(whose, why), *self._close(whose, ino, _nothing)]

        def ask() -> list[Effect]:
            self.opened[ino] = self.opened.get(ino, 0) + 1
            known = None if question.truncate else self.memory.attr(ino, self._now_s)
            if known is None:
                return self._ask(request, question, then, failed)
            # Nobody takes it away before we say that we have forgotten it, which the server hears after this.
            return [*then(request, words.AttrIs(known)), *self._ask(request, question, _nothing, _nothing)]

        if ino in self._closing:
            self._closing[ino].append(ask)
            return []
        return ask()

    def _close(self, request: kernel.Request, ino: int, then: _Then) -> list[Effect]:
        count = self.opened.pop(ino, 0)
        if count == 1:
            self.memory.share(ino)
            self._failures.pop(ino, None)
        if count > 1:
            self.opened[ino] = count - 1
        if count != 1:
            return then(request, None)

        def closed(whose: kernel.Request, _: object) -> list[Effect]:
            effects = then(whose, None)
            for open_again in self._closing.pop(ino):
                effects += open_again()
            return effects

        self._closing[ino] = []
        return self._ask(request, words.Close(ino), closed, closed)

    def _is_open(self, request: kernel.Request, answer: object) -> list[Effect]:
        op = request.op
        assert isinstance(answer, words.AttrIs) and isinstance(op, kernel.Open)
        body = kernel.open_out(request.ino, open_flags(op.flags))
        # Who empties a file may not keep its set-id bits. The kernel sees to that when it truncates on its own.
        if op.flags & _O_TRUNC and request.uid and (mode := _without_ids(answer.attr.mode)) is not None:
            return self._ask(request, words.Set(request.ino, mode=mode), lambda whose, _: _told(whose, body))
        return _told(request, body)

    def _create(self, request: kernel.Request, op: kernel.Create) -> list[Effect]:
        """A file that somebody else has made meanwhile is not opened, as nobody has looked whether that is allowed:
        ESTALE makes the kernel look it up and try anew."""

        def there(whose: kernel.Request, why: int) -> list[Effect]:
            return [_no(whose, errno.ESTALE if why == errno.EEXIST and not op.flags & _O_EXCL else why)]

        question = words.Make(request.ino, op.name, stat.S_IFREG | stat.S_IMODE(op.mode & ~op.umask))
        return _named(request, op.name) or self._ask(request, question, self._made, there)

    def _made(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.AttrIs)
        return self._ask_open(request, words.Open(answer.attr.ino), self._created)

    def _created(self, request: kernel.Request, answer: object) -> list[Effect]:
        op = request.op
        assert isinstance(answer, words.AttrIs) and isinstance(op, kernel.Create)
        entry = self._entry_out(request.ino, op.name, answer.attr)
        return _told(request, entry + kernel.open_out(answer.attr.ino, open_flags(op.flags)))

    def _release(self, request: kernel.Request, op: kernel.Release) -> list[Effect]:
        """The kernel makes nobody wait for the reply."""
        effects: list[Effect] = []
        if op.release_flags & kernel.RELEASE_FLOCK_UNLOCK:
            effects += self._ask(request, words.Unlock(request.ino, op.lock_owner, whole=True), _nothing, _nothing)
        return effects + self._close(request, request.ino, _yes)

    def _read(self, request: kernel.Request, op: kernel.Read) -> list[Effect]:
        if op.size > words.DATA_MAX_BYTES:
            return [_no(request, errno.EINVAL)]
        return self._ask(request, words.Read(request.ino, op.offset, op.size), self._data)

    def _data(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.DataIs) and isinstance(request.op, kernel.Read)
        data = answer.data[: request.op.size]
        return [Reply(kernel.header(request.unique, len(data)), data)]

    def _write(self, request: kernel.Request, op: kernel.Write) -> list[Effect]:
        if len(op.data) > words.DATA_MAX_BYTES:
            return [_no(request, errno.EINVAL)]
        if why := self._failures.pop(request.ino, 0):
            return [_no(request, why)]
        # Pages of a mapping have their place, however the file was opened.
        is_page = bool(op.write_flags & kernel.WRITE_CACHE)
        append = bool(op.flags & _O_APPEND) and not is_page
        asked = self._ask(request, words.Write(request.ino, op.offset, op.data, append), self._is_written)
        self._writing.setdefault(request.ino, set()).add(self._number)
        if is_page or not self.memory.is_alone(request.ino, self._now_s):
            return asked
        self._behind[self._number] = one = _Behind(request, len(op.data))
        self._late.append(one)
        return asked + self._reply_ahead()

    def _is_behind(self, ino: int) -> bool:
        """Whether a file may have writes that are replied to and not answered."""
        return bool(self._behind) and ino in self._writing

    def _when_caught_up(self, ino: int, then: Callable[[], list[Effect]]) -> list[Effect]:
        return self._behind_writes(ino, then) if self._is_behind(ino) else then()

    def _reply_ahead(self) -> list[Effect]:
        """Reply to writes that are under way, as long as not too many are behind."""
        effects: list[Effect] = []
        while self._late and (
            not self._ahead or (self._ahead < BEHIND_MAX and self._ahead_bytes + self._late[0].size <= BEHIND_MAX_BYTES)
        ):
            one = self._late.popleft()
            one.is_replied = True
            self._ahead += 1
            self._ahead_bytes += one.size
            effects += _told(one.request, kernel.write_out(one.size))
        return effects

    def _caught_up(self, number: int, answer: object) -> list[Effect]:
        """A write is answered that may be replied to already."""
        one = self._behind.pop(number)
        request = one.request
        if not one.is_replied:
            self._late.remove(one)
            if isinstance(answer, words.Written):
                return self._is_written(request, answer)
            return [_no(request, _errno(answer))]
        self._ahead -= 1
        self._ahead_bytes -= one.size
        effects = self._reply_ahead()
        if not isinstance(answer, words.Written):
            self.memory.share(request.ino)
            self._failures.setdefault(request.ino, _errno(answer))
        elif (mode := self._mode_after(request, answer)) is not None:
            effects += self._ask(request, words.Set(request.ino, mode=mode), _nothing, _nothing)
        return effects

    def _mode_after(self, request: kernel.Request, answer: words.Written) -> int | None:
        """What permissions a file gets by being written, as that takes set-id bits away; None: those that it has."""
        assert isinstance(request.op, kernel.Write)
        return _without_ids(answer.attr.mode) if request.op.write_flags & kernel.WRITE_KILL_SUIDGID else None

    def _is_written(self, request: kernel.Request, answer: object) -> list[Effect]:
        op = request.op
        assert isinstance(answer, words.Written) and isinstance(op, kernel.Write)
        body = kernel.write_out(len(op.data))
        if (mode := self._mode_after(request, answer)) is not None:
            return self._ask(request, words.Set(request.ino, mode=mode), lambda whose, _: _told(whose, body))
        return _told(request, body)

    def _fallocate(self, request: kernel.Request, op: kernel.Fallocate) -> list[Effect]:
        if op.mode & ~(kernel.FALLOC_KEEP_SIZE | kernel.FALLOC_PUNCH_HOLE):
            return [_no(request, errno.EOPNOTSUPP)]
        keep, punch = bool(op.mode & kernel.FALLOC_KEEP_SIZE), bool(op.mode & kernel.FALLOC_PUNCH_HOLE)
        return self._ask(request, words.Allocate(request.ino, op.offset, op.size, keep, punch))

    # ---- what waits for writes

    def _fsync(self, request: kernel.Request, op: kernel.Fsync) -> list[Effect]:
        return self._behind_writes(request.ino, lambda: self._synced(request))

    def _flush(self, request: kernel.Request, op: kernel.Flush) -> list[Effect]:
        """POSIX has it that whoever closes any descriptor of a file gives up all his locks there; behind the writes
        that they guard."""

        def give_up() -> list[Effect]:
            if (request.ino, op.lock_owner) not in self._lockers:
                return self._synced(request)
            self._lockers.remove((request.ino, op.lock_owner))
            return self._ask(request, words.Unlock(request.ino, op.lock_owner), self._synced)

        return self._behind_writes(request.ino, give_up)

    def _synced(self, request: kernel.Request, answer: object = None) -> list[Effect]:
        """All writes are answered; if one failed that was replied to before, that is said here."""
        why = self._failures.pop(request.ino, 0)
        return [_no(request, why)] if why else _yes(request)

    def _behind_writes(self, ino: int, then: Callable[[], list[Effect]]) -> list[Effect]:
        """Go on when all writes of a file that are under way are answered. Errors of mappings' pages the kernel keeps
        for the next fsync or close."""
        writing = self._writing.get(ino)
        if not writing:
            return then()
        self._barriers.append(_Barrier(set(writing), then))
        return []

    def _written(self, ino: int, number: int) -> list[Effect]:
        writing = self._writing.get(ino)
        if not writing or number not in writing:
            return []
        writing.remove(number)
        if not writing:
            del self._writing[ino]
        for barrier in self._barriers:
            barrier.numbers.discard(number)
        ready = [barrier for barrier in self._barriers if not barrier.numbers]
        self._barriers = [barrier for barrier in self._barriers if barrier.numbers]
        return [effect for barrier in ready for effect in barrier.then()]

    # ---- locks

    def _lock(self, request: kernel.Request, op: kernel.Lock) -> list[Effect]:
        kind = _KINDS[op.kind]
        if op.test:
            test = words.Blocker(request.ino, op.owner, kind, op.start, op.end)
            return self._ask(request, test, self._blocker)
        wait = op.wait and kind != "u"
        question = words.Lock(request.ino, op.owner, kind, op.start, op.end, op.flock, wait, op.pid or request.pid)
        if kind == "u":  # who has the lock next may not see less than what was written under it
            return self._when_caught_up(request.ino, lambda: self._ask(request, question))
        if not op.flock:
            self._lockers.add((request.ino, op.owner))
        asked = self._ask(request, question, self._locked, self._not_locked)
        if wait:
            self._lock_waits[request.unique] = self._number
        return asked

    def _locked(self, request: kernel.Request, answer: object) -> list[Effect]:
        self._lock_waits.pop(request.unique, None)
        return _yes(request)

    def _not_locked(self, request: kernel.Request, why: int) -> list[Effect]:
        self._lock_waits.pop(request.unique, None)
        return [_no(request, why)]

    def _blocker(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.BlockerIs)
        kind = _KIND_NUMBERS.get(answer.kind, kernel.LOCK_WRITE)
        return _told(request, kernel.lk_out(kind, answer.start, answer.end, answer.pid))

    def _interrupt(self, request: kernel.Request, op: kernel.Interrupt) -> list[Effect]:
        """Whoever waits for a lock may be waiting for hours; all else ends by itself. It comes behind the request it is
        about, so one that isn't there was answered meanwhile."""
        number = self._lock_waits.pop(op.target, None)
        return [] if number is None else self._ask(request, words.CancelLock(number), _nothing, _nothing)

    # ---- what needs no question

    def _ignore(self, request: kernel.Request, op: object) -> list[Effect]:
        return []

    def _agree(self, request: kernel.Request, op: object) -> list[Effect]:
        return _yes(request)

    def _opendir(self, request: kernel.Request, op: kernel.Opendir) -> list[Effect]:
        """What was listed is kept as the pages of files are: as long as the directory's time of change is the same."""
        return _told(request, kernel.open_out(0, kernel.FOPEN_CACHE_DIR | kernel.FOPEN_KEEP_CACHE))


def _no(request: kernel.Request, why: int) -> Reply:
    return Reply(kernel.error(request.unique, why))


def _no_list(request: kernel.Request, why: int) -> list[Effect]:
    return [_no(request, why)]


def _yes(request: kernel.Request, answer: object = None) -> list[Effect]:
    return [Reply(kernel.error(request.unique, 0))]


def _nothing(request: kernel.Request, answer: object) -> list[Effect]:
    return []


def _told(request: kernel.Request, body: bytes) -> list[Effect]:
    return [Reply(kernel.reply(request.unique, body))]


def _named(request: kernel.Request, *names: bytes) -> list[Effect]:
    """The reply if a name is too long, or nothing."""
    too_long = any(len(name) > words.NAME_MAX_BYTES for name in names)
    return [_no(request, errno.ENAMETOOLONG)] if too_long else []


def _errno(answer: object) -> int:
    """Why an answer is none, so that the kernel takes it. ENOSYS would make it never ask the like again."""
    why = answer.errno if isinstance(answer, words.Failed) else errno.EIO
    if why == errno.ENOSYS:
        return errno.EOPNOTSUPP
    return why if 0 < why <= ERRNO_MAX else errno.EIO


def _time(valid: int, given: int, now: int, time_ns: int) -> int | None:
    if valid & now:
        return -1
    if not valid & given:
        return None
    time_ns = max(-TIME_MAX_NS, min(time_ns, TIME_MAX_NS))
    return -2 if time_ns == -1 else time_ns  # the last nanosecond of 1969 is taken for "now"


def _without_ids(mode: int) -> int | None:
    """Permissions without the set-id bits that a write takes; None: there are none. Without the right to execute, the
    group's bit means something else."""
    left = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        left &= ~stat.S_ISGID
    return None if left == mode else left & words.PERMISSIONS


def _facts(attr: words.Attr) -> kernel.Facts:
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


_NEVER_WAIT = (kernel.Write, kernel.Lock, kernel.Release, kernel.Forget, kernel.Interrupt)
"""What doesn't wait for writes of its inode that are behind: more of them, locks, which a signal may end the wait for,
and what nobody waits for."""

_HANDLERS: dict[type, Callable[..., list[Effect]]] = {
    kernel.Init: Mount._init,
    kernel.Lookup: Mount._lookup,
    kernel.Forget: Mount._ignore,
    kernel.Getattr: Mount._getattr,
    kernel.Setattr: Mount._setattr,
    kernel.Readlink: Mount._readlink,
    kernel.Symlink: Mount._symlink,
    kernel.Mknod: Mount._mknod,
    kernel.Mkdir: Mount._mkdir,
    kernel.Unlink: Mount._unlink,
    kernel.Rmdir: Mount._rmdir,
    kernel.Rename: Mount._rename,
    kernel.Link: Mount._link,
    kernel.Open: Mount._open,
    kernel.Create: Mount._create,
    kernel.Read: Mount._read,
    kernel.Write: Mount._write,
    kernel.Statfs: Mount._statfs,
    kernel.Release: Mount._release,
    kernel.Flush: Mount._flush,
    kernel.Fsync: Mount._fsync,
    kernel.Opendir: Mount._opendir,
    kernel.Readdir: Mount._readdir,
    kernel.Releasedir: Mount._agree,
    kernel.Fsyncdir: Mount._agree,
    kernel.Lock: Mount._lock,
    kernel.Interrupt: Mount._interrupt,
    kernel.NotifyReply: Mount._ignore,
    kernel.Fallocate: Mount._fallocate,
    kernel.Destroy: Mount._agree,
}
