"""From what the head decided to what a warden is told: the `start` message with every rank's environment.

Pure: the node's facts and the nonce come as arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from beo.worker import mpienv
from beo.worker.pmi import process_mapping

GRACE_S = 30.0
"""Between SIGTERM and SIGKILL if the job says nothing: time to write a checkpoint of some gigabytes."""


@dataclass(frozen=True, slots=True)
class Part:
    """One node's part of an attempt: its name, the global numbers of its ranks, rising, and how many ranks more there
    are slots for. host: of its agent's address, numeric, or empty.
    """

    node: str
    ranks: tuple[int, ...]
    more: int = 0
    host: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt as the head placed it.

    job, attempt: its numbers. size: of how many ranks. parts: the nodes in order. nodes_folded: their names in short
    ("node[1-4]"). env: the job's own environment, which wins over everything but BEO_* and PMI_*. uid, gid, groups:
    whose it is (None: the worker's own). cpus: cores per rank. batch: its rank is a script that needs no slot.
    terminal: (rows, columns) of rank 0's, None: it has pipes. bundle: the files that it has along, "" none; outputs:
    patterns of what is kept of its files. copies: node -> bundles with which its vault is to begin, `anew`
    where it isn't empty, too. signal, notice_s, goes_on, movable, migratable: as its spec has them.
    """

    job: int
    attempt: int
    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]
    size: int
    parts: Sequence[Part]
    nodes_folded: str
    name: str = ""
    cpus: int = 1
    batch: bool = False
    mpi: bool = True
    stdin: bool = False
    terminal: tuple[int, int] | None = None
    time_limit_s: float | None = None
    grace_s: float = GRACE_S
    mem_bytes: int | None = None
    uid: int | None = None
    gid: int | None = None
    groups: Sequence[int] | None = None
    bundle: str = ""
    outputs: Sequence[str] = ()
    copies: Mapping[str, Sequence[str]] = field(default_factory=dict)
    anew: bool = False
    signal: int = 0
    notice_s: float = 0.0
    goes_on: bool = False
    movable: bool = False
    migratable: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node knows of itself: its name and its cluster's, the interface of the cluster's network, and where it
    lets this attempt have temporary files and a cgroup. limits: output_bytes, shm_bytes and free_bytes, see bounds.py.
    rsh, python: the path of `beo-rsh` and what runs it. work, at: where the files that it has along are put, and where
    they are seen (None: there). home: the cluster's folder. vault: the folder that outlives the attempt, and the file
    in which its ranks are told to take a checkpoint (None: there is none). mtbf_s: what failures the head expects (0:
    it didn't say). dump: where what CRIU makes of a movable program lies.
    """

    cluster: str
    node: str
    interface: str | None = None
    tmp: str | None = None
    cgroup: str | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    rsh: str = ""
    python: str = ""
    work: str | None = None
    at: str | None = None
    home: str = ""
    vault: tuple[str, str] | None = None
    mtbf_s: float = 0.0
    dump: str = ""


def start_message(attempt: Attempt, facts: Facts, nonce: str, leash_until_ns: int | None = None) -> dict[str, Any]:
    """The message with which the warden of `facts.node` starts its part of `attempt`.

    nonce: the same on every node of the attempt and never used before (such as 16 random hex digits drawn when the
    start was decided). ValueError if the node has no part of it.
    """
    part = next((part for part in attempt.parts if part.node == facts.node), None)
    if part is None:
        nodes = ", ".join(part.node for part in attempt.parts)
        raise ValueError(f"node {facts.node} has no part of job {attempt.job}: it runs on {nodes}")
    return {
        "op": "start",
        "job": attempt.job,
        "attempt": attempt.attempt,
        "node": facts.node,
        "nodes": [part.node for part in attempt.parts],
        "argv": list(attempt.argv),
        "cwd": working_folder(attempt, facts),
        "env": environment(attempt, facts),
        "ranks": list(part.ranks),
        "size": attempt.size,
        "env_of": {str(rank): rank_environment(rank, local) for local, rank in enumerate(part.ranks)},
        "stdin": attempt.stdin,
        "terminal": attempt.terminal,
        "pmi": process_management(attempt, facts.cluster, nonce),
        "once": attempt.movable,
        "steps": room_for_steps(attempt, facts.cluster, nonce),
        "names": {part.node: part.host for part in attempt.parts},
        "files": mpienv.host_files(_room(attempt)) if _has_room(attempt) else {},
        "time_limit_s": attempt.time_limit_s,
        "grace_s": attempt.grace_s,
        "notice": {
            "signal": attempt.signal,
            "before_s": attempt.notice_s,
            "goes_on": attempt.goes_on,
            "word": facts.vault[1] if facts.vault else None,
        },
        "mem_bytes": attempt.mem_bytes,
        "cgroup": facts.cgroup,
        "limits": dict(facts.limits),
        "tmp": facts.tmp,
        "carried": carried(attempt, facts),
        "uid": attempt.uid,
        "gid": attempt.gid,
        "groups": None if attempt.groups is None else list(attempt.groups),
        "leash_until_ns": leash_until_ns,
    }


def working_folder(attempt: Attempt, facts: Facts) -> str:
    """Where the ranks run: with files along, where these are."""
    return (facts.at or facts.work or attempt.cwd) if attempt.bundle else attempt.cwd


def carried(attempt: Attempt, facts: Facts) -> dict[str, Any] | None:
    """What the warden needs to know of files that come along or are kept; None where there are none."""
    if not attempt.bundle and not attempt.outputs and not attempt.copies:
        return None
    return {
        "copies": list(attempt.copies.get(facts.node, ())),
        "anew": attempt.anew,
        "vault": facts.dump or (facts.vault[0] if facts.vault else None),
        "as_root": attempt.movable,
        "bundle": attempt.bundle,
        "outputs": list(attempt.outputs),
        "work": facts.work if attempt.bundle else None,
        "at": facts.at if attempt.bundle else None,
        "python": facts.python,
        "home": facts.home,
    }


def environment(attempt: Attempt, facts: Facts) -> dict[str, str]:
    """What every rank on the node has in its environment: defaults, then the job's own words, then beo's."""
    # A job submitted from within an MPI program must not take itself for a part of that program.
    own = {k: v for k, v in attempt.env.items() if not k.startswith(("PMI_", "PMIX_")) and k not in mpienv.FOREIGN}
    env = {"OMP_NUM_THREADS": str(attempt.cpus), **_network(facts.interface), **mpienv.DEFAULTS, **own}
    if facts.tmp is not None and _has_room(attempt):
        env |= mpienv.environment(facts.tmp, facts.rsh, facts.python)
    env |= {
        "BEO_CLUSTER": facts.cluster,
        "BEO_JOB_ID": str(attempt.job),
        "BEO_JOB_NAME": attempt.name,
        "BEO_ATTEMPT": str(attempt.attempt),
        "BEO_SIZE": str(attempt.size),
        "BEO_NODES": attempt.nodes_folded,
        "BEO_NODE": facts.node,
        "BEO_INTERFACE": facts.interface or "",
    }
    if facts.tmp is not None:
        env["TMPDIR"] = facts.tmp
    if facts.vault is not None:
        env["BEO_CHECKPOINT_DIR"], env["BEO_CHECKPOINT_WORD"] = facts.vault
    if facts.mtbf_s:
        env["BEO_MTBF_S"] = f"{facts.mtbf_s:.0f}"
    if attempt.bundle:
        env["BEO_WORK"] = env["PWD"] = working_folder(attempt, facts)
    return env


def rank_environment(rank: int, local_rank: int) -> dict[str, str]:
    """What one rank has on top; PMI_FD and the like come from the warden, which makes the sockets."""
    return {"BEO_RANK": str(rank), "BEO_LOCAL_RANK": str(local_rank)}


def process_management(attempt: Attempt, cluster: str, nonce: str) -> dict[str, Any] | None:
    """What the warden's PMI needs to know; None for a rank that can only be alone in its world: it can't spawn.

    A batch job's script has none either: it isn't MPI, and what it starts has worlds of its own.
    """
    if not attempt.mpi or attempt.batch or _places(attempt) == 1:
        return None
    return {
        # Unique for ever: segments in shared memory are named after it, and a name used before corrupts MPI_Init.
        "kvsname": f"{_world(attempt, cluster)}_0_{nonce}",
        "mapping": process_mapping(
            [(rank, 1) for rank in range(attempt.size)]  # each is a machine of its own, and shares no memory
            if attempt.migratable
            else [(node, len(part.ranks)) for node, part in enumerate(attempt.parts)]
        ),
        "back": attempt.migratable and bool(attempt.copies),
        "universe": _places(attempt),
    }


def room_for_steps(attempt: Attempt, cluster: str, nonce: str) -> dict[str, Any]:
    """What the wardens need to know for steps: the slots of each node, and those that the job's ranks hold."""
    held = 0 if attempt.batch else attempt.cpus
    return {
        "slots": [(part.more + (0 if attempt.batch else len(part.ranks))) * attempt.cpus for part in attempt.parts],
        "taken": [len(part.ranks) * held for part in attempt.parts],
        "cpus": attempt.cpus,
        "world": _world(attempt, cluster),
        "nonce": nonce,
    }


def _room(attempt: Attempt) -> dict[str, int]:
    """How many ranks `mpirun` may start on each node."""
    return {part.node: part.more for part in attempt.parts}


def _has_room(attempt: Attempt) -> bool:
    return any(_room(attempt).values())


def _places(attempt: Attempt) -> int:
    return sum(part.more + len(part.ranks) for part in attempt.parts)


def _world(attempt: Attempt, cluster: str) -> str:
    return f"beo_{cluster}_{attempt.job}_{attempt.attempt}"


def _network(interface: str | None) -> dict[str, str]:
    """Settings that keep every MPI on the cluster's network: a second one that looks alike everywhere breaks them.

    On the loopback of a cluster on one machine MPICH gets OFI, since UCX takes the loopback for a way to its own host
    alone, and behind walls of their own the nodes look like different hosts (docs/decisions/0005).
    """
    if interface is None:
        return {}
    if interface == "lo":
        return {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo", "HYDRA_IFACE": "lo"}
    return {
        "UCX_NET_DEVICES": interface,
        "FI_TCP_IFACE": interface,
        "HYDRA_IFACE": interface,
        "OMPI_MCA_btl_tcp_if_include": interface,
        "PRTE_MCA_prte_if_include": interface,
    }
