"""By which paths inodes are reached: for people, since the tree itself only knows names in directories. Pure."""

from __future__ import annotations

from collections.abc import Collection

from beo.tree.state import State
from beo.tree.words import ROOT

DEPTH_MAX = 4_096  # a path of more folders is longer than any that Linux takes


def path_of_folder(state: State, ino: int, names: dict[int, tuple[int, bytes]]) -> str:
    """Return the path of a directory; names: of every directory its parent and name there, see `names_of`."""
    parts: list[bytes] = []
    while ino != ROOT and ino in names and len(parts) < DEPTH_MAX:
        ino, name = names[ino]
        parts.append(name)
    start = b"" if ino == ROOT else b"(inode %d)" % ino
    return b"/".join([start, *reversed(parts)]).decode(errors="surrogateescape") or "/"


def names_of(state: State, inos: Collection[int] = ()) -> dict[int, tuple[int, bytes]]:
    """Return parent and name there of every directory, and of these inodes, as far as they have one."""
    found: dict[int, tuple[int, bytes]] = {}
    for parent, folder in state.inodes.items():
        for name, (ino, _) in (folder.children or {}).items():
            if ino in inos or state.inodes[ino].is_dir:
                found.setdefault(ino, (parent, name))
    return found


def path_of(state: State, ino: int) -> str:
    """Return a path of an inode, "(inode N)" where it has none. Looks through the whole tree."""
    return path_of_folder(state, ino, names_of(state, {ino}))
