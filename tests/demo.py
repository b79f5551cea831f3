"""`make demo`: what beo does, as a story on a terminal, in about a minute. Everything in it is real.

A cluster of its own in a temporary folder runs programs, and has its agent, a whole worker and its head killed under
them. Exit code 0 says that every check held: no acknowledged job was lost, none ran twice, and every result is right.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from beo import lockfile, supervisor  # noqa: E402
from beo.config import Home  # noqa: E402
from beo.lockfile import Process  # noqa: E402

STEP_MAX_S = 60.0  # for any one command or wait; what takes longer hangs
HEAT_S = 15.0  # the long job computes for so long in each attempt; two kills fall into the first one
LEASE_S = 3.0
ERRANDS = 16  # small jobs handed in while the head is killed
KILL_AFTER = 5  # acknowledgements

INSTALLED = Path(sys.executable).with_name("beo")
BEO = [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, "-m", "beo.front"]


class Unkept(Exception):
    """A promise that did not hold."""


def check(holds: object, promise: str, seen: object = "") -> None:
    """Tell that a promise held, or raise Unkept with what was seen instead."""
    if not holds:
        raise Unkept(f"{promise}: {seen}" if seen != "" else promise)
    print(f"    ok: {promise}", flush=True)


def wait_until(found: Callable[[], object], what: str) -> float:
    """Wait until `found()` is true; return how many seconds it took."""
    began_s = time.monotonic()
    while not found():
        if time.monotonic() - began_s > STEP_MAX_S:
            raise Unkept(f"waited {STEP_MAX_S:.0f} s in vain until {what}")
        time.sleep(0.05)
    return time.monotonic() - began_s


class Story:
    """One cluster, the commands typed into it, and where the time went."""

    def __init__(self, folder: Path) -> None:
        """Take an empty folder; the cluster is made in it by `beo up`."""
        self.home = Home(folder / "beo")
        self.errands = folder / "errands"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = dict(os.environ, BEO_DIR=str(self.home.path), PATH=path)
        self.times: list[tuple[str, float]] = []

    @contextmanager
    def chapter(self, title: str, row: str) -> Iterator[None]:
        """Print the title, and keep how long the chapter took as a row of the table."""
        print(f"\n{title}", flush=True)
        began_s = time.monotonic()
        yield
        self.times.append((row, time.monotonic() - began_s))

    def type(self, *words: str) -> str:
        """Type `beo WORDS`, show it and what it says; return that."""
        print(f"  $ {shlex.join(('beo', *words))}", flush=True)
        text = self.beo(*words)
        for line in text.splitlines():
            print(f"    {line}")
        return text

    def beo(self, *words: str) -> str:
        """Run `beo WORDS` and return what it writes; raise Unkept where it fails."""
        try:
            done = subprocess.run(
                [*BEO, *words],
                env=self.env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=STEP_MAX_S,
            )
        except subprocess.TimeoutExpired:
            raise Unkept(f"beo {shlex.join(words)} takes over {STEP_MAX_S:.0f} s") from None
        if done.returncode:
            raise Unkept(f"beo {shlex.join(words)} exits with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def submit(self, *words: str) -> int:
        """Submit a job, shown as a user would type it; return its id."""
        return int(self.type("submit", "-q", *words))

    def job(self, number: int) -> dict[str, Any]:
        """What `beo queue` says of a job."""
        rows: list[dict[str, Any]] = json.loads(self.beo("queue", "--json", str(number)))
        return rows[0]

    def steps(self, number: int) -> int:
        """How many steps the long job has reported so far."""
        return self.beo("logs", str(number)).count("step ")

    def pid(self, name: str) -> int:
        """The process of the head or of a worker's agent, by the lock that it holds."""
        lock = self.home.head / "lock" if name == "head" else self.home.nodes / name / "lock"
        pid = lockfile.holder(lock)
        if pid is None:
            raise Unkept(f"no {name} runs")
        return pid

    def is_back(self, name: str, old: int) -> bool:
        """Whether a daemon that was killed runs again."""
        with suppress(Unkept):
            return self.pid(name) != old
        return False

    def end(self) -> None:
        """Leave nothing behind, whatever has happened."""
        with suppress(Unkept):
            self.beo("down")
        own = lockfile.holding(supervisor.lock_path(self.home))
        daemons = [own] if own else []
        daemons += supervisor.heads(self.home) + supervisor.agents(self.home) + supervisor.wardens(self.home)
        for process in daemons:  # none, unless `beo down` failed
            process.send(signal.SIGKILL)
            process.wait(STEP_MAX_S)


def kill(pids: list[int]) -> None:
    """kill -9, all of them, and wait for their end."""
    processes = []
    for pid in pids:
        with suppress(ProcessLookupError):
            processes.append(Process(pid))
    for process in processes:
        process.send(signal.SIGKILL)
    for process in processes:
        process.wait(STEP_MAX_S)
        process.close()


def everything_of(story: Story, node: str) -> list[int]:
    """The pids of a worker: its agent first, its wardens, and all that runs below them."""
    folder = f"{os.path.realpath(story.home.nodes / node)}/"
    parents: dict[int, int] = {}
    roots = [story.pid(node)]
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            pid = int(entry.name)
            parents[pid] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if b"warden.py" in (line := (entry / "cmdline").read_bytes()) and os.fsencode(folder) in line:
                roots.append(pid)
    pids = list(dict.fromkeys(roots))
    for pid in pids:  # which grows meanwhile
        pids += [child for child, parent in parents.items() if parent == pid and child not in pids]
    return pids


def tell(story: Story) -> None:
    """The story."""
    python = ("--", "python")
    began_s = time.monotonic()
    story.home.path.mkdir(mode=0o700)
    story.home.toml.write_text(f"[worker]\nlease_s = {LEASE_S:g}\n")
    print(f"beo.toml says lease_s = {LEASE_S:g}, so that a worker that vanishes is given up sooner than by default.")

    with story.chapter("A cluster on this machine: a head and two workers.", "start of the cluster"):
        story.type("up", "--workers", "2", "--slots", "2")
        story.type("nodes")

    with story.chapter("An MPI program on four ranks, as if it ran right here.", "pi on four ranks"):
        said = story.type("run", "-n", "4", *python, "jobs/pi.py", "10000000")
        check(is_pi(said), "pi is right", said)

    with story.chapter("A long job, and more of them behind it in the queue.", "submissions"):
        heat = story.submit(
            *("-J", "heat", "-n", "2", "--requeue", "auto", *python, "jobs/heat2d.py"),
            *("--seconds", f"{HEAT_S:g}", "--report-every", "500"),
        )
        behind = [story.submit("-J", "pi", "-n", "2", *python, "jobs/pi.py", f"{n}000000") for n in (1, 2)]
        behind.append(story.submit("-J", "wide", "-n", "4", *python, "jobs/pi.py", "3000000"))
        wait_until(lambda: story.steps(heat), "the long job computes")
        story.type("queue")
    node = story.job(heat)["nodes"]

    with story.chapter(f"kill -9 of the agent of {node}, under the long job.", "until the killed agent was back"):
        agent, steps = story.pid(node), story.steps(heat)
        kill([agent])
        wait_until(lambda: story.is_back(node, agent), "the agent is back")
        wait_until(lambda: is_up(story, node), f"{node} is up")
    wait_until(lambda: story.steps(heat) > steps, "the job's output goes on")
    check((story.job(heat)["state"], story.job(heat)["attempt"]) == ("running", 1), "the job has not noticed")

    with story.chapter(
        f"kill -9 of everything on {node}: its agent, its wardens, its ranks.", "until the lost job ran again"
    ):
        agent = story.pid(node)
        kill(everything_of(story, node))
        wait_until(lambda: runs_again(story.job(heat)), "the job runs again")
    check(story.job(heat)["attempt"] == 2, "attempt 2 of the job runs, by itself")

    with story.chapter(f"kill -9 of the head, while {ERRANDS} jobs are being submitted.", "submissions, head killed"):
        acknowledged, longest_s = submit_through_a_kill(story)
    story.times.append(("  the longest of them", longest_s))
    check(len(acknowledged) == ERRANDS, f"all {ERRANDS} submissions were acknowledged", len(acknowledged))

    with story.chapter("Now everything is left to end.", "the rest of the jobs"):
        story.type("wait", "-q", *map(str, [heat, *behind, *acknowledged]))
        story.type("queue", "--all")
    check_results(story, heat, behind, acknowledged)

    folders = f"beo-{story.home.cluster().cluster[:8]}-*"
    with story.chapter("The end.", "end of the cluster"):
        story.type("down")
    check(not supervisor.heads(story.home) and not supervisor.agents(story.home), "no daemon is left")
    check(not supervisor.wardens(story.home), "no warden is left, and so no rank")
    check(not [*Path("/tmp").glob(folders)], "no temporary folder of a job is left")

    story.times.append(("all of it", time.monotonic() - began_s))
    print("\nWhere the time went")
    for row, took_s in story.times:
        print(f"  {row:<34}{took_s:7.2f} s")


def submit_through_a_kill(story: Story) -> tuple[dict[int, str], float]:
    """Submit the errands one after another, and kill the head amid them.

    Returns the ids that were acknowledged, each with its errand, and how long the slowest submission took in seconds.
    """
    acknowledged: dict[int, str] = {}
    took_s: list[float] = []
    some = threading.Event()
    faults: list[BaseException] = []

    def submit_all() -> None:
        try:
            for number in range(1, ERRANDS + 1):
                began_s = time.monotonic()
                word = f"errand-{number}"
                line = f"echo {word} >> {shlex.quote(str(story.errands))}; echo {word} done"
                acknowledged[int(story.beo("submit", "-q", "-J", word, "--", "sh", "-c", line))] = word
                took_s.append(time.monotonic() - began_s)
                if number == KILL_AFTER:
                    some.set()
        except BaseException as error:
            faults.append(error)
        finally:
            some.set()

    client = threading.Thread(target=submit_all, daemon=True)
    client.start()
    some.wait(STEP_MAX_S)
    head = story.pid("head")
    kill([head])
    print(f"    killed after {len(acknowledged)} acknowledgements; the client goes on submitting", flush=True)
    client.join(STEP_MAX_S)
    if faults:
        raise faults[0]
    wait_until(lambda: story.is_back("head", head), "the head is back")
    return acknowledged, max(took_s)


def check_results(story: Story, heat: int, behind: list[int], acknowledged: dict[int, str]) -> None:
    """Every acknowledged job is done, exactly once, and its output is right."""
    rows = {row["id"]: row for row in json.loads(story.beo("queue", "--all", "--json"))}
    known = [heat, *behind, *acknowledged]
    check(all(rows[number]["state"] == "done" for number in known), f"all {len(known)} acknowledged jobs are done")
    check(all(rows[number]["exit_code"] == 0 for number in known), "each with exit code 0")
    check(set(rows) >= set(known) and len(rows) == len(known) + 1, "and there is no other but the first", len(rows))
    check(rows[heat]["attempt"] == 2, "the long job took two attempts", rows[heat]["attempt"])
    others = {rows[number]["attempt"] for number in known if number != heat}
    check(others == {1}, "all others took one", others)

    ran = Counter(story.errands.read_text().split())
    check(ran == Counter(acknowledged.values()), "each errand was run exactly once", ran)
    wrong = [word for number, word in acknowledged.items() if story.beo("logs", str(number)) != f"{word} done\n"]
    check(not wrong, "and its output is there, no line lost or doubled", wrong)
    check(all(is_pi(story.beo("logs", str(number))) for number in behind), "pi is right in every job")
    said = story.beo("logs", str(heat))
    errors = re.findall(r"^steps \d+ checksum \w+ error (\S+)", said, re.MULTILINE)
    check(len(errors) == 1 and float(errors[0]) < 1e-9, "the heat is where theory says", said[-300:])


def is_up(story: Story, node: str) -> bool:
    """Whether `beo nodes` shows a worker as up."""
    rows = json.loads(story.beo("nodes", "--json"))
    return any(row["name"] == node and row["state"] == "up" for row in rows)


def runs_again(row: dict[str, Any]) -> bool:
    """Whether a job is in a second attempt."""
    return bool(row["state"] == "running" and row["attempt"] > 1)


def is_pi(said: str) -> bool:
    """Whether jobs/pi.py has printed pi, once, and as exactly as it should."""
    errors = re.findall(r"^pi 3\.14159\d+ error (\S+)", said, re.MULTILINE)
    return len(errors) == 1 and float(errors[0]) < 1e-9


def main() -> int:
    """Tell the story and clean up; return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    folder = Path(tempfile.mkdtemp(prefix="beo-demo-"))
    story = Story(folder)
    try:
        tell(story)
    except Unkept as broken:
        print(f"\ndemo: a promise was not kept: {broken}", file=sys.stderr)
        with suppress(Unkept):
            story.type("queue", "--all")
            story.type("events")
        for log in sorted(story.home.logs.glob("*.log")) if story.home.logs.is_dir() else ():
            print(f"--- the end of {log.name}", *log.read_text(errors="replace").splitlines()[-10:], sep="\n")
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        story.end()
        shutil.rmtree(folder, ignore_errors=True)
    print("\nEvery promise was kept.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
