"""The action ha import: from Heartbeat's files to a beo.toml."""

from __future__ import annotations

import os
import sys

import click

from beo.cli.group import Verb, option
from beo.errors import Conflict, UsageError, reason
from beo.table import escape


@click.command(
    cls=Verb,
    name="import",
    examples=[
        ("beo ha import /etc/ha.d", "see what would become of it"),
        ("beo ha import server1 server2 -o beo.toml", "of both nodes' files, which ought to be the same"),
        ("beo ha import ha.cf haresources drbd0", "of these files"),
    ],
    exits=[("75", "the file of -o is there already")],
)
@click.argument("paths", nargs=-1, required=True, metavar="FOLDER...")
@option("-o", "--output", metavar="FILE", help="Write the settings there, not to standard output.")
@option("--json", "as_json", is_flag=True, help="Print one JSON object: the settings, and what became of each line.")
@option("-q", "--quiet", is_flag=True, help="Tell of warnings only.")
def import_(paths: tuple[str, ...], output: str | None, as_json: bool, quiet: bool) -> None:
    """Make a beo.toml of Heartbeat's ha.cf, haresources and authkeys, and of DRBD's drbd0.

    A FOLDER has those files of one node; where two nodes' files differ, the first one's count. For each line it is
    told, on standard error, what became of it: it was taken, it was left as there is nothing like it in beo, or
    something is wrong with it. Nothing else is changed: the file is for you to look through, and for BEO_DIR.
    """
    from beo.ha import importing, sources

    nodes = sources.gather(paths)
    imported = importing.convert(nodes, sources.find_script)
    text = importing.toml(imported, paths)
    if as_json:
        import json

        notes = [note._asdict() for note in imported.notes]
        print(json.dumps({"toml": text, "notes": notes}))
    else:
        for note in imported.warnings if quiet else imported.notes:
            print(escape(str(note)), file=sys.stderr)
    if output is not None:
        _write(output, text)
    elif not as_json:
        print(text, end="")


def _write(path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise Conflict(
            f"{path} is there already", "", "move it aside, or add to it what this prints without -o"
        ) from None
    except OSError as error:
        raise UsageError(f"can't write {path}", reason(error), "name another file") from None
    with open(fd, "w") as file:
        file.write(text)
