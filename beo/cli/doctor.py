"""The verb that looks for faults: doctor."""

from __future__ import annotations

import click

from beo import config, table
from beo.cli.group import Verb, option

FINDINGS_EXIT_MAX = 60  # exit codes from 64 on mean other things


@click.command(
    cls=Verb,
    examples=[
        ("beo doctor", "this machine, and the cluster that it belongs to"),
        ("beo doctor --json", "for a program"),
    ],
    exits=[(f"1-{FINDINGS_EXIT_MAX}", f"so many findings; {FINDINGS_EXIT_MAX} may be more")],
)
@option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
@option("-q", "--quiet", is_flag=True, help="Print nothing; the exit code tells.")
def doctor(as_json: bool, quiet: bool) -> int:
    """Look for what is wrong with this machine and with the cluster, and print for each finding what cures it.

    Here: walls for jobs, memory limits, disk, modes of keys, limits of processes, network, MPI. In the cluster: nodes
    that are silent and why, versions of beo, Python and MPI that differ, clocks that are off, and what the agents
    found on their own machines. The exit code is the number of findings.
    """
    from beo import diagnosis

    cases = diagnosis.all_cases(config.home())
    if as_json:
        from json import dumps

        rows = [
            {"where": c.where, "check": c.finding.check, "what": c.finding.what, "cure": c.finding.cure} for c in cases
        ]
        print(dumps(rows))
    elif not quiet:
        for case in cases:
            print(table.escape(f"{case.where}: {case.finding.what}: {case.finding.cure}"))
        print(f"{len(cases) or 'no'} finding{'s' * (len(cases) != 1)}")
    return min(len(cases), FINDINGS_EXIT_MAX)
