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
from typing import Final

from beo.tree import kernel, naming, words
from beo.tree.naming import Naming
from beo.tree.replies import Effect, Handler, Reply, Then, no, nothing, told, too_long, without_ids, yes
from beo.tree.writing import Behind

MAX_PAGES: Final = words.DATA_MAX_BYTES // 4096  # of a request
BACKGROUND_MAX: Final = 64  # requests at a time that no one waits for: pages read ahead, and written back

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


class Mount(Naming):
    """One mounted tree. Its numbers of inodes are the kernel's."""

    def __init__(self) -> None:
        """Nothing is open yet."""
        super().__init__()
        self.flags = 0  # what was agreed with the kernel
        self.opened: dict[int, int] = {}  # inode -> how many times it is open here, or about to be
        self._failures: dict[int, int] = {}  # inode -> errno of a write that was replied to
        self._lockers: set[tuple[int, int]] = set()  # (inode, owner) that may have a lock of fcntl
        self._lock_waits: dict[int, int] = {}  # unique of a request that waits for a lock -> its question

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
            return [no(request, errno.ENOSYS)]
        if isinstance(request.op, _NEVER_WAIT):
            return handler(self, request, request.op)
        return self.writing.when_caught_up(request.ino, lambda: handler(self, request, request.op))

    # ---- the beginning

    def _init(self, request: kernel.Request, op: kernel.Init) -> list[Effect]:
        if op.major < kernel.MAJOR or (op.major == kernel.MAJOR and op.minor < kernel.MINOR_MIN):
            return [no(request, errno.EPROTO)]
        minor = min(op.minor, kernel.MINOR) if op.major == kernel.MAJOR else kernel.MINOR  # a newer one asks again
        self.has_epochs = op.major == kernel.MAJOR and op.minor >= kernel.EPOCHS_FROM
        # Entries come with what is known of each only where that is remembered; else it would be asked at once again.
        self.flags = op.flags & (_WANTED | _PLUS if self.has_epochs else _WANTED)
        return told(
            request,
            kernel.init_out(minor, self.flags, op.max_readahead, words.DATA_MAX_BYTES, MAX_PAGES, BACKGROUND_MAX),
        )

    # ---- files

    def _open(self, request: kernel.Request, op: kernel.Open) -> list[Effect]:
        return self._ask_open(request, words.Open(request.ino, truncate=bool(op.flags & _O_TRUNC)), self._is_open)

    def _ask_open(self, request: kernel.Request, question: words.Open, then: Then) -> list[Effect]:
        """The server knows only whether a node has a file open, so it is told of the last close alone. It waits for no
        close that is under way: the server sees by their numbers which of the two is the later one."""
        ino = question.ino

        def failed(whose: kernel.Request, why: int) -> list[Effect]:
            return [no(whose, why), *self._close(whose, ino, nothing)]

        self.opened[ino] = self.opened.get(ino, 0) + 1
        known = None if question.truncate else self.memory.attr(ino, self._now_s)
        if known is None:
            return self._ask(request, question, then, failed)
        # Nobody takes it away before we say that we have forgotten it, which the server hears after this.
        return [*then(request, words.AttrIs(known)), *self._ask(request, question, nothing, nothing)]

    def _close(self, request: kernel.Request, ino: int, then: Then) -> list[Effect]:
        count = self.opened.pop(ino, 0)
        if count == 1:
            self.memory.share(ino)
            self._failures.pop(ino, None)
        if count > 1:
            self.opened[ino] = count - 1
        if count != 1:
            return then(request, None)
        return self._ask(request, words.Close(ino), then, lambda whose, _: then(whose, None))

    def _is_open(self, request: kernel.Request, answer: object) -> list[Effect]:
        op = request.op
        assert isinstance(answer, words.AttrIs) and isinstance(op, kernel.Open)
        body = kernel.open_out(request.ino, open_flags(op.flags))
        # Who empties a file may not keep its set-id bits. The kernel sees to that when it truncates on its own.
        if op.flags & _O_TRUNC and request.uid and (mode := without_ids(answer.attr.mode)) is not None:
            return self._ask(request, words.Set(request.ino, mode=mode), lambda whose, _: told(whose, body))
        return told(request, body)

    def _create(self, request: kernel.Request, op: kernel.Create) -> list[Effect]:
        """A file that somebody else has made meanwhile is not opened, as nobody has looked whether that is allowed:
        ESTALE makes the kernel look it up and try anew."""

        def there(whose: kernel.Request, why: int) -> list[Effect]:
            return [no(whose, errno.ESTALE if why == errno.EEXIST and not op.flags & _O_EXCL else why)]

        question = words.Make(request.ino, op.name, stat.S_IFREG | stat.S_IMODE(op.mode & ~op.umask))
        return too_long(request, op.name) or self._ask(request, question, self._made, there)

    def _made(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.AttrIs)
        return self._ask_open(request, words.Open(answer.attr.ino), self._created)

    def _created(self, request: kernel.Request, answer: object) -> list[Effect]:
        op = request.op
        assert isinstance(answer, words.AttrIs) and isinstance(op, kernel.Create)
        entry = self._entry_out(request.ino, op.name, answer.attr)
        return told(request, entry + kernel.open_out(answer.attr.ino, open_flags(op.flags)))

    def _release(self, request: kernel.Request, op: kernel.Release) -> list[Effect]:
        """The kernel makes nobody wait for the reply."""
        effects: list[Effect] = []
        if op.release_flags & kernel.RELEASE_FLOCK_UNLOCK:
            effects += self._ask(request, words.Unlock(request.ino, op.lock_owner, whole=True), nothing, nothing)
        return effects + self._close(request, request.ino, yes)

    def _read(self, request: kernel.Request, op: kernel.Read) -> list[Effect]:
        if op.size > words.DATA_MAX_BYTES:
            return [no(request, errno.EINVAL)]
        return self._ask(request, words.Read(request.ino, op.offset, op.size), self._data)

    def _data(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.DataIs) and isinstance(request.op, kernel.Read)
        data = answer.data[: request.op.size]
        return [Reply(kernel.header(request.unique, len(data)), data)]

    def _write(self, request: kernel.Request, op: kernel.Write) -> list[Effect]:
        if len(op.data) > words.DATA_MAX_BYTES:
            return [no(request, errno.EINVAL)]
        if why := self._failures.pop(request.ino, 0):
            return [no(request, why)]
        # Pages of a mapping have their place, however the file was opened.
        is_page = bool(op.write_flags & kernel.WRITE_CACHE)
        append = bool(op.flags & _O_APPEND) and not is_page
        question = words.Write(request.ino, op.offset, op.data, append)
        if is_page or not self.memory.is_alone(request.ino, self._now_s):
            asked = self._ask(request, question, self._is_written)
            self.writing.begin(request.ino, self._number)
            return asked
        one = Behind(request, len(op.data))
        asked = self._ask(
            request,
            question,
            lambda _, answer: self._caught_up(one, answer),
            lambda _, why: self._not_written(one, why),
        )
        self.writing.begin(request.ino, self._number)
        return asked + self.writing.let_ahead(one)

    def _caught_up(self, one: Behind, answer: object) -> list[Effect]:
        """A write is done that may be replied to already."""
        assert isinstance(answer, words.Written)
        effects = self.writing.caught_up(one)
        if not one.is_replied:
            return self._is_written(one.request, answer)
        if (mode := self._mode_after(one.request, answer)) is not None:
            effects += self._ask(one.request, words.Set(one.request.ino, mode=mode), nothing, nothing)
        return effects

    def _not_written(self, one: Behind, why: int) -> list[Effect]:
        """One has failed that may be replied to already."""
        effects = self.writing.caught_up(one)
        if not one.is_replied:
            return [no(one.request, why)]
        self.memory.share(one.request.ino)
        self._failures.setdefault(one.request.ino, why)
        return effects

    def _mode_after(self, request: kernel.Request, answer: words.Written) -> int | None:
        """What permissions a file gets by being written, as that takes set-id bits away; None: those that it has."""
        assert isinstance(request.op, kernel.Write)
        return without_ids(answer.attr.mode) if request.op.write_flags & kernel.WRITE_KILL_SUIDGID else None

    def _is_written(self, request: kernel.Request, answer: object) -> list[Effect]:
        op = request.op
        assert isinstance(answer, words.Written) and isinstance(op, kernel.Write)
        body = kernel.write_out(len(op.data))
        if (mode := self._mode_after(request, answer)) is not None:
            return self._ask(request, words.Set(request.ino, mode=mode), lambda whose, _: told(whose, body))
        return told(request, body)

    def _fallocate(self, request: kernel.Request, op: kernel.Fallocate) -> list[Effect]:
        if op.mode & ~(kernel.FALLOC_KEEP_SIZE | kernel.FALLOC_PUNCH_HOLE):
            return [no(request, errno.EOPNOTSUPP)]
        keep, punch = bool(op.mode & kernel.FALLOC_KEEP_SIZE), bool(op.mode & kernel.FALLOC_PUNCH_HOLE)
        return self._ask(request, words.Allocate(request.ino, op.offset, op.size, keep, punch))

    # ---- what waits for writes

    def _fsync(self, request: kernel.Request, op: kernel.Fsync) -> list[Effect]:
        return self.writing.after(request.ino, lambda: self._synced(request))

    def _flush(self, request: kernel.Request, op: kernel.Flush) -> list[Effect]:
        """POSIX has it that whoever closes any descriptor of a file gives up all his locks there; behind the writes
        that they guard."""

        def give_up() -> list[Effect]:
            if (request.ino, op.lock_owner) not in self._lockers:
                return self._synced(request)
            self._lockers.remove((request.ino, op.lock_owner))
            return self._ask(request, words.Unlock(request.ino, op.lock_owner), self._synced)

        return self.writing.after(request.ino, give_up)

    def _synced(self, request: kernel.Request, answer: object = None) -> list[Effect]:
        """All writes are answered; if one failed that was replied to before, that is said here."""
        why = self._failures.pop(request.ino, 0)
        return [no(request, why)] if why else yes(request)

    # ---- locks

    def _lock(self, request: kernel.Request, op: kernel.Lock) -> list[Effect]:
        kind = _KINDS[op.kind]
        if op.test:
            test = words.Blocker(request.ino, op.owner, kind, op.start, op.end)
            return self._ask(request, test, self._blocker)
        wait = op.wait and kind != "u"
        question = words.Lock(request.ino, op.owner, kind, op.start, op.end, op.flock, wait, op.pid or request.pid)
        if kind == "u":  # who has the lock next may not see less than what was written under it
            return self.writing.when_caught_up(request.ino, lambda: self._ask(request, question))
        if not op.flock:
            self._lockers.add((request.ino, op.owner))
        asked = self._ask(request, question, self._locked, self._not_locked)
        if wait:
            self._lock_waits[request.unique] = self._number
        return asked

    def _locked(self, request: kernel.Request, answer: object) -> list[Effect]:
        self._lock_waits.pop(request.unique, None)
        return yes(request)

    def _not_locked(self, request: kernel.Request, why: int) -> list[Effect]:
        self._lock_waits.pop(request.unique, None)
        return [no(request, why)]

    def _blocker(self, request: kernel.Request, answer: object) -> list[Effect]:
        assert isinstance(answer, words.BlockerIs)
        kind = _KIND_NUMBERS.get(answer.kind, kernel.LOCK_WRITE)
        return told(request, kernel.lk_out(kind, answer.start, answer.end, answer.pid))

    def _interrupt(self, request: kernel.Request, op: kernel.Interrupt) -> list[Effect]:
        """Whoever waits for a lock may be waiting for hours; all else ends by itself. It comes behind the request it is
        about, so one that isn't there was answered meanwhile."""
        number = self._lock_waits.pop(op.target, None)
        return [] if number is None else self._ask(request, words.CancelLock(number), nothing, nothing)

    # ---- what needs no question

    def _ignore(self, request: kernel.Request, op: object) -> list[Effect]:
        return []

    def _agree(self, request: kernel.Request, op: object) -> list[Effect]:
        return yes(request)


_NEVER_WAIT = (kernel.Write, kernel.Lock, kernel.Release, kernel.Forget, kernel.Interrupt)
"""What doesn't wait for writes of its inode that are behind: more of them, locks, which a signal may end the wait for,
and what nobody waits for."""

_HANDLERS: dict[type, Handler] = {
    **naming.HANDLERS,
    kernel.Releasedir: Mount._agree,
    kernel.Fsyncdir: Mount._agree,
    kernel.Init: Mount._init,
    kernel.Forget: Mount._ignore,
    kernel.Open: Mount._open,
    kernel.Create: Mount._create,
    kernel.Read: Mount._read,
    kernel.Write: Mount._write,
    kernel.Release: Mount._release,
    kernel.Flush: Mount._flush,
    kernel.Fsync: Mount._fsync,
    kernel.Lock: Mount._lock,
    kernel.Interrupt: Mount._interrupt,
    kernel.NotifyReply: Mount._ignore,
    kernel.Fallocate: Mount._fallocate,
    kernel.Destroy: Mount._agree,
}
