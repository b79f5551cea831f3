"""The action ha orphans."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from beo import config, table
from beo import messages as m
from beo.cli.group import Verb, option
from beo.cli.tables import listing, moment, show
from beo.client import Cluster
from beo.errors import BeoError
from beo.events import Event, Submitted
from beo.ha import orphans as kept
from beo.ha.orphans import Orphan

DONE = ".done"  # behind the name of a file whose submissions are all with the cluster
ORPHAN_COLUMNS = (
    table.Column("index"),
    table.Column("kind"),
    table.Column("user"),
    table.Column("name"),
    table.Column("key"),
    table.Column("when", moment),
    table.Column("fate"),
)


@click.command(
    cls=Verb,
    examples=[
        ("beo ha orphans", "what this machine's head had alone"),
        ("beo ha orphans --resubmit", "submit the jobs among it again, each once"),
    ],
    exits=[("1", "something could not be submitted again")],
)
@option("--resubmit", is_flag=True, help="Submit the jobs again under their keys: what the cluster has stays as it is.")
@option("--all", "every", is_flag=True, help="List all entries, not the submissions alone.")
@listing
def orphans(resubmit: bool, every: bool, fields: str, as_json: bool, quiet: bool) -> int:
    """List what a head of this machine had in its journal and the cluster has not, since the other head went on.

    At levels B and C nothing of it was acknowledged; at level A the newest submissions may have been. FATE is the job
    that a submission is now: with --resubmit, which an admin may say, each is submitted again under its own key and for
    its own user, so that one that came otherwise meanwhile is not run twice. A file of head/orphans/ whose
    submissions are all with the cluster is named .done then.
    """
    home = config.home()
    rows: list[Row] = []
    failed = False
    with Cluster() as cluster:
        for one in (home, home.second):
            for path in kept.files(one.head / "orphans"):
                found, whole = _rows(cluster, path, resubmit, every)
                rows += found
                failed = failed or not whole
                if resubmit and whole:
                    path.rename(path.with_name(path.name + DONE))
    show(rows, ORPHAN_COLUMNS, fields, as_json, quiet, ("epoch", "file"))
    return int(failed)


Row = dict[str, object]


def _rows(cluster: Cluster, path: Path, resubmit: bool, every: bool) -> tuple[list[Row], bool]:
    """The rows of a file, and whether all submissions in it are with the cluster."""
    rows: list[Row] = []
    whole = True
    for orphan in kept.read(path):
        event = _event(orphan)
        submitted = event if isinstance(event, Submitted) else None
        fate: object = None
        if submitted and resubmit:
            fate, taken = _submit(cluster, submitted)
            whole = whole and taken
        if submitted or every:
            rows.append(
                {
                    "index": orphan.index,
                    "kind": orphan.kind,
                    "user": getattr(event, "user", None),
                    "name": (submitted.spec.name or submitted.spec.argv[0]) if submitted else None,
                    "key": submitted.key if submitted else None,
                    "when": getattr(event, "time_s", orphan.time_s),
                    "fate": fate,
                    "epoch": orphan.epoch,
                    "file": str(path),
                }
            )
    return rows, whole


def _event(orphan: Orphan) -> Event | None:
    try:
        return orphan.event
    except (msgspec.MsgspecError, ValueError):  # of a later beo
        return None


def _submit(cluster: Cluster, event: Submitted) -> tuple[str, bool]:
    wish = m.Submit(event.key, event.spec, event.uid, event.gid, event.groups, event.hold, event.user)
    try:
        answer = cluster.request(wish)
    except BeoError as error:
        return str(error), False
    return (f"job {answer.job}", True) if isinstance(answer, m.SubmittedIs) else (type(answer).__name__, False)
