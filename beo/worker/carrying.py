"""The files of an attempt on one node: in before its ranks start, out when they have ended.

An `Errand` does either. Where an attempt has several nodes, no rank starts before all of them have the files; and at
the end each tells the *lead*, the first node, what it has found, and the lead tells all: so every node knows under
which names to keep its results. No node's part ends before its words have arrived.
"""

from __future__ import annotations

import os
import signal

from beo.worker import contain
from beo.worker.errand import Errand
from beo.worker.loop import Loop
from beo.worker.order import Order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ARRIVE_S = 60.0
"""How long a node whose files are out waits for word that the others have heard it: it may get lost with an agent.

Not where the attempt is ended on all of them since one of them may be gone: nobody there uses what it would hear."""


class Carrying:
    """One attempt's files. kind: of the walls. folder: for what must outlive the agent.

    post: says something to other nodes (None: all). pending: whether they haven't heard all of it. staged: called when
    every node has the files. failed: called with why they aren't there, and whether another try may do better.
    collected: called when the results are out, or it was given up, with what went wrong.
    """

    def __init__(
        self,
        order: Order,
        kind: str,
        folder: str,
        loop: Loop,
        post: Callable[[dict[str, Any], list[str] | None], None],
        pending: Callable[[], bool],
        staged: Callable[[], None],
        failed: Callable[[str, bool], None],
        collected: Callable[[str], None],
    ) -> None:
        self._order = order
        self._kind = kind
        self._kept = os.path.join(folder, f"{order.job}.{order.attempt}.before")
        self._loop = loop
        self._post = post
        self._pending = pending
        self._staged, self._failed, self._collected = staged, failed, collected
        self._errand: Errand | None = None
        self._verb = ""
        self._done = False  # the errand has said so
        self._trouble = ""
        self._again = False
        self._ready: set[str] = set()  # nodes that have the files
        self._found: dict[str, str] = {}  # the lead's: node -> name of the list of what it has
        self._others: list[list[str]] | None = None  # of all nodes, once the lead has said so
        self._out = False  # the results of this node are out, or it was given up
        self._alone = False  # the attempt is ended on each node, and one of them may be gone: none is waited for
        self._ended = False

    @property
    def _is_lead(self) -> bool:
        return self._order.node == self._order.nodes[0]

    # -- in --------------------------------------------------------------------------------------------------------

    def stage(self) -> None:
        """Begin."""
        try:
            self._make_folder()
        except OSError as error:
            self._failed(f"no folder for its files on {self._order.node}: {error.strerror or error}", True)
            return
        self._begin("stage")

    def _make_folder(self) -> None:
        carried, person = self._order.carried, self._order.person
        if carried.work is None:
            return
        os.mkdir(carried.work, 0o700)
        if not person.is_us:
            os.chown(carried.work, person.uid, person.gid)
        if carried.at is not None:
            os.makedirs(carried.at, 0o755, exist_ok=True)
            contain.bind(carried.work, carried.at)

    def _all_staged(self) -> None:
        if self._ready.issuperset(self._order.nodes):
            self._staged()

    # -- both ------------------------------------------------------------------------------------------------------

    def _begin(self, verb: str) -> None:
        order, carried = self._order, self._order.carried
        self._verb, self._done, self._trouble = verb, False, ""
        task = {
            "do": verb,
            "job": order.job,
            "node": order.node,
            "nodes": len(order.nodes),
            "work": carried.work or order.cwd,
            "bundle": carried.bundle,
            "outputs": carried.outputs,
            "copies": carried.copies,
            "vault": carried.vault or "",
            "as_root": carried.as_root,
            "anew": carried.anew,
            "uid": order.person.uid,
            "gid": order.person.gid,
            "groups": order.person.groups,
        }
        try:
            kept = os.open(self._kept, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                self._errand = Errand(self._loop, carried.python, carried.home, kept, task, self._hear)
            finally:
                os.close(kept)
        except OSError as error:
            self._trouble, self._again = f"no porter can be started: {error.strerror or error}", True
            self._errand_over()

    def reaped(self, pid: int, status: int) -> None:
        """A process has ended; it may be the errand's."""
        errand = self._errand
        if not errand or errand.pid != pid:
            return
        errand.over()
        self._errand = None
        if not self._done and not self._trouble:
            code = os.waitstatus_to_exitcode(status)
            self._trouble, self._again = f"its porter ended with {code}, see the node's log", True
        self._errand_over()

    def _errand_over(self) -> None:
        if self._verb == "collect":
            self._out = True
            self._look_for_end()
        elif self._done:
            self._ready.add(self._order.node)
            if len(self._order.nodes) > 1:
                self._post({"carry": "staged"}, None)
            self._all_staged()
        else:
            self._failed(self._trouble, self._again)

    def _hear(self, word: dict[str, Any]) -> None:
        """What the errand says."""
        if "failed" in word:
            self._trouble, self._again = str(word["failed"]), bool(word.get("again"))
        elif "found" in word:
            self._tell_found(str(word["found"]))
        elif "staged" in word or "collected" in word:
            self._done = True

    def hear(self, node: str, body: dict[str, Any]) -> None:
        """What another node's warden says."""
        if body["carry"] == "staged":
            self._ready.add(node)
            if self._order.node in self._ready:
                self._all_staged()
        elif body["carry"] == "found":
            self._found[node] = str(body["name"])
            self._look_at_found()
        elif self._others is None:
            self._others = [[str(one), str(name)] for one, name in body["others"]]
            self._tell_others()

    # -- out -------------------------------------------------------------------------------------------------------

    def collect(self, wanted: bool, alone: bool) -> None:
        """Begin; the ranks have ended. wanted: there may be something to keep. alone: other nodes may be silent."""
        if not self._order.carried.outputs:
            self._collected("")
            return
        if alone:
            self._give_up_others()
        if wanted and (self._is_lead or not alone):
            self._begin("collect")
            return
        self._out = True
        if len(self._order.nodes) > 1:
            self._tell_found("")
        self._look_for_end()

    def cut_short(self, wanted: bool) -> None:
        """The attempt is to end, as somebody wants it so, or as another node is gone."""
        if self._verb != "collect" or self._ended:
            return
        if not wanted:
            self._give_up_others()
        if wanted or self._others is None:
            self._trouble = self._trouble or "their collecting was cut short"
            if self._errand:
                os.kill(self._errand.pid, signal.SIGKILL)
            self._end()
        else:
            self._look_for_end()

    def _give_up_others(self) -> None:
        self._alone = True
        if self._is_lead and self._others is None:
            self._found = {**dict.fromkeys(self._order.nodes, ""), **self._found}
            self._look_at_found()

    def _tell_found(self, name: str) -> None:
        if not self._is_lead:
            self._post({"carry": "found", "name": name}, [self._order.nodes[0]])
            self._tell_others()
            return
        self._found[self._order.node] = name
        if self._errand:  # whose names win: it needn't know the others'
            self._errand.say({"others": []})
        self._look_at_found()

    def _look_at_found(self) -> None:
        if self._others is None and self._found.keys() >= set(self._order.nodes):
            self._others = [[node, self._found[node]] for node in self._order.nodes if self._found[node]]
            self._post({"carry": "others", "others": self._others}, None)
            self._look_for_end()

    def _tell_others(self) -> None:
        if self._errand and self._others is not None and not self._is_lead:
            before = self._order.nodes[: self._order.nodes.index(self._order.node)]
            self._errand.say({"others": [pair for pair in self._others if pair[0] in before]})

    def flow(self) -> None:
        """Other nodes have heard something."""
        self._look_for_end()

    def _look_for_end(self) -> None:
        if not self._out or self._ended:
            return
        if len(self._order.nodes) > 1:
            if self._is_lead and self._others is None:
                return
            if self._pending() and not self._alone:
                if self._loop.due_s("carried") is None:
                    self._loop.after(ARRIVE_S, "carried", self._end)
                return
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._loop.forget("carried")
            self._collected(self._trouble)

    def forget(self) -> None:
        """Leave nothing: the files of the job are removed by who made its folders."""
        try:
            os.unlink(self._kept)
        except FileNotFoundError:
            pass
