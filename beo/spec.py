"""What a job is: JobSpec, its bounds, and the ``#BEO`` lines of a script.

A spec is made by the client, checked by the client (so that the error comes at once) and checked again by the head
(which trusts nobody). It is a value: frozen, self-contained, and part of the journal's ``Submitted`` entry.
"""

from __future__ import annotations

import re
import shlex
from typing import Literal

import msgspec

from beo.errors import UsageError

Requeue = Literal["auto", "confirm", "never"]

# Each limit protects the head's memory and journal: a spec is kept in RAM and in every snapshot as long as its job.
RANKS_MAX = 16_384
SLOTS_MAX = 65_536
NODES_MAX = 4_096
CPUS_MAX = 4_096
ARGV_SIZE_MAX_BYTES = 128 * 1024  # what execve takes for one argument (MAX_ARG_STRLEN)
ENV_SIZE_MAX_BYTES = 256 * 1024  # ten times a heavy login environment
SCRIPT_SIZE_MAX_BYTES = 256 * 1024
NAME_LENGTH_MAX = 128
QUOTE_LENGTH_MAX = 80  # of a faulty number, in an error
PATH_LENGTH_MAX = 4_096  # PATH_MAX
MEM_MAX_BYTES = 1 << 50
TIME_LIMIT_MAX_S = 366 * 86_400.0
PRIORITY_MAX = 1_000
ERRANDS = ("get", "put")  # what a node's copier does
TERMINAL_SIDE_MAX = 65_535  # rows or columns: the kernel keeps 16 bits of each
OUTPUTS_MAX = 100  # patterns of one job's results
OUTPUTS_SIZE_MAX_BYTES = 16 * 1024  # of all of them
RESERVATION_LENGTH_MAX = 64
NOTICE_S = 60.0  # where nothing is said: a checkpoint of some gigabytes takes seconds
SIGNALS = 64  # the kernel's last
DIRECTIVES_MAX = 100  # #BEO lines in one script
DIRECTIVES_HEAD_BYTES = 64 * 1024  # they are looked for at the top of a script only


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One job as its owner asked for it. Times are seconds, sizes bytes, paths absolute."""

    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str] = {}
    name: str = ""
    ranks: int = 1
    nodes: int = 0  # exactly so many nodes; 0: as few as fit
    cpus: int = 1  # slots per rank
    mem_bytes: int = 0  # per rank; 0: neither reserved nor limited
    time_limit_s: float = 0.0  # 0: none
    requeue: Requeue = "confirm"
    priority: int = 0
    output: str = ""  # file for stdout, besides `beo logs`; %j is the job's id
    errors: str = ""  # file for stderr; empty: the same as output
    script: str = ""  # the text of a script, taken at submission; argv[0] is then its name only
    batch: bool = False  # one process with the whole allocation, not one per rank (a shell script)
    stdin: bool = False  # a client feeds rank 0's stdin
    attached: bool = False  # ends when its client has gone (`beo run`)
    slots: int = 0  # of the whole allocation, where that is more than its ranks take: room for steps and spawned ranks
    terminal: tuple[int, int] | None = None  # (rows, columns) of rank 0's pseudo-terminal; None: it has pipes
    bundle: str = ""  # the files that it has along, by the name of their manifest in the tree; empty: none
    outputs: tuple[str, ...] = ()  # patterns of what is kept of its files when it ends, in the tree
    signal: int = 0  # its ranks get it before their time is up, or when they are to go on elsewhere; 0: none
    notice_s: float = NOTICE_S  # so long before: for a last checkpoint
    movable: bool = False  # it knows nothing of checkpoints, and is moved by CRIU
    goes_on: bool = False  # when its time is up it halts at a checkpoint, and is queued again
    reservation: str = ""  # whose nodes it runs on, while that is on; see headnode/calendar.py
    migratable: bool = False  # as movable, but of several ranks, each of which is moved as a machine of its own
    in_tree: bool = False  # it runs in a folder that nodes have by mounting the tree: the head says so
    errand: str = ""  # the node that is to run no program but its copier (worker/copier.py), on top of its slots

    @property
    def is_carrying(self) -> bool:
        """Whether files come along, or are kept."""
        return bool(self.bundle or self.outputs)

    @property
    def title(self) -> str:
        """Its name; without one, that of its program, or of the program that a Python runs."""
        words = [word.rsplit("/", 1)[-1] for word in self.argv[:2]]
        of_python = len(words) == 2 and words[0].startswith("python") and not words[1].startswith("-")
        return self.name or words[of_python]

    @property
    def places(self) -> int:
        """Ranks that the whole allocation has slots for: the job's own, and those it may start itself."""
        return max(self.ranks, -(-self.slots // self.cpus))

    @property
    def slots_per_place(self) -> int:
        """Slots that a rank takes on its node: an errand takes none."""
        return 0 if self.errand else self.cpus

    @property
    def slots_in_all(self) -> int:
        """Slots of the whole allocation."""
        return self.places * self.slots_per_place


def _bounded(what: str, value: float, low: float, high: float, option: str) -> None:
    if not low <= value <= high:
        shown = str(value)[:QUOTE_LENGTH_MAX] if isinstance(value, int) else f"{value:.16g}"
        raise UsageError(f"{what} is {shown}", f"it must be from {low:.16g} to {high:.16g}", f"change {option}")


def _size_bytes(what: str, text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:  # a file name that is no UTF-8 comes from the command line with surrogates in it
        raise UsageError(f"{what} is not UTF-8", "beo keeps text only", "rename it, or name it in a script") from None


def _check_environment(env: dict[str, str]) -> None:
    names, values = "".join(env), "".join(env.values())  # as a whole: variable by variable took most of a submission
    try:
        size = len(names.encode()) + len(values.encode()) + 2 * len(env)
    except UnicodeEncodeError:
        for key, value in env.items():
            _size_bytes("the name of an environment variable", key)
            _size_bytes(f"the variable {key}", value)
        raise
    if size > ENV_SIZE_MAX_BYTES:
        raise UsageError(
            f"the environment has {size} bytes",
            f"the limit is {ENV_SIZE_MAX_BYTES}",
            "unset what the job does not need, or start it through 'env -i'",
        )
    if "" in env or "=" in names or "\0" in names or "\0" in values:
        key = next(k for k, v in env.items() if not k or "=" in k or "\0" in k or "\0" in v)
        raise UsageError(f"{key!r} is no environment variable", "a name has no '=' and no NUL", "change --env")


def _check_terminal(spec: JobSpec, window: tuple[int, int]) -> None:
    for side, what in zip(window, ("rows", "columns"), strict=True):
        _bounded(f"the number of {what} of the terminal", side, 0, TERMINAL_SIDE_MAX, "your terminal's window")
    if spec.ranks > 1 and not spec.batch:
        raise UsageError("a terminal for several ranks", "it is one program's", "submit one process for all the slots")
    if not spec.stdin:
        raise UsageError("a terminal without input", "nobody could type", "submit it with 'beo run --pty'")
    if spec.requeue != "never":
        why = "what was typed can't be typed again for a second attempt"
        raise UsageError(f"--pty with --requeue {spec.requeue}", why, "use --requeue never")


def _check_files(spec: JobSpec) -> None:
    if spec.bundle and not re.fullmatch(r"[0-9a-f]{64}", spec.bundle):
        raise UsageError("the job's inputs have no usable name", "it is a hash of 64 hex digits", "use --in")
    if len(spec.outputs) > OUTPUTS_MAX:
        raise UsageError(f"{len(spec.outputs)} patterns of results", f"the limit is {OUTPUTS_MAX}", "name their folder")
    size = 0
    for pattern in spec.outputs:
        size += _size_bytes(f"the pattern {pattern[:80]!r}", pattern)
        steps = pattern.split("/")
        if "\0" in pattern or any(step in ("", ".", "..") for step in steps):
            why = "results are below the job's folder, and are named from there"
            raise UsageError(f"{pattern[:80]!r} is no pattern of results", why, "change --out, to 'results/*' say")
    if size > OUTPUTS_SIZE_MAX_BYTES:
        why = f"the limit is {OUTPUTS_SIZE_MAX_BYTES}"
        raise UsageError(f"the patterns of results have {size} bytes", why, "name the folder instead")


def pattern(text: str) -> str:
    """Return a pattern of results as a spec has it: without ``./`` before and ``/`` behind."""
    steps = [step for step in text.split("/") if step not in ("", ".")]
    return ("/" if text.startswith("/") else "") + (
        "/".join(steps) or ("*" if text and not text.startswith("/") else "")
    )


MIGRATABLE_MAX = 256
"""Most ranks: each node gets the ends of all, and each rank a port of the node."""


def _check_movable(spec: JobSpec) -> None:
    """Refuse what CRIU can't take apart: more than one tree of processes, or one that something outside holds on to."""
    if spec.migratable:
        _bounded("the number of ranks that can be moved", spec.ranks, 2, MIGRATABLE_MAX, "-n")
        if spec.batch or spec.slots > spec.ranks * spec.cpus:
            why = "the ranks themselves are moved, not what a script or a step has started"
            raise UsageError("--migratable with a shell script or --slots", why, "submit the MPI program itself")
    elif spec.ranks > 1 or spec.slots > spec.cpus:
        why = "its processes on one node are moved, and MPI's ranks are connected"
        raise UsageError("--movable with several ranks", why, "let it take checkpoints: see docs/checkpoint.md")
    if spec.stdin or spec.attached or spec.terminal is not None:
        raise UsageError("--movable at a terminal", "that doesn't move along", "use 'beo submit'")
    if spec.goes_on or spec.signal:
        why = "those are for programs with checkpoints"
        raise UsageError("--movable with --continue or --signal", why, "say one or the other")
    if spec.is_carrying:
        why = "the files that it has along are in another folder on each node"
        raise UsageError("--movable with --in or --out", why, "put them into the tree, or on a shared file system")


def _check_errand(spec: JobSpec) -> None:
    """Refuse an errand that would be more than one: it takes no slot, so it may be no program of the user's own."""
    plain = JobSpec(
        argv=spec.argv, cwd="/", name=spec.name, requeue="never", stdin=True, attached=True, errand=spec.errand
    )
    if spec != plain or spec.argv[0] not in ERRANDS or not spec.errand.isprintable():
        raise UsageError("an errand that is none", "it is a copy, made by 'beo cp'", "use that")


def check(spec: JobSpec) -> JobSpec:
    """Return the spec, or raise UsageError that names the option at fault."""
    if not spec.argv or not spec.argv[0]:
        raise UsageError("no command", "a job needs a program to run", "put it last: beo submit [options] CMD ...")
    _bounded("the number of ranks", spec.ranks, 1, RANKS_MAX, "-n")
    _bounded("the number of nodes", spec.nodes, 0, NODES_MAX, "-N")
    _bounded("cpus per rank", spec.cpus, 1, CPUS_MAX, "-c")
    _bounded("memory per rank", spec.mem_bytes, 0, MEM_MAX_BYTES, "--mem")
    _bounded("the time limit in seconds", spec.time_limit_s, 0, TIME_LIMIT_MAX_S, "-t")
    _bounded("the priority", spec.priority, -PRIORITY_MAX, PRIORITY_MAX, "--priority")
    _bounded("the number of slots", spec.slots, 0, SLOTS_MAX, "--slots")
    if 0 < spec.slots < spec.ranks * spec.cpus:
        raise UsageError(
            f"{spec.slots} slots for the whole job",
            f"its ranks alone take {spec.ranks * spec.cpus}",
            "raise --slots, or leave it out",
        )
    if spec.nodes > spec.ranks:
        raise UsageError(
            f"{spec.nodes} nodes for {spec.ranks} rank{'s' * (spec.ranks != 1)}",
            "every node of a job runs one rank at least",
            "lower -N or raise -n",
        )
    _bounded("the number of the signal", spec.signal, 0, SIGNALS, "--signal")
    _bounded("the notice in seconds", spec.notice_s, 0, TIME_LIMIT_MAX_S, "--signal")
    if spec.goes_on and not spec.time_limit_s:
        raise UsageError("--continue without a time limit", "it says what comes when the time is up", "add -t")
    if spec.goes_on and spec.attached:
        raise UsageError("a job that waits for nobody can go on", "'beo run' waits for its end", "use 'beo submit'")
    if spec.movable:
        _check_movable(spec)
    if spec.terminal is not None:
        _check_terminal(spec, spec.terminal)
    if spec.is_carrying:
        _check_files(spec)
    if spec.errand:
        _check_errand(spec)
    if len(spec.reservation) > RESERVATION_LENGTH_MAX or not spec.reservation.isprintable():
        raise UsageError("that is no name of a reservation", "", "change --reservation: see 'beo reserve list'")
    if len(spec.name) > NAME_LENGTH_MAX or not spec.name.isprintable():
        raise UsageError("the job's name is not usable", f"at most {NAME_LENGTH_MAX} printable characters", "change -J")
    for what, path, option in (
        ("working directory", spec.cwd, "--chdir"),
        ("output file", spec.output, "-o"),
        ("error file", spec.errors, "-e"),
    ):
        if (path or option == "--chdir") and not path.startswith("/"):
            raise UsageError(f"the {what} {path!r} is not an absolute path", "", f"change {option}")
        if _size_bytes(f"the {what}", path) > PATH_LENGTH_MAX or "\0" in path:
            why = f"over {PATH_LENGTH_MAX} bytes or a NUL in it"
            raise UsageError(f"the {what} is not a path", why, f"change {option}")
    for word in spec.argv:
        if "\0" in word:
            raise UsageError("a word of the command has a NUL in it", "no program can take one", "pass a file instead")
    size = sum(_size_bytes(f"the word {word[:80]!r} of the command", word) + 1 for word in spec.argv)
    if size > ARGV_SIZE_MAX_BYTES:
        raise UsageError(f"the command has {size} bytes", f"the limit is {ARGV_SIZE_MAX_BYTES}", "pass a file instead")
    _check_environment(spec.env)
    size = _size_bytes("the script", spec.script)
    if size > SCRIPT_SIZE_MAX_BYTES:
        raise UsageError(
            f"the script has {size} bytes",
            f"the limit is {SCRIPT_SIZE_MAX_BYTES}",
            "call a program from it",
        )
    if "\0" in spec.script:
        raise UsageError("the script has a NUL in it", "it is not a text", "submit the program itself")
    return spec


def script_directives(text: str) -> list[str]:
    """Return the words of a script's ``#BEO`` lines, in order: ``#BEO -n 4 -t 1h`` gives ``['-n', '4', '-t', '1h']``.

    Only lines above the first command count (as with other batch systems), so that a here-document can't add any.
    """
    words: list[str] = []
    lines = 0
    if len(text) > DIRECTIVES_HEAD_BYTES:
        text = text[: text.rfind("\n", 0, DIRECTIVES_HEAD_BYTES) + 1]  # never half a line: '-n 16' would become '-n 1'
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            break
        if not re.match(r"#BEO(\s|\Z)", line):
            continue
        lines += 1
        if lines > DIRECTIVES_MAX:
            raise UsageError(f"over {DIRECTIVES_MAX} #BEO lines", "", "put several options on one line")
        try:
            words += shlex.split(line[4:], comments=True)
        except ValueError as error:
            raise UsageError(f"line {number} of the script: {line!r}", str(error).lower(), "close the quote") from None
    return words


def is_shell(text: str) -> bool:
    """Say whether a script's first line names a shell; such a script runs once, not once per rank."""
    first = text.split("\n", 1)[0]
    return bool(re.match(r"#!\s*(\S*/)?(env\s+(-S\s+)?)?(\S*/)?(sh|bash|dash|ksh|zsh|ash|csh|tcsh|fish)(\s|\Z)", first))


def submission_key(time_s: float, nonce: str) -> str:
    """Make a submission's idempotency key: the time it was made (ms, 12 hex digits), so that its age can be told."""
    return f"{int(time_s * 1000):012x}-{nonce}"


def key_made_s(key: str) -> float | None:
    """Return when a key was made (seconds since 1970), or None for one that its user thought up."""
    match = re.match(r"([0-9a-f]{12})-", key)
    return int(match[1], 16) / 1000 if match else None
