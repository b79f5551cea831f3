"""Files on their way from one machine to another as one stream of bytes: who packs them, and who takes them out.

Started by path on a node by the agent (`beo cp`); before all else it becomes the user whose copy it is:

    python -I -S copier.py UID:GID:GID,... get (-r|-) PATH...
    python -I -S copier.py UID:GID:GID,... put (-d|-) TARGET

`get` packs, until its standard input ends: then all of it has arrived. `put` takes, and says at the end what became of
it, as a line of JSON.

The stream is records, each a line of JSON; behind that of a file come pieces of its bytes, each with its length before
it. Whoever takes believes nothing: a name is one step below a directory that he has made or looked at himself, and a
file has its final name only when it is whole.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

PIECE_BYTES = 256 << 10
"""Of a file in one piece."""
PIECE_MAX_BYTES = 16 << 20
"""The longest that is taken."""
RECORD_MAX_BYTES = 64 << 10
"""The longest line that is taken: a path has 4,096 bytes at most."""
TIME_MAX_NS = 1 << 62
"""Of a file, before and after 1970."""
FAILURES_MAX = 1000
"""So many are told one by one."""
CUT = 0xFFFFFFFF
"""Instead of a length: the file can't be read any further, and what has come of it is no file."""

Failure = tuple[str, str, int, str]
"""Which side it was on ("from" or "to"), the path, the errno (0: none), and why."""

DIRECTORY = "it is a directory"


class StreamError(ValueError):
    """What has come was not packed by `pack`."""


def _line(**words: object) -> bytes:
    return json.dumps(words).encode() + b"\n"


def _failed(path: str, error: OSError) -> bytes:
    return _line(kind="failed", path=path, errno=error.errno or 0, why=(error.strerror or str(error)).lower())


def pack(paths: list[str], recursive: bool, tell: Callable[[str], None] = lambda path: None) -> Iterator[bytes]:
    """Yield the stream of these files, and of directories with all in them where `recursive`; tell: of each name."""
    for path in paths:
        try:
            found = os.stat(path)
        except OSError as error:
            yield _failed(path, error)
            continue
        name = os.path.basename(os.path.realpath(path)) or "root"
        if stat.S_ISDIR(found.st_mode) and not recursive:
            yield _failed(path, IsADirectoryError(errno.EISDIR, DIRECTORY))
        else:
            yield from _packed(path, [name], found, tell)
    yield _line(kind="end")


def _packed(path: str, steps: list[str], found: os.stat_result, tell: Callable[[str], None]) -> Iterator[bytes]:
    words: dict[str, Any] = {"at": steps, "mode": stat.S_IMODE(found.st_mode), "mtime_ns": found.st_mtime_ns}
    try:
        if stat.S_ISDIR(found.st_mode):
            names = sorted(os.listdir(path))
            yield _line(kind="folder", **words)
        elif stat.S_ISLNK(found.st_mode):
            yield _line(kind="link", to=os.readlink(path), **words)
            names = []
        elif stat.S_ISREG(found.st_mode):
            yield from _bytes_of(path, words)
            names = []
        else:
            raise OSError(0, "neither file, directory nor symbolic link: left out")
    except OSError as error:
        yield _failed(path, error)
        return
    tell(path)
    for name in names:
        below = os.path.join(path, name)
        try:
            at = os.lstat(below)
        except OSError as error:
            yield _failed(below, error)
            continue
        yield from _packed(below, [*steps, name], at, tell)


def _bytes_of(path: str, words: dict[str, Any]) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        yield _line(kind="file", **words)
        while True:
            try:
                data = file.read(PIECE_BYTES)
            except OSError:
                yield CUT.to_bytes(4)
                raise
            yield len(data).to_bytes(4) + data
            if not data:
                return


class Taker:
    """Takes a stream and makes what is in it, below or in the place of `target`.

    many: it must be a directory. tell: told each name that was made. done: all of it has come. hopeless: nothing that
    comes can be put anywhere.
    """

    def __init__(self, target: str, many: bool = False, tell: Callable[[str], None] = lambda path: None) -> None:
        self.failures: list[Failure] = []
        self.failed = 0
        self.made = 0
        self.done = False
        self.hopeless = False
        self._target, self._many, self._tell = target, many, tell
        self._held = bytearray()
        self._folders: dict[tuple[str, ...], str] = {}
        self._finish: list[tuple[str, int, int]] = []  # path, mode and time of directories: they change meanwhile
        self._file: _File | None = None
        self._in_file = False  # pieces of it are coming

    def feed(self, data: bytes) -> None:
        """Take what has come; StreamError where that is no stream."""
        self._held += data
        while not self.done and (self._take_piece() if self._in_file else self._take_record()):
            pass

    def close(self) -> None:
        """No more comes: what is not whole goes."""
        if self._file:
            self._file.drop()
            self._file = None

    @property
    def report(self) -> dict[str, Any]:
        """What became of it, for whoever packed it."""
        return {
            "done": self.done,
            "hopeless": self.hopeless,
            "made": self.made,
            "failed": self.failed,
            "failures": self.failures,
        }

    def _fail(self, side: str, path: str, number: int, why: str) -> None:
        self.failed += 1
        if len(self.failures) < FAILURES_MAX:
            self.failures.append((side, path, number, why))

    def _take_record(self) -> bool:
        end = self._held.find(b"\n")
        if end < 0:
            if len(self._held) > RECORD_MAX_BYTES:
                raise StreamError("a record without an end")
            return False
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        try:
            record = json.loads(line)
            kind = record["kind"]
            if kind == "end":
                self._ended()
            elif kind == "failed":
                self._fail("from", str(record["path"]), int(record["errno"]), str(record["why"]))
            else:
                mtime_ns = max(-TIME_MAX_NS, min(int(record["mtime_ns"]), TIME_MAX_NS))
                self._make(kind, _steps(record["at"]), int(record["mode"]) & 0o777, mtime_ns, record)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise StreamError(f"a record that is none: {line[:100]!r}") from error
        return True

    def _make(self, kind: str, steps: tuple[str, ...], mode: int, mtime_ns: int, record: dict[str, Any]) -> None:
        if kind not in ("folder", "link", "file"):
            raise StreamError(f"a record of no kind: {kind[:20]!r}")
        self._in_file = kind == "file"
        path = self._path(steps)
        if not path:
            return
        try:
            if kind == "folder":
                _make_folder(path)
                self._folders[steps] = path
                self._finish.append((path, mode, mtime_ns))
            elif kind == "link":
                _make_link(str(record["to"]), path)
            else:
                self._file = _File(path, mode, mtime_ns)
                return
        except OSError as error:
            self._fail("to", path, error.errno or 0, (error.strerror or "").lower())
            return
        self._made(path)

    def _made(self, path: str) -> None:
        self.made += 1
        self._tell(path)

    def _path(self, steps: tuple[str, ...]) -> str:
        """Where something goes; "" where its directory could not be made, which was told."""
        if len(steps) > 1:
            folder = self._folders.get(steps[:-1], "")
            return os.path.join(folder, steps[-1]) if folder else ""
        if os.path.isdir(self._target):
            return os.path.join(self._target, steps[0])
        if self._many or self._target.endswith("/"):
            number = errno.ENOTDIR if os.path.lexists(self._target.rstrip("/")) else errno.ENOENT
            if not self.hopeless:
                self._fail("to", self._target, number, os.strerror(number).lower())
            self.hopeless = True
            return ""
        return self._target

    def _take_piece(self) -> bool:
        if len(self._held) < 4:
            return False
        length = int.from_bytes(self._held[:4])
        if length == CUT:
            del self._held[:4]
            self.close()
            self._in_file = False
            return True
        if length > PIECE_MAX_BYTES:
            raise StreamError(f"a piece of {length} bytes")
        if len(self._held) < 4 + length:
            return False
        piece = self._held[4 : 4 + length]
        del self._held[: 4 + length]
        self._in_file = bool(length)
        if not self._file:
            return True
        try:
            if length:
                self._file.write(piece)
            else:
                self._file.finish()
        except OSError as error:
            self._fail("to", self._file.path, error.errno or 0, (error.strerror or "").lower())
            self.close()
            return True
        if not length:
            path, self._file = self._file.path, None
            self._made(path)
        return True

    def _ended(self) -> None:
        for path, mode, mtime_ns in reversed(self._finish):
            try:
                os.chmod(path, mode)
                os.utime(path, ns=(mtime_ns, mtime_ns))
            except OSError as error:
                self._fail("to", path, error.errno or 0, (error.strerror or "").lower())
        self.done = True


def _steps(found: object) -> tuple[str, ...]:
    """Return the names that lead to a file; StreamError where one of them is more than a name."""
    if not isinstance(found, list) or not found:
        raise StreamError("a file without a name")
    for name in found:
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise StreamError(f"{str(name)[:80]!r} is no name")
    return tuple(found)


def _make_folder(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):  # a link would lead elsewhere
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None


def _make_link(target: str, path: str) -> None:
    hidden = _hidden(path)
    os.symlink(target, hidden)
    try:
        os.rename(hidden, path)
    except OSError:
        os.unlink(hidden)
        raise


def _hidden(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name[:60]}.{os.urandom(6).hex()}~")


class _File:
    """A file that gets its name when it is whole."""

    def __init__(self, path: str, mode: int, mtime_ns: int) -> None:
        self.path = path
        self._mode, self._mtime_ns = mode, mtime_ns
        self._hidden = _hidden(path)
        self._fd = os.open(self._hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes | bytearray) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def finish(self) -> None:
        """All is there."""
        os.fchmod(self._fd, self._mode)
        os.utime(self._fd, ns=(self._mtime_ns, self._mtime_ns))
        fd, self._fd = self._fd, -1
        os.close(fd)  # where some file systems say that the disk is full
        os.rename(self._hidden, self.path)
        self._hidden = ""

    def drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        if self._hidden:
            try:
                os.unlink(self._hidden)
            except OSError:
                pass  # somebody else took it away


# ---- on a node


def _there(path: str) -> str:
    """A path on this node: one that doesn't begin at / begins at its user's home."""
    import pwd

    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = "/"
    slash = "/" if path.endswith("/") else ""
    return os.path.normpath(os.path.join(home, path)).rstrip("/") + slash or "/"


def _give(recursive: bool, paths: list[str]) -> None:
    for piece in pack([_there(path) for path in paths], recursive):
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(1, rest) :]
    while os.read(0, PIECE_BYTES):  # until all of it has arrived
        pass


def _take(many: bool, target: str) -> None:
    taker = Taker(_there(target), many)
    try:
        while not taker.done and not taker.hopeless and (data := os.read(0, PIECE_BYTES)):
            taker.feed(data)
    finally:
        taker.close()
    sys.stdout.write(json.dumps(taker.report) + "\n")


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)


def become(who: str) -> None:
    """Be this user from here on, for good; who is none but himself stays that."""
    uid, gid, groups = who.split(":")
    if os.geteuid() == 0:
        os.setgroups([int(word) for word in groups.split(",") if word])
        os.setresgid(int(gid), int(gid), int(gid))
        os.setresuid(int(uid), int(uid), int(uid))
    elif os.geteuid() != int(uid):
        raise PermissionError(errno.EPERM, f"this is uid {os.geteuid()} and not {uid}")
    os.umask(0o022)


def main(words: list[str]) -> int:
    """Do either."""
    become(words[0])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)  # so that nothing half done is left
    verb, flag, *paths = words[1:]
    if verb == "get":
        _give(flag == "-r", paths)
    else:
        _take(flag == "-d", paths[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
