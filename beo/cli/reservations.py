"""The actions of reserve: create, list, show, cancel."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence

import click

from beo import messages as m
from beo import table, units
from beo.cli.group import Verb, option
from beo.cli.past import parse_date
from beo.cli.tables import listing, moment, span
from beo.cli.tables import show as print_rows
from beo.client import Cluster
from beo.errors import UsageError

_FORMS = "write it as now, 20:00, 2026-11-27, '2026-11-27 09:00', or how long from now: 2h"

COLUMNS = (
    table.Column("name"),
    table.Column("state"),
    table.Column("nodes"),
    table.Column("users"),
    table.Column("start", moment),
    table.Column("end", moment),
    table.Column("jobs"),
    table.Column("way"),
)
JSON_ONLY = ("user", "chosen", "kill", "slots", "missing", "in_the_way", "starts_in", "ends_in")

AS_JSON = option("--json", "as_json", is_flag=True, help="Print the reservations as a list of JSON objects.")
QUIET = option("-q", "--quiet", is_flag=True, help="Print the names only.")


@click.command(
    cls=Verb,
    examples=[
        ("beo reserve create -N 4 --start 20:00 --for 2h", "four nodes, which the head chooses"),
        ("beo reserve create --nodes node[01-04] --start '2026-12-01 09:00' --for 1d", "these four"),
        ("beo reserve create -N 2 --start 30m --for 8h --user ann,bob --name course", "for two others"),
        ("beo reserve create --nodes node07 --for 1h --kill", "at once, whatever runs there"),
    ],
    exits=[("75", "those nodes, or so many, can't be had then"), ("77", "only an admin can do that")],
)
@option("-N", "--count", type=int, default=0, metavar="NODES", help="So many nodes, which the head chooses.")
@option("--nodes", default="", metavar="NODE", help="These nodes, like node[01-04].")
@option("--start", default="now", show_default=True, metavar="TIME", help="When: 20:00, '2026-11-27 09:00', or in 2h.")
@option("--for", "long", required=True, metavar="DURATION", help="How long: 30m, 8h, 2d.")
@option("--user", "users", multiple=True, metavar="USERS", help="Whose jobs run there: ann,bob (default: your own).")
@option("--name", default="", metavar="NAME", help="What it is called (default: r1, r2 …).")
@option("--kill", is_flag=True, help="End what still runs there at the start; it is queued again.")
@AS_JSON
@QUIET
def create(
    count: int,
    nodes: str,
    start: str,
    long: str,
    users: tuple[str, ...],
    name: str,
    kill: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Reserve nodes, and print the reservation with what is in its way. For admins.

    With -N the head chooses those nodes where the least is disturbed: first those where nothing runs that reaches into
    it, then those whose jobs can be moved. When one of them is lost or drained, before or meanwhile, another takes its
    place, if there is one. Nodes that were named stay the same ones. No node has two reservations at one time.

    With --kill, what is still in the way at the start is ended and queued again, as 'beo requeue' does; a job that
    can't run twice (--requeue never, 'beo run') is cancelled. Without it, it may hold the reservation up.
    """
    if bool(nodes) == bool(count):
        raise UsageError("which nodes", "it is either so many or these", "say -N 4, or --nodes node[01-04]")
    start_s, after_s = parse_start(start, time.time())
    names = tuple(word.strip() for text in users for word in text.split(",") if word.strip())
    (made,) = Cluster().reserve(
        units.parse_duration(long),
        start_s=start_s,
        after_s=after_s,
        nodes=nodes,
        count=count,
        users=names,
        name=name,
        kill=kill,
    )
    if as_json or quiet:
        print_rows([_row(made)], COLUMNS, "", as_json, quiet, JSON_ONLY)
    else:
        _tell(made)


def parse_start(text: str, now_s: float) -> tuple[float, float]:
    """Return (seconds since 1970, 0), or (0, so many seconds from now), which the head's own clock counts."""
    if text == "now":
        return 0.0, 0.0
    clock = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text)
    if clock:
        year, month, day = time.localtime(now_s)[:3]
        today_s, tomorrow_s = (
            time.mktime((year, month, day + more, int(clock[1]), int(clock[2]), 0, 0, 0, -1)) for more in (0, 1)
        )
        return (today_s if today_s > now_s else tomorrow_s), 0.0
    found_s = parse_date(text)
    if found_s is not None:
        return found_s, 0.0
    try:
        if ":" not in text:  # 25:00 would be in 25 minutes, 20:00:00 in 20 hours
            return 0.0, units.parse_duration(text.removeprefix("+"))
    except UsageError:
        pass
    raise UsageError(f"{text[:80]!r} is no time to start", "", _FORMS)


NAMES = click.argument("names", nargs=-1, metavar="[RESERVATION...]")


@click.command(cls=Verb, name="list", examples=[("beo reserve list", "all of them"), ("beo reserve list -q", "names")])
@listing
def list_(fields: str, as_json: bool, quiet: bool) -> None:
    """List the reservations that aren't over, the next one first.

    STATE is planned, or on. JOBS are those of it that have not ended, WAY those of others that run on its nodes: what
    becomes of each tells 'beo reserve show'.
    """
    print_rows(list(map(_row, Cluster().reservations())), COLUMNS, fields, as_json, quiet, JSON_ONLY)


@click.command(cls=Verb, examples=[("beo reserve show night", "what is in its way, and what becomes of that")])
@NAMES
@AS_JSON
@QUIET
def show(names: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Tell everything about reservations; without a name, about all.

    Of each job that is in the way it is told whether it will be asked to move, was asked, or may hold the reservation
    up, and for how long: to its time limit, or to its own end where it has none.
    """
    found = Cluster().reservations(names)
    if as_json or quiet:
        print_rows(list(map(_row, found)), COLUMNS, "", as_json, quiet, JSON_ONLY)
        return
    for one in found:
        _tell(one)


@click.command(cls=Verb, examples=[("beo reserve cancel night", "its nodes are everybody's again")])
@click.argument("names", nargs=-1, required=True, metavar="RESERVATION...")
@AS_JSON
@QUIET
def cancel(names: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """End reservations, planned or on: their nodes take any work again. For admins.

    Their jobs are like any others then: those that run go on, those that wait stay in the queue.
    """
    gone = Cluster().cancel_reservations(names)
    if as_json or quiet:
        print_rows(list(map(_row, gone)), COLUMNS, "", as_json, quiet, JSON_ONLY)
        return
    sys.stdout.writelines(f"reservation {one.name} is cancelled\n" for one in gone)


def _tell(one: m.ReservationView) -> None:
    when = f"in {span(max(0.0, one.starts_in_s))}" if one.state == "planned" else f"for {span(one.ends_in_s)} more"
    lines = [
        f"reservation {one.name} is {one.state}, {when}",
        f"  nodes  {one.nodes} ({one.slots} slots)" + (", chosen by the head" if one.chosen else ""),
        f"  time   {moment(one.start_s)} to {moment(one.end_s)}",
        f"  users  {table.escape(', '.join(one.users))}",
        f"  made   by {table.escape(one.user)}" + (", to end what is in the way" if one.kill else ""),
    ]
    if one.missing:
        lines.append(f"  gone   {one.missing}: lost or drained")
    if one.jobs:
        lines.append(f"  jobs   {table.cell(one.jobs)}")
    lines += [f"  way    job {way.job} on {way.nodes} {way.why}" for way in one.in_the_way]
    print("\n".join(lines))


def _row(one: m.ReservationView) -> dict[str, object]:
    ways: Sequence[m.InTheWay] = one.in_the_way
    return {
        "name": one.name,
        "state": one.state,
        "nodes": one.nodes,
        "users": one.users,
        "start": one.start_s,
        "end": one.end_s,
        "jobs": one.jobs,
        "way": tuple(way.job for way in ways),
        "user": one.user,
        "chosen": one.chosen,
        "kill": one.kill,
        "slots": one.slots,
        "missing": one.missing or None,
        "in_the_way": [{"job": way.job, "nodes": way.nodes, "why": way.why} for way in ways],
        "starts_in": one.starts_in_s,
        "ends_in": one.ends_in_s,
    }
