"""A program of 1 GB of numpy moved by beo's hands, beside bare criu, in turn: dump and restore, images in memory.

Both ways the program is held in a sandbox of its own and goes on in another one, under the same numbers.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from beo.worker import criu as hands
from tests.bench.table import Row
from tests.sandboxes import Sandbox, holder_of

REPEATS = 7
BYTES = 1 << 30
PROGRAM = f"""
import numpy, time
x = numpy.random.default_rng(1).integers(0, 1 << 62, {BYTES} // 8)
while True:
    print(int(x[-1]), flush=True)
    time.sleep(0.002)
"""


def criu(_: Path) -> Iterator[Row]:
    """Dump, restore (until the program prints again), and both."""
    try:
        program = hands.find()
    except hands.NoCriu as error:
        print(f"no measurement of criu: {error}", file=sys.stderr)
        return
    rows = [
        Row(f"1 GB of numpy, {what}", "s", "bare criu", aim)
        for what, aim in (("dumped and sealed", ""), ("goes on elsewhere", ""), ("moved", "≤ 1.5 ×"))
    ]
    for repeat in range(REPEATS):
        for bare in (False, True) if repeat % 2 else (True, False):
            with tempfile.TemporaryDirectory(prefix="beo-bench-criu-") as folder:
                took = _move(Path(folder), program if bare else "")
            for row, seconds in zip(rows, (*took, sum(took)), strict=True):
                (row.bare if bare else row.beo).append(seconds)
    yield from rows


def _move(folder: Path, bare: str) -> tuple[float, float]:
    """Seconds of the dump, and from then on until it prints again; by bare criu, or by beo where that is ""."""
    images = folder / "images"
    images.mkdir(mode=0o700)
    _do(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", str(images)])  # /dev/shm is another one in each sandbox
    argv = [sys.executable, "-c", PROGRAM]
    first, second = Sandbox("one", folder), Sandbox("two", folder)
    started = []
    try:
        started.append(first.hold(images, argv, subprocess.DEVNULL))
        assert started[0].stdout and started[0].stdout.readline()
        holder = holder_of(started[0])
        began_s = time.monotonic()
        if bare:
            root = hands.held(holder)
            pipes = hands.pipes_of(root)
            words = [bare, "dump", "--tree", str(hands.numbers_of(root)[-1]), "--images-dir", str(images)]
            words += [word for pipe in set(pipes.values()) for word in ("--external", pipe)]
            _do([*hands.words_into(root), *words, *_COMMON, "--log-file", "dump.log"])
        else:
            hands.dump(holder, images)
        dumped_s = time.monotonic()
        first.crash()
        again_s = time.monotonic()
        if bare:
            started.append(_bare_restore(second, images, bare, pipes))
        else:
            started.append(second.hold(images, argv, subprocess.DEVNULL))
        assert started[1].stdout and started[1].stdout.readline()
        return dumped_s - began_s, time.monotonic() - again_s
    finally:
        first.crash()
        second.crash()
        for process in started:
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
        _do(["umount", "--lazy", str(images)])


_COMMON = ["--manage-cgroups=ignore"]


def _bare_restore(host: Sandbox, images: Path, bare: str, pipes: dict[str, str]) -> subprocess.Popen[bytes]:
    """What a script would do: the two pipes again as descriptors 8 and 9."""
    inherit = f"--inherit-fd fd[8]:{pipes['1']} --inherit-fd fd[9]:{pipes['2']}"
    line = f"exec 8>&1 9>&2; exec {bare} restore --images-dir {images} {' '.join(_COMMON)} --log-file r.log {inherit}"
    words = [*host.enter(), "sh", "-c", line]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)


def _do(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words[0]} fails: {done.stderr}")
