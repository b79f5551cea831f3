"""What the reading verbs share: their options, the rows of their tables, and what JSON says of a job."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from beo import messages as m
from beo import table, units
from beo.cli.group import option

Decorated = TypeVar("Decorated", bound=Callable[..., object])


def listing(function: Decorated) -> Decorated:
    """Give a verb the options --json, -q and --format, as `as_json`, `quiet` and `fields`."""
    for decorate in (
        option("--format", "fields", default="", metavar="COLS", help="Columns (id,name), or '{id} {name}'."),
        option("-q", "--quiet", is_flag=True, help="Print the first column only."),
        option("--json", "as_json", is_flag=True, help="Print a list of JSON objects."),
    ):
        function = decorate(function)
    return function


def show(
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[table.Column],
    fields: str,
    as_json: bool,
    quiet: bool,
    json_only: Sequence[str] = (),
) -> None:
    """Print rows as the options ask; `json_only` are keys that JSON has besides the columns."""
    if as_json and not fields:
        columns = [*columns, *map(table.Column, json_only)]
    width = os.get_terminal_size().columns if sys.stdout.isatty() else None
    sys.stdout.write(table.render(rows, columns, fields=fields, json=as_json, quiet=quiet, width=width))


def span(value: object) -> str:
    """Return a number of seconds as people read it, without fractions."""
    return units.format_duration(int(value)) if isinstance(value, (int, float)) else "-"


def moment(value: object) -> str:
    """Return seconds since 1970 as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value)) if isinstance(value, (int, float)) else "-"


JOB_COLUMNS = (
    table.Column("id"),
    table.Column("name"),
    table.Column("user"),
    table.Column("state"),
    table.Column("ranks"),
    table.Column("nodes"),
    table.Column("time", span),
    table.Column("reason"),
)
JOB_JSON_ONLY = ("attempt", "priority", "submitted_s", "started_s", "ended_s", "exit_code", "origin")


def tell_meant(views: Sequence[m.JobView], as_json: bool, quiet: bool) -> None:
    """Print the jobs that a verb was about, and the states that they are in now."""
    if as_json or quiet:
        show([job_row(view) for view in views], JOB_COLUMNS, "", as_json, quiet, JOB_JSON_ONLY)
    else:
        sys.stdout.writelines(f"job {view.id} {table.cell(view.state)}\n" for view in views)


def job_row(view: m.JobView) -> dict[str, object]:
    """Return one job as a row; times are seconds since 1970, `time` is how long it has run, and what isn't yet is None.

    `origin` says whose the exit code is: job, or beo where the job never came to an end of its own.
    """
    until_s = view.ended_s or time.time()
    return {
        "id": view.id,
        "name": view.name,
        "user": view.user,
        "state": view.state,
        "ranks": view.ranks,
        "nodes": view.nodes,
        "time": round(max(0.0, until_s - view.started_s), 3) if view.started_s else None,
        "reason": view.reason,
        "attempt": view.attempt,
        "priority": view.priority,
        "submitted_s": view.submitted_s,
        "started_s": view.started_s or None,
        "ended_s": view.ended_s or None,
        "exit_code": None if view.exit_code < 0 else view.exit_code,
        "origin": None if view.exit_code < 0 else view.code_by,
    }
