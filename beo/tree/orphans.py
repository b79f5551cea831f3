"""What a head had in its copy of the tree and the other one has not, put aside before it is taken back.

A list per cut in `head/tree/orphans/`, one JSON line per change, named by its first and last entry and the last one's
hash, so that the same cut never gives two; beside it a folder with the files that the changes were about, as this head
had them. What was never acknowledged to anybody, and is most likely asked for again, has another ending.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from beo.config import write_durably
from beo.entries import Entry
from beo.errors import BeoError, reason
from beo.snapshots import sync_folder
from beo.tree import changes
from beo.tree.changes import Allocated, Change, Changed, Linked, Made, Moved, Removed, Wrote
from beo.tree.paths import names_of, path_of_folder
from beo.tree.state import State

CUTS_MAX = 100  # of each ending; beyond, the oldest goes, with its files
CHANGES_MAX = 100_000  # in one list: a second of the highest rate; what is more is counted in its last line
CONTENT_MAX_BYTES = 256 << 20  # of the files of one cut, and of what room there is, half
LIST_MAX_BYTES = 256 << 20  # of one that is read back
SAID, UNSAID, DONE = ".jsonl", ".unsaid", ".done"


class Orphan(msgspec.Struct, frozen=True):
    """One change that the cluster has not: where it stood in the log, what it was, of which path, when and whose.

    content: the name of the file beside the list that holds the bytes, "" where there is none; whole: it has them all.
    sure: the cluster has it not; else it may have.
    """

    index: int
    epoch: int
    time_s: float
    what: str
    path: str
    uid: int
    content: str = ""
    whole: bool = True
    sure: bool = True


_line = msgspec.json.Decoder(Orphan)


def put_aside(
    folder: Path,
    entries: Sequence[Entry],
    state: State,
    acknowledged: int,
    content: Callable[[int, int, Path], bool],
    time_s: float,
    sure: bool = True,
) -> None:
    """Keep these entries and the files that they are about, durably. Raises OSError.

    state: the tree after them. acknowledged: up to this entry they were. content(ino, bytes at most, file) writes one.
    sure: the cluster has nothing of it.
    """
    found = [(entry, changes.decode(entry.data)) for entry in entries]
    ending = SAID if any(entry.index <= acknowledged and _words(change) for entry, change in found) else UNSAID
    name = f"{entries[0].index:012d}-{entries[-1].index:012d}-{entries[-1].hash.hex()[:12]}"
    if any((folder / (name + end)).exists() for end in (SAID, UNSAID, SAID + DONE, UNSAID + DONE)):
        return
    lines = list(_lines(found[:CHANGES_MAX], state, time_s))
    if not lines:
        return
    if len(found) > CHANGES_MAX:
        lines.append(Orphan(entries[-1].index, entries[-1].epoch, time_s, f"{len(found) - CHANGES_MAX} more", "", 0))
    (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    free = os.statvfs(folder)
    left = min(CONTENT_MAX_BYTES, free.f_bavail * free.f_frsize // 2)
    whole: dict[str, bool] = {}
    for one in lines:
        if one.content and one.content not in whole:
            path = folder / name / one.content
            whole[one.content] = content(int(one.content), left, path)
            left -= path.stat().st_size
    sync_folder(folder / name)
    text = b"".join(
        msgspec.json.encode(msgspec.structs.replace(one, whole=whole.get(one.content, True), sure=sure)) + b"\n"
        for one in lines
    )
    write_durably(folder / (name + ending), text, 0o600)
    for old in files(folder, ending)[:-CUTS_MAX]:
        shutil.rmtree(old.with_suffix(""), ignore_errors=True)
        old.unlink(missing_ok=True)


def files(folder: Path, ending: str = SAID) -> list[Path]:
    """Return the lists of a folder, the oldest first; none where there is no folder."""
    with suppress(OSError):
        return sorted(folder.glob("*" + ending), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return []


def count(folder: Path) -> int:
    """Return how many changes are in the lists of what may have been acknowledged."""
    total = 0
    for path in files(folder):
        with suppress(OSError), path.open("rb") as file:
            total += sum(1 for _ in file)
    return total


def bring_out(path: Path, found: Sequence[Orphan], to: Path) -> dict[str, str]:
    """Copy the files of a list into a folder, each under its path; return where each went, by its name in the list.

    What is there already is not touched: such a file gets another name. Raises OSError.
    """
    gone: dict[str, str] = {}
    for one in found:
        if not one.content or one.content in gone:
            continue
        parts = [part for part in one.path.split("/") if part not in ("", ".", "..")]
        target = to.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while target.exists():
            number += 1
            target = target.with_name(f"{parts[-1]}.{number}")
        shutil.copyfile(path.with_suffix("") / one.content, target)
        gone[one.content] = str(target)
    return gone


def read(path: Path) -> list[Orphan]:
    """Return what a list holds. Raises BeoError where it can't be read or is none of ours."""
    try:
        if path.stat().st_size > LIST_MAX_BYTES:
            raise ValueError(f"it has more than {LIST_MAX_BYTES >> 20} MiB")
        return [_line.decode(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as error:  # of msgspec, too
        raise BeoError(f"{path} can't be read", reason(error), "move it aside") from None


def _words(change: Change) -> str:
    """What a change was, in words; "" where it says nothing to people."""
    match change:
        case Made():
            return "made"
        case Linked():
            return "linked"
        case Removed():
            return "removed"
        case Moved():
            return "exchanged with" if change.exchange else "moved to"
        case Wrote():
            return f"wrote {change.size} bytes at {change.offset}"
        case Changed() if change.size is not None:
            return f"cut to {change.size} bytes"
        case Changed():
            kinds = {"mode": change.mode, "owner": change.uid, "group": change.gid, "times": change.mtime_ns}
            return "set " + (", ".join(kind for kind, value in kinds.items() if value is not None) or "times")
        case Allocated():
            return f"{'hole' if change.punch else 'room'} of {change.length} bytes at {change.offset}"
        case _:
            return ""


def _lines(found: Sequence[tuple[Entry, Change]], state: State, time_s: float) -> Iterator[Orphan]:
    inos = {ino for _, change in found for ino in changes.bytes_of(change)}
    names = names_of(state, inos)
    by_name = {place: ino for ino, place in names.items()}

    def path(parent: int, name: bytes) -> str:
        return path_of_folder(state, parent, names).rstrip("/") + "/" + name.decode(errors="backslashreplace")

    for entry, change in found:
        what, content, ino = _words(change), "", 0
        match change:
            case Made() | Linked() | Removed():
                where, ino = path(change.parent, change.name), by_name.get((change.parent, change.name), 0)
            case Moved():
                where = path(change.parent, change.name)
                what += " " + path(change.new_parent, change.new_name)
                ino = by_name.get((change.new_parent, change.new_name), 0)
            case Wrote() | Changed() | Allocated():
                ino = change.ino
                where = path(*names[ino]) if ino in names else path_of_folder(state, ino, names)
                if ino in inos and ino in state.inodes and state.inodes[ino].is_file:
                    content = str(ino)
            case _:
                continue
        known = state.inodes.get(ino)
        uid = change.uid if isinstance(change, Made) else known.uid if known else -1
        yield Orphan(entry.index, entry.epoch, (change.now_ns / 1e9) or time_s, what, where, uid, content)
