"""The tree as a folder of this node: ``python -m beo.tree.attach FOLDER``, with BEO_DIR naming the cluster; as root.

Serves the mount until it is unmounted, or ended by SIGTERM. When it ends, however it ends, files that are open there
give errors, and whoever starts it again mounts it anew.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from beo import wire
from beo.config import Home, home
from beo.errors import BeoError
from beo.log import setup
from beo.tree import words as w
from beo.tree.locate import session
from beo.tree.mount import serve
from beo.tree.mounting import Mount
from beo.tree.session import Session


class Link:
    """A session as a mount's line: the numbers of the one, by those of the other."""

    def __init__(self, made: Session) -> None:
        """Ask by this session."""
        self._session = made
        self._poller = wire.Poller()
        made.register(self._poller)
        self._theirs: dict[int, int] = {}  # number of the session -> number of the mount
        self._ours: dict[int, int] = {}

    @property
    def next_at(self) -> float:
        """When to call `receive` at the latest."""
        return self._session.next_at

    def filenos(self) -> list[int]:
        """What to wait for, to be readable."""
        return self._session.filenos()

    def send(self, number: int, caller: w.Caller, question: w.Question) -> None:
        """Ask."""
        if isinstance(question, w.CancelLock):
            question = w.CancelLock(self._ours.get(question.number, 0))
        ours = self._session.ask(caller, question)
        self._theirs[ours] = number
        self._ours[number] = ours

    def receive(self) -> list[tuple[int, w.Answer]]:
        """Return what has been answered."""
        answers = []
        for ours, answer in self._session.receive():
            number = self._theirs.pop(ours)
            del self._ours[number]
            answers.append((number, answer))
        return answers


def attach(where: Home, folder: Path) -> None:
    """Mount the tree at a folder and serve it until it is unmounted or this process is to end."""
    ending = False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    made = session(where, where.secret("worker"))
    try:
        serve(Mount(), Link(made), folder, lambda: ending)
    finally:
        made.close()


def main(arguments: list[str]) -> int:
    """Do that; 0 for a clean end."""
    setup("mount")
    try:
        attach(home(), Path(arguments[0]).absolute())
    except BeoError as error:
        print(f"beo: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
