"""The tree of files beside tmpfs and the local disk: through the mount and by the verbs, with one head and with two.

Everything that touches a mount is done by processes of its own. The mounts need root and /dev/fuse; without them only
the verbs are measured. Both heads, the mount and whoever uses it share this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beo.tree.mount import KIND, mounted
from tests import interpreter
from tests.bench import gluster
from tests.bench.table import Row
from tests.cluster import ROOT, Cluster, running, wait_for

REPEATS = 5
SIZE_MB = 256
FILES = 300
TREE_FILES = 2_000
CHILD_S = 120.0

# Does one thing with plain system calls in the folder argv[2], and prints what it took.
CHILD = """
import json, os, sys, time
what, folder, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.chdir(folder)
piece = os.urandom(1 << 20)
begun = time.perf_counter()
if what == "write":
    with open("big", "wb", buffering=0) as file:
        for _ in range(n):
            file.write(piece)
        os.fsync(file.fileno())
elif what in ("read", "again"):
    with open("big", "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
elif what == "random":
    fd = os.open("big", os.O_RDONLY)
    for number in range(n):
        os.pread(fd, 4096, (number * 7919 % 60_000) * 4096)
elif what == "small":
    for number in range(n):
        with open(f"f{number}", "wb", buffering=0) as file:
            file.write(b"x" * 1000)
        os.stat(f"f{number}")
        os.unlink(f"f{number}")
print(json.dumps(time.perf_counter() - begun))
"""


def files(folder: Path) -> Iterator[Row]:
    """All of it."""
    if os.geteuid() == 0 and os.path.exists("/dev/fuse"):
        yield from _mounts(folder)
        yield from _beside_gluster(folder)
        yield from _imports(folder)
    else:
        print("the mount is not measured: that needs root and /dev/fuse", file=sys.stderr)
    yield from _verbs(folder)


def _program(what: str, folder: Path, n: int) -> list[str]:
    return [sys.executable, "-c", f"exec({CHILD!r})", what, str(folder), str(n)]


def _child(what: str, folder: Path, n: int) -> float:
    done = subprocess.run(_program(what, folder, n), capture_output=True, check=True, timeout=CHILD_S)
    took_s: float = json.loads(done.stdout)
    return took_s


@contextmanager
def _tmpfs() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="beo-bench-") as name:
        yield Path(name)


@contextmanager
def _mounted(folder: Path, heads: int) -> Iterator[tuple[Cluster, Path]]:
    at = folder / f"at{heads}"
    at.mkdir(parents=True)
    settings = f'[files.mounts]\n"{at}" = "/"\n'
    with running(folder / f"beo{heads}", workers=1, heads=heads, settings=settings) as cluster:
        wait_for(lambda: mounted(at) == KIND, "the mount")
        yield cluster, at


MOUNT_ROWS = {  # what CHILD is told, how often, and what comes of it
    "write": (f"{SIZE_MB} MiB written through the mount and synced", "MB/s", SIZE_MB),
    "read": ("the same read", "MB/s", SIZE_MB),
    "again": ("the same read again", "MB/s", SIZE_MB),
    "random": ("4 KiB read at random", "µs", 1_000),
    "small": ("a file of 1 kB made, written, closed, looked at, removed", "ms", FILES),
}


def _rate(took_s: float, unit: str, n: int) -> float:
    return n * 1.048576 / took_s if unit == "MB/s" else took_s / n * {"µs": 1e6, "ms": 1e3}[unit]


def _mounts(folder: Path) -> Iterator[Row]:
    with _tmpfs() as ram, _mounted(folder, 1) as (_, one), _mounted(folder, 2) as (_, two):
        for at, name in ((one, "one head"), (two, "two heads")):
            rows = {
                what: Row(f"{text}, {name}", unit, "tmpfs", "0.8 ×" if unit == "MB/s" else "")
                for what, (text, unit, _) in MOUNT_ROWS.items()
            }
            for _ in range(REPEATS):
                for what, row in rows.items():
                    _, unit, n = MOUNT_ROWS[what]
                    row.beo.append(_rate(_child(what, at, n), unit, n))
                    row.bare.append(_rate(_child(what, ram, n), unit, n))
            yield from rows.values()


def _beside_gluster(folder: Path) -> Iterator[Row]:
    if not gluster.is_there():
        print("GlusterFS is not measured: apt-get install -y glusterfs-server", file=sys.stderr)
        return
    place = folder / "gluster"
    with _mounted(folder / "beside", 2) as (_, at), gluster.volume(place) as measure:
        rows = {
            what: Row(f"{text}, two heads", unit, "GlusterFS, replica 2")
            for what, (text, unit, _) in MOUNT_ROWS.items()
        }
        for _ in range(REPEATS):
            for what, row in rows.items():
                _, unit, n = MOUNT_ROWS[what]
                row.beo.append(_rate(_child(what, at, n), unit, n))
                row.bare.append(_rate(float(measure(_program(what, place / "at", n))), unit, n))
        yield from rows.values()


def _imports(folder: Path) -> Iterator[Row]:
    """A Python of which everything is on the tree, beside the same one on the disk: the first time, and then again."""
    native = folder / "native"
    native.mkdir()
    interpreter.pack(native / "py", "numpy")
    _furnish(native)
    os.sync()
    for heads in (1, 2):
        name = "one head" if heads == 1 else "two heads"
        what = "`python -c 'import numpy'`, from start to end, all of it on the tree"
        cold = Row(f"{what}: the first time after the mount, {name}", "s", "the disk, no page of it in memory")
        warm = Row(f"the same again, {name}", "s", "the disk")
        at = folder / f"numpy{heads}"
        with running(folder / f"beo-numpy{heads}", workers=1, heads=heads) as cluster:
            _took(cluster, "put", str(native / "py"), "/")
            with _attached(cluster, at):
                _furnish(at)
            for _ in range(REPEATS):
                with _attached(cluster, at):
                    cold.beo.append(_imported(at))
                    warm.beo.append(_imported(at))
                _forget(native)
                cold.bare.append(_imported(native))
                warm.bare.append(_imported(native))
        yield from (cold, warm)


def _furnish(folder: Path) -> None:
    """Make a venv with numpy beside the interpreter in a folder."""
    words = [*interpreter.words(folder / "py"), "-m", "venv", "--copies", "--without-pip", str(folder / "venv")]
    subprocess.run(words, check=True, timeout=CHILD_S)
    target = folder / "venv" / "lib" / interpreter.VERSION / "site-packages"
    subprocess.run(["cp", "-rp", *map(str, interpreter.site("numpy")), str(target)], check=True, timeout=CHILD_S)


def _imported(folder: Path) -> float:
    words = [*interpreter.words(folder / "py", folder / "venv" / "bin" / "python"), "-c", "import numpy"]
    begun = time.perf_counter()
    subprocess.run(
        ["/usr/bin/env", "-i", "timeout", str(CHILD_S), *words], check=True
    )  # whose own limit looks too seldom
    return time.perf_counter() - begun


def _forget(folder: Path) -> None:
    """Let the kernel keep no page of the files in a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


@contextmanager
def _attached(cluster: Cluster, at: Path) -> Iterator[None]:
    """The tree at a folder, mounted anew: the kernel knows nothing of it."""
    at.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "beo.tree.attach", str(at)], env=cluster.env, cwd=ROOT)
    try:
        wait_for(lambda: mounted(at) == KIND, "the mount")
        yield
    finally:
        process.terminate()
        process.wait(CHILD_S)


def _verbs(folder: Path) -> Iterator[Row]:
    source = folder / "source"
    for number in range(TREE_FILES):
        at = source / f"d{number % 20}"
        at.mkdir(parents=True, exist_ok=True)
        (at / f"f{number}").write_bytes(os.urandom(2_000))
    big = folder / "big"
    big.write_bytes(os.urandom(SIZE_MB << 20))
    for heads in (1, 2):
        name = "one head" if heads == 1 else "two heads"
        many = Row(f"`beo put` of {TREE_FILES:,} files of 2 kB, {name}", "files/s", "cp to the disk")
        put = Row(f"`beo put` of {SIZE_MB} MiB, {name}", "MB/s", "cp to the disk")
        get = Row(f"`beo get` of {SIZE_MB} MiB, {name}", "MB/s", "cp to the disk")
        with running(folder / f"verbs{heads}", workers=1, heads=heads) as cluster:
            for number in range(REPEATS):
                many.beo.append(TREE_FILES / _took(cluster, "put", str(source), f"/many{number}"))
                put.beo.append(SIZE_MB * 1.048576 / _took(cluster, "put", str(big), "/big"))
                get.beo.append(SIZE_MB * 1.048576 / _took(cluster, "get", "/big", str(folder / "got")))
                copy_s = _copied(source, folder / "copy")
                many.bare.append(TREE_FILES / copy_s)
                for row in (put, get):
                    row.bare.append(SIZE_MB * 1.048576 / _copied(big, folder / "copy"))
        yield from (many, put, get)


def _took(cluster: Cluster, *words: str) -> float:
    begun = time.perf_counter()
    env = {**cluster.env, "BEO_RESIDENT": "0"}
    subprocess.run([sys.executable, "-m", "beo.front", *words], env=env, check=True, timeout=CHILD_S)
    return time.perf_counter() - begun


def _copied(source: Path, target: Path) -> float:
    begun = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True, timeout=CHILD_S)
    subprocess.run(["sync", "-f", str(target)], check=True, timeout=CHILD_S)
    took_s = time.perf_counter() - begun
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    return took_s
