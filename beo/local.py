"""`beo up` and `beo down`: what runs of a cluster on this machine, be it all of it, its head or a worker.

`up` makes the folder on its first time, starts the supervisor in the background and returns when the head answers and
all workers of this machine have joined. Nothing of it needs cleaning up by hand: after a power loss, or a kill -9 of
whatever you like, `up` on the same folder just works again. How a machine becomes head or worker of a cluster of
several is in machines.py.
"""

from __future__ import annotations

import itertools
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from beo import lockfile, log, nodeset, supervisor
from beo.config import Home, Who, write_durably
from beo.errors import BeoError, Conflict, NoHead, Refused, TimedOut, UsageError, reason
from beo.supervisor import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from beo import messages, question

READY_MAX_S = 30.0  # a cold start takes about 1 s; a machine that needs longer than this is in trouble
ASK_S = 1.0  # for one answer of the head
LOOK_S = 0.05  # between two looks whether all is ready
HAND_OVER_S = 2.0  # for the other head to act when this one is ended; it takes 0.1 s
ENDS_MAX = 3  # a daemon that ended so often in a row at start will go on to do so

WORKERS_DEFAULT = 2
WORKERS_MAX = 200  # each is a process of some 40 MB
SLOTS_MAX = 4_096  # of one worker

FIRST, SECOND = "A", "B"  # the names of a cluster's heads
LIST_MAX = 10_000  # jobs counted at `down`

HEAD_ARGV = ("-P", "-m", "beo.headnode.server")
AGENT_ARGV = ("-P", "-m", "beo.worker.agent")
WITNESS_ARGV = ("-P", "-m", "beo.ha.witness")
MOUNT_ARGV = ("-P", "-m", "beo.tree.attach")


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """local.json: what of the cluster runs on this machine. head and agent are arguments to the Python interpreter."""

    workers: int
    slots: int  # of each worker
    head: tuple[str, ...] = HEAD_ARGV
    agent: tuple[str, ...] = AGENT_ARGV
    serves: bool = True  # a head runs here
    heads: int = 1  # of those here: with two, the second one's folder is B/
    listen: str = ""  # where it listens: host:port; "": as beo.toml says
    name: str = ""  # of the one worker of a machine without the head
    witness: str = ""  # the name of the witness that is all there is on this machine
    rack: str = ""  # where that machine stands; "": as beo.toml says
    prefix: str = "node"  # of the names of workers: those of the second head's machine must be others

    @property
    def nodes(self) -> list[str]:
        """The names of the workers: node01, node02, ..., or the one that the machine has in the cluster."""
        return [self.name] if self.name else [f"{self.prefix}{number:02d}" for number in range(1, self.workers + 1)]

    @property
    def title(self) -> str:
        """What this machine is, where no head is on it."""
        return f"witness {self.witness}" if self.witness else self.name

    def __str__(self) -> str:
        """`2 workers of 4 slots`"""
        if self.witness:
            return self.title
        where = f", the head at {self.listen}" if self.listen else ""
        where += ", two heads" if self.heads > 1 else ""
        return f"{_count(self.workers, 'worker')} of {_count(self.slots, 'slot')}{where}"


def up(
    home: Home,
    workers: int | None = None,
    slots: int | None = None,
    echo: Callable[[str], object] = print,
    *,
    head: tuple[str, ...] = HEAD_ARGV,
    agent: tuple[str, ...] = AGENT_ARGV,
) -> None:
    """Start the cluster of this folder, or what of it is missing; return when it is ready for jobs.

    workers and slots (of each worker) default to those of the last time; the first time to 2 workers that share the
    cores. Raises Conflict where it is up with others, and BeoError with the last line of its log where a daemon doesn't
    start; then nothing is left running that wasn't before. head and agent are arguments to the Python interpreter.
    """
    plan, was_up = start(home, lambda last: choose(last, workers, slots, head, agent))
    greet(home, plan, was_up, echo)


def start(home: Home, choose: Callable[[Plan | None], Plan]) -> tuple[Plan, bool]:
    """Start what `choose` makes of the plan of the last time; return it, and whether all was up already.

    Returns when all of it is ready, and raises what `up` raises.
    """
    from beo import birth  # here: the supervisor, which is this file too, does without zmq and its memory

    birth.make_folder(home)
    with _alone(home):
        last = read_plan(home)
        plan = choose(last)
        runs = is_running(home)
        if runs and plan != last:
            raise Conflict(f"already up, with {last}", "", "'beo down' first, then start it as you like it")
        if not runs:
            if plan.serves:
                birth.make_cluster(home, plan.listen)
            write_plan(home, plan)
        was_up = lockfile.holder(supervisor.lock_path(home)) is not None
        try:
            if not was_up:
                _start_supervisor(home)
            _await_ready(home, plan)
        except TimedOut:
            raise  # it goes on trying
        except BeoError:
            if not runs:
                _end_all(home)
            raise
    return plan, was_up


def down(home: Home, echo: Callable[[str], object] = print) -> None:
    """End the cluster of this folder and everything that it runs; return when all of it is gone."""
    if not (home.path / "run").is_dir():  # never up, and no folder of ours to lock anything in
        echo(f"nothing is up in {home.path}")
        return
    from beo import birth

    birth.check_owner(home)
    with _alone(home):
        if not is_running(home):
            echo(f"nothing is up in {home.path}")
            return
        plan = read_plan(home)
        _hand_over(home, plan)
        jobs = _count_running(home, plan)
        _end_all(home)
    echo(f"{_title(home, plan)} is down")
    if jobs:
        were, they = ("was", "it is") if jobs == 1 else ("were", "they are")
        again = f"{they} queued again at the next 'beo up', unless of --requeue never"
        echo(f"{_count(jobs, 'running job')} {were} stopped; {again}")


def free_name(path: Path) -> Path:
    """Return PATH.old-N, the first that is free."""
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return aside


def end_second(home: Home, sign_off: Callable[[], None]) -> Path:
    """End the second head of this machine and put its folder aside, if `sign_off` finds that the first does without.

    The first one acts then, and all that runs goes on. Returns where the folder is.
    """
    with _alone(home):
        plan = read_plan(home)
        assert plan
        own = lockfile.holding(supervisor.lock_path(home))
        _hand_over_to_first(home)
        if own:  # the next one takes over what runs, and doesn't know of the second head any more
            own.send(signal.SIGKILL)
            own.wait(supervisor.KILLED_END_S)
            own.close()
        try:
            if second := lockfile.holding(home.second.head / "lock"):
                supervisor.end_process(second)
            sign_off()
            aside = free_name(home.second.path)
            os.rename(home.second.path, aside)
            write_plan(home, msgspec.structs.replace(plan, heads=1))
            return aside
        finally:
            if own:
                _start_supervisor(home)


def supervise(home: Home, foreground: bool = False) -> int:
    """Run the supervisor in the background; return once it holds its lock: 0, or 1 with the reason on stderr.

    foreground: run it in this process, and return when it has been told to stop, as systemd and containers want it; by
    SIGHUP it leaves the jobs to the next one.
    """
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what our caller had open isn't ours to keep open for ever
    os.chdir("/")
    if foreground:
        return _run_supervisor(home, lambda: None, foreground=True)
    ready, tell = os.pipe2(os.O_CLOEXEC)
    # Forked while it is small, so that it is nobody's child: whoever started it needn't stay to reap it.
    if os.fork():
        os.close(tell)
        return 0 if os.read(ready, 1) else 1

    def began() -> None:
        os.write(tell, b"+")
        os.close(tell)

    return _run_supervisor(home, began)


def _run_supervisor(home: Home, began: Callable[[], None], foreground: bool = False) -> int:
    try:
        lockfile.hold(supervisor.lock_path(home))
        plan = read_plan(home)
        if plan is None:
            raise UsageError(f"no {_plan_path(home)}", "", "start with 'beo up'")
        own = supervisor.Supervisor(home, *_daemons(home, plan))
    except (OSError, BeoError) as error:
        print(f"beo: {error}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: own.stop())
    if foreground:
        signal.signal(signal.SIGHUP, lambda *_: own.leave())
    log.setup("beo.supervisor")
    began()
    own.run()
    return 0


# ---- the plan ---------------------------------------------------------------------------------------------------


def _plan_path(home: Home) -> Path:
    return home.path / "local.json"


def read_plan(home: Home) -> Plan | None:
    """Return what runs on this machine when it is up, None where nothing was ever started in this folder."""
    path = _plan_path(home)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is damaged", str(error).lower(), "remove it, and give --workers again") from None


def write_plan(home: Home, plan: Plan) -> None:
    """Write down what runs on this machine when it is up."""
    write_durably(_plan_path(home), msgspec.json.encode(plan) + b"\n", 0o600)


def choose(
    last: Plan | None, workers: int | None, slots: int | None, head: tuple[str, ...], agent: tuple[str, ...]
) -> Plan:
    """What is asked for, else as the last time, else the default."""
    if last and last.witness:
        if workers or slots:
            raise UsageError("a witness runs no jobs", f"this machine is {last.title}", "leave --workers and --slots")
        return last
    if last and not last.serves:
        if workers not in (None, 1):
            raise UsageError(f"{_count(workers or 0, 'worker')}", f"this machine is {last.name} alone", "--slots it is")
        return msgspec.structs.replace(last, slots=_checked_slots(slots or last.slots))
    if workers is None:
        workers = last.workers if last else WORKERS_DEFAULT
    if not (0 if last and last.listen else 1) <= workers <= WORKERS_MAX:
        raise UsageError(f"{_count(workers, 'worker')}", f"a machine has 1 to {WORKERS_MAX}", "change --workers")
    if slots is None:
        cores = len(os.sched_getaffinity(0))
        slots = last.slots if last and last.workers == workers else max(1, cores // max(1, workers))
    base = last or Plan(workers, slots)
    return msgspec.structs.replace(base, workers=workers, slots=_checked_slots(slots), head=head, agent=agent)


def _checked_slots(slots: int) -> int:
    if not 1 <= slots <= SLOTS_MAX:
        raise UsageError(f"{_count(slots, 'slot')} of a worker", f"it has 1 to {SLOTS_MAX}", "change --slots")
    return slots


def _daemons(home: Home, plan: Plan) -> tuple[list[Daemon], list[Daemon], list[Daemon]]:
    """The heads (or the witness), the agents, and who shows the tree as folders here."""
    argv = (sys.executable, *plan.head)
    heads = [Daemon("head", argv, home.head / "lock", home.logs / "head.log")]
    if plan.heads > 1:
        other = home.second
        lock, output = other.head / "lock", other.logs / "head.log"
        heads.append(Daemon("head B", argv, lock, output, other.path, needs=other.cluster_file))
    rack = ("--rack", plan.rack) if plan.rack else ()
    agents = [
        Daemon(
            name,
            (sys.executable, *plan.agent, "--node", name, "--slots", str(plan.slots), *rack),
            home.nodes / name / "lock",
            home.logs / f"{name}.log",
        )
        for name in plan.nodes
    ]
    if plan.witness:
        words = (sys.executable, *WITNESS_ARGV)
        heads = [Daemon("witness", words, supervisor.witness_lock(home), home.logs / "witness.log")]
        return heads, agents, []
    return heads if plan.serves else [], agents, _mounts(home)


def _mounts(home: Home) -> list[Daemon]:
    if os.geteuid():  # only root can mount: 'beo doctor' says so
        return []
    try:
        mounts = home.config().files.mounts
    except BeoError:
        return []  # a daemon that needs the settings says what is wrong with them
    return [
        Daemon(
            f"mount {folder}",
            (sys.executable, *MOUNT_ARGV, folder, path),
            supervisor.mount_lock(home, folder),
            home.logs / "mount.log",
            marks=False,
        )
        for folder, path in mounts.items()
    ]


# ---- what runs --------------------------------------------------------------------------------------------------


@contextmanager
def _alone(home: Home) -> Iterator[None]:
    """One `up` or `down` of a folder at a time; raises BeoError for a disk that takes nothing."""
    fd = -1
    try:
        fd = lockfile.hold(home.path / "run" / "up.lock")
        yield
    except Conflict as error:
        if fd >= 0:
            raise
        raise Conflict("another 'beo up' or 'beo down' is at work here", error.why, "wait for it") from None
    except OSError as error:
        raise BeoError(f"can't write in {home.path}", reason(error), "free space there, or mend that disk") from None
    finally:
        if fd >= 0:
            os.close(fd)


def is_running(home: Home) -> bool:
    """Whether anything of this folder's cluster runs on this machine."""
    found = [supervisor.lock_path(home), home.head / "lock", home.second.head / "lock", *home.nodes.glob("*/lock")]
    found.append(supervisor.witness_lock(home))
    if any(lockfile.holder(lock) for lock in found):
        return True
    left = supervisor.wardens(home)
    for process in left:
        process.close()
    return bool(left)


def _start_supervisor(home: Home) -> None:
    output = supervisor.log_path(home)
    argv = (sys.executable, "-P", "-m", "beo.local", "supervise", str(home.path))
    _, status = os.waitpid(supervisor.spawn(argv, supervisor.environment(home), output), 0)
    if status:
        raise BeoError("the supervisor doesn't start", _last_line(output), f"see {output}")


def _end_all(home: Home) -> None:
    """By the supervisor where there is one, and then by ourselves what it may have left."""
    own = lockfile.holding(supervisor.lock_path(home))
    if own:
        own.send(signal.SIGTERM)
        own.send(signal.SIGCONT)
        if not own.wait(supervisor.stop_max_s(home)):
            own.send(signal.SIGKILL)
            own.wait(supervisor.KILLED_END_S)
        own.close()
    supervisor.end(home, supervisor.agents(home), supervisor.heads(home))
    if is_running(home):
        raise BeoError(
            f"something of the cluster in {home.path} doesn't end, not even by SIGKILL",
            "it hangs in the kernel, as with a file server that is away",
            "mend that, then 'beo down' again",
        )


# ---- the head's answers -----------------------------------------------------------------------------------------


def _heads(home: Home, *only: str) -> question.Heads:
    """Connections to the cluster's heads, or only to some of them, by a key of this machine."""
    from beo import question

    cluster = home.cluster()
    key = next((name for name in ("admin", "worker") if (home.keys / f"{name}.secret").exists()), "witness")
    return question.Heads(only or cluster.heads, cluster.key, home.secret(key))


def _await_ready(home: Home, plan: Plan) -> None:
    """Return when the head answers and every worker is up. Raises BeoError or TimedOut."""
    from beo import messages

    began_s = time.monotonic()
    seen = "no head answers yet"
    try:
        with _heads(home) as heads:
            while time.monotonic() < began_s + READY_MAX_S:
                answer = heads.ask(messages.ListNodes(), ASK_S)
                if heads.trouble:
                    raise _unknown(heads.where)
                if isinstance(answer, messages.NodesAre):
                    up = {node.name for node in answer.nodes if node.state == "up"}
                    # A head that begins again takes its nodes for up until it knows better; so ask the locks too.
                    ready = [node for node in plan.nodes if node in up and lockfile.holder(home.nodes / node / "lock")]
                    witnesses = not plan.witness or lockfile.holder(supervisor.witness_lock(home))
                    if len(ready) == plan.workers and witnesses:
                        return
                    seen = f"{len(ready)} of {_count(plan.workers, 'worker')} joined"
                _check_daemons(home, plan)
                progress(f"beo: starting: {seen} ({time.monotonic() - began_s:.0f} s)")
                time.sleep(LOOK_S)
    finally:
        progress("")
    raise TimedOut(f"not ready after {READY_MAX_S:.0f} s", seen, f"it goes on trying: see {home.logs}, or 'beo down'")


def nodes(home: Home) -> tuple[messages.NodeView, ...]:
    """Return what the head shows this machine's key of the nodes: a worker's its own alone. Raises NoHead."""
    from beo import messages

    with _heads(home) as heads:
        answer = heads.ask(messages.ListNodes(), ASK_S)
        if isinstance(answer, messages.NodesAre):
            return answer.nodes
        if heads.trouble:
            raise _unknown(heads.where)
        raise NoHead(f"no head answers at {heads.where}", f"tried for {ASK_S:.0f} s", "see 'beo info' there")


def _unknown(address: str) -> Refused:
    return Refused(
        f"the head at {address} does not know this machine's key",
        "it was removed there",
        "'beo worker' with a new token, which 'beo token' makes on the head's machine",
    )


def _check_daemons(home: Home, plan: Plan) -> None:
    """Raise BeoError where a daemon doesn't stay up."""
    if lockfile.holder(supervisor.lock_path(home)) is None:
        output = supervisor.log_path(home)
        raise BeoError("the supervisor ended", _last_line(output), f"see {output}")
    with suppress(OSError, msgspec.DecodeError):  # it is only news; without it there is still the time limit
        ends = msgspec.json.decode(supervisor.ends_path(home).read_bytes(), type=dict[str, supervisor.Ends])
        for daemon in itertools.chain(*_daemons(home, plan)):
            its = ends.get(daemon.name, supervisor.Ends())
            if its.count >= ENDS_MAX:
                why = f"it {its.how}, {its.count} times in a row: {_last_line(daemon.log) or 'its log is empty'}"
                raise BeoError(f"{daemon.name} doesn't stay up", why, f"see {daemon.log}")


def _count_running(home: Home, plan: Plan | None) -> int:
    """How many jobs run on this machine, as far as a head can tell."""
    from beo import messages

    if lockfile.holder(home.head / "lock") is None:
        return 0
    own = set(plan.nodes) if plan else set()
    with suppress(BeoError, msgspec.DecodeError), _heads(home) as heads:
        answer = heads.ask(messages.ListJobs(limit=LIST_MAX), ASK_S)
        if isinstance(answer, messages.JobsAre):
            running = [job for job in answer.jobs if job.state in ("running", "ending")]
            return sum(not job.nodes or not own.isdisjoint(nodeset.expand(job.nodes)) for job in running)
    return 0


def _hand_over(home: Home, plan: Plan | None) -> None:
    """Let the head of another machine act, if ours does and they are in step: then nobody waits for a lease to end."""
    if plan and plan.heads == 1 and home.who_file.exists() and home.who().others:
        _switch_from(home, home.who())


def _hand_over_to_first(home: Home) -> None:
    _switch_from(home, home.second.who())


def _switch_from(home: Home, own: Who) -> None:
    from beo import messages

    with suppress(BeoError, msgspec.DecodeError), _heads(home) as heads:
        kind = messages.PairIs
        view = heads.look(messages.AskPair(), ASK_S).get(own.control)
        if not isinstance(view, kind) or view.role != "primary" or not view.in_step:
            return
        with _heads(home, own.control) as mine:
            mine.ask(messages.Steer("switchover"), ASK_S)
        deadline_s = time.monotonic() + HAND_OVER_S
        while time.monotonic() < deadline_s:
            found = [answer for answer in heads.look(messages.AskPair(), ASK_S).values() if isinstance(answer, kind)]
            if any(view.role == "primary" and view.name != own.name for view in found):
                return
            time.sleep(LOOK_S)


# ---- what a person sees -----------------------------------------------------------------------------------------


def _title(home: Home, plan: Plan | None) -> str:
    """What of a cluster is on this machine."""
    if plan and not plan.serves:
        return plan.title
    if plan and plan.heads == 1 and home.who_file.exists() and home.who().others:
        return f"head {home.who().name} in {home.path}"
    return f"the cluster in {home.path}"


def greet(home: Home, plan: Plan, was_up: bool, echo: Callable[[str], object], more: Iterable[str] = ()) -> None:
    """Say what is up, and what can be done with it. more: lines that belong behind the first one."""
    if plan.serves and not plan.workers and home.who_file.exists() and home.who().others:
        echo(f"{'already up' if was_up else 'up'}: head {home.who().name} at {home.who().control}")
        return
    if not plan.serves or not plan.workers:
        what = f"{plan.name}, {_count(plan.slots, 'slot')}" if plan.name else plan.title or "the head"
        echo(f"{'already up' if was_up else 'up'}: {what}, of the cluster at {home.cluster().heads[0]}")
        return
    slots = plan.workers * plan.slots
    names = plan.nodes[0] if plan.workers == 1 else f"{plan.nodes[0]} to {plan.nodes[-1]}"
    echo(f"{'already up' if was_up else 'up'}: {_count(plan.workers, 'node')} ({names}), {_count(slots, 'slot')}")
    for line in more:
        echo(line)
    echo("what to type next:")
    if home.path != Path(os.path.expanduser("~/.beo")):
        echo(f"  export BEO_DIR={shlex.quote(str(home.path))}  # in other shells, to mean this cluster")
    echo(f"  beo run -n {slots} hostname  # a program on {_count(slots, 'rank')}, as if it ran right here")
    echo("  beo queue  # what runs and what waits")
    echo("  beo down  # end it all")


def progress(text: str) -> None:
    """Show a line in the place of the one before, to a person who waits."""
    if sys.stderr.isatty():
        print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


def _last_line(path: Path) -> str:
    """The last line of a log: its message, where it is one of JSON."""
    try:
        with path.open("rb") as file:
            file.seek(-min(4096, path.stat().st_size), os.SEEK_END)
            lines = file.read().decode(errors="replace").split("\n")
    except OSError as error:
        return str(error).lower()
    line = next((line for line in reversed(lines) if line.strip()), "")
    with suppress(msgspec.DecodeError, KeyError, TypeError):
        return str(msgspec.json.decode(line)["message"])
    return line


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


if __name__ == "__main__":
    if sys.argv[1:2] != ["supervise"] or sys.argv[3:] not in ([], ["--foreground"]):
        sys.exit("beo: this is started by 'beo up'")
    sys.exit(supervise(Home(Path(sys.argv[2])), foreground=bool(sys.argv[3:])))
