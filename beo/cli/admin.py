"""The verbs about a cluster as a whole: up, down, info."""

from __future__ import annotations

from collections.abc import Sequence

import click

import beo
from beo import config
from beo.cli.group import Verb, option
from beo.client import Cluster
from beo.messages import InfoIs

WORKERS_MAX = 1_000  # on one machine: each is a process


@click.command(
    cls=Verb,
    examples=[
        ("beo up", "two workers that share this machine's processors"),
        ("beo up --workers 4 --slots 1", "four workers, one process each"),
        ("beo up --heads 2", "when one head is killed, the other one goes on"),
        ("BEO_DIR=/tmp/c beo up", "another cluster, beside the first"),
    ],
)
@option("--workers", type=click.IntRange(1, WORKERS_MAX), help="Nodes to make (default: as many as before, or 2).")
@option("--slots", type=click.IntRange(1), help="Slots of each (default: the processors, shared out).")
@option("--heads", type=click.IntRange(1, 2), help="Heads to make (default: as many as before, or 1).")
def up(workers: int | None, slots: int | None, heads: int | None) -> None:
    """Start a cluster on this machine, in the background; return when it is ready.

    Its folder is BEO_DIR, and there is nothing else to configure. Jobs that were there before go on. A second head has
    a folder B of its own in it, and everything that is acknowledged is on both heads' disks.
    """
    from beo import pairing

    pairing.up(config.home(), workers, slots, heads, click.echo)


@click.command(cls=Verb, examples=[("beo down", "stop it; 'beo up' goes on where it was")])
def down() -> None:
    """Stop this machine's cluster: head, workers, and the jobs that run on them. Its folder stays."""
    from beo import local

    local.down(config.home(), click.echo)


@click.command(cls=Verb, examples=[("beo info --json", "for a program")])
@option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@option("-q", "--quiet", is_flag=True, help="Print the cluster's id only.")
def info(as_json: bool, quiet: bool) -> None:
    """Tell which cluster and head answer, as whom they know you, and where the cluster lives."""
    cluster = Cluster()
    answer = cluster.info()
    facts = {
        "cluster": answer.cluster,
        "head": answer.head,
        "address": _address_of(answer, cluster.home.cluster().heads),
        "epoch": answer.epoch,
        "user": answer.user,
        "role": answer.role,
        "version": answer.version,
        "client_version": beo.__version__,
        "folder": str(cluster.home.path),
    }
    if as_json:
        from json import dumps

        print(dumps(facts))
    elif quiet:
        print(answer.cluster)
    else:
        print("\n".join(f"{name.replace('_', ' '):<15} {value}" for name, value in facts.items()))


def _address_of(answer: InfoIs, known: Sequence[str]) -> str:
    """Where the head that answered is: of several, where it says; of one, where it was found."""
    return next((head.control for head in answer.heads if head.name == answer.head and len(known) > 1), known[0])
