"""A kernel that asks a mount, without a kernel: builds requests, and sees to it that each gets one reply."""

import struct

from beo.tree import kernel, words
from beo.tree.mounting import Mount
from beo.tree.replies import Ask, Effect, Reply

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR = 1, 2, 3, 4, 5, 6, 8, 9
UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 10, 11, 12, 13, 14, 15, 16, 17, 18, 20
GETXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, GETLK = 22, 25, 26, 27, 28, 29, 30, 31
SETLK, SETLKW, ACCESS, CREATE, INTERRUPT, DESTROY, BATCH_FORGET = 32, 33, 34, 35, 36, 38, 42
FALLOCATE, READDIRPLUS, RENAME2, LSEEK, COPY_FILE_RANGE = 43, 44, 45, 46, 47


def request(opcode: int, body: bytes = b"", unique: int = 2, ino: int = 1, uid: int = 0, gid: int = 0) -> bytes:
    """Return a request as one read of /dev/fuse gives it."""
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, ino, uid, gid, 77, 0, 0) + body


def init(flags: int = (1 << 64) - 1, minor: int = 45, major: int = 7) -> bytes:
    """Return the body of INIT."""
    return struct.pack("=IIIII44x", major, minor, 1 << 17, flags & 0xFFFFFFFF, flags >> 32)


def read(offset: int, size: int) -> bytes:
    """Return the body of READ, READDIR and READDIRPLUS."""
    return struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0)


def write(offset: int, data: bytes, flags: int = 0, write_flags: int = 0) -> bytes:
    """Return the body of WRITE."""
    return struct.pack("=QQIIQII", 0, offset, len(data), write_flags, 0, flags, 0) + data


def create(name: bytes, flags: int = 0, mode: int = 0o100644, umask: int = 0) -> bytes:
    """Return the body of CREATE."""
    return struct.pack("=IIII", flags, mode, umask, 0) + name + b"\0"


def release(owner: int = 0, flags: int = 0) -> bytes:
    """Return the body of RELEASE."""
    return struct.pack("=QIIQ", 0, 0, flags, owner)


def flush(owner: int) -> bytes:
    """Return the body of FLUSH."""
    return struct.pack("=QIIQ", 0, 0, 0, owner)


def lock(owner: int, kind: int, flock: bool = False, start: int = 0, end: int = words.WHOLE) -> bytes:
    """Return the body of GETLK, SETLK and SETLKW."""
    return struct.pack("=QQQQIIII", 0, owner, start, end, kind, 7, int(flock), 0)


class FakeKernel:
    """Asks a mount. asked: what the mount asks the tree, in order; replies: (errno, body) of each request."""

    def __init__(self) -> None:
        self.core = Mount()
        self.asked: list[Ask] = []
        self.replies: dict[int, tuple[int, bytes]] = {}
        self.unique = 0

    def ask(self, opcode: int, body: bytes = b"", ino: int = 1, uid: int = 0, now_s: float = 0.0) -> int:
        """Put a request; its number."""
        self.unique += 2
        self._take(self.core.from_kernel(request(opcode, body, self.unique, ino, uid), now_s))
        return self.unique

    def drift(self, now_s: float) -> None:
        """No head is heard."""
        self._take(self.core.drift(now_s))

    def question(self) -> words.Question:
        """The last question to the tree."""
        return self.asked[-1].question

    def answer(self, answer: words.Told, number: int = 0) -> None:
        """Answer a question, the last one if not said otherwise."""
        self._take(self.core.from_tree(number or self.asked[-1].number, answer, 0.0))

    def reply(self, unique: int = 0) -> tuple[int, bytes]:
        """What a request (the last one) got: (errno, body)."""
        return self.replies[unique or self.unique]

    def _take(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Ask):
                self.asked.append(effect)
                continue
            assert isinstance(effect, Reply)
            message = effect.data + effect.body
            length, error, unique = struct.unpack_from("=IiQ", message)
            assert length == len(message) and -512 < error <= 0
            assert unique not in self.replies, "two replies to one request"
            assert kernel.whose(effect.data) == unique
            self.replies[unique] = -error, message[16:]
