"""From the tree's journal to the tree: the newest snapshot, and every entry behind it."""

from __future__ import annotations

from collections.abc import Iterable

from beo.entries import Entry, Snapshot
from beo.errors import Internal
from beo.tree import changes
from beo.tree.state import State


def replay(snapshot: Snapshot | None, entries: Iterable[Entry]) -> State:
    """Return the tree after the last of `entries`; raises Internal where they don't begin behind the snapshot."""
    state = State.decode(snapshot.state) if snapshot else State.new()
    for entry in entries:
        state.apply(changes.decode(entry.data))
        if state.index != entry.index:
            raise Internal(f"entry {entry.index} of the tree was replayed as {state.index}", "", "restore its journal")
    return state
