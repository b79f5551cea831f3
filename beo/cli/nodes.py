"""The verbs about machines: nodes, drain, resume, forget, gone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from beo import messages as m
from beo import table, units
from beo.cli.group import Verb, option
from beo.cli.tables import listing, show
from beo.client import Cluster

NODE_COLUMNS = (
    table.Column("name"),
    table.Column("state"),
    table.Column("slots"),
    table.Column("used"),
    table.Column("memory", lambda value: units.approximate_size(value) if isinstance(value, int) else "-"),
    table.Column("jobs"),
    table.Column("address", lambda value: str(value).rpartition(":")[0]),
    table.Column("version"),
    table.Column("walls"),
    table.Column("limit"),
    table.Column("criu"),
    table.Column("drain"),
    table.Column("why"),
)
NODE_JSON_ONLY = ("silent", "clock", "facts", "findings", "incarnation", "moving", "reserved")


@click.command(
    cls=Verb,
    examples=[("beo nodes", "all of them"), ("beo nodes --format name,state,jobs", "some columns")],
)
@listing
def nodes(fields: str, as_json: bool, quiet: bool) -> None:
    """List the nodes: how many slots each has and uses, and what runs there.

    A node is up, silent or lost, and WHY says so, or for whom it is reserved. One that was drained gets no new work: it
    is draining while jobs run there, then drained; DRAIN says by whom and why. VERSION is that of its beo. WALLS are
    how it holds a job's processes together: pidns and userns leave nothing behind, subreaper does its best. LIMIT is
    how it keeps to memory limits: by cgroups, or by looking (poll). CRIU is yes where programs can be moved that
    know nothing of it. What is wrong with a node tells 'beo doctor'.
    """
    show(list(map(_node_row, Cluster().nodes())), NODE_COLUMNS, fields, as_json, quiet, NODE_JSON_ONLY)


def _node_row(node: m.NodeView) -> dict[str, object]:
    return {
        "name": node.name,
        "state": node.state,
        "slots": node.slots,
        "used": node.used,
        "memory": node.mem_bytes,
        "jobs": node.jobs,
        "silent": node.silent_s,
        "drain": node.drain,
        "facts": node.facts,
        "address": node.address,
        "version": node.facts.get("version"),
        "walls": node.facts.get("contain"),
        "limit": node.facts.get("memory"),
        "criu": _moves(node.facts.get(m.CRIU)),
        "why": node.why or node.reserved or None,
        "clock": node.clock_s,
        "findings": [{"check": f.check, "what": f.what, "cure": f.cure} for f in node.findings],
        "incarnation": node.incarnation,
        "moving": node.moving,
        "reserved": node.reserved or None,
    }


def _moves(fact: str | None) -> str | None:
    return fact and ("yes" if fact == m.CRIU_WORKS else "no")


NODES = click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
AS_JSON = option("--json", "as_json", is_flag=True, help="Print the nodes as a list of JSON objects.")
QUIET = option("-q", "--quiet", is_flag=True, help="Print the names only.")


def _tell_meant(meant: Sequence[m.NodeView], as_json: bool, quiet: bool) -> None:
    if as_json or quiet:
        show(list(map(_node_row, meant)), NODE_COLUMNS, "", as_json, quiet, NODE_JSON_ONLY)
        return
    for node in meant:
        print(f"{table.escape(node.name)} {node.state}{_what_runs(node) if node.drain and node.jobs else ''}")


def _what_runs(node: m.NodeView) -> str:
    """What becomes of the jobs of a node that is being drained."""
    stay = [job for job in node.jobs if job not in node.moving]
    words = [
        f"job{'s' * (len(jobs) > 1)} {table.cell(jobs)} {what}"
        for jobs, what in (
            (node.moving, "goes on elsewhere" if len(node.moving) == 1 else "go on elsewhere"),
            (stay, "may end there"),
        )
        if jobs
    ]
    return f": {', '.join(words)}"


@click.command(
    cls=Verb,
    examples=[
        ("beo drain node03 --reason 'new disk'", "no new jobs for node03"),
        ("beo drain node[01-04]", "for these four"),
        ("beo nodes --format name,state,jobs", "see whether they are empty"),
    ],
)
@NODES
@option("--reason", default="", metavar="TEXT", help="Why, for who looks at 'beo nodes'.")
@AS_JSON
@QUIET
def drain(nodes: tuple[str, ...], reason: str, as_json: bool, quiet: bool) -> None:
    """Give nodes no new work, for as long as it takes: to update, repair or remove them.

    What runs there is asked to go on elsewhere: a program that takes checkpoints with beo takes one at its next safe
    point and goes on from there on other nodes, without losing a step. Any other may go on to its end where it is.

    NODE is a name or a set of them, like node[01-04]. They stay drained over restarts of the head and of the nodes
    themselves, until 'beo resume'. The nodes are printed: one on which nothing runs any more is 'drained'.
    """
    _tell_meant(Cluster().drain(",".join(nodes), reason), as_json, quiet)


@click.command(cls=Verb, examples=[("beo resume node[01-04]", "these take work again")])
@NODES
@AS_JSON
@QUIET
def resume(nodes: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Give nodes work again that were drained. NODE is a name or a set of them, like node[01-04]."""
    _tell_meant(Cluster().resume(",".join(nodes)), as_json, quiet)


@click.command(cls=Verb, examples=[("beo forget node07", "node07 was given away")])
@NODES
def forget(nodes: tuple[str, ...]) -> None:
    """Take lost nodes off the record. NODE is a name or a set of them, like node[01-04].

    It is refused while anything may still run there: then 'beo gone NODE' is to be said first. A node of that name may
    join again later.
    """
    Cluster().forget(",".join(nodes))


@click.command(cls=Verb, examples=[("beo gone node03", "node03 is switched off: run its jobs elsewhere")])
@click.argument("node")
@option("--yes", is_flag=True, help="Don't ask.")
def gone(node: str, yes: bool) -> None:
    """Declare that the machine of the silent node NODE is off, or will never run again what it ran.

    A job with --requeue confirm waits for its lost node's word that nothing of it still runs. This is the operator's
    word instead. If it is wrong, such a job may run twice at once: look first, then say it.
    """
    if not yes and sys.stdin.isatty():
        click.confirm(f"Is the machine of {node} off, or is it certain that nothing runs there?", abort=True, err=True)
    Cluster().gone(node)
