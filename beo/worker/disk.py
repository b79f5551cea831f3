"""The room on a disk: whether there is enough for jobs, and how much of it a folder holds. Standard library only."""

from __future__ import annotations

import os

SMALL_DISK = 20
"""Of a disk so small that the floor is most of it, this part is kept free: a twentieth."""
INODES_MIN = 1_000
"""Files that can still be made on a disk: below, it is full, however many bytes are free."""
LOOKED_AT_MAX = 50_000
"""Files of an attempt that are looked at to tell what it holds: a moment's work. Who has more holds enough."""


def is_full(folder: str, free_min_bytes: int) -> bool:
    """Whether the disk below a folder has so little room left that no job may take more of it."""
    try:
        room = os.statvfs(folder)
    except OSError:
        return False  # gone: there is nothing to be filled
    short_of_files = bool(room.f_files) and room.f_favail < min(INODES_MIN, room.f_files // SMALL_DISK)
    return short_of_files or room.f_bavail * room.f_frsize < floor(room, free_min_bytes)


def floor(room: os.statvfs_result, free_min_bytes: int) -> int:
    """How many bytes of a disk are to stay free."""
    return min(free_min_bytes, room.f_blocks * room.f_frsize // SMALL_DISK)


def held(folder: str) -> tuple[int, int]:
    """How many files a folder holds, and how much of the disk they take; of a great many, the first."""
    files = size_bytes = 0
    folders = [folder]
    while folders and files < LOOKED_AT_MAX:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    files += 1
                    status = entry.stat(follow_symlinks=False)
                    size_bytes += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    if files >= LOOKED_AT_MAX:
                        break
        except OSError:
            continue  # removed meanwhile
    return files, size_bytes
