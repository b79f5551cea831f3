"""The verb completion: what Tab does after `beo`, in bash, zsh and fish.

A shell's script hands the words of the line to `beo completion SHELL -- WORD...` and gets a line per candidate for the
last one: the candidate and, behind a tab, what it is. What a parameter wants is told by its type, or by the word that
its help shows for its value (JOB, NODE, SIGNAL, FILE, DIR, CMD); so a verb that is added later is completed, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence

import click

from beo import messages as m
from beo.cli.group import VERBS, Actions, Verb, group
from beo.client import ENDED, Cluster
from beo.errors import BeoError

PATIENCE_S = 0.5  # who presses Tab waits no longer for a head; there are just no candidates then
JOBS_MAX = 200  # the newest: a longer list is read by nobody
UNENDED_ONLY = frozenset({"cancel", "hold", "kill", "release", "set", "top", "wait"})  # of no use to jobs that ended

# Lines that ask the shell for candidates of its own.
FILES, FOLDERS, PROGRAMS = ":files", ":folders", ":programs"

SCRIPTS = {
    "bash": r"""_beo() {
  local line IFS=$'\n' current=${COMP_WORDS[COMP_CWORD]}
  COMPREPLY=()
  [ "$current" = = ] && current=
  while IFS= read -r line; do
    case $line in
      :files) compopt -o filenames; COMPREPLY+=($(compgen -f -- "$current")) ;;
      :folders) compopt -o filenames; COMPREPLY+=($(compgen -d -- "$current")) ;;
      :programs) COMPREPLY+=($(compgen -c -- "$current" | sort -u)) ;;
      *) COMPREPLY+=("$line") ;;
    esac
  done < <("${COMP_WORDS[0]}" completion bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  if [ ${#COMPREPLY[@]} -eq 1 ]; then
    COMPREPLY[0]=${COMPREPLY[0]%%$'\t'*}
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
  else
    COMPREPLY=("${COMPREPLY[@]/$'\t'/  }")
  fi
}
complete -o nosort -F _beo beo
""",
    "zsh": r"""#compdef beo
_beo() {
  local line
  local -a candidates
  for line in "${(@f)$("${words[1]}" completion zsh -- "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
    case $line in
      :files) _files ;;
      :folders) _files -/ ;;
      :programs) _command_names -e ;;
      ?*) candidates+=("${${line//:/\\:}/$'\t'/:}") ;;
    esac
  done
  (( ${#candidates} )) && _describe -V beo candidates
}
if [ "${funcstack[1]}" = _beo ]; then _beo; else compdef _beo beo; fi
""",
    "fish": r"""function __beo_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in (command $words[1] completion fish -- $words[2..-1] 2>/dev/null)
        switch $line
            case :files
                __fish_complete_path (commandline -ct)
            case :folders
                __fish_complete_directories (commandline -ct)
            case :programs
                __fish_complete_command
            case '*'
                echo $line
        end
    end
end
complete -c beo -f -k -a '(__beo_complete)'
""",
}

Candidate = tuple[str, str]  # the word, and what it is


@click.command(
    cls=Verb,
    context_settings={"allow_interspersed_args": False},
    examples=[
        ("source <(beo completion bash)", "in ~/.bashrc"),
        ("source <(beo completion zsh)", "in ~/.zshrc, after compinit"),
        ("beo completion fish | source", "in ~/.config/fish/config.fish"),
        ("beo completion bash -- queue --j", "what Tab would show"),
    ],
)
@click.argument("shell", type=click.Choice(list(SCRIPTS)))
@click.argument("words", nargs=-1, metavar="[-- WORD...]", type=click.UNPROCESSED)
def completion(shell: str, words: tuple[str, ...]) -> None:
    """Print the script that teaches SHELL (bash, zsh or fish) to complete beo's command lines.

    Verbs, options and their values are completed: jobs by their ids, with their names, nodes, signals, files. For
    jobs and nodes the head is asked; where none answers at once, there is nothing to choose from.

    With WORDs the candidates for the last of them are printed, as the script asks for them.
    """
    words = words[1:] if words[:1] == ("--",) else words  # which is there for a word that looks like an option
    if not words:
        print(SCRIPTS[shell], end="")
        return
    split = shell == "bash"  # bash takes `--option=value` for three words
    for word, text in candidates(_joined(words) if split else list(words), whole=not split):
        print(f"{word}\t{text}" if text else word)


def _joined(words: Sequence[str]) -> list[str]:
    """Return the words with what bash has divided at `=` put together."""
    found: list[str] = []
    for word in words:
        if found and found[-1].startswith("--") and (word == "=" or found[-1].endswith("=")):
            found[-1] += word
        else:
            found.append(word)
    return found


def candidates(words: Sequence[str], whole: bool = True) -> Iterator[Candidate]:
    """Yield the candidates for the last of `words`, which stand behind `beo`.

    whole: of `--option=value` the whole word is wanted; else the value alone.
    """
    *before, current = words
    verb = next((word for word in before if not word.startswith("-")), None)
    if verb is None:
        rows = _options(group, ()) if current.startswith("-") else ((name, text) for name, (_, text) in VERBS.items())
        yield from _matching(rows, current)
        return
    if verb not in VERBS:
        return
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    behind = before[before.index(verb) + 1 :]
    if isinstance(command, Actions):
        action = next((word for word in behind if not word.startswith("-")), None)
        if action is None:
            names = ((name, text) for name, (_, _, text) in command.actions.items())
            yield from _matching(_options(command, ()) if current.startswith("-") else names, current)
            return
        if action not in command.actions:
            return
        behind = behind[behind.index(action) + 1 :]
        command = command.get_command(click.Context(command), action)
        assert command is not None
    wanted, given = _wanted(command, behind)
    if isinstance(wanted, click.Option):
        yield from _matching(_values(verb, wanted), current)
    elif wanted is None or (current.startswith("-") and "--" not in before and not _is_in_command(wanted, given)):
        name, equals, value = current.partition("=")
        option = _option(command, name) if equals else None
        if option is None:
            yield from _matching(_options(command, given), current)
            return
        for word, text in _matching(_values(verb, option), value):
            yield (f"{name}={word}" if whole and word[:1] != ":" else word), text
    else:
        yield from _matching(_values(verb, wanted), current)


def _wanted(command: click.Command, words: Sequence[str]) -> tuple[click.Parameter | None, list[str]]:
    """Return the parameter that comes next behind these words, and what was given: options, and "" per argument."""
    arguments = [parameter for parameter in command.params if isinstance(parameter, click.Argument)]
    given: list[str] = []
    waiting: click.Option | None = None
    literal = False
    for word in words:
        if waiting:
            waiting = None
        elif word == "--" and not literal:
            literal = True
        elif word.startswith("-") and word != "-" and not literal:
            option = _option(command, word.partition("=")[0])
            given += option.opts if option else []
            if option and not option.is_flag and "=" not in word:
                waiting = option
        else:
            given.append("")
            literal = literal or not command.allow_interspersed_args
    if waiting:
        return waiting, given
    position = given.count("")
    for argument in arguments:
        if argument.nargs == -1 or position < argument.nargs:
            return argument, given
        position -= argument.nargs
    return None, given


def _is_in_command(wanted: click.Parameter, given: Sequence[str]) -> bool:
    """Whether options are the business of a command that has begun: `beo run python --v`."""
    return wanted.type is click.UNPROCESSED and "" in given


def _option(command: click.Command, word: str) -> click.Option | None:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and word in (*parameter.opts, *parameter.secondary_opts):
            return parameter
    return None


def _options(command: click.Command, given: Sequence[str]) -> Iterator[Candidate]:
    """Yield the options by their long names, but those that were given."""
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or parameter.hidden:
            continue
        if parameter.multiple or not set(parameter.opts) & set(given):
            yield parameter.opts[-1], parameter.help or ""


def _matching(rows: Iterator[Candidate], current: str) -> Iterator[Candidate]:
    return (row for row in rows if row[0].startswith(current) or row[0] in (FILES, FOLDERS, PROGRAMS))


# ---- what values there are -------------------------------------------------------------------------------------------


def _values(verb: str, parameter: click.Parameter) -> Iterator[Candidate]:
    """Yield what a parameter may be."""
    if isinstance(parameter.type, click.Choice):
        return ((str(choice), "") for choice in parameter.type.choices)
    metavar = parameter.metavar or parameter.name or ""
    kind = (re.findall(r"[A-Z]+", metavar.upper()) or [""])[0]
    known = KINDS.get(kind)
    return known(verb) if known else iter(())


def _jobs(verb: str) -> Iterator[Candidate]:
    """Yield `last`, `all`, our own jobs and then those of others, the newest first; those that ended last."""
    several = verb != "logs"
    yield "last", "the newest job"
    if several:
        yield "all", "all jobs"
    ended = verb not in UNENDED_ONLY
    answer = _ask(m.ListJobs((), ended, JOBS_MAX))
    if not isinstance(answer, m.JobsAre):
        return
    info = _ask(m.Info())
    me = info.user if isinstance(info, m.InfoIs) else ""
    for view in sorted(answer.jobs, key=lambda view: (view.state in ENDED, view.user != me, -view.id)):
        yield str(view.id), f"{view.name}, {view.state}" + (f", of {view.user}" if view.user != me else "")


def _nodes(_: str) -> Iterator[Candidate]:
    answer = _ask(m.ListNodes())
    if isinstance(answer, m.NodesAre):
        for node in answer.nodes:
            yield node.name, node.state


def _machines(_: str) -> Iterator[Candidate]:
    answer = _ask(m.ListMachines())
    if isinstance(answer, m.MachinesAre):
        for machine in answer.machines:
            yield machine.name, f"{machine.mac}, {machine.state}"


def _ask(message: object) -> object:
    try:
        with Cluster() as cluster:
            return cluster.request(message, PATIENCE_S)
    except BeoError:
        return None


def _signals(_: str) -> Iterator[Candidate]:
    from signal import Signals

    for number in Signals:
        yield number.name.removeprefix("SIG"), f"signal {int(number)}"


def _variables(_: str) -> Iterator[Candidate]:
    for name in sorted(os.environ):
        yield f"{name}=", ""


def _reservations(_: str) -> Iterator[Candidate]:
    answer = _ask(m.ListReservations())
    if isinstance(answer, m.ReservationsAre):
        for one in answer.reservations:
            yield one.name, f"{one.state}, {one.nodes}"


KINDS: dict[str, Callable[[str], Iterator[Candidate]]] = {
    "JOB": _jobs,
    "JOBS": _jobs,
    "NODE": _nodes,
    "RESERVATION": _reservations,
    "MACHINE": _machines,
    "SIGNAL": _signals,
    "FILE": lambda _: iter([(FILES, "")]),
    "FOLDER": lambda _: iter([(FOLDERS, "")]),
    "DIR": lambda _: iter([(FOLDERS, "")]),
    "CMD": lambda _: iter([(PROGRAMS, ""), (FILES, "")]),
    "COMMAND": lambda _: ((name, text) for name, (_, text) in VERBS.items()),
    "K": _variables,
}
