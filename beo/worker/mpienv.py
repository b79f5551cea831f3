"""How a plain `mpirun` or `mpiexec`, of MPICH or of Open MPI, finds the nodes of the job that it is called in. Pure.

Both read a host file and start one daemon per node by an `ssh` that they are told; that is `beo-rsh` here
(docs/decisions/0010). All of it goes by the environment, so a script says `mpirun ./a.out` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

HYDRA_HOSTS = ".beo-hosts-mpich"
PRRTE_HOSTS = ".beo-hosts-openmpi"
"""The host files, in the job's folder for temporary files at each of its nodes."""

STALE = ("HYDRA_BOOTSTRAP", "HYDRA_BOOTSTRAP_EXEC")
"""Older names of what is set below, which would win over it."""

# What a job may set otherwise.
DEFAULTS = {
    # Ranks take their environment from the daemon of their own node, which has that node's TMPDIR and network; Hydra
    # would give all of them that of the script. Hydra 5.0.2 can't spawn with it ("duplicate setting: genv-prop"): who
    # calls MPI_Comm_spawn under mpirun unsets it.
    "HYDRA_ENV": "none",
    # The kernel knows better where a rank belongs: two jobs on a node would be bound to the same cores.
    # (`overload-allowed` is for MPI_Comm_spawn, whose processes PRRTE would bind all the same.)
    "PRTE_MCA_hwloc_default_binding_policy": "none:overload-allowed",
    "PRTE_MCA_rmaps_default_mapping_policy": "slot",
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


def environment(folder: str, rsh: str, python: str) -> dict[str, str]:
    """What makes both use this job's nodes, whatever other job manager the submitter's environment tells of.

    folder: where the host files are. rsh: the path of beo-rsh. python: what to run it with.
    """
    return {
        "BEO_PYTHON": python,
        "HYDRA_HOST_FILE": f"{folder}/{HYDRA_HOSTS}",
        "HYDRA_LAUNCHER": "ssh",
        "HYDRA_LAUNCHER_AUTOFORK": "0",  # a name that resolves to this machine may be another of its nodes
        "HYDRA_LAUNCHER_EXEC": rsh,
        "HYDRA_RMK": "user",
        "PRTE_MCA_ess": "^slurm",
        "PRTE_MCA_plm": "ssh",
        "PRTE_MCA_plm_ssh_agent": rsh,
        "PRTE_MCA_plm_ssh_no_tree_spawn": "1",  # the path of beo-rsh counts at this node
        "PRTE_MCA_prte_default_hostfile": f"{folder}/{PRRTE_HOSTS}",
        "PRTE_MCA_ras": "^slurm,pbs",
    }


APART = {
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "MPIR_CVAR_NOLOCAL": "1",
    "FI_PROVIDER": "tcp",
    "FI_TCP_IFACE": "beo0",
    "BEO_INTERFACE": "beo0",
}
"""For ranks that are machines of their own (apart.py): TCP is what CRIU can take along."""

FOREIGN = frozenset({*STALE, *environment("", "", "")})
"""Variables of a submitter that would lead a job's mpirun elsewhere."""


def host_files(places: Mapping[str, int]) -> dict[str, str]:
    """Their names and texts. places: how many ranks each node has room for, in order; nodes without are left out."""
    open_ones = {node: count for node, count in places.items() if count}
    return {
        HYDRA_HOSTS: "".join(f"{node}:{count}\n" for node, count in open_ones.items()),
        PRRTE_HOSTS: "".join(f"{node} slots={count}\n" for node, count in open_ones.items()),
    }


def host_of(address: str) -> str:
    """The numeric host of "host:port"; "" where it is a name, which can't stand in a hosts file."""
    host = address.rpartition(":")[0].strip("[]")
    return host if ":" in host or host.replace(".", "").isdigit() else ""
