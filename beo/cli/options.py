"""The options that make a job, on a command line and on the `#BEO` lines of a script, and the spec that they give."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from beo import spec
from beo.cli.group import in_our_words, option
from beo.client import Cluster
from beo.contact import tell
from beo.errors import BeoError, UsageError
from beo.submission import new_spec

Decorated = TypeVar("Decorated", bound=Callable[..., object])

# Options stop at the first word of the command, whose own they would be.
STOP_AT_COMMAND: dict[str, Any] = {"allow_interspersed_args": False, "ignore_unknown_options": False}
ADDED_UP = ("env", "inputs", "outputs")
ONLY_TYPED = ("key", "pty", "command")  # what belongs to one call: a script is submitted many times, from anywhere

_DIRECTIVE = re.compile(rb"^\s*#BEO(\s|$)", re.MULTILINE)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def job_options(requeue: spec.Requeue) -> Callable[[Decorated], Decorated]:
    """Give a verb the options of a job, with this default for --requeue, and the words of its command."""
    options = (
        option("-n", "--ranks", type=int, default=1, metavar="RANKS", help="Processes of the job."),
        option("-N", "--nodes", type=int, default=0, metavar="NODES", help="Exactly so many nodes."),
        option("-c", "--cpus", type=int, default=1, metavar="CPUS", help="Slots per rank."),
        option(
            "--slots", type=int, default=0, metavar="N", help="Slots of the whole job, if more than its ranks take."
        ),
        option("--mem", default="", metavar="SIZE", help="Memory per rank, reserved and the limit (512M, 4GiB)."),
        option("-t", "--time", "time_limit", default="", metavar="TIME", help="End it after 90 (s), 30m, 1h30m."),
        option("-J", "--name", default="", metavar="NAME", help="The job's name."),
        option("-o", "--output", default="", metavar="FILE", help="Also write stdout there; %j is the job's id."),
        option("-e", "--error", default="", metavar="FILE", help="Write stderr there instead."),
        option("--env", multiple=True, metavar="K=V", help="Set a variable, besides those of this shell."),
        option("--in", "inputs", multiple=True, metavar="FILE", help="Take a file or folder along, as it is now."),
        option("--out", "outputs", multiple=True, metavar="PATTERN", help="Keep such files when it ends: 'results/*'."),
        option("--chdir", default="", metavar="DIR", help="Run in DIR, not here; files are taken from there."),
        option(
            "--requeue",
            type=click.Choice(["auto", "confirm", "never"]),
            default=requeue,
            show_default=True,
            help="When a node is lost, run again: at once (it must bear being cut off), once it is certain that "
            "nothing of it still runs, or never.",
        ),
        option(
            "--signal",
            "notice",
            default="",
            metavar="SIG[@TIME]",
            help="Send it TIME (60 s) before the time is up, and when the job is to go on elsewhere: 'USR1@90'.",
        ),
        option(
            "--continue",
            "goes_on",
            is_flag=True,
            help="When the time is up, halt at a last checkpoint and go on as another attempt, until it is done.",
        ),
        option(
            "--movable",
            is_flag=True,
            help="It takes no checkpoints: let CRIU move it, when its node is drained (one process and its children).",
        ),
        option(
            "--migratable",
            is_flag=True,
            help="Experimental: as --movable, but for an MPI program of several ranks.",
        ),
        option("--reservation", default="", metavar="RESERVATION", help="Run on its nodes, while it is on."),
        option("--priority", type=int, default=0, metavar="N", help="Higher goes first."),
        option("--key", default="", metavar="KEY", help="Submitting again under a key gives the same job."),
        click.argument("command", nargs=-1, metavar="CMD...", type=click.UNPROCESSED),
    )

    def decorate(function: Decorated) -> Decorated:
        for add in reversed(options):
            function = add(function)
        return function

    return decorate


def spec_of(
    context: click.Context, *, stdin: bool = False, attached: bool = False, terminal: tuple[int, int] | None = None
) -> spec.JobSpec:
    """Return the spec that a command line asks for, with the script's `#BEO` lines below it.

    Raises `UsageError` that names the option, or the script, at fault.
    """
    words: tuple[str, ...] = context.params["command"]
    if not words:
        raise UsageError("no command", "a job needs a program to run", f"put it last: {context.command_path} CMD ...")
    script = script_text(words[0])
    if script:
        try:
            _take_directives(context, script)
        except (BeoError, click.ClickException) as error:
            text = in_our_words(error) if isinstance(error, click.ClickException) else str(error)
            raise UsageError(f"the #BEO lines of {words[0]}: {text}") from None
    asked = context.params
    return new_spec(
        words,
        ranks=asked["ranks"],
        nodes=asked["nodes"],
        cpus=asked["cpus"],
        slots=asked["slots"],
        mem=asked["mem"] or 0,
        time_limit=asked["time_limit"] or 0.0,
        name=asked["name"],
        env=dict(map(variable, asked["env"])),
        cwd=asked["chdir"],
        requeue=asked["requeue"],
        priority=asked["priority"],
        output=asked["output"],
        errors=asked["error"],
        script=script,
        stdin=stdin,
        attached=attached,
        terminal=terminal,
        outputs=asked["outputs"],
        signal=asked["notice"],
        goes_on=asked["goes_on"],
        movable=asked["movable"],
        reservation=asked["reservation"],
        migratable=asked["migratable"],
    )


def with_inputs(cluster: Cluster, job: spec.JobSpec, inputs: tuple[str, ...]) -> spec.JobSpec:
    """Return the spec with the files along that a command line names."""
    if not inputs:
        return job
    from beo.bulk.taking import take_along  # here: most jobs take none along, and what this loads takes its time

    return take_along(cluster, job, inputs)


def variable(text: str) -> tuple[str, str]:
    """Divide the word of an --env; raises `UsageError` where it sets nothing."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--env {text!r} sets nothing", "", "write it as NAME=VALUE")
    return key, value


def script_text(path: str) -> str:
    """Return the text of a script with `#BEO` lines, or "" where the word names anything else: a program."""
    if not os.path.isfile(path):
        return ""
    with open(path, "rb") as file:
        data = file.read(spec.SCRIPT_SIZE_MAX_BYTES + 1)
    if not _DIRECTIVE.search(data):
        return ""
    if data.startswith(_BYTE_ORDER_MARK):
        raise UsageError(f"{path} begins with a byte order mark", "no kernel takes it for a script", "save it without")
    if not data.startswith(b"#!"):
        if b"\0" in data:
            return ""  # a program that has such bytes in it
        raise UsageError(f"{path} has #BEO lines but no '#!' line", "", "begin it with the line '#!/bin/sh'")
    if b"\r" in data[: data.find(b"\n")]:
        why = "no interpreter is named so"
        raise UsageError(f"{path} has the line ends of Windows", why, f"sed -i 's/\\r$//' {shlex.quote(path)}")
    if len(data) > spec.SCRIPT_SIZE_MAX_BYTES:
        why = f"it has over {spec.SCRIPT_SIZE_MAX_BYTES} bytes"
        raise UsageError(f"{path} is too long for a script with #BEO lines", why, "call a program from it")
    try:
        return data.decode()  # a NUL in it is complained about by spec.check
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is none"
        raise UsageError(f"{path} has #BEO lines but is not UTF-8", why, "save it as UTF-8") from None


def _take_directives(context: click.Context, text: str) -> None:
    """Add what the script asks for to the options of the command line, which win."""
    words = spec.script_directives(text)
    if not words:
        tell(f"{context.params['command'][0]}: #BEO lines below the first command count for nothing")
        return
    if help_option := set(words) & {"-h", "--help"}:
        raise UsageError(f"{help_option.pop()} asks for help", "", "leave it out")
    inner = type(context)(context.command, context.parent, context.info_name)
    context.command.parse_args(inner, [*words])
    if inner.params["command"]:
        raise UsageError(f"{inner.params['command'][0]!r} is no option", "", "the command comes below, in the script")
    for name, value in inner.params.items():
        if inner.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        if name in ONLY_TYPED:
            raise UsageError(f"--{name} belongs on the command line")
        if name in ADDED_UP:
            context.params[name] = (*value, *context.params[name])  # of two variables the later one wins
        elif context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            context.params[name] = value
