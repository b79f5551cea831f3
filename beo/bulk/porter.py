"""The porter: carries a job's files in before its ranks start, and its results out when they have ended.

``python -m beo.bulk.porter``, started by a warden behind the walls of the attempt, with BEO_DIR set. It is told what to
do by one line of JSON on its input and answers by lines on its output; descriptor 3 is a file that is kept from the one
to the other. It opens its session with the tree by the node's key, then becomes the job's owner, for good: all that it
reads and writes on the node is done as him.

    {"do": "stage", …}    {"staged": true} when the bundle is in the folder, and what there is of results is noted
    {"do": "collect", …}  {"found": NAME} of a list of what is new (of several nodes), and when it was told of the
                          others' lists {"others": [[NODE, NAME], …]}: {"collected": true}
    either                {"failed": WHY, "again": whether another try may do better}
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from beo import messages as ms
from beo import question
from beo.bulk import chunks, results, words
from beo.bulk.chunks import Damaged
from beo.bulk.held import Held
from beo.bulk.store import Fetch, Missing, Store, manifest
from beo.bulk.unpacking import Unpacking
from beo.config import Home, home
from beo.errors import BeoError, NoHead
from beo.tree import plans
from beo.tree import words as w
from beo.tree.files import Files, new_tag
from beo.tree.session import ROOT_CALLER, Session
from beo.units import format_size
from beo.worker.ranks import Person

KEPT = 3  # the descriptor of the file that is kept
STAGE_PATIENCE_S = 120.0  # for a tree that doesn't answer: the order came from a head, so there is one
HELD_S = 5.0  # for the node's process for chunks, which the agent starts with its first job that takes files along
LOCATE_S = 5.0
COLLECT_WIDTH = 8  # files under way at a time
READ_BYTES = 1 << 20
RESULTS = "/jobs"
RESULTS_MODE, FOLDER_MODE = 0o1777, 0o755
LISTING_MAX_BYTES = 1 << 30
_PR_SET_PDEATHSIG = 1


class Task(msgspec.Struct, frozen=True):
    """What to do. work: the folder of the job; bundle: what goes into it, "" nothing. outputs: patterns of results.
    copies: bundles with which the folder `vault` begins, where it is empty; as_root: they are root's there; anew: what
    is in it is of no use.

    nodes: how many the attempt has. uid None: whoever this process is.
    """

    do: str
    job: int
    node: str
    nodes: int
    work: str
    bundle: str = ""
    outputs: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    vault: str = ""
    as_root: bool = False
    anew: bool = False
    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None


class Others(msgspec.Struct, frozen=True):
    """What the nodes before this one have found, in their order: (node, name of a list)."""

    others: tuple[tuple[str, str], ...]


class Trouble(Exception):
    """It can't be done. again: another try, on another node say, may do better."""

    def __init__(self, why: str, again: bool = False) -> None:
        """Take a sentence."""
        super().__init__(why)
        self.again = again


class Porter:
    """One task, done as the job's owner."""

    def __init__(self, task: Task, where: Home) -> None:
        """Read the cluster's address and the node's key, which the owner can't."""
        self._task = task
        self._cluster = where.cluster()
        self._secret = where.secret("worker")
        self._person = Person(task.uid, task.gid, list(task.groups) if task.groups is not None else None)
        self._held: Held | None = None
        if (task.bundle or task.copies) and task.do == "stage":
            with suppress(BeoError):  # then everything comes by the session
                self._held = Held(where, task.node, HELD_S)

    def do(self) -> None:
        """Do it; raises Trouble."""
        if not self._person.is_us and not self._task.as_root:
            self._person.become()
        if self._task.do == "stage":
            self._stage()
        else:
            self._collect()

    def _files(self, patience_s: float, caller: w.Caller | None = None) -> Files:
        me = w.Caller(self._person.uid, self._person.gid, tuple(self._person.groups))
        made = Session(self._locate, self._cluster.key, self._secret)
        return Files(made, caller or me, patience_s)

    def _locate(self) -> str:
        heads, key = self._cluster.heads, self._cluster.key
        answer = question.ask(heads, key, self._secret, ms.AskTree(), ms.TreeIs, LOCATE_S)
        return answer.address

    # ---- in

    def _stage(self) -> None:
        task = self._task
        if task.anew and task.vault:
            empty(task.vault)
        copies = task.copies if task.vault and not os.listdir(task.vault) else ()
        if task.bundle or copies:
            with self._files(STAGE_PATIENCE_S) as files:
                try:
                    fetch = self._fetch(Store(files, self._person.uid))
                    if task.bundle:
                        self._unpack(fetch, task.bundle, task.work)
                    for number, bundle in enumerate(copies):
                        self._put_back(fetch, bundle, number)
                except Missing as error:
                    why = f"its inputs are not in the tree any more ({error})"
                    raise Trouble(f"{why}: submit the job anew") from None
                except Damaged as error:
                    raise Trouble(f"its inputs are damaged: {error}") from None
                except FileNotFoundError as error:
                    raise Trouble(
                        f"its inputs are not in the tree any more: {error.filename}: submit the job anew"
                    ) from None
        if task.outputs:
            data = results.encode(results.listing(task.work, task.outputs))
            with open(KEPT, "wb", closefd=False) as kept:
                kept.write(data)
        say({"staged": True})

    def _fetch(self, store: Store) -> Fetch:
        """Return what gets chunks: from wherever they are nearest, and what doesn't come so, through the session."""

        def fetch(names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
            missing = dict.fromkeys(names, True)
            if self._held:
                try:
                    for name, data in self._held.stream(self._person.uid, names):
                        del missing[name]
                        yield name, data
                except BeoError:  # it is told of in the log of that process
                    self._held.close()
                    self._held = None
            if missing:
                yield from store.fetch(list(missing))

        return fetch

    def _put_back(self, fetch: Fetch, bundle: str, number: int) -> None:
        """Let the vault have what a node's vault had. Several nodes' copies have no file in common but its folders."""
        vault = self._task.vault
        aside = os.path.join(vault, f".copy-{number}")
        os.mkdir(aside, 0o700)
        self._unpack(fetch, bundle, aside)
        for folder, folders, names in os.walk(aside):
            place = os.path.join(vault, os.path.relpath(folder, aside))
            for name in folders:
                os.makedirs(os.path.join(place, name), 0o700, exist_ok=True)
            for name in names:
                os.replace(os.path.join(folder, name), os.path.join(place, name))
        shutil.rmtree(aside)

    def _unpack(self, fetch: Fetch, bundle: str, folder: str) -> None:
        task = self._task
        found = manifest(fetch, bundle)
        room = os.statvfs(folder)
        free_bytes, needed = room.f_bavail * room.f_frsize, found.size_bytes
        if needed > free_bytes:
            why = f"it needs {format_size(needed)}, and {os.path.dirname(folder)} has {format_size(free_bytes)}"
            raise Trouble(f"no room for its inputs on {task.node}: {why}", again=True)
        try:
            unpacking = Unpacking(found, folder)
            for name, data in fetch(unpacking.missing):
                unpacking.take(name, data)
            unpacking.finish()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Trouble(f"no room for its inputs on {task.node}: {_reason(error)}", again=True) from None
            raise

    # ---- out

    def _collect(self) -> None:
        """Write into the tree what is new. A head that is away is waited for, as long as it takes."""
        task = self._task
        with open(KEPT, "rb", closefd=False) as kept:
            kept.seek(0)
            before = results.decode_listing(kept.read(LISTING_MAX_BYTES))
        now = results.listing(task.work, task.outputs)
        fresh = results.changed(before, now)
        if task.nodes == 1 and not fresh:
            say({"collected": True})
            return
        with self._files(float("inf")) as files:
            named = {path: path for path in fresh}
            if task.nodes > 1:
                named = self._agree(files, fresh)
            if named:
                self._make_room()
                self._write(files, named)
        say({"collected": True})

    def _agree(self, files: Files, fresh: list[bytes]) -> dict[bytes, bytes]:
        """Find out under which names to keep what this node has, where others may have the same."""
        task = self._task
        top = os.fsencode(task.work)
        mine = {path: results.digest(os.path.join(top, path)) for path in fresh}
        store = Store(files, self._person.uid)
        say({"found": self._keep_list(store, mine) if mine else ""})
        others = hear(Others)
        lists: dict[str, dict[bytes, bytes]] = {}
        for _, name in others.others:
            if mine and name and name not in lists:
                lists[name] = results.decode_digests(_whole(store, name))
        return results.names(mine, [lists[name] for _, name in others.others if name in lists], task.node)

    def _keep_list(self, store: Store, mine: dict[bytes, bytes]) -> str:
        """Keep a list of files and digests as chunks; return the name of the one that names them."""
        store.prepare()
        cuts = list(chunks.pieces(iter([results.encode(mine)])))
        index = b"".join(bytes.fromhex(cut.name) for cut in cuts)
        store.keep([*cuts, chunks.Cut(words.digest(index), index)])
        return words.digest(index)

    def _make_room(self) -> None:
        """Make the job's folder for results, as root: it is the owner's, in a folder where all jobs have theirs."""
        path = f"{RESULTS}/{self._task.job}"
        with self._files(float("inf"), ROOT_CALLER) as files:
            try:
                files.mkdir(RESULTS, RESULTS_MODE)
            except FileExistsError:
                pass
            try:
                files.mkdir(path, FOLDER_MODE)
                made = files.stat(path, follow=False)
                files.do(plans.ask(w.Set(made.ino, uid=self._person.uid, gid=self._person.gid), path))
            except FileExistsError:
                made = files.stat(path, follow=False)
                if made.uid == 0 and self._person.uid and stat.S_IMODE(made.mode) == FOLDER_MODE and made.nlink == 2:
                    # Another node, or a porter that was killed, has just made it.
                    files.do(plans.ask(w.Set(made.ino, uid=self._person.uid, gid=self._person.gid), path))
                elif made.uid != self._person.uid or not made.is_dir:
                    raise Trouble(f"{path} of the tree is another's: let its owner or an admin remove it") from None

    def _write(self, files: Files, named: dict[bytes, bytes]) -> None:
        top = os.fsencode(self._task.work)
        target = f"{RESULTS}/{self._task.job}"
        folders = {b"/".join(path.split(b"/")[:n]) for path in named.values() for n in range(1, path.count(b"/") + 1)}
        for folder in sorted(folders, key=lambda path: path.split(b"/")):
            try:
                mode = stat.S_IMODE(os.stat(os.path.join(top, folder)).st_mode) & 0o777 | stat.S_IRWXU
                files.mkdir(f"{target}/{os.fsdecode(folder)}", mode, exist_ok=True)
            except OSError as error:
                raise self._failed(error, folder) from None
        todo = (self._one(os.path.join(top, path), f"{target}/{os.fsdecode(name)}") for path, name in named.items())
        for _, result in files.do_all(todo, COLLECT_WIDTH):
            if isinstance(result, OSError):
                raise self._failed(result, b"")

    def _one(self, source: bytes, target: str) -> plans.Plan[Any]:
        try:
            found = os.lstat(source)
            if stat.S_ISLNK(found.st_mode):
                yield from plans.make_link(os.fsdecode(os.readlink(source)), target, new_tag())
                return
            fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return  # taken away by somebody else, meanwhile: the job's own processes are gone
        with open(fd, "rb", buffering=0) as file:
            yield from plans.write(target, _blocks(file), new_tag(), found.st_mode & 0o777, found.st_mtime_ns)

    def _failed(self, error: OSError, path: bytes) -> Trouble:
        where = error.filename if isinstance(error.filename, str) else os.fsdecode(error.filename or path)
        return Trouble(f"{where}: {_reason(error)}")


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(READ_BYTES):
        yield block


def _whole(store: Store, name: str) -> bytes:
    ((_, index),) = store.fetch([name])
    chunks.check(name, index)
    wanted = [index[start : start + words.DIGEST_BYTES].hex() for start in range(0, len(index), words.DIGEST_BYTES)]
    found = dict(store.fetch(list(dict.fromkeys(wanted))))
    return b"".join(chunks.check(one, found[one]) for one in wanted)


def empty(folder: str) -> None:
    """Remove all that is in a folder, and follow no links."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def say(word: dict[str, object]) -> None:
    """Tell the warden."""
    print(msgspec.json.encode(word).decode(), flush=True)


def hear(kind: type[Any]) -> Any:
    """Be told by the warden; an input that has ended ends this process."""
    line = sys.stdin.readline()
    if not line:
        sys.exit(1)
    return msgspec.json.decode(line, type=kind)


def main() -> int:
    """Do one task; 0 where it is done."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # where there are no walls, the warden's end
    task = hear(Task)
    try:
        Porter(task, home()).do()
        return 0
    except Trouble as error:
        say({"failed": str(error), "again": error.again})
    except results.TooMany as error:
        say({"failed": str(error), "again": False})
    except NoHead as error:
        say({"failed": f"{error.what} ({error.why})" if error.why else error.what, "again": True})
    except BeoError as error:
        say({"failed": f"{error.what} ({error.why})" if error.why else error.what, "again": False})
    except ValueError as error:  # of what another node or this one's warden has kept
        say({"failed": f"what was kept of its files can't be read: {str(error).lower()}", "again": True})
    except OSError as error:
        named = error.filename if isinstance(error.filename, str) else os.fsdecode(error.filename or b"")
        say({"failed": f"{named}: {_reason(error)}" if named else _reason(error), "again": False})
    return 1


if __name__ == "__main__":
    sys.exit(main())
