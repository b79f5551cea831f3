"""The tree really mounted: what programs do to it by system calls, each in a process of its own with a limit of time.

This process never touches a mount: if its server hung, so would the tests. Two folders are two nodes of one tree, and
in most tests the second one looks at what the first has done.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import shutil
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from beo.errors import BeoError
from beo.tree import mount
from tests.fake_tree import SLOW_S

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount"),
    pytest.mark.skipif(not os.path.exists(mount.DEVICE), reason=f"{mount.DEVICE} is missing"),
]

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 20.0  # for one process; none takes more than one second on a machine that has nothing else to do
MIB = 1 << 20


@dataclass
class Nodes:
    """A tree's server and where it is mounted."""

    server: subprocess.Popen[bytes]
    folders: list[Path]

    @property
    def a(self) -> Path:
        """The first node's."""
        return self.folders[0]

    @property
    def b(self) -> Path:
        """The second node's."""
        return self.folders[1]

    def apart(self, work: Callable[[], object]) -> None:
        """Let a process of its own do it; what it raises is raised here."""
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(reader)
                work()
            except BaseException:
                os.write(writer, traceback.format_exc().encode())
            finally:
                os._exit(0)
        os.close(writer)
        told = b""
        deadline = time.monotonic() + LIMIT_S
        while part := _read(reader, deadline):
            told += part
        if time.monotonic() > deadline:
            self.server.kill()  # whoever waits for its mount gets an error
            os.kill(child, signal.SIGKILL)
            told = b"it took longer than it may"
        os.close(reader)
        os.waitpid(child, 0)
        if told:
            pytest.fail(told.decode(errors="replace"), pytrace=False)

    def stop(self) -> None:
        """End the server in order; nothing is mounted afterwards, whatever became of it."""
        self.server.terminate()
        try:
            self.server.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()
        left = [folder for folder in self.folders if is_mounted(folder)]
        for folder in left:
            subprocess.run(["umount", "-l", folder], check=False, timeout=LIMIT_S)
        for folder in self.folders:
            folder.rmdir()
        assert not left and self.server.returncode == 0


def _read(reader: int, deadline: float) -> bytes:
    ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
    return os.read(reader, 65536) if ready else b""


def is_mounted(folder: Path) -> bool:
    """Whether a tree is mounted there, from the kernel's list."""
    return f" {folder} fuse.beo " in Path("/proc/mounts").read_text()


def start(kind: str, count: int, folders: list[Path] | None = None) -> Nodes:
    """Start a server of one tree at some folders, a node each."""
    folders = folders or [Path(tempfile.mkdtemp(prefix="beo-tree-")) for _ in range(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([sys.executable, "-m", "tests.fake_tree", kind, *folders], env=environment, cwd=ROOT)
    nodes = Nodes(server, folders)
    deadline = time.monotonic() + LIMIT_S
    while not all(is_mounted(folder) for folder in folders):
        if server.poll() is not None or time.monotonic() > deadline:
            nodes.stop()
            pytest.fail("the tree could not be mounted")
        time.sleep(0.01)
    return nodes


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes with one tree."""
    started = start("plain", 2)
    yield started
    started.stop()


@contextlib.contextmanager
def fails(number: int) -> Iterator[None]:
    """What is done within fails with this errno."""
    try:
        yield
    except OSError as error:
        if error.errno != number:
            raise
    else:
        raise AssertionError(f"it didn't fail with {errno.errorcode[number]}")


# ---- files and names


def test_what_one_node_writes_the_other_reads_at_once(nodes: Nodes) -> None:
    def work() -> None:
        one, other = nodes.a / "shared", nodes.b / "shared"
        assert not other.exists()
        one.write_bytes(b"first")
        assert other.read_bytes() == b"first"
        with open(other, "r+b", buffering=0) as there, open(one, "rb", buffering=0) as here:
            there.write(b"FIRST and more")
            assert here.read() == b"FIRST and more"
            assert os.fstat(here.fileno()).st_size == 14
            there.truncate(3)
            assert os.pread(here.fileno(), 100, 0) == b"FIR"
        other.unlink()
        assert not one.exists()

    nodes.apart(work)


def test_renames(nodes: Nodes) -> None:
    def work() -> None:
        top = nodes.a / "renames"
        (top / "d").mkdir(parents=True)
        (top / "x").write_text("x")
        (top / "y").write_text("y")
        os.rename(top / "x", top / "y")
        assert (top / "y").read_text() == "x" and not (top / "x").exists()
        os.rename(top / "y", top / "d" / "z")
        assert (nodes.b / "renames/d/z").read_text() == "x"
        with fails(errno.ENOTEMPTY):
            (top / "e").mkdir()
            os.rename(top / "e", top / "d")
        with fails(errno.EINVAL):
            os.rename(top / "d", top / "d" / "inside")
        (top / "k").write_text("k")
        assert rename2(top / "k", top / "d" / "z", 1) == errno.EEXIST
        assert rename2(top / "k", top / "d" / "z", 2) == 0
        assert (top / "k").read_text() == "x" and (top / "d" / "z").read_text() == "k"
        assert rename2(top / "k", top / "l", 4) == errno.EINVAL

    nodes.apart(work)


def rename2(old: Path, new: Path, flags: int) -> int:
    """renameat2(2); the errno, or 0."""
    done = mount._libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    return ctypes.get_errno() if done else 0


def test_a_file_lives_as_long_as_it_is_open(nodes: Nodes) -> None:
    def work() -> None:
        with open(nodes.a / "gone", "w+b", buffering=0) as file, open(nodes.b / "gone", "rb", buffering=0) as other:
            (nodes.a / "gone").unlink()
            file.write(b"still here")
            assert os.fstat(file.fileno()).st_nlink == 0
            assert other.read() == b"still here"
            os.ftruncate(file.fileno(), 5)
            assert os.pread(file.fileno(), 99, 0) == b"still"
            file.close()
            assert os.pread(other.fileno(), 99, 0) == b"still"
        assert not (nodes.b / "gone").exists()

    nodes.apart(work)


def test_a_directory_of_5_000(nodes: Nodes) -> None:
    def work() -> None:
        top = nodes.a / "many"
        top.mkdir()
        names = {f"file-{number:05d}" for number in range(5000)}
        for name in sorted(names):
            os.mknod(top / name, 0o644 | stat.S_IFREG)
        assert set(os.listdir(nodes.b / "many")) == names and len(os.listdir(top)) == 5000
        for seen, entry in enumerate(os.scandir(nodes.b / "many")):  # what is taken away meanwhile disturbs nobody
            if seen % 5 == 0:
                os.unlink(entry.path)
        assert len(os.listdir(top)) == 4000
        with fails(errno.ENOTEMPTY):
            top.rmdir()

    nodes.apart(work)


def test_links_of_both_kinds(nodes: Nodes) -> None:
    def work() -> None:
        top = nodes.a / "links"
        top.mkdir()
        (top / "file").write_text("text")
        os.link(top / "file", top / "second")
        assert (nodes.b / "links/second").stat().st_nlink == 2
        (top / "file").unlink()
        assert (nodes.b / "links/second").read_text() == "text" and (top / "second").stat().st_nlink == 1
        os.symlink("second", top / "soft")
        os.symlink("x" * 4095, top / "long")
        assert (nodes.b / "links/soft").read_text() == "text"
        assert os.readlink(nodes.b / "links/long") == "x" * 4095
        with fails(errno.ELOOP):
            os.symlink("loop", top / "loop")
            (top / "loop").stat()
        with fails(errno.EPERM):
            os.link(top, nodes.a / "directory")

    nodes.apart(work)


def test_names_of_any_bytes(nodes: Nodes) -> None:
    def work() -> None:
        top = nodes.a / "names"
        top.mkdir()
        names = [b"\xff\xfe", b" ", b"a\nb", b"\\", "ä".encode(), "ä".encode("latin-1"), b"x" * 255, b"..."]
        for name in names:
            with open(os.path.join(bytes(top), name), "wb") as file:
                file.write(name)
        there = os.path.join(bytes(nodes.b), b"names")
        assert sorted(os.listdir(there)) == sorted(names)
        for name in names:
            with open(os.path.join(there, name), "rb") as file:
                assert file.read() == name
        with fails(errno.ENAMETOOLONG):
            os.mkdir(os.path.join(there, b"x" * 256))

    nodes.apart(work)


def test_modes_owners_and_times(nodes: Nodes) -> None:
    def work() -> None:
        file = nodes.a / "modes"
        os.umask(0o027)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o6777))
        (nodes.a / "umasked").mkdir(0o777)
        other = nodes.b / "modes"
        assert stat.S_IMODE(other.stat().st_mode) == 0o6750
        assert stat.S_IMODE((nodes.b / "umasked").stat().st_mode) == 0o750
        os.chmod(file, 0o640)
        os.chown(file, 1234, 2345)
        os.utime(file, ns=(1_500_000_000_123_456_789, -1_500_000_001))
        told = other.stat()
        assert (stat.S_IMODE(told.st_mode), told.st_uid, told.st_gid) == (0o640, 1234, 2345)
        assert (told.st_atime_ns, told.st_mtime_ns) == (1_500_000_000_123_456_789, -1_500_000_001)
        os.utime(file)
        assert abs(other.stat().st_mtime - time.time()) < 60
        assert other.stat().st_blksize == 128 << 10

    nodes.apart(work)


def test_what_a_user_may_not(nodes: Nodes) -> None:
    def work() -> None:
        os.umask(0o022)
        home = nodes.a / "home"
        home.mkdir()
        os.chown(home, 4321, 4321)
        (home / "secret").write_text("s")
        (home / "secret").chmod(0o600)
        program = home / "program"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o6777)
        os.setgroups([])
        os.setresgid(4321, 4321, 4321)
        os.setresuid(4321, 4321, 4321)
        with fails(errno.EACCES):
            (home / "secret").read_text()
        with fails(errno.EACCES):
            (nodes.a / "mine").touch()
        (home / "mine").touch()
        assert (nodes.b / "home/mine").stat().st_uid == 4321
        with open(program, "ab") as file:  # whoever writes into a program doesn't keep its set-id bits
            file.write(b"id\n")
        assert stat.S_IMODE((nodes.b / "home/program").stat().st_mode) == 0o777

    nodes.apart(work)


def test_special_files(nodes: Nodes) -> None:
    def work() -> None:
        top = nodes.a / "special"
        top.mkdir()
        os.mkfifo(top / "fifo")
        end = os.open(top / "fifo", os.O_RDWR | os.O_NONBLOCK)
        os.write(end, b"through")
        assert os.read(end, 100) == b"through"
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 300))
        assert (nodes.b / "special/null").stat().st_rdev == os.makedev(1, 300)
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
            listener.bind(str(top / "socket"))
            listener.listen()
            caller.connect(str(top / "socket"))
        kinds = {entry.name: stat.S_IFMT(entry.stat().st_mode) for entry in os.scandir(nodes.b / "special")}
        assert kinds == {"fifo": stat.S_IFIFO, "null": stat.S_IFCHR, "socket": stat.S_IFSOCK}

    nodes.apart(work)


def test_room(nodes: Nodes) -> None:
    def work() -> None:
        room = os.statvfs(nodes.a)
        assert (room.f_frsize * room.f_blocks, room.f_bavail * room.f_frsize) == (1 << 40, 1 << 39)
        assert room.f_namemax == 255 and room.f_ffree == 1_000_000

    nodes.apart(work)


# ---- reading and writing


def test_large_and_odd_pieces(nodes: Nodes) -> None:
    def work() -> None:
        data = os.urandom(5 * MIB + 12345)
        with open(nodes.a / "large", "wb", buffering=0) as file:
            assert file.write(data) == len(data)
        with open(nodes.b / "large", "rb", buffering=0) as file:
            assert os.pread(file.fileno(), 1 << 24, 0) == data
            for offset, size in ((1, MIB), (MIB - 3, 7), (len(data) - 5, 100), (len(data), 1), (4095, 2 * MIB + 1)):
                assert os.pread(file.fileno(), size, offset) == data[offset : offset + size]
        assert (nodes.b / "large").read_bytes() == data

    nodes.apart(work)


def test_holes_truncate_and_fallocate(nodes: Nodes) -> None:
    def work() -> None:
        with open(nodes.a / "sparse", "w+b", buffering=0) as file:
            fileno = file.fileno()
            os.pwrite(fileno, b"end", 3 * MIB)
            there = nodes.b / "sparse"
            assert there.read_bytes() == bytes(3 * MIB) + b"end"
            os.truncate(there, 10)
            assert os.fstat(fileno).st_size == 10
            os.pwrite(fileno, b"0123456789", 0)
            os.posix_fallocate(fileno, 5, 20)
            assert there.read_bytes() == b"0123456789" + bytes(15)
            assert fallocate(fileno, 1, 0, 100) == 0 and there.stat().st_size == 25
            assert fallocate(fileno, 3, 2, 3) == 0 and there.read_bytes()[:8] == b"01\0\0\x00567"
            assert fallocate(fileno, 0x10, 0, 10) == errno.EOPNOTSUPP
            assert os.lseek(fileno, 0, os.SEEK_END) == 25
            assert os.lseek(fileno, 3, os.SEEK_DATA) == 3 and os.lseek(fileno, 3, os.SEEK_HOLE) == 25
            with open(there, "wb"):
                assert os.fstat(fileno).st_size == 0

    nodes.apart(work)


def fallocate(fileno: int, mode: int, offset: int, size: int) -> int:
    """fallocate(2); the errno, or 0."""
    long = ctypes.c_long
    return ctypes.get_errno() if mount._libc.fallocate(fileno, mode, long(offset), long(size)) else 0


def test_appenders_of_two_nodes_lose_nothing(nodes: Nodes) -> None:
    def work() -> None:
        ends = [os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for folder in (nodes.a, nodes.b)]
        for line in range(100):
            os.write(ends[line % 2], b"%05d\n" % line)
        assert (nodes.a / "log").read_bytes() == b"".join(b"%05d\n" % line for line in range(100))

    nodes.apart(work)


def test_mappings(nodes: Nodes) -> None:
    def work() -> None:
        there = nodes.b / "mapped"
        with open(nodes.a / "mapped", "w+b", buffering=0) as file:
            file.write(b"a" * 10000)
            private = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)
            private[0:3] = b"own"
            assert there.read_bytes()[:4] == b"aaaa"
            shared = mmap.mmap(file.fileno(), 0)
            shared[5000:5005] = b"HELLO"
            assert os.pread(file.fileno(), 5, 5000) == b"HELLO"  # on one node it is seen as it is
            shared.flush()
            assert there.read_bytes()[5000:5005] == b"HELLO" and there.stat().st_size == 10000
            os.pwrite(file.fileno(), b"direct", 6000)
            assert shared[6000:6006] == b"direct"
            with open(there, "r+b", buffering=0) as other:
                os.pwrite(other.fileno(), b"from the other node", 7000)
            os.fstat(file.fileno())  # by which a mapping gets to know
            assert shared[7000:7019] == b"from the other node"
            again = mmap.mmap(file.fileno(), 0)
            again[9999:10000] = b"Z"
            again.close()
            shared.close()
        assert there.read_bytes()[9999:] == b"Z"

    nodes.apart(work)


def test_a_program_runs_from_there(nodes: Nodes) -> None:
    def work() -> None:
        shutil.copy("/bin/true", nodes.a / "true")
        assert subprocess.run([nodes.b / "true"], check=False).returncode == 0

    nodes.apart(work)


def test_writers_of_one_file_side_by_side(nodes: Nodes) -> None:
    def work() -> None:
        def write(rank: int) -> None:
            with open(nodes.folders[rank % 2] / "ranks", "r+b", buffering=0) as file:
                for block in range(16):
                    os.pwrite(file.fileno(), bytes([rank]) * 5000, (block * 4 + rank) * 5000)
                os.fsync(file.fileno())

        (nodes.a / "ranks").touch()
        ranks = []
        for rank in range(4):
            ranks.append(os.fork())
            if not ranks[-1]:
                write(rank)
                os._exit(0)
        assert [os.waitpid(rank, 0)[1] for rank in ranks] == [0] * 4
        assert (nodes.b / "ranks").read_bytes() == b"".join(bytes([rank]) * 5000 for rank in range(4)) * 16

    nodes.apart(work)


# ---- locks


def test_locks_of_flock(nodes: Nodes) -> None:
    def work() -> None:
        (nodes.a / "flock").touch()
        with open(nodes.a / "flock") as mine, open(nodes.b / "flock") as his:
            fcntl.flock(mine, fcntl.LOCK_SH)
            fcntl.flock(his, fcntl.LOCK_SH | fcntl.LOCK_NB)
            with fails(errno.EAGAIN):
                fcntl.flock(his, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine.close()
            fcntl.flock(his, fcntl.LOCK_EX)  # the close is heard of after it has returned
            with open(nodes.a / "flock") as again, fails(errno.EAGAIN):
                fcntl.flock(again, fcntl.LOCK_SH | fcntl.LOCK_NB)

    nodes.apart(work)


def test_locks_of_fcntl(nodes: Nodes) -> None:
    def work() -> None:
        (nodes.a / "fcntl").touch()
        mine, his = open(nodes.a / "fcntl", "r+b"), open(nodes.b / "fcntl", "r+b")  # noqa: SIM115
        fcntl.lockf(mine, fcntl.LOCK_EX, 10, 5)
        fcntl.lockf(his, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)
        with fails(errno.EAGAIN):
            fcntl.lockf(his, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 14)
        kind, _, begin, size, _ = blocker(his.fileno(), fcntl.F_WRLCK, 0, 0)
        assert (kind, begin, size) == (fcntl.F_WRLCK, 5, 10)
        assert blocker(his.fileno(), fcntl.F_RDLCK, 15, 0)[0] == fcntl.F_UNLCK
        os.close(os.open(nodes.a / "fcntl", os.O_RDONLY))  # any descriptor that is closed gives up all locks
        fcntl.lockf(his, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child = os.fork()
        if not child:  # another process is another owner, and his locks end with him
            with fails(errno.EAGAIN):
                fcntl.lockf(his, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    nodes.apart(work)


def blocker(fileno: int, kind: int, begin: int, size: int) -> tuple[int, ...]:
    """F_GETLK: kind, whence, begin, size, pid of the lock in the way."""
    wanted = struct.pack("hhqqi4x", kind, 0, begin, size, 0)
    return struct.unpack("hhqqi4x", fcntl.fcntl(fileno, fcntl.F_GETLK, wanted))


def test_whoever_waits_for_a_lock_gets_it_or_a_signal(nodes: Nodes) -> None:
    def work() -> None:
        (nodes.a / "wait").touch()
        mine, his = open(nodes.a / "wait", "r+b"), open(nodes.b / "wait", "r+b")  # noqa: SIM115
        fcntl.lockf(mine, fcntl.LOCK_EX)
        began = time.monotonic()

        class Rang(Exception):
            pass

        def ring(*_: object) -> None:
            raise Rang

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            fcntl.lockf(his, fcntl.LOCK_EX)
            raise AssertionError("it had the lock")
        except Rang:
            assert time.monotonic() - began < 5
        child = os.fork()
        if not child:
            fcntl.lockf(his, fcntl.LOCK_EX)  # is killed meanwhile
            os._exit(0)
        time.sleep(0.1)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        child = os.fork()
        if not child:
            fcntl.lockf(his, fcntl.LOCK_EX)
            os.pwrite(his.fileno(), b"x", 0)
            os._exit(0)
        time.sleep(0.1)
        assert os.fstat(mine.fileno()).st_size == 0
        fcntl.lockf(mine, fcntl.LOCK_UN)
        assert os.waitpid(child, 0)[1] == 0
        fcntl.lockf(mine, fcntl.LOCK_EX)
        assert os.fstat(mine.fileno()).st_size == 1

    nodes.apart(work)


# ---- programs


def test_sqlite(nodes: Nodes) -> None:
    def work() -> None:
        for journal in ("delete", "wal"):  # wal maps a file, so it is for one node alone
            with contextlib.closing(sqlite3.connect(nodes.a / f"{journal}.db", timeout=5)) as here:
                assert here.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
                here.execute("create table t (n integer primary key, text)")
                with here:
                    here.executemany("insert into t values (?, ?)", [(n, "x" * n) for n in range(200)])
                if journal == "delete":
                    with contextlib.closing(sqlite3.connect(nodes.b / "delete.db", timeout=0)) as there:
                        assert there.execute("select count(*) from t").fetchone() == (200,)
                        here.execute("begin immediate")
                        with pytest.raises(sqlite3.OperationalError, match="locked"):
                            there.execute("begin immediate")
                        here.execute("delete from t where n > 99")
                        here.execute("commit")
                        assert there.execute("select count(*) from t").fetchone() == (100,)
                assert here.execute("pragma integrity_check").fetchone() == ("ok",)

    nodes.apart(work)


def test_cp_and_diff(nodes: Nodes) -> None:
    def work() -> None:
        subprocess.run(["cp", "-a", ROOT / "beo", nodes.a / "copy"], check=True)
        subprocess.run(["diff", "-r", ROOT / "beo", nodes.b / "copy"], check=True)
        subprocess.run(["rm", "-r", nodes.b / "copy"], check=True)
        assert not (nodes.a / "copy").exists()

    nodes.apart(work)


# ---- the mount itself


def test_slow_answers_dont_wait_for_each_other() -> None:
    slow = start("slow", 1)

    def work() -> None:
        with open(slow.a / "file", "wb", buffering=0) as file:
            file.write(bytes(8000))
            began = time.monotonic()
            writers = []
            for rank in range(8):
                writers.append(os.fork())
                if not writers[-1]:
                    os.pwrite(file.fileno(), b"x" * 1000, rank * 1000)
                    os._exit(0)
            assert [os.waitpid(writer, 0)[1] for writer in writers] == [0] * 8
            assert SLOW_S <= time.monotonic() - began < 8 * SLOW_S
        assert (slow.a / "file").read_bytes() == b"x" * 8000

    try:
        slow.apart(work)
    finally:
        slow.stop()


def test_who_is_told_to_stop_answers_what_was_asked_before() -> None:
    slow = start("slow", 1)
    reader, writer = os.pipe()
    user = os.fork()
    if not user:
        try:
            with open(slow.a / "last", "wb", buffering=0) as file:
                os.write(writer, b"!")
                file.write(b"x")
                os.write(writer, b".")
        finally:
            os._exit(0)
    os.close(writer)
    assert _read(reader, time.monotonic() + LIMIT_S) == b"!"
    time.sleep(SLOW_S / 4)  # the write is under way
    slow.stop()
    assert _read(reader, time.monotonic() + LIMIT_S) == b"."
    os.close(reader)
    os.waitpid(user, 0)


def test_a_killed_server_leaves_a_dead_mount_and_the_next_one_takes_it_away() -> None:
    first = start("plain", 1)
    folder = first.a

    def work() -> None:
        with fails(errno.ENOTCONN):
            folder.stat()

    first.server.kill()
    first.server.wait()
    assert is_mounted(folder)
    first.apart(work)
    second = start("plain", 1, [folder])
    deadline = time.monotonic() + LIMIT_S
    # The folder itself answers, too, in the moment between the two mounts: so first that, and then what is mounted.
    while not _answers(second) or Path("/proc/mounts").read_text().count(f" {folder} fuse.beo ") != 1:
        assert time.monotonic() < deadline
    with pytest.raises(BeoError, match="served by another process"):
        mount.mount(folder)
    second.stop()


def _answers(nodes: Nodes) -> bool:
    done = subprocess.run(["stat", nodes.a], capture_output=True, check=False, timeout=LIMIT_S)
    return done.returncode == 0


def test_a_mount_in_use_ends_with_its_server_all_the_same() -> None:
    nodes = start("plain", 1)
    user = subprocess.Popen(["sh", "-c", "exec > held; echo x; exec sleep 60"], cwd=nodes.a)
    deadline = time.monotonic() + LIMIT_S
    try:
        while b"sleep" not in Path(f"/proc/{user.pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        nodes.stop()
    finally:
        user.kill()
        user.wait()


def test_whoever_unmounts_it_ends_its_server() -> None:
    nodes = start("plain", 1)
    subprocess.run(["umount", nodes.a], check=True, timeout=LIMIT_S)
    assert nodes.server.wait(LIMIT_S) == 0
    nodes.stop()


def test_who_may_not_mount_is_told_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BeoError, match=r"can't mount the tree at .*no such file"):
        mount.mount(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(BeoError, match="not a directory"):
        mount.mount(tmp_path / "file")
    monkeypatch.setattr(mount, "DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(BeoError, match="modprobe fuse"):
        mount.mount(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BeoError, match="only root may mount"):
        mount.mount(tmp_path)
