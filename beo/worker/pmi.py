"""PMI-1, the words an MPI library says to whoever started it: init, put, get, barrier, finalize, abort, spawn.

One `Pmi` is one node's part of one world. It is a pure state machine: a line from a rank (or a peer's fence) goes in,
effects come out, and whoever owns the sockets carries them out. Nothing that a rank sends makes it raise.

The puts of all ranks meet at the barrier ("fence" here): when the last local rank is in, this node's puts go to every
other node as fence k; when every other node's fence k is there too, the puts are merged and the ranks go on. No server
is needed, so no rank notices a head that dies.

Standard library only, and neither dataclasses nor typing at run time: they would double the warden's start and memory.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

LINE_BYTES_MAX = 64 << 10
"""Longest line of a rank. Real ones stay below 2 KiB; an abort's message may be long."""
NAME_LENGTH_MAX = 256
KEY_LENGTH_MAX = 64
VALUE_LENGTH_MAX = 1024
"""The three limits that MPICH is told in `maxes`, as in Hydra."""
PUT_BYTES = 8
"""What a put counts for beyond its key and value: the JSON around it."""
FENCE_BYTES_MAX = 4 << 20
"""Most bytes of puts of one node between two fences: even if JSON has to escape them all they fit one frame."""
SPACE_BYTES_MAX = 64 << 20
"""Most bytes of keys and values of one attempt: 4,096 ranks put less than 4 MiB."""
SERVICES_MAX = 1024
"""Most names published at a time (MPI_Publish_name)."""
SPAWN_BYTES_MAX = 1 << 20
"""Most bytes of one MPI_Comm_spawn: as much as a program may be given by the kernel."""
SPECS_MAX = 1024
"""Most programs of one MPI_Comm_spawn_multiple."""


class Effect:
    """Something to be done for the ranks; compares and prints by value."""

    __slots__: tuple[str, ...] = ()

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Effect) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._values()!r}"


class Reply(Effect):
    """Send `line` (newline included) to `rank`."""

    __slots__ = ("rank", "line")

    def __init__(self, rank: int, line: bytes) -> None:
        self.rank = rank
        self.line = line


class Fence(Effect):
    """Tell every other node of the attempt that all ranks here are in barrier `k`, and these `puts`."""

    __slots__ = ("k", "puts")

    def __init__(self, k: int, puts: dict[str, str]) -> None:
        self.k = k
        self.puts = puts


class Publish(Effect):
    """Tell every other node that `service` is at `port` (None: no more)."""

    __slots__ = ("service", "port")

    def __init__(self, service: str, port: str | None) -> None:
        self.service = service
        self.port = port


class Abort(Effect):
    """`rank` called MPI_Abort: the attempt ends with `code` (0-255)."""

    __slots__ = ("rank", "code", "message")

    def __init__(self, rank: int, code: int, message: str) -> None:
        self.rank = rank
        self.code = code
        self.message = message


class Bad(Effect):
    """The attempt cannot go on, because of `rank` (None: because of a peer)."""

    __slots__ = ("rank", "reason")

    def __init__(self, rank: int | None, reason: str) -> None:
        self.rank = rank
        self.reason = reason


class Spec:
    """One program of a spawn: what to run, in how many ranks, and what its MPI_Info says."""

    __slots__ = ("argv", "info", "ranks")

    def __init__(self, argv: list[str], ranks: int, info: dict[str, str]) -> None:
        self.argv = argv
        self.ranks = ranks
        self.info = info

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and (self.argv, self.ranks, self.info) == (other.argv, other.ranks, other.info)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Spec({self.argv!r}, {self.ranks!r}, {self.info!r})"


class Spawn(Effect):
    """`rank` wants these programs started as one world, with `puts` in its space; it waits for `Pmi.spawned`."""

    __slots__ = ("rank", "specs", "puts")

    def __init__(self, rank: int, specs: list[Spec], puts: dict[str, str]) -> None:
        self.rank = rank
        self.specs = specs
        self.puts = puts


class _Blocks:
    """What a rank has said so far of a spawn: one block of `key=value` lines for each program."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self.specs: list[Spec] = []
        self.puts: dict[str, str] = {}
        self.words: dict[str, str] = {}
        self.trouble = ""

    def take(self) -> bool:
        """A block has ended; whether it was the last one."""
        words, self.words = self.words, {}
        total = _number(words.get("totspawns"), 1)
        ranks, count = _number(words.get("nprocs"), 0), _number(words.get("argcnt"), 0)
        argv = [words.get("execname", ""), *(words.get(f"arg{n}", "\0") for n in range(1, min(count, len(words)) + 1))]
        info, puts = _pairs(words, "info"), _pairs(words, "preput")
        if ranks < 1 or not argv[0] or "\0" in argv or info is None or puts is None or not 0 < total <= SPECS_MAX:
            self.trouble = self.trouble or "not_a_whole_spawn_request"
        elif not all(_fits(key, value) for key, value in puts.items()):
            self.trouble = self.trouble or "not_a_key_and_value_of_a_space"
        else:
            self.specs.append(Spec(argv, ranks, info))
            self.puts |= puts
        return _number(words.get("spawnssofar"), total) >= total


class Pmi:
    """One node's part of the PMI of one world.

    ranks: those here. size: ranks of the whole world. peers: the other nodes' names. appnums: which of the world's
    programs a rank runs (0 if nothing is said). space: keys that are there from the beginning, such as
    PMI_process_mapping. services: the names published in the attempt, which its worlds share. told: whether other nodes
    must hear of a name (None: where the world has some). awaited: whether those who spawned it wait for all its ranks.
    """

    def __init__(
        self,
        ranks: Iterable[int],
        size: int,
        peers: Iterable[str],
        kvsname: str,
        universe: int | None = None,
        appnums: Mapping[int, int] | None = None,
        space: Mapping[str, str] | None = None,
        services: dict[str, str] | None = None,
        told: bool | None = None,
        awaited: bool = False,
    ) -> None:
        self.kvsname = kvsname
        self._size = size
        self._universe = size if universe is None else universe
        self._appnums = dict(appnums or {})
        self._ranks = frozenset(ranks)
        self._peers = frozenset(peers)
        self._space = dict(space or {})
        self._space_bytes = 0
        self._services: dict[str, str] = {} if services is None else services
        self._told = bool(self._peers) if told is None else told
        self._awaited = set(self._ranks) if awaited else set()  # must call init, or others hang
        self._inside: set[int] = set()  # between init and finalize
        self._gone: set[int] = set()  # finalized or ended: will never come to a barrier again
        self._waiting: set[int] = set()  # in the current barrier
        self._spawning: dict[int, _Blocks] = {}  # rank -> what it has said of a spawn that isn't whole yet
        self._k = 0
        self._puts: dict[str, str] = {}
        self._puts_bytes = 0
        self._fences: dict[int, dict[str, dict[str, str]]] = {}

    def resume(self) -> None:
        """All its ranks were elsewhere before, and are between MPI_Init and MPI_Finalize. What they put is gone."""
        self._inside = set(self._ranks)

    def handle(self, rank: int, line: bytes) -> list[Effect]:
        """What one line of one rank means; `line` comes without its newline."""
        if rank not in self._ranks or len(line) > LINE_BYTES_MAX:
            return [Bad(rank, f"rank {rank} sent a PMI line longer than {LINE_BYTES_MAX} bytes")]
        try:
            text = line.decode("ascii")
        except UnicodeDecodeError:
            return [Bad(rank, f"rank {rank} sent a PMI line that isn't text: {_shown(line)}")]
        if rank in self._spawning or text == "mcmd=spawn":
            return self._spawn(rank, text)
        words = _words(text)
        verb = _VERBS.get(words.get("cmd", ""))
        if verb is None:
            return [Bad(rank, f"rank {rank} sent a PMI line that isn't known: {_shown(line)}")]
        return verb(self, rank, words)

    def fence(self, node: str, k: int, puts: Mapping[str, str]) -> list[Effect]:
        """All ranks of `node` are in barrier `k`, with these puts."""
        if node not in self._peers or not isinstance(k, int) or not self._k <= k <= self._k + 1:
            return [Bad(None, f"{_shown(node)} sent fence {_shown(k)}, but this node is at fence {self._k}")]
        if not isinstance(puts, dict) or not all(_fits(key, value) for key, value in puts.items()):
            return [Bad(None, f"{node} sent a fence whose puts aren't keys and values")]
        self._fences.setdefault(k, {})[node] = dict(puts)
        return self._stuck() or self._release()

    def published(self, service: str, port: str | None) -> list[Effect]:
        """Another node's rank published `service` at `port`, or took it back (None)."""
        if not isinstance(service, str) or not (port is None or isinstance(port, str)):
            return [Bad(None, "a peer published a name that isn't text")]
        self._set_service(service, port)
        return []

    def spawned(self, rank: int, codes: Sequence[int] = (), trouble: str = "") -> list[Effect]:
        """What became of the spawn that `rank` asked for: a code for each child (0: it runs), or what was wrong."""
        if trouble:
            text = "".join(c if c.isascii() and c.isalnum() else "_" for c in trouble[:NAME_LENGTH_MAX])
            return [_reply(rank, "spawn_result", rc=-1, errmsg=text)]
        return [_reply(rank, "spawn_result", rc=0, errcodes=",".join(map(str, codes)))]

    def left(self, rank: int) -> list[Effect]:
        """The process of `rank` has ended; call it after the last line of the rank was handled."""
        self._spawning.pop(rank, None)
        inside = rank in self._inside
        self._inside.discard(rank)
        self._gone.add(rank)
        if inside:
            return [Bad(rank, f"rank {rank} ended between MPI_Init and MPI_Finalize")]
        if rank in self._awaited:
            return [Bad(rank, f"rank {rank} was spawned and ended without MPI_Init")]
        return self._stuck()

    # -- the verbs -----------------------------------------------------------------------------------------------

    def _init(self, rank: int, words: dict[str, str]) -> list[Effect]:
        if rank in self._inside:
            return [Bad(rank, f"rank {rank} called PMI init twice")]
        self._inside.add(rank)
        self._awaited.discard(rank)
        self._gone.discard(rank)
        return [_reply(rank, "response_to_init", pmi_version=1, pmi_subversion=1, rc=0)]

    def _get_maxes(self, rank: int, words: dict[str, str]) -> list[Effect]:
        return [
            _reply(
                rank, "maxes", kvsname_max=NAME_LENGTH_MAX, keylen_max=KEY_LENGTH_MAX, vallen_max=VALUE_LENGTH_MAX, rc=0
            )
        ]

    def _get_universe_size(self, rank: int, words: dict[str, str]) -> list[Effect]:
        return [_reply(rank, "universe_size", size=self._universe, rc=0)]

    def _get_appnum(self, rank: int, words: dict[str, str]) -> list[Effect]:
        return [_reply(rank, "appnum", appnum=self._appnums.get(rank, 0), rc=0)]

    def _get_my_kvsname(self, rank: int, words: dict[str, str]) -> list[Effect]:
        return [_reply(rank, "my_kvsname", kvsname=self.kvsname, rc=0)]

    def _put(self, rank: int, words: dict[str, str]) -> list[Effect]:
        key, value = words.get("key", ""), words.get("value", "")
        if words.get("kvsname") != self.kvsname or not key or not _fits(key, value):
            return [_reply(rank, "put_result", rc=-1, msg="not_a_key_and_value_of_this_space")]
        size_bytes = len(key) + len(value) + PUT_BYTES
        if self._puts_bytes + size_bytes > FENCE_BYTES_MAX:
            return [_reply(rank, "put_result", rc=-1, msg="no_room_before_the_next_barrier")]
        self._puts[key] = value
        self._puts_bytes += size_bytes
        return [_reply(rank, "put_result", rc=0, msg="success")]

    def _get(self, rank: int, words: dict[str, str]) -> list[Effect]:
        key = words.get("key", "")
        value = self._puts.get(key, self._space.get(key)) if words.get("kvsname") == self.kvsname else None
        if value is None:
            return [_reply(rank, "get_result", rc=-1, msg="key_not_found", value="unknown")]
        return [_reply(rank, "get_result", rc=0, msg="success", value=value)]

    def _barrier_in(self, rank: int, words: dict[str, str]) -> list[Effect]:
        if rank not in self._inside or rank in self._waiting:
            how = "twice" if rank in self._inside else "before init"
            return [Bad(rank, f"rank {rank} came to a PMI barrier {how}")]
        self._waiting.add(rank)
        stuck = self._stuck()
        if stuck or self._waiting != self._ranks:
            return stuck
        effects: list[Effect] = [Fence(self._k, dict(self._puts))] if self._peers else []
        return effects + self._release()

    def _finalize(self, rank: int, words: dict[str, str]) -> list[Effect]:
        self._inside.discard(rank)
        self._gone.add(rank)
        return [_reply(rank, "finalize_ack", rc=0), *self._stuck()]

    def _abort(self, rank: int, words: dict[str, str]) -> list[Effect]:
        return [Abort(rank, (_number(words.get("exitcode"), 1)) & 255, words.get("message", ""))]

    def _publish_name(self, rank: int, words: dict[str, str]) -> list[Effect]:
        service, port = words.get("service", ""), words.get("port", "")
        if not service or service in self._services or not self._set_service(service, port):
            return [_reply(rank, "publish_result", rc=-1, msg="name_is_taken_or_no_room")]
        return [_reply(rank, "publish_result", info="ok", rc=0, msg="success"), *self._tell(service, port)]

    def _unpublish_name(self, rank: int, words: dict[str, str]) -> list[Effect]:
        service = words.get("service", "")
        if service not in self._services:
            return [_reply(rank, "unpublish_result", rc=-1, msg="service_not_found")]
        self._set_service(service, None)
        return [_reply(rank, "unpublish_result", info="ok", rc=0, msg="success"), *self._tell(service, None)]

    def _lookup_name(self, rank: int, words: dict[str, str]) -> list[Effect]:
        port = self._services.get(words.get("service", ""))
        if port is None:
            return [_reply(rank, "lookup_result", rc=-1, msg="service_not_found")]
        return [_reply(rank, "lookup_result", port=port, info="ok", rc=0, msg="success")]

    def _spawn(self, rank: int, text: str) -> list[Effect]:
        """A line of MPI_Comm_spawn. There is one block for each program; only the last is answered."""
        blocks = self._spawning.setdefault(rank, _Blocks())
        blocks.size_bytes += len(text) + 1
        if blocks.size_bytes > SPAWN_BYTES_MAX:
            return [Bad(rank, f"rank {rank} sent an MPI_Comm_spawn of more than {SPAWN_BYTES_MAX} bytes")]
        if text != "endcmd":
            key, equals, value = text.partition("=")
            if equals and key != "mcmd":
                blocks.words[key] = value
            return []
        if not blocks.take():
            return []
        del self._spawning[rank]
        if blocks.trouble:
            return self.spawned(rank, trouble=blocks.trouble)
        return [Spawn(rank, blocks.specs, blocks.puts)]

    # -- the fence -----------------------------------------------------------------------------------------------

    def _stuck(self) -> list[Effect]:
        """Somebody waits in a barrier to which a rank from here will never come: say so instead of hanging."""
        if self._gone and (self._waiting or self._fences.get(self._k)):
            rank = min(self._gone)
            return [Bad(rank, f"rank {rank} has left while other ranks wait for it in a PMI barrier")]
        return []

    def _release(self) -> list[Effect]:
        fences = self._fences.get(self._k, {})
        if self._waiting != self._ranks or fences.keys() != self._peers:
            return []
        for puts in (self._puts, *(fences[node] for node in sorted(fences))):
            self._space.update(puts)
            self._space_bytes += sum(len(key) + len(value) for key, value in puts.items())
        if self._space_bytes > SPACE_BYTES_MAX:
            return [Bad(None, f"the ranks have put more than {SPACE_BYTES_MAX} bytes into the PMI space")]
        self._fences.pop(self._k, None)
        self._waiting = set()
        self._puts = {}
        self._puts_bytes = 0
        self._k += 1
        return [_reply(rank, "barrier_out", rc=0) for rank in sorted(self._ranks)]

    def _set_service(self, service: str, port: str | None) -> bool:
        return set_service(self._services, service, port)

    def _tell(self, service: str, port: str | None) -> list[Effect]:
        return [Publish(service, port)] if self._told else []


_VERBS: dict[str, Callable[[Pmi, int, dict[str, str]], list[Effect]]] = {
    "init": Pmi._init,
    "get_maxes": Pmi._get_maxes,
    "get_universe_size": Pmi._get_universe_size,
    "get_appnum": Pmi._get_appnum,
    "get_my_kvsname": Pmi._get_my_kvsname,
    "put": Pmi._put,
    "get": Pmi._get,
    "barrier_in": Pmi._barrier_in,
    "finalize": Pmi._finalize,
    "abort": Pmi._abort,
    "publish_name": Pmi._publish_name,
    "unpublish_name": Pmi._unpublish_name,
    "lookup_name": Pmi._lookup_name,
}


def set_service(services: dict[str, str], service: str, port: str | None) -> bool:
    """Note a published name (port None: one that was taken back); False if it can't be."""
    if port is None:
        services.pop(service, None)
    elif len(services) >= SERVICES_MAX or not _fits(service, port, NAME_LENGTH_MAX):
        return False
    else:
        services[service] = port
    return True


def process_mapping(runs: Sequence[tuple[int, int]]) -> str:
    """PMI_process_mapping of a world: its ranks in order, as (node, how many in a row).

    One block `(first node, nodes, ranks per node)` for each run of neighbours that have equally many.
    """
    blocks: list[tuple[int, int, int]] = []
    for node, count in runs:
        if blocks and blocks[-1][2] == count and blocks[-1][0] + blocks[-1][1] == node:
            first, nodes, _ = blocks[-1]
            blocks[-1] = (first, nodes + 1, count)
        elif count:
            blocks.append((node, 1, count))
    return f"(vector,{','.join(f'({first},{nodes},{count})' for first, nodes, count in blocks)})"


def _words(text: str) -> dict[str, str]:
    """`cmd=put key=a value=b c` as a dict; a value or a message goes on to the end of the line, blanks and all."""
    words: dict[str, str] = {}
    rest = text.strip()
    while rest:
        key, equals, rest = rest.partition("=")
        if not equals:
            break
        key = key.strip()
        if key in ("value", "message"):
            words[key] = rest
            break
        value, _, rest = rest.partition(" ")
        words[key] = value
        rest = rest.lstrip()
    return words


def _pairs(words: Mapping[str, str], name: str) -> dict[str, str] | None:
    """`NAME_num=1`, `NAME_key_0=a`, `NAME_val_0=b` (`preput`, `info`) as a dict; None where some are missing."""
    pairs = {}
    for n in range(min(_number(words.get(f"{name}_num"), 0), len(words))):
        key, value = words.get(f"{name}_key_{n}"), words.get(f"{name}_val_{n}")
        if key is None or value is None:
            return None
        pairs[key] = value
    return pairs


def _reply(rank: int, cmd: str, **words: object) -> Reply:
    line = " ".join([f"cmd={cmd}", *(f"{key}={value}" for key, value in words.items())])
    return Reply(rank, line.encode("ascii") + b"\n")


def _fits(key: object, value: object, key_length_max: int = KEY_LENGTH_MAX) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, str)
        and len(key) <= key_length_max
        and len(value) <= VALUE_LENGTH_MAX
        and (key + value).isascii()
        and (key + value).isprintable()
    )


def _number(text: str | None, otherwise: int) -> int:
    try:
        return int(text[:20]) if text else otherwise
    except ValueError:
        return otherwise


def _shown(thing: object) -> str:
    text = repr(thing)
    return text if len(text) <= 80 else text[:77] + "..."
