"""Questions of a mount to the tree's server, and its answers; what is remembered needs none. Pure."""

from __future__ import annotations

import errno
import struct

import msgspec

from beo.tree import kernel, words
from beo.tree.memory import Memory
from beo.tree.replies import Ask, Effect, Failed, Notify, Then, errno_of, no, nothing, refuse, yes
from beo.tree.writing import Writing

DRIFT_S = 0.5  # for so long what is remembered is used without a head, before it is looked for one again

ANSWERS: dict[type, type] = {
    words.Look: words.AttrIs,
    words.Get: words.AttrIs,
    words.List: words.Listing,
    words.Target: words.TargetIs,
    words.Read: words.DataIs,
    words.Space: words.SpaceIs,
    words.Make: words.AttrIs,
    words.Link: words.AttrIs,
    words.Remove: words.Done,
    words.Rename: words.Done,
    words.Set: words.AttrIs,
    words.Write: words.Written,
    words.Allocate: words.AttrIs,
    words.Open: words.AttrIs,
    words.Close: words.Done,
    words.Lock: words.Done,
    words.Blocker: words.BlockerIs,
    words.Unlock: words.Done,
    words.CancelLock: words.Done,
}


class _Waiting(msgspec.Struct):
    """A question under way. failed: what to do instead of replying with the errno."""

    request: kernel.Request
    question: words.Question
    then: Then
    failed: Failed


class Asking:
    """The questions of one mount, with what it remembers. What becomes one: naming.py, mounting.py."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self.memory = Memory()
        self.writing = Writing()
        self.has_epochs = False  # the kernel can forget names without waiting for anybody, so it may remember them
        self._now_s = 0.0
        self._number = 0
        self._waiting: dict[int, _Waiting] = {}

    @property
    def pending(self) -> int:
        """How many questions are under way."""
        return len(self._waiting)

    def from_tree(self, number: int, told: words.Told, now_s: float) -> list[Effect]:
        """Take the answer to question `number`; one that nobody waits for is nothing."""
        self._now_s = now_s
        if isinstance(told, words.Recall):
            return self._recall(told)
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return []
        request, answer = waiting.request, told.answer if isinstance(told, words.Leased) else told
        self.memory.told(waiting.question, told)
        if not isinstance(answer, ANSWERS[type(waiting.question)]):
            effects = waiting.failed(request, errno_of(answer))
        else:
            try:
                effects = waiting.then(request, answer)
            except struct.error:  # a number that the kernel has no room for
                effects = [no(request, errno.EIO)]
        return effects + self.writing.end(request.ino, number)

    def drift(self, now_s: float) -> list[Effect]:
        """No head is heard: answer by what is remembered, until then and for a moment more; all else waits."""
        self._now_s = now_s
        self.memory.hold(now_s + DRIFT_S)
        effects = []
        for waiting in list(self._waiting.values()):
            answer = self._remembered(waiting.question)
            if answer is not None:
                then, waiting.then, waiting.failed = waiting.then, nothing, nothing
                effects += then(waiting.request, answer)
        return effects

    def _remembered(self, question: words.Question) -> words.Answer | None:
        known: words.Attr | bool | None = None
        match question:
            case words.Get():
                known = self.memory.attr(question.ino, self._now_s)
            case words.Look():
                known = self.memory.look(question.parent, question.name, self._now_s)
            case words.Open() if not question.truncate:
                known = self.memory.attr(question.ino, self._now_s)
        return words.AttrIs(known) if isinstance(known, words.Attr) else None

    def _ask(
        self,
        request: kernel.Request,
        question: words.Question,
        then: Then | None = None,
        failed: Failed | None = None,
    ) -> list[Effect]:
        """Ask, and go on with `then`; without it the reply is just yes."""
        self._number += 1
        self._waiting[self._number] = _Waiting(request, question, then or yes, failed or refuse)
        return [Ask(self._number, words.Caller(request.uid, request.gid, checked=True), question)]

    def _recall(self, word: words.Recall) -> list[Effect]:
        """Others are about to change something. What the kernel remembers of it ends with the lease at the latest."""
        self.memory.recall(word)
        if not word.inos:
            return []
        self._number += 1
        ask = Ask(self._number, words.Caller(0, 0, checked=True), words.Recalled(word.inos, word.recalls))
        notices = [kernel.invalid_attr(ino) for ino in word.inos]
        return [Notify((*notices, kernel.invalid_names()) if self.has_epochs else tuple(notices), ask)]

    def _attr_s(self, attr: words.Attr) -> float:
        """For how long the kernel may remember this of an inode, in seconds."""
        return self.memory.left_s(self._now_s) if self.memory.attr(attr.ino, self._now_s) else 0.0

    def _name_s(self, parent: int, name: bytes) -> float:
        """For how long the kernel may remember what a name means, in seconds."""
        return self.memory.left_s(self._now_s) if self.has_epochs and self.memory.has_name(parent, name) else 0.0
