"""The verb logs: what a job wrote."""

from __future__ import annotations

import click

from beo import selector
from beo.cli.group import Verb, option
from beo.cli.watch import STEP_S, Printer, Watch, follow_job
from beo.client import ENDED, Cluster
from beo.errors import Conflict, NotFound, UsageError
from beo.follow import Console
from beo.messages import JobView


@click.command(
    cls=Verb,
    examples=[
        ("beo logs last", "what the newest job has written so far"),
        ("beo logs -f 7", "go on until it ends"),
        ("beo logs 7 --rank 0 2>/dev/null", "standard output of rank 0"),
        ("beo logs 7 --attempt 1", "what it wrote before it was run again"),
    ],
    exits=[("75", "the job has not started; with -f, logs waits for that")],
)
@click.argument("job", default="last")
@option("-f", "--follow", is_flag=True, help="Go on until the job has ended, over all its attempts.")
@option("--rank", type=click.IntRange(0), help="Of one rank only.")
@option("--attempt", type=click.IntRange(1), help="Of this attempt only.")
@option("-l", "--label", is_flag=True, help="Put the rank in front of each line.")
def logs(job: str, follow: bool, rank: int | None, attempt: int | None, label: bool) -> None:
    """Print what JOB (default: the last one) wrote: its stdout on stdout, its stderr on stderr.

    Of a job that went on elsewhere at a checkpoint it prints what was written before, too; of one that was run anew
    only what the last attempt wrote. The lines of different ranks come in the order in which they arrived. A restart of
    the head is waited out, with no line lost or doubled.
    """
    cluster = Cluster()
    view = _one(cluster, job)
    printer = Printer(rank, label)
    if follow and not attempt:
        follow_job(cluster, Watch(cluster, view.id), printer, max(1, view.attempt))
        return
    if attempt and attempt > view.attempt and (view.state in ENDED or not follow):
        raise NotFound(f"no attempt {attempt} of job {view.id}", f"the last one is {view.attempt}", "name another")
    if not view.attempt and view.state in ENDED:
        return
    if not view.attempt and not attempt:
        cure = f"'beo logs -f {view.id}' waits for it"
        raise Conflict(f"job {view.id} has not started", view.reason, cure)
    for number in [attempt] if attempt else _attempts(cluster, view):
        console = Console(cluster.bulk, view.id, number, wait=follow, learn=cluster.learn_heads)
        while not console.ended:
            printer.write(console.step(STEP_S))
        console.close()
    printer.close()


def _attempts(cluster: Cluster, view: JobView) -> list[int]:
    """The last attempt, and those before it that it goes on from: together they are one program's output."""
    if view.attempt < 2:
        return [view.attempt]
    (detail,) = cluster.show((str(view.id),))
    return list(range(min(detail.since, view.attempt), view.attempt + 1))


def _one(cluster: Cluster, word: str) -> JobView:
    selector.parse([word])
    jobs = cluster.jobs([word]).jobs
    if len(jobs) != 1:
        raise UsageError(f"{word!r} names {len(jobs)} jobs", "logs prints one", "name one of them")
    return jobs[0]
