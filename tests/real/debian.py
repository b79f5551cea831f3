"""Source releases of Debian's packages, whose tests are run unmodified: fetched by apt-get on first use, in build/real.

Nothing of the system's own package lists is touched: apt gets lists of its own, from where the system has its packages.
"""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.real.release import REAL

SYSTEM = Path("/etc/apt/sources.list.d/debian.sources")
PATIENCE_S = 120


@dataclass(frozen=True)
class Release:
    """One: its package and version there, its archive, and below which folder of it is what we want."""

    package: str
    version: str
    archive: str
    sha256: str
    top: str
    wanted: str


LIBFUSE = Release(
    "fuse3",
    "3.14.0-4",
    "fuse3_3.14.0.orig.tar.xz",
    "96115b2a8ff34bd1e0c7b00c5dfd8297571d7e165042b94498c9a26356a9a70a",
    "fuse-3.14.0",
    "test/",
)
MPICH = Release(
    "mpich",
    "4.0.2-3",
    "mpich_4.0.2.orig.tar.xz",
    "b27039f964afeb6b8a3e009c56b441cbe368c26d6d6476ad3bb7190996875860",
    "mpich-4.0.2",
    "src/mpi/romio/test/",
)


def fetch(release: Release) -> Path:
    """Its unpacked files; raises RuntimeError where neither build/real nor apt-get has it."""
    REAL.mkdir(parents=True, exist_ok=True)
    archive, unpacked = REAL / release.archive, REAL / release.top
    # Each step ends in a rename, so that test processes that come here together, or end half-way, do no harm.
    with tempfile.TemporaryDirectory(dir=REAL) as scratch:
        if not archive.exists():
            _download(release, Path(scratch)).replace(archive)
        if hashlib.sha256(archive.read_bytes()).hexdigest() != release.sha256:
            raise RuntimeError(f"{archive} is not the release with sha256 {release.sha256}: delete it")
        if not unpacked.exists():
            inside = f"{release.top}/{release.wanted}"
            with tarfile.open(archive) as tar:
                members = [member for member in tar if member.name.startswith(inside)]
                tar.extractall(scratch, members, filter="data")
            try:
                Path(scratch, release.top).rename(unpacked)
            except OSError:
                if not unpacked.exists():  # else another test process was first, with the same files
                    raise
    return unpacked / release.wanted


def _download(release: Release, scratch: Path) -> Path:
    what = f"apt-get can't download the source of {release.package} {release.version}"
    cure = f"put {release.archive} into {REAL}"
    if not SYSTEM.exists():
        raise RuntimeError(f"{what}: no {SYSTEM} here: {cure}")
    sources = scratch / "debian.sources"
    sources.write_text(SYSTEM.read_text().replace("Types: deb\n", "Types: deb-src\n"))
    for part in ("lists", "cache"):
        (scratch / part).mkdir()
    options = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    pinned = f"{release.package}={release.version}"
    for words in ([*apt, "update"], [*apt, "source", "--download-only", pinned]):
        done = subprocess.run(words, cwd=scratch, capture_output=True, text=True, timeout=PATIENCE_S)
        if done.returncode != 0:
            raise RuntimeError(f"{what}: {cure}\n{done.stderr}")
    return scratch / release.archive
