"""The agent's `start` message, checked: what the warden acts on is either whole and of the right types, or refused."""

from __future__ import annotations

from beo.worker.ranks import Person

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SIDE_MAX = (1 << 16) - 1
"""Most rows and columns of a terminal: the kernel keeps 16 bits of each."""
RANKS_HERE_MAX = 4096
"""Most ranks of one node: each takes three descriptors of the warden."""


class Order:
    """One attempt's part on this node, as the agent ordered it; ValueError if the message isn't a whole one.

    job, attempt: numbers that name it. node, nodes: this node's name and all nodes' in order. argv, cwd, env, env_of
    (rank -> more environment): the program. ranks: the global numbers of the ranks here (none on a further node of a
    batch job), size: of how many. stdin: whether rank 0 gets a pipe. terminal: (rows, columns) of the one that rank 0
    gets instead of pipes, or None. pmi: None or kvsname, mapping, universe. time_limit_s and grace_s in seconds;
    mem_bytes; cgroup and tmp: folders. names: of nodes -> address. files: of tmp, by their names. output_max_bytes,
    shm_max_bytes (None: no limit) and free_min_bytes: see bounds.py. person: whose it is. leash_until_ns:
    CLOCK_BOOTTIME, 0 for no leash. notice: what comes before the end of its time. carried: its files, if it
    `is_carrying` any.
    """

    def __init__(self, message: dict[str, Any]) -> None:
        self.job = whole(message, "job")
        self.attempt = whole(message, "attempt")
        self.node = _text(message, "node")
        self.nodes = _texts(message, "nodes")
        self.argv = _texts(message, "argv")
        self.cwd = _text(message, "cwd")
        self.env = _environment(message.get("env", {}))
        self.ranks = _wholes(message, "ranks")
        self.size = whole(message, "size")
        self.env_of = {int(rank): _environment(more) for rank, more in (message.get("env_of") or {}).items()}
        self.stdin = bool(message.get("stdin"))
        self.terminal = None if message.get("terminal") is None else window(message, "terminal")
        self.time_limit_s = _seconds(message, "time_limit_s")
        self.grace_s = _seconds(message, "grace_s") or 0.0
        self.mem_bytes = _whole_or_none(message, "mem_bytes")
        self.cgroup = _text_or_none(message, "cgroup")
        self.tmp = _text_or_none(message, "tmp")
        groups = None if message.get("groups") is None else _wholes(message, "groups")
        self.person = Person(_whole_or_none(message, "uid"), _whole_or_none(message, "gid"), groups)
        limits = message.get("limits") or {}
        self.output_max_bytes = _whole_or_none(limits, "output_bytes")
        self.shm_max_bytes = _whole_or_none(limits, "shm_bytes")
        self.free_min_bytes = _whole_or_none(limits, "free_bytes") or 0
        self.leash_until_ns = _whole_or_none(message, "leash_until_ns") or 0
        self.pmi = _pmi(message.get("pmi"))
        self.names = _environment(message.get("names") or {})
        self.files = _environment(message.get("files") or {})
        self._take_steps(message.get("steps") or {})
        self.notice = Notice(message.get("notice") or {})
        self.is_once = bool(message.get("once"))  # what has run here may come back only to a fresh warden
        self.is_carrying = message.get("carried") is not None
        self.carried = Carried(message.get("carried") or {})
        if not self.argv or len(self.ranks) > RANKS_HERE_MAX or not (self.ranks or len(self.nodes) > 1):
            raise ValueError(f"argv must not be empty, and ranks 1 to {RANKS_HERE_MAX}")
        if len(set(self.ranks)) != len(self.ranks) or max(self.ranks, default=0) >= self.size:
            raise ValueError("ranks must differ and be below size")
        if self.node not in self.nodes or len(set(self.nodes)) != len(self.nodes):
            raise ValueError("nodes must differ and hold node")

    def _take_steps(self, steps: Any) -> None:
        """What steps may use. slots: of the nodes, {} if there can be no steps. taken: those that step 0 holds. cpus:
        slots per rank. places: ranks that there are slots for, in all. world, nonce: for the names of MPI worlds.
        """
        self.slots: dict[str, int] = {}
        self.taken: dict[str, int] = {}
        self.cpus, self.places, self.world, self.nonce = 1, self.size, "", ""
        if steps:
            slots, taken = _wholes(steps, "slots"), _wholes(steps, "taken")
            self.slots = dict(zip(self.nodes, slots, strict=True))
            self.taken = dict(zip(self.nodes, taken, strict=True))
            self.cpus = max(1, whole(steps, "cpus"))
            self.places = sum(slots) // self.cpus
            self.world, self.nonce = _text(steps, "world"), _text(steps, "nonce")

    @property
    def may_have_steps(self) -> bool:
        """Whether it gets a door for steps. A rank with the only slot gets none: 7 % of its time."""
        return bool(self.slots) and (self.places > 1 or not any(self.taken.values()))

    @property
    def reusable(self) -> bool:
        """Whether a warden may take another attempt after this one: one rank alone has no peer to mix up."""
        alone = self.size == 1 and self.pmi is None and self.places <= 1 and len(self.nodes) == 1
        return alone and not self.is_carrying and not self.is_once


class Notice:
    """What its ranks are told before their time is up: `signal` (0: none) so long `before_s`; and in the file `word`
    (None: there is none) to take a checkpoint, and with `goes_on` to end with it.
    """

    def __init__(self, message: dict[str, Any]) -> None:
        self.signal = _whole_or_none(message, "signal") or 0
        self.before_s = _seconds(message, "before_s") or 0.0
        self.goes_on = bool(message.get("goes_on"))
        self.word = _text_or_none(message, "word")


class Carried:
    """What files an attempt has carried in and out: those of `bundle` ("": none) into the folder `work` (None: it runs
    in a folder of its own), which is seen behind the walls as `at` (None: as itself); and out those that the patterns
    `outputs` mean. copies: bundles with which the folder `vault` is to begin, as_root: as root's, anew:
    emptied first. python, home: what runs the porter, and its BEO_DIR.
    """

    def __init__(self, message: dict[str, Any]) -> None:
        self.bundle = str(message.get("bundle") or "")
        self.outputs = _texts(message, "outputs") if "outputs" in message else []
        self.copies = _texts(message, "copies") if "copies" in message else []
        self.vault = _text_or_none(message, "vault")
        self.as_root = bool(message.get("as_root"))
        self.anew = bool(message.get("anew"))
        self.work = _text_or_none(message, "work")
        self.at = _text_or_none(message, "at")
        self.python = str(message.get("python") or "")
        self.home = str(message.get("home") or "")


def _pmi(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("pmi must be an object or null")
    return {
        "kvsname": _text(value, "kvsname"),
        "mapping": _text(value, "mapping"),
        "universe": _whole_or_none(value, "universe"),
        "space": _environment(value.get("space") or {}),
        "back": bool(value.get("back")),
    }


def _environment(value: Any) -> dict[str, str]:
    try:
        names, words = "".join(value), "".join(value.values())
    except (TypeError, AttributeError):
        raise ValueError("an environment must be an object of strings") from None
    if "" in value or "=" in names or "\0" in names or "\0" in words:
        raise ValueError("an environment has a name that cannot be, or a zero byte")
    return dict(value)


def whole(message: dict[str, Any], key: str) -> int:
    """The number of that name, 0 to 2**63 - 1; ValueError if it is missing or anything else."""
    value = message.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"{key} must be a whole number")
    return value


def window(message: dict[str, Any], key: str) -> tuple[int, int]:
    """A terminal's size of that name, (rows, columns), (0, 0) if it is missing; ValueError if it is anything else."""
    if key not in message:
        return 0, 0
    sides = _wholes(message, key)
    if len(sides) != 2 or max(sides) > SIDE_MAX:
        raise ValueError(f"{key} must be rows and columns, up to {SIDE_MAX}")
    return sides[0], sides[1]


def _whole_or_none(message: dict[str, Any], key: str) -> int | None:
    return None if message.get(key) is None else whole(message, key)


def _wholes(message: dict[str, Any], key: str) -> list[int]:
    value = message.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list of whole numbers")
    return [whole({key: item}, key) for item in value]


def _seconds(message: dict[str, Any], key: str) -> float | None:
    value = message.get(key)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not 0 <= value < 1e10:
        raise ValueError(f"{key} must be seconds")
    return float(value)


def _text(message: dict[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{key} must be text")
    return value


def _text_or_none(message: dict[str, Any], key: str) -> str | None:
    return None if message.get(key) is None else _text(message, key)


def _texts(message: dict[str, Any], key: str) -> list[str]:
    value = message.get(key)
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list of text")
    for item in value:
        if not isinstance(item, str) or "\0" in item:
            raise ValueError(f"{key} must be a list of text")
    return value
