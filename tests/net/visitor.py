"""Clients of a cluster in one process: they submit, run, follow, watch and cancel over whatever happens to it.

    python -m tests.net.visitor NOTES LOG SEED

Everything that they did and saw goes to the file LOG, a line of JSON each (`Word`). What isn't answered is tried again
under the same key, as people do. When the file NOTES.stop is there, they end what they are at, let the jobs come to
their end (NOTES.released), wait for all of them, and write down what the cluster says in the end.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Union

import msgspec

from beo import client, contact, submission
from beo import messages as m
from beo.client import Cluster as Client
from beo.errors import BeoError, NotFound
from beo.spec import JobSpec, Requeue
from tests.cluster import BEO, ROOT
from tests.history import LASTING_S, argv_of, now_ns
from tests.sim.check import Seen

PACE_MAX_S = 0.1  # between two submissions
RETRY_S = 0.1
COMMAND_S = 1.0  # between two commands
COMMANDS_MAX = 2  # at a time: each is a process that starts anew
COMMAND_RETRY_S = 0.5
LAST_WAIT_S = 90.0  # for all jobs to end, when nothing is hurt any more
REQUEUE: tuple[Requeue, ...] = ("auto", "confirm")


class Acknowledged(msgspec.Struct, frozen=True, tag=True):
    """The submission with this tag is job `job`."""

    tag: str
    job: int
    t_ns: int


class Wished(msgspec.Struct, frozen=True, tag=True):
    """Somebody tries to cancel the job of this tag."""

    tag: str


class Watched(msgspec.Struct, frozen=True, tag=True):
    """A look at a job."""

    view: Seen


class Followed(msgspec.Struct, frozen=True, tag=True):
    """A command that prints the output of the job of a tag has ended, after it wrote to this file."""

    tag: str
    who: str
    code: int
    path: str


class Told(msgspec.Struct, frozen=True, tag=True):
    """What the cluster says in the end: all jobs, and the whole journal."""

    rows: list[m.JobView]
    events: list[m.EventView]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A client saw what no fault excuses."""

    why: str


Word = Union[Acknowledged, Wished, Watched, Followed, Told, Failed]  # noqa: UP007 (msgspec wants the union as a value)


def read(path: Path) -> list[Word]:
    """What a visitor has written so far."""
    lines = path.read_bytes().split(b"\n")[:-1]  # behind the last newline there is none, or half of one
    decoder: msgspec.json.Decoder[Word] = msgspec.json.Decoder(Word)
    return [decoder.decode(line) for line in lines]


class Visitor:
    """The threads, and the file that they write to."""

    def __init__(self, notes: Path, log: Path, seed: int) -> None:
        """Take where the jobs write, where this writes, and what everything random depends on."""
        self._notes, self._log, self._seed = notes, log, seed
        self._stop, self._released = notes.with_suffix(".stop"), notes.with_suffix(".released")
        self._file = log.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._jobs: dict[str, int] = {}

    def _say(self, word: Word) -> None:
        with self._lock:
            self._file.write(msgspec.json.encode(word) + b"\n")
            if isinstance(word, Acknowledged):
                self._jobs[word.tag] = word.job

    def _known(self) -> list[tuple[str, int]]:
        with self._lock:
            return list(self._jobs.items())

    def _over(self) -> bool:
        return self._stop.exists()

    def _argv(self, tag: str, lasting_s: float, talks: bool = False) -> list[str]:
        return argv_of(self._notes, tag, lasting_s, talks)

    # ---- what they do

    def submit(self, dice: random.Random) -> None:
        """Submit short jobs, many of them, and now and then a long one."""
        count = 0
        with Client() as own:
            while not self._over():
                time.sleep(dice.uniform(0, PACE_MAX_S))
                ranks = dice.choice((1, 1, 1, 2))
                lasting_s = dice.choice((0.0, 0.05, 0.2, 1.0)) if count % 20 else LASTING_S
                tag = f"api-{count}"
                spec = submission.new_spec(
                    self._argv(tag, lasting_s),
                    cwd="/tmp",
                    env={"PATH": "/bin:/usr/bin"},
                    ranks=ranks,
                    requeue=dice.choice(REQUEUE),
                )
                self._submit(own, tag, spec, again=dice.random() < 0.2)
                count += 1

    def _submit(self, own: Client, tag: str, spec: JobSpec, again: bool) -> None:
        key = contact.new_key()
        while True:
            try:
                job = own.submit(spec, key, on_warning=lambda _: None, patience_s=1.0)
            except BeoError:  # nobody answers, or its disk is full
                if self._over() and self._released.exists():
                    return
                time.sleep(RETRY_S)
                continue
            self._say(Acknowledged(tag, job, now_ns()))
            if not again:
                return
            again = False  # once more, as after an answer that was lost

    def command(self, dice: random.Random) -> None:
        """Use the command line: submit, run, and follow what runs."""
        count = 0
        with ThreadPoolExecutor(COMMANDS_MAX) as pool:
            running: set[Future[None]] = set()
            while not self._over():
                time.sleep(dice.uniform(0, COMMAND_S))
                running = {future for future in running if not future.done()}
                if len(running) < COMMANDS_MAX:
                    act = self._run if count % 2 else self._submit_and_follow
                    running.add(pool.submit(self._guarded, partial(act, f"cli-{count}", dice.choice((0.3, 1.0, 3.0)))))
                    count += 1

    def _run(self, tag: str, lasting_s: float) -> None:
        """`beo run`: where it fails, the job may or may not have been; it is not tried again."""
        self._follow(tag, "run", "run", "--requeue", "auto", *self._argv(tag, lasting_s, talks=True))

    def _submit_and_follow(self, tag: str, lasting_s: float) -> None:
        key = contact.new_key()
        words = ["submit", "-q", "--key", key, *self._argv(tag, lasting_s, talks=True)]
        while (done := self._beo(*words)).returncode:
            if self._over() and self._released.exists():
                return
            time.sleep(COMMAND_RETRY_S)
        job = int(done.stdout)
        self._say(Acknowledged(tag, job, now_ns()))
        while self._follow(tag, "logs", "logs", "-f", str(job)) and not self._released.exists():
            time.sleep(COMMAND_RETRY_S)

    def _follow(self, tag: str, who: str, *words: str) -> int:
        path = self._log.with_name(f"{tag}.{who}.{now_ns()}")
        with path.open("wb") as out:
            code = subprocess.run([*BEO, *words], stdin=subprocess.DEVNULL, stdout=out, cwd=ROOT).returncode
        self._say(Followed(tag, who, code, str(path)))
        return code

    def _beo(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([*BEO, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT)

    def cancel(self, dice: random.Random) -> None:
        """Cancel a job now and then, mostly a long one."""
        with Client() as own:
            while not self._over():
                time.sleep(dice.uniform(0.3, 1.5))
                known = [(tag, job) for tag, job in self._known() if tag.startswith("api")]
                if known:
                    tag, job = dice.choice(known)
                    self._say(Wished(tag))
                    try:
                        own.cancel([str(job)], patience_s=1.0)
                    except BeoError:
                        pass  # whether it is cancelled is not known

    def watch(self, dice: random.Random) -> None:
        """Look at jobs again and again."""
        with Client() as own:
            while not self._over():
                time.sleep(0.03)
                known = self._known()
                if not known:
                    continue
                _, job = dice.choice(known[-10:])
                asked_ns = now_ns()
                try:
                    [view] = own.jobs([str(job)]).jobs
                    seen = Seen(job, view.state, view.attempt, asked_ns, now_ns())
                except NotFound:
                    seen = Seen(job, "", 0, asked_ns, now_ns())
                except BeoError:
                    continue
                self._say(Watched(seen))

    # ---- all of it

    def visit(self) -> None:
        """Do it all until told to stop, and then see it to its end."""
        dice = [random.Random(self._seed + k) for k in range(4)]
        acts: list[Callable[[], None]] = [
            lambda: self.submit(dice[0]),
            lambda: self.command(dice[1]),
            lambda: self.cancel(dice[2]),
            lambda: self.watch(dice[3]),
        ]
        threads = [threading.Thread(target=self._guarded, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        while not self._over():
            time.sleep(RETRY_S)
        self._released.touch()
        for thread in threads:
            thread.join()
        self._guarded(self._end)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except BaseException as error:
            self._say(Failed(f"{type(error).__name__}: {error}"))

    def _end(self) -> None:
        with Client() as own:
            own.wait([job for _, job in self._known()], LAST_WAIT_S)
            rows = self._rest(own)
            self._say(Told(rows, list(own.journal())))

    def _rest(self, own: Client) -> list[m.JobView]:
        """All jobs, when also those have ended of which nobody was told the id."""
        deadline_s = time.monotonic() + LAST_WAIT_S
        while True:
            rows = own.jobs(ended=True, limit=m.LIST_LENGTH_MAX).jobs
            if all(row.state in client.ENDED for row in rows) or time.monotonic() > deadline_s:
                return list(rows)
            time.sleep(RETRY_S)


if __name__ == "__main__":
    Visitor(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])).visit()
