"""The action ha orphans."""

from __future__ import annotations

import pwd
import sys
from pathlib import Path

import click
import msgspec

from beo import config, table
from beo import messages as m
from beo.cli.group import Verb, option
from beo.cli.tables import listing, moment, show
from beo.client import Cluster
from beo.errors import BeoError, reason
from beo.events import Event, Submitted
from beo.ha import orphans as kept
from beo.ha.orphans import Orphan
from beo.tree import orphans as file_orphans
from beo.tree import wiped

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
        ("beo ha orphans --files /tmp/found", "copy the files among it to there, as that head had them"),
    ],
    exits=[("1", "something could not be submitted again")],
)
@option("--resubmit", is_flag=True, help="Submit the jobs again under their keys: what the cluster has stays as it is.")
@option("--files", "to", default="", metavar="DIR", help="Copy the files to DIR, each under its path in the tree.")
@option("--all", "every", is_flag=True, help="List all entries, and what was never acknowledged of files.")
@listing
def orphans(resubmit: bool, to: str, every: bool, fields: str, as_json: bool, quiet: bool) -> int:
    """List what a head of this machine had in its journal and the cluster has not, since the other head went on.

    At levels B and C nothing of it was acknowledged; at level A the newest submissions may have been. FATE is the job
    that a submission is now: with --resubmit, which an admin may say, each is submitted again under its own key and for
    its own user, so that one that came otherwise meanwhile is not run twice. A file of head/orphans/ whose
    submissions are all with the cluster is named .done then.

    Below stand changes of the tree of files, by path: KIND is what was done, USER whose file it is. The head kept these
    files as it had them, up to 256 MiB of each cut in head/tree/orphans/; with --files they are copied to DIR, of which
    nothing that is there is overwritten, and a list that was copied is named .done. Nothing of them goes back into
    the tree by itself: look at them, and 'beo put' what is wanted.
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
    for one in (home, home.second):
        for line in wiped.look(one.path, one.head):
            print(line, file=sys.stderr)
        for path in _lists(one.head / "tree" / "orphans", every):
            rows += _file_rows(path, Path(to) if to else None)
    show(rows, ORPHAN_COLUMNS, fields, as_json, quiet, ("epoch", "file"))
    return int(failed)


def _lists(folder: Path, every: bool) -> list[Path]:
    """The lists of changes of files in a folder: of what may have been acknowledged, or all."""
    return file_orphans.files(folder) + (file_orphans.files(folder, file_orphans.UNSAID) if every else [])


def _file_rows(path: Path, to: Path | None) -> list[Row]:
    """The rows of a list of changes; their files are copied to a folder, if there is one."""
    found = file_orphans.read(path)
    brought = {}
    if to is not None:
        try:
            brought = file_orphans.bring_out(path, found, to)
        except OSError as error:
            raise BeoError(f"the files of {path} can't be copied to {to}", reason(error), "look at both") from None
        path.rename(path.with_name(path.name + DONE))
    rows: list[Row] = []
    for one in found:
        fate = brought.get(one.content)
        notes = [*([fate] if fate else []), *([] if one.whole else ["in part"]), *([] if one.sure else ["or not lost"])]
        rows.append(
            {
                "index": one.index,
                "kind": one.what,
                "user": _user(one.uid),
                "name": one.path,
                "key": None,
                "when": one.time_s,
                "fate": ", ".join(notes) or None,
                "epoch": one.epoch,
                "file": str(path),
            }
        )
    return rows


def _user(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name if uid >= 0 else None
    except KeyError:
        return str(uid)


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
