"""The tree as a folder of this node: ``python -m beo.tree.attach FOLDER [PATH]``, as root, with BEO_DIR set.

Serves the mount until it is unmounted, or ended by SIGTERM. When it ends, however it ends, files that are open there
give errors, and whoever starts it again mounts it anew. PATH: what of the tree is shown, made if it isn't there.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TypeVar

import msgspec

from beo import lockfile, supervisor, wire
from beo.config import Home, home
from beo.errors import EXIT_FAILED, BeoError
from beo.log import setup
from beo.tree import plans
from beo.tree import words as w
from beo.tree.files import Files
from beo.tree.locate import node_session
from beo.tree.mount import KIND, mounted, serve
from beo.tree.mounting import Mount
from beo.tree.session import ROOT_CALLER, Session

ROOT_MODE = 0o755  # of a directory that is made to be mounted
ROOT_PATIENCE_S = 600.0  # for a cluster that starts: who is started anew again and again takes more
DRIFT_AFTER_S = 5.0  # a take-over is long over then

T = TypeVar("T", bound=msgspec.Struct)


class Link:
    """A session as a mount's line: each one's numbers by those of the other, and a part of the tree as a whole one.

    To the kernel, what is mounted is inode 1, as the tree's own root is to whoever serves it.
    """

    def __init__(self, made: Session, root: int = w.ROOT) -> None:
        """Ask by this session. root: the directory that is mounted."""
        self._session = made
        self._root = root
        self._poller = wire.Poller()
        made.register(self._poller)
        self._theirs: dict[int, int] = {}  # number of the session -> number of the mount
        self._ours: dict[int, int] = {}

    @property
    def next_at(self) -> float:
        """When to call `receive` at the latest."""
        return self._session.next_at

    @property
    def silent_s(self) -> float:
        """For how long a question has waited while nothing was heard, in seconds."""
        return self._session.silent_s

    def filenos(self) -> list[int]:
        """What to wait for, to be readable."""
        return self._session.filenos()

    def send(self, number: int, caller: w.Caller, question: w.Question) -> None:
        """Ask."""
        if isinstance(question, w.CancelLock):
            question = w.CancelLock(self._ours.get(question.number, 0))
        if self._root != w.ROOT:
            if isinstance(question, w.Recalled):
                inos = tuple(self._root if ino == w.ROOT else ino for ino in question.inos)
                question = msgspec.structs.replace(question, inos=inos)
            question = _renamed(question, w.ROOT, self._root)
        ours = self._session.ask(caller, question)
        self._theirs[ours] = number
        self._ours[number] = ours

    def receive(self) -> list[tuple[int, w.Told]]:
        """Return what has been answered."""
        answers: list[tuple[int, w.Told]] = []
        for ours, told in self._session.receive():
            number = self._theirs.pop(ours, 0)  # what isn't answered but told has none
            self._ours.pop(number, None)
            answers.append((number, told if self._root == w.ROOT else self._shown(told)))
        return answers

    def _shown(self, told: w.Told) -> w.Told:
        """Return an answer as if what is mounted were all."""
        if isinstance(told, w.Leased):
            answer = self._shown(told.answer)
            assert not isinstance(answer, w.Leased)
            return msgspec.structs.replace(told, answer=answer, inos=self._inos(told.inos))
        if isinstance(told, w.Recall):
            return msgspec.structs.replace(told, inos=self._inos(told.inos))
        answer = _renamed(told, self._root, w.ROOT)
        if isinstance(answer, w.AttrIs | w.Written) and answer.attr.ino == self._root:
            answer = msgspec.structs.replace(answer, attr=msgspec.structs.replace(answer.attr, ino=w.ROOT))
        return answer

    def _inos(self, inos: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(w.ROOT if ino == self._root else ino for ino in inos)


def _renamed(word: T, old: int, new: int) -> T:
    """Return a word that calls a directory by another number."""
    fields = {name: new for name in ("ino", "parent", "new_parent") if getattr(word, name, None) == old}
    return msgspec.structs.replace(word, **fields) if fields else word


def attach(where: Home, folder: Path, path: str = "/") -> None:
    """Mount a directory of the tree at a folder and serve it until it is unmounted or this process is to end."""
    ending = False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    lock = lockfile.hold(supervisor.mount_lock(where, str(folder)))
    if mounted(folder) != KIND:  # a predecessor's that died can't even be looked at
        folder.mkdir(parents=True, exist_ok=True)
    made = node_session(where, remembers=True)
    try:
        patience_s = DRIFT_AFTER_S if where.config().files.without_head == "read" else float("inf")
        serve(Mount(), Link(made, _root(where, path)), folder, lambda: ending, patience_s)
    finally:
        made.close()
        os.close(lock)


def _root(where: Home, path: str) -> int:
    if not path.strip("/"):
        return w.ROOT
    with Files(node_session(where), ROOT_CALLER, ROOT_PATIENCE_S) as files:
        files.do(plans.make_folders(path, ROOT_MODE))
        return files.stat(path).ino


def main(arguments: list[str]) -> int:
    """Do that; 0 for a clean end."""
    setup("mount")
    try:
        attach(home(), Path(arguments[0]).absolute(), *arguments[1:2])
    except (BeoError, OSError) as error:
        print(f"beo: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, BeoError) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
