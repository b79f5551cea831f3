"""What attempts have outside their node's folder (temporary folders, cgroups), and its removal when nothing runs.

Wardens and agents remove it themselves. Where both were killed, whoever ends the cluster comes after them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress

from beo.worker import contain, probe

TMP = "/tmp"


def mark(cluster: str, node: str) -> str:
    """Return what the names of all that belongs to a node begin with, before a hyphen."""
    return f"beo-{cluster[:8]}-{node}"


def found(cluster: str, nodes: Iterable[str]) -> list[str]:
    """Return all that there is of these nodes of a cluster."""
    starts = tuple(f"{mark(cluster, node)}-" for node in nodes)
    folders = dict.fromkeys((TMP, probe.memory_limit()[1], probe.process_limit()[1]))
    return sorted(f"{folder}/{name}" for folder in folders for name in _names(folder) if name.startswith(starts))


def attempts(cluster: str, node: str) -> set[tuple[int, int]]:
    """Return which attempts, as (job, attempt), a node of a cluster has anything of."""
    ours = re.compile(rf"{re.escape(mark(cluster, node))}-(\d+)\.(\d+)(?![^-])", re.ASCII)
    found_here = (ours.match(os.path.basename(path)) for path in found(cluster, [node]))
    return {(int(one[1]), int(one[2])) for one in found_here if one}


def remove(cluster: str, nodes: Iterable[str]) -> None:
    """Remove it; what the kernel still holds on to stays. No process of these nodes may be left."""
    for path in found(cluster, nodes):
        if path.startswith(f"{TMP}/"):
            if os.path.isdir(path) and not os.path.islink(path):
                remove_folder(path)
            else:
                with suppress(OSError):  # a script that was never started, or a link that somebody left there
                    os.unlink(path)
        else:
            probe.remove_cgroup(path)


def remove_folder(path: str) -> None:
    """Remove a folder with all in it, and what is mounted there, as a node's vault is."""
    if os.path.ismount(path):
        with suppress(OSError):
            contain.unmount(path)
    shutil.rmtree(path, ignore_errors=True)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder) if folder else []
    except OSError:
        return []
