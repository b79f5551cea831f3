"""The verb submit: hand in a job and return."""

from __future__ import annotations

import click

from beo.cli.group import Verb, option
from beo.cli.options import STOP_AT_COMMAND, job_options, spec_of, with_inputs
from beo.cli.waiting import Progress, exit_code_of
from beo.client import Cluster


@click.command(
    cls=Verb,
    context_settings=STOP_AT_COMMAND,
    examples=[
        ("beo submit -n 4 python pi.py", "four ranks of an MPI program"),
        ("beo submit -t 1h --mem 4GiB ./fit", "one process, with limits"),
        ("beo submit -o out.%j job.sh", "a script; '#BEO -n 4' in it is an option"),
        ("beo submit --in . --out 'out/*' ./sim", "its files along, its results back"),
        ("beo wait $(beo submit -q ./fit)", "its exit code, later"),
    ],
    exits=[("job's", "with --wait: the job's own, 128 + signal for a killed one")],
)
@option("--wait", is_flag=True, help="Wait until it ended, and exit with its code.")
@option("-q", "--quiet", is_flag=True, help="Print the job's id and nothing else.")
@option("--hold", is_flag=True, help="Don't start it before 'beo release'.")
@job_options(requeue="confirm")
@click.pass_context
def submit(context: click.Context, /, **_: object) -> int:
    """Hand in a job: CMD runs with as many ranks as asked for, as soon as there is room. Prints its id.

    When this returns, the job is safe: it runs, whatever is killed or restarted meanwhile. It takes along this shell's
    environment (but BEO_* and PMI_*) and working directory. Its output is kept for 'beo logs'.

    With --in it needs no folder that all nodes share: what is named is kept with the job as it is now, and every node
    has a copy of it, in which the job runs. Files and folders keep their paths relative to this folder; what is outside
    of it comes in under its last name. With --out, files that match (* stands for / too, a folder means all in it) and
    are new or changed when the job ends are kept as /jobs/ID in the tree, also when it failed or its time was up, but
    not when it was cancelled: 'beo get /jobs/ID .' Then it is done when they are on the disks of all heads in step.

    Where CMD is a script that begins with '#!' and has lines like '#BEO -n 4 -t 1h' above its first command, their
    options count unless given here, and its text is taken as it is now. A shell script runs once, with all that was
    asked for at its disposal; any other script runs once per rank.
    """
    job = spec_of(context)
    asked = context.params
    cluster = Cluster()
    job = with_inputs(cluster, job, asked["inputs"])
    number = cluster.submit(job, asked["key"] or None, hold=asked["hold"])
    print(number if asked["quiet"] else f"job {number}", flush=True)
    if not asked["wait"]:
        return 0
    with Progress(asked["quiet"]) as progress:
        views = cluster.wait([number], None, progress.on_progress)
    return exit_code_of(views, asked["quiet"])
