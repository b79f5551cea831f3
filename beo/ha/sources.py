"""Heartbeat's files as they lie on a disk: found by their names, and read with suspicion."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from beo.errors import UsageError, reason
from beo.ha import heartbeat
from beo.ha.heartbeat import Source

SIZE_MAX_BYTES = 1 << 20  # these files have some dozen lines
LINES_MAX = 10_000
PATHS_MAX = 16  # Heartbeat's clusters have two nodes, with five files each
SCRIPT_FOLDERS = ("/etc/ha.d/resource.d", "/etc/init.d", "/etc/rc.d/init.d")
UNIT_FOLDERS = ("/etc/systemd/system", "/lib/systemd/system", "/usr/lib/systemd/system")

_NAMES = "ha.cf, haresources, authkeys, drbd0 or drbd.conf"


def gather(paths: Sequence[str]) -> list[list[Source]]:
    """Return the files of each node: a folder is a node's, and so are all files of one folder. Raises UsageError."""
    if len(paths) > PATHS_MAX:
        raise UsageError(f"{len(paths)} folders and files", f"the limit is {PATHS_MAX}", "give one folder per node")
    nodes: dict[str, list[Source]] = {}
    for path in paths:
        if os.path.isdir(path):
            nodes.setdefault(os.path.normpath(path), []).extend(_of_folder(path))
        else:
            if not (kind := heartbeat.kind_of(os.path.basename(path))):
                raise UsageError(f"{path} is no file of Heartbeat's", "", f"they are called {_NAMES}")
            nodes.setdefault(os.path.normpath(os.path.dirname(path)), []).append(read(path, kind))
    return list(nodes.values())


def _of_folder(folder: str) -> list[Source]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UsageError(f"can't read {folder}", reason(error), "give a folder that you may read") from None
    found = [(name, kind) for name in names if (kind := heartbeat.kind_of(name))]
    found = [(name, kind) for name, kind in found if not os.path.isdir(os.path.join(folder, name))]
    if not found:
        raise UsageError(f"no file of Heartbeat's in {folder}", "", f"they are called {_NAMES}")
    return [read(os.path.join(folder, name), kind) for name, kind in found]


def read(path: str, kind: str) -> Source:
    """Return one file. Raises UsageError for what is no text of a sensible size."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(f"can't read {path}", "it is not a file", "give a readable text")
            data = file.read(SIZE_MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"can't read {path}", reason(error), "give a readable text") from None
    if len(data) > SIZE_MAX_BYTES or data.count(b"\n") > LINES_MAX:
        limits = f"more than {SIZE_MAX_BYTES} bytes or {LINES_MAX} lines"
        raise UsageError(f"{path} is no file of Heartbeat's", limits, "give the one in /etc/ha.d")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # as it was when Heartbeat was new
    if any((ord(letter) < 32 and letter not in "\t\n\r\f") or 127 <= ord(letter) < 160 for letter in text):
        raise UsageError(f"{path} is no text", "it has control characters", "give the one in /etc/ha.d")
    return Source(path, kind, text)


def find_script(name: str) -> tuple[str, ...]:
    """Return the words that call a resource's script on this machine: it or, where there is none, its systemd unit."""
    if "/" in name and not name.startswith("/"):
        return ()  # Heartbeat looks in its folders, not beside them
    for path in [name] if name.startswith("/") else [f"{folder}/{name}" for folder in SCRIPT_FOLDERS]:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return (path,)
    if "/" not in name and any(Path(folder, f"{name}.service").is_file() for folder in UNIT_FOLDERS):
        return ("systemctl", name)
    return ()
