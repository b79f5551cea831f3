"""What a mount remembers of the tree under leases (leases.py), so that the kernel's questions are answered here. Pure.

It remembers attributes of inodes, names of directories (also that there is none), where symbolic links lead, and which
directories it knows wholly. Nothing of it is used after the lease has ended, unless an answer that came since says that
everything still holds. What this mount changes itself is followed; what others change is forgotten before they may.
"""

from __future__ import annotations

import errno

from beo.tree import words as w

INODES_MAX = 100_000  # about 500 bytes each with a name; what wasn't used for longest goes
NAMES_MAX = 100_000  # of one directory: of a larger one none are kept


class _Inode:
    """What is remembered of an inode. names: of a directory, 0 where there is none; whole: no others exist.

    listed: up to which place its names are known, while it is being listed from the beginning.
    """

    __slots__ = ("attr", "listed", "names", "whole")

    def __init__(self) -> None:
        self.attr: w.Attr | None = None
        self.names: dict[bytes, int] = {}
        self.whole = False
        self.listed = 0


class Memory:
    """What one mount remembers."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._inodes: dict[int, _Inode] = {}  # what was used last comes last
        self._targets: dict[int, bytes] = {}  # never change
        self._alone: dict[int, bool] = {}  # files of which nobody else sees anything before a recall
        self._recalls = -1
        self._until_s = self._held_until_s = 0.0

    # ---- asked

    def attr(self, ino: int, now_s: float) -> w.Attr | None:
        """Return what is known of an inode, None where that has to be asked."""
        found = self._used(ino, now_s)
        return found.attr if found else None

    def look(self, parent: int, name: bytes, now_s: float) -> w.Attr | bool:
        """Return what is known of what has a name in a directory; False: nothing has it; True: that has to be asked."""
        found = self._used(parent, now_s)
        if found is None:
            return True
        ino = found.names.get(name)
        if ino is None:
            return not found.whole
        return (self.attr(ino, now_s) or True) if ino else False

    def has_name(self, parent: int, name: bytes) -> bool:
        """Whether it is known what a name means, or that it means nothing."""
        return self._meant(parent, name) is not None

    def left_s(self, now_s: float) -> float:
        """Return for how long all this is to be used, if nothing more is heard."""
        return max(0.0, self._until_s - now_s, self._held_until_s - now_s)

    def hold(self, until_s: float) -> None:
        """Use what is remembered until then, whether it still holds or not."""
        self._held_until_s = max(self._held_until_s, until_s)

    def is_alone(self, ino: int, now_s: float) -> bool:
        """Whether nobody else has to do with a file: then a write of it is as good as done when it is asked for."""
        return ino in self._alone and now_s < self._until_s

    def share(self, ino: int) -> None:
        """Others may have to do with a file from now on."""
        self._alone.pop(ino, None)

    def target(self, ino: int) -> bytes | None:
        """Return where a symbolic link leads, None where that has to be asked."""
        return self._targets.get(ino)

    def _used(self, ino: int, now_s: float) -> _Inode | None:
        if not self.left_s(now_s) or (found := self._inodes.pop(ino, None)) is None:
            return None
        self._inodes[ino] = found
        return found

    # ---- told

    def recall(self, word: w.Recall) -> None:
        """Forget what others are about to change; everything, if a word like this was missed."""
        if not word.inos or word.recalls != self._recalls + 1:
            self._forget_all()
        for ino in word.inos:
            self._inodes.pop(ino, None)
            self.share(ino)
        self._recalls = word.recalls

    def told(self, question: w.Question, told: w.Told) -> None:
        """Take what was answered. A lease's time is until when it holds, by the clock that `now_s` is of.

        Names that this mount has changed are known then only if they are leased with the answer: for one that was given
        again, they may have changed since.
        """
        inos: tuple[int, ...] = ()
        answer = told.answer if isinstance(told, w.Leased) else told
        if isinstance(told, w.Leased):
            if told.recalls != self._recalls:
                self._forget_all()
                self._recalls = told.recalls
            self._until_s = max(self._until_s, told.lease_s)
            inos = told.inos
        match question, answer:
            case w.Look(), w.AttrIs():
                self._name(question.parent, question.name, answer.attr.ino, inos)
            case w.Look(), w.Failed() if answer.errno == errno.ENOENT:
                self._name(question.parent, question.name, 0, inos)
            case w.List(), w.Listing():
                self._list(question, answer, inos)
            case ((w.Make() | w.Link()), w.AttrIs()):
                self._put(question.parent, question.name, answer.attr.ino if question.parent in inos else None)
            case w.Remove(), w.Done():
                self._forget(self._meant(question.parent, question.name))
                self._put(question.parent, question.name, 0 if question.parent in inos else None)
            case w.Rename(), _:
                self._renamed(
                    question, isinstance(answer, w.Done) and {question.parent, question.new_parent} <= {*inos}
                )
            case ((w.Make() | w.Link() | w.Remove()), _):  # it may have been done all the same
                self._put(question.parent, question.name, None)
        if isinstance(answer, w.AttrIs | w.Written):
            self._know(answer.attr, inos)
        if isinstance(answer, w.Written):
            if isinstance(told, w.Leased) and told.alone:
                self._alone[answer.attr.ino] = True
            else:
                self.share(answer.attr.ino)

    # ----

    def _forget_all(self) -> None:
        self._inodes.clear()
        self._alone.clear()

    def _of(self, ino: int) -> _Inode:
        found = self._inodes.pop(ino, None) or _Inode()
        if len(self._inodes) >= INODES_MAX:
            del self._inodes[next(iter(self._inodes))]
        self._inodes[ino] = found
        return found

    def _know(self, attr: w.Attr, inos: tuple[int, ...]) -> None:
        if attr.ino in inos:
            self._of(attr.ino).attr = attr
        else:
            self._changed(attr.ino)

    def _name(self, parent: int, name: bytes, ino: int, inos: tuple[int, ...]) -> None:
        if parent not in inos or name in (b".", b".."):
            return
        names = self._of(parent).names
        if len(names) < NAMES_MAX:
            names[name] = ino

    def _list(self, question: w.List, answer: w.Listing, inos: tuple[int, ...]) -> None:
        leased = frozenset(inos)
        for entry in answer.entries:
            if entry.attr.ino in leased:
                self._of(entry.attr.ino).attr = entry.attr
        if question.ino not in leased:
            return
        found = self._of(question.ino)
        follows = question.after == found.listed
        if question.after == 0:
            found.names.clear()
        elif not follows:
            return
        if len(found.names) + len(answer.entries) > NAMES_MAX:
            found.listed = -1
            return
        found.names.update((entry.name, entry.attr.ino) for entry in answer.entries)
        found.listed = answer.entries[-1].place if answer.entries else question.after
        found.whole = answer.end
        if answer.end:
            found.listed = -1

    def _changed(self, ino: int) -> None:
        """Its attributes aren't those that are known any more."""
        if found := self._inodes.get(ino):
            found.attr = None

    def _forget(self, ino: int | None) -> None:
        """All that is known of an inode, or of any if that isn't known, may be otherwise."""
        if ino is None:
            for found in self._inodes.values():
                found.attr = None
        elif ino:
            self._inodes.pop(ino, None)

    def _meant(self, parent: int, name: bytes) -> int | None:
        """Return which inode has a name, 0 for none, None where that isn't known."""
        found = self._inodes.get(parent)
        return found.names.get(name, 0 if found.whole else None) if found else None

    def _put(self, parent: int, name: bytes, ino: int | None) -> None:
        """A name in this directory, whose attributes are others by that, means this inode now; see `_meant`."""
        found = self._inodes.get(parent)
        if found is None:
            return
        found.attr = None
        found.names.pop(name, None)
        if ino is not None and len(found.names) < NAMES_MAX:
            found.names[name] = ino
        else:
            found.whole = False

    def _renamed(self, question: w.Rename, is_known: bool) -> None:
        old, new = (question.parent, question.name), (question.new_parent, question.new_name)
        moved, there = self._meant(*old), self._meant(*new)
        self._forget(moved)
        self._forget(there)
        if not is_known or moved is None or there is None:
            self._put(*old, None)
            self._put(*new, None)
        elif moved != there:  # else they are two names of one inode, and stay as they are
            self._put(*old, there if question.exchange else 0)
            self._put(*new, moved)
