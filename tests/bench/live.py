"""What a person sees while it happens: the echo of a key, and a job's output that comes at a steady rate."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench import stage
from tests.bench.stage import BIN
from tests.bench.table import Row
from tests.pseudo import Person

KEYS = 200
KEY_S = 0.02  # between two keys: faster than anybody types
RATE_BYTES_S = 64_000_000
STEADY_S = 4.0
STEADIES = 3
PIECE_BYTES = 64_000
READ_BYTES = 1 << 20

# Prints lines at a rate, each piece with the moment at which it was written, and says how long it was held up in all.
PRODUCER = f"""
import os, time
piece, rate, seconds = {PIECE_BYTES}, {RATE_BYTES_S}, {STEADY_S}
began = time.monotonic()
for n in range(int(seconds * rate / piece)):
    due = began + n * piece / rate
    time.sleep(max(0.0, due - time.monotonic()))
    line = b"%020.6f " % time.monotonic()
    data = line + b"x" * (piece - len(line) - 1) + b"\\n"
    while data:
        data = data[os.write(1, data):]
"""


def echo(folder: Path) -> Iterator[Row]:
    """From a key to its echo: `cat` in a `beo run --pty` session, and on a pseudo-terminal of this machine."""
    row = Row("a key to its echo, `beo run --pty`", "ms", "a local pseudo-terminal", "a few")
    with stage.cluster(folder / "cluster") as cluster:
        env = {**cluster.env, "TERM": "xterm"}
        with Person([str(BIN / "beo"), "run", "--pty", "/bin/sh", "-c", "echo go; cat"], env) as there:
            there.sees("go")
            with Person(["/bin/sh", "-c", "echo go; cat"], env) as here:
                here.sees("go")
                for number in range(KEYS):
                    key = "abcdefghij"[number % 10]
                    row.beo.append(_echo_ms(there, key))
                    row.bare.append(_echo_ms(here, key))
                    time.sleep(KEY_S)
    yield row


def _echo_ms(person: Person, key: str) -> float:
    seen = len(person.screen)
    began_s = time.perf_counter()
    person.type(key)
    while len(person.screen) == seen:
        person.look()
    return 1e3 * (time.perf_counter() - began_s)


def steady(folder: Path) -> Iterator[Row]:
    """A job that prints 64 MB/s, and who follows it: the rate that he gets, and how old a line is when it comes."""
    rate = Row(
        f"{RATE_BYTES_S / 1e6:g} MB/s of output for {STEADY_S:g} s through `beo logs -f`", "MB/s", "a pipe", "64"
    )
    late = Row("the same: age of a line as it arrives, median", "ms", "a pipe")
    oldest = Row("the same: the oldest line", "ms", "a pipe")
    with stage.cluster(folder / "cluster") as cluster:
        for _ in range(STEADIES):
            job = cluster.submit([sys.executable, "-c", PRODUCER])
            _add([str(BIN / "beo"), "logs", "-f", str(job)], cluster.env, rate.beo, late.beo, oldest.beo)
            _add([sys.executable, "-c", PRODUCER], cluster.env, rate.bare, late.bare, oldest.bare)
    yield rate
    yield late
    yield oldest


def _add(argv: list[str], env: dict[str, str], rates: list[float], ages: list[float], oldest: list[float]) -> None:
    """Read a producer's lines; the rate is from the first byte to the last."""
    size, first_s, found = 0, 0.0, []
    rest = b""
    with subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout
        while data := os.read(process.stdout.fileno(), READ_BYTES):
            now_s = time.monotonic()
            first_s = first_s or now_s
            size += len(data)
            *lines, rest = (rest + data).split(b"\n")
            found += [1e3 * (now_s - float(line[:20])) for line in lines]
    found.sort()
    rates.append(size / 1e6 / (now_s - first_s))
    ages.append(found[len(found) // 2])
    oldest.append(found[-1])
