"""The actions of ckpt that look at what is kept: list, show, verify, export."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from beo import messages as m
from beo import selector, table, units
from beo.cli.group import Verb
from beo.cli.jobs import SELECTORS
from beo.cli.tables import listing, moment
from beo.cli.tables import show as print_rows
from beo.client import Cluster
from beo.errors import EXIT_FAILED, UsageError
from beo.nodeset import fold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from beo.checkpoints.offline import Summary

LIST_COLUMNS = (
    table.Column("job"),
    table.Column("name"),
    table.Column("state"),
    table.Column("nodes"),
    table.Column("memory", lambda value: units.approximate_size(value) if isinstance(value, int) else "-"),
    table.Column("copied", lambda value: units.approximate_size(value) if isinstance(value, int) else "-"),
    table.Column("when", lambda value: moment(value) if isinstance(value, float) else "-"),
)
PART_COLUMNS = (
    table.Column("step"),
    table.Column("level"),
    table.Column("rank"),
    table.Column("kind"),
    table.Column("size", lambda value: units.approximate_size(value) if isinstance(value, int) else "-"),
    table.Column("blocks"),
    table.Column("spoilt"),
)


@click.command(cls=Verb, examples=[("beo ckpt list", "yours that have not ended"), ("beo ckpt list 7 --json", "")])
@SELECTORS
@listing
def list_(jobs: tuple[str, ...], fields: str, as_json: bool, quiet: bool) -> None:
    """List the jobs that keep a checkpoint: on which nodes, how much of their memory it takes, and what is copied.

    MEMORY is on the workers, where a job goes on from within seconds; COPIED is at the head, WHEN that was made. JOB is
    an id, a range, 'last' or 'all', which is the default: yours that have not ended.
    """
    words = jobs or ("all",)
    selector.parse(words)
    rows = [_row(detail) for detail in Cluster().show(words) if detail.vaults or detail.copies]
    print_rows(rows, LIST_COLUMNS, fields, as_json, quiet)


def _row(detail: m.JobDetail) -> dict[str, object]:
    copies = detail.copies
    return {
        "job": detail.view.id,
        "name": detail.view.name,
        "state": detail.view.state,
        "nodes": fold([node for node, _ in detail.vaults]) if detail.vaults else None,
        "memory": sum(size for _, size in detail.vaults) if detail.vaults else None,
        "copied": sum(size for _, _, _, size, _ in copies) if copies else None,
        "when": max((time_s for *_, time_s in copies), default=None),
    }


@click.command(cls=Verb, examples=[("beo ckpt show 7", "which steps, which ranks, how large")])
@click.argument("job")
@listing
def show(job: str, fields: str, as_json: bool, quiet: bool) -> None:
    """Tell what the copy of a job's checkpoints at the head holds, part by part. All of it is read and checked."""
    with tempfile.TemporaryDirectory(prefix="beo-ckpt-") as folder:
        rows = [
            {
                "step": part.whole.step,
                "level": part.whole.level,
                "rank": part.rank,
                "kind": part.kind,
                "size": part.size_bytes,
                "blocks": part.blocks,
                "spoilt": part.spoilt,
            }
            for one in _brought(job, Path(folder))
            for part in one.parts
        ]
    print_rows(rows, PART_COLUMNS, fields, as_json, quiet)


@click.command(
    cls=Verb,
    examples=[("beo ckpt verify 7", "is the copy good?")],
    exits=[("1", "there is no checkpoint in it that could be restored")],
)
@click.argument("job")
def verify(job: str) -> int:
    """Read all of a job's copy at the head, check every block, and say which checkpoints could be restored from it."""
    is_good = False
    with tempfile.TemporaryDirectory(prefix="beo-ckpt-") as folder:
        for one in _brought(job, Path(folder)):
            is_good = is_good or one.is_whole
            spoilt = sum(part.spoilt for part in one.parts)
            words = f"{spoilt} of {sum(part.blocks for part in one.parts)} blocks are spoilt"
            words += f", ranks {', '.join(map(str, one.lost))} are lost" if one.lost else ""
            print(f"step {one.whole.step}: {'whole' if one.is_whole else 'lost'}: {words}")
    if not is_good:
        print("beo: nothing in it could be restored by beo.checkpoint", file=sys.stderr)
    return 0 if is_good else EXIT_FAILED


def _brought(job: str, folder: Path) -> Iterator[Summary]:
    from beo.bulk.copies import bring
    from beo.checkpoints.offline import summaries

    cluster = Cluster()
    yield from summaries(bring(cluster, _one(cluster, job), folder))


@click.command(cls=Verb, examples=[("beo ckpt export 7 saved", "as saved/NODE, what each node kept")])
@click.argument("job")
@click.argument("folder", type=click.Path(path_type=Path))
def export(job: str, folder: Path) -> None:
    """Write the copy of a job's vaults at the head into FOLDER, a folder for each node, as the job had it.

    Parity isn't in it: whoever goes on makes that anew. A program that is run by hand goes on from it with
    beo.checkpoint(..., folder="FOLDER/NODE/NAME").
    """
    from beo.bulk.copies import bring

    cluster = Cluster()
    for place in bring(cluster, _one(cluster, job), folder):
        print(place)


def _one(cluster: Cluster, job: str) -> m.JobDetail:
    selector.parse((job,))
    found = cluster.show((job,))
    if len(found) != 1:
        raise UsageError(f"{job} are {len(found)} jobs", "it is about one", "name one")
    return found[0]
