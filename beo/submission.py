"""A job from here: its spec, by what is asked for and by what it takes over of this process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from beo import spec, units
from beo.errors import NotFound, UsageError

FOREIGN_ENVIRONMENT = ("BEO_", "PMI_")  # set anew for each job: those of the submitter would lie


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a job takes over of the submitter's environment: all but what beo and MPI set for each job anew.

    Variables that are not UTF-8 are left out, since an entry of the journal is text.
    """
    return {k: v for k, v in environ.items() if not k.startswith(FOREIGN_ENVIRONMENT) and _is_text(k) and _is_text(v)}


def _is_text(word: str) -> bool:
    return word.isascii() or not any("\ud800" <= c <= "\udfff" for c in word)


def notice(text: str) -> tuple[int, float]:
    """Return the number and the seconds of a text like "USR1@60", or "TERM" alone. Raises BeoError."""
    name, at, span = text.partition("@")
    return signal_number(name), units.parse_duration(span) if at else spec.NOTICE_S


def signal_number(word: str) -> int:
    """Return the number of a signal: TERM, SIGTERM or 15."""
    from signal import Signals  # here: most verbs need no names of signals

    if word.isdecimal() and len(word) < 4:
        return int(word)
    names = {number.name.removeprefix("SIG"): int(number) for number in Signals}
    name = word.upper().removeprefix("SIG")
    if name not in names:
        raise NotFound.among("signal", word, names, "see 'kill -l'")
    return names[name]


def new_spec(
    argv: Sequence[str],
    *,
    ranks: int = 1,
    nodes: int = 0,
    cpus: int = 1,
    mem: int | str = 0,
    time_limit: float | str = 0.0,
    name: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    requeue: spec.Requeue = "confirm",
    priority: int = 0,
    output: str = "",
    errors: str = "",
    script: str = "",
    stdin: bool = False,
    attached: bool = False,
    slots: int = 0,
    terminal: tuple[int, int] | None = None,
    outputs: Sequence[str] = (),
    signal: str = "",
    goes_on: bool = False,
    movable: bool = False,
    reservation: str = "",
    migratable: bool = False,
) -> spec.JobSpec:
    """Return a checked spec for `argv`, run in `cwd` (default: here) with this process's environment and `env` on top.

    `mem` is bytes per rank or a text like "4GiB", `time_limit` seconds or a text like "1h30m". Paths are taken relative
    to `cwd`. With a `terminal` of (rows, columns), one process has it and all the slots. `outputs` are patterns of the
    files that are kept when it ends. `signal` is what its ranks get before their time is up, like "USR1@60" (seconds).
    With `goes_on` it halts then at a checkpoint, and goes on as another attempt. What is `movable` is moved by CRIU,
    and what is `migratable` too: the ranks of an MPI program (experimental).
    With a `reservation` it runs on its nodes, while that is on.
    Raises `UsageError` that names the option at fault.
    """
    if isinstance(argv, str):
        raise UsageError("the command is one text", "a job takes a list of words", 'write ["sh", "-c", text]')
    if isinstance(outputs, str):
        raise UsageError("outputs is one text", "it is a list of patterns", "write [text]")
    words = tuple(map(str, argv))
    for word in words:
        if not _is_text(word):
            raise UsageError(f"a word of the command is not UTF-8: {word!r}", "", "name the file otherwise")
    try:
        folder = os.path.abspath(cwd)
    except FileNotFoundError:
        cure = "go to one that is there, or use --chdir"
        raise UsageError("this folder is gone", "the job would run in it", cure) from None
    if len(folder) <= spec.PATH_LENGTH_MAX and not os.path.isdir(folder):  # what is longer, spec.check refuses
        raise UsageError(f"no folder {folder}", "the job would run there", "make it, or change --chdir")
    own = environment(os.environ)
    if terminal is not None:
        for name_of_size in ("LINES", "COLUMNS"):  # programs believe these more than the terminal, which may change
            own.pop(name_of_size, None)
    number, notice_s = notice(signal) if signal else (0, spec.NOTICE_S)
    return spec.check(
        spec.JobSpec(
            argv=words,
            cwd=folder,
            env={**own, **(env or {})},
            name=name,
            ranks=ranks,
            nodes=nodes,
            cpus=cpus,
            mem_bytes=units.parse_size(mem) if isinstance(mem, str) else mem,
            time_limit_s=units.parse_duration(time_limit) if isinstance(time_limit, str) else time_limit,
            requeue=requeue,
            priority=priority,
            output=output and os.path.join(folder, output),
            errors=errors and os.path.join(folder, errors),
            script=script,
            batch=(bool(script) and spec.is_shell(script)) or (terminal is not None and ranks > 1),
            stdin=stdin,
            attached=attached,
            slots=slots,
            terminal=terminal,
            outputs=tuple(map(spec.pattern, outputs)),
            signal=number,
            notice_s=notice_s,
            goes_on=goes_on,
            movable=movable or migratable,
            reservation=reservation,
            migratable=migratable,
        )
    )
