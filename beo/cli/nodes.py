"""The verbs about machines and what happened: nodes, gone, events."""

from __future__ import annotations

import sys

import click

from beo import table, units
from beo.cli.group import Verb, option
from beo.cli.tables import listing, moment, show
from beo.client import EVENTS_PAGE, Cluster

EVENTS_SHOWN = 50  # about a screenful

NODE_COLUMNS = (
    table.Column("name"),
    table.Column("state"),
    table.Column("slots"),
    table.Column("used"),
    table.Column("memory", lambda value: units.approximate_size(value) if isinstance(value, int) else "-"),
    table.Column("jobs"),
    table.Column("silent", lambda value: f"{value:.1f}s" if isinstance(value, float) else "-"),
    table.Column("facts", lambda value: table.cell([f"{k}={v}" for k, v in _pairs(value)])),
)
EVENT_COLUMNS = (
    table.Column("index"),
    table.Column("epoch"),
    table.Column("time", moment),
    table.Column("kind"),
    table.Column("job"),
    table.Column("node"),
    table.Column("text"),
)


def _pairs(value: object) -> list[tuple[str, str]]:
    return sorted(value.items()) if isinstance(value, dict) else []


@click.command(
    cls=Verb,
    examples=[("beo nodes", "all of them"), ("beo nodes --format name,state,jobs", "some columns")],
)
@listing
def nodes(fields: str, as_json: bool, quiet: bool) -> None:
    """List the nodes: how many slots each has and uses, and what runs there.

    A node is up, silent (not heard of for SILENT seconds) or lost. FACTS are what it found out about its machine: how
    well it holds a job's processes together, and how it limits their memory.
    """
    rows = [
        {
            "name": node.name,
            "state": node.state,
            "slots": node.slots,
            "used": node.used,
            "memory": node.mem_bytes,
            "jobs": node.jobs,
            "silent": node.silent_s,
            "facts": node.facts,
            "address": node.address,
            "incarnation": node.incarnation,
        }
        for node in Cluster().nodes()
    ]
    show(rows, NODE_COLUMNS, fields, as_json, quiet, ("address", "incarnation"))


@click.command(
    cls=Verb,
    examples=[("beo events -n 200", "the last 200"), ("beo events --job 7", "the life of one job")],
)
@option("-n", "count", type=click.IntRange(1, EVENTS_PAGE), help=f"So many, the last (default {EVENTS_SHOWN}).")
@option("--job", type=click.IntRange(1), help="Only those of one job, by default all of them.")
@listing
def events(count: int | None, job: int | None, fields: str, as_json: bool, quiet: bool) -> None:
    """List what happened to the cluster, from its journal, the newest last."""
    cluster = Cluster()
    found = cluster.events(limit=count or EVENTS_SHOWN) if job is None else cluster.history()
    rows = [
        {
            "index": event.index,
            "epoch": event.epoch,
            "time": event.time_s,
            "kind": event.kind,
            "job": event.job or None,
            "node": event.node,
            "text": event.text,
        }
        for event in found
        if job is None or event.job == job
    ]
    show(rows[-count:] if count else rows, EVENT_COLUMNS, fields, as_json, quiet)


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
