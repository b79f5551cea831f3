"""The verb man: the manual, made from the same source as `--help`."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click

import beo
from beo.cli.group import (
    ENVIRONMENT,
    ENVIRONMENT_OF_ALL,
    EXIT_CODES,
    FILES,
    VERBS,
    Actions,
    Verb,
    exit_rows,
    families,
    group,
    option,
)
from beo.errors import NotFound, UsageError, reason

SECTION = 1  # programs for users
LINE_LENGTH = 80  # of the source: mandoc(1) complains of longer ones
ABOUT_BEO = """
beo turns a pile of plain computers into one machine that doesn't lose work. A head serves and schedules, workers run
the ranks of jobs, and whatever 'beo submit' has acknowledged exists, runs and is reported, also when the head, an agent
or a whole worker is killed in the middle.

'beo up' makes a cluster of this machine; 'beo head' and 'beo worker' make one of several. 'beo run' behaves as if the
program ran here, 'beo submit' returns at once.

A job is named by its id. Where a verb takes jobs, '1-3' means several, 'last' the newest and 'all' all of them. Nodes
are named one by one or as a set, like node[01-04].
"""


@click.command(
    cls=Verb,
    examples=[
        ("beo man", "the page of beo as a whole"),
        ("beo man submit", "that of one command"),
        ("beo man --write ~/.local/share/man/man1", "for 'man beo' and 'man beo-submit'"),
    ],
)
@click.argument("command", default="")
@option("--write", "folder", metavar="DIR", help="Write all pages into that folder, and print how many.")
def man(command: str, folder: str | None) -> int:
    """Show the manual's page of COMMAND, or of beo as a whole.

    It is shown by man(1); where that is missing, as plain text.
    """
    if folder is not None:
        if command:
            raise UsageError(f"--write writes all pages, not {command!r} alone", "", "leave one of the two out")
        return _write(Path(folder))
    if command and command not in VERBS:
        raise NotFound.among("command", command, VERBS, "see 'beo --help'")
    from shutil import which

    program = which("man")
    if program is None:
        print(_context(command).get_help())
        return 0
    import subprocess

    sys.stdout.flush()
    done = subprocess.run([program, "-l", "-"], input=page(command).encode(), check=False)
    return 0 if done.returncode == -13 else done.returncode  # its reader has seen enough


def _write(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for verb in ("", *VERBS):
            (folder / f"{_title(verb)}.{SECTION}").write_text(page(verb), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't write into {folder}", reason(error), "name another folder") from None
    print(f"{len(VERBS) + 1} pages in {folder}")
    return 0


def _context(verb: str) -> click.Context:
    top = click.Context(group, info_name="beo", max_content_width=100)
    command = group.get_command(top, verb) if verb else None
    return click.Context(command, info_name=verb, parent=top) if command else top


def _title(verb: str) -> str:
    return f"beo-{verb}" if verb else "beo"


def page(verb: str) -> str:
    """Return the page of a verb, or with "" of beo itself, as roff with the macros of man(7)."""
    return "\n".join(_lines(verb)) + "\n"


def _lines(verb: str) -> Iterator[str]:
    context = _context(verb)
    command = context.command
    title = _title(verb)
    day = time.strftime("%Y-%m-%d", time.gmtime(os.stat(beo.__file__).st_mtime))
    yield f'.TH {_text(title.upper())} {SECTION} {day} "beo {beo.__version__}" "beo manual"'
    yield ".SH NAME"
    yield f"{_text(title)} \\- {_text(VERBS[verb][1] if verb else 'a cluster of plain computers, used as one')}"
    yield ".SH SYNOPSIS"
    pieces = command.collect_usage_pieces(context)
    yield _bold(f"beo {verb}".strip())
    yield " ".join(map(_values, pieces))
    yield ".SH DESCRIPTION"
    yield from _paragraphs((command.help or "") if verb else ABOUT_BEO)
    if not verb:
        for family, names in families():
            yield f'.SH "{_text(family.upper())}"'
            yield from _records((_bold(f"beo {name}"), VERBS[name][1]) for name in names)
    if isinstance(command, Actions):
        yield ".SH ACTIONS"
        yield from _records((_bold(f"beo {verb} {name}"), what) for name, (_, _, what) in command.actions.items())
    yield ".SH OPTIONS"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
            yield from _records([(_option(record[0]), record[1])])
    if isinstance(command, Verb):
        yield ".SH EXAMPLES"
        yield from _records((_bold(example), what) for example, what in command.examples)
    yield '.SH "EXIT STATUS"'
    codes = exit_rows(command.exits) if isinstance(command, Verb) else EXIT_CODES
    yield from _records((_bold(code), what) for code, what in codes)
    yield ".SH ENVIRONMENT"
    yield from _records((_bold(name), what) for name, what in (ENVIRONMENT if verb else ENVIRONMENT_OF_ALL))
    yield ".SH FILES"
    yield from _records((f"\\fI{_text(name)}\\fR", what) for name, what in FILES)
    yield '.SH "SEE ALSO"'
    yield _references(_related(verb))


def _references(verbs: Sequence[str]) -> str:
    ends = [","] * (len(verbs) - 1) + [""]
    return "\n".join(f".BR {_text(_title(verb))} ({SECTION}){end}" for verb, end in zip(verbs, ends, strict=True))


def _related(verb: str) -> list[str]:
    """Return the verbs of the same family, behind beo itself; of beo all verbs."""
    if not verb:
        return list(VERBS)
    return ["", *next(([n for n in names if n != verb] for _, names in families() if verb in names), [])]


def _records(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, text in rows:
        yield ".TP"
        yield term
        yield from _prose(text)


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield from _prose(paragraph)


def _option(term: str) -> str:
    """Set `-n, --ranks RANKS`: what is typed as it stands is bold, what stands for something else is italic."""
    return ", ".join(
        " ".join([_bold(name), *([_values(value)] if value else [])])
        for name, _, value in (part.partition(" ") for part in term.split(", "))
    )


def _values(text: str) -> str:
    return re.sub(r"[A-Z][A-Z:=]*", lambda match: f"\\fI{match[0]}\\fR", _text(text))


def _bold(text: str) -> str:
    return f"\\fB{_text(text)}\\fR"


def _text(text: str) -> str:
    """Escape what roff would take for its own."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return text.replace("~", "\\(ti").replace("^", "\\(ha").replace('"', "\\(dq")


def _prose(text: str) -> Iterator[str]:
    """Yield the lines of a paragraph; none may be long, nor begin as a request does."""
    line = ""
    for word in map(_text, text.split()):
        if line and len(line) + len(word) >= LINE_LENGTH:
            yield line
            line = ""
        line = f"{line} {word}" if line else f"\\&{word}" if word[0] in ".'" else word
    yield line
