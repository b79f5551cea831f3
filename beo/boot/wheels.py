"""The libraries of a worker, as wheels: for the Python of the image, in the versions that this head has itself."""

from __future__ import annotations

import importlib.util
import re
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from beo.boot.assembly import Files, clean
from beo.boot.debian import ASK_S, run
from beo.errors import NotFound, UsageError

WHEELS = ("click", "cloudpickle", "mpi4py", "mpich", "msgspec", "numpy", "pyzmq", "xxhash")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
_OLD = ("manylinux_2_27_x86_64", "manylinux_2_26_x86_64", "manylinux_2_12_x86_64", "manylinux_2_5_x86_64")
_NEEDLESS = re.compile(
    r"(^|/)(tests?|testing/tests|_pyinstaller)/|\.(pyi|pyx|pxd|a|c|h|cpp|pyc)$|(^|/)include/|/libmpi_abi\.so"
)
_WHEEL = re.compile(r"([^-]+)-([^-]+)-.*\.whl")


def bring(cache: Path, python: str) -> list[Path]:
    """Return the wheels for a Python like 3.13, brought where they aren't kept; raises BeoError."""
    if importlib.util.find_spec("pip") is None:
        raise NotFound(
            "this Python has no pip", "it brings the libraries of a worker", "apt-get install -y python3-pip"
        )
    folder = cache / f"wheels-{python}"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [_pinned(name) for name in WHEELS]
    found = {name: wheel for name in wanted if (wheel := _kept(folder, name))}
    missing = [name for name in wanted if name not in found]
    if missing:
        tag = python.replace(".", "")
        words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps"]
        words += ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp", "-d", str(folder)]
        words += [f"--abi={abi}" for abi in (f"cp{tag}", "abi3", "none")]
        words += [f"--platform={platform}" for platform in (*PLATFORMS, *_OLD)]
        run([*words, *missing], "bring the libraries of a worker", ASK_S)
        for name in missing:
            wheel = _kept(folder, name)
            if not wheel:
                raise NotFound(f"no {name} for Python {python} came", "", "see 'pip download'")
            found[name] = wheel
    return [found[name] for name in wanted]


def add(files: Files, wheel: Path, site: str, prefix: str) -> tuple[str, str]:
    """Put a wheel into an image, modules to `site`, programs and data below `prefix`; return name and version."""
    match = _WHEEL.fullmatch(wheel.name)
    if not match:
        raise UsageError(f"{wheel.name} is no wheel", "", "remove it from the cache")
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = clean(info.filename)
            if info.is_dir() or not name:
                continue
            mode = 0o755 if (info.external_attr >> 16) & 0o100 or ".so" in name.rpartition("/")[2] else 0o644
            if _NEEDLESS.search(name):
                continue
            first, _, rest = name.partition("/")
            if first.endswith(".data"):
                kind, _, rest = rest.partition("/")
                if kind in ("purelib", "platlib"):
                    name = f"{site}/{rest}"
                elif kind == "scripts":
                    name, mode = f"{prefix}/bin/{rest}", 0o755
                elif kind == "data":
                    name = f"{prefix}/{rest}"
                else:
                    continue
            else:
                name = f"{site}/{name}"
            files.add(name, archive.read(info), mode)
    return match[1], match[2]


def _pinned(name: str) -> str:
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:  # mpi4py and mpich are an extra
        return name


def _kept(folder: Path, wanted: str) -> Path | None:
    name, _, release = wanted.partition("==")
    every = sorted(folder.glob(f"{name.replace('-', '_')}-{release or '*'}-*.whl"))
    return every[-1] if every else None
