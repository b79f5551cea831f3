"""The command line's frame: which verbs there are, how they are loaded, how their help reads, how errors are told."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, TypeVar

import click

import beo
from beo.errors import EXIT_FAILED, EXIT_INTERNAL, EXIT_OK, EXIT_USAGE, BeoError, NotFound, reason
from beo.table import escape

Decorated = TypeVar("Decorated", bound=Callable[..., object])

# Verb -> the module of beo.cli that holds it, and its line in `beo --help`, which loads none of them.
VERBS = {
    "up": ("admin", "start a cluster on this machine"),
    "down": ("admin", "stop this machine's cluster"),
    "head": ("machines", "make this machine a head of several"),
    "token": ("machines", "let a machine or a person join"),
    "worker": ("machines", "make this machine a worker"),
    "witness": ("machines", "let this machine vote for two heads"),
    "login": ("machines", "use a cluster elsewhere from here"),
    "run": ("run", "run a program on the cluster as if it were here"),
    "submit": ("submit", "hand in a job and return at once"),
    "queue": ("jobs", "list jobs"),
    "show": ("jobs", "tell everything about jobs, and why one waits"),
    "wait": ("jobs", "wait until jobs ended"),
    "logs": ("logs", "print what a job wrote"),
    "cancel": ("jobs", "end jobs"),
    "hold": ("change", "let jobs that wait not start"),
    "release": ("change", "let held jobs start"),
    "requeue": ("change", "run jobs again"),
    "migrate": ("change", "have jobs go on elsewhere"),
    "ckpt": ("ckpt", "look after the checkpoints of jobs"),
    "set": ("change", "change jobs that wait"),
    "ps": ("processes", "list the processes of jobs"),
    "top": ("top", "watch nodes, jobs and processes"),
    "kill": ("processes", "send a signal to jobs, ranks or processes"),
    "ls": ("files", "list files of the tree"),
    "cat": ("files", "print files of the tree"),
    "put": ("files", "copy files into the tree"),
    "get": ("files", "copy files out of the tree"),
    "cp": ("cp", "copy files from and to a node's disk"),
    "mkdir": ("files", "make directories in the tree"),
    "mv": ("files", "move files of the tree"),
    "rm": ("files", "remove files of the tree"),
    "df": ("files", "tell how much room the tree has"),
    "mount": ("mount", "show the tree as a folder of this machine"),
    "umount": ("mount", "take that folder's tree away again"),
    "nodes": ("nodes", "list the nodes"),
    "drain": ("nodes", "give nodes no new work"),
    "resume": ("nodes", "give drained nodes work again"),
    "reserve": ("reserve", "reserve nodes for some users at some time"),
    "node": ("node", "look after machines that boot from the heads"),
    "boot": ("boot", "let machines boot from this head"),
    "console": ("node", "print what such a machine has said"),
    "image": ("image", "make what machines without a disk boot"),
    "events": ("past", "list what happened, from the journal"),
    "history": ("past", "list what ended jobs took"),
    "gone": ("nodes", "declare a silent node's machine to be off"),
    "forget": ("nodes", "take lost nodes off the record"),
    "ha": ("ha", "look after two heads that act as one"),
    "users": ("users", "list who may use the cluster, or take somebody's keys"),
    "doctor": ("doctor", "look for what is wrong, and what cures it"),
    "info": ("admin", "tell which cluster answers"),
    "man": ("man", "show or write the manual"),
    "completion": ("completion", "print what makes Tab complete command lines"),
    "resident": ("resident", "tell of the process that makes verbs quick, or end it"),
}

# What the verbs are for, in the order in which a newcomer meets them; in `beo --help` and the manual.
FAMILIES = {
    "Run programs": "run submit",
    "Jobs": "queue show wait logs cancel hold release requeue migrate ckpt set kill ps top history",
    "Files of all nodes": "ls cat put get cp mkdir mv rm df mount umount",
    "Nodes": "nodes drain resume reserve gone forget",
    "Machines without a disk": "boot image node console",
    "Clusters": "up down info events doctor users",
    "Clusters of several machines": "head ha token worker witness login",
    "beo itself": "man completion resident",
}

EXIT_CODES = (
    ("0", "done"),
    ("2", "the request is wrong: an unknown option, job or node"),
    ("69", "no head answers"),
    ("75", "not now: try again later"),
    ("77", "refused: not yours, or the key is not known"),
    ("130", "interrupted"),
)
ENVIRONMENT = (("BEO_DIR", "the cluster's folder (default: ~/.beo, or /var/lib/beo)"),)
ENVIRONMENT_OF_ALL = (
    *ENVIRONMENT,
    ("BEO_RESIDENT", "0: do without the resident process (see 'beo resident --help')"),
    ("BEO_TRACE", "1: print where in beo's own code a fault was"),
)
FILES = (
    ("~/.beo", "the cluster's folder, where BEO_DIR names no other"),
    ("~/.beo/beo.toml", "its settings; none is needed"),
    ("~/.beo/cluster.json", "who the cluster is, and where its head answers"),
    ("~/.beo/keys", "by which head and users know each other"),
)


class Option(click.Option):
    """An option whose help is one line as it stands: click would load `inspect` to clean it, which takes long."""

    def __init__(self, *args: object, help: str, **kwargs: object) -> None:
        """Take what click.Option takes."""
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.help = help

    def make_metavar(self, ctx: click.Context) -> str:
        """Return the word that stands for the value: N for a number."""
        if self.metavar is None and isinstance(self.type, (click.types.IntParamType, click.types.FloatParamType)):
            return "N"
        return super().make_metavar(ctx)

    def get_help_extra(self, ctx: click.Context) -> click.types.OptionHelpExtra:
        """Return what is added to the help: a range in words."""
        extra = super().get_help_extra(ctx)
        if "range" in extra and isinstance(self.type, click.IntRange):
            low, high = self.type.min, self.type.max
            extra["range"] = f"{low} to {high}" if high is not None and low is not None else f"at least {low}"
        return extra


def families() -> list[tuple[str, list[str]]]:
    """Return the verbs by what they are for; one that no family has comes last."""
    found = [(title, [name for name in names.split() if name in VERBS]) for title, names in FAMILIES.items()]
    others = VERBS.keys() - {name for _, names in found for name in names}
    return found + ([("Others", sorted(others))] if others else [])


def option(*names: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
    """Decorate a verb with an `Option`."""
    return click.option(*names, cls=Option, **attributes)


def _help_option() -> Option:
    def tell(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted and not context.resilient_parsing:
            print(context.get_help())
            context.exit()

    return Option(["-h", "--help"], is_flag=True, is_eager=True, expose_value=False, callback=tell, help="Print this.")


class Verb(click.Command):
    """A verb whose help reads like a page of the manual.

    `examples` are (command, what it does), `exits` are exit codes besides those that all verbs have.
    """

    def __init__(
        self,
        *args: object,
        examples: Sequence[tuple[str, str]] = (),
        exits: Sequence[tuple[str, str]] = (),
        **kwargs: object,
    ) -> None:
        """Take what click.Command takes, and the further sections."""
        super().__init__(*args, **{**kwargs, "add_help_option": False})  # type: ignore[arg-type]
        self.params.append(_help_option())
        self.examples = examples
        self.exits = exits

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; a complaint of the parser itself, which forgets to name the verb, names it."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections below the options."""
        for title, rows in (
            ("Examples", self.examples),
            ("Exit codes", exit_rows(self.exits)),
            ("Environment", ENVIRONMENT),
        ):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(list(rows), col_max=44)


class Actions(Verb, click.Group):
    """A verb with actions: `beo VERB ACTION ...`, each a `Verb` in a module that is imported when it is called.

    `actions` is a table like `VERBS`: action -> module of beo.cli, name in it, and the line in the help.
    """

    def __init__(self, *args: object, actions: Mapping[str, tuple[str, str, str]], **kwargs: object) -> None:
        """Take what Verb takes, and the table."""
        super().__init__(*args, **{"subcommand_metavar": "ACTION ...", **kwargs})  # type: ignore[arg-type]
        self.actions = actions

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the actions, in the order of the table."""
        return list(self.actions)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return one action; raises `NotFound` with the nearest ones for an unknown word."""
        if name not in self.actions:
            raise NotFound.among("action", name, self.actions, f"see '{ctx.command_path} --help'")
        module, attribute, _ = self.actions[name]
        command = getattr(import_module(f"beo.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the actions from the table."""
        with formatter.section("Actions"):
            formatter.write_dl([(name, text) for name, (_, _, text) in self.actions.items()])


def exit_rows(own: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the exit codes that all verbs have, with a verb's own ones, in order."""
    return sorted((dict(EXIT_CODES) | dict(own)).items(), key=_code_key)


def _code_key(row: tuple[str, str]) -> tuple[bool, int]:
    return (not row[0].isdigit(), int(row[0]) if row[0].isdigit() else 0)


class Verbs(click.Group):
    """The group of `VERBS`; a verb's module is imported when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs, in the order in which a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import and return one verb; raises `NotFound` with the nearest ones for an unknown word."""
        if name not in VERBS:
            raise NotFound.among("command", name, VERBS, "see 'beo --help'")
        command = getattr(import_module(f"beo.cli.{VERBS[name][0]}"), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs from the table."""
        widest = max(map(len, VERBS))
        for title, names in families():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), VERBS[name][1]) for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what is good to know besides."""
        with formatter.section("Environment"):
            formatter.write_dl(list(ENVIRONMENT_OF_ALL))


def _tell_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        print(f"beo {beo.__version__}")
        context.exit()


@click.group(
    cls=Verbs,
    add_help_option=False,
    params=[_help_option()],
    context_settings={"max_content_width": 100},
    help="A cluster of plain computers, used as one.\n\n'beo COMMAND --help' tells more, 'beo man' shows the manual.",
)
@option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_tell_version, help="Print the version.")
def group() -> None:
    """Hold the verbs; it does nothing itself."""


def main(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code; what goes wrong is told on stderr.

    Everything that was printed has been written when it returns. Raises KeyboardInterrupt, as it came.
    """
    try:
        code = _run(list(argv))
        sys.stdout.flush()
        return code
    except BeoError as error:
        return _complain(str(error), error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help() if error.ctx else "", file=sys.stderr)
        return EXIT_USAGE
    except click.ClickException as error:
        return _complain(in_our_words(error), EXIT_USAGE)
    except OSError as error:  # the disk below stdout is full, or a file may not be read
        where = f" ({error.filename})" if error.filename else ""
        return _complain(f"{reason(error)}{where}", EXIT_FAILED)
    except Exception as error:
        if os.environ.get("BEO_TRACE"):
            raise
        what = f"a fault of beo itself ({type(error).__name__}: {error})"
        return _complain(f"{what}: say it again with BEO_TRACE=1, and report what it prints", EXIT_INTERNAL)


def _run(argv: list[str]) -> int:
    try:
        with group.make_context("beo", argv) as context:  # not group.main, which answers Ctrl-C with an empty line
            code = group.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.Abort:  # what a prompt makes of Ctrl-C
        raise KeyboardInterrupt from None
    return code if isinstance(code, int) else EXIT_OK


def _complain(text: str, code: int) -> int:
    try:
        sys.stdout.flush()  # what was printed before comes before, where both are one file
    except OSError:
        sys.stdout = sys.stderr  # it can't be written, now or later
    try:
        print(f"beo: {escape(text)}", file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody can hear it; the code says it too
    return code


def in_our_words(error: click.ClickException) -> str:
    """Return click's complaint about a command line as beo says such things."""
    context = getattr(error, "ctx", None)
    cure = f"see '{context.command_path if context else 'beo'} --help'"
    if isinstance(error, click.NoSuchOption):
        return str(NotFound.among("option", error.option_name, error.possibilities or (), cure))
    text = " ".join(error.format_message().split()).rstrip(".")  # click puts choices on lines of their own
    return f"{text[:1].lower()}{text[1:]}: {cure}"
