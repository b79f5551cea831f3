"""What a process of the job asks for when it starts a step, checked: a client's `run`, or the programs of a spawn."""

from __future__ import annotations

import os

from beo.worker.caller import OF_A_NODE
from beo.worker.order import Order
from beo.worker.step import Program
from beo.worker.steps import STEP_RANKS_MAX, Wish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from beo.worker.pmi import Spec

ARGV_SIZE_MAX_BYTES = 128 << 10
ENV_SIZE_MAX_BYTES = 256 << 10
"""As for a job."""
PATH_LENGTH_MAX = 4096
CPUS_MAX = 4096
NODES_MAX = 4096
SOFT_MAX = 1024
"""Most numbers of ranks that a spawn may name as good enough (`soft`)."""
NODES_OWN = (*OF_A_NODE, "TMPDIR")
PRIVATE = ("PMI_", "PMIX_", "PMI2_")
"""Variables of the MPI program that starts a step, which must not take the new ranks for its own."""


class Refusal(ValueError):
    """It can't be: what is wrong, why, and the cure."""

    def __init__(self, what: str, why: str = "", cure: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.cure = cure


class Request:
    """A client's `run`; Refusal if it isn't a whole one."""

    def __init__(self, message: dict[str, Any], order: Order) -> None:
        if message.get("op") != "run":
            raise Refusal("a step begins with 'run'", "", "start it with 'beo run'")
        argv = _texts(message, "argv", ARGV_SIZE_MAX_BYTES)
        if not argv or not argv[0]:
            raise Refusal("no command", "a step needs a program to run", "put it last: beo run [options] CMD ...")
        cwd = message.get("cwd", order.cwd)
        if not isinstance(cwd, str) or not cwd.startswith("/") or len(cwd) > PATH_LENGTH_MAX or not _is_text(cwd):
            raise Refusal("the working directory is no absolute path", "", "change --chdir")
        self.ranks = _number(message, "ranks", 1, 1, STEP_RANKS_MAX)
        self.nodes = _number(message, "nodes", 0, 0, NODES_MAX)
        self.cpus = _number(message, "cpus", order.cpus, 1, CPUS_MAX)
        self.on = None if message.get("on") is None else _texts(message, "on", ENV_SIZE_MAX_BYTES)
        self.overlap = bool(message.get("overlap"))
        self.mpi = bool(message.get("mpi", True))
        self.stdin = bool(message.get("stdin"))
        if self.nodes > self.ranks:
            raise Refusal(
                f"{self.nodes} nodes for {self.ranks} ranks", "each runs one at least", "lower -N or raise -n"
            )
        env, without = _difference(message.get("env"), order.env)
        if "OMP_NUM_THREADS" not in env:
            env["OMP_NUM_THREADS"] = str(self.cpus)
        self.program = Program(argv, cwd, env, without)

    @property
    def wish(self) -> Wish:
        """What it needs of the allocation."""
        return Wish([self.ranks], self.cpus, self.nodes, self.on, self.overlap)


def spawn_wishes(specs: Sequence[Spec], order: Order) -> list[Wish]:
    """What a spawn needs of the allocation; Refusal if its MPI_Info asks for what can't be."""
    wishes = []
    for spec in specs:
        hosts = spec.info.get("host") or spec.info.get("hosts")
        on = [name.strip() for name in hosts.split(",")] if hosts else None
        counts = _soft(spec.info["soft"], spec.ranks) if len(specs) == 1 and "soft" in spec.info else [spec.ranks]
        if spec.ranks > STEP_RANKS_MAX:
            raise Refusal(f"a spawn of {spec.ranks} ranks", f"the limit is {STEP_RANKS_MAX}")
        wishes.append(Wish(counts, order.cpus, 0, on))
    return wishes


def spawn_programs(specs: Sequence[Spec], order: Order) -> list[Program]:
    """What a spawn runs. `wdir` and `path` of its MPI_Info count; a folder may be relative to that of the job."""
    return [
        Program(spec.argv, os.path.join(order.cwd, spec.info.get("wdir", "")), {}, (), spec.info.get("path", ""))
        for spec in specs
    ]


def _soft(text: str, most: int) -> list[int]:
    """`soft` of an MPI_Info, "1,4:8,10:20:2", as the numbers of ranks that are good enough, the best first."""
    counts: set[int] = set()
    for item in text.split(","):
        try:
            numbers = [int(word) for word in item.split(":")]
            first, last, step = (numbers * 2 + [1])[:3] if len(numbers) == 1 else ([*numbers, 1])[:3]
            counts.update(range(first, last + (1 if step > 0 else -1), step)[:SOFT_MAX])
        except ValueError:
            raise Refusal("soft is no list of numbers of ranks") from None
    found = sorted((count for count in counts if 0 < count <= most), reverse=True)[:SOFT_MAX]
    return found or [most]


def _difference(env: Any, base: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """What a client's environment has besides the attempt's, and what it hasn't.

    What is the same, or of the node's own, is left out: each node has its own network, TMPDIR and name.
    """
    if env is None:
        return {}, []
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise Refusal("the environment is no object of strings")
    names, words = "".join(env), "".join(env.values())
    if "" in env or "=" in names or not _is_text(names) or not _is_text(words):
        raise Refusal("the environment has what can't be in one", "an empty name, a '=', a zero byte or no UTF-8")
    more = {
        name: value
        for name, value in env.items()
        if base.get(name) != value and not name.startswith(PRIVATE) and not name.startswith("BEO_")
    }
    without = [name for name in base if name not in env and name not in NODES_OWN and not name.startswith("BEO_")]
    size_bytes = sum(len(name.encode()) + len(value.encode()) + 2 for name, value in more.items())
    if size_bytes > ENV_SIZE_MAX_BYTES:
        why = f"the limit is {ENV_SIZE_MAX_BYTES}"
        raise Refusal(f"the environment has {size_bytes} bytes", why, "unset what the step does not need")
    return more, without


def _texts(message: dict[str, Any], key: str, size_max_bytes: int) -> list[str]:
    value = message.get(key)
    if not isinstance(value, list) or not all(isinstance(word, str) and _is_text(word) for word in value):
        raise Refusal(f"{key} is no list of text")
    if sum(len(word.encode()) + 1 for word in value) > size_max_bytes:
        raise Refusal(f"{key} is too long", f"the limit is {size_max_bytes} bytes", "pass a file instead")
    return value


def _number(message: dict[str, Any], key: str, otherwise: int, low: int, high: int) -> int:
    value = message.get(key)
    if value is None:
        return otherwise
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Refusal(f"{key} must be a whole number from {low} to {high}")
    return value


def _is_text(text: str) -> bool:
    """Whether it has no zero byte and can be encoded: an agent carries nothing else."""
    try:
        return "\0" not in text and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False
