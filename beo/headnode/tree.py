"""The process beside a head that serves the tree of files (beo/tree/server.py), as the head sees it.

It is started once somebody asks for the tree, or the other head has one: a cluster that never uses it pays nothing.
It ends with the head, and is started anew where it ends by itself.
"""

from __future__ import annotations

import logging
import time

from beo.child import Child
from beo.config import Home
from beo.headnode.state import State
from beo.tree import tie
from beo.tree.tie import Known, Report, Role, Tie

SILENT_S = 1.0  # without a report: then that process is taken for dead
ARGV = ("-P", "-m", "beo.tree.server")
STARTING_S = 5.0  # for both heads' first start of it, one after the other: no reason to go alone, on busy machines too
KEYS_EVERY_S = 0.5  # between two looks whether other keys are known


log = logging.getLogger("beo.head")


class Tree:
    """The tree's process, and the tie to it. For the control loop alone."""

    def __init__(self, home: Home) -> None:
        """Nothing is started yet, but where there is a tree already it will be."""
        folder = self._folder = home.head / "tree"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._wanted = (folder / "log").exists()
        self._child = Child("the tree's process", home, ARGV, log)
        self._begun_s = -STARTING_S  # when it was wanted for the first time
        self._tie = Tie(folder, tie.HEAD, tie.TREE)
        self._role = Role(0, False, 0, "", False, 0.0, 0)
        self._report: Report | None = None
        self._heard_s = self._led_s = time.monotonic()
        self._said_s = self._keys_s = 0.0
        self._keys: dict[str, Known] | None = None

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._tie.fileno()

    def want(self) -> None:
        """There has to be a tree from now on."""
        if not self._wanted:
            self._wanted = True
            self._led_s = self._begun_s = time.monotonic()
            self._child.keep(self._led_s)

    @property
    def address(self) -> str:
        """Where the tree is served; "" where it isn't, or not yet."""
        return self._report.address if self._report and self._wanted else ""

    @property
    def is_there(self) -> bool:
        """Whether the process has been heard of lately."""
        return bool(self._report) and time.monotonic() - self._heard_s < SILENT_S

    @property
    def trouble(self) -> str:
        """What a person should know."""
        if self._wanted and not self.is_there and time.monotonic() - self._led_s > SILENT_S:
            return "the tree of files is not served: its process doesn't live, see the head's log"
        return self._report.trouble if self._report else ""

    @property
    def lacks(self) -> int:
        """What the tree here lacks of what was acknowledged, where it follows and as far as it knows."""
        return self._report.lacks if self._report and self._wanted else 0

    def lag(self) -> tuple[bool, int, float]:
        """Return whether the other head's tree has all, what it lacks (-1: not known), and for how long it is stuck."""
        if not self._wanted:
            return True, 0, 0.0
        report, now_s = self._report, time.monotonic()
        if not self.is_there or not report or report.number != self._role.number:
            in_step, missing, stalled_s = False, -1, max(0.0, now_s - max(self._heard_s, self._led_s))
        else:
            in_step, missing, stalled_s = report.in_step, report.missing, report.stalled_s
        return in_step, missing, stalled_s if now_s - self._begun_s > STARTING_S else 0.0

    def direct(self, leads: bool, epoch: int, other: str, both: bool, until_s: float) -> None:
        """Tell the role, if it is another one than before or it is time."""
        now_s = time.monotonic()
        old = self._role
        if (old.leads, old.epoch, old.other, old.both) != (leads, epoch, other, both):
            if not old.leads and leads:
                self._led_s = now_s
            self._role = Role(old.number + 1, leads, epoch, other, both, until_s, old.keys)
            self._say(now_s)
        elif now_s - self._said_s >= tie.SAY_EVERY_S:
            self._role = Role(old.number, leads, epoch, other, both, until_s, old.keys)
            self._say(now_s)

    def hear(self) -> None:
        """Take what has come."""
        if isinstance(word := self._tie.hear(), Report):
            if not self.is_there:
                self._said_s = 0.0  # it may have been started anew
            self._report = word
            self._heard_s = time.monotonic()

    def tick(self, state: State) -> None:
        """Keep it running, and let it know who holds which key."""
        now_s = time.monotonic()
        if self._wanted:
            self._child.keep(now_s)
            self._tell_keys(state, now_s)

    def _tell_keys(self, state: State, now_s: float) -> None:
        if now_s - self._keys_s < KEYS_EVERY_S:
            return
        self._keys_s = now_s
        keys = {key: Known(one.user, one.role, one.uid, one.gids, one.node) for key, one in state.authorized.items()}
        if keys != self._keys:
            tie.write_keys(self._folder, keys)
            self._keys = keys
            old = self._role
            self._role = Role(old.number, old.leads, old.epoch, old.other, old.both, old.until_s, time.time_ns())
            self._said_s = 0.0

    def close(self) -> None:
        """End the process, and wait for that; what it has acknowledged is on the disk."""
        self._child.close()
        self._tie.close()

    def _say(self, now_s: float) -> None:
        self._said_s = now_s
        self._tie.say(self._role)
