"""A Python in one folder, with all that it loads: interpreter, standard library, shared libraries, even the loader.

It needs nothing of the machine on which it runs but a kernel, and may stand anywhere:

    pack(folder / "py")                    # where it is made
    run([*words("/beo/py"), "-c", "..."])  # where it was put
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
# Of the standard library: tests of Python itself, and what wants a screen.
LEFT_OUT = ("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages", "config-*", "_tkinter*")
LOADER = "loader"
LDD_S = 60.0


def libraries(programs: Iterable[Path]) -> dict[str, Path]:
    """Return what these load of the machine, by the names under which they ask for it, and as LOADER who loads it."""
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, timeout=LDD_S).stdout
    found = {name: Path(path) for name, path in re.findall(r"^\s+(\S+) => (/\S+) \(", said, re.MULTILINE)}
    (loader,) = {Path(path) for path in re.findall(r"^\s+(/\S+) \(", said, re.MULTILINE)}
    return {**found, LOADER: loader}


def site(name: str = "numpy") -> list[Path]:
    """Return the folders in which an installed package is: its own, and that of the libraries which came with it."""
    folder = Path(sysconfig.get_path("platlib"))
    return [path for path in (folder / name, folder / f"{name}.libs") if path.is_dir()]


def pack(folder: Path, *packages: str) -> None:
    """Make one in a new folder, with all libraries that these installed packages need, but not the packages."""
    stdlib = folder / "lib" / VERSION
    shutil.copytree(sysconfig.get_path("stdlib"), stdlib, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    (stdlib / "site-packages").mkdir()
    program = folder / "bin" / VERSION
    program.parent.mkdir()
    shutil.copyfile(os.path.realpath(sys.executable), program)
    program.chmod(0o755)
    homes = [stdlib, *(path for name in packages for path in site(name))]
    for name, path in libraries([program, *(path for home in homes for path in home.rglob("*.so*"))]).items():
        if not any(path.is_relative_to(home) for home in homes):
            shutil.copyfile(path, folder / "lib" / name)
            (folder / "lib" / name).chmod(0o755)


def words(folder: Path | str, program: Path | str = "") -> list[str]:
    """Return the command that starts the one in a folder, or a copy of its program: that of a venv made by it."""
    started = str(program or f"{folder}/bin/{VERSION}")
    return [f"{folder}/lib/{LOADER}", "--library-path", f"{folder}/lib", started]
