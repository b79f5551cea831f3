"""From a journal to the state: the newest snapshot, and every entry behind it."""

from __future__ import annotations

from collections.abc import Iterable

from beo import events
from beo.entries import Entry, Snapshot
from beo.errors import Internal
from beo.headnode.state import State


def replay(snapshot: Snapshot | None, entries: Iterable[Entry]) -> State:
    """Return the state after the last of `entries`; raises Internal where they don't begin behind the snapshot."""
    state = State.decode(snapshot.state) if snapshot else State()
    for entry in entries:
        state.apply(events.decode(entry.data))
        if state.index != entry.index:
            raise Internal(f"entry {entry.index} was replayed as {state.index}", "", "restore the journal")
    state.changed.clear()
    return state
