"""The runtime: this Python, this beo and every library that they need, as one archive that runs on any Linux.

A box that becomes a worker by `boot.sh` need not have a Python, nor a C library of the right age: the archive has the
loader and the libraries as well, and `bin/python3` in it is a line of shell that starts the one with the others. It is
named by its SHA-256, and the same beo and Python make the same archive, bit for bit, on either head.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import py_compile
import struct
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import msgspec

from beo.config import Home, write_durably
from beo.errors import BeoError, reason

PACKAGES = ("click", "cloudpickle", "msgspec", "pyzmq", "xxhash")
"""What a worker and its verbs import. numpy, which only jobs do, is four times as large as all the rest."""
LEVEL = 3  # of gzip: 6 takes twice as long for one part in twenty
LIST_S = 20.0  # for the loader to tell what a library needs
# Of the standard library: what a worker never imports, and what needs a screen or a compiler.
_OUT = "__pycache__ ensurepip idlelib lib2to3 pydoc_data site-packages dist-packages test tests tkinter turtledemo venv"
LEFT_OUT = frozenset((*_OUT.split(" "), "distutils", "curses", "dbm", "msilib"))
_LEFT_OUT_STARTS = ("config-", "_test", "_tkinter", "xxlimited", "_ctypes_test", "_xxtest", "_curses", "_dbm")
_OF_NO_USE = ("_gdbm", "nis.", "readline.")  # to anybody without a terminal, NIS or old data bases
_PT_INTERP = 3

# --argv0 makes sys.executable this file, so that whatever Python starts by it is started in the same way. The cache of
# the box tells of its own libraries, which aren't those that we were built with.
WRAPPER = """#!/bin/sh
here=${0%/bin/*}
exec "$here/lib/LOADER" --library-path "$here/lib" --argv0 "$0" "$here/lib/PYTHON" "$@"
"""
PLAIN_WRAPPER = """#!/bin/sh
exec "${0%/bin/*}/lib/PYTHON" "$@"
"""


class Runtime(msgspec.Struct, frozen=True):
    """An archive that was made: its SHA-256, its size, the machine that it is for, and of what it was made."""

    sha256: str
    size_bytes: int
    machine: str  # as `uname -m` says
    made_of: str  # a digest of what went into it, by names, sizes and times


def folder(home: Home) -> Path:
    """Where the archive is kept."""
    return home.path / "boot"


def path_of(home: Home, sha256: str) -> Path:
    """The archive of that name."""
    return folder(home) / f"runtime-{sha256}.tar.gz"


def current(home: Home, extra: tuple[str, ...] = ()) -> Runtime:
    """Return the archive of this very beo, made now if it isn't there yet; takes some seconds then."""
    sources = list(_sources(extra))
    made_of = _digest_of(sources)
    record = folder(home) / "runtime.json"
    try:
        known = msgspec.json.decode(record.read_bytes(), type=Runtime)
        if known.made_of == made_of and path_of(home, known.sha256).stat().st_size == known.size_bytes:
            return known
    except (OSError, msgspec.MsgspecError):
        pass
    try:
        return _make(home, sources, made_of, record)
    except OSError as error:
        raise BeoError(f"can't make a runtime in {folder(home)}", reason(error), "free space there") from None


def _make(home: Home, sources: list[tuple[str, Path]], made_of: str, record: Path) -> Runtime:
    folder(home).mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder(home), prefix=".runtime-") as file:
        with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed:
            write(packed, sources)
        file.flush()
        os.fsync(file.fileno())
        size_bytes = file.tell()
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.link(file.name, temporary := f"{file.name}-")  # it gets its name when it is whole
    os.replace(temporary, path_of(home, sha256))
    made = Runtime(sha256, size_bytes, os.uname().machine, made_of)
    write_durably(record, msgspec.json.encode(made) + b"\n", 0o600)
    for other in folder(home).glob("runtime-*.tar.gz"):
        if other != path_of(home, sha256):
            other.unlink(missing_ok=True)
    return made


# ---- what is in it -------------------------------------------------------------------------------------------------


def write(file: gzip.GzipFile | io.BytesIO, sources: list[tuple[str, Path]]) -> None:
    """Write the archive: names in order, and no time, owner or mode that depends on who makes it."""
    loader = _interpreter(_binary())
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        _add(archive, "bin/python3", _wrapper(loader).encode(), 0o755)
        for name, path in sources:
            if path.suffix == ".py":
                for part, data in _compiled(name, path):
                    _add(archive, part, data, 0o644)
            else:
                is_program = name in (f"lib/{_python_name()}", f"lib/{Path(loader).name}", "bin/beo") or ".so" in name
                _add(archive, name, path.read_bytes(), 0o755 if is_program else 0o644)


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    archive.addfile(member, io.BytesIO(data))


def _wrapper(loader: str) -> str:
    text = WRAPPER.replace("LOADER", Path(loader).name) if loader else PLAIN_WRAPPER
    return text.replace("PYTHON", _python_name())


def _python_name() -> str:
    return f"python3.{sys.version_info[1]}.bin"


def _binary() -> Path:
    """The program that runs now, not a venv's name for it."""
    return Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))


def _compiled(name: str, path: Path) -> Iterator[tuple[str, bytes]]:
    """A module as its bytecode; beo's own also as it stands: wardens are started by the name of a file.

    The bytecode is never compared with its source, so that no time has to be kept.
    """
    with tempfile.TemporaryDirectory() as scratch:
        target = f"{scratch}/x.pyc"
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        try:
            py_compile.compile(str(path), target, name, True, 2 if "/site-packages/beo/" not in name else 0, unchecked)
            data = Path(target).read_bytes()
        except py_compile.PyCompileError:  # of another Python: nobody can import it here either
            return
    if "/site-packages/beo/" in name:
        stem = Path(name)
        yield name, path.read_bytes()
        yield f"{stem.parent}/__pycache__/{stem.stem}.{sys.implementation.cache_tag}.pyc", data
    else:
        yield f"{name}c", data


def _sources(extra: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """(name in the archive, file here), in the order of names."""
    version = f"python3.{sys.version_info[1]}"
    found: dict[str, Path] = {f"lib/{_python_name()}": _binary()}
    stdlib = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix}))
    found |= {f"lib/{version}/{name}": path for name, path in _below(stdlib, LEFT_OUT)}
    dynload = Path(sysconfig.get_config_var("DESTSHARED") or stdlib / "lib-dynload")
    if dynload.is_dir() and stdlib not in dynload.parents:
        found |= {f"lib/{version}/lib-dynload/{name}": path for name, path in _below(dynload, frozenset())}
    site = f"lib/{version}/site-packages"
    for package in (*PACKAGES, *extra):
        found |= {f"{site}/{name}": path for name, path in _of_package(package)}
    own = Path(__file__).resolve().parent.parent
    found |= {f"{site}/beo/{name}": path for name, path in _below(own, frozenset({"__pycache__"}))}
    front = own.parent / "bin" / "beo"
    found["bin/beo"] = front if front.exists() else Path(sysconfig.get_path("scripts")) / "beo"
    if loader := _interpreter(_binary()):
        found[f"lib/{Path(loader).name}"] = Path(os.path.realpath(loader))
        shared = [path for path in found.values() if ".so" in path.name]
        for name, path in _libraries(loader, [_binary(), *shared]).items():
            found.setdefault(f"lib/{name}", path)
    return iter(sorted(found.items()))


def _below(top: Path, left_out: frozenset[str]) -> Iterator[tuple[str, Path]]:
    """The files of a folder that a Python needs, and their names in it."""
    for where, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if name not in left_out and not name.startswith(_LEFT_OUT_STARTS))
        for name in sorted(files):
            if not name.startswith(_LEFT_OUT_STARTS + _OF_NO_USE) and not name.endswith((".pyc", ".a", ".o", ".exe")):
                path = Path(where, name)
                yield str(path.relative_to(top)), path


def _of_package(name: str) -> Iterator[tuple[str, Path]]:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise BeoError(f"{name} isn't installed here", "the runtime needs it", f"pip install {name}") from None
    for file in found.files or ():
        path = Path(str(found.locate_file(file)))
        if ".." not in file.parts and LEFT_OUT.isdisjoint(file.parts) and path.is_file():
            yield str(file), path


# ---- libraries -----------------------------------------------------------------------------------------------------


@cache
def _interpreter(binary: Path) -> str:
    """The loader that a program names (PT_INTERP); "" where it is linked statically."""
    with binary.open("rb") as file:
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02":
            raise BeoError(f"{binary} is no 64-bit ELF program", "", "run beo with such a Python to make a runtime")
        order = "<" if header[5] == 1 else ">"
        (start,) = struct.unpack_from(f"{order}Q", header, 32)
        size, count = struct.unpack_from(f"{order}HH", header, 54)
        file.seek(start)
        table = file.read(size * count)
        for at in range(0, len(table), size):
            kind, _, offset, _, _, length = struct.unpack_from(f"{order}IIQQQQ", table, at)
            if kind == _PT_INTERP:
                file.seek(offset)
                return file.read(length).rstrip(b"\0").decode()
    return ""


def _libraries(loader: str, programs: list[Path]) -> dict[str, Path]:
    """What these programs and libraries need of the machine's own libraries, by the names that they call them.

    Those that a package has brought along lie beside it in the archive as they do here.
    """
    found: dict[str, Path] = {}
    for program in programs:
        words = [loader, "--list", str(program)]
        told = subprocess.run(words, capture_output=True, text=True, timeout=LIST_S, check=False).stdout
        for line in told.splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            path = rest.partition(" (")[0]
            if arrow and path.startswith("/") and not ("/site-packages/" in path or "/dist-packages/" in path):
                found.setdefault(name, Path(os.path.realpath(path)))
    return found


def _digest_of(sources: list[tuple[str, Path]]) -> str:
    """A digest of what would go into an archive, as cheap as looking at it."""
    status = [(name, (found := path.stat()).st_size, found.st_mtime_ns) for name, path in sources]
    return hashlib.sha256(json.dumps([sys.version, WRAPPER, status]).encode()).hexdigest()
