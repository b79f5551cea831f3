"""A real cluster for the tests that kill: daemons by `beo up` in a folder of its own, and ways to hurt them.

    with running(tmp_path / "beo") as cluster:
        cluster.kill("head")

`running` ends it and proves that nothing is left: no process, no shared memory, no cgroup, no temporary folder.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from beo import client, local, lockfile, pairing, submission, supervisor
from beo import messages as m
from beo.config import Home
from beo.errors import NoHead
from beo.ha.voters import ALIVE_S
from beo.lockfile import Process
from beo.worker import remains
from tests.history import History

ROOT = Path(__file__).resolve().parent.parent
BEO = (sys.executable, "-m", "beo.front")
LEASE_S = 3.0  # the shortest with which a busy machine doesn't lose nodes by itself
PATIENCE_S = 30.0  # a condition that hasn't come true by then counts as a failure
LOOK_S = 0.01
HEADS = {"A": "head", "B": "head B"}  # the names of their processes
OTHER = {"A": "B", "B": "A"}

Value = TypeVar("Value")


def wait_for(condition: Callable[[], Value], what: str, timeout_s: float = PATIENCE_S) -> Value:
    """Poll until `condition()` is true, and return its value; fails after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s in vain: {what}"
        time.sleep(LOOK_S)
    return value


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether a process lives; a zombie doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def kill(pids: Iterable[int]) -> None:
    """SIGKILL, and wait for the end of each: a killed process holds its locks for a moment more."""
    pids = list(pids)
    send(pids, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, pids)), f"the end of {pids}")


def able(views: Iterable[m.PairIs]) -> m.PairIs | None:
    """The view of the head that acts, if the other one goes on should it be lost now; None if not.

    That both are in step isn't enough: who voted may be gone since, and others vote a moment later.
    """
    by_role = {view.role: view for view in views}
    primary, standby = by_role.get("primary"), by_role.get("standby")
    if not (primary and primary.in_step and standby and standby.in_step):
        return None
    voting = [voter for voter in standby.voters if voter.votes]
    return primary if voting and all(0.0 <= voter.silent_s <= ALIVE_S for voter in voting) else None


class Cluster:
    """One cluster: head, supervisor and workers node01, node02, ... of this machine."""

    def __init__(self, path: Path, workers: int = 2, slots: int = 2, settings: str = "", heads: int = 1) -> None:
        """Make the folder with a beo.toml; nothing runs yet. settings: further lines of its [worker]."""
        path.mkdir(mode=0o700)
        self.home = Home(path)
        self.home.toml.write_text(f"[worker]\nlease_s = {LEASE_S}\n{settings}")
        self.workers = workers
        self.slots = slots
        self.heads = heads
        self._children: list[int] = []  # heads and agents that are children of ours
        self._commands: list[subprocess.Popen[str]] = []
        self._segments = _segments()
        self.env = dict(submission.environment(os.environ), BEO_DIR=str(path), PYTHONPATH=str(ROOT), BEO_RESIDENT="0")

    def up(self) -> None:
        """`beo up`: start what is missing, return when all is ready."""
        pairing.up(self.home, self.workers, self.slots, self.heads, lambda _: None)

    def down(self) -> None:
        """`beo down`."""
        local.down(self.home, lambda _: None)

    # ---- commands and questions

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start `beo WORDS`; its stdout and stderr are pipes unless `options` say otherwise."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([*BEO, *words], env=self.env, cwd=ROOT, text=True, **{**pipes, **options})
        self._commands.append(process)
        return process

    def end_commands(self) -> None:
        """Kill the commands that a failed test has left waiting."""
        for process in self._commands:
            process.kill()
            process.wait()

    def beo(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `beo WORDS` to its end."""
        process = self.start(*words)
        out, err = process.communicate(timeout=2 * PATIENCE_S)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def client(self) -> client.Cluster:
        """A new client, for one thread; to be closed."""
        return client.Cluster(self.home)

    def submit(self, argv: Iterable[str], **options: Any) -> int:
        """Submit a job by a client of its own; return its id."""
        with self.client() as own:
            return own.submit(submission.new_spec(list(argv), **{"cwd": str(ROOT), **options}))

    def job(self, job: int) -> m.JobView:
        """The job's row."""
        with self.client() as own:
            return own.look(job)

    def wait(self, *jobs: int) -> list[m.JobView]:
        """Wait until these jobs ended."""
        with self.client() as own:
            return own.wait(jobs, 2 * PATIENCE_S)

    def wait_for_state(self, job: int, state: str, attempt: int = 0) -> m.JobView:
        """Wait until a job is in a state, and in that attempt unless that is 0."""
        with self.client() as own:
            view = own.look(job)

            def there() -> bool:
                nonlocal view
                view = own.look(job)
                return view.state == state and attempt in (0, view.attempt)

            wait_for(there, f"job {job} is {state} in attempt {attempt or 'any'}")
            return view

    def node(self, name: str) -> m.NodeView:
        """The node's row."""
        with self.client() as own:
            return next(node for node in own.nodes() if node.name == name)

    def wait_for_node(self, name: str, state: str) -> None:
        """Wait until the head has a node in a state; `up` is one that gives signs of life."""

        def there() -> bool:
            view = self.node(name)
            return view.state == state and (state != "up" or view.silent_s < 1.0)

        wait_for(there, f"{name} is {state}")

    def output(self, job: int) -> str:
        """What `beo logs` prints of a job."""
        done = self.beo("logs", str(job))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def check(self, history: History, adopted: Collection[str] = (), untold: bool = False) -> None:
        """Let the jobs of a history come to their end, and hold it against what the cluster says. untold: see there."""
        history.release()
        self.wait(*history.jobs)
        with self.client() as own:
            faults = history.faults(own.jobs(ended=True, limit=m.LIST_LENGTH_MAX).jobs, own.journal(), adopted, untold)
        assert not faults, "\n".join(faults)

    # ---- two heads

    def views(self) -> dict[str, m.PairIs]:
        """What each head that answers says of the pair, by its name."""
        found = pairing.views(self.home).values()
        return {view.name: view for view in found if isinstance(view, m.PairIs)}

    def acting(self) -> str:
        """The head that acts, "" while none does."""
        return next((view.name for view in self.views().values() if view.role == "primary"), "")

    def await_step(self) -> m.PairIs:
        """Wait until what is acknowledged is on both heads and either may go on; return what the one that acts says."""
        view = wait_for(lambda: able(self.views().values()), "both heads are in step", 2 * PATIENCE_S)
        assert view
        return view

    def await_acting(self, name: str) -> None:
        """Wait until this head acts."""
        wait_for(lambda: self.acting() == name, f"head {name} to act", 2 * PATIENCE_S)

    # ---- who is who

    def lock(self, name: str) -> Path:
        """The lock file of `head`, `head B`, `supervisor` or a node's agent."""
        locks = {"head": self.home.head / "lock", "supervisor": supervisor.lock_path(self.home)}
        locks["head B"] = self.home.second.head / "lock"
        return locks.get(name, self.home.nodes / name / "lock")

    def pid(self, name: str) -> int:
        """The process of `head`, `supervisor` or a node's agent."""
        pid = lockfile.holder(self.lock(name))
        assert pid is not None, f"{name} doesn't run"
        return pid

    def wardens(self, node: str) -> list[int]:
        """Both processes of every warden of a node: the keepers and, below each, the PID 1 of its namespace."""
        mark = os.fsencode(f"{os.path.realpath(self.home.nodes / node)}/wardens/")
        return [pid for pid, line in _command_lines() if b"/warden.py\0" in line and mark in line]

    def everything_of(self, node: str) -> list[int]:
        """A worker as far as its machine would take it along: agent, wardens and all that runs below them."""
        parents = {}
        for pid, _ in _command_lines():
            with suppress(OSError):
                parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        agent = lockfile.holder(self.lock(node))
        pids = [*([agent] if agent else []), *self.wardens(node)]
        for pid in pids:  # which grows meanwhile
            pids += [child for child, parent in parents.items() if parent == pid and child not in pids]
        return pids

    def ranks(self, job: int) -> dict[int, int]:
        """Rank -> pid of what runs of a job, by the environment; of several processes of a rank the first."""
        found: dict[int, int] = {}
        for pid, words in _environments(self.home.path):
            if words.get(b"BEO_JOB_ID") == str(job).encode():
                found.setdefault(int(words[b"BEO_RANK"]), pid)
        return found

    def warden_of(self, pid: int) -> int:
        """The keeper of the warden under which a rank runs."""
        inside = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        return int(Path(f"/proc/{inside}/stat").read_text().rpartition(")")[2].split()[1])

    # ---- hurting it

    def kill(self, *names: str) -> None:
        """`kill -9` of `head`, `supervisor` or agents, and wait until they are gone."""
        kill([self.pid(name) for name in names])

    def kill_and_await(self, *names: str) -> None:
        """Kill daemons and wait until the supervisor has started others."""
        old = {name: self.pid(name) for name in names}
        kill(old.values())
        wait_for(lambda: all(lockfile.holder(self.lock(n)) not in (None, old[n]) for n in names), f"others of {names}")

    def kill_worker(self, node: str) -> None:
        """`kill -9` of all of a worker in one go, as a power cut does it: nothing of it learns of the other's end."""
        kill(self.stop_worker(node))

    def stop_worker(self, node: str) -> list[int]:
        """SIGSTOP all of a worker; return the pids."""
        stopped: list[int] = []
        while fresh := [pid for pid in self.everything_of(node) if pid not in stopped]:
            send(fresh, signal.SIGSTOP)
            stopped += fresh
        return stopped

    def start_head(self) -> None:
        """Start a head ourselves, as the supervisor does. It is for tests that kill more often than that one restarts.

        Its back-off is right for a head that ends all the time, and would only make such a test long.
        """
        argv = (sys.executable, *local.HEAD_ARGV)
        self._children.append(supervisor.spawn(argv, supervisor.environment(self.home), self.home.logs / "head.log"))

    def start_agent(self, node: str) -> None:
        """The same for a node's agent."""
        argv = (sys.executable, *local.AGENT_ARGV, "--node", node, "--slots", str(self.slots))
        log = self.home.logs / f"{node}.log"
        pid = supervisor.spawn(argv, supervisor.environment(self.home), log)
        self._children.append(pid)
        # Its own pid: the threads of a killed agent may hold the lock for a moment when it is a zombie already.
        wait_for(lambda: lockfile.holder(self.lock(node)) == pid, f"another agent of {node}")

    def wait_for_head(self) -> None:
        """Wait until a head answers."""

        def answers() -> bool:
            with self.client() as own:
                try:
                    return bool(own.info(LOOK_S * 20))
                except NoHead:
                    return False

        wait_for(answers, "a head answers")

    def kill_head_and_restart(self, moment: Callable[[], object]) -> None:
        """Kill a head that has no supervisor just when `moment` returns, start another, wait until it answers."""
        old = Process(self.pid("head"))
        moment()
        old.send(signal.SIGKILL)
        assert old.wait(PATIENCE_S)
        old.close()
        self._reap()
        self.start_head()
        self.wait_for_head()

    def _reap(self) -> None:
        self._children = [pid for pid in self._children if os.waitpid(pid, os.WNOHANG)[0] == 0]

    # ---- what is left

    def processes(self) -> list[str]:
        """The processes of this cluster, by their command lines or their environment."""
        self._reap()
        path = os.fsencode(self.home.path)
        ours = {pid for one in (self.home, self.home.second) for pid, _ in _environments(one.path)}
        return [f"process {pid}: {line!r}" for pid, line in _command_lines() if path in line or pid in ours]

    def leftovers(self) -> list[str]:
        """Whatever there is of this cluster outside its folder, in words."""
        found = self.processes()
        if self.home.cluster_file.exists():
            cluster = self.home.cluster().cluster
            found += [str(entry) for entry in Path("/dev/shm").glob(f"*{cluster[:8]}*")]
            found += remains.found(cluster, [path.name for path in self.home.nodes.iterdir()])
            found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if cluster[:8] in line]
        return found + sorted(_segments() - self._segments)


@contextmanager
def running(path: Path, workers: int = 2, slots: int = 2, settings: str = "", heads: int = 1) -> Iterator[Cluster]:
    """A cluster that is up; at the end it goes down, and nothing of it may be left."""
    cluster = Cluster(path, workers, slots, settings, heads)
    try:
        cluster.up()
        yield cluster
    except BaseException:
        for log in sorted([*cluster.home.logs.glob("*.log"), *cluster.home.second.logs.glob("*.log")]):
            print(
                f"--- {log.relative_to(cluster.home.path)}",
                *log.read_text(errors="replace").splitlines()[-30:],
                sep="\n",
                file=sys.stderr,
            )
        raise
    finally:
        cluster.end_commands()
        cluster.down()
    wait_for(lambda: not cluster.leftovers(), f"all is gone, but there is {cluster.leftovers()}", 5.0)


def _segments() -> set[str]:
    """The machine's System V shared memory, semaphores and queues, and its namespaces that live by a mount."""
    kinds = {kind: Path("/proc/sysvipc", kind) for kind in ("shm", "sem", "msg")}
    lines = [(kind, line.split()) for kind, file in kinds.items() for line in file.read_text().splitlines()[1:]]
    # By key and id; the rest changes. Memory that somebody has attached is another's: ours are all dead.
    nobodys = [(kind, words) for kind, words in lines if kind != "shm" or words[6] == "0"]
    found = {f"{kind} {words[0]} {words[1]}" for kind, words in nobodys}
    return found | {line for line in Path("/proc/self/mounts").read_text().splitlines() if line.startswith("nsfs ")}


def _command_lines() -> Iterator[tuple[int, bytes]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                yield int(entry.name), Path(entry.path, "cmdline").read_bytes()


def _environments(path: Path) -> Iterator[tuple[int, dict[bytes, bytes]]]:
    """Every process whose environment names this cluster, the lowest pid first."""
    mark = b"BEO_DIR=" + os.fsencode(path) + b"\0"
    for entry in sorted(os.scandir("/proc"), key=lambda entry: (len(entry.name), entry.name)):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            data = Path(entry.path, "environ").read_bytes()
            if mark in data:
                yield int(entry.name), dict(word.split(b"=", 1) for word in data.split(b"\0") if b"=" in word)
