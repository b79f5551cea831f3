"""The settings of a cluster, as ``beo.toml`` has them. Values only; config.py reads the file."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

LEASE_MIN_S = 0.5  # below, a busy machine loses its lease to its own scheduler
PAIR_LEASE_MIN_S = 0.1  # of two heads: below, one commit to a slow disk is a silence
PROGRAMS_MAX = 100  # run one after another on a promotion: more would take longer than anyone waits
PROGRAM_KILL_S = 5.0  # from SIGTERM to SIGKILL, for one that takes too long
LINKS_MAX = 8  # cables between two machines
MOUNTS_MAX = 32  # folders at which one machine shows the tree: each is a process
RANGE_MAX = 4_096  # addresses for machines that boot from the heads: as many as a cluster has nodes
PREFIX_LENGTH_MAX = 32
DNS_MAX = 8  # servers of names that a machine is told of
INTERFACE_LENGTH_MAX = 15  # of a name: the kernel's IFNAMSIZ, less its end

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
BootMode = Literal["auto", "dhcp", "proxy", "off"]
BootPolicy = Literal["lan", "approve", "asset"]
Level = Literal["A", "B", "C"]  # docs/replication.md says what each promises


class HeadConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[head]"""

    listen: str = "127.0.0.1:0"  # port 0: a free one, remembered in cluster.json
    finished_keep_s: Annotated[float, msgspec.Meta(ge=0)] = 7 * 86_400.0  # records of ended jobs and their output
    finished_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 100_000
    queued_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = (
        100_000  # about 10 kB of RAM each with a usual environment
    )
    private: bool = False  # whether the names of others' jobs are hidden in `beo queue`
    # a waiting job whose priority is higher by so much has running ones halt at a checkpoint; 0: never
    preempt_above: Annotated[int, msgspec.Meta(ge=0, le=2_000)] = 100
    attached_grace_s: Seconds = 60.0  # a job of `beo run` ends when its client was silent for so long


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one user may have; of the maxima of running jobs, 0 is no limit."""

    queued_max: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 10_000  # so one alone can't fill head.queued_max
    running_max: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0  # jobs at one time
    slots_max: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 0  # of all his running jobs together
    priority_max: Annotated[int, msgspec.Meta(ge=-1_000, le=1_000)] = 0  # he may lower a job's priority, not raise it


NO_LIMITS = Limits(queued_max=1_000_000, priority_max=1_000)  # an admin's


class UsersConfig(Limits, frozen=True, forbid_unknown_fields=True):
    """[users], for every user but admins; ``[users.NAME]`` says otherwise for one (`named`)."""

    door: bool = True  # local users need no key: see docs/users.md
    overrides: dict[str, Limits] | msgspec.UnsetType = msgspec.UNSET

    @property
    def named(self) -> dict[str, Limits]:
        """The limits of those who have their own."""
        return {} if self.overrides is msgspec.UNSET else self.overrides

    def where(self, name: str) -> str:
        """Return which table of beo.toml sets a user's limits."""
        return f"users.{name}" if name in self.named else "users"

    def of(self, name: str) -> Limits:
        """Return the limits of a user."""
        return self.named.get(name, self)


class WorkerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[worker]"""

    lease_s: Annotated[float, msgspec.Meta(ge=LEASE_MIN_S, le=86_400)] = 15.0
    heartbeat_s: Annotated[float, msgspec.Meta(ge=0.02, le=60)] = 0.5
    peer_silence_s: Seconds = 4.0  # ranks of an attempt whose other node is silent for so long are ended
    grace_s: Seconds = 5.0  # between SIGTERM and SIGKILL
    processes_max: Annotated[int, msgspec.Meta(ge=16, le=1 << 22)] = 4_096  # of an attempt on one node, threads counted
    output_max_bytes: Annotated[int, msgspec.Meta(ge=1 << 20)] = 1 << 36  # that an attempt may print on one node
    shm_max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0  # of its /dev/shm; 0: a quarter of the node's memory
    checkpoint_max_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0  # of memory, for checkpoints; 0: half of the node's
    checkpoint_copy_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 300.0  # between copies to the heads; 0: none
    checkpoint_copy_bytes_s: Annotated[int, msgspec.Meta(ge=0)] = 50_000_000  # how fast at most; 0: as it can
    rack: Annotated[str, msgspec.Meta(max_length=200)] = ""  # where its machine stands: voters are spread over racks
    free_min_bytes: Annotated[int, msgspec.Meta(ge=0)] = 1 << 28  # of the node's disks, or a twentieth of a smaller one


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[[ha.on_promote]]: what runs where the primary is. Either `start`, and `stop` on the way down, or `run`.

    A command is a list of words, or a text that is divided as a shell would, which no shell sees.
    """

    name: str = ""  # in the log and in `beo ha status`; "": the program's own
    start: str | tuple[str, ...] = ()  # returns when it has started something, with 0
    stop: str | tuple[str, ...] = ()  # returns when that has ended
    run: str | tuple[str, ...] = ()  # stays: it is started again when it ends, and ended (SIGTERM) on the way down
    timeout_s: Seconds = 60.0  # for each start and each stop, and from SIGTERM to SIGKILL

    def __post_init__(self) -> None:
        """Refuse what can't be run; msgspec adds which of the programs it is."""
        for key in ("start", "stop", "run"):
            try:
                words = self.words(key)
            except ValueError as error:
                raise ValueError(f"`{key}` is no command: {str(error).lower()}") from None
            if (getattr(self, key) and not (words and words[0])) or any("\0" in word for word in words):
                raise ValueError(f"`{key}` is no command: it must begin with a program")
        if bool(self.start) == bool(self.run) or (self.stop and not self.start):
            raise ValueError("a program has either `start`, and `stop` if you like, or `run`")

    def words(self, key: str) -> tuple[str, ...]:
        """Return a command (start, stop, run) word by word; () where there is none."""
        command = getattr(self, key)
        if not isinstance(command, str):
            return tuple(command)
        from shlex import split  # here: every verb imports this file

        return tuple(split(command))

    @property
    def title(self) -> str:
        """The name that it goes by."""
        return self.name or self.words("run" if self.run else "start")[0].rpartition("/")[2]


class HaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[ha], of a cluster with two heads.

    level, takeover, failback and the two times are what the cluster begins with, and then `beo ha` sets them for both
    heads; the rest belongs to the machine whose file this is.
    """

    # acknowledged when: A on one disk, B and received by the other head, C on both disks
    level: Level = "C"
    takeover: Literal["automatic", "manual"] = "automatic"
    failback: bool = False  # whether head A becomes the primary again when it is back and in step
    lease_s: Annotated[float, msgspec.Meta(ge=PAIR_LEASE_MIN_S, le=60)] = 0.6  # a primary silent for longer is replaced
    silence_s: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 0.4  # with a standby silent for longer it goes on alone
    links: Annotated[tuple[str, ...], msgspec.Meta(max_length=LINKS_MAX)] = ()  # this machine's on further networks
    address: str = ""  # of the primary, whichever it is: "10.0.0.50/24"
    interface: str = ""  # that has it; "": the one in its network, else the one of the cluster's network
    on_promote: Annotated[tuple[Program, ...], msgspec.Meta(max_length=PROGRAMS_MAX)] = ()

    def __post_init__(self) -> None:
        """Refuse what can't be an address; msgspec says in which table."""
        for link in self.links:
            host, colon, port = link.partition(":")
            numbered = port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16
            if not host or " " in link or (colon and not numbered):
                raise ValueError(f"`links` has {link!r}: write each as HOST or HOST:PORT, like 192.168.7.2")
        titles = [program.title for program in self.on_promote]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise ValueError(f"`on_promote` has {twice[0]!r} twice: give each a `name` of its own")
        if self.address:
            _check_address(self.address)
        if "/" in self.interface or " " in self.interface or len(self.interface) > INTERFACE_LENGTH_MAX:
            raise ValueError(f"`interface` is {self.interface!r}: 'ip link' lists their names")

    @property
    def down_max_s(self) -> float:
        """How long the programs may take on the way down, at most."""
        return sum(program.timeout_s + 3 * PROGRAM_KILL_S for program in self.on_promote)


def _check_address(text: str) -> None:
    from ipaddress import IPv4Interface  # here: every verb imports this file

    try:
        address = IPv4Interface(text).ip
    except ValueError:
        raise ValueError(f"`address` is {text!r}: write an IPv4 address, like 10.0.0.50/24") from None
    if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_reserved:
        raise ValueError(f"`address` is {text!r}: that is none a machine could be reached by")


class FilesConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[files]: the tree of files that all nodes share.

    backend: "beo" serves it from the heads' disks; with "shared" the site has one already, which is at `path` on every
    machine, and beo keeps away from it. mounts: folder of each machine -> path in the tree, for machines whose beo runs
    as root. The two maxima are of one user: of the sizes of his files, and how many they are; 0 is no limit. sweep_s:
    how often chunks that no job needs are looked for; spare_s: those that were touched within it stay. bulk: how chunks
    reach the nodes: "plain" is fast, from node to node too, and unencrypted; "curve" is neither. held_bytes_max: of the
    chunks that a node keeps; 0: a tenth of its memory. without_head: what a node does that hears of no head: "wait", or
    "read" what it remembers, which others may have changed. level: of two heads, where a change is when it is
    acknowledged: "C" on both disks, "B" on one and received by the other, "A" on one.
    """

    backend: Literal["beo", "shared"] = "beo"
    path: str = ""
    level: Level = "C"
    mounts: Annotated[dict[str, str], msgspec.Meta(max_length=MOUNTS_MAX)] = {}
    user_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    user_files_max: Annotated[int, msgspec.Meta(ge=0, le=1 << 32)] = 0
    sweep_s: Annotated[float, msgspec.Meta(ge=0.1, le=1e9)] = 600.0
    # a submission sends and touches what it needs before it is made
    spare_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 3_600.0
    without_head: Literal["wait", "read"] = "wait"
    bulk: Literal["plain", "curve"] = "plain"
    held_bytes_max: Annotated[int, msgspec.Meta(ge=0, le=1 << 50)] = 0

    def __post_init__(self) -> None:
        """Refuse what is no path; msgspec says in which table."""
        for path in (*self.mounts, *self.mounts.values()):
            if not path.startswith("/") or ".." in path.split("/") or "\0" in path or ":" in path:
                raise ValueError(f'`mounts` has {path!r}: write folders and paths in full, like "/beo" = "/"')
        if any(not folder.strip("/") for folder in self.mounts):
            raise ValueError('`mounts` has "/": that is the machine\'s own')
        if (self.backend == "shared") != bool(self.path):
            raise ValueError('`path` goes with `backend = "shared"`: it says where those files are')
        if self.backend == "shared" and self.mounts:
            raise ValueError('`mounts` are of `backend = "beo"`: a shared file system is mounted by the site')


class BootConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[boot]: machines without a disk that boot from the heads.

    interface: the network interface by which they ask; "": none may ("beo boot serve" says it, too). mode: whether this
    head gives them addresses ("dhcp"), leaves that to another server and only says what to boot ("proxy"), or looks
    which it is to be ("auto"). router, dns, domain: what they are told with their addresses.

    policy: how such a machine is known, where `beo node set` says nothing else of it: docs/boot.md tells what each is
    worth.
    """

    interface: str = ""
    mode: BootMode = "auto"
    range: str = ""  # addresses for them: "10.77.0.100-10.77.0.199"; "": another DHCP server gives them
    router: str = ""
    dns: Annotated[tuple[str, ...], msgspec.Meta(max_length=DNS_MAX)] = ()
    domain: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.\-]{0,200}$")] = ""
    policy: BootPolicy = "approve"
    prefix: str = "pc"  # of their names: pc01, pc02, ...
    port: Annotated[int, msgspec.Meta(ge=0, lt=1 << 16)] = 7425  # where machines ask the heads, by HTTP
    window_s: Seconds = 300.0  # after it has fetched its boot script, a machine may join by policy "lan" for so long

    def __post_init__(self) -> None:
        """Refuse what is no range, or no beginning of a name; msgspec says in which table."""
        prefix = self.prefix.replace("-", "")
        if not (prefix.isascii() and prefix.isalnum() and prefix[0].isalpha() and len(prefix) <= PREFIX_LENGTH_MAX):
            raise ValueError(f"`prefix` is {self.prefix!r}: write some letters, like pc")
        if self.range:
            _check_range(self.range)
        if "/" in self.interface or " " in self.interface or len(self.interface) > INTERFACE_LENGTH_MAX:
            raise ValueError(f"`interface` is {self.interface!r}: 'ip link' lists their names")
        for address in (*filter(None, (self.router,)), *self.dns):
            _check_plain(address)


def _check_plain(text: str) -> None:
    from ipaddress import IPv4Address  # here: every verb imports this file

    try:
        IPv4Address(text)
    except ValueError:
        raise ValueError(f"`router` and `dns` are IPv4 addresses, like 10.77.0.1, not {text!r}") from None


def _check_range(text: str) -> None:
    from ipaddress import IPv4Address  # here: every verb imports this file

    first, dash, last = text.partition("-")
    try:
        low, high = IPv4Address(first.strip()), IPv4Address(last.strip())
    except ValueError:
        raise ValueError(f"`range` is {text!r}: write it as FIRST-LAST, like 10.77.0.100-10.77.0.199") from None
    if not dash or not int(low) <= int(high) < int(low) + RANGE_MAX:
        raise ValueError(f"`range` is {text!r}: it must have 1 to {RANGE_MAX} addresses, the lowest first")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of beo.toml; every key has a default."""

    head: HeadConfig = HeadConfig()
    worker: WorkerConfig = WorkerConfig()
    users: UsersConfig = UsersConfig()
    ha: HaConfig = HaConfig()
    files: FilesConfig = FilesConfig()
    boot: BootConfig = BootConfig()
