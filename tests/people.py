"""Other users for tests that run as root: numbers that no account has, and what they do on a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import PATIENCE_S, ROOT

SITE = next(path for path in sys.path if path.endswith("site-packages"))


def interpreter() -> str:
    """A Python of this version that everybody may run: ours may stand in root's own home."""
    for python in (os.path.realpath(sys.executable), f"/usr/bin/python3.{sys.version_info.minor}"):
        with suppress(OSError):
            subprocess.run([python, "-S", "-c", ""], user=65534, group=65534, extra_groups=[], cwd="/", check=True)
            return python
    pytest.skip("no Python that another user may run")


class Person:
    """A user of the machine by his number, with a home of his own."""

    def __init__(self, uid: int, gids: Collection[int], place: Path) -> None:
        self.uid = uid
        self.gids = list(gids)
        self.home = place / f"home{uid}"
        self.home.mkdir(mode=0o700, exist_ok=True)
        os.chown(self.home, uid, self.gids[0])
        self.interpreter = interpreter()

    @property
    def env(self) -> dict[str, str]:
        """A short environment."""
        words = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{SITE}"}
        return {**words, "BEO_RESIDENT": "0"}  # nothing of this user outlives the test

    def run(self, *words: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program as this user."""
        return subprocess.run(
            words,
            env={**self.env, **(env or {})},
            cwd=options.pop("cwd", self.home),
            user=self.uid,
            group=self.gids[0],
            extra_groups=self.gids,
            umask=0o022,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            **options,
        )

    def beo(self, cluster: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `beo WORDS` as this user."""
        return self.run(self.interpreter, "-m", "beo.front", *words, env={"BEO_DIR": str(cluster)}, **options)

    def python(self, program: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program as this user."""
        return self.run(self.interpreter, "-c", program, env=env)

    def submit(self, cluster: Path, *words: str) -> int:
        """Submit a job; return its id."""
        done = self.beo(cluster, "submit", "-q", *words)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)


@contextmanager
def open_place() -> Iterator[Path]:
    """A folder that everybody may pass through, unlike pytest's own."""
    place = Path(tempfile.mkdtemp(prefix="beo-users-"))
    place.chmod(0o711)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
