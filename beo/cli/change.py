"""The verbs that change what becomes of jobs: hold, release, requeue, set."""

from __future__ import annotations

import click

from beo import selector, spec
from beo.cli.group import Verb, option
from beo.cli.jobs import SELECTORS
from beo.cli.tables import tell_meant
from beo.client import Cluster

AS_JSON = option("--json", "as_json", is_flag=True, help="Print the jobs as a list of JSON objects.")
QUIET = option("-q", "--quiet", is_flag=True, help="Print the ids only.")


@click.command(
    cls=Verb,
    examples=[
        ("beo hold 7", "job 7 doesn't start before it is released"),
        ("beo hold all", "nor do all of yours that wait"),
    ],
    exits=[("75", "none of these jobs waits")],
)
@SELECTORS
@AS_JSON
@QUIET
def hold(jobs: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Let jobs that wait not start until they are released.

    What runs or has ended is left as it is. A job that an admin holds can't be released by its owner. The jobs that
    are meant are printed.
    """
    selector.parse(jobs)
    tell_meant(Cluster().hold(jobs), as_json, quiet)


@click.command(
    cls=Verb,
    examples=[("beo release 7", "job 7 may start"), ("beo release all", "and all others of yours")],
    exits=[("75", "all of these jobs have ended"), ("77", "refused: not yours, or an admin holds it")],
)
@SELECTORS
@AS_JSON
@QUIET
def release(jobs: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Let held jobs start when it is their turn: as if they had waited in the queue all the time.

    What isn't held is left as it is. The jobs that are meant are printed.
    """
    selector.parse(jobs)
    tell_meant(Cluster().release(jobs), as_json, quiet)


@click.command(
    cls=Verb,
    examples=[
        ("beo requeue 7", "end job 7, and run it again"),
        ("beo requeue --hold 7", "but not before 'beo release 7'"),
        ("beo requeue 3-5", "these three, whether they run or have ended"),
    ],
    exits=[("75", "a job can't be run again: its input is gone, or it is being cancelled")],
)
@SELECTORS
@option("--hold", "held", is_flag=True, help="Let them wait until they are released.")
@AS_JSON
@QUIET
def requeue(jobs: tuple[str, ...], held: bool, as_json: bool, quiet: bool) -> None:
    """Run jobs again, each as a further attempt of the same job: what runs is ended first, as 'beo cancel' ends it.

    Jobs that have ended are queued again too, with the place in the queue that their age gives them; 'all' are only
    those of yours that run. Those that wait already are left as they are. A further attempt writes its -o and -e files
    anew. The jobs that are meant are printed.
    """
    selector.parse(jobs)
    tell_meant(Cluster().requeue(jobs, held), as_json, quiet)


@click.command(
    cls=Verb,
    examples=[
        ("beo migrate 7", "job 7 goes on where it isn't now"),
        ("beo migrate 7 node[05-08]", "on these four"),
    ],
    exits=[("75", "a job doesn't run, or can't be placed there")],
)
@click.argument("job", metavar="JOB")
@click.argument("nodes", default="", metavar="[NODES]")
@AS_JSON
@QUIET
def migrate(job: str, nodes: str, as_json: bool, quiet: bool) -> None:
    """Have a running job go on elsewhere, without losing a step.

    JOB is a job or a set of them, like 3-5, last or all; NODES is a set of nodes, like node[05-08], by default all that
    the job isn't on. At its next safe point the program takes a checkpoint and ends; the job is queued as a further
    attempt, which goes on from that checkpoint. It is asked, not made to: a program that takes no checkpoints with beo
    goes on where it is. The jobs that are meant are printed, and 'beo show JOB' tells how it stands.
    """
    selector.parse((job,))
    tell_meant(Cluster().migrate((job,), nodes), as_json, quiet)


@click.command(
    cls=Verb,
    name="set",
    examples=[("beo set 7 --priority 10", "job 7 goes before all of a lower priority")],
    exits=[("75", "none of these jobs waits")],
)
@SELECTORS
@option(
    "--priority",
    type=click.IntRange(-spec.PRIORITY_MAX, spec.PRIORITY_MAX),
    required=True,
    metavar="N",
    help="Higher goes first.",
)
@AS_JSON
@QUIET
def set(jobs: tuple[str, ...], priority: int, as_json: bool, quiet: bool) -> None:
    """Change jobs that wait. The jobs that are meant are printed."""
    selector.parse(jobs)
    tell_meant(Cluster().set_priority(jobs, priority), as_json, quiet)
