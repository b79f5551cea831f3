"""Random changes of one file through two nodes, and looks at what it holds then: in the manner of fsx, but ours.

fsx itself is in none of the registries that we have. As a program: ``exerciser.py FOLDER FOLDER SEED STEPS``, the
folders being the same one of two nodes. Ends with 0, or with 1 and a line that says at which step what was wrong.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import sys

SIZE_MAX = 200_000
LENGTH_MAX = 40_000
KEEP_SIZE, PUNCH_HOLE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Wrong(Exception):
    """The file isn't as it should be."""


class Exerciser:
    """One file, under one of two names, and the bytes that it should have. A step goes through one of two nodes."""

    def __init__(self, folders: list[str], seed: int) -> None:
        """Make the file."""
        self._random = random.Random(seed)
        self._names = [f"{seed}-x", f"{seed}-y"]
        self._folders = folders
        self._bytes = bytearray()
        self._steps = [self.write, self.write, self.append, self.truncate, self.allocate, self.punch, self.copy]
        self._steps += [self.map, self.read, self.read, self.read_mapped, self.rename, self.reopen, self.look]
        self._fds = [os.open(f"{folders[0]}/{self._names[0]}", os.O_RDWR | os.O_CREAT | os.O_EXCL)]
        self._fds.append(os.open(f"{folders[1]}/{self._names[0]}", os.O_RDWR))
        self._node, self._fd = 0, self._fds[0]  # of this step

    def step(self) -> str:
        """Do something; return what. Raises Wrong."""
        self._node = self._random.randrange(2)
        self._fd = self._fds[self._node]
        chosen = self._random.choice(self._steps)
        what = f"{chosen.__name__} on node {self._node}"
        try:
            chosen()
        except (Wrong, OSError) as error:
            raise Wrong(f"{what}: {error}") from error
        return what

    def end(self) -> None:
        """Compare all, and remove it."""
        for fd in self._fds:
            self._compare(0, os.pread(fd, SIZE_MAX + 1, 0), len(self._bytes) + 1)
            os.close(fd)
        os.unlink(self._path())

    # ---- steps

    def write(self) -> None:
        """pwrite(2), perhaps behind the end."""
        offset, data = self._place(), self._data()
        self._put(offset, data)
        done = os.pwrite(self._fd, data, offset)
        if done != len(data):
            raise Wrong(f"{done} bytes written of {len(data)}")

    def append(self) -> None:
        """write(2) by O_APPEND."""
        data = self._data()[: max(0, SIZE_MAX - len(self._bytes))]
        fd = os.open(self._path(), os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self._bytes += data

    def truncate(self) -> None:
        """ftruncate(2), shorter or longer."""
        size = self._random.randrange(SIZE_MAX)
        os.ftruncate(self._fd, size)
        del self._bytes[size:]
        self._bytes.extend(bytes(size - len(self._bytes)))

    def allocate(self) -> None:
        """posix_fallocate(3): the file may grow, and nothing that it holds changes."""
        offset, length = self._place(), self._length()
        os.posix_fallocate(self._fd, offset, length)
        self._bytes.extend(bytes(max(0, offset + length - len(self._bytes))))

    def punch(self) -> None:
        """fallocate(2) that makes a hole."""
        offset, length = self._place(), self._length()
        if _libc.fallocate(self._fd, KEEP_SIZE | PUNCH_HOLE, offset, length):
            raise OSError(ctypes.get_errno(), "fallocate")
        end = min(offset + length, len(self._bytes))
        if end > offset:
            self._bytes[offset:end] = bytes(end - offset)

    def copy(self) -> None:
        """copy_file_range(2) from one place of it to another that has no byte in common."""
        half = len(self._bytes) // 2
        length = self._random.randrange(half + 1)
        if not length:
            return
        source = self._random.randrange(half - length + 1)
        target = half + self._random.randrange(half - length + 1)
        left = length
        while left:
            done = os.copy_file_range(self._fd, self._fd, left, source + length - left, target + length - left)
            if not done:
                raise Wrong("copied nothing")
            left -= done
        self._bytes[target : target + length] = self._bytes[source : source + length]

    def map(self) -> None:
        """Change some of it through a mapping, and msync(2)."""
        if not self._bytes:
            return
        offset = self._random.randrange(len(self._bytes))
        data = self._data()[: len(self._bytes) - offset]
        with mmap.mmap(self._fd, len(self._bytes)) as mapping:
            mapping[offset : offset + len(data)] = data
            mapping.flush()
        self._put(offset, data)

    def read(self) -> None:
        """pread(2), perhaps behind the end."""
        offset, length = self._place(), self._length()
        self._compare(offset, os.pread(self._fd, length, offset), length)

    def read_mapped(self) -> None:
        """Look at some of it through a new mapping."""
        if not self._bytes:
            return
        offset, length = self._random.randrange(len(self._bytes)), self._length()
        with mmap.mmap(self._fd, len(self._bytes), prot=mmap.PROT_READ) as mapping:
            self._compare(offset, mapping[offset : offset + length], length)

    def rename(self) -> None:
        """Give it its other name."""
        old = self._path()
        self._names.reverse()
        os.rename(old, self._path())

    def reopen(self) -> None:
        """Close it on one node, and open it again."""
        os.close(self._fd)
        self._fds[self._node] = os.open(self._path(), os.O_RDWR)

    def look(self) -> None:
        """stat(2): its size, and that it has one name."""
        found = os.stat(self._path())
        if (found.st_size, found.st_nlink) != (len(self._bytes), 1):
            raise Wrong(f"{found.st_size} bytes and {found.st_nlink} names instead of {len(self._bytes)} and 1")

    # ----

    def _path(self) -> str:
        return f"{self._folders[self._node]}/{self._names[0]}"

    def _place(self) -> int:
        return self._random.randrange(SIZE_MAX - LENGTH_MAX)

    def _length(self) -> int:
        return self._random.randint(1, LENGTH_MAX)

    def _data(self) -> bytes:
        return self._random.randbytes(self._length())

    def _put(self, offset: int, data: bytes) -> None:
        self._bytes.extend(bytes(max(0, offset - len(self._bytes))))
        self._bytes[offset : offset + len(data)] = data

    def _compare(self, offset: int, found: bytes, length: int) -> None:
        wanted = bytes(self._bytes[offset : offset + length])
        if len(found) != len(wanted):
            raise Wrong(f"{len(found)} bytes from {offset} on instead of {len(wanted)}")
        if found != wanted:
            at = next(i for i, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other)
            raise Wrong(f"byte {offset + at} is {found[at]} instead of {wanted[at]}")


def main(arguments: list[str]) -> int:
    """Do so many steps."""
    *folders, seed, steps = arguments
    exerciser = Exerciser(folders, int(seed))
    for number in range(int(steps)):
        try:
            exerciser.step()
        except Wrong as wrong:
            print(f"seed {seed}, step {number}: {wrong}")
            return 1
    exerciser.end()
    print(f"{steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
