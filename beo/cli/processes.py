"""The verbs about processes: ps and kill."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import click

from beo import messages as m
from beo import selector, table, units
from beo.cli.group import Verb, option
from beo.cli.jobs import SELECTORS, ids_of
from beo.cli.tables import listing, show
from beo.client import Cluster
from beo.contact import tell
from beo.errors import EXIT_CONFLICT, EXIT_FAILED, EXIT_OK, UsageError
from beo.submission import signal_number

PROCESS_COLUMNS = (
    table.Column("id"),
    table.Column("user"),
    table.Column("rank"),
    table.Column("parent"),
    table.Column("state"),
    table.Column("time", lambda value: clock(value) if isinstance(value, float) else "-"),
    table.Column("cpu", lambda value: f"{value:.1f}" if isinstance(value, float) else "-"),
    table.Column("memory", lambda value: units.approximate_size(value) if isinstance(value, int) else "-"),
    table.Column("threads"),
    table.Column("command"),
)
PROCESS_JSON_ONLY = ("job", "attempt", "node", "pid", "age")

_PROCESS = re.compile(r"([0-9]{1,16})/([A-Za-z0-9._-]{1,253})/([0-9]{1,9})")
_RANK = re.compile(r"([0-9]{1,16})\.([0-9]{1,9})")


def clock(seconds: float) -> str:
    """Return CPU time as ps does: 1:02:03, or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def identity(job: int, node: str, pid: int) -> str:
    """Return the name of a process in the whole cluster."""
    return f"{job}/{node}/{pid}"


def process_rows(answer: m.ProcessesAre) -> Iterator[dict[str, object]]:
    """Yield a row per process: `time` is CPU seconds, `cpu` the percentage of one processor over its life."""
    for told in answer.nodes:
        for row in told.processes:
            yield {
                "id": identity(row.job, told.node, row.pid),
                "user": answer.users.get(row.job, ""),
                "rank": row.rank if row.rank >= 0 else None,
                "parent": row.parent,
                "state": row.state,
                "time": row.cpu_s,
                "cpu": round(100 * row.cpu_s / row.age_s, 1) if row.age_s > 0 else 0.0,
                "memory": row.memory_bytes,
                "threads": row.threads,
                "command": row.command,
                "job": row.job,
                "attempt": row.attempt,
                "node": told.node,
                "pid": row.pid,
                "age": row.age_s,
            }


def tell_missing(silent: tuple[str, ...], more: int = 0) -> int:
    """Say which nodes did not answer and what was left out; returns the exit code."""
    if more:
        tell(f"{more} more processes: name a job or a node")
    if not silent:
        return EXIT_OK
    from beo import nodeset  # here, because where all answer nobody needs it

    tell(f"no answer from {nodeset.fold(silent)}: what runs there is not shown")
    return EXIT_CONFLICT


@click.command(
    cls=Verb,
    examples=[
        ("beo ps", "the processes of all your jobs"),
        ("beo ps 7 --node node[01-02]", "of one job, on two nodes"),
        ("beo ps -u ann", "of ann's jobs: for admins"),
        ("beo ps --format '{id} {command}'", "a line of your own"),
    ],
    exits=[("75", "some nodes did not answer: they are named, and what the others said is printed")],
)
@SELECTORS
@option("--node", "nodes", default="", metavar="NODE", help="Only on this node, or on these: node[01-04].")
@option("-u", "--user", default="", metavar="USER", help="Only those of USER's jobs.")
@listing
def ps(jobs: tuple[str, ...], nodes: str, user: str, fields: str, as_json: bool, quiet: bool) -> int:
    """List the processes of jobs on all nodes: of your own jobs, or of everybody's if you are an admin.

    ID is JOB/NODE/PID, with the PID that 'ps' on that node shows; 'beo kill' takes it. RANK is empty for what a rank
    has started. TIME is CPU time, CPU the percentage of one processor since the process began, MEMORY what it has
    resident.
    """
    if jobs:
        selector.parse(jobs)
    answer = Cluster().processes(jobs, nodes, user)
    show(list(process_rows(answer)), PROCESS_COLUMNS, fields, as_json, quiet, PROCESS_JSON_ONLY)
    return tell_missing(answer.silent, answer.more)


def signal_name(number: int) -> str:
    """Return SIGTERM for 15."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def targets_of(words: tuple[str, ...]) -> tuple[list[str], list[m.Target]]:
    """Divide what was named into jobs, as selectors, and ranks and processes."""
    jobs: list[str] = []
    targets: list[m.Target] = []
    for word in words:
        if match := _PROCESS.fullmatch(word):
            targets.append(m.Target(int(match[1]), match[2], int(match[3])))
        elif match := _RANK.fullmatch(word):
            targets.append(m.Target(int(match[1]), "", 0, int(match[2])))
        elif "/" in word or "." in word:
            cure = "write JOB/NODE/PID as 'beo ps' shows it, JOB.RANK, or JOB"
            raise UsageError(f"{word[:80]!r} names no process", "", cure)
        else:
            selector.parse([word])
            jobs.append(word)
    return jobs, targets


@click.command(
    cls=Verb,
    examples=[
        ("beo kill 7/node01/4242", "one process, as 'beo ps' names it"),
        ("beo kill -s USR1 7.2", "rank 2 of job 7, with its process group"),
        ("beo kill -s INT 7", "every rank of job 7"),
    ],
    exits=[("1", "something that was named was not hit: each is told on stderr")],
)
@click.argument("what", nargs=-1, required=True, metavar="ID...")
@option("-s", "--signal", "name", default="TERM", metavar="SIGNAL", help="TERM, USR1, 9, ... (default TERM).")
@option("-q", "--quiet", is_flag=True, help="Print nothing of what was hit.")
def kill(what: tuple[str, ...], name: str, quiet: bool) -> int:
    """Send a signal to processes, ranks or whole jobs. What was hit is printed.

    ID is JOB/NODE/PID for one process, JOB.RANK for a rank and what it runs in its process group, or JOB (or 1-3, or
    'last') for every rank. The node looks whether that process is one of the job before it sends anything, so a number
    that belongs to another by now is never hit. A job that waits is cancelled, as 'beo cancel' does.
    """
    number = signal_number(name)
    jobs, targets = targets_of(what)
    cluster = Cluster()
    for job in ids_of(cluster, jobs) if jobs else []:
        cluster.signal(job, number)
        if not quiet:
            print(f"job {job}: {signal_name(number)} to every rank")
    if not targets:
        return EXIT_OK
    answer = cluster.kill(targets, number)
    missed = [target for target in targets if not _told(target, answer.hits)]
    for hit in answer.hits:
        if hit.trouble:
            tell(f"{identity(hit.job, hit.node, hit.pid)}: {hit.trouble}")
        elif not quiet:
            rank = f" (rank {hit.rank})" if hit.rank >= 0 else ""
            where = identity(hit.job, hit.node, hit.pid)
            print(f"{where}{rank}: {signal_name(number)} to {table.escape(hit.command)}")
    for target in missed:
        silent = f" ({', '.join(answer.silent)} did not answer)" if answer.silent else ""
        named = identity(target.job, target.node, target.pid) if target.node else f"{target.job}.{target.rank}"
        tell(f"{named}: {'not hit' if target.node else 'no such rank runs'}{silent}")
    return EXIT_FAILED if missed or any(hit.trouble for hit in answer.hits) else EXIT_OK


def _told(target: m.Target, hits: tuple[m.Hit, ...]) -> bool:
    """Whether some node has said what became of a target."""
    return any(
        hit.job == target.job
        and ((hit.node, hit.pid) == (target.node, target.pid) if target.node else hit.rank == target.rank)
        for hit in hits
    )
